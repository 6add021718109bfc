"""Recipe: one run as a frozen, validated value.

Place in the flow: made by `baselines.py` or an experiment file, changed by typed overrides, read
by every room in parts; only `jobs/` sees a whole `Recipe`.
Sources of the defaults: the published fine-tuning recipes of YOLO-World (arXiv 2401.17270).
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

Freeze = Literal["none", "backbone", "neck", "backbone_neck", "all_but_seg_head", "all_but_prompts"]


class TextConfig(BaseModel):
    """Where text vectors come from."""

    model_config = _FROZEN
    encoder: Literal["clip-vit-b32", "hashed-words"] = "clip-vit-b32"
    """`hashed-words` is a stated stand-in for runs without weights; such runs are never a row."""
    num_train_texts: int = Field(80, ge=1)
    """Texts each training image sees: its classes, then sampled negatives, then padding."""


class ModelConfig(BaseModel):
    """Architecture: scale, generation and switches."""

    model_config = _FROZEN
    size: Literal["n", "s", "m", "l", "x", "xl"] = "s"
    version: Literal["v1", "v2"] = "v2"
    """Decides the contrast head: v1 normalises image features by L2, v2 by batch norm."""
    neck: Literal["vlpan_bn", "dual_vlpan", "efficient"] = "vlpan_bn"
    segmentation: bool = False
    """Adds prototypes and mask coefficients."""
    prompts: Literal["texts", "embeddings", "reparam"] = "texts"
    """`embeddings` learns prompt vectors; `reparam` folds a fixed vocabulary into convolutions."""
    num_prompts: int = Field(80, ge=1)
    """Classes of the folded or learned prompts; unused with `prompts="texts"`."""
    prompt_adapter: bool = False


class DataConfig(BaseModel):
    """Which shards, in which order, under which law."""

    model_config = _FROZEN
    train: str = "data/coco/train2017"
    """Folder of prepared training shards."""
    val: str = "data/coco/val2017"
    """Folder of prepared validation shards."""
    image_size: int = Field(640, ge=32, multiple_of=32)
    """Side of the square network input, pixels."""
    lanes: int = Field(8, ge=1)
    """Canonical lanes of the order; a worker count must divide it."""
    window_rows: int = Field(256, ge=1)
    """Rows among which a sample's partners are drawn."""
    partners: Literal["window", "dataset"] = "window"
    """`dataset` draws mosaic partners from everywhere, as the original: slower, for checking."""
    law: Literal["fast", "reference"] = "fast"
    """Transforms: fast equal-in-law forms, or the original's arithmetic step by step."""
    augment_on: Literal["worker", "cluster"] = "worker"
    """Where pixels are made: threads of the train worker, or Ray tasks on CPU nodes."""
    max_train_images: int | None = Field(None, ge=1)
    """Use only the first images of the training shards (smoke runs)."""
    max_val_images: int | None = Field(None, ge=1)
    """Score only the first images of the validation shards (smoke runs)."""


