"""Forward passes of every recorded configuration: outputs, summaries and intermediate maps.

Cases with text masks hold no numbers of their own: masks belong to a later revision of the
original that cannot run (goldens README, fact 1), so the model has none. What is recorded of them
is that every unmasked logit equals the unmasked case, which is checked as such.
"""

from pathlib import Path
from typing import Any

import golden_models as gm
import numpy as np
import pytest
import torch
from torch import Tensor

from yw_ray.boxes import decode_boxes, expected_distances
from yw_ray.models.backbone import STRIDES
from yw_ray.models.outputs import RawOutputs
from yw_ray.weights.official import ours_from_official

IDENTITIES = ("neck.reduce_layers.", "neck.out_layers.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = gm.files(metafunc.config, "forward")
    metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


def named_outputs(outputs: RawOutputs) -> dict[str, Tensor]:
    """Model outputs under the names of the recording."""
    named: dict[str, Tensor] = {"boxes": decode_boxes(outputs.box_dist, STRIDES)}
    for i in range(3):
        named[f"cls{i}"] = outputs.cls_logits[i]
        named[f"dist{i}"] = outputs.box_dist[i]
        named[f"bbox{i}"] = expected_distances(outputs.box_dist[i])
        if outputs.mask_coeffs is not None:
            named[f"coeff{i}"] = outputs.mask_coeffs[i]
    if outputs.protos is not None:
        named["proto"] = outputs.protos
    return named


def stride_of(stored: dict[str, str], name: str) -> int:
    """Every how many-th channel was stored: '[:, ::4]' means 4."""
    return int(stored[name].removeprefix("[:, ::").removesuffix("]")) if name in stored else 1


def run_with_taps(
    model: torch.nn.Module, images: Tensor, texts: Tensor | None, names: list[str]
) -> tuple[RawOutputs, dict[str, Tensor]]:
    """A forward pass that also returns the outputs of modules, by official name."""
    modules = dict(model.named_modules())
    taps: dict[str, Tensor] = {}
    handles = []
    for name in names:
        ours = ours_from_official(name + ".")
        assert ours is not None, name

        def keep(_m: Any, _i: Any, out: Tensor, name: str = name) -> None:
            taps[name] = out

        handles.append(modules[ours.removesuffix(".")].register_forward_hook(keep))
    with torch.no_grad():
        outputs = model(images, texts)
    for handle in handles:
        handle.remove()
    return outputs, taps


def test_outputs_and_taps_equal_the_recorded_ones(goldens: Path, path: Path) -> None:
    recorded = gm.read(path)
    model = gm.golden_model(goldens, path.stem, recorded["scales"])
    compared = 0
    for case_name, case in recorded["cases"].items():
        if "same_inputs_as" in case:
            assert case["same_inputs_as"] in recorded["cases"]
            assert case["max_abs_difference_on_unmasked"] == 0.0
            continue
        names = [n for n in case["taps"] or {} if not n.startswith(IDENTITIES)]
        images, texts = gm.images_of(goldens, case), gm.texts_of(goldens, case)
        outputs, taps = run_with_taps(model, images, texts, names)
        named = named_outputs(outputs)
        arrays = np.load(path.parent / f"{path.stem}.{case_name}.npz")
        assert set(arrays) <= set(named)
        for name in arrays:
            got = named[name][:, :: stride_of(case["stored"], name)].numpy()
            box = name == "boxes"
            np.testing.assert_allclose(
                got,
                arrays[name],
                atol=gm.BOX_ATOL_PX if box else gm.LOGIT_ATOL,
                rtol=0 if box else gm.LOGIT_RTOL,
                err_msg=f"{case_name} {name}",
            )
            compared += 1
        for name, want in case["summaries"].items():
            box = name == "boxes"
            gm.check_summary(
                named[name],
                want,
                f"{case_name} {name}",
                samples_atol=gm.BOX_ATOL_PX if box else gm.LOGIT_ATOL,
                samples_rtol=0 if box else gm.LOGIT_RTOL,
            )
        for name in names:
            gm.check_summary(taps[name], case["taps"][name], f"{case_name} {name}")
    assert compared > 0
