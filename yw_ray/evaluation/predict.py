"""Predict: a model over a worker's share of the validation shards -> Detections.

Place in the flow: validation windows -> letterboxed batches -> model -> post-processing -> one file
of detections for each worker; rank 0 joins them and counts each image id exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from yw_ray.data.collate import collate
from yw_ray.data.pipelines import eval_sample
from yw_ray.data.sample import Record
from yw_ray.models.outputs import Detections
from yw_ray.models.postprocess import postprocess
from yw_ray.models.yolo_world import normalize_images
from yw_ray.recipe import EvalConfig


@torch.no_grad()
def predict(
    model: nn.Module,
    records: Iterable[Record],
    text_feats: Tensor | None,
    *,
    config: EvalConfig,
    image_size: int,
    device: torch.device,
    threads: int = 2,
    on_images: Callable[[int], None] | None = None,
) -> Iterator[Detections]:
    """Detections of each record, in order, in float32.

    Args:
        model: in eval mode on the device.
        text_feats: (K, 512) vectors of the prompts, or None for folded or learned prompts.
        on_images: told the number of images done after each batch.
    """
    model.eval()
    source, done = iter(records), 0
    with ThreadPoolExecutor(threads, thread_name_prefix="letterbox") as pool:

        def load(batch: list[Record]) -> list:
            return [pool.submit(eval_sample, record, image_size) for record in batch]

        coming = load(list(islice(source, config.batch)))
        while coming:
            samples = [task.result() for task in coming]
            coming = load(list(islice(source, config.batch)))
            batch = collate(samples)
            images = normalize_images(batch.images.to(device)).contiguous(
                memory_format=torch.channels_last
            )
            feats = None if text_feats is None else text_feats.expand(len(images), -1, -1)
            outputs = model(images, feats)
            assert batch.letterboxes is not None
            yield from postprocess(outputs, batch.letterboxes, config, batch.image_ids.tolist())
            done += len(samples)
            if on_images:
                on_images(done)


def save_detections(path: Path, detections: Sequence[Detections]) -> None:
    """One compressed file, complete or absent."""
    counts = [len(d.scores) for d in detections]
    masks = None
    if any(d.masks is not None for d in detections):
        masks = [
            [{"size": list(m["size"]), "counts": _text(m["counts"])} for m in d.masks or ()]
            for d in detections
        ]
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        image_ids=np.asarray([d.image_id for d in detections], np.int64),
        counts=np.asarray(counts, np.int64),
        boxes=_stack([d.boxes for d in detections], (0, 4), np.float32),
        scores=_stack([d.scores for d in detections], (0,), np.float32),
        labels=_stack([d.labels for d in detections], (0,), np.int64),
        masks=np.frombuffer(json.dumps(masks).encode(), np.uint8),
    )
    partial.replace(path)


def load_detections(path: Path) -> list[Detections]:
    """What `save_detections` wrote."""
    with np.load(path) as data:
        ends = np.cumsum(data["counts"])
        masks = json.loads(data["masks"].tobytes().decode())
        boxes, scores, labels = data["boxes"], data["scores"], data["labels"]
        return [
            Detections(
                image_id=int(image_id),
                boxes=boxes[end - count : end],
                scores=scores[end - count : end],
                labels=labels[end - count : end],
                masks=None
                if masks is None
                else [{**m, "counts": m["counts"].encode()} for m in masks[k]],
            )
            for k, (image_id, count, end) in enumerate(
                zip(data["image_ids"], data["counts"], ends, strict=True)
            )
        ]


def merge_shares(
    shares: Iterable[Sequence[Detections]], expected: Sequence[int]
) -> list[Detections]:
    """All workers' detections in the order of `expected`.

    Raises: RuntimeError unless each expected image id came exactly once.
    """
    found: dict[int, Detections] = {}
    for share in shares:
        for item in share:
            if item.image_id in found:
                raise RuntimeError(f"image {item.image_id} was predicted twice")
            found[item.image_id] = item
    missing = [image_id for image_id in expected if image_id not in found]
    if missing or len(found) != len(expected):
        raise RuntimeError(
            f"{len(found)} images predicted, {len(expected)} expected; first missing: {missing[:3]}"
        )
    return [found[image_id] for image_id in expected]


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(empty, dtype)


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
