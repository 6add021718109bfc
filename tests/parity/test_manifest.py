"""Names, shapes, order and counts of every recorded state dict."""

from pathlib import Path

import golden_models as gm
import numpy as np
import pytest
import torch

from yw_ray.models.yolo_world import build_model
from yw_ray.weights.official import (
    export_official,
    load_official,
    official_from_ours,
    ours_from_official,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        paths = [p for p in gm.files(metafunc.config, "manifest") if p.stem != "text_tower"]
        metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


def test_recipe_of_weights_gives_the_recorded_values(goldens: Path) -> None:
    make = gm.recipe(goldens)
    recorded = gm.read(goldens / "recipe_check.json")
    weights = {name: row for name, row in recorded.items() if name.startswith("backbone.")}
    assert weights
    for name, row in weights.items():
        flat = make.weight(name, row["shape"]).astype(np.float64).ravel()
        np.testing.assert_allclose(flat[:4], row["first"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(flat.sum(), row["sum"], rtol=1e-5, err_msg=name)


def test_state_dict_has_the_recorded_names_shapes_and_order(path: Path) -> None:
    manifest = gm.read(path)
    tensors = manifest["tensors"]
    with torch.device("meta"):
        model = build_model(gm.config_of(tensors))
    state = model.state_dict()
    ours = {official_from_ours(n): [list(t.shape), str(t.dtype)[6:]] for n, t in state.items()}
    assert ours == tensors
    assert list(ours) == list(tensors)
    assert [ours_from_official(name) for name in tensors] == list(state)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == manifest["parameters_without_text"]


def test_parameters_are_registered_in_the_recorded_order(path: Path) -> None:
    tensors = gm.read(path)["tensors"]
    with torch.device("meta"):
        model = build_model(gm.config_of(tensors))
    names = [official_from_ours(name) for name, _ in model.named_parameters()]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert names == [name for name in tensors if not name.endswith(buffers)]


def test_each_exported_tensor_is_the_one_loaded_under_its_name(path: Path) -> None:
    tensors = gm.read(path)["tensors"]
    state = {
        name: torch.full(shape, i, dtype=getattr(torch, dtype))
        for i, (name, (shape, dtype)) in enumerate(tensors.items())
    }
    with torch.device("meta"):
        model = build_model(gm.config_of(tensors))
    model.to_empty(device="cpu")
    report = load_official(model, {"state_dict": {f"module.{n}": t for n, t in state.items()}})
    assert list(report.loaded) == list(tensors)
    assert not report.missing and not report.unexpected and not report.mismatched
    exported = export_official(model)
    assert list(exported) == list(tensors)
    for name, value in exported.items():
        assert torch.equal(value, state[name]), name
