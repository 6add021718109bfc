"""`ray job submit` of an experiment file against `ray start --head`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UPLOAD_LIMIT = 20 * 2**20


@pytest.mark.integration
@pytest.mark.timeout(420)
def test_an_experiment_runs_as_a_ray_job(ray_cluster, world: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["RAY_API_SERVER_ADDRESS"] = ray_cluster.dashboard
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ray"), "job", "submit", "--working-dir", ".", "--",
            sys.executable, "experiments/coco_v2_s.py", "--smoke",
            "--data.train", str(world / "train"), "--data.val", str(world / "val"),
            "--data.image-size", "64", "--data.max-train-images", "16",
            "--data.max-val-images", "8", "--schedule.epochs", "1",
            "--tracking.storage", str(storage),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after training" in done.stdout
    assert (storage / "coco_v2_s_smoke" / "eval" / "epoch_001" / "table.json").exists()


def test_the_uploaded_directory_is_small() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    ignored = (ROOT / ".rayignore").read_text().split()
    names = [name.decode() for name in tracked if name]
    kept = [n for n in names if not any(n.startswith(p.strip("/")) for p in ignored)]
    assert sum((ROOT / n).stat().st_size for n in kept if (ROOT / n).exists()) < UPLOAD_LIMIT
