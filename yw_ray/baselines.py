"""Baselines: the published fine-tuning settings, one function a data set.

Place in the flow: an experiment file calls one of these with its name and its departures and gets
a `Recipe`. Every number is compared with the published recipes in `tests/unit/test_recipes.py`.
Source: YOLO-World (arXiv 2401.17270) and its released fine-tuning configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from yw_ray.recipe import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
)

WEIGHTS = "weights"
"""Folder of published checkpoints."""

PRETRAINED: Mapping[tuple[str, str], str] = {
    ("v2", "s"): "yolo_world_v2_s_obj365v1_goldg_pretrain-55b943ea.pth",
    ("v2", "m"): "yolo_world_v2_m_obj365v1_goldg_pretrain-c6237d5b.pth",
    ("v2", "l"): "yolo_world_v2_l_obj365v1_goldg_cc3mlite_pretrain-ca93cd1f.pth",
    ("v2", "x"): "yolo_world_v2_x_obj365v1_goldg_cc3mlite_pretrain-8698fbfa.pth",
    ("v1", "m"): (
        "yolo_world_m_clip_base_dual_vlpan_2e-3adamw_32xb16_100e_o365_goldg_train_pretrained"
        "-2b7bd1be.pth"
    ),
    ("v1", "l"): (
        "yolo_world_l_clip_base_dual_vlpan_2e-3adamw_32xb16_100e_o365_goldg_train_pretrained"
        "-0e566235.pth"
    ),
}
"""Generation and size -> published pre-trained file; the last eight digits identify it."""

LANES = 8
"""The original's GPUs: each lane is one of its per-GPU batches, whatever the workers."""

THIRD_GROUP_NOTE = (
    "The stem's batch-norm bias warms up from a rate of 0.1, as in the original: it counted groups."
)
SEG_NORMS_NOTE = (
    "Batch-norm weights and biases of the mask branches stay 1 and 0, as in the original, where a "
    "shared setting froze them by accident; their statistics move."
)
EPOCH_LAG_NOTE = "After the warm-up the rate lags one epoch, so the last one uses that of f(E - 2)."


def pretrained_weights(model: ModelConfig) -> str:
    """Path of the published checkpoint that the model's row starts from.

    Raises: ValueError if none was published for this generation and size.
    """
    name = PRETRAINED.get((model.version, model.size))
    if name is None:
        known = ", ".join(f"{version}-{size}" for version, size in PRETRAINED)
        raise ValueError(
            f"no published weights are known for {model.version}-{model.size}, only for {known}; "
            "pass init_from"
        )
    return f"{WEIGHTS}/{name}"


def augmentation(size: str, *, mask_refine: bool = True) -> AugmentConfig:
    """Training transforms of a size; `n`, of which nothing was published, takes those of S."""
    mixup, copy_paste = (0.1, 0.1) if size == "m" else (0.15, 0.3)
    return AugmentConfig(
        mask_refine=mask_refine,
        mosaic=True,
        copy_paste=copy_paste if mask_refine else 0.0,
        mixup=mixup,
        scale=(0.5, 1.5) if size in ("n", "s") else (0.1, 1.9),
        translate=0.1,
        hsv=(0.015, 0.7, 0.4),
        flip=0.5,
        pixel_jitter=0.01,
    )


def adamw(*, decay_norm_and_bias: bool, single_group: bool = False) -> OptimConfig:
    """AdamW of the published rows."""
    return OptimConfig(
        kind="adamw",
        base_lr=2e-4,
        weight_decay=0.05,
        decay_norm_and_bias=decay_norm_and_bias,
        text_lr_mult=0.01,
        single_group=single_group,
        clip_norm=10.0,
    )


def sgd() -> OptimConfig:
    """SGD with Nesterov momentum of the published row without mask-refine."""
    return OptimConfig(
        kind="sgd",
        base_lr=1e-3,
        weight_decay=5e-4,
        decay_norm_and_bias=True,
        text_lr_mult=0.01,
        momentum=0.937,
        clip_norm=10.0,
    )


