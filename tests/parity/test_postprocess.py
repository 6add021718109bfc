"""Detections from recorded raw outputs, and from pictures, equal the recorded ones."""

from pathlib import Path
from typing import Any

import golden_models as gm
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from yw_ray.data.sample import Letterbox
from yw_ray.models.outputs import Detections, RawOutputs
from yw_ray.models.postprocess import postprocess
from yw_ray.recipe import EvalConfig

BOX_ATOL_PX, SCORE_ATOL = 5e-3, 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found: dict[str, Any] = {}
    pictures = "model_case" in metafunc.fixturenames
    for path in gm.files(metafunc.config, "postprocess"):
        recorded = gm.read(path)
        if "cases" not in recorded:
            if pictures:
                found |= {f"{path.stem}-{key}": case for key, case in recorded.items()}
        elif not pictures:
            # One entry is a bare number: how many of four pictures the original returns. We return
            # all (tests/unit/test_postprocess.py).
            names = [n for n, c in recorded["cases"].items() if isinstance(c, dict)]
            found |= {f"{path.stem}-{n}": (path, n) for n in names}
    metafunc.parametrize("model_case" if pictures else "path, name", found.values(), ids=found)


def letterbox(meta: dict[str, Any]) -> Letterbox:
    """The recorded fit of a picture into the input."""
    return Letterbox(
        original_size=tuple(meta["ori_shape"]),
        scale=tuple(meta["scale_factor"]),
        pad=tuple(meta["pad_param"]),
    )


def eval_config(config: dict[str, Any], masks: bool) -> EvalConfig:
    """The recorded test settings as ours."""
    return EvalConfig(
        kind="segm" if masks else "bbox",
        score_threshold=config["score_thr"],
        nms_pre=config["nms_pre"],
        nms_iou=config["nms"]["iou_threshold"],
        max_detections=config["max_per_img"],
    )


def iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """All pairs, (M, 4) and (N, 4) -> (M, N)."""
    low = np.maximum(boxes1[:, None, :2], boxes2[:, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    inter = np.clip(high - low, 0, None).prod(2)
    area1, area2 = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes1, boxes2))
    return inter / np.maximum(area1[:, None] + area2 - inter, 1e-9)


def matches(got: Detections, want: dict[str, Any]) -> list[int]:
    """Position in `got` of each recorded detection: same class, best overlap, each used once."""
    boxes = np.asarray(want["boxes"], np.float64).reshape(-1, 4)
    overlap = iou(boxes, got.boxes.astype(np.float64))
    overlap[np.asarray(want["labels"])[:, None] != got.labels] = -1
    distance = np.abs(np.asarray(want["scores"])[:, None] - got.scores)
    used: list[int] = []
    for row in range(len(boxes)):
        merit = overlap[row] - distance[row]
        merit[used] = -2
        used.append(int(merit.argmax()))
    return used


def check(got: Detections, want: dict[str, Any], *, masks_exact: bool) -> None:
    """Boxes, scores and masks of every recorded detection, after matching."""
    order = matches(got, want)
    np.testing.assert_array_equal(got.labels[order], want["labels"])
    np.testing.assert_allclose(got.boxes[order], want["boxes"], rtol=0, atol=BOX_ATOL_PX)
    np.testing.assert_allclose(got.scores[order], want["scores"], rtol=0, atol=SCORE_ATOL)
    assert (np.diff(got.scores) <= 0).all()
    areas = want.get("areas", want.get("mask_areas"))
    if areas is None:
        assert got.masks is None
        return
    assert got.masks is not None
    masks = [got.masks[i] for i in order]
    for mask, area in zip(masks, areas, strict=True):
        assert abs(int(coco_mask.area(mask)) - area) <= (0 if masks_exact else 3 + area / 1000)
    for mask, recorded in zip(masks, want["masks"], strict=False):
        assert list(mask["size"]) == recorded["size"]
        if masks_exact:
            assert mask["counts"].decode() == recorded["counts"]
            continue
        pixels = coco_mask.decode(mask) != coco_mask.decode(recorded)
        assert pixels.sum() <= 3 + coco_mask.area(recorded) / 1000


def test_detections_from_raw_outputs_equal_the_recorded_ones(path: Path, name: str) -> None:
    recorded = gm.read(path)
    case = recorded["cases"][name]
    config = case.get("config", recorded["cases"]["default"]["config"])
    masks = "mask_thr_binary" in config
    arrays = {n: torch.from_numpy(a) for n, a in np.load(path.parent / "inputs.npz").items()}
    blocks = arrays.pop("proto_8x10")
    protos = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    classes = 1 if name == "one_class" else recorded["classes"]
    outputs = RawOutputs(
        tuple(arrays[f"cls{i}"][:, :classes] for i in range(3)),
        tuple(arrays[f"dist{i}"] for i in range(3)),
        tuple(arrays[f"coeff{i}"] for i in range(3)) if masks else None,
        protos if masks else None,
    )
    fits = [letterbox(meta) for meta in recorded["metas"]]

    def run(fits: list[Letterbox]) -> list[Detections]:
        return postprocess(
            outputs,
            fits,
            eval_config(config, masks),
            list(range(len(fits))),
            strides=recorded["strides"],
            multi_label=config["multi_label"],
            fast_masks=config.get("fast_test", True),
            symmetric_pad=True,  # the original's padding slip
        )

    found = run(fits)
    assert [d.image_id for d in found] == list(range(len(fits)))
    for got, want in zip(found, case["results"], strict=True):
        assert len(got.boxes) == len(want["boxes"])
        check(got, want, masks_exact=True)
    if "counts" in case:
        assert [len(d.boxes) for d in found] == case["counts"]
    if "without_rescale_first_boxes" in case:
        plain = [
            Letterbox(original_size=f.original_size, scale=(1, 1), pad=(0, 0, 0, 0)) for f in fits
        ]
        for got, boxes in zip(run(plain), case["without_rescale_first_boxes"], strict=True):
            np.testing.assert_allclose(got.boxes[: len(boxes)], boxes, rtol=0, atol=BOX_ATOL_PX)


def test_detections_from_pictures_equal_the_recorded_ones(
    goldens: Path, model_case: dict[str, Any]
) -> None:
    postprocessing = gm.read(goldens / "postprocess" / "postprocess.json")["cases"]
    masks = "masks" in model_case
    config = dict(postprocessing["seg" if masks else "default"]["config"], max_per_img=300)
    model = gm.golden_model(goldens, model_case["key"], model_case["scales"])
    with torch.no_grad():
        outputs = model(gm.images_of(goldens, model_case), gm.texts_of(goldens, model_case))
    (got,) = postprocess(
        outputs,
        [letterbox(model_case["meta"])],
        eval_config(config, masks),
        [0],
        symmetric_pad=True,
    )
    assert len(got.scores) == model_case["count"]
    np.testing.assert_allclose(got.scores.sum(), model_case["all_scores_sum"], rtol=1e-4)
    np.testing.assert_allclose(got.scores[-1], model_case["last_score"], rtol=0, atol=SCORE_ATOL)
    check(got, model_case, masks_exact=False)
