"""B10: hotcoco against pycocotools and lvis behind `evaluation.coco.evaluate`.

    python benchmarks/b10_eval.py [--images 400]

Synthetic results shaped like COCO val (100 detections an image, 80 classes) and LVIS minival (300,
1203 classes), annotations read from a JSON file, detections handed over in memory, one thread.
Checks first that the whole precision and recall tables are equal, then times, then takes the peak
memory of one call. To pass: 20 times less CPU. Masks fall short of it: half of hotcoco's time there
is the overlap of run lengths, native code in the oracles too. Not covered: real annotations, full
size (the oracle needs minutes and gigabytes there), faster-coco-eval (no dependency here).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
from memory import peak_mb
from pycocotools import mask as rle
from timing import interleave, report

from yw_ray.evaluation.coco import evaluate_tables
from yw_ray.models.outputs import Detections

HEIGHT, WIDTH = 480, 640
POLYGON_POINTS = 28
THRESHOLD = 20.0


def polygon(box: np.ndarray, rng: np.random.Generator) -> list[float]:
    """A rough ellipse inside a box xywh, as a COCO polygon."""
    angle = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)
    radius = rng.uniform(0.7, 1.0, POLYGON_POINTS)[:, None]
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius / 2
    return (box[:2] + box[2:] * (unit + 0.5)).round(2).ravel().tolist()


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) xywh: sides from a few pixels to most of the picture, small ones more often."""
    sides = np.exp(rng.uniform(np.log(8), np.log(380), (count, 2)))
    return np.concatenate([rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides), sides], axis=1)


def make_case(
    style: str, kind: str, num_images: int
) -> tuple[dict[str, Any], list[Detections], list[int]]:
    """Annotation tree, detections, category ids."""
    rng = np.random.default_rng(7)
    classes, objects, per_image = (80, 7.3, 100) if style == "coco" else (1203, 13.3, 300)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    detections = []
    for image_id in range(1, num_images + 1):
        count = int(rng.poisson(objects))
        # Three to four classes an image, as in both sets (arXiv 1908.03195).
        present = rng.integers(1, classes + 1, 3 + image_id % 2)
        boxes, labels = random_boxes(count, rng), rng.choice(present, count)
        images.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": rng.integers(1, classes + 1, 20).tolist(),
                "not_exhaustive_category_ids": labels[:1].tolist(),
            }
        )
        for box, label in zip(boxes, labels, strict=True):
            parts = [polygon(box, rng)]
            area = rle.area(rle.merge(rle.frPyObjects(parts, HEIGHT, WIDTH)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "bbox": box.round(2).tolist(),
                    "area": float(area),
                    "segmentation": parts,
                    "iscrowd": 0,
                }
            )
        near = rng.integers(0, max(count, 1), per_image if count else 0)
        found = np.concatenate([boxes[near], random_boxes(per_image - len(near), rng)])
        found *= rng.normal(1, 0.08, found.shape)
        known = rng.choice(np.concatenate([labels, images[-1]["neg_category_ids"]]), per_image)
        known[: len(near)] = np.where(rng.random(len(near)) < 0.6, labels[near], known[: len(near)])
        masks = None
        if kind == "segm":
            masks = [
                rle.merge(rle.frPyObjects([polygon(box, rng)], HEIGHT, WIDTH)) for box in found
            ]
        found[:, 2:] += found[:, :2]
        detections.append(
            Detections(
                image_id=image_id,
                boxes=found.astype(np.float32),
                scores=np.sort(rng.beta(1, 6, per_image).astype(np.float32))[::-1],
                labels=known - 1,
                masks=masks,
            )
        )
    names = [
        {"id": k, "name": f"class {k}", "frequency": "rcf"[k % 3]} for k in range(1, classes + 1)
    ]
    tree = {"images": images, "annotations": annotations, "categories": names}
    return tree, detections, list(range(1, classes + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="judged for boxes; half for masks")
    size = parser.parse_args().images
    cases = [
        ("coco", "bbox", "pycocotools", size),
        ("coco", "segm", "pycocotools", size // 2),
        ("lvis", "bbox", "lvis", size),
        ("lvis", "segm", "lvis", size // 2),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for style, kind, oracle, num_images in cases:
            tree, detections, ids = make_case(style, kind, num_images)
            path = Path(folder) / f"{style}_{kind}.json"
            path.write_text(json.dumps(tree))
            call = partial(evaluate_tables, path, detections, ids, kind, style)
            ours, peer = partial(call, engine="hotcoco"), partial(call, engine=oracle)
            (fast, _), (slow, _) = ours(), peer()
            np.testing.assert_array_equal(fast.precision, slow.precision)
            np.testing.assert_array_equal(fast.recall, slow.recall)
            assert fast.num_gt == slow.num_gt
            seconds = interleave({"hotcoco": ours, oracle: peer}, repeats=5, warmup=0)
            report(
                f"b10_eval_{style}_{kind}",
                seconds["hotcoco"],
                seconds[oracle],
                THRESHOLD,
                peer_name=oracle,
                images=num_images,
                detections=sum(len(d.scores) for d in detections),
                ours_mb=round(peak_mb(ours), 1),
                peer_mb=round(peak_mb(peer), 1),
            )


if __name__ == "__main__":
    main()
