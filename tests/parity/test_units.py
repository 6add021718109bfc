"""IoU, complete IoU and distribution focal loss equal the recorded ones, gradients included."""

from collections.abc import Callable
from pathlib import Path

import golden_models as gm
import numpy as np
import pytest
import torch
from torch import Tensor

from yw_ray.boxes import box_ciou, box_iou
from yw_ray.losses.box import distribution_focal_loss

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = gm.files(metafunc.config, "units")
    metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


@pytest.mark.parametrize("name, overlap", [("iou", box_iou), ("ciou", box_ciou)])
def test_overlaps_and_their_gradients_equal_the_recorded_ones(
    path: Path, name: str, overlap: Callable[[Tensor, Tensor], Tensor]
) -> None:
    recorded = gm.read(path)
    boxes = torch.tensor(recorded["boxes1"], requires_grad=True)
    values = overlap(boxes, torch.tensor(recorded["boxes2"]))
    (gradient,) = torch.autograd.grad(values.sum(), boxes)
    np.testing.assert_allclose(values.detach(), recorded[name], **TOLERANCE)
    np.testing.assert_allclose(gradient, recorded[f"{name}_gradient"], **TOLERANCE)


def test_distribution_focal_loss_and_its_gradient_equal_the_recorded_ones(path: Path) -> None:
    recorded = gm.read(path)["dfl"]
    logits = torch.tensor(recorded["logits"], requires_grad=True)
    loss = distribution_focal_loss(logits, torch.tensor(recorded["targets"]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    np.testing.assert_allclose(loss.detach(), recorded["loss"], **TOLERANCE)
    np.testing.assert_allclose(gradient, recorded["gradient"], **TOLERANCE)
