"""Writing shards: shuffle, cut into files, check each picture, write, sum up.

Place in the flow: annotations and image files -> Parquet files and a manifest. `write_shard` is a
pure function of its task, so that which process runs it, when, and how often changes no byte;
`jobs/prepare.py` runs it as Ray tasks.
"""

import io
import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from yw_ray.data.annotations import AnnotationSet, ImageAnnotations, Style
from yw_ray.data.folders import write_atomically
from yw_ray.data.masks import extremes
from yw_ray.data.sample import Record
from yw_ray.data.shards import (
    ANNOTATIONS_FILE,
    MANIFEST_FILE,
    ROWS_PER_GROUP,
    BadImage,
    Manifest,
    Shard,
    dataset_digest,
    file_sha256,
    open_writer,
    records_digest,
    table_from_records,
)

MAX_PIXELS = 80_000_000
"""Larger pictures are set aside; decoding one this large takes about 320 MB."""
MAX_FILE_BYTES = 128_000_000
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One file to write: its name and its rows in order."""

    file: str
    images: Sequence[ImageAnnotations]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What was written. shard: None if no row was good; group_digests: of its row groups."""

    shard: Shard | None
    group_digests: tuple[str, ...]
    bad: tuple[BadImage, ...]
    num_objects: int
    num_crowd: int
    num_without_polygon: int
    num_empty_images: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a prepared folder depends on besides its sources."""

    split: Literal["train", "val"]
    style: Style
    base: bool
    seed: int
    rows_per_file: int

    def __post_init__(self) -> None:
        if self.rows_per_file < 1 or self.rows_per_file % ROWS_PER_GROUP:
            raise ValueError(
                f"rows_per_file must be a multiple of {ROWS_PER_GROUP}, got {self.rows_per_file}"
            )
        if self.seed < 0:
            raise ValueError(f"the shuffle's seed must be 0 or more, got {self.seed}")


def shard_tasks(images: Sequence[ImageAnnotations], options: Options) -> list[ShardTask]:
    """Shuffle all images with the seed and cut them into files."""
    order = np.random.default_rng(options.seed).permutation(len(images))
    step = options.rows_per_file
    return [
        ShardTask(file=f"{n:05d}.parquet", images=[images[i] for i in order[k : k + step]])
        for n, k in enumerate(range(0, len(order), step))
    ]


def write_shard(task: ShardTask, images: Path, out: Path) -> ShardResult:
    """Read and check the pictures of a task and write its file, a row group at a time.

    Memory follows the row group. A picture that cannot be used is left out and listed.
    """
    cv2.setNumThreads(1)
    path, partial = out / task.file, out / f".{task.file}.partial"
    group: list[Record] = []
    group_rows: list[int] = []
    digests: list[str] = []
    bad: list[BadImage] = []
    totals = np.zeros(4, np.int64)
    with open_writer(partial) as writer:

        def flush() -> None:
            writer.write_table(table_from_records(group), row_group_size=ROWS_PER_GROUP)
            group_rows.append(len(group))
            digests.append(records_digest(group))
            group.clear()

        for entry in task.images:
            try:
                jpeg = read_image(images / entry.path, entry.height, entry.width)
            except ValueError as error:
                bad.append(
                    BadImage(image_id=entry.image_id, path=entry.path, reason=str(error)[:200])
                )
                continue
            group.append(_record(entry, jpeg))
            without = (entry.polygons.parts_per_object == 0) & ~entry.crowd
            totals += len(entry.crowd), entry.crowd.sum(), without.sum(), len(entry.crowd) == 0
            if len(group) == ROWS_PER_GROUP:
                flush()
        if group:
            flush()
    shard = None
    if group_rows:
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        shard = Shard(
            file=task.file,
            rows=sum(group_rows),
            row_group_rows=group_rows,
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
        )
    else:
        partial.unlink()
    num_objects, num_crowd, num_without, num_empty = totals.tolist()
    return ShardResult(
        shard=shard,
        group_digests=tuple(digests),
        bad=tuple(bad),
        num_objects=num_objects,
        num_crowd=num_crowd,
        num_without_polygon=num_without,
        num_empty_images=num_empty,
    )


def read_image(path: Path, height: int, width: int) -> bytes:
    """Encoded bytes of a picture that decodes whole and to the size given.

    The size is that after decoding as training decodes (with its EXIF orientation).
    Raises: ValueError with the reason why it cannot be used.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"file is larger than {MAX_FILE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    _check_whole(data)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"does not decode: {_line(error)}") from None
    if decoded is None:
        raise ValueError("does not decode")
    if decoded.shape[:2] != (height, width):
        found = f"{decoded.shape[1]}x{decoded.shape[0]}"
        raise ValueError(f"is {found} pixels (w x h), annotations say {width}x{height}")
    return data


