"""From a shard row to a training sample, and to an evaluation sample.

Place in the flow: the stream decodes rows by `load`, then calls `augment` with a way to draw
partners; everything here is a pure function of its arguments and of the generator.
Source: training pipeline of the published YOLO-World fine-tuning recipes, stages 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from yw_ray.data import masks, mixing, reference_law
from yw_ray.data.color import draw_hsv, draw_jitter, hsv, jitter
from yw_ray.data.geometry import draw_affine, flip, letterbox
from yw_ray.data.sample import Record, Sample
from yw_ray.data.vocabulary import Vocabulary, sample_texts
from yw_ray.recipe import AugmentConfig, DataConfig

MASK_STRIDE = 4

Draw = Callable[[np.random.Generator], Sample]


def load(record: Record, mask_refine: bool) -> Sample:
    """Decode a row and choose its boxes.

    Args:
        mask_refine: boxes from the polygons, which stay with the sample as one contour each;
            objects without polygon are dropped. Otherwise the boxes of the json, no polygons.
    Crowd objects are always dropped.
    Raises: ValueError for bytes that do not decode, or to another size than the row says.
    """
    coded = np.frombuffer(record.jpeg, np.uint8)
    image = cv2.imdecode(coded, cv2.IMREAD_COLOR) if len(coded) else None
    if image is None:
        raise ValueError(
            f"image {record.image_id}: {len(record.jpeg)} bytes do not decode, expected a JPEG or "
            "PNG; replace or remove the file and prepare the shards again"
        )
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"image {record.image_id}: decodes to {image.shape[:2]} (h, w), the row says "
            f"{(record.height, record.width)}; prepare the shards again"
        )
    keep = ~record.crowd
    if mask_refine:
        keep &= record.polygons.parts_per_object > 0
    chosen = record.refined_boxes if mask_refine else record.boxes
    polygons = None
    if mask_refine:
        polygons = masks.merge_parts(masks.select(record.polygons, keep))
    return Sample(
        image_id=record.image_id,
        image=image,
        boxes=chosen[keep].astype(np.float32),
        labels=record.labels[keep].astype(np.int64),
        polygons=polygons,
    )


def augment(
    sample: Sample,
    draw: Draw,
    rng: np.random.Generator,
    config: AugmentConfig,
    data: DataConfig,
    num_texts: int,
    vocabulary: Vocabulary | None,
    *,
    close_mosaic: bool,
    segmentation: bool,
) -> Sample:
    """The training chain of one picture.

    Args:
        sample: loaded with `mask_refine=config.mask_refine`; draw: returns a loaded partner.
        num_texts: length of the text list; vocabulary: None where prompts are fixed (labels stay
            dataset classes and no texts are sampled).
        close_mosaic: stage 2, without mosaic, copy-paste and mixup; `config.mosaic=False` means
            the same from the first epoch on.
        segmentation: rasterise the polygons at stride 4.
    Returns: (image_size, image_size, 3) sample without polygons.
    Raises: ValueError for segmentation without polygons.
    """
    if segmentation and sample.polygons is None:
        raise ValueError(
            "segmentation trains on polygons, but augment.mask_refine is false; set it to true"
        )
    size, text_free = data.image_size, vocabulary is None
    fast = data.law == "fast"
    mix = mixing.mosaic_affine if fast else reference_law.mosaic_affine

    def mosaic(first: Sample) -> Sample:
        four = [first, *(draw(rng) for _ in range(3))]
        draws = mixing.draw_mosaic(rng, sum(len(s.labels) for s in four), config, size)
        return mix(four, draws, config, size, text_free=text_free)

    if close_mosaic or not config.mosaic:
        fit = mixing.letterbox_affine if fast else reference_law.letterbox_affine
        sample = fit(sample, draw_affine(rng, config.scale, config.translate), config, size)
    else:
        sample = mosaic(sample)
        if rng.random() < config.mixup:
            blend = mixing.mixup if fast else reference_law.mixup
            second = mosaic(draw(rng))
            sample = blend(sample, second, mixing.draw_mixup(rng))
    if not segmentation:
        sample = replace(sample, polygons=None)
    image = jitter(sample.image, draw_jitter(rng, config.pixel_jitter))
    sample = replace(sample, image=hsv(image, draw_hsv(rng, config.hsv)))
    if rng.random() < config.flip:
        sample = flip(sample)
    if sample.polygons is not None:
        rasterize = masks.rasterize if fast else reference_law.rasterize
        bitmaps = rasterize(sample.polygons, size, size, MASK_STRIDE)
        sample = replace(sample, polygons=None, masks=bitmaps)
    if vocabulary is not None:
        sample = sample_texts(sample, vocabulary, num_texts, rng)
    return sample


def eval_sample(record: Record, image_size: int) -> Sample:
    """Decoded and letterboxed, `letterbox` set; boxes of the json without crowd, moved along."""
    return letterbox(load(record, mask_refine=False), image_size)
