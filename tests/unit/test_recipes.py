"""Every experiment states the published numbers; every published number has a known place."""

import fnmatch
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from yw_ray.baselines import coco_finetune, lvis_seg_finetune, pretrained_weights
from yw_ray.recipe import ModelConfig, OptimConfig, Recipe
from yw_ray.training.optim import NOMINAL_BATCH, THIRD_PARAMETER, build_optimizer, decay_factor
from yw_ray.training.schedule import WARMUP_MOMENTUM, Schedule

ROOT = Path(__file__).parents[2]
PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "golden" / "recipes.json").read_text()
)["recipes"]

NECKS = {
    ("YOLOWorldPAFPN", "MaxSigmoidCSPLayerWithTwoConv"): "vlpan_bn",
    ("YOLOWorldPAFPN", "RepConvMaxSigmoidCSPLayerWithTwoConv"): "vlpan_bn",
    ("YOLOWorldPAFPN", "EfficientCSPLayerWithTwoConv"): "efficient",
    ("YOLOWorldDualPAFPN", "MaxSigmoidCSPLayerWithTwoConv"): "dual_vlpan",
}

Get = Callable[[Recipe], Any]

SAME: dict[str, Get] = {
    "model.scale": lambda r: r.model.size.upper(),
    "model.head.contrast": lambda r: (
        "rep_bn_conv1x1"
        if r.model.prompts == "reparam"
        else {"v1": "l2norm", "v2": "bn"}[r.model.version]
    ),
    "model.head.type": lambda r: (
        "seg" if r.model.segmentation else "rep" if r.model.prompts == "reparam" else "det"
    ),
    "model.reparameterized": lambda r: r.model.prompts == "reparam",
    "model.text_encoder.trainable": lambda r: r.train_text_encoder,
    "model.text_encoder.lr_mult": lambda r: r.optim.text_lr_mult,
    "model.num_train_texts": lambda r: r.text.num_train_texts,
    "init_checkpoint.hash8": lambda r: Path(r.init_from or "").stem[-8:],
    "init_checkpoint.published_as": lambda r: Path(r.init_from or "").name,
    "data.img_size": lambda r: [r.data.image_size] * 2,
    "data.stage?.load_annotations.merge_polygons": lambda r: r.augment.mask_refine,
    "data.stage?.load_annotations.with_mask": lambda r: r.augment.mask_refine,
    "data.stage?.load_annotations.mask2bbox": lambda r: r.augment.mask_refine,
    "data.stage1.mosaic4*.prob": lambda r: float(r.augment.mosaic),
    "data.stage1.mosaic4*.img_scale": lambda r: [r.data.image_size] * 2,
    "data.stage1.copy_paste_mirror.prob": lambda r: r.augment.copy_paste,
    "data.stage1.mixup*.prob": lambda r: r.augment.mixup,
    "data.stage?.random_affine.scaling_ratio_range": lambda r: list(r.augment.scale),
    "data.stage?.random_affine.max_translate_ratio": lambda r: r.augment.translate,
    "data.stage1.random_affine.border": lambda r: [-r.data.image_size // 2] * 2,
    "data.stage2.*.scale": lambda r: [r.data.image_size] * 2,
    "data.stage?.pixel_aug_albumentations.transforms": lambda r: (
        [{"p": r.augment.pixel_jitter}] * 4
    ),
    "data.stage?.hsv_jitter.hue_delta": lambda r: r.augment.hsv[0],
    "data.stage?.hsv_jitter.sat_delta": lambda r: r.augment.hsv[1],
    "data.stage?.hsv_jitter.val_delta": lambda r: r.augment.hsv[2],
    "data.stage?.random_flip.prob": lambda r: r.augment.flip,
    "data.stage?.sample_texts.max_num_samples": lambda r: r.text.num_train_texts,
    "data.stage2_from_epoch": lambda r: r.schedule.epochs - r.schedule.close_mosaic_epochs,
    "optim.name": lambda r: {"adamw": "AdamW", "sgd": "SGD"}[r.optim.kind],
    "optim.lr": lambda r: r.optim.base_lr,
    "optim.momentum": lambda r: r.optim.momentum if r.optim.kind == "sgd" else None,
    "optim.nesterov": lambda r: _default(r, "nesterov"),
    "optim.betas": lambda r: _default(r, "betas"),
    "optim.weight_decay_config": lambda r: r.optim.weight_decay,
    "optim.weight_decay_effective": lambda r: _default(r, "weight_decay"),
    "optim.weight_decay_scale_factor": lambda r: decay_factor(r.schedule.global_batch),
    "optim.no_decay_norm_and_bias": lambda r: not r.optim.decay_norm_and_bias,
    "optim.param_overrides.backbone.text_model.lr_mult": lambda r: r.optim.text_lr_mult,
    "optim.per_parameter_groups": lambda r: not r.optim.single_group,
    "optim.grad_clip_norm": lambda r: r.optim.clip_norm,
    "schedule.epochs": lambda r: r.schedule.epochs,
    "schedule.final_lr_factor": lambda r: r.schedule.final_lr_factor,
    "schedule.warmup_epochs": lambda r: r.schedule.warmup_epochs,
    "schedule.warmup_min_iters": lambda r: r.schedule.warmup_min_steps,
    "schedule.warmup_from": lambda r: Schedule(r.optim, r.schedule, 925).lr_factor(0),
    "schedule.warmup_bias_group_lr": lambda r: r.schedule.third_group_warmup_from,
    "schedule.warmup_bias_group_index": lambda r: THIRD_PARAMETER,
    "schedule.warmup_momentum": lambda r: WARMUP_MOMENTUM,
    "schedule.close_mosaic_epochs": lambda r: r.schedule.close_mosaic_epochs,
    "schedule.val_interval": lambda r: r.eval.every_epochs,
    "schedule.save_interval": lambda r: r.compute.checkpoint_every_epochs,
    "batch.gpus": lambda r: r.data.lanes,
    "batch.per_gpu": lambda r: r.schedule.global_batch / r.data.lanes,
    "batch.total": lambda r: r.schedule.global_batch,
    "ema.momentum": lambda r: r.ema.momentum,
    "ema.gamma": lambda r: r.ema.gamma,
    "test_cfg.nms_pre": lambda r: r.eval.nms_pre,
    "test_cfg.score_thr": lambda r: r.eval.score_threshold,
    "test_cfg.nms_iou": lambda r: r.eval.nms_iou,
    "test_cfg.max_per_img": lambda r: r.eval.max_detections,
    "eval.metric": lambda r: {"coco": "CocoMetric", "lvis": "LVISMetric"}[r.eval.style],
    "expected.metric": lambda r: {
        "coco": "COCO val2017 bbox",
        "lvis": "LVIS v1.0 val segm",
    }[r.eval.style],
    "expected.AP_ZS": lambda r: r.published["bbox/AP_ZS"],
    "expected.AP": lambda r: r.published.get("bbox/AP"),
    "expected.AP50": lambda r: r.published["bbox/AP50"],
    "expected.AP75": lambda r: r.published["bbox/AP75"],
    "expected.AP_mask": lambda r: r.published["segm/AP"],
    "expected.APr": lambda r: r.published["segm/APr"],
    "expected.APc": lambda r: r.published["segm/APc"],
    "expected.APf": lambda r: r.published["segm/APf"],
}
"""Published field -> what the recipe makes of it; equal in every row that has the field."""

DIFFERENT: dict[str, tuple[str, Get]] = {
    "schedule.keep_checkpoints": (
        "The original keeps all (-1); ours keeps the last ones, of which each holds the whole run.",
        lambda r: r.compute.keep_checkpoints,
    ),
    "data.workers_per_gpu": (
        "Loader processes of the original; here threads, which never change the samples.",
        lambda r: r.compute.augment_threads,
    ),
    "eval.batch": (
        "Pictures of one forward pass at validation: each is letterboxed alone, so it is speed.",
        lambda r: r.eval.batch,
    ),
    "amp": (
        "fp16 with loss scaling there; `auto` takes bf16 where the GPU has it, fp32 on a CPU.",
        lambda r: r.compute.precision,
    ),
    "eval.iou_types": (
        "LVIS rows judge boxes as well there; a run here judges the kind that its row prints.",
        lambda r: [r.eval.kind],
    ),
}
"""Published field -> why ours is another on purpose, and ours."""

ELSEWHERE: dict[str, str] = {
    "model.generation": "with the neck, test_the_architecture_is_the_published_one",
    "model.neck.*": "tests/parity, manifests and forward passes",
    "model.head.*": "tests/parity, manifests and forward passes",
    "model.deepen": "tests/parity, manifests",
    "model.widen": "tests/parity, manifests",
    "model.last_stage_out_channels": "tests/parity, manifests",
    "model.backbone_*": "tests/parity, manifests",
    "model.params_m_without_text_encoder": "tests/parity, manifests",
    "model.bn.*": "tests/parity, loss goldens (statistics after a step)",
    "model.text_encoder": "null where texts are folded",
    "model.text_encoder.dim": "tests/parity, text tower",
    "model.text_encoder.dropout": "tests/parity, text tower",
    "model.num_test_texts": "the validation shards' classes",
    "frozen": "test_the_published_parts_are_frozen",
    "status": "test_rows_without_published_numbers_say_so",
    "loss.*": "tests/parity, loss and head_loss",
    "assigner.*": "tests/parity, assigner",
    "data.train.*": "tests/parity, dataset",
    "data.drop_last": "the plan pads the last batch; unit tests of the plan",
    "data.stage?.load_annotations.with_bbox": "boxes are always loaded",
    "data.stage1.mosaic4*.*": "tests/parity, pipeline",
    "data.stage1.copy_paste_mirror.ioa_threshold": "tests/parity, pipeline",
    "data.stage1.mixup*.*": "tests/parity, pipeline",
    "data.stage?.random_affine.*": "tests/parity, pipeline; limits in unit tests of geometry",
    "data.stage?.random_flip.direction": "tests/parity, pipeline",
    "data.stage?.polygons_to_bitmaps.*": "tests/parity, pipeline",
    "data.stage?.sample_texts.*": "tests/parity, pipeline; 80 texts are always filled up",
    "data.stage?.drop_fields.keys": "masks follow model.segmentation",
    "data.stage2.keep_ratio_resize.*": "tests/parity, pipeline",
    "data.stage2.letterbox.*": "tests/parity, pipeline",
    "optim.param_overrides.logit_scale.weight_decay": "tests/parity, params",
    "optim.param_overrides.*.lr_mult": "frozen instead: test_the_published_parts_are_frozen",
    "optim.param_overrides": "null with one group; single_group is compared",
    "optim.grad_accumulation": "one optimiser step a global batch; unit tests of the plan",
    "schedule.lr_decay": "tests/parity, schedule",
    "schedule.epoch_lag": "tests/parity, schedule",
    "schedule.val_interval_stage2": "every epoch once mosaic is closed; the loop",
    "ema.update_buffers": "tests/parity, ema",
    "ema.strict_load": "tests/parity, manifests and official weights",
    "test_cfg.multi_label": "tests/parity, postprocess",
    "test_cfg.nms": "tests/parity, postprocess",
    "test_cfg.mask_thr": "tests/parity, postprocess",
    "test_cfg.fast_mask_upsample": "tests/parity, postprocess",
    "eval.class_texts": "the validation shards' classes",
    "eval.weights": "the loop validates the average",
}
"""Published field -> where the constant is checked: it is no field of a recipe."""

ABSENT: dict[str, Any] = {
    "data.stage1.copy_paste_mirror.prob": 0.0,
    "data.stage1.load_annotations.merge_polygons": False,
}
"""What a row without the field means."""


def _default(recipe: Recipe, name: str) -> Any:
    """A default of the optimiser that the recipe builds, for one convolution weight."""
    import torch
    from torch import nn

    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    optimizer = build_optimizer(model, recipe.optim, total_batch=recipe.schedule.global_batch)
    value = optimizer.param_groups[0].get(name)
    return list(value) if isinstance(value, tuple) else value


def _load(path: Path) -> Recipe:
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = module.recipe
    assert isinstance(recipe, Recipe)
    return recipe


FILES = sorted(
    path
    for path in (ROOT / "experiments").glob("*.py")
    if path.stem.startswith(("coco_v", "lvis_seg_v"))
)
RECIPES = {path.stem: _load(path) for path in FILES}
each_experiment = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _match(path: str, patterns: dict[str, Any]) -> str | None:
    return next((p for p in patterns if fnmatch.fnmatchcase(path, p)), None)


def test_every_published_row_has_one_experiment_named_after_its_file() -> None:
    assert sorted(recipe.recipe_id for recipe in RECIPES.values()) == sorted(PUBLISHED)
    assert all(recipe.name == stem for stem, recipe in RECIPES.items())


@each_experiment
def test_each_published_number_is_the_recipe_s(recipe: Recipe) -> None:
    wrong = {}
    for path, published in _leaves(PUBLISHED[recipe.recipe_id]):
        pattern = _match(path, SAME)
        if pattern is None or (path == "init_checkpoint.published_as" and published is None):
            continue
        ours = SAME[pattern](recipe)
        if ours != (pytest.approx(published) if isinstance(published, float) else published):
            wrong[path] = (published, ours)
    assert not wrong


@each_experiment
def test_a_step_that_a_row_leaves_out_is_off(recipe: Recipe) -> None:
    present = dict(_leaves(PUBLISHED[recipe.recipe_id]))
    for path, meaning in ABSENT.items():
        if path not in present:
            pattern = _match(path, SAME)
            assert pattern is not None and SAME[pattern](recipe) == meaning, path


@each_experiment
def test_each_published_field_is_compared_different_on_purpose_or_checked_elsewhere(
    recipe: Recipe,
) -> None:
    paths = [path for path, _ in _leaves(PUBLISHED[recipe.recipe_id])]
    assert [p for p in paths if not any(_match(p, t) for t in (SAME, DIFFERENT, ELSEWHERE))] == []


def test_no_listed_field_is_stale() -> None:
    """Every entry of the three lists is met in some row, and each difference is one."""
    rows = {key: dict(_leaves(row)) for key, row in PUBLISHED.items()}
    paths = {path for row in rows.values() for path in row}
    for table in (SAME, DIFFERENT, ELSEWHERE):
        for pattern in table:
            assert fnmatch.filter(paths, pattern), pattern
    for path, (reason, ours) in DIFFERENT.items():
        assert reason
        assert any(rows[r.recipe_id][path] != ours(r) for r in RECIPES.values()), path


@each_experiment
def test_the_architecture_is_the_published_one(recipe: Recipe) -> None:
    published = PUBLISHED[recipe.recipe_id]["model"]
    neck = NECKS[published["neck"]["type"], published["neck"]["block"]]
    assert recipe.model.neck == neck
    if neck != "efficient":  # the original calls its neck v2 whatever the head
        assert recipe.model.version == published["generation"]


@each_experiment
def test_the_published_parts_are_frozen(recipe: Recipe) -> None:
    published = PUBLISHED[recipe.recipe_id]
    frozen = [part.split("(")[0] for part in published["frozen"]]
    has_text = published["model"]["text_encoder"] is not None
    assert recipe.train_text_encoder == (has_text and "text_encoder" not in frozen)
    head_only = {"image_backbone", "neck"} <= set(frozen)
    assert recipe.freeze == ("all_but_seg_head" if head_only else "none")
    slowed = published["optim"]["param_overrides"] or {}
    assert head_only == any(slowed.get(name, {}).get("lr_mult") == 0 for name in ("neck",))
    if head_only:
        assert "BN affine of seg_preds/proto_pred also frozen" in published["frozen"][-1]
        assert not recipe.train_seg_norms


@each_experiment
def test_rows_without_published_numbers_say_so(recipe: Recipe) -> None:
    status = PUBLISHED[recipe.recipe_id]["status"]
    text = " ".join(recipe.notes)
    assert ("Derived" in text) == (status == "derived")
    if not recipe.published:
        assert status == "extra" and "No figure was published" in text


@each_experiment
def test_docstring_gives_row_expectation_cost_and_command(recipe: Recipe) -> None:
    text = (ROOT / "experiments" / f"{recipe.name}.py").read_text()
    doc = text.split('"""')[1]
    for key in ("Row: ", "Expected: ", "Cost: ", "Run: "):
        assert f"\n{key}" in doc
    assert f"python experiments/{recipe.name}.py" in doc and "GPU-hours" in doc
    for value in recipe.published.values():
        assert f" {value}" in doc


def test_importing_an_experiment_loads_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"for path in {[str(path) for path in FILES]!r}:\n"
        "    runpy.run_path(path)\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'cv2'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_size_without_published_weights_is_named() -> None:
    with pytest.raises(ValueError, match="v2-n"):
        pretrained_weights(ModelConfig(size="n"))
    recipe = coco_finetune(name="tiny", model=ModelConfig(size="n"), init_from="weights/own.pth")
    assert recipe.init_from == "weights/own.pth"


def test_the_segmentation_baseline_switches_segmentation_on() -> None:
    recipe = lvis_seg_finetune(name="x", model=ModelConfig(size="m"))
    assert recipe.model.segmentation and Recipe.model_validate(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("batch", "factor"), [(16, 1.0), (40, 1.25), (64, 1.0), (128, 2.0), (512, 8.0)]
)
def test_weight_decay_grows_with_the_batch_in_units_of_64(batch: int, factor: float) -> None:
    assert decay_factor(batch) == factor and NOMINAL_BATCH == 64
    assert OptimConfig().scale_weight_decay
