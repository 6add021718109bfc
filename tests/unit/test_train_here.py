"""Training in this process: the whole chain without Ray, interrupted and continued exactly."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from yw_ray.data.feed import SampleMaker, ordered_samples, plan_for, step_batches
from yw_ray.data.shards import load_manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.data.windows import read_windows
from yw_ray.jobs import worker
from yw_ray.jobs.place import Place
from yw_ray.jobs.worker import train_worker
from yw_ray.recipe import (
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
    with_overrides,
)
from yw_ray.training.checkpoint import latest_checkpoint, load_checkpoint


@pytest.fixture
def recipe(world: Path) -> Recipe:
    return Recipe(
        name="here",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words", num_train_texts=30),
        data=DataConfig(
            train=str(world / "train"),
            val=str(world / "val"),
            image_size=64,
            lanes=2,
            window_rows=16,
            max_train_images=32,
            max_val_images=8,
        ),
        augment=AugmentConfig(mixup=0.3),
        optim=OptimConfig(base_lr=1e-3),
        schedule=ScheduleConfig(
            epochs=3, global_batch=8, close_mosaic_epochs=1, warmup_min_steps=0
        ),
        eval=EvalConfig(every_epochs=2),
        compute=ComputeConfig(workers=0, checkpoint_every_epochs=1, augment_threads=2),
    )


def _hash(value: Any) -> str:
    """Hash of every tensor and number in a nested state."""
    digest = hashlib.sha256()

    def walk(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            digest.update(item.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in item:
                digest.update(str(key).encode())
                walk(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                walk(part)
        else:
            digest.update(repr(item).encode())

    walk(value)
    return digest.hexdigest()


def _final(run_dir: Path) -> dict[str, str]:
    folder = latest_checkpoint(run_dir / "checkpoints")
    assert folder is not None
    state = load_checkpoint(folder)
    assert state["cursor"] == (3, 0)
    return {key: _hash(state[key]) for key in ("model", "ema", "optimizer")}


class Killed(Exception):
    pass


def test_a_run_that_is_stopped_and_continued_is_bit_equal_to_an_undisturbed_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    train_worker(recipe, tmp_path / "whole", Place())
    steps = {"left": 6}
    real = worker.epoch_batches

    def dying(*args: Any) -> Any:
        for batch in real(*args):
            if steps["left"] == 0:
                raise Killed
            steps["left"] -= 1
            yield batch

    monkeypatch.setattr(worker, "epoch_batches", dying)
    with pytest.raises(Killed):
        train_worker(recipe, tmp_path / "broken", Place())
    monkeypatch.setattr(worker, "epoch_batches", real)
    train_worker(recipe, tmp_path / "broken", Place())
    assert _final(tmp_path / "broken") == _final(tmp_path / "whole")
    events = (tmp_path / "broken" / "events.jsonl").read_text().splitlines()
    starts = [json.loads(e) for e in events if json.loads(e)["event"] == "start"]
    assert [(s["epoch"], s["step"]) for s in starts] == [(0, 0), (1, 0)]
    tables = sorted(p.parent.name for p in (tmp_path / "whole").glob("eval/*/table.json"))
    assert tables == ["epoch_000", "epoch_002", "epoch_003"]


def test_a_loss_that_is_not_finite_stops_the_run_with_its_cause(
    recipe: Recipe, tmp_path: Path
) -> None:
    wild = with_overrides(recipe, {"optim.base_lr": 1e30, "schedule.warmup_epochs": 0})
    with pytest.raises(FloatingPointError, match=r"not finite .* lower optim\.base_lr"):
        train_worker(wild, tmp_path / "wild", Place())


@pytest.mark.parametrize("first_step", [0, 3])
def test_workers_share_the_batches_that_one_worker_makes(recipe: Recipe, first_step: int) -> None:
    folder = Path(recipe.data.train)
    manifest = load_manifest(folder)
    plan = plan_for(recipe, manifest)
    make = SampleMaker(recipe, plan, Vocabulary.from_classes(manifest.classes))

    def batches(rank: int, world: int, cache_bytes: int) -> list[Any]:
        lanes = [
            lane
            for step in range(first_step, plan.steps_per_epoch)
            for lane in plan.worker_lanes(rank, world, step)
        ]
        samples = ordered_samples(
            read_windows(folder, plan.worker_windows(1, rank, world, first_step)),
            lanes,
            make,
            threads=3,
            cache_bytes=cache_bytes,
            ahead=5,
        )
        return list(
            step_batches(
                samples, plan, epoch=1, first_step=first_step, rank=rank, world=world, max_images=4
            )
        )

    alone, first, second = batches(0, 1, 2**24), batches(0, 2, 2**24), batches(1, 2, 1)
    for whole, a, b in zip(alone, first, second, strict=True):
        assert len(whole.micro) == 2 and whole.groups == a.groups == 1
        for one, other in zip(whole.micro, (*a.micro, *b.micro), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.text_ids, other.text_ids)
            assert torch.equal(one.image_ids, other.image_ids)
