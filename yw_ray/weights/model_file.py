"""Model file: weights of ours with the configuration that they need, in one file.

Place in the flow: official `.pth` -> `import_official` -> model file -> `init_from`, export.
The file holds plain tensors and JSON; reading it runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yw_ray.models.text_encoder import ClipText
from yw_ray.models.yolo_world import YoloWorld, build_model
from yw_ray.recipe import ModelConfig
from yw_ray.weights.checkpoint_file import read_checkpoint
from yw_ray.weights.official import LoadReport, has_text_tower, load_official, unwrap

FORMAT = "yw_ray model 1"
_STEM_WIDTHS = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x", 96: "xl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model with its configuration; texts: class names in label order where they are folded in.

    The model carries its text tower where the source did.
    """

    config: ModelConfig
    model: YoloWorld
    texts: tuple[str, ...] = ()


def infer_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration whose state dict has these official names and shapes.

    Raises: ValueError if they are no YOLO-World detector's.
    """
    stem = tensors.get("backbone.image_model.stem.conv.weight")
    head = "bbox_head.head_module."
    if stem is None or f"{head}cls_preds.0.2.weight" not in tensors:
        raise ValueError(
            f"no YOLO-World detector: found {', '.join(list(tensors)[:3])}, expected tensors such "
            f"as backbone.image_model.stem.conv.weight and {head}cls_preds.0.2.weight"
        )
    if stem.shape[0] not in _STEM_WIDTHS:
        raise ValueError(
            f"unknown scale: a stem of {stem.shape[0]} channels, expected one of "
            f"{sorted(_STEM_WIDTHS)}"
        )
    folded = tensors.get(f"{head}cls_contrasts.0.conv.weight")
    learned = tensors.get("embeddings")
    counted = folded if folded is not None else learned
    guided = any(".guide_fc." in name or ".guide_convs." in name for name in tensors)
    dual = any(name.startswith("neck.text_enhancer.") for name in tensors)
    return ModelConfig.model_validate(
        {
            "size": _STEM_WIDTHS[stem.shape[0]],
            "version": "v2" if f"{head}cls_contrasts.0.norm.weight" in tensors else "v1",
            "neck": "dual_vlpan" if dual else "vlpan_bn" if guided else "efficient",
            "segmentation": f"{head}seg_preds.0.2.weight" in tensors,
            "prompts": "reparam"
            if folded is not None
            else "embeddings"
            if learned is not None
            else "texts",
            "num_prompts": 80 if counted is None else counted.shape[0],
            "prompt_adapter": "adapter.0.weight" in tensors,
        }
    )


def import_official(path: Path) -> tuple[ModelFile, LoadReport]:
    """Read an official checkpoint, every key of it accounted for.

    Raises: ValueError in one line naming keys that are missing, unknown or of another shape.
    """
    content = read_checkpoint(path)
    config = infer_config(unwrap(content))
    model = _empty_model(config, tower=has_text_tower(content))
    report = load_official(model, content)
    return ModelFile(config=config, model=model), report


def save_model(path: Path, file: ModelFile) -> None:
    """Write a model file, whole or not at all."""
    tree = {
        "format": FORMAT,
        "config": file.config.model_dump_json(),
        "texts": list(file.texts),
        "model": file.model.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(tree, partial)
    os.replace(partial, path)


def is_model_file(content: Mapping[str, Any]) -> bool:
    """Whether the content of a checkpoint file is one of ours."""
    return content.get("format") == FORMAT


def model_from(content: Mapping[str, Any]) -> ModelFile:
    """Build what `save_model` wrote from the content of its file."""
    config = ModelConfig.model_validate_json(content["config"])
    state = content["model"]
    model = _empty_model(config, tower=any(name.startswith("text_encoder.") for name in state))
    model.load_state_dict(state)
    return ModelFile(config=config, model=model, texts=tuple(content["texts"]))


def _empty_model(config: ModelConfig, *, tower: bool) -> YoloWorld:
    model = build_model(config)
    if tower:
        model.text_encoder = ClipText()
    return model


def read_texts(path: Path) -> Sequence[str]:
    """Class names: a JSON list (of names, or of lists of synonyms), or a line each.

    Raises: ValueError in one line for an empty or unreadable list.
    """
    import json

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"texts {path} cannot be read ({error}); give a JSON list") from None
    if path.suffix == ".json":
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise ValueError(f"texts {path} is no JSON ({error})") from None
        names = [entry[0] if isinstance(entry, list) and entry else entry for entry in tree]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"texts {path} must list at least one class name, none of them empty")
    return names
