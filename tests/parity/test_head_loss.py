"""Losses and gradients from recorded raw head outputs equal the recorded ones."""

from pathlib import Path
from typing import Any

import golden_models as gm
import numpy as np
import pytest
import torch

from yw_ray.data.sample import Batch
from yw_ray.losses.criterion import Criterion
from yw_ray.models.outputs import RawOutputs

RTOL = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in gm.files(metafunc.config, "head_loss"):
        cases = gm.read(path)["cases"]
        found |= {f"{path.stem}-{name}": (path, case) for name, case in cases.items()}
    metafunc.parametrize("path, case", found.values(), ids=found)


def head_inputs(path: Path) -> dict[str, torch.Tensor]:
    """Recorded raw outputs; prototypes were stored once per 4 x 4 block."""
    tensors = {n: torch.from_numpy(a) for n, a in np.load(path.parent / "inputs.npz").items()}
    blocks = tensors.pop("proto_8x10")
    tensors["proto"] = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def test_losses_and_gradients_equal_the_recorded_ones(
    goldens: Path, path: Path, case: dict[str, Any]
) -> None:
    recorded = gm.read(path)
    assert recorded["world_size"] == 1
    inputs = head_inputs(path)
    rows = torch.tensor(case["rows"]).reshape(-1, 6)
    segments = "masks" in case
    masks = None
    if segments:
        masks = torch.from_numpy(gm.recipe(goldens).masks(case["rows"], *recorded["input_size"]))
    outputs = RawOutputs(
        tuple(inputs[f"cls{i}"] for i in range(3)),
        tuple(inputs[f"dist{i}"] for i in range(3)),
        tuple(inputs[f"coeff{i}"] for i in range(3)) if segments else None,
        inputs["proto"] if segments else None,
    )
    num_images = len(outputs.cls_logits[0])
    batch = Batch(
        images=torch.empty(0),
        text_ids=None,
        boxes=rows[:, 2:],
        labels=rows[:, 1].long(),
        image_index=rows[:, 0].long(),
        image_ids=torch.arange(num_images),
        masks=masks.bool() if masks is not None else None,
    )
    # The original's area unit and skipped image: see the fields of Criterion.
    criterion = Criterion(mask_area=640 * 640, skip_single_object_image=True)
    text_mask = torch.tensor(case["text_mask"]) if "text_mask" in case else None
    losses = criterion(outputs, batch, text_mask=text_mask)

    for name, value in case["losses"].items():
        np.testing.assert_allclose(losses[name].item(), value, rtol=RTOL, err_msg=name)
    np.testing.assert_allclose(losses["total"].item(), sum(case["losses"].values()), rtol=RTOL)
    names = list(case["gradient_summaries"])
    gradients = torch.autograd.grad(losses["total"], [inputs[name] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        want = case["gradient_summaries"][name]
        gm.check_summary(gradient, want, name, samples_atol=RTOL * max(want["std"], 1e-6))
