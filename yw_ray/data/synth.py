"""The generated world: pictures of coloured shapes with polygons, as COCO and LVIS json.

Place in the flow: stands where COCO stands, for machines without it: everything can be learned on
two cores. Classes are colour x shape pairs; a few pairs are novel: their colour and their shape
occur in training with other partners, the pair itself only in validation pictures.

Folder written: `train/*.jpg`, `val/*.jpg`, `annotations/{train,val}.json` (COCO; the training file
lists the base categories only, so that novel texts are never taught as negatives),
`annotations/lvis_{train,val}.json` (all categories; the novel ones are the rare ones) and
`world.json` (written last).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yw_ray.data.folders import publishing, write_atomically
from yw_ray.data.shapes import (
    box_overlap,
    cut_in_two,
    fill,
    outline,
    pixel_color,
    polygon_area,
    run_lengths,
)
from yw_ray.data.world import WORLD_FORMAT, Pair, World, WorldConfig, class_pairs, load_world

__all__ = ["World", "WorldConfig", "load_world", "write_world"]

_JPEG_QUALITY = 92
_CROWD_GRID = 3


def write_world(
    out: Path,
    *,
    num_train: int,
    num_val: int,
    image_size: int = 160,
    seed: int,
    config: WorldConfig | None = None,
) -> World:
    """Write pictures and annotations; the same arguments give the same bytes.

    Nothing is done if `out` already holds this very world. Picture i of a split does not depend
    on how many there are.

    Raises: ValueError for bad numbers, or if `out` holds another world or other files.
    """
    config = config or WorldConfig()
    if num_train < 1 or num_val < 1 or image_size < 32 or seed < 0:
        raise ValueError(
            f"a world needs num_train >= 1, num_val >= 1, image_size >= 32 and seed >= 0, got "
            f"{num_train}, {num_val}, {image_size}, {seed}"
        )
    wanted = {
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "config": json.loads(json.dumps(asdict(config))),
    }
    if (out / "world.json").exists():
        world = load_world(out)
        if all(getattr(world, key) == value for key, value in wanted.items()):
            return world
        raise ValueError(f"{out} holds another generated world: name another folder or remove it")
    with publishing(out) as folder:
        digest = hashlib.sha256()
        pairs = class_pairs(config)
        (folder / "annotations").mkdir()
        splits = {}
        for split, number in (("train", num_train), ("val", num_val)):
            (folder / split).mkdir()
            coco = _empty_coco([p for p in pairs if split == "val" or not p.novel])
            painter = _Painter(config, pairs, image_size, seed, split)
            for image_id, name, jpeg, annotations in painter.pictures(number):
                (folder / split / name).write_bytes(jpeg)
                digest.update(hashlib.sha256(jpeg).digest())
                coco["images"].append(
                    {"id": image_id, "file_name": name, "height": image_size, "width": image_size}
                )
                for annotation in annotations:
                    annotation["id"] = len(coco["annotations"]) + 1
                    annotation["image_id"] = image_id
                    coco["annotations"].append(annotation)
            splits[split] = coco
        for split, coco in splits.items():
            lvis = _as_lvis(coco, splits["train"], pairs, split, seed)
            for name, content in ((split, coco), (f"lvis_{split}", lvis)):
                text = json.dumps(content, separators=(",", ":"))
                digest.update(text.encode())
                write_atomically(folder / "annotations" / f"{name}.json", text)
        wanted |= {
            "format": WORLD_FORMAT,
            "base": [p.text for p in pairs if not p.novel],
            "novel": [p.text for p in pairs if p.novel],
            "category_ids": {p.text: p.category_id for p in pairs},
            "digest": digest.hexdigest(),
        }
        write_atomically(folder / "world.json", json.dumps(wanted, indent=1))
    return load_world(out)


class _Painter:
    """Draws the pictures of one split."""

    def __init__(
        self, config: WorldConfig, pairs: tuple[Pair, ...], size: int, seed: int, split: str
    ) -> None:
        self.config, self.size, self.seed = config, size, seed
        self.split_index = ("train", "val").index(split)
        self.base = [p for p in pairs if not p.novel]
        self.novel = [p for p in pairs if p.novel] if split == "val" else []
        weights = np.array([config.common_weight if p.frequency == "c" else 1 for p in self.base])
        self.base_cdf = np.cumsum(weights / weights.sum())
        rng = np.random.default_rng((seed, 2))
        # one noise field, shifted at random: fresh noise would cost more than all the rest
        self.noise = (rng.standard_normal((2 * size, 2 * size, 3)) * config.noise).astype("float32")

    def pictures(self, number: int) -> Iterator[tuple[int, str, bytes, list[dict[str, Any]]]]:
        """Yield image id, file name, JPEG bytes and annotations (without ids)."""
        for index in range(number):
            image_id = 1_000_000 * self.split_index + index + 1
            rng = np.random.default_rng((self.seed, self.split_index, index))
            image, annotations = self._picture(rng)
            done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            assert done
            yield image_id, f"{image_id:012d}.jpg", jpeg.tobytes(), annotations

    def _picture(self, rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
        image = self._background(rng)
        taken: list[np.ndarray] = []
        annotations: list[dict[str, Any]] = []
        if rng.random() < self.config.empty_share:
            return image, annotations
        if rng.random() < self.config.crowd_share:
            crowd = self._crowd(rng, image, taken)
            annotations += [crowd] if crowd else []
        low, high = self.config.num_objects
        for _ in range(rng.integers(low, high + 1)):
            pair = self._pair(rng)
            points = self._place(rng, pair.shape, taken)
            if points is None:
                continue
            parts = [points]
            if rng.random() < self.config.split_share:
                parts = cut_in_two(points)
            color = pixel_color(pair.color, rng)
            for part in parts:
                fill(image, part, color)
            annotations.append(_object(pair, parts))
        return image, annotations

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        grey = rng.uniform(60, 200, (2, 2, 1)) + rng.uniform(-14, 14, (2, 2, 3))
        shade = cv2.resize(grey.astype(np.float32), (self.size, self.size))
        y, x = rng.integers(0, self.size, 2)
        shade += self.noise[y : y + self.size, x : x + self.size]
        return np.clip(shade, 0, 255).astype(np.uint8)

    def _pair(self, rng: np.random.Generator) -> Pair:
        if self.novel and rng.random() < self.config.novel_share:
            return self.novel[rng.integers(len(self.novel))]
        index = np.searchsorted(self.base_cdf, rng.random(), side="right")
        return self.base[min(int(index), len(self.base) - 1)]

    def _place(
        self, rng: np.random.Generator, shape: str, taken: list[np.ndarray]
    ) -> np.ndarray | None:
        """(V, 2) float64 outline at a free place, rounded to 0.01 px; None if there is none."""
        for _ in range(40):
            side = rng.uniform(*self.config.side) * self.size
            aspect = np.exp(rng.uniform(-0.15, 0.15))
            angle = np.deg2rad(rng.uniform(-1, 1) * self.config.max_rotation_deg)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            points = (outline(shape) * (side * aspect / 2, side / aspect / 2)) @ turn
            low, high = points.min(0), points.max(0)
            room = self.size - (high - low) - 2
            corner = 1 + rng.random(2) * room
            box = np.concatenate([corner, corner + high - low])
            free = all(box_overlap(box, other) <= self.config.max_overlap for other in taken)
            if free and room.min() > 0:
                taken.append(box)
                return np.round(points - low + corner, 2)
        return None

    def _crowd(
        self, rng: np.random.Generator, image: np.ndarray, taken: list[np.ndarray]
    ) -> dict[str, Any] | None:
        """Many small ones of a kind, annotated as one region."""
        pair = self._pair(rng)
        field_ = self._place(rng, "square", taken)
        if field_ is None:
            return None
        mask = np.zeros(image.shape[:2], np.uint8)
        low, cell = field_.min(0), np.ptp(field_, axis=0) / _CROWD_GRID
        color = pixel_color(pair.color, rng)
        for row, column in np.ndindex(_CROWD_GRID, _CROWD_GRID):
            centre = low + (np.array([column, row]) + 0.5) * cell
            points = centre + outline(pair.shape) * cell * 0.4
            fill(image, points, color)
            fill(mask, points, (1.0,))
        ys, xs = np.nonzero(mask)
        x, y = int(xs.min()), int(ys.min())
        return {
            "category_id": pair.category_id,
            "bbox": [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
            "area": len(xs),
            "iscrowd": 1,
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        }


def _object(pair: Pair, parts: list[np.ndarray]) -> dict[str, Any]:
    points = np.concatenate(parts)
    low, high = points.min(0), points.max(0)
    return {
        "category_id": pair.category_id,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "area": round(sum(polygon_area(part) for part in parts), 2),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in part.ravel()] for part in parts],
    }


def _empty_coco(pairs: list[Pair]) -> dict[str, Any]:
    return {
        "info": {"description": "generated world of coloured shapes"},
        "images": [],
        "annotations": [],
        "categories": [
            {"id": p.category_id, "name": p.text, "supercategory": p.shape} for p in pairs
        ],
    }


def _as_lvis(
    coco: dict[str, Any],
    train: dict[str, Any],
    pairs: tuple[Pair, ...],
    split: str,
    seed: int,
) -> dict[str, Any]:
    """The same pictures in LVIS's layout: no file names, no crowds, federated category lists."""
    present: dict[int, set[int]] = {image["id"]: set() for image in coco["images"]}
    crowded: dict[int, set[int]] = {image["id"]: set() for image in coco["images"]}
    annotations = []
    for annotation in coco["annotations"]:
        where = crowded if annotation["iscrowd"] else present
        where[annotation["image_id"]].add(annotation["category_id"])
        if not annotation["iscrowd"]:
            annotations.append({k: v for k, v in annotation.items() if k != "iscrowd"})
    instances = [
        (a["category_id"], a["image_id"]) for a in train["annotations"] if not a["iscrowd"]
    ]
    num_instances = Counter(category for category, _ in instances)
    num_images = Counter(category for category, _ in set(instances))
    images = []
    for image in coco["images"]:
        rng = np.random.default_rng((seed, 3, image["id"]))
        seen = present[image["id"]] | crowded[image["id"]]
        absent = [p.category_id for p in pairs if p.category_id not in seen]
        checked = sorted(rng.choice(absent, len(absent) // 2, replace=False).tolist())
        images.append(
            {
                "id": image["id"],
                "coco_url": f"http://generated.invalid/{split}/{image['file_name']}",
                "height": image["height"],
                "width": image["width"],
                "neg_category_ids": checked,
                "not_exhaustive_category_ids": sorted(crowded[image["id"]]),
            }
        )
    categories = [
        {
            "id": p.category_id,
            "name": f"{p.color}_{p.shape}",
            "synonyms": [f"{p.color}_{p.shape}"],
            "frequency": p.frequency,
            "instance_count": num_instances[p.category_id],
            "image_count": num_images[p.category_id],
        }
        for p in pairs
    ]
    return {
        "info": coco["info"],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
