"""B4: a whole training sample from JPEG bytes, against the original's structure and ultralytics.

    python benchmarks/b04_sample.py [--samples 40]

Ours: one decode, partners already decoded, fast law, as a worker's window gives them. The peer
decodes all four pictures (eight with mixup) and runs `data.law="reference"`: canvas, full-size
paste mask, 1000-point resampling. Recipe of the published v2-L row: mask-refine, copy-paste 0.3,
mixup 0.15, scale 0.1 to 1.9, 80 texts, planes as uint8. Checked first: equal generators give
samples with equal labels and a mean box IoU above 0.99. ultralytics is optional, and its chain has
no texts. Not covered: reading shards, real pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from b02_refine import overlap
from photos import photo_records
from timing import interleave, report

from yw_ray.data.collate import collate
from yw_ray.data.pipelines import augment, load
from yw_ray.data.sample import Batch, Record, Sample
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.recipe import AugmentConfig, DataConfig

CONFIG = AugmentConfig(scale=(0.1, 1.9))
VOCABULARY = Vocabulary.from_classes([f"class {i}" for i in range(80)])

Draw = Callable[[np.random.Generator], Sample]


def make(record: Record, draw: Draw, seed: int, data: DataConfig) -> Sample:
    """One sample from bytes."""
    return augment(
        load(record, mask_refine=True),
        draw,
        np.random.default_rng(seed),
        CONFIG,
        data,
        80,
        VOCABULARY,
        close_mosaic=False,
        segmentation=False,
    )


def check(records: list[Record], ours: list[Sample], peer: list[Sample]) -> tuple[float, float]:
    """Share of samples with the same objects and mean IoU of their boxes."""
    alike = [
        (a, b) for a, b in zip(ours, peer, strict=True) if a.labels.tolist() == b.labels.tolist()
    ]
    mean = np.concatenate([overlap(a.boxes, b.boxes) for a, b in alike]).mean()
    share = len(alike) / len(records)
    assert share >= 0.9 and mean >= 0.99, f"the laws differ: {share:.2f} alike, IoU {mean:.4f}"
    return share, float(mean)


def ultralytics_variant(records: list[Record], folder: Path) -> Callable[[], object] | None:
    """Its detection chain on the same files with its buffer of decoded partners, if installed."""
    try:
        from ultralytics.cfg import get_cfg
        from ultralytics.data.dataset import YOLODataset
    except ImportError:
        return None
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for r in records:
        (folder / "images" / f"{r.image_id:06}.jpg").write_bytes(r.jpeg)
        whole = np.array((r.width, r.height))
        middle = (r.boxes[:, :2] + r.boxes[:, 2:]) / 2 / whole
        rows = np.concatenate((middle, (r.boxes[:, 2:] - r.boxes[:, :2]) / whole), axis=1)
        (folder / "labels" / f"{r.image_id:06}.txt").write_text(
            "".join(
                f"{c} " + " ".join(f"{v:.6f}" for v in row) + "\n"
                for c, row in zip(r.labels, rows, strict=True)
            )
        )
    hyp: Any = get_cfg(overrides={"mixup": 0.15, "scale": 0.9, "copy_paste": 0.0})
    data = {"names": {i: f"class {i}" for i in range(80)}, "nc": 80, "channels": 3}
    dataset = YOLODataset(
        img_path=str(folder / "images"), imgsz=640, data=data, augment=True, hyp=hyp, task="detect"
    )
    return lambda: [dataset[i] for i in range(len(records))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=40)
    records = photo_records(parser.parse_args().samples)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    window = [load(r, mask_refine=True) for r in records]

    def decoded(rng: np.random.Generator) -> Sample:
        return window[rng.integers(len(window))]

    def decoding(rng: np.random.Generator) -> Sample:
        return load(records[rng.integers(len(records))], mask_refine=True)

    def fast() -> list[Sample]:
        data = DataConfig(law="fast")
        return [make(r, decoded, i, data) for i, r in enumerate(records)]

    def reference() -> list[Sample]:
        data = DataConfig(law="reference")
        return [make(r, decoding, i, data) for i, r in enumerate(records)]

    def packed(samples: Callable[[], list[Sample]]) -> Callable[[], list[Batch]]:
        return lambda: [collate([s]) for s in samples()]

    share, mean = check(records, fast(), reference())
    variants: dict[str, Callable[[], object]] = {
        "fast": packed(fast),
        "reference": packed(reference),
    }
    with tempfile.TemporaryDirectory() as folder:
        peer = ultralytics_variant(records, Path(folder))
        if peer is not None:
            variants["ultralytics"] = peer
        seconds = interleave(variants, repeats=7)
    more = {
        "samples": len(records),
        "ours_ms_per_sample": round(1e3 * float(np.median(seconds["fast"])) / len(records), 2),
    }
    report(
        "b04_sample", seconds["fast"], seconds["reference"], 2.5,
        peer_name="four decodes, canvas, 1000 points",
        same_objects=round(share, 3), mean_iou=round(mean, 4), **more,
    )  # fmt: skip
    if peer is None:
        print(json.dumps({"name": "b04_sample_ultralytics", "skipped": "not installed"}))
    else:
        report(
            "b04_sample_ultralytics", seconds["fast"], seconds["ultralytics"], 2.0,
            peer_name="ultralytics", **more,
        )  # fmt: skip


if __name__ == "__main__":
    main()
