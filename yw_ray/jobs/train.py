"""Train: Recipe -> Ray Train -> a finished run folder.

Place in the flow: called by `jobs/launch.py`, `jobs/quickstart.py` and each trial of a sweep. With
`compute.workers=0` the same worker runs in this process.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from yw_ray.jobs.cluster import ensure_ray, wait_for_resources
from yw_ray.recipe import Recipe


def train(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    """Run the recipe's training to its end.

    Returns: rank 0's summary.
    Raises: ValueError for a cluster that stays too small; RuntimeError with the worker's own
    message when training failed for good.
    """
    if recipe.compute.workers == 0:
        return _train_here(recipe, run_dir)
    return _train_on_ray(recipe, run_dir)


def needed_resources(recipe: Recipe) -> dict[str, float]:
    """Logical resources of a run: its workers and the CPUs kept for the stream."""
    compute = recipe.compute
    needed = {"CPU": compute.workers * compute.cpus_per_worker + compute.data_cpus}
    if compute.device == "cuda":
        needed["GPU"] = compute.workers
    return needed


def start_cluster(recipe: Recipe) -> None:
    """Attach or start Ray and wait until the recipe fits.

    Raises: ValueError for a cluster that stays too small.
    """
    needed = needed_resources(recipe)
    local = ensure_ray(int(-(-needed["CPU"] // 1)))
    wait_for_resources(needed, 0 if local else recipe.compute.cluster_wait_s)


def _train_here(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    import torch

    from yw_ray.jobs.place import Place
    from yw_ray.jobs.worker import train_worker

    use_gpu = recipe.compute.device != "cpu" and torch.cuda.is_available()
    if recipe.compute.device == "cuda" and not use_gpu:
        raise ValueError(
            "compute.device is cuda, but torch finds no GPU here; set --compute.device cpu, or "
            "train on a cluster with --compute.workers 1 or more"
        )
    return train_worker(recipe, run_dir, Place(device=torch.device("cuda" if use_gpu else "cpu")))


def _train_on_ray(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    start_cluster(recipe)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    compute = recipe.compute
    use_gpu = compute.device == "cuda" or (
        compute.device == "auto" and ray.cluster_resources().get("GPU", 0) >= compute.workers
    )
    per_worker: dict[str, float] = {"CPU": compute.cpus_per_worker}
    if use_gpu:
        per_worker["GPU"] = 1
    trainer = TorchTrainer(
        _worker_main,  # type: ignore[arg-type]  # what it returns arrives as return_value
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "run_dir": str(run_dir)},
        scaling_config=ScalingConfig(
            num_workers=compute.workers, use_gpu=use_gpu, resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            # Ray keeps no state of ours: a new attempt finds our own last complete checkpoint
            name=f"attempt_{_attempts(run_dir):03d}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(_cause(error)) from error
    summary = getattr(result, "return_value", None)
    assert isinstance(summary, dict)
    return summary


def _worker_main(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in each worker process."""
    import ray.train
    from ray.train.torch import get_device

    from yw_ray.jobs.place import Place
    from yw_ray.jobs.stream import ray_samples, ray_windows
    from yw_ray.jobs.worker import train_worker

    recipe = Recipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    world = context.get_world_size()
    share = max(recipe.compute.data_cpus / world, 0.01)
    make_samples = None
    if recipe.data.augment_on == "cluster":
        make_samples = partial(
            ray_samples, cpus=share, cache_bytes=recipe.compute.decoded_cache_mb * 2**20
        )
    place = Place(
        rank=context.get_world_rank(),
        world=world,
        device=get_device(),
        read=partial(ray_windows, cpus=share),
        make_samples=make_samples,
        report=ray.train.report,
    )
    return train_worker(recipe, Path(config["run_dir"]), place)


def _attempts(run_dir: Path) -> int:
    folder = run_dir / "ray"
    return sum(1 for _ in folder.glob("attempt_*")) if folder.exists() else 0


def _cause(error: BaseException) -> str:
    """The worker's own last line of a failed run."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in failures.items():
        text = str(failure).strip().splitlines()
        if text:
            return f"worker {rank}: {text[-1]}"
    text = str(error).strip().splitlines()
    return text[-1] if text else type(error).__name__
