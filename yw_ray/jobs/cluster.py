"""Cluster: attach to the Ray cluster named by the environment, or start a small local one.

Place in the flow: before every job. Nothing listens beyond loopback on a local cluster.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

OBJECT_STORE_BYTES = 500_000_000
"""Enough for the open windows of a few local workers; a cluster sizes its own."""


def ensure_ray(num_cpus: int | None = None) -> bool:
    """Connect to Ray once.

    `RAY_ADDRESS` (set inside every Ray job) names a running cluster; without it a local cluster of
    this machine is started, with at least `num_cpus` logical CPUs.

    Returns: whether this call started a local cluster.
    """
    import ray

    if ray.is_initialized():
        return False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
        return False
    # workers beside an ordinary desktop would otherwise get a few per cent of the CPU
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, num_cpus or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return True


def wait_for_resources(needed: Mapping[str, float], wait_s: float) -> None:
    """Wait until the cluster holds what a job needs, saying so at once.

    Raises: ValueError naming what is missing once `wait_s` has passed.
    """
    import ray

    begin, told = time.monotonic(), False
    while True:
        have = ray.cluster_resources()
        missing = {k: v for k, v in needed.items() if have.get(k, 0) < v}
        if not missing:
            return
        what = ", ".join(f"{v:g} {k} (cluster has {have.get(k, 0):g})" for k, v in missing.items())
        if time.monotonic() - begin >= wait_s:
            raise ValueError(
                f"the cluster is too small: needs {what}; add nodes, lower compute.workers, or "
                f"raise compute.cluster_wait_s (now {wait_s:g})"
            )
        if not told:
            print(f"waiting up to {wait_s:g} s for {what}", flush=True)
            told = True
        time.sleep(1.0)
