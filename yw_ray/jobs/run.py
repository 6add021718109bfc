"""Run: one recipe from checks to recorded tables, in the driver.

Place in the flow: `launch.main` and `quickstart` call it; it checks everything a user can get wrong
before a worker is started, opens the MLflow run, trains, and records tables, recipe and pictures.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from yw_ray.data.feed import plan_for
from yw_ray.data.plan import Plan
from yw_ray.data.shards import Manifest, load_manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.evaluation.ap_table import ApTable
from yw_ray.jobs.build import check_weights
from yw_ray.jobs.progress import TrainProgress
from yw_ray.jobs.results import save_pictures, save_tables
from yw_ray.jobs.train import start_cluster, train
from yw_ray.recipe import Recipe, science, to_dotted, with_overrides
from yw_ray.tracking.mlflow_run import TrackedRun, open_run
from yw_ray.tracking.store import resolve_uri

ROOT_VARIABLE = "YW_RAY_ROOT"
"""Environment variable: the folder that relative paths of a recipe start from."""

CLASSES_SHOWN = 20
"""Classes printed; all of them are in `table.md` and in MLflow."""

_WHOLE_VAL = {"coco": 5000, "lvis": 19809}
"""Images of COCO val2017 and LVIS v1 val: on anything else a figure is nobody's row."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    start: table before the first step; final: after the last; trained: False if the run was
    complete before.
    """

    run_dir: Path
    mlflow_run_id: str | None
    start: ApTable
    final: ApTable
    seconds: float
    trained: bool


def run(recipe: Recipe, console: Console | None = None) -> RunResult:
    """Train, evaluate and record a recipe; the same command again continues an unfinished run.

    Raises: ValueError for anything the user can mend, before anything is written or started.
    """
    console = console or Console()
    begin = time.monotonic()
    recipe = absolute_paths(recipe)
    train_set, val_set, plan = check_inputs(recipe)
    run_dir = Path(recipe.tracking.storage) / recipe.name
    state = check_folder(recipe, run_dir, train_set, val_set)
    if state == "complete":
        console.print(f"run {recipe.name} is complete already: {run_dir}")
        return _report(recipe, run_dir, None, begin, console)
    if loaded := check_weights(recipe, Vocabulary.from_classes(train_set.classes)):
        console.print(loaded)
    if recipe.compute.workers:
        start_cluster(recipe)
    _open_folder(recipe, run_dir, train_set, val_set)
    console.print(f"{'continuing' if state == 'unfinished' else 'starting'} {run_dir}")
    # a new store takes seconds to make; the workers start meanwhile
    with ThreadPoolExecutor(1, thread_name_prefix="tracking") as pool:
        tracking = pool.submit(_open_tracking, recipe, run_dir, train_set, val_set)
        status: Any = "FAILED"
        try:
            total = plan.steps_per_epoch * recipe.schedule.epochs
            with TrainProgress(
                run_dir / "metrics.jsonl", total_steps=total, epochs=recipe.schedule.epochs
            ):
                train(recipe, run_dir)
            _record(recipe, run_dir, plan, val_set, tracking.result())
            _set_status(run_dir, "complete")
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if tracking.exception() is None:  # else its own error is on its way
                tracking.result().finish(status)
    return _report(recipe, run_dir, tracking.result(), begin, console)


def absolute_paths(recipe: Recipe) -> Recipe:
    """Paths as every worker can use them; a worker's current folder is not the driver's.

    Relative paths start from `YW_RAY_ROOT`, else from the current folder.
    Raises: ValueError inside a Ray job without it: there the current folder is a copy that goes.
    """
    root = Path(os.environ.get(ROOT_VARIABLE) or Path.cwd())
    changes: dict[str, Any] = {}
    for key in ("data.train", "data.val", "tracking.storage", "init_from"):
        value = to_dotted(recipe)[key]
        if value is None:
            continue
        path = Path(value).expanduser()
        if not path.is_absolute() and "_ray_pkg_" in str(root):
            raise ValueError(
                f"{key}: {value} is relative, and a job's own folder is deleted with it; give an "
                f"absolute path, or set {ROOT_VARIABLE} to a shared folder in the job's "
                'runtime environment ({"env_vars": {...}})'
            )
        changes[key] = str((root / path).resolve())
    return with_overrides(recipe, changes)


def check_inputs(recipe: Recipe) -> tuple[Manifest, Manifest, Plan]:
    """Data, weights and storage of a run.

    Raises: ValueError naming the first thing that is missing and what to do.
    """
    train_set, val_set = (
        load_manifest(Path(recipe.data.train)),
        load_manifest(Path(recipe.data.val)),
    )
    if val_set.style != recipe.eval.style:
        raise ValueError(
            f"eval.style is {recipe.eval.style}, but {recipe.data.val} was prepared as "
            f"{val_set.style}; set --eval.style {val_set.style} or prepare it again"
        )
    plan = plan_for(recipe, train_set)
    if recipe.init_from and not Path(recipe.init_from).exists():
        raise ValueError(
            f"init_from: {recipe.init_from} does not exist; fetch the checkpoint, name another "
            "with --init-from, or start from random weights with --init-from None"
        )
    if recipe.model.prompts != "texts" and recipe.model.num_prompts != len(train_set.classes):
        raise ValueError(
            f"model.num_prompts is {recipe.model.num_prompts}, but the training data has "
            f"{len(train_set.classes)} classes; set --model.num-prompts {len(train_set.classes)}"
        )
    _check_writable(Path(recipe.tracking.storage))
    resolve_uri(recipe.tracking.uri, _artifacts(recipe))
    return train_set, val_set, plan


def check_folder(recipe: Recipe, run_dir: Path, train_set: Manifest, val_set: Manifest) -> str:
    """Whether the run folder is `new`, `unfinished` (same run: continue) or `complete`.

    Raises: ValueError if it belongs to another run, naming the first field that differs.
    """
    identity = run_dir / "run.json"
    if not identity.exists():
        if run_dir.exists() and any(run_dir.iterdir()):
            raise ValueError(
                f"{run_dir} is not empty and holds no run; choose another --name or empty it"
            )
        return "new"
    known = json.loads(identity.read_text())
    wanted = _identity(recipe, train_set, val_set)
    for key in ("train", "val"):
        if known["data"][key] != wanted["data"][key]:
            raise ValueError(
                f"{run_dir} was trained on other {key} data (digest {known['data'][key][:12]}, "
                f"now {wanted['data'][key][:12]}); choose another --name"
            )
    for key in sorted(known["science"].keys() | wanted["science"].keys()):
        before, now = known["science"].get(key), wanted["science"].get(key)
        if before != now:
            raise ValueError(
                f"{run_dir} holds a run with {key}={before}, now {now}; choose another --name, "
                f"or delete that folder to start afresh"
            )
    return "complete" if known["status"] == "complete" else "unfinished"


def _identity(recipe: Recipe, train_set: Manifest, val_set: Manifest) -> dict[str, Any]:
    identity = {
        "data": {"train": train_set.dataset_digest, "val": val_set.dataset_digest},
        "science": science(recipe),
    }
    return json.loads(json.dumps(identity))


def _open_folder(recipe: Recipe, run_dir: Path, train_set: Manifest, val_set: Manifest) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    tree = recipe.model_dump(mode="json")
    _write(run_dir / "recipe.json", tree)
    if not (run_dir / "run.json").exists():
        identity = _identity(recipe, train_set, val_set)
        _write(run_dir / "run.json", {"status": "unfinished", **identity})


def _set_status(run_dir: Path, status: str) -> None:
    known = json.loads((run_dir / "run.json").read_text())
    _write(run_dir / "run.json", {**known, "status": status})


def _write(path: Path, tree: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(tree, indent=1) + "\n")
    partial.replace(path)


def _check_writable(storage: Path) -> None:
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=storage):
            pass
    except OSError as error:
        raise ValueError(
            f"tracking.storage: {storage} cannot be written ({error.strerror}); name a folder "
            "that every node can write with --tracking.storage"
        ) from None


def _open_tracking(
    recipe: Recipe, run_dir: Path, train_set: Manifest, val_set: Manifest
) -> TrackedRun:
    params = to_dotted(recipe.model_copy(update={"published": {}, "notes": ()}))
    places = {key: params.pop(key) for key in ("data.train", "data.val", "tracking.storage")}
    tags = {
        "yw.recipe": recipe.recipe_id or recipe.name,
        "yw.title": recipe.title,
        "yw.dataset": train_set.dataset_digest,
        "yw.val_dataset": val_set.dataset_digest,
        "yw.text_encoder": recipe.text.encoder,
        **{f"yw.{key}": str(value) for key, value in places.items()},
    }
    if job := os.environ.get("RAY_JOB_ID"):
        tags["yw.ray_job"] = job
    tracked = open_run(
        recipe.tracking.uri,
        recipe.tracking.experiment,
        recipe.name,
        params=params,
        tags=tags,
        artifact_root=_artifacts(recipe),
        journal=run_dir / "mlflow",
    )
    tracked.ship_metrics(run_dir / "metrics.jsonl")
    return tracked


def _artifacts(recipe: Recipe) -> Path:
    return Path(recipe.tracking.storage) / "mlartifacts"


def _record(
    recipe: Recipe, run_dir: Path, plan: Plan, val_set: Manifest, tracked: TrackedRun
) -> None:
    """Tables, recipe and pictures, in the run folder and in MLflow."""
    start, final = tables_of(run_dir, recipe)
    tracked.log_table(start, "zero_shot", 0)
    last_step = plan.steps_per_epoch * recipe.schedule.epochs
    tracked.log_table(final, "val", last_step, published=published_of(recipe, val_set))
    tracked.log_artifact(run_dir / "recipe.json")
    tracked.log_artifact(save_tables(run_dir, start, final, published_of(recipe, val_set)))
    for picture in save_pictures(recipe, run_dir, val_set):
        tracked.log_artifact(picture, "pictures")


def published_of(recipe: Recipe, val_set: Manifest) -> dict[str, float]:
    """The row's published figures, where this run is that row: its weights, its whole test set."""
    whole = _WHOLE_VAL[recipe.eval.style] == val_set.num_images
    if not whole or recipe.data.max_val_images or not recipe.init_from:
        return {}
    return recipe.published


