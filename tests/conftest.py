"""Options and fixtures shared by all tests."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        default=str(GOLDEN),
        help="folder of recorded reference numbers (same layout as tests/golden)",
    )


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> Path:
    """Folder of recorded reference numbers."""
    return Path(request.config.getoption("--goldens"))


RAY_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class RayCluster:
    address: str
    dashboard: str
    pid: int


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A head with four logical CPUs; this process and its children attach to it."""
    os.environ.update(RAY_ENV)
    # a job's `python` is the head's: the one that runs the tests
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    port, dashboard, agent = (_free_port() for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="yw", dir="/tmp", ignore_cleanup_errors=True) as temp:
        ray_program = Path(sys.executable).with_name("ray")
        log = Path(temp) / "head.log"
        with log.open("w") as out:
            head = subprocess.Popen(
                [
                    ray_program, "start", "--head", "--block", "--num-cpus=4",
                    "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={temp}",
                    "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                    f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true",
                    "--object-store-memory=300000000", "--disable-usage-stats",
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        address = f"127.0.0.1:{port}"
        try:
            _wait_for(port, head, log)
            os.environ["RAY_ADDRESS"] = address
            yield RayCluster(address, f"http://127.0.0.1:{dashboard}", head.pid)
        finally:
            os.environ.pop("RAY_ADDRESS", None)
            _stop(head)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated world, prepared: `raw`, `train` (100 pictures), `val` (40)."""
    from yw_ray.data.annotations import load_json, parse_annotations
    from yw_ray.data.shard_writer import Options, shard_tasks, write_manifest, write_shard
    from yw_ray.data.shards import file_sha256
    from yw_ray.data.synth import write_world

    root = tmp_path_factory.mktemp("world")
    write_world(root / "raw", num_train=100, num_val=40, image_size=64, seed=3)
    for split in ("train", "val"):
        source = root / "raw" / "annotations" / f"{split}.json"
        parsed = parse_annotations(load_json(source))
        options = Options(split=split, style="coco", base=False, seed=0, rows_per_file=64)
        out = root / split
        out.mkdir()
        (out / "annotations.json").write_bytes(source.read_bytes())
        results = [
            write_shard(task, root / "raw" / split, out)
            for task in shard_tasks(parsed.images, options)
        ]
        sources = {"annotations": file_sha256(source), "images": "generated"}
        write_manifest(out, results, parsed, options, sources)
    return root


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, head: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert head.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.3)
    raise AssertionError(f"ray start took more than {seconds} s:\n{log.read_text()}")


def _stop(head: subprocess.Popen) -> None:
    """End the head and what it started, nothing else."""
    import ray

    ray.shutdown()
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
