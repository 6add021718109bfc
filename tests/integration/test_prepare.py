"""Prepare on a local Ray: whole, repeatable, and nothing half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from yw_ray.data.shards import load_manifest, verify_dataset
from yw_ray.data.synth import write_world
from yw_ray.jobs.prepare import prepare_coco, prepare_lvis, prepare_synth

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "world"
    write_world(folder, num_train=150, num_val=70, image_size=64, seed=0)
    return folder


def _train(raw: Path, out: Path, **change: Any) -> Any:
    options: dict[str, Any] = {"split": "train", "rows_per_file": 64, **change}
    return prepare_coco(raw / "train", raw / "annotations" / "train.json", out, **options)


def test_a_world_becomes_verified_shards_of_base_and_all_classes(tmp_path: Path) -> None:
    train, val = prepare_synth(tmp_path, num_train=130, num_val=40, image_size=64, rows_per_file=64)
    assert verify_dataset(tmp_path / "train") == train
    assert verify_dataset(tmp_path / "val") == val
    assert (train.num_images, val.num_images) == (130, 40)
    assert [shard.rows for shard in train.shards] == [64, 64, 2]
    assert (len(train.classes), len(val.classes)) == (30, 36)


def test_the_digest_does_not_depend_on_folder_or_number_of_tasks(raw: Path, tmp_path: Path) -> None:
    a = _train(raw, tmp_path / "a")
    b = _train(raw, tmp_path / "b", rows_per_file=2048)
    assert (len(a.shards), len(b.shards)) == (3, 1)
    assert a.dataset_digest == b.dataset_digest


def test_running_again_does_nothing_and_other_options_are_refused(
    raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = _train(raw, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert _train(raw, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="seed 0, asked for 1"):
        _train(raw, out, seed=1)
    with pytest.raises(ValueError, match="another annotation file"):
        prepare_coco(
            raw / "val",
            raw / "annotations" / "val.json",
            out,
            split="train",
            rows_per_file=64,
        )
    assert load_manifest(out) == first


def test_lvis_base_leaves_the_rare_classes_out(raw: Path, tmp_path: Path) -> None:
    annotations = raw / "annotations" / "lvis_val.json"
    base = prepare_lvis(raw, annotations, tmp_path / "base", split="train", base=True)
    full = prepare_lvis(raw, annotations, tmp_path / "full", split="val")
    assert (len(base.classes), len(full.classes)) == (30, 36)
    assert base.num_objects < full.num_objects
    assert full.num_images == 70 > base.num_images
    source = json.loads(annotations.read_text())
    assert json.loads((tmp_path / "base" / base.annotations_file).read_text()) == source


def test_missing_and_bad_pictures_stop_before_anything_is_left_behind(
    raw: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "raw"
    shutil.copytree(raw, copied)
    pictures = sorted((copied / "train").iterdir())
    pictures[0].write_bytes(b"no picture")
    assert [bad.path for bad in _train(copied, tmp_path / "one bad").quarantine] == [
        pictures[0].name
    ]
    for picture in pictures[1:3]:
        picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"[23] images cannot be used, 1 of 150 may be"):
        _train(copied, tmp_path / "three bad")
    assert len(_train(copied, tmp_path / "allowed", max_bad_share=0.02).quarantine) == 3
    pictures[5].unlink()
    with pytest.raises(ValueError, match=f"1 of 150 images .*{pictures[5].name}"):
        _train(copied, tmp_path / "missing")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"raw", "one bad", "allowed"}
