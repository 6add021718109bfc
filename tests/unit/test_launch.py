"""What a user can get wrong ends in one line, exit code 2, and nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yw_ray.cli import main as cli
from yw_ray.jobs.launch import main, smoke
from yw_ray.recipe import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    TextConfig,
    TrackingConfig,
    with_overrides,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        name="trial",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words"),
        data=DataConfig(train=str(world / "train"), val=str(world / "val"), image_size=64),
        compute=ComputeConfig(workers=0),
        tracking=TrackingConfig(storage=str(tmp_path / "runs")),
    )


def refused(capsys: pytest.CaptureFixture[str], call: Any, *args: Any) -> str:
    """Run a command that must end with code 2 and one line; returns the line."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), printed
    assert "Traceback" not in printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--optim.baselr", "1"], ["--optim.baselr", "did you mean --optim.base-lr"]),
        (["--optim.base-lr", "abc"], ["--optim.base-lr", "'abc'"]),
        (["--optim.base-lr", "-1"], ["base_lr", "greater than 0"]),
        (["--freeze", "sideways"], ["'sideways'", "backbone_neck"]),
        (["--compute.workers", "3"], ["workers 3", "lanes 8", "[1, 2, 4, 8]"]),
        (["--augment.scale", "3", "1"], ["augment.scale", "low <= high"]),
        (["--data.image-size", "100"], ["image_size", "multiple of 32"]),
        (["--freeze", "all_but_seg_head"], ["needs model.segmentation"]),
        (["--data.train", "/nowhere/at/all"], ["/nowhere/at/all", "yw-ray prepare"]),
        (["--init-from", "/nowhere.pth"], ["/nowhere.pth does not exist", "--init-from"]),
        (["--tracking.uri", "file:///tmp/x"], ["file:"]),
        (["--tracking.storage", "/dev/null/runs"], ["tracking.storage", "cannot be written"]),
        (["--eval.style", "lvis"], ["prepared as coco"]),
        (["--name", "a/b"], ["plain folder name"]),
    ],
)
def test_a_bad_override_is_one_line(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    words: list[str],
) -> None:
    line = refused(capsys, main, recipe, args)
    for word in words:
        assert word in line
    assert not (Path(recipe.tracking.storage) / recipe.name).exists()


def test_weights_that_do_not_fit_stop_the_run_before_it_starts_and_fitting_ones_are_told(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from yw_ray.data.shards import load_manifest
    from yw_ray.data.vocabulary import Vocabulary
    from yw_ray.jobs.build import check_weights
    from yw_ray.models.yolo_world import build_model
    from yw_ray.weights.official import export_official

    path = tmp_path / "official.pth"
    torch.save({"state_dict": export_official(build_model(ModelConfig(size="n")))}, path)
    vocabulary = Vocabulary.from_classes(load_manifest(Path(recipe.data.train)).classes)
    started = with_overrides(recipe, {"init_from": str(path), "model.segmentation": True})
    told = check_weights(started, vocabulary)
    assert "tensors loaded" in told and "segmentation tensors left at their initial values" in told
    folded = {"model.prompts": "reparam", "model.num_prompts": 30, "init_from": str(path)}
    assert "tensors loaded" in check_weights(with_overrides(recipe, folded), vocabulary)
    line = refused(capsys, main, recipe, ["--model.size", "s", "--init-from", str(path)])
    assert "do not fit" in line and "backbone.image_model.stem" in line
    assert not (Path(recipe.tracking.storage) / recipe.name).exists()


def test_a_gpu_that_is_not_there_is_said(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from yw_ray.jobs.train import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU"):
        train(with_overrides(recipe, {"compute.device": "cuda"}), Path("unused"))


def test_a_folder_of_something_else_is_left_alone(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(recipe.tracking.storage) / recipe.name
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    assert "choose another --name" in refused(capsys, main, recipe, [])
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_a_run_of_another_recipe_or_data_is_refused_with_both_values(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    from yw_ray.data.shards import load_manifest
    from yw_ray.jobs.run import _open_folder

    train, val = load_manifest(Path(recipe.data.train)), load_manifest(Path(recipe.data.val))
    folder = Path(recipe.tracking.storage) / recipe.name
    _open_folder(recipe, folder, train, val)
    assert "optim.base_lr=0.0002, now 0.001" in refused(
        capsys, main, recipe, ["--optim.base-lr", "1e-3"]
    )
    line = refused(capsys, main, recipe, ["--data.train", recipe.data.val])
    assert train.dataset_digest[:12] in line and val.dataset_digest[:12] in line


def test_smoke_shrinks_data_and_length_but_not_the_architecture(recipe: Recipe) -> None:
    small = smoke(with_overrides(recipe, {"model.size": "l"}))
    assert small.model.size == "l" and small.schedule.epochs == 2
    assert small.data.image_size < 640 and small.data.max_train_images == 64
    assert small.published == {}


def test_help_config_and_dry_run_need_no_data(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    for args, words in (
        (["--help"], ["--optim.base-lr", "Peak rate"]),
        (["--print-config", "--seed", "3"], ['"seed": 3']),
        (["--dry-run", "--data.train", "/nowhere"], ["parameters", "no prepared data"]),
        (["--dry-run"], ["100 images: 1 steps an epoch, 80 in all; 28 repeated"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(recipe, args)
        out = capsys.readouterr().out
        assert stop.value.code == 0
        for word in words:
            assert word in out, out


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_every_experiment_dry_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, path, "--print-config"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["name"] == path.stem


@pytest.mark.parametrize("name", ["coco_v2_s", "coco_v2_m", "coco_v2_l", "coco_v2_x"])
def test_the_published_figures_stand_in_the_experiment_and_go_with_a_change(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for args, kept in (([], True), (["--optim.base-lr", "1e-4"], False)):
        with pytest.raises(SystemExit):
            main(module.recipe, [*args, "--print-config"])
        published = json.loads(capsys.readouterr().out)["published"]
        assert bool(published.get("bbox/AP")) is kept


def _coco(folder: Path, **change: Any) -> list[str]:
    tree: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    tree.update(change)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))
    return [
        "prepare", "coco", "--images", str(folder / "images"),
        "--annotations", str(folder / "a.json"), "--out", str(folder / "out"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": []}, ["no images"]),
        ({"annotations": None}, ["annotations"]),
        ({"categories": [{"id": 1}]}, ["name"]),
        ({"categories": [{"id": 1, "name": ""}]}, ["name"]),
        ({}, ["a.jpg"]),
    ],
)
def test_bad_annotations_or_missing_pictures_stop_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: list[str]
) -> None:
    line = refused(capsys, cli, _coco(tmp_path, **change))
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_bad_commands_files_and_folders_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.json").write_text("{not json")
    good = _coco(tmp_path)
    for args, word in (
        (["prepair", "coco"], "prepare coco"),
        (["score", "--gt", "/nowhere.json", "--dt", "/nowhere.json"], "/nowhere.json"),
        (["score", "--gt", str(tmp_path / "a.json")], "--dt"),
        (["ui", "--storage", str(tmp_path)], "mlflow.db"),
        (["verify", str(tmp_path)], "manifest"),
        (["evaluate", str(tmp_path)], "manifest"),
        ([*good[:3], "/nowhere", *good[4:]], "/nowhere"),
        ([*good[:5], str(tmp_path / "b.json"), *good[6:]], "b.json"),
    ):
        assert word in refused(capsys, cli, args)