def tables_of(run_dir: Path, recipe: Recipe) -> tuple[ApTable, ApTable]:
    """The tables before the first step and after the last epoch."""
    folder = run_dir / "eval"
    last = f"epoch_{recipe.schedule.epochs:03d}"
    return (
        ApTable.from_json(folder / "epoch_000" / "table.json"),
        ApTable.from_json(folder / last / "table.json"),
    )


def _report(
    recipe: Recipe, run_dir: Path, tracked: TrackedRun | None, begin: float, console: Console
) -> RunResult:
    start, final = tables_of(run_dir, recipe)
    console.print(start.rich_table(title=f"{recipe.name}: before training"))
    console.print(final.rich_table(title=f"{recipe.name}: after training"))
    console.print(final.rich_per_class(title="Per class, most objects first", limit=CLASSES_SHOWN))
    console.print(f"tables, pictures and checkpoints: {run_dir}")
    if recipe.tracking.uri is None:
        console.print(f"compare runs in MLflow: yw-ray ui --storage {_short(run_dir.parent)}")
    return RunResult(
        run_dir=run_dir,
        mlflow_run_id=tracked.mlflow_run_id if tracked else None,
        start=start,
        final=final,
        seconds=time.monotonic() - begin,
        trained=tracked is not None,
    )


def _short(path: Path) -> str:
    """Relative to the current folder where that is shorter to type."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
