"""Every command of the README, run as it stands there, in its order."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from yw_ray.data.synth import write_world

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
        if line.strip()
    ]


def make_recipe(target: str) -> list[str]:
    """What `make TARGET` runs, after the environment is made."""
    made = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "venv", target],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the experiments, and a world laid out like COCO."""
    here = tmp_path_factory.mktemp("user")
    (here / "experiments").symlink_to(ROOT / "experiments")
    write_world(here / "world", num_train=32, num_val=16, image_size=64, seed=5)
    (here / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.move(here / "world" / split, here / "coco" / f"{split}2017")
        source = here / "world" / "annotations" / f"{split}.json"
        shutil.copy(source, here / "coco" / "annotations" / f"instances_{split}2017.json")
    truth = json.loads((here / "coco" / "annotations" / "instances_val2017.json").read_text())
    found = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    shutil.copy(here / "coco/annotations/instances_val2017.json", here / "ground_truth.json")
    (here / "detections.json").write_text(json.dumps(found))
    return here


def run(command: str, folder: Path, *more: str) -> str:
    words = shlex.split(command)
    words[0] = words[0].replace(".venv/bin", str(BIN))
    if words[0] == "ray":
        words[0] = str(BIN / "ray")
    begin = time.monotonic()
    done = subprocess.run([*words, *more], cwd=folder, capture_output=True, text=True)
    print(f"{time.monotonic() - begin:6.1f} s  {command}")
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_make_quickstart_learns_within_its_promise(folder: Path, ray_cluster) -> None:
    assert "make quickstart" in commands()
    (line,) = make_recipe("quickstart")
    assert line == ".venv/bin/yw-ray quickstart"
    out = run(line, folder)
    report = json.loads((folder / "runs" / "quickstart" / "result.json").read_text())
    assert report["base"]["AP50"] >= 0.50 and report["base"]["AP"] >= 0.30
    assert report["novel"]["AP50"] >= 0.15 > report["untrained"]["novel"]["AP50"]
    assert report["mlflow_run_id"] and report["images_per_s"] > 0
    assert "stand-in" in out and "images/s" in out and "data wait" in out and "left" in out
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    (run_id,) = [r.info.run_id for r in client.search_runs([_experiment(client)])]
    logged = client.get_run(run_id)
    assert run_id == report["mlflow_run_id"] and logged.info.status == "FINISHED"
    assert logged.data.params["optim.base_lr"] == "0.002"
    assert logged.data.metrics["novel/AP50"] == pytest.approx(report["novel"]["AP50"])
    artifacts = {f.path for f in client.list_artifacts(run_id)}
    assert {"recipe.json", "table.md", "eval", "pictures"} <= artifacts
    assert len(client.list_artifacts(run_id, "pictures")) == 7


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("yw_ray")
    assert found is not None
    return found.experiment_id


def test_make_test_runs_this_suite() -> None:
    assert "make test" in commands()
    assert make_recipe("test")[-1].endswith(".venv/bin/pytest -q --durations=10")


def test_the_interface_serves_the_recorded_run(folder: Path) -> None:
    (command,) = [c for c in commands() if " ui " in c]
    port = 5000
    with subprocess.Popen(
        [BIN / "yw-ray", *shlex.split(command)[1:]], cwd=folder, stdout=subprocess.DEVNULL
    ) as server:
        try:
            end = time.monotonic() + 120
            while True:
                assert server.poll() is None and time.monotonic() < end
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                        assert answer.status == 200
                        break
                except OSError:
                    time.sleep(0.5)
        finally:
            server.send_signal(2)


def test_every_other_command_of_the_readme_runs(folder: Path, ray_cluster, world: Path) -> None:
    for command in commands():
        if command.startswith("make ") or " ui " in command:
            continue
        if command.startswith("ray job submit"):
            submit(command, folder, world, ray_cluster.dashboard)
        elif command.endswith("--smoke"):
            run(command, folder, *SMALL, "--compute.workers", "0")
        else:
            run(command, folder)


SMALL = ("--data.image-size", "64", "--data.max-train-images", "16", "--data.max-val-images", "8")


def submit(command: str, folder: Path, world: Path, dashboard: str) -> None:
    """The job of the README, shrunk: the row itself needs GPUs and the published weights."""
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard
    address = os.environ.pop("RAY_ADDRESS")
    try:
        out = run(
            command.replace("/shared/yw_ray", str(folder / "shared")),
            ROOT,
            *("--smoke", *SMALL, "--name", "job", "--compute.workers", "2"),
            *("--data.train", str(world / "train"), "--data.val", str(world / "val")),
        )
    finally:
        os.environ["RAY_ADDRESS"] = address
    assert "after training" in out
    run_dir = folder / "shared" / "runs" / "job"
    assert (run_dir / "eval" / "epoch_002" / "table.json").exists()
    shares = json.loads((run_dir / "run.json").read_text())
    assert shares["status"] == "complete"
