"""Assignment from recorded boxes and scores equals the recorded one, foreground to the bit."""

from typing import Any

import golden_models as gm
import numpy as np
import pytest
import torch

from yw_ray.boxes import anchor_points
from yw_ray.losses.assigner import assign

STRIDES = (8, 16, 32)
SCORE_ATOL = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found: dict[str, tuple[dict[str, Any], np.lib.npyio.NpzFile, str]] = {}
    for path in gm.files(metafunc.config, "assigner"):
        recorded, arrays = gm.read(path), np.load(path.with_suffix(".npz"))
        found |= {f"{path.stem}-{name}": (recorded, arrays, name) for name in recorded["cases"]}
    metafunc.parametrize("recorded, arrays, case", found.values(), ids=found)


def test_assignment_equals_the_recorded_one(
    recorded: dict[str, Any], arrays: np.lib.npyio.NpzFile, case: str
) -> None:
    get = {n.removeprefix(f"{case}_"): arrays[n] for n in arrays if n.startswith(f"{case}_")}
    height, width = recorded["input_size"]
    shapes = [(height // s, width // s) for s in STRIDES]
    points, strides = anchor_points(shapes, STRIDES)
    np.testing.assert_array_equal(points, arrays["priors"][:, :2])
    np.testing.assert_array_equal(strides, arrays["priors"][:, 2])

    exists = torch.from_numpy(get["gt_flag"])[..., 0] > 0
    image_index, row = exists.nonzero().unbind(1)
    scores = torch.from_numpy(get["pred_scores"])
    fg = assign(
        torch.from_numpy(get["pred_boxes"]),
        lambda image, anchor, label: scores[image, anchor, label],
        torch.from_numpy(get["gt_boxes"])[exists],
        torch.from_numpy(get["gt_labels"])[exists][:, 0].long(),
        image_index,
        shapes,
        STRIDES,
        top_k=recorded["topk"],
        alpha=recorded["alpha"],
        beta=recorded["beta"],
    )

    foreground = np.zeros(scores.shape[:2], bool)
    foreground[fg.image, fg.anchor] = True
    np.testing.assert_array_equal(foreground, get["out_fg"] > 0)
    assert foreground.sum(1).tolist() == recorded["cases"][case]["positives"]
    weights = np.zeros(scores.shape[:2])
    weights[fg.image, fg.anchor] = fg.weight
    np.testing.assert_allclose(weights, get["out_score_sum"], rtol=0, atol=SCORE_ATOL)
    np.testing.assert_allclose(weights.sum(), recorded["cases"][case]["score_sum"], rtol=1e-4)
    where = (fg.image.numpy(), fg.anchor.numpy())
    np.testing.assert_array_equal(row[fg.target], get["out_gt_index"][where])
    labels = get["gt_labels"][fg.image, row[fg.target], 0]
    np.testing.assert_array_equal(labels, get["out_labels"][where])
    np.testing.assert_array_equal(
        get["gt_boxes"][fg.image, row[fg.target]], get["out_boxes"][where]
    )
