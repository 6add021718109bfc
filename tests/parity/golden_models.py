"""Models, weights and inputs of the recorded cases, and how recorded numbers are compared.

Shared by the parity tests of models and losses. A case is rebuilt from names alone: see the
README beside the goldens.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yw_ray.models.yolo_world import YoloWorld, build_model
from yw_ray.recipe import ModelConfig
from yw_ray.weights.model_file import infer_config
from yw_ray.weights.official import load_official

LOGIT_ATOL, LOGIT_RTOL = 2e-4, 1e-4
BOX_ATOL_PX = 5e-3
SUMMARY_RTOL = 1e-4
TAP_SAMPLES = 1e-3
"""Tolerances of the goldens' README; taps' samples are in units of the standard deviation."""


def files(config: pytest.Config, folder: str, pattern: str = "*.json") -> list[Path]:
    """Recorded files of one kind, whatever lies there."""
    found = sorted((Path(config.getoption("--goldens")) / folder).glob(pattern))
    assert found, f"no {folder}/{pattern} among the goldens"
    return found


def read(path: Path) -> dict[str, Any]:
    """A recorded JSON file."""
    return json.loads(path.read_text())


def recipe(goldens: Path) -> ModuleType:
    """The functions that make weights and inputs from names."""
    spec = importlib.util.spec_from_file_location(
        "weights_from_names", goldens / "weights_from_names.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(goldens: Path, key: str) -> dict[str, Any]:
    """Names, shapes and counts of a configuration."""
    return read(goldens / "manifest" / f"{key}.json")


def config_of(tensors: dict[str, Any]) -> ModelConfig:
    """The configuration whose state dict has these official names and shapes."""
    with torch.device("meta"):
        return infer_config({name: torch.empty(shape) for name, (shape, _) in tensors.items()})


def golden_model(goldens: Path, key: str, scales: dict[str, float] | None) -> YoloWorld:
    """The model of a configuration with the weights of the recipe, in eval mode."""
    tensors = manifest(goldens, key)["tensors"]
    make = recipe(goldens).weight
    state = {
        name: torch.from_numpy(np.asarray(make(name, shape, scales)))
        for name, (shape, _) in tensors.items()
    }
    with torch.device("meta"):
        model = build_model(config_of(tensors))
    model.to_empty(device="cpu")
    report = load_official(model, state)
    assert not report.missing and not report.unexpected
    return model.eval()


def images_of(goldens: Path, case: dict[str, Any]) -> Tensor:
    """The tensor that enters the backbone: (B, 3, H, W)."""
    spec = case["image"]
    make = recipe(goldens).image
    return torch.from_numpy(make(spec["tag"], spec["batch"], spec["height"], spec["width"]))


def texts_of(goldens: Path, case: dict[str, Any]) -> Tensor | None:
    """Text vectors (B, K, 512): image j uses tag j."""
    spec = case["text"]
    if spec is None:
        return None
    make = recipe(goldens).text_features
    return torch.from_numpy(np.concatenate([make(t, spec["classes"]) for t in spec["tags"]]))


def check_summary(
    got: Tensor,
    want: dict[str, Any],
    what: str,
    *,
    samples_atol: float | None = None,
    samples_rtol: float = 0.0,
) -> None:
    """Compare an array with its recorded summary.

    Means and extremes are judged in units of the standard deviation, the deviation and the
    absolute sum by their own size; samples absolutely, by default in standard deviations.
    """
    a = got.detach().double().cpu().numpy()
    assert list(a.shape) == want["shape"], what
    flat = a.reshape(-1)
    std = want["std"] if want["std"] > 1e-6 else 1.0
    tail = {"atol": SUMMARY_RTOL * std, "rtol": 0, "err_msg": what}
    np.testing.assert_allclose(flat.mean(), want["mean"], **tail)
    np.testing.assert_allclose(flat.min(), want["min"], **tail)
    np.testing.assert_allclose(flat.max(), want["max"], **tail)
    own = {"rtol": SUMMARY_RTOL, "atol": 1e-7, "err_msg": what}
    np.testing.assert_allclose(flat.std(), want["std"], **own)
    np.testing.assert_allclose(np.abs(flat).sum(), want["abs_sum"], **own)
    np.testing.assert_allclose(
        flat[:: want["step"]][:64],
        want["samples"],
        rtol=samples_rtol,
        atol=TAP_SAMPLES * std if samples_atol is None else samples_atol,
        err_msg=what,
    )
