"""A driver killed in the middle: the same command continues the run, and then has nothing to do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from yw_ray.recipe import (
    ComputeConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
    TrackingConfig,
)

pytestmark = pytest.mark.e2e


def test_a_killed_run_continues_by_the_same_command_as_one_record(
    world: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        name="killed",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words", num_train_texts=30),
        data=DataConfig(train=str(world / "train"), val=str(world / "val"), image_size=64, lanes=4),
        schedule=ScheduleConfig(
            epochs=8, global_batch=16, close_mosaic_epochs=0, warmup_min_steps=0
        ),
        eval=EvalConfig(every_epochs=9),
        compute=ComputeConfig(workers=0, checkpoint_every_epochs=1),
        tracking=TrackingConfig(storage=str(tmp_path / "runs")),
    )
    program = tmp_path / "experiment.py"
    program.write_text(
        "from yw_ray.jobs.launch import main\nfrom yw_ray.recipe import Recipe\n"
        f"main(Recipe.model_validate_json({recipe.model_dump_json()!r}))\n"
    )
    run_dir = tmp_path / "runs" / "killed"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, program], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while not list(run_dir.glob("checkpoints/epoch_*/manifest.json")):
            assert driver.poll() is None and time.monotonic() < end, log.name
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    again, once_more = (
        subprocess.run([sys.executable, program], capture_output=True, text=True) for _ in range(2)
    )
    assert again.returncode == 0 and "continuing" in again.stdout, again.stderr
    assert once_more.returncode == 0 and "complete already" in once_more.stdout
    events = [json.loads(s) for s in (run_dir / "events.jsonl").read_text().splitlines()]
    starts = [(e["epoch"], e["step"]) for e in events if e["event"] == "start"]
    assert len(starts) == 2 and starts[0] == (0, 0) and starts[1][0] >= 1
    assert (run_dir / "eval" / "epoch_008" / "table.json").exists()
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("yw_ray")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(logged.info.run_id, "train/total")]
    assert max(steps) == 8 * 7