def _schedule(*, epochs: int, global_batch: int, close_mosaic_epochs: int) -> ScheduleConfig:
    return ScheduleConfig(
        epochs=epochs,
        global_batch=global_batch,
        close_mosaic_epochs=close_mosaic_epochs,
        warmup_epochs=3.0,
        warmup_min_steps=1000,
        final_lr_factor=0.01,
        third_group_warmup_from=0.1,
    )


def _evaluation(style: Literal["coco", "lvis"], kind: Literal["bbox", "segm"]) -> EvalConfig:
    return EvalConfig(
        style=style,
        kind=kind,
        every_epochs=5,
        score_threshold=0.001,
        nms_iou=0.7,
        nms_pre=30000,
        max_detections=300,
    )


def coco_finetune(
    *,
    name: str,
    model: ModelConfig,
    init_from: str | None = None,
    title: str = "",
    recipe_id: str = "",
    published: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    mask_refine: bool = True,
    optim: OptimConfig | None = None,
    epochs: int = 80,
    close_mosaic_epochs: int = 10,
) -> Recipe:
    """Boxes of COCO: everything but the text tower is trained, batch 128, mosaic but for the end.

    Args:
        init_from: checkpoint; by default the published one of the model's generation and size.
        optim: by default AdamW 2e-4, which decays batch norms and biases too in these rows.
    Raises: ValueError for a model without published weights when `init_from` is not given.
    """
    folded = model.prompts == "reparam"
    quirks = (EPOCH_LAG_NOTE,) if folded else (THIRD_GROUP_NOTE, EPOCH_LAG_NOTE)
    return Recipe(
        name=name,
        title=title,
        recipe_id=recipe_id,
        init_from=init_from or pretrained_weights(model),
        freeze="none",
        published=dict(published or {}),
        notes=(*notes, *quirks),
        model=model,
        text=TextConfig(num_train_texts=80),
        data=DataConfig(
            train="data/coco/train2017", val="data/coco/val2017", image_size=640, lanes=LANES
        ),
        augment=augmentation(model.size, mask_refine=mask_refine),
        optim=optim or adamw(decay_norm_and_bias=True, single_group=folded),
        schedule=_schedule(
            epochs=epochs, global_batch=128, close_mosaic_epochs=close_mosaic_epochs
        ),
        ema=EmaConfig(momentum=1e-4, gamma=2000),
        eval=_evaluation("coco", "bbox"),
    )


def lvis_seg_finetune(
    *,
    name: str,
    model: ModelConfig,
    trained: Literal["all_modules", "seg_head"] = "all_modules",
    init_from: str | None = None,
    title: str = "",
    recipe_id: str = "",
    published: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> Recipe:
    """Masks of LVIS-Base, judged on LVIS val: batch 64, norms and biases without decay.

    Args:
        model: segmentation is switched on here.
        trained: `all_modules` trains everything, the text tower at a hundredth of the rate;
            `seg_head` trains the convolutions of mask coefficients and prototypes alone.
        init_from: checkpoint; by default the published one of the model's generation and size.
    Raises: ValueError for a model without published weights when `init_from` is not given.
    """
    head_only = trained == "seg_head"
    quirk = SEG_NORMS_NOTE if head_only else THIRD_GROUP_NOTE
    return Recipe(
        name=name,
        title=title,
        recipe_id=recipe_id,
        init_from=init_from or pretrained_weights(model),
        freeze="all_but_seg_head" if head_only else "none",
        train_text_encoder=not head_only,
        train_seg_norms=False,
        published=dict(published or {}),
        notes=(*notes, quirk, EPOCH_LAG_NOTE),
        model=model.model_copy(update={"segmentation": True}),
        text=TextConfig(num_train_texts=80),
        data=DataConfig(
            train="data/lvis/train_base", val="data/lvis/val", image_size=640, lanes=LANES
        ),
        augment=augmentation(model.size),
        optim=adamw(decay_norm_and_bias=False),
        schedule=_schedule(epochs=80, global_batch=64, close_mosaic_epochs=10),
        ema=EmaConfig(momentum=1e-4, gamma=2000),
        eval=_evaluation("lvis", "segm"),
    )
