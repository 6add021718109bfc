"""Store: every MLflow call of the project, behind a few plain functions.

Place in the flow: `TrackedRun` -> here -> an sqlite file or an MLflow server. May raise whatever
MLflow raises: `TrackedRun` is what keeps that from training.
Source: MLflow 3.17. Its import takes seconds, so it happens inside the functions.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RUN_ID_TAG = "yw.run_id"
RESTARTS_TAG = "yw.restarts"
MAX_METRICS = 1000
"""MLflow refuses more metrics in one call."""
_MAX_PARAMS = 100
_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 5000
_TABLES_TAG = "mlflow.loggedArtifacts"
_MAY_CHANGE = ("compute.", "tracking.", "title", "published", "notes")
"""Recipe fields that a resumed run may change: hardware and book-keeping."""


class TrackingError(ValueError):
    """What the user must change: waiting for the tracker would not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What is needed to find or create the MLflow run of a logical run.

    params: dotted name -> text; opens: how often the run was opened, this time included;
    parent: `yw.run_id` of the sweep it belongs to.
    """

    uri: str
    experiment: str
    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    artifact_root: str
    opens: int = 1
    parent: str | None = None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "RunIdentity":
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, slots=True)
class Connection:
    """An open MLflow run."""

    client: Any
    run_id: str


def resolve_uri(uri: str | None, artifact_root: Path) -> str:
    """The tracking URI to use: absolute; by default an sqlite file beside the artifacts.

    Raises: ValueError for stores that MLflow no longer takes or that would not last.
    """
    if uri is None:
        return f"sqlite:///{artifact_root.resolve().parent / 'mlflow.db'}"
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme in ("", "file") and not uri.startswith("databricks"):
        raise TrackingError(
            f"tracking.uri {uri!r} names MLflow's file store, which MLflow no longer serves; use "
            "sqlite:////absolute/path/mlflow.db (`mlflow migrate-filestore` converts an old store)"
        )
    if scheme == "sqlite":
        path = uri.removeprefix("sqlite:///")
        if path == uri or not path:
            raise TrackingError(
                f"tracking.uri {uri!r} names no file; use sqlite:////absolute/path/mlflow.db"
            )
        return f"sqlite:///{Path(path).resolve()}"
    return uri


def connect(identity: RunIdentity, restart: bool = True) -> Connection:
    """Find the MLflow run by its tag, or create it; log the parameters that are not there yet.

    `restart`: whether finding it counts as a further start of the run.
    Raises: ValueError in one line when a parameter was logged with another value, or the
    experiment was deleted; MLflow's own errors when the store is away.
    """
    check_run_id(identity.run_id)
    client = open_client(identity.uri)
    experiment_id = _experiment_id(client, identity)
    found = _find_run(client, experiment_id, identity.run_id)
    tags = {**identity.tags, RUN_ID_TAG: identity.run_id}
    if identity.parent is not None:
        tags["yw.parent"] = identity.parent
        parent = _find_run(client, experiment_id, identity.parent)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.info.run_id
    if found is None:
        tags[RESTARTS_TAG] = str(identity.opens - 1)
        logged: Mapping[str, str] = {}
        run = client.create_run(experiment_id, tags=_short(tags), run_name=identity.run_id)
        mlflow_id = run.info.run_id
    else:
        mlflow_id, logged = found.info.run_id, found.data.params
    fresh, changed = _compare_params(identity, logged)
    if found is not None:
        restarts = int(found.data.tags.get(RESTARTS_TAG, "0"))
        tags[RESTARTS_TAG] = str(max(restarts + restart, identity.opens - 1))
        tags.update(changed)
        for name, value in _short(tags).items():
            client.set_tag(mlflow_id, name, value)
    _log_params(client, mlflow_id, fresh)
    return Connection(client, mlflow_id)


def open_client(uri: str) -> Any:
    """A client; an sqlite store is created where there is none, by one process at a time."""
    quiet_mlflow()
    from mlflow import MlflowClient

    with _store_lock(uri) as path:
        if path is not None:
            # MLflow would try for minutes to open a file that cannot be opened.
            with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
                database.execute("BEGIN IMMEDIATE")
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # the first call creates the tables
    return client


def warm_up(uri: str | None, artifact_root: Path) -> threading.Thread:
    """Import MLflow and create the store in the background, while the caller prepares data.

    Takes some ten seconds of CPU on the first run. Failures stay silent here: opening the run
    meets them again.
    """

    def work() -> None:
        with contextlib.suppress(Exception):
            open_client(resolve_uri(uri, artifact_root))

    thread = threading.Thread(target=work, name="mlflow warm-up", daemon=True)
    thread.start()
    return thread


def quiet_mlflow() -> None:
    """Set what MLflow reads from the environment, before its first import.

    No usage reports over the network, no progress bars, no log of table creation, and calls to a
    server that is away give up within seconds, since everything is sent again later.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow  # noqa: F401  (sets up its loggers)

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def check_run_id(run_id: str) -> None:
    """Raises: ValueError for an id that cannot be searched for or named as a folder."""
    if not re.fullmatch(r"[\w\-. ]+", run_id):
        raise TrackingError(
            f"run id {run_id!r} must be of letters, digits, spaces and _ - . (it names a folder)"
        )


