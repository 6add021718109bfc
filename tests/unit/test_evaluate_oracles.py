"""The fast engine gives the whole precision and recall tables of the reference engines, exactly."""

import numpy as np
import pytest
from pycocotools import mask as rle

from yw_ray.evaluation.coco import evaluate_tables
from yw_ray.models.outputs import Detections

HEIGHT, WIDTH, NUM_CLASSES = 180, 240, 6
CATEGORY_IDS = [2, 3, 7, 11, 13, 40]


def polygon(box, rng):
    """A box's outline with two corners cut, as a COCO polygon; now and then of two parts."""
    x, y, w, h = box
    cut = rng.uniform(0.05, 0.4) * min(w, h)
    outline = [x, y, x + w - cut, y, x + w, y + cut, x + w, y + h, x, y + h]
    if rng.random() < 0.2:
        return [outline, [x, y, x + w / 3, y, x + w / 3, y + h / 3]]
    return [outline]


def random_box(rng):
    w, h = rng.uniform(4, WIDTH * 0.7), rng.uniform(4, HEIGHT * 0.7)
    return [rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h]


def random_world(seed, style):
    """Annotations and detections with crowds, ties, empty images and an image over the cap."""
    rng = np.random.default_rng(seed)
    images, annotations, detections = [], [], []
    for image_id in (5, 9, 12, 13, 20, 31, 44, 45):
        image = {"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"}
        image["neg_category_ids"] = [int(c) for c in rng.choice(CATEGORY_IDS, 2, replace=False)]
        image["not_exhaustive_category_ids"] = [int(rng.choice(CATEGORY_IDS))]
        images.append(image)
        found = []
        for _ in range(0 if image_id == 12 else int(rng.integers(1, 9))):
            box = random_box(rng)
            # The last class has no ground truth; sizes cover small, medium and large.
            label = int(rng.integers(NUM_CLASSES - 1))
            parts = polygon(box, rng)
            encoded = rle.merge(rle.frPyObjects(parts, HEIGHT, WIDTH))
            crowd = style == "coco" and rng.random() < 0.15
            segmentation = parts
            if crowd:
                mask = np.asfortranarray(rle.decode(encoded))
                runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel("F"), [0]])))
                counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
                segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": box,
                    # Now and then a flat annotation, as some files hold.
                    "area": float(rle.area(encoded)) * (len(annotations) % 7 > 0),
                    "segmentation": segmentation,
                    "iscrowd": int(crowd),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                shift = rng.normal(0, 0.08, 4) * [box[2], box[3], box[2], box[3]]
                near = np.maximum(np.array(box) + shift, [0, 0, 1, 1])
                found.append((near, label if rng.random() < 0.8 else int(rng.integers(6))))
        noise = 340 if image_id == 31 else 4
        found += [(np.array(random_box(rng)), int(rng.integers(NUM_CLASSES))) for _ in range(noise)]
        found.append((np.array([30.0, 40.0, 0.0, 25.0]), 0))  # a box without area
        if image_id == 45:
            continue  # an image without detections
        boxes = np.array([box for box, _ in found], np.float32)
        masks = [rle.merge(rle.frPyObjects(polygon(b.tolist(), rng), HEIGHT, WIDTH)) for b in boxes]
        boxes[:, 2:] += boxes[:, :2]
        detections.append(
            Detections(
                image_id=image_id,
                boxes=boxes,
                # One decimal: many equal scores, whose order the engines must agree on.
                scores=rng.random(len(found)).round(1).astype(np.float32),
                labels=np.array([label for _, label in found]),
                masks=masks,
            )
        )
    categories = [
        {"id": c, "name": f"class {c}", "frequency": "rcf"[k % 3]}
        for k, c in enumerate(CATEGORY_IDS)
    ]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    return tree, detections


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("style, oracle", [("coco", "pycocotools"), ("lvis", "lvis")])
def test_fast_engine_gives_the_tables_of_the_oracle_exactly(style, oracle, kind, seed):
    tree, detections = random_world(seed, style)
    listed = None if seed % 2 else [5, 12, 13, 31, 44]
    fast, facts = evaluate_tables(
        tree, detections, CATEGORY_IDS, kind, style, "hotcoco", image_ids=listed
    )
    slow, slow_facts = evaluate_tables(
        tree, detections, CATEGORY_IDS, kind, style, oracle, image_ids=listed
    )
    assert fast.precision.shape == (10, 101, NUM_CLASSES, 4, 3 if style == "coco" else 1)
    assert (fast.precision > 0).any()
    np.testing.assert_array_equal(fast.precision, slow.precision)
    np.testing.assert_array_equal(fast.recall, slow.recall)
    assert fast.num_gt == slow.num_gt
    assert fast.names == slow.names
    differing = {key for key in facts if facts[key] != slow_facts[key]}
    assert differing == {"engine", "engine_version"}
