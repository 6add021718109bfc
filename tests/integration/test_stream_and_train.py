"""The stream and the training run on a local Ray: same order, same samples, one record."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from yw_ray.data.feed import SampleMaker, ordered_samples, plan_for
from yw_ray.data.sample import Sample
from yw_ray.data.shards import load_manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.data.windows import read_windows
from yw_ray.jobs.cluster import ensure_ray, wait_for_resources
from yw_ray.recipe import (
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
    TrackingConfig,
    with_overrides,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    return Recipe(
        name="tiny",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words", num_train_texts=30),
        data=DataConfig(
            train=str(world / "train"),
            val=str(world / "val"),
            image_size=64,
            lanes=4,
            window_rows=16,
        ),
        augment=AugmentConfig(mixup=0.5),
        schedule=ScheduleConfig(
            epochs=2, global_batch=16, close_mosaic_epochs=0, warmup_min_steps=0
        ),
        eval=EvalConfig(every_epochs=1),
        compute=ComputeConfig(workers=2, augment_threads=1, checkpoint_every_epochs=1),
        tracking=TrackingConfig(storage=str(tmp_path / "runs")),
    )


def _equal(a: Sample, b: Sample) -> bool:
    return (
        a.image_id == b.image_id
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.text_ids, b.text_ids)
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ray_reads_the_windows_of_the_plan_in_order(recipe: Recipe, world_size: int) -> None:
    from yw_ray.jobs.stream import ray_windows

    ensure_ray()
    folder = Path(recipe.data.train)
    plan = plan_for(recipe, load_manifest(folder))
    wanted = plan.worker_windows(1, world_size - 1, world_size, first_step=2)
    by_ray = list(ray_windows(folder, wanted, cpus=1))
    here = list(read_windows(folder, wanted))
    assert [(w, s) for w, s, _ in by_ray] == [(w, s) for w, s, _ in here]
    for (_, _, a), (_, _, b) in zip(by_ray, here, strict=True):
        assert [r.jpeg for r in a] == [r.jpeg for r in b]


def test_samples_made_by_ray_tasks_equal_those_of_worker_threads_bit_for_bit(
    recipe: Recipe,
) -> None:
    from yw_ray.jobs.stream import ray_samples

    ensure_ray()
    folder = Path(recipe.data.train)
    manifest = load_manifest(folder)
    plan = plan_for(recipe, manifest)
    make = SampleMaker(recipe, plan, Vocabulary.from_classes(manifest.classes))
    lanes = [lane for s in range(plan.steps_per_epoch) for lane in plan.worker_lanes(1, 2, s)]
    wanted = plan.worker_windows(0, 1, 2)
    here = ordered_samples(
        read_windows(folder, wanted), lanes, make, threads=3, cache_bytes=2**18, ahead=8
    )
    there = ray_samples(folder, wanted, lanes, make, cpus=1, cache_bytes=2**24)
    for a, b in zip(here, there, strict=True):
        assert _equal(a, b)


def test_a_killed_driver_continues_by_the_same_command(recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_overrides(
        recipe, {"name": "killed", "schedule.epochs": 3, "eval.every_epochs": 9}
    )
    program = tmp_path / "experiment.py"
    program.write_text(
        "from yw_ray.jobs.launch import main\nfrom yw_ray.recipe import Recipe\n"
        f"main(Recipe.model_validate_json({recipe.model_dump_json()!r}))\n"
    )
    run_dir = Path(recipe.tracking.storage) / "killed"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, program], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while not list(run_dir.glob("checkpoints/epoch_*/manifest.json")):
            assert driver.poll() is None and time.monotonic() < end, log.name
            time.sleep(0.1)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    done = subprocess.run(  # on other hardware: in one process
        [sys.executable, program, "--compute.workers", "0"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    events = [json.loads(s) for s in (run_dir / "events.jsonl").read_text().splitlines()]
    starts = [e for e in events if e["event"] == "start"]
    assert len(starts) >= 2 and starts[0]["epoch"] == 0 and starts[-1]["epoch"] >= 1
    assert (run_dir / "eval" / "epoch_003" / "table.json").exists()


def test_a_cluster_that_stays_too_small_is_named_with_what_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ensure_ray()
    with pytest.raises(ValueError, match=r"needs 1000 CPU \(cluster has 4\)"):
        wait_for_resources({"CPU": 1000}, wait_s=1)
    assert "waiting up to 1 s for 1000 CPU" in capsys.readouterr().out
