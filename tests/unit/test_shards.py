"""Shards: what goes in comes out, damage is found, and nothing unfinished looks finished."""

import dataclasses
import errno
import json
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yw_ray.data.annotations import AnnotationSet, load_json, parse_annotations
from yw_ray.data.folders import publishing
from yw_ray.data.shard_writer import (
    Options,
    missing_images,
    read_image,
    shard_tasks,
    write_manifest,
    write_shard,
)
from yw_ray.data.shards import (
    Manifest,
    file_sha256,
    load_manifest,
    read_row_group,
    records_digest,
    records_from_table,
    table_from_records,
    verify_dataset,
)
from yw_ray.data.synth import WorldConfig, write_world

OPTIONS = Options(split="train", style="coco", base=False, seed=0, rows_per_file=128)
CONFIG = WorldConfig(crowd_share=0.2, split_share=0.2, empty_share=0.1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "world"
    write_world(folder, num_train=200, num_val=1, image_size=64, seed=0, config=CONFIG)
    return folder


def _parsed(raw: Path) -> AnnotationSet:
    return parse_annotations(load_json(raw / "annotations" / "train.json"))


def _prepare(raw: Path, out: Path, options: Options = OPTIONS) -> Manifest:
    out.mkdir(parents=True)
    parsed = _parsed(raw)
    results = [write_shard(t, raw / "train", out) for t in shard_tasks(parsed.images, options)]
    source = raw / "annotations" / "train.json"
    shutil.copyfile(source, out / "annotations.json")
    return write_manifest(out, results, parsed, options, {"annotations": file_sha256(source)})


@pytest.fixture
def prepared(raw: Path, tmp_path: Path) -> Path:
    _prepare(raw, tmp_path / "train")
    return tmp_path / "train"


def test_rows_come_back_as_they_went_in(raw: Path, prepared: Path) -> None:
    manifest = load_manifest(prepared)
    expected = {image.image_id: image for image in _parsed(raw).images}
    assert [shard.row_group_rows for shard in manifest.shards] == [[64, 64], [64, 8]]
    seen = []
    for shard in manifest.shards:
        for index, rows in enumerate(shard.row_group_rows):
            records = records_from_table(read_row_group(prepared, shard.file, index))
            assert len(records) == rows
            for record in records:
                source = expected[record.image_id]
                seen.append(record.image_id)
                assert record.jpeg == (raw / "train" / source.path).read_bytes()
                assert (record.height, record.width) == (64, 64)
                assert record.labels.dtype == np.int64 and record.crowd.dtype == bool
                assert record.boxes.dtype == record.refined_boxes.dtype == np.float32
                for name in ("boxes", "labels", "crowd"):
                    np.testing.assert_array_equal(getattr(record, name), getattr(source, name))
                for field in dataclasses.fields(source.polygons):
                    mine = getattr(record.polygons, field.name)
                    theirs = getattr(source.polygons, field.name)
                    assert mine.dtype == theirs.dtype
                    np.testing.assert_array_equal(mine, theirs)
    assert sorted(seen) == sorted(expected)
    assert seen != sorted(seen), "rows are shuffled"


def test_refined_boxes_are_the_polygons_extremes_and_nan_without_polygon(prepared: Path) -> None:
    kinds = set()
    for record in records_from_table(read_row_group(prepared, "00000.parquet", 0)):
        for i, number in enumerate(record.polygons.parts_per_object):
            kinds.add(int(number))
            if number:
                np.testing.assert_allclose(record.refined_boxes[i], record.boxes[i], atol=0.011)
            else:
                assert np.isnan(record.refined_boxes[i]).all() and record.crowd[i]
    assert kinds == {0, 1, 2}


def test_slices_and_joined_row_groups_read_like_their_parts(prepared: Path) -> None:
    tables = [read_row_group(prepared, "00000.parquet", i) for i in (0, 1)]
    parts = records_from_table(tables[0])[10:] + records_from_table(tables[1])
    joined = records_from_table(pa.concat_tables(tables).slice(10))
    assert len(joined) == len(parts) == 118
    for a, b in zip(joined, parts, strict=True):
        assert (a.image_id, a.jpeg) == (b.image_id, b.jpeg)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.polygons.points, b.polygons.points)
    assert records_from_table(tables[0].slice(0, 0)) == []
    again = records_from_table(table_from_records(parts[-64:]))
    assert records_digest(again) == records_digest(records_from_table(tables[1]))


def test_jpeg_bytes_are_stored_uncompressed_without_dictionary(prepared: Path) -> None:
    metadata = pq.ParquetFile(prepared / "00000.parquet").metadata
    column = metadata.row_group(0).column(1)
    assert column.path_in_schema == "jpeg"
    assert column.compression == "UNCOMPRESSED"
    assert not column.has_dictionary_page


def test_digest_depends_on_content_and_order_only(raw: Path, tmp_path: Path) -> None:
    manifests = [
        _prepare(raw, tmp_path / name / "deep", dataclasses.replace(OPTIONS, **change))
        for name, change in (
            ("a", {}),
            ("b", {}),
            ("one file", {"rows_per_file": 2048}),
            ("other order", {"seed": 1}),
        )
    ]
    digests = [manifest.dataset_digest for manifest in manifests]
    assert digests[0] == digests[1] == digests[2] != digests[3]
    assert manifests[0] == manifests[1], "the same inputs give the same files"