def _check_whole(data: bytes) -> None:
    """Raise ValueError for what OpenCV would decode in part (grey below a cut) or not afford."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"has {image.width}x{image.height} pixels, too many")
                # a JPEG is decoded at an eighth of its size: a cut shows all the same
                image.draft("RGB", (image.width // 8, image.height // 8))
                image.load()
    except Image.UnidentifiedImageError:
        kinds = ", ".join(_FORMATS)
        raise ValueError(f"is no picture ({kinds})" if data else "is empty") from None
    except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"does not decode: {_line(error)}") from None
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:  # damaged headers
        raise ValueError(f"does not decode: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def missing_images(images: Path, wanted: Sequence[str]) -> list[str]:
    """Which of the files are not below `images`.

    Each folder is listed once: a question per file is slow on network storage.
    Raises: ValueError if the image root is no folder.
    """
    if not images.is_dir():
        raise ValueError(f"image folder {images} does not exist; name the folder of the pictures")
    there: set[str] = set()
    for folder in {str(PurePosixPath(name).parent) for name in wanted}:
        if (images / folder).is_dir():
            with os.scandir(images / folder) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
            there.update((PurePosixPath(folder) / name).as_posix() for name in names)
    return [name for name in wanted if name not in there]


def write_manifest(
    out: Path,
    results: Sequence[ShardResult],
    parsed: AnnotationSet,
    options: Options,
    sources: dict[str, str],
) -> Manifest:
    """Sum up the results, in file order, and write the manifest."""
    shards = [r.shard for r in results if r.shard]
    manifest = Manifest(
        split=options.split,
        style=options.style,
        base=options.base,
        seed=options.seed,
        rows_per_file=options.rows_per_file,
        num_images=sum(shard.rows for shard in shards),
        num_source_images=parsed.source_images,
        num_objects=sum(r.num_objects for r in results),
        num_crowd=sum(r.num_crowd for r in results),
        num_without_polygon=sum(r.num_without_polygon for r in results),
        num_empty_images=sum(r.num_empty_images for r in results),
        dropped=parsed.dropped,
        quarantine=[bad for r in results for bad in r.bad],
        shards=shards,
        classes=[list(texts) for texts in parsed.classes],
        category_ids=list(parsed.category_ids),
        annotations_file=ANNOTATIONS_FILE,
        sources=sources,
        dataset_digest=dataset_digest(
            [digest for r in results for digest in r.group_digests],
            [rows for shard in shards for rows in shard.row_group_rows],
            style=options.style,
            classes=parsed.classes,
            category_ids=parsed.category_ids,
        ),
    )
    write_atomically(out / MANIFEST_FILE, manifest.model_dump_json(indent=1))
    return manifest


def _record(entry: ImageAnnotations, jpeg: bytes) -> Record:
    return Record(
        image_id=entry.image_id,
        jpeg=jpeg,
        height=entry.height,
        width=entry.width,
        boxes=entry.boxes,
        refined_boxes=extremes(entry.polygons),
        labels=entry.labels,
        crowd=entry.crowd,
        polygons=entry.polygons,
    )