class AugmentConfig(BaseModel):
    """Training transforms of stage 1 (mosaic) and stage 2 (mosaic closed)."""

    model_config = _FROZEN
    mask_refine: bool = True
    """Boxes follow the polygons through every transform; objects without polygon are dropped."""
    mosaic: bool = True
    copy_paste: float = Field(0.3, ge=0, le=1)
    """Share of the candidates mirrored and pasted; needs `mask_refine`."""
    mixup: float = Field(0.15, ge=0, le=1)
    scale: tuple[float, float] = (0.5, 1.5)
    translate: float = Field(0.1, ge=0, le=0.5)
    """Shift of the affine step, share of the output side, both ways."""
    hsv: tuple[float, float, float] = (0.015, 0.7, 0.4)
    flip: float = Field(0.5, ge=0, le=1)
    pixel_jitter: float = Field(0.01, ge=0, le=1)
    """Chance of each of blur, median blur, grey and CLAHE."""
    stage2_pad_quirk: bool = True
    """Stage 2 pads with (114, 0, 0) BGR, as the published rows were trained."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"augment.scale must be 0 < low <= high, got {self.scale}")
        if self.copy_paste and not self.mask_refine:
            raise ValueError("augment.copy_paste needs augment.mask_refine; set copy_paste to 0")
        return self


class OptimConfig(BaseModel):
    """Optimiser and its parameter groups."""

    model_config = _FROZEN
    kind: Literal["adamw", "sgd"] = "adamw"
    base_lr: float = Field(2e-4, gt=0)
    """Peak rate for the stated global batch; never rescaled behind the user's back."""
    weight_decay: float = Field(0.05, ge=0)
    """As written in the recipe; multiplied by total batch / 64 as the original does."""
    scale_weight_decay: bool = True
    decay_norm_and_bias: bool = True
    """The COCO rows decay batch norm and biases too; the segmentation rows do not."""
    text_lr_mult: float = Field(0.01, ge=0)
    """Rate of the CLIP text tower relative to `base_lr`; unused while it is frozen."""
    single_group: bool = False
    """One group for all parameters (re-parameterised row)."""
    momentum: float = Field(0.937, ge=0, lt=1)
    """SGD only."""
    clip_norm: float = Field(10.0, gt=0)


class ScheduleConfig(BaseModel):
    """Length, batch and rate over time."""

    model_config = _FROZEN
    epochs: int = Field(80, ge=1)
    global_batch: int = Field(128, ge=1)
    """Images of one optimiser step over all workers."""
    close_mosaic_epochs: int = Field(10, ge=0)
    """Last epochs run without mosaic, copy-paste and mixup."""
    warmup_epochs: float = Field(3.0, ge=0)
    warmup_min_steps: int = Field(1000, ge=0)
    final_lr_factor: float = Field(0.01, ge=0, le=1)
    third_group_warmup_from: float | None = 0.1
    """The original warms its third parameter group from 0.1; None turns the quirk off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.close_mosaic_epochs > self.epochs:
            raise ValueError(
                f"schedule.close_mosaic_epochs {self.close_mosaic_epochs} exceeds "
                f"schedule.epochs {self.epochs}; lower it too"
            )
        return self


class EmaConfig(BaseModel):
    """Exponential moving average of weights and floating-point buffers."""

    model_config = _FROZEN
    momentum: float = Field(1e-4, gt=0, lt=1)
    gamma: float = Field(2000.0, gt=0)
    """Steps over which the average settles."""


class EvalConfig(BaseModel):
    """Validation and post-processing."""

    model_config = _FROZEN
    style: Literal["coco", "lvis"] = "coco"
    kind: Literal["bbox", "segm"] = "bbox"
    engine: Literal["hotcoco", "pycocotools", "lvis"] = "hotcoco"
    every_epochs: int = Field(5, ge=1)
    """Until mosaic closes; every epoch after."""
    score_threshold: float = Field(0.001, ge=0, lt=1)
    nms_iou: float = Field(0.7, gt=0, le=1)
    nms_pre: int = Field(30000, ge=1)
    max_detections: int = Field(300, ge=1)
    batch: int = Field(8, ge=1)


class ComputeConfig(BaseModel):
    """Hardware only: changing it never changes the optimiser's steps."""

    model_config = _FROZEN
    workers: int = Field(1, ge=0)
    """Training processes; 0 trains in this process without Ray Train."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp32 on CPU, bf16 on a GPU that has it, else fp16 with loss scaling."""
    cpus_per_worker: float = Field(1, gt=0)
    data_cpus: float = Field(1, gt=0)
    """Logical CPUs kept for the stream's read tasks."""
    augment_threads: int = Field(2, ge=1)
    """Threads of each worker that decode and augment."""
    decoded_cache_mb: int = Field(1800, ge=1)
    """Bound on decoded pictures a worker holds in open windows."""
    max_images_per_forward: int = Field(32, ge=1)
    """Lanes of one step are joined in a forward up to this many images."""
    max_failures: int = Field(3, ge=0)
    """Worker deaths a run survives by restarting from its last checkpoint."""
    cluster_wait_s: float = Field(30, ge=0)
    """How long to wait for a cluster that is still too small; raise it where nodes autoscale."""
    checkpoint_every_epochs: int = Field(5, ge=1)
    keep_checkpoints: int = Field(3, ge=1)