def test_bad_pictures_are_set_aside_with_their_reason(raw: Path, tmp_path: Path) -> None:
    copied = tmp_path / "raw"
    shutil.copytree(raw, copied)
    names = [image.path for image in _parsed(raw).images[:4]]
    pictures = [copied / "train" / name for name in names]
    whole = pictures[0].read_bytes()
    pictures[0].write_bytes(whole[: len(whole) * 2 // 3])
    pictures[1].write_bytes(b"")
    pictures[2].write_bytes(b"GIF89a, or so it says")
    cv2.imwrite(str(pictures[3]), np.zeros((32, 64, 3), np.uint8))
    manifest = _prepare(copied, tmp_path / "out")
    reasons = {bad.path: bad.reason for bad in manifest.quarantine}
    assert sorted(reasons) == sorted(names)
    assert "truncated" in reasons[names[0]]
    assert "empty" in reasons[names[1]]
    assert "no picture" in reasons[names[2]]
    assert "64x32" in reasons[names[3]] and "64x64" in reasons[names[3]]
    assert manifest.num_images == 196
    assert sum(shard.rows for shard in manifest.shards) == 196
    verify_dataset(tmp_path / "out")


def test_five_hundred_damaged_pictures_cause_no_traceback(raw: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = next((raw / "train").iterdir()).read_bytes()
    path = tmp_path / "damaged.jpg"
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.integers(1, 20)):
            data[rng.integers(len(data) if rng.random() < 0.5 else 700)] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        try:
            read_image(path, 64, 64)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_a_picture_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    done, data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    assert done
    raw = bytearray(data.tobytes())
    raw[16:24] = (60_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(raw)
    with pytest.raises(ValueError, match="60000"):
        read_image(tmp_path / "bomb.png", 60_000, 60_000)


def test_every_flipped_bit_is_found(prepared: Path) -> None:
    verify_dataset(prepared)
    rng = np.random.default_rng(0)
    shard = prepared / "00001.parquet"
    whole = shard.read_bytes()
    for _ in range(20):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(data)
        with pytest.raises(ValueError, match=r"00001\.parquet"):
            verify_dataset(prepared)
    shard.write_bytes(whole)
    source = prepared / "annotations.json"
    source.write_text(source.read_text().replace("red", "rad", 1))
    with pytest.raises(ValueError, match=r"annotations\.json"):
        verify_dataset(prepared)


def test_a_flipped_picture_bit_is_found_when_the_row_group_is_read(prepared: Path) -> None:
    shard = prepared / "00000.parquet"
    jpeg = records_from_table(read_row_group(prepared, shard.name, 1))[5].jpeg
    data = bytearray(shard.read_bytes())
    data[data.index(jpeg) + len(jpeg) // 2] ^= 4
    shard.write_bytes(data)
    read_row_group(prepared, shard.name, 0)
    with pytest.raises(ValueError, match="row group 1 cannot be read") as caught:
        read_row_group(prepared, shard.name, 1)
    assert "\n" not in str(caught.value)


def test_a_changed_vocabulary_in_the_manifest_is_found(prepared: Path) -> None:
    path = prepared / "manifest.json"
    content = json.loads(path.read_text())
    content["classes"][0], content["classes"][1] = content["classes"][1], content["classes"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not fit its shards"):
        verify_dataset(prepared)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "cannot read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "00001.parquet").unlink(), "is missing"),
        (lambda folder: (folder / "00001.parquet").write_bytes(b"x"), "has 1 bytes"),
    ],
)
def test_unfinished_folders_are_refused_in_one_line(prepared: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    damage(prepared)
    with pytest.raises(ValueError, match=said) as caught:
        load_manifest(prepared)
    assert "\n" not in str(caught.value)


def test_a_manifest_cannot_point_out_of_its_folder(prepared: Path) -> None:
    path = prepared / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = "../elsewhere.parquet"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="plain file name"):
        load_manifest(prepared)


def test_a_task_run_twice_writes_the_same_file(raw: Path, tmp_path: Path) -> None:
    task = shard_tasks(_parsed(raw).images, OPTIONS)[0]
    assert write_shard(task, raw / "train", tmp_path) == write_shard(task, raw / "train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.parquet"]


def test_missing_pictures_are_listed(raw: Path) -> None:
    wanted = [image.path for image in _parsed(raw).images[:2]]
    assert missing_images(raw / "train", wanted) == []
    assert missing_images(raw / "train", [*wanted, "none.jpg", "no/x.jpg"]) == [
        "none.jpg",
        "no/x.jpg",
    ]
    with pytest.raises(ValueError, match="does not exist"):
        missing_images(raw / "nowhere", wanted)


def test_a_failed_run_leaves_nothing_and_a_killed_one_is_cleaned_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), publishing(out) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / ".out.partial-12345678"
    killed.mkdir()
    (killed / "half").write_text("x")
    with publishing(out) as folder:
        assert not killed.exists() and list(folder.iterdir()) == []
        (folder / "whole").write_text("x")
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_two_writers_of_one_folder_and_foreign_content_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with publishing(out):
        with pytest.raises(ValueError, match="another process is writing"), publishing(out):
            pass
    (out / "letter").write_text("mine")
    with pytest.raises(ValueError, match="already holds something else"), publishing(out):
        pass


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="No space left"), publishing(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise full
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file"), publishing(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("change", [{"rows_per_file": 100}, {"rows_per_file": 0}, {"seed": -1}])
def test_options_that_make_no_sense_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(OPTIONS, **change)
