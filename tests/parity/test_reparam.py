"""A vocabulary folded into the weights: new tensors and outputs against the recorded ones."""

from pathlib import Path

import golden_models as gm
import numpy as np
import pytest
import torch
from torch import Tensor

from yw_ray.boxes import decode_boxes, expected_distances
from yw_ray.models.backbone import STRIDES
from yw_ray.models.outputs import RawOutputs
from yw_ray.models.reparam import fold_vocabulary
from yw_ray.weights.official import export_official

ATOL, BOX_ATOL_PX = 2e-4, 5e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = gm.files(metafunc.config, "reparam")
    metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


def named(outputs: RawOutputs) -> dict[str, Tensor]:
    out = {"boxes": decode_boxes(outputs.box_dist, STRIDES)}
    for i in range(3):
        out[f"cls{i}"], out[f"dist{i}"] = outputs.cls_logits[i], outputs.box_dist[i]
        out[f"bbox{i}"] = expected_distances(outputs.box_dist[i])
    return out


def atol_of(name: str) -> float:
    return BOX_ATOL_PX if name == "boxes" else ATOL


def test_folding_gives_the_recorded_tensors_and_outputs(goldens: Path, path: Path) -> None:
    recorded = gm.read(path)
    model = gm.golden_model(goldens, recorded["base"], recorded["scales"])
    images, texts = gm.images_of(goldens, recorded), gm.texts_of(goldens, recorded)
    assert texts is not None
    folded = fold_vocabulary(model, texts[0])

    before, after = export_official(model), export_official(folded)
    assert sorted(set(before) - set(after)) == sorted(recorded["removed"])
    assert sorted(set(after) - set(before)) == sorted(recorded["added"])
    for name, want in recorded["added"].items():
        gm.check_summary(after[name], want, name, samples_atol=1e-6)
    for name in set(after) & set(before):
        assert torch.equal(after[name], before[name]), name

    with torch.no_grad():
        conditioned, fixed = named(model(images, texts)), named(folded(images))
    for name, want in recorded["outputs_text_conditioned"].items():
        gm.check_summary(conditioned[name], want, name, samples_atol=atol_of(name))
    for name, want in recorded["outputs_reparameterized"].items():
        gm.check_summary(fixed[name], want, name, samples_atol=atol_of(name))
        difference = (fixed[name] - conditioned[name]).abs().max().item()
        assert difference <= atol_of(name), (name, difference)
    arrays = np.load(path.with_name(path.stem.replace("reparam", "outputs") + ".npz"))
    for name in arrays:
        step = fixed[name].shape[1] // arrays[name].shape[1]
        np.testing.assert_allclose(
            fixed[name][:, ::step].numpy(), arrays[name], atol=atol_of(name), rtol=0, err_msg=name
        )
