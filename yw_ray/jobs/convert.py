"""Convert: official weights in and out, and vocabularies folded into weights.

Place in the flow: behind `yw-ray weights ...` and `yw-ray reparam`; `jobs/build.py` opens starting
weights through it, whatever their kind.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from yw_ray.models.reparam import fold_vocabulary
from yw_ray.models.text_encoder import ClipText, build_text_encoder, embed_texts
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import Recipe, TextConfig
from yw_ray.training.checkpoint import load_checkpoint
from yw_ray.weights.checkpoint_file import read_checkpoint
from yw_ray.weights.model_file import (
    ModelFile,
    import_official,
    is_model_file,
    model_from,
    read_texts,
    save_model,
)
from yw_ray.weights.official import export_official


@lru_cache(maxsize=1)
def official_tensors(path: Path) -> dict[str, Any]:
    """Weights of any kind (official file, model file, checkpoint folder) by official name.

    Raises: ValueError in one line for what is none of these.
    """
    if path.is_file():
        content = read_checkpoint(path)
        if not is_model_file(content):
            return content
    return dict(export_official(open_model(path).model))


def open_model(path: Path) -> ModelFile:
    """A model from an official file, a model file, or a run's checkpoint folder (its average)."""
    if path.is_dir():
        state = load_checkpoint(path)
        recipe = Recipe.model_validate(state["recipe"])
        model = build_model(recipe.model)
        if recipe.train_text_encoder:
            model.text_encoder = ClipText()
        model.load_state_dict(state["ema"]["module"])
        return ModelFile(config=recipe.model, model=model)
    content = read_checkpoint(path)
    if is_model_file(content):
        return model_from(content)
    return import_official(path)[0]


def import_weights(path: Path, out: Path) -> str:
    """Official checkpoint -> model file. Returns: what was found, one line."""
    _refuse_same(path, out)
    file, report = import_official(path)
    save_model(out, file)
    tower = ", with text tower" if file.model.text_encoder is not None else ""
    config = file.config
    return (
        f"{config.version}-{config.size} {config.neck}, prompts {config.prompts}"
        f"{', segmentation' if config.segmentation else ''}{tower}: {report.summary()} -> {out}"
    )


def export_weights(path: Path, out: Path) -> str:
    """Any weights -> the official layout. Returns: what was written, one line."""
    _refuse_same(path, out)
    tensors = export_official(open_model(path).model)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    torch.save({"state_dict": tensors}, partial)
    partial.replace(out)
    return f"{len(tensors)} tensors by official name -> {out}"


def reparameterise(path: Path, texts: Path, out: Path, encoder: str | None = None) -> str:
    """Fold a vocabulary into text-conditioned weights. Returns: what was written, one line.

    Args: encoder: `hashed-words` for weights trained with the stand-in; None takes CLIP's tower,
    from the weights where they carry it.
    """
    _refuse_same(path, out)
    names = read_texts(texts)
    source = open_model(path)
    tower = source.model.text_encoder
    if encoder is None and isinstance(tower, ClipText):
        vectors = embed_texts(tower.requires_grad_(False), names)
    else:
        wanted = TextConfig.model_validate({"encoder": encoder or "clip-vit-b32"})
        vectors = embed_texts(build_text_encoder(wanted), names)
    folded = fold_vocabulary(source.model, vectors)
    folded.text_encoder = None
    config = source.config.model_copy(update={"prompts": "reparam", "num_prompts": len(names)})
    save_model(out, ModelFile(config=config, model=folded, texts=tuple(names)))
    return f"{len(names)} classes folded into {path.name} -> {out}"


def _refuse_same(path: Path, out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out or remove it")
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give an official .pth, a model file or a checkpoint"
        )