def send_metrics(connection: Connection, metrics: Sequence[tuple[str, float, int, float]]) -> None:
    """Log (name, value, step, seconds since 1970), in calls of at most `MAX_METRICS`.

    Sending the same entries again changes nothing.
    """
    from mlflow.entities import Metric

    rows = [Metric(metric_name(n), v, round(1000 * t), s) for n, v, s, t in metrics]
    for start in range(0, len(rows), MAX_METRICS):
        connection.client.log_batch(connection.run_id, metrics=rows[start : start + MAX_METRICS])


def send_table(connection: Connection, file: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows as a table of MLflow's evaluation view, in place of an earlier one of that name.

    Same file and tag as `mlflow.log_table` makes, which can only append: a row sent twice after a
    restart would stay twice.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    content = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(file).name
        path.write_text(json.dumps(content))
        connection.client.log_artifact(connection.run_id, str(path), str(Path(file).parent))
    tags = connection.client.get_run(connection.run_id).data.tags
    tables = json.loads(tags.get(_TABLES_TAG, "[]"))
    entry = {"path": file, "type": "table"}
    if entry not in tables:
        connection.client.set_tag(connection.run_id, _TABLES_TAG, json.dumps([*tables, entry]))


def send_artifact(connection: Connection, path: Path, folder: str) -> None:
    """Copy a file, or the content of a folder, to the run's artifacts."""
    send = connection.client.log_artifacts if path.is_dir() else connection.client.log_artifact
    send(connection.run_id, str(path), folder or None)


def send_tags(connection: Connection, tags: Mapping[str, str]) -> None:
    for name, value in _short(tags).items():
        connection.client.set_tag(connection.run_id, name, value)


def send_status(connection: Connection, status: str) -> None:
    """RUNNING, or an end: FINISHED, FAILED, KILLED."""
    if status == "RUNNING":
        connection.client.update_run(connection.run_id, status=status)
    else:
        connection.client.set_terminated(connection.run_id, status=status)


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow will refuse the same record for ever, as opposed to being away."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def metric_name(name: str) -> str:
    """The name with everything that MLflow does not take replaced by an underscore."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _experiment_id(client: Any, identity: RunIdentity) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(identity.experiment)
    if experiment is None:
        # A server has an artifact place of its own; a bare database would use ./mlruns.
        remote = identity.uri.startswith(("http://", "https://", "databricks"))
        location = None if remote else identity.artifact_root
        try:
            created = client.create_experiment(identity.experiment, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(identity.experiment)
        else:
            return str(created)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {identity.experiment!r} was deleted; restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}) or name another with "
            "tracking.experiment"
        )
    return str(experiment.experiment_id)


def _find_run(client: Any, experiment_id: str, run_id: str) -> Any | None:
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{RUN_ID_TAG}` = '{run_id}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _compare_params(
    identity: RunIdentity, logged: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters still to log, and those of hardware that changed since, as tags.

    Raises: ValueError naming the first parameter whose value must not change.
    """
    fresh, changed = {}, {}
    for name, value in identity.params.items():
        if name not in logged:
            fresh[name] = value
        elif logged[name] != value:
            if not name.startswith(_MAY_CHANGE):
                raise TrackingError(
                    f"MLflow run {identity.run_id!r} was started with {name}={logged[name]}, now "
                    f"{name}={value}; resume with the recipe it was started with, or give the "
                    "run another name"
                )
            changed[name] = value
    return fresh, changed


def _log_params(client: Any, mlflow_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    rows = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(rows), _MAX_PARAMS):
        client.log_batch(mlflow_id, params=rows[start : start + _MAX_PARAMS])


def param_text(value: Any) -> str:
    """A parameter as MLflow keeps it, cut to the length it allows."""
    return str(value)[:_MAX_PARAM_CHARS]


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value)[:_MAX_TAG_CHARS] for name, value in tags.items()}


@contextlib.contextmanager
def _store_lock(uri: str) -> Iterator[Path | None]:
    """One process at a time creates an sqlite store: its migrations do not stand company."""
    if not uri.startswith("sqlite:///"):
        yield None
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
