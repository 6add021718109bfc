"""TrackedRun: one MLflow run for one logical run, from parameters to artifacts, through restarts.

Place in the flow: the driver opens it before training and finishes it after; step curves come
from the metric spool that training rank 0 writes. All records go to a journal on disk first, and a
thread of the driver ships them: a tracker that is slow or away neither stops nor slows training,
and what it missed is sent when it is back, or later by `replay`.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from yw_ray.evaluation.ap_table import ApTable
from yw_ray.tracking import store
from yw_ray.tracking.spool import Spool
from yw_ray.tracking.store import Connection, RunIdentity

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
_LONGEST_PAUSE_S = 60.0
_RETRY_S = 1.0
"""While somebody waits for the rest to be shipped."""


def open_run(
    uri: str | None,
    experiment: str,
    run_id: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    artifact_root: Path,
    parent: str | None = None,
    journal: Path | None = None,
    interval: float = 2.0,
) -> "TrackedRun":
    """Find the MLflow run of a logical run, or create it, and start shipping.

    Args:
        uri: tracking URI; None for `mlflow.db` beside `artifact_root`.
        run_id: our run id; the MLflow run carries it as tag `yw.run_id`, and each further opening
            counts in `yw.restarts`.
        params: dotted recipe fields; compared with what is logged already.
        artifact_root: folder of artifacts where no server decides that.
        parent: run id of the sweep this run is a trial of.
        journal: folder for records that wait; on shared storage, if the driver may move.
        interval: seconds between looks at the spools.
    Raises: ValueError for a URI that cannot be used, or a parameter that clashes with the run's.
    A tracker that is away raises nothing: one warning, and the records wait.
    """
    folder = artifact_root / ".journal" / run_id if journal is None else journal
    store.check_run_id(run_id)
    identity_file = folder / "run.json"
    opens = RunIdentity.load(identity_file).opens if identity_file.exists() else 0
    identity = RunIdentity(
        uri=store.resolve_uri(uri, artifact_root),
        experiment=experiment,
        run_id=run_id,
        params={name: store.param_text(value) for name, value in params.items()},
        tags=dict(tags or {}),
        artifact_root=str(artifact_root.resolve()),
        opens=opens + 1,
        parent=parent,
    )
    run = TrackedRun(identity, folder, interval=interval)
    run.connect()
    identity.save(identity_file)
    run.record({"kind": "status", "status": "RUNNING"})
    run.start()
    return run


def replay(journal: Path, spools: Sequence[Path] = (), uri: str | None = None) -> int:
    """Ship what a run's journal and metric spools still hold; safe to repeat.

    Args: journal: the folder given to `open_run`; uri: another tracker than the recorded one.
    Returns: number of records shipped.
    Raises: ValueError in one line when there is no such journal or the tracker is still away.
    """
    identity_file = journal / "run.json"
    if not identity_file.exists():
        raise ValueError(f"{journal} holds no run.json; give the journal folder of a tracked run")
    identity = RunIdentity.load(identity_file)
    if uri is not None:
        resolved = store.resolve_uri(uri, Path(identity.artifact_root))
        fields = {name: getattr(identity, name) for name in RunIdentity.__slots__}
        identity = RunIdentity(**{**fields, "uri": resolved})
    run = TrackedRun(identity, journal, restart=False)
    for path in spools:
        run.ship_metrics(path)
    waiting = run.ship_once()
    if waiting:
        raise ValueError(f"MLflow at {identity.uri} is away ({waiting}); start it and replay again")
    return run.shipped


class TrackedRun:
    """The driver's hold on one MLflow run; every method returns at once but `drain` and `finish`.

    Made by `open_run`.
    """

    def __init__(
        self,
        identity: RunIdentity,
        folder: Path,
        *,
        interval: float = 2.0,
        restart: bool = True,
    ) -> None:
        self.identity = identity
        self.shipped = 0
        """Records that reached the tracker through this object."""
        self._journal = Spool(folder / "journal.jsonl")
        self._spools: list[Spool] = []
        self._tables: dict[str, dict[int, dict[str, Any]]] = {}
        self._connection: Connection | None = None
        self._interval, self._restart = interval, restart
        self._warned: set[str] = set()
        self._lost = ""
        self._shipping = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._loop, name=f"mlflow {identity.run_id}", daemon=True
        )

    @property
    def mlflow_run_id(self) -> str | None:
        """MLflow's own id, once the tracker was reached."""
        return self._connection.run_id if self._connection else None

    def log_table(
        self,
        table: ApTable,
        name: str = "val",
        step: int = 0,
        published: Mapping[str, float] | None = None,
    ) -> None:
        """Record an evaluation: metrics, AP table, per-class table, protocol.

        Args:
            name: `val` logs the metrics under their bare names, others as `name/AP`, ...; the
                tables are `eval/NAME.json`, a row for each step, and
                `eval/NAME_per_class.json`, the latest.
            published: percent; sets `yw.published_AP` and `yw.delta_AP` where comparable.
        """
        tags = {"yw.eval_protocol" if name == "val" else f"yw.eval_protocol.{name}": ""}
        tags = dict.fromkeys(tags, table.caption())
        for row in table.compare(published or {}):
            tags[f"yw.published_{row['metric']}"] = f"{row['published']:.1f}"
            if row["difference"] is not None:
                tags[f"yw.delta_{row['metric']}"] = f"{row['difference']:+.1f}"
        self.record(
            {
                "kind": "table",
                "name": name,
                "step": int(step),
                "metrics": table.defined(),
                "row": {**table.precisions(), **table.defined(), "protocol": table.caption()},
                "per_class": [entry.row() for entry in table.per_class],
                "tags": tags,
            }
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record figures of the driver itself, such as cost or trainable parameters."""
        values = {name: float(value) for name, value in metrics.items()}
        self.record({"kind": "metrics", "step": int(step), "metrics": values})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file, or the content of a folder, as it is when it is shipped."""
        self.record({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.record({"kind": "tags", "tags": dict(tags)})

    def ship_metrics(self, spool: Path) -> None:
        """Follow a metric spool (see `training.metric_log`), which need not exist yet."""
        self._spools.append(Spool(spool))

    def drain(self, timeout: float = 30.0) -> bool:
        """Wait until everything recorded so far has been shipped.

        Returns: False when that took longer than `timeout` seconds.
        """
        start = woken = time.monotonic()
        self._wake.set()
        while self.pending() and not self._lost:
            now = time.monotonic()
            if now - start >= timeout:
                return False
            if now - woken >= _RETRY_S:
                woken = now
                self._wake.set()
            time.sleep(min(0.05, start + timeout - now))
        return not self.pending()

    def finish(self, status: Status, timeout: float = 30.0) -> bool:
        """Record how the run ended, wait for the rest to be shipped, stop shipping.

        Returns: whether everything was shipped; if not, one warning says how to send the rest.
        """
        self.record({"kind": "status", "status": status})
        done = self.drain(timeout)
        self.stop()
        if not done:
            log.warning(
                "%d records of run %s did not reach MLflow at %s; they wait in %s, replay them "
                "when it is back",
                self.pending(),
                self.identity.run_id,
                self.identity.uri,
                self._journal.path.parent,
            )
        return done

    def stop(self) -> None:
        """End the shipping thread after what it is doing; the journal keeps the rest."""
        self._stop.set()
        self._wake.set()

    def pending(self) -> int:
        """Records not yet shipped."""
        return self._journal.pending() + sum(spool.pending() for spool in self._spools)

    def record(self, entry: dict[str, Any]) -> None:
        """Append to the journal; never raises."""
        try:
            self._journal.append({**entry, "time": time.time()})
        except OSError as error:
            self._warn(f"a record is lost, the journal cannot be written: {error}")

    def start(self) -> None:
        self._thread.start()

    def connect(self) -> None:
        """Reach the tracker now, if it is there.

        Raises: ValueError for a clash of parameters; nothing when the tracker is away.
        """
        with self._shipping:
            self._guard(self._connect, user_errors=True)

    def ship_once(self) -> str:
        """Ship all that is pending; returns why not, empty when all is shipped."""
        with self._shipping:
            return self._guard(self._ship)

    def _loop(self) -> None:
        pause = self._interval
        while not self._stop.is_set():
            reason = self.ship_once()
            pause = min(2 * pause, _LONGEST_PAUSE_S) if reason else self._interval
            self._wake.wait(pause)
            self._wake.clear()

    def _guard(self, action: Callable[[], None], user_errors: bool = False) -> str:
        """Run a tracker call: the one place where whatever it raises ends."""
        try:
            action()
        except store.TrackingError as error:
            if user_errors:
                raise
            self._lost = str(error)
            self._warn(f"MLflow does not take this run: {error}")
            return str(error)
        except Exception as error:  # a tracker can fail in any way, and training must not
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._warn(
                f"MLflow at {self.identity.uri} is away; training goes on, records wait in "
                f"{self._journal.path.parent}",
                detail=reason,
            )
            return reason
        return ""

    def _connect(self) -> None:
        if self._connection is None:
            connection = store.connect(self.identity, restart=self._restart)
            self._journal.claim(connection.run_id)
            for entry in self._journal.shipped():
                self._keep_rows(entry)
            self._connection = connection

    def _ship(self) -> None:
        if self._lost:
            raise store.TrackingError(self._lost)
        self._connect()
        assert self._connection is not None
        # Curves first: a run's end is recorded after its last step.
        for spool in self._spools:
            if spool.owner is None:
                spool.claim(self._connection.run_id)
            self._ship_spool(spool, self._send_lines)
        self._ship_spool(self._journal, self._send_entries)

    def _ship_spool(
        self, spool: Spool, send: Callable[[list[tuple[int, dict[str, Any]]], Spool], None]
    ) -> None:
        while entries := spool.read():
            send(entries, spool)
        if spool.broken_lines:
            self._warn(f"{spool.path} holds lines that are no records; they are left out")

    def _send_lines(self, entries: list[tuple[int, dict[str, Any]]], spool: Spool) -> None:
        """Metric lines, as many a call as MLflow takes."""
        rows: list[tuple[str, float, int, float]] = []
        count = 0
        for number, (end, entry) in enumerate(entries):
            rows += metric_rows(entry)
            count += 1
            if len(rows) >= store.MAX_METRICS // 2 or number == len(entries) - 1:
                self._send(partial(store.send_metrics, metrics=rows))
                spool.commit(end)
                self.shipped += count
                rows, count = [], 0

    def _send_entries(self, entries: list[tuple[int, dict[str, Any]]], spool: Spool) -> None:
        """Journal entries, one by one; of statuses only the last, for a run may have resumed."""
        statuses = [end for end, entry in entries if entry.get("kind") == "status"]
        for end, entry in entries:
            if entry.get("kind") != "status" or end == statuses[-1]:
                self._send(partial(self._send_entry, entry=entry))
            spool.commit(end)
            self.shipped += 1

    def _send(self, action: Callable[[Connection], None]) -> None:
        assert self._connection is not None
        try:
            action(self._connection)
        except Exception as error:
            if not store.is_refusal(error):
                raise
            self._warn(f"MLflow refuses a record, it is left out: {str(error)[:200]}")

    def _send_entry(self, connection: Connection, *, entry: dict[str, Any]) -> None:
        kind = entry.get("kind")
        if kind == "table":
            name = entry["name"]
            self._keep_rows(entry)
            store.send_metrics(connection, metric_rows(entry, "" if name == "val" else f"{name}/"))
            rows = [self._tables[name][step] for step in sorted(self._tables[name])]
            store.send_table(connection, f"eval/{name}.json", rows)
            if entry["per_class"]:
                classes = [{"step": entry["step"], **row} for row in entry["per_class"]]
                store.send_table(connection, f"eval/{name}_per_class.json", classes)
            store.send_tags(connection, entry["tags"])
        elif kind == "metrics":
            store.send_metrics(connection, metric_rows(entry))
        elif kind == "artifact":
            path = Path(entry["path"])
            if path.exists():
                store.send_artifact(connection, path, entry["folder"])
            else:
                self._warn(f"{path} is gone before it could be shipped to MLflow")
        elif kind == "tags":
            store.send_tags(connection, entry["tags"])
        elif kind == "status":
            store.send_status(connection, entry["status"])

    def _keep_rows(self, entry: dict[str, Any]) -> None:
        if entry.get("kind") == "table":
            row = {"step": entry["step"], **entry["row"]}
            self._tables.setdefault(entry["name"], {})[entry["step"]] = row

    def _warn(self, message: str, detail: str = "") -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s%s", message, f" ({detail})" if detail else "")


def metric_rows(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float, int, float]]:
    """(name, value, step, seconds) of one spool line; what is no number is left out."""
    metrics, step = entry.get("metrics"), entry.get("step")
    if not isinstance(metrics, dict) or not isinstance(step, int):
        return []
    seconds = float(entry.get("time", 0.0))
    return [
        (prefix + name, float(value), step, seconds)
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]
