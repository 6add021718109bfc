"""Official YOLO-World weights <-> ours: the one place that knows the published names.

Place in the flow: a published `.pth` -> `read_checkpoint` -> `load_official` -> YoloWorld; and back
by `export_official`.
Source: the state-dict layout of the published checkpoints (arXiv 2401.17270 and its releases).
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yw_ray.models.yolo_world import YoloWorld

TEXT_TOWER = "backbone.text_model.model."
"""Prefix of the text tower in published files."""

# Longest match first; what follows a prefix is translated segment by segment.
_PREFIXES = (
    ("backbone.image_model.stage4.2.conv1.", "backbone.stage4.2.reduce."),
    ("backbone.image_model.stage4.2.conv2.", "backbone.stage4.2.merge."),
    ("backbone.image_model.", "backbone."),
    ("neck.text_enhancer.projections.0.conv.", "neck.text_enhancer.projections.0."),
    ("neck.text_enhancer.projections.1.conv.", "neck.text_enhancer.projections.1."),
    ("neck.text_enhancer.projections.2.conv.", "neck.text_enhancer.projections.2."),
    ("neck.text_enhancer.", "neck.text_enhancer."),
    ("neck.top_down_layers.", "neck.top_down."),
    ("neck.downsample_layers.", "neck.downsample."),
    ("neck.bottom_up_layers.", "neck.bottom_up."),
    ("bbox_head.head_module.cls_preds.", "head.cls_branches."),
    ("bbox_head.head_module.reg_preds.", "head.box_branches."),
    ("bbox_head.head_module.seg_preds.", "head.mask_branches."),
    ("bbox_head.head_module.cls_contrasts.", "head.contrasts."),
    ("bbox_head.head_module.proto_pred.", "head.protos."),
    ("embeddings", "prompts.embeddings"),
    ("adapter.", "prompts.adapter."),
)
_SEGMENTS = {
    "main_conv": "expand",
    "final_conv": "merge",
    "attn_block": "attention",
    "guide_fc": "guide",
    "guide_convs": "guides",
    "project_conv": "project",
}
_SEGMENTS_BACK = {ours: theirs for theirs, ours in _SEGMENTS.items()}

_TEXT_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_TEXT_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm2": "ln_2",
}
_TEXT_LAYERS = 12
_IN_PROJ = ("q_proj", "k_proj", "v_proj")


def ours_from_official(name: str) -> str | None:
    """Our name of an official one; None for the text tower and for what we do not know."""
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            rest = name[len(theirs) :].split(".")
            return ours + ".".join(_SEGMENTS.get(part, part) for part in rest)
    return None


def official_from_ours(name: str) -> str:
    """The official name of one of our parameters or buffers (not of the text tower)."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            rest = name[len(ours) :].split(".")
            return theirs + ".".join(_SEGMENTS_BACK.get(part, part) for part in rest)
    raise AssertionError(f"{name} has no official name")


def unwrap(checkpoint: Mapping[str, Any], *, raw: bool = False) -> dict[str, Tensor]:
    """Tensors of a checkpoint by official name, without wrappers.

    Args:
        checkpoint: a state dict, or a dict with `state_dict` (averaged weights in published files)
            and possibly `ema_state_dict` (there: the raw weights, swapped when saved).
        raw: prefer `ema_state_dict`.
    Raises: ValueError when there are no tensors.
    """
    order = ("ema_state_dict", "state_dict") if raw else ("state_dict", "ema_state_dict")
    state = next((checkpoint[key] for key in order if checkpoint.get(key)), checkpoint)
    tensors = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    tensors.pop("steps", None)  # counter of the averaging wrapper
    if not tensors:
        keys = ", ".join(map(str, list(checkpoint)[:5]))
        raise ValueError(f"checkpoint holds no tensors, only: {keys or 'nothing'}")
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What met what, by official names.

    mismatched: (name, shape in the file, shape in the model).
    explained: reason -> names missing or unexpected for a known, harmless reason.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    explained: dict[str, tuple[str, ...]]

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each kind of trouble without a known reason."""
        known = {name for names in self.explained.values() for name in names}
        lines = []
        for kind, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            bad = [name for name in names if name not in known]
            if bad:
                lines.append(f"{len(bad)} {kind}: {_some(bad)}")
        if self.mismatched:
            shapes = [f"{n} {list(got)} for {list(want)}" for n, got, want in self.mismatched]
            lines.append(f"{len(shapes)} of another shape: {_some(shapes)}")
        return tuple(lines)

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{len(names)} {reason}" for reason, names in self.explained.items()]
        return "; ".join([*parts, *self.problems])


def load_official(
    model: YoloWorld, checkpoint: Mapping[str, Any], *, raw: bool = False, strict: bool = True
) -> LoadReport:
    """Copy official weights into a model, in place; a refused file changes nothing.

    Differences with a known reason are allowed and reported: a text tower where the model has
    none, text attention where the neck has none, new segmentation branches, new prompts.

    Args:
        checkpoint: a state dict with official names, wrapped or not (see `unwrap`).
        strict: raise on any other difference; otherwise load what fits and report the rest.
    Raises: ValueError in one line naming what is missing, unexpected or of another shape.
    """
    theirs = unwrap(checkpoint, raw=raw)
    ours = _own_tensors(model)
    loaded, mismatched = [], []
    for name, target in ours.items():
        if name not in theirs:
            continue
        if theirs[name].shape == target.shape:
            loaded.append(name)
        else:
            mismatched.append((name, tuple(theirs[name].shape), tuple(target.shape)))
    text_needed = _text_tower(model) is not None
    text_loaded = text_needed and set(_text_template()) <= set(theirs)
    missing = [name for name in ours if name not in theirs]
    unexpected = [name for name in theirs if name not in ours]
    if text_loaded:
        loaded += list(_text_template())
        unexpected = [name for name in unexpected if name not in _text_template()]
    elif text_needed:
        missing += [name for name in _text_template() if name not in theirs]
    report = LoadReport(
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        explained=_explain(missing, unexpected, text_needed=text_needed),
    )
    if strict and report.problems:
        raise ValueError("weights do not fit the model: " + "; ".join(report.problems))
    with torch.no_grad():
        for name in loaded:
            if name in ours:
                ours[name].copy_(theirs[name])
    if text_loaded:
        _load_tower(_text_tower(model), theirs)
    return report


def export_official(model: YoloWorld) -> dict[str, Tensor]:
    """The model's tensors under official names, in the official order; a copy on the CPU."""
    tower = _text_tower(model)
    out: dict[str, Tensor] = OrderedDict()
    for name, tensor in _own_tensors(model).items():
        if tower is not None and not name.startswith(("embeddings", "adapter.", "backbone.")):
            out.update(text_tower_to_official(tower.state_dict()))
            tower = None
        out[name] = tensor
    return OrderedDict((k, v.detach().to("cpu", copy=True)) for k, v in out.items())