class TrackingConfig(BaseModel):
    """Where runs and their records live."""

    model_config = _FROZEN
    storage: str = "runs"
    """Folder of run folders; shared by all nodes."""
    uri: str | None = None
    """MLflow tracking URI; default: sqlite beside the runs."""
    experiment: str = "yw_ray"


class Recipe(BaseModel):
    """All that defines one run."""

    model_config = _FROZEN
    name: str
    """Run name; the run folder is `tracking.storage/name`."""
    title: str = ""
    """One line for tables."""
    recipe_id: str = ""
    """Identifier of the published recipe this one restates; empty for none."""
    init_from: str | None = None
    """Checkpoint to start from: ours or official."""
    seed: int = Field(0, ge=0)
    freeze: Freeze = "none"
    """What stays fixed besides the text tower."""
    train_text_encoder: bool = False
    """Only the all-modules segmentation rows train it, at `optim.text_lr_mult`."""
    train_seg_norms: bool = False
    """The original freezes batch-norm weights of the mask branches in head-only runs."""
    published: dict[str, float] = Field(default_factory=dict)
    """Published figures of the row, percent; for reports only, never a result."""
    notes: tuple[str, ...] = ()
    """Known oddities of the row; shown in reports."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    eval: EvalConfig = EvalConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain folder name, got {self.name!r}")
        if self.freeze == "all_but_seg_head" and not self.model.segmentation:
            raise ValueError("freeze=all_but_seg_head needs model.segmentation")
        if self.eval.kind == "segm" and not self.model.segmentation:
            raise ValueError("eval.kind=segm needs model.segmentation")
        if self.schedule.global_batch % self.data.lanes and (
            self.data.lanes % self.schedule.global_batch
        ):
            raise ValueError(
                f"schedule.global_batch {self.schedule.global_batch} must be a multiple of "
                f"data.lanes {self.data.lanes}, or divide it"
            )
        workers = max(self.compute.workers, 1)
        if self.data.lanes % workers or self.schedule.global_batch % workers:
            valid = [
                w
                for w in range(1, self.data.lanes + 1)
                if self.data.lanes % w == 0 and self.schedule.global_batch % w == 0
            ]
            raise ValueError(
                f"compute.workers {workers} must divide data.lanes {self.data.lanes} and "
                f"schedule.global_batch {self.schedule.global_batch}; valid: {valid}"
            )
        return self


def to_dotted(recipe: BaseModel) -> dict[str, Any]:
    """Flatten to the one dotted vocabulary: override, sweep axis, MLflow parameter, column."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, BaseModel):
            for key in type(value).model_fields:
                walk(f"{prefix}.{key}" if prefix else key, getattr(value, key))
        else:
            flat[prefix] = value

    walk("", recipe)
    return flat


def with_overrides(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A new recipe with dotted fields replaced, validated as a whole.

    Raises: ValueError for a name that is no field (the nearest one is named) or a bad value.
    """
    import difflib

    known = to_dotted(recipe)
    tree = recipe.model_dump()
    for key, value in changes.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown recipe field {key!r}{hint}")
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return Recipe.model_validate(tree)


def science_digest(recipe: Recipe) -> str:
    """Hash of everything but hardware, places and bookkeeping: what must not change on resume.

    Data sets are told apart by their digests, not by the folders they lie in.
    """
    return _digest(science(recipe))


def science(recipe: Recipe) -> dict[str, Any]:
    """The dotted fields that decide what a run computes."""
    left_out = ("compute.", "tracking.", "title", "published", "notes", "data.train", "data.val")
    flat = to_dotted(recipe.model_copy(update={"published": {}}))
    return {key: value for key, value in flat.items() if not key.startswith(left_out)}


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=list).encode()).hexdigest()
