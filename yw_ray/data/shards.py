"""Shards: the Parquet schema, its manifest, and how rows are read back.

Place in the flow: `jobs/prepare.py` writes a folder of shards (with `shard_writer.py`), the stream
reads row groups of it and turns rows into `Record` values. See docs/data-format.md.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from yw_ray.data.sample import Polygons, Record

FORMAT = 1
ROWS_PER_GROUP = 64
MANIFEST_FILE = "manifest.json"
ANNOTATIONS_FILE = "annotations.json"

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("jpeg", pa.large_binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(pa.float32()), nullable=False),
        pa.field("refined_boxes", pa.list_(pa.float32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("polygon_points", pa.list_(pa.float32()), nullable=False),
        pa.field("part_sizes", pa.list_(pa.int32()), nullable=False),
        pa.field("parts_per_object", pa.list_(pa.int32()), nullable=False),
    ]
)
_FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(BaseModel):
    """One Parquet file."""

    model_config = _FROZEN
    file: str
    rows: int = Field(ge=0)
    row_group_rows: list[int]
    num_bytes: int = Field(ge=0)
    sha256: str

    @field_validator("file")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value or value.startswith(".") or Path(value).name != value or "\0" in value:
            raise ValueError("a shard must be a plain file name")
        return value


class BadImage(BaseModel):
    """An image that was set aside."""

    model_config = _FROZEN
    image_id: int
    path: str
    reason: str


class Manifest(BaseModel):
    """What a folder of shards holds; written last."""

    model_config = _FROZEN
    format: Literal[1] = 1
    split: Literal["train", "val"]
    style: Literal["coco", "lvis"]
    base: bool
    """LVIS-Base: rare classes are left out everywhere."""
    seed: int
    """Of the shuffle."""
    rows_per_file: int
    num_images: int
    """Rows of all shards."""
    num_source_images: int
    """Images of the annotation file, before filtering and quarantine."""
    num_objects: int
    """Kept annotations, crowds included."""
    num_crowd: int
    num_without_polygon: int
    """Objects, crowds left out, that mask-refine drops."""
    num_empty_images: int
    dropped: dict[str, int]
    """Reason -> number of annotations or images left out by the parsing rules."""
    quarantine: list[BadImage]
    shards: list[Shard]
    classes: list[list[str]]
    """Vocabulary: texts of each label."""
    category_ids: list[int]
    """Label -> id in the annotation file."""
    annotations_file: str
    """Unchanged copy of the source annotations beside the shards, for evaluation."""
    sources: dict[str, str]
    """Name -> sha256 of the files this was made from: `annotations`."""
    dataset_digest: str
    """Of rows, their order, row groups and vocabulary; not of paths, time or files."""

    @field_validator("annotations_file")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return Shard._plain_name(value)


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished folder; every shard must be there with its size.

    Raises: ValueError if the folder is missing, unfinished, of another format or incomplete.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"prepared data {folder} {what}: make it with `yw-ray prepare`, or name its folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}): prepare the data again") from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"{path} is damaged or of another version ({where}: {first['msg']}): "
            "prepare the data again"
        ) from None
    for shard in manifest.shards:
        have = _size(folder / shard.file)
        if have != shard.num_bytes:
            raise ValueError(
                f"shard {folder / shard.file} "
                + ("is missing" if have is None else f"has {have} bytes, not {shard.num_bytes}")
                + ": prepare the data again"
            )
    return manifest


def read_row_group(folder: Path, file: str, row_group: int) -> pa.Table:
    """One row group of a shard, all columns. Page checksums are compared on the way.

    Raises: ValueError if the file is missing, damaged or has no such row group.
    """
    path = folder / file
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as reader:
            if not 0 <= row_group < reader.num_row_groups:
                raise ValueError(f"shard {path} has {reader.num_row_groups} row groups")
            table = reader.read_row_group(row_group, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"shard {path}, row group {row_group} cannot be read ({reason}): prepare the data again"
        ) from None
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"shard {path} has other columns: prepare the data again")
    return table


def records_from_table(table: pa.Table) -> list[Record]:
    """Rows as values of their own (no view keeps the table alive).

    Columns are read as values and offsets; Python lists would take 17 times as long.
    """
    ids, heights, widths = (
        table.column(name).to_numpy().tolist() for name in ("image_id", "height", "width")
    )
    boxes, refined = _rows(table, "boxes"), _rows(table, "refined_boxes")
    labels, crowd = _rows(table, "labels"), _rows(table, "crowd")
    points, part_sizes = _rows(table, "polygon_points"), _rows(table, "part_sizes")
    parts = _rows(table, "parts_per_object")
    return [
        Record(
            image_id=ids[i],
            jpeg=jpeg.as_py(),
            height=heights[i],
            width=widths[i],
            boxes=boxes[i].reshape(-1, 4),
            refined_boxes=refined[i].reshape(-1, 4),
            labels=labels[i].astype(np.int64),
            crowd=crowd[i],
            polygons=Polygons(points[i].reshape(-1, 2), part_sizes[i], parts[i]),
        )
        for i, jpeg in enumerate(table.column("jpeg"))
    ]


def table_from_records(records: Sequence[Record]) -> pa.Table:
    """Rows of a shard; the inverse of `records_from_table`."""
    polygons = [r.polygons for r in records]
    columns = {
        "image_id": pa.array([r.image_id for r in records], pa.int64()),
        "jpeg": pa.array([r.jpeg for r in records], pa.large_binary()),
        "height": pa.array([r.height for r in records], pa.int32()),
        "width": pa.array([r.width for r in records], pa.int32()),
        "boxes": _ragged([r.boxes for r in records], np.float32),
        "refined_boxes": _ragged([r.refined_boxes for r in records], np.float32),
        "labels": _ragged([r.labels for r in records], np.int32),
        "crowd": _ragged([r.crowd for r in records], bool),
        "polygon_points": _ragged([p.points for p in polygons], np.float32),
        "part_sizes": _ragged([p.part_sizes for p in polygons], np.int32),
        "parts_per_object": _ragged([p.parts_per_object for p in polygons], np.int32),
    }
    return pa.table(columns, schema=SCHEMA)


def open_writer(path: Path) -> pq.ParquetWriter:
    """A writer for one shard: JPEG bytes as they are, statistics on ids only, page checksums."""
    return pq.ParquetWriter(
        path,
        SCHEMA,
        compression="NONE",
        use_dictionary=False,
        write_statistics=["image_id"],
        write_page_checksum=True,
    )


def records_digest(records: Iterable[Record]) -> str:
    """sha256 of the content of a row group: what a reader gets, not how it is stored."""
    digest = hashlib.sha256()
    for r in records:
        digest.update(struct.pack("<qiiq", r.image_id, r.height, r.width, len(r.jpeg)))
        digest.update(r.jpeg)
        for values, kind in (
            (r.boxes, "<f4"),
            (r.refined_boxes, "<f4"),
            (r.labels, "<i4"),
            (r.crowd, "<u1"),
            (r.polygons.points, "<f4"),
            (r.polygons.part_sizes, "<i4"),
            (r.polygons.parts_per_object, "<i4"),
        ):
            digest.update(struct.pack("<q", values.size))
            digest.update(np.ascontiguousarray(values, kind).tobytes())
    return digest.hexdigest()


def dataset_digest(
    group_digests: Sequence[str],
    group_rows: Sequence[int],
    *,
    style: str,
    classes: Sequence[Sequence[str]],
    category_ids: Sequence[int],
) -> str:
    """Hash of a data set from the digests of its row groups, in order, and its vocabulary."""
    assert len(group_digests) == len(group_rows)
    content = {
        "format": FORMAT,
        "style": style,
        "classes": [list(texts) for texts in classes],
        "category_ids": list(category_ids),
        "row_groups": list(zip(group_rows, group_digests, strict=True)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify_dataset(folder: Path) -> Manifest:
    """Read every byte again and compare it with the manifest.

    Raises: ValueError naming all damaged files in one line.
    """
    manifest = load_manifest(folder)
    damaged: list[str] = []
    digests: list[str] = []
    rows: list[int] = []
    if file_sha256(folder / manifest.annotations_file) != manifest.sources["annotations"]:
        damaged.append(manifest.annotations_file)
    for shard in manifest.shards:
        if file_sha256(folder / shard.file) != shard.sha256:
            damaged.append(shard.file)
            continue
        for index in range(len(shard.row_group_rows)):
            records = records_from_table(read_row_group(folder, shard.file, index))
            digests.append(records_digest(records))
            rows.append(len(records))
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(manifest.shards) + 1} files of {folder} are damaged "
            f"({', '.join(damaged[:5])}): remove the folder and prepare the data again"
        )
    found = dataset_digest(
        digests,
        rows,
        style=manifest.style,
        classes=manifest.classes,
        category_ids=manifest.category_ids,
    )
    stated = [n for shard in manifest.shards for n in shard.row_group_rows]
    if found != manifest.dataset_digest or rows != stated:
        raise ValueError(
            f"{folder / MANIFEST_FILE} does not fit its shards (digest {found[:12]}, stated "
            f"{manifest.dataset_digest[:12]}): remove the folder and prepare the data again"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes.

    Raises: ValueError if it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the path") from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _rows(table: pa.Table, name: str) -> list[np.ndarray]:
    """Copies of each row's values of a list column."""
    column = table.column(name).combine_chunks()
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy().tolist()
    return [values[a:b].copy() for a, b in pairwise(offsets)]


def _ragged(rows: Sequence[np.ndarray], kind: type) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int32)
    values = np.concatenate([np.zeros(0, kind), *(row.ravel().astype(kind) for row in rows)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