def _own_tensors(model: YoloWorld) -> dict[str, Tensor]:
    """Parameters and buffers but the text tower's, by official name."""
    return {
        official_from_ours(name): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith("text_encoder.")
    }


def _explain(
    missing: list[str], unexpected: list[str], *, text_needed: bool
) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}

    def note(reason: str, name: str) -> None:
        reasons.setdefault(reason, []).append(name)

    for name in unexpected:
        if name.endswith("embeddings.position_ids"):
            note("position ids (a constant) skipped", name)
        elif name.startswith(TEXT_TOWER) and not text_needed:
            note("text tower tensors left to the text encoder", name)
        elif ".attn_block.guide_fc." in name or name.endswith(".attn_block.bias"):
            note("text attention tensors skipped, this neck has none", name)
        elif name.startswith("neck.text_enhancer."):
            note("text update tensors skipped, this neck has none", name)
    for name in missing:
        if ".seg_preds." in name or ".proto_pred." in name:
            note("segmentation tensors left at their initial values", name)
        elif name.startswith(("embeddings", "adapter.")):
            note("prompt tensors left at their initial values", name)
    return {reason: tuple(names) for reason, names in reasons.items()}


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# Text tower: the official files keep the Hugging Face layout, we run open_clip's.


def has_text_tower(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint carries the whole text tower."""
    return set(_text_template()) <= set(unwrap(checkpoint))


def load_text_tower(encoder: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Copy the text tower of an official checkpoint into a `ClipText` encoder.

    Raises: ValueError in one line when the tower is missing or incomplete.
    """
    theirs = unwrap(checkpoint)
    missing = [name for name in _text_template() if name not in theirs]
    if missing:
        raise ValueError(
            f"checkpoint lacks {len(missing)} of {len(_text_template())} text tower tensors: "
            f"{_some(missing)}; use a checkpoint with the text tower or open_clip's weights"
        )
    _load_tower(getattr(encoder, "tower"), theirs)  # noqa: B009


def text_tower_from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official text-tower tensors -> open_clip's names and layout (q, k, v joined)."""

    def get(name: str) -> Tensor:
        return tensors[TEXT_TOWER + name]

    out = {ours: get(theirs) for theirs, ours in _TEXT_NAMES.items()}
    out["text_projection"] = get("text_projection.weight").T
    for i in range(_TEXT_LAYERS):
        theirs, ours = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            joined = [get(f"{theirs}self_attn.{part}.{kind}") for part in _IN_PROJ]
            out[f"{ours}attn.in_proj_{kind}"] = torch.cat(joined)
            for a, b in _TEXT_LAYER.items():
                out[f"{ours}{b}.{kind}"] = get(f"{theirs}{a}.{kind}")
    return out


def text_tower_to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `text_tower_from_official`, in the official order."""
    out: dict[str, Tensor] = OrderedDict.fromkeys(_text_template())  # type: ignore[assignment]
    for theirs, ours in _TEXT_NAMES.items():
        out[TEXT_TOWER + theirs] = tensors[ours]
    out[TEXT_TOWER + "text_projection.weight"] = tensors["text_projection"].T.contiguous()
    for i in range(_TEXT_LAYERS):
        theirs = f"{TEXT_TOWER}text_model.encoder.layers.{i}."
        ours = f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = tensors[f"{ours}attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(_IN_PROJ, parts, strict=True):
                out[f"{theirs}self_attn.{name}.{kind}"] = part
            for a, b in _TEXT_LAYER.items():
                out[f"{theirs}{a}.{kind}"] = tensors[f"{ours}{b}.{kind}"]
    return out


def _text_template() -> tuple[str, ...]:
    """Official names of the text tower in their order."""
    names = list(_TEXT_NAMES)[:2]
    layer = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", *_TEXT_LAYER)
    for i in range(_TEXT_LAYERS):
        for part in layer:
            names += [f"text_model.encoder.layers.{i}.{part}.{kind}" for kind in _KINDS]
    names += [*list(_TEXT_NAMES)[2:], "text_projection.weight"]
    return tuple(TEXT_TOWER + name for name in names)


_KINDS = ("weight", "bias")


def _text_tower(model: YoloWorld) -> nn.Module | None:
    return None if model.text_encoder is None else getattr(model.text_encoder, "tower", None)


def _load_tower(tower: Any, theirs: Mapping[str, Tensor]) -> None:
    tower.load_state_dict(text_tower_from_official(theirs))
