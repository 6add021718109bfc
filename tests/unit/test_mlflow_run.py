"""One MLflow run through all restarts, and a tracker that never stops training."""

import json
import logging
import time
from pathlib import Path

import pytest

from yw_ray.evaluation.ap_table import ApTable, ClassAp
from yw_ray.tracking import store
from yw_ray.tracking.mlflow_run import open_run, replay
from yw_ray.tracking.ui import ui_command
from yw_ray.training.metric_log import MetricLog

PARAMS = {"optim.base_lr": 2e-4, "schedule.epochs": 80, "compute.workers": 1, "freeze": "none"}


@pytest.fixture(scope="session")
def sqlite_store(tmp_path_factory):
    """One store for the session: creating it takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "artifacts"


@pytest.fixture
def opened(sqlite_store, request, tmp_path):
    """Opens runs named after the test, in one store; ships almost at once."""
    runs = []

    def start(name="", **changes):
        given = {
            "uri": None,
            "params": PARAMS,
            "artifact_root": sqlite_store,
            "journal": tmp_path / "journal" / name,
            "interval": 0.05,
            **changes,
        }
        run = open_run(given.pop("uri"), "tests", request.node.name[:60] + name, **given)
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.stop()


def client_of(run):
    return store.open_client(run.identity.uri)


def recorded(run):
    return client_of(run).get_run(run.mlflow_run_id)


def table(ap, encoder="clip-vit-b32"):
    rows = [("cat", 1, ap, 3), ("bird", 7, -1.0, 0)]
    return ApTable(
        metrics={"AP": ap, "AP50": ap + 0.1, "APs": -1.0, "AR100": 0.9, "novel/AP": 0.05},
        per_class=tuple(
            ClassAp.model_validate(
                {"class": n, "category_id": i, "AP": a, "AP50": a, "AP75": a, "num_gt": k}
            )
            for n, i, a, k in rows
        ),
        protocol={"style": "coco", "kind": "bbox", "text_encoder": encoder},
    )


def test_parameters_tags_and_end_are_recorded(opened, sqlite_store):
    run = opened(tags={"yw.recipe": "coco_v2_s"})
    assert run.finish("FAILED")
    data = recorded(run)
    assert data.info.status == "FAILED"
    assert data.data.params == {name: str(value) for name, value in PARAMS.items()}
    assert data.data.tags["yw.recipe"] == "coco_v2_s"
    assert data.data.tags["yw.restarts"] == "0"
    assert data.info.artifact_uri.startswith(str(sqlite_store))
    assert run.identity.uri == f"sqlite:///{sqlite_store.parent / 'mlflow.db'}"


def test_opening_again_finds_the_run_counts_the_restart_and_runs_on(opened):
    first = opened()
    first.finish("KILLED")
    second = opened()
    assert second.mlflow_run_id == first.mlflow_run_id
    assert second.drain()
    assert recorded(second).info.status == "RUNNING"
    assert recorded(second).data.tags["yw.restarts"] == "1"
    second.finish("FINISHED")
    assert recorded(second).info.status == "FINISHED"


def test_a_clash_of_parameters_is_one_line_but_hardware_may_change(opened):
    opened()
    with pytest.raises(ValueError, match=r"optim\.base_lr=0\.0002, now optim") as caught:
        opened(params={**PARAMS, "optim.base_lr": 1e-4})
    assert "\n" not in str(caught.value)
    moved = opened(params={**PARAMS, "compute.workers": 4, "seed": 0})
    assert recorded(moved).data.params["compute.workers"] == "1"
    assert recorded(moved).data.params["seed"] == "0"
    assert recorded(moved).data.tags["compute.workers"] == "4"


def test_a_trial_is_a_child_of_its_sweep(opened):
    sweep = opened("sweep")
    trial = opened("trial", parent=sweep.identity.run_id)
    assert recorded(trial).data.tags["mlflow.parentRunId"] == sweep.mlflow_run_id


def test_curves_are_shipped_while_the_spool_grows(opened, tmp_path):
    run = opened()
    spool = tmp_path / "metrics.jsonl"
    run.ship_metrics(spool)
    with MetricLog(spool) as log:
        for step in range(1200):
            log.log(step, {"train/total": 10.0 - step / 1000, "odd@name": 1.0})
        assert run.drain()
        log.log(1200, {"train/total": 0.5})
    assert run.finish("FINISHED")
    history = client_of(run).get_metric_history(run.mlflow_run_id, "train/total")
    assert sorted(m.step for m in history) == list(range(1201))
    assert recorded(run).data.metrics["odd_name"] == 1.0


def test_a_restarted_driver_ships_each_line_once(opened, tmp_path):
    spool = tmp_path / "metrics.jsonl"
    with MetricLog(spool) as log:
        for attempt in range(2):
            run = opened()
            run.ship_metrics(spool)
            log.log(attempt, {"train/total": 1.0})
            assert run.finish("KILLED")
            assert run.shipped == 3  # running, one step, killed
    history = client_of(run).get_metric_history(run.mlflow_run_id, "train/total")
    assert [m.step for m in history] == [0, 1]


def test_ap_tables_have_a_row_each_step_and_fixed_metric_names(opened, monkeypatch):
    run = opened()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.identity.uri)  # what load_table searches
    run.log_table(table(0.1), step=5)
    run.finish("KILLED")
    run = opened()
    run.log_table(table(0.15), step=5)  # judged again after a restart
    run.log_table(table(0.4613), step=10, published={"bbox/AP": 46.1})
    run.log_table(table(0.3), "zero_shot")
    assert run.finish("FINISHED")
    data = recorded(run).data
    assert data.metrics["AP"] == 0.4613
    assert data.metrics["novel/AP"] == 0.05
    assert data.metrics["zero_shot/AP"] == 0.3
    assert not {"APs", "AR100"} & set(data.metrics)
    assert data.tags["yw.published_AP"] == "46.1"
    assert data.tags["yw.delta_AP"] == "+0.0"
    assert "kind bbox" in data.tags["yw.eval_protocol"]
    listed = json.loads(data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in listed} == {
        "eval/val.json",
        "eval/val_per_class.json",
        "eval/zero_shot.json",
        "eval/zero_shot_per_class.json",
    }
    frame = client_of(run).load_table(
        recorded(run).info.experiment_id, "eval/val.json", run_ids=[run.mlflow_run_id]
    )
    assert frame["step"].tolist() == [5, 10]
    assert frame["AP"].tolist() == pytest.approx([0.15, 0.4613])
    classes = client_of(run).load_table(
        recorded(run).info.experiment_id, "eval/val_per_class.json", run_ids=[run.mlflow_run_id]
    )
    assert classes["class"].tolist() == ["cat", "bird"]
    assert classes["step"].tolist() == [10, 10]


def test_a_stand_in_is_said_in_the_protocol_and_not_compared(opened):
    run = opened()
    run.log_table(table(0.5, encoder="hashed-words"), published={"AP": 46.1})
    run.finish("FINISHED")
    tags = recorded(run).data.tags
    assert "stand-in text encoder hashed-words" in tags["yw.eval_protocol"]
    assert "yw.delta_AP" not in tags


def test_artifacts_are_copied_and_a_missing_one_is_only_warned_of(opened, tmp_path, caplog):
    run = opened()
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"png")
    run.log_artifact(tmp_path / "recipe.json")
    run.log_artifact(tmp_path / "pictures", "pictures")
    run.log_artifact(tmp_path / "gone.json")
    run.log_metrics({"cost": 1.5}, step=3)
    assert run.finish("FINISHED")
    names = [f.path for f in client_of(run).list_artifacts(run.mlflow_run_id)]
    assert set(names) == {"recipe.json", "pictures"}
    assert recorded(run).data.metrics["cost"] == 1.5
    assert [r for r in caplog.records if "gone.json is gone" in r.message]


class Away:
    """Stands for a tracker that fails until it is told to be back."""

    def __init__(self, monkeypatch):
        self.away = True
        self.calls = 0
        real = store.open_client

        def open_client(uri):
            self.calls += 1
            if self.away:
                raise ConnectionError("connection refused")
            return real(uri)

        monkeypatch.setattr(store, "open_client", open_client)


def test_a_tracker_that_is_away_costs_one_warning_and_is_filled_in_later(
    opened, tmp_path, monkeypatch, caplog
):
    tracker = Away(monkeypatch)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        run = opened()
        run.ship_metrics(tmp_path / "metrics.jsonl")
        with MetricLog(tmp_path / "metrics.jsonl") as log:
            for step in range(50):
                log.log(step, {"train/total": 1.0})
        run.log_table(table(0.2), step=50)
        assert not run.drain(0.3)
    assert time.monotonic() - start < 5
    assert tracker.calls >= 2
    assert len(caplog.records) == 1
    assert "is away; training goes on" in caplog.records[0].message
    tracker.away = False
    assert run.finish("FINISHED")
    history = client_of(run).get_metric_history(run.mlflow_run_id, "train/total")
    assert sorted(m.step for m in history) == list(range(50))
    assert recorded(run).data.metrics["AP"] == 0.2
    assert recorded(run).info.status == "FINISHED"


def test_what_a_dead_tracker_missed_is_replayed(opened, tmp_path, monkeypatch, caplog):
    tracker = Away(monkeypatch)
    run = opened()
    spool = tmp_path / "metrics.jsonl"
    run.ship_metrics(spool)
    with MetricLog(spool) as log:
        log.log(1, {"train/total": 1.0})
    run.log_table(table(0.2), step=1)
    assert not run.finish("FAILED", timeout=0.2)
    assert "replay" in caplog.records[-1].getMessage()
    journal = tmp_path / "journal"
    with pytest.raises(ValueError, match="is away") as caught:
        replay(journal, [spool])
    assert "\n" not in str(caught.value)
    tracker.away = False
    assert replay(journal, [spool]) == 4  # running, step, table, failed
    assert replay(journal, [spool]) == 0
    again = opened()
    assert recorded(again).data.metrics == {
        "AP": 0.2,
        "AP50": pytest.approx(0.3),
        "novel/AP": 0.05,
        "train/total": 1.0,
    }
    assert recorded(again).data.tags["yw.restarts"] == "1"


def test_a_server_that_refuses_connections_does_not_hold_up_the_driver(opened, caplog):
    start = time.monotonic()
    run = opened(uri="http://127.0.0.1:9")
    run.log_metrics({"cost": 1.0})
    assert not run.finish("FINISHED", timeout=0.1)
    assert time.monotonic() - start < 20
    assert run.mlflow_run_id is None


def test_a_store_that_cannot_be_opened_is_away_not_fatal(opened, tmp_path):
    broken = tmp_path / "mlflow.db"
    broken.write_text("this is no database, " * 100)
    run = opened(uri=f"sqlite:///{broken}")
    assert run.mlflow_run_id is None


def test_a_record_that_mlflow_refuses_does_not_block_the_next(opened, caplog):
    run = opened()
    run.set_tags({"": "a tag without a name"})
    run.log_metrics({"cost": 2.0})
    assert run.finish("FINISHED")
    assert recorded(run).data.metrics["cost"] == 2.0
    assert any("refuses a record" in r.message for r in caplog.records)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "/tmp/mlruns"])
def test_the_file_store_is_refused_with_the_remedy(uri, tmp_path):
    with pytest.raises(ValueError, match=r"sqlite:////absolute/path/mlflow\.db") as caught:
        open_run(uri, "tests", "run", params={}, artifact_root=tmp_path / "artifacts")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_uris_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.resolve_uri("sqlite:///a/m.db", tmp_path) == f"sqlite:///{tmp_path}/a/m.db"
    assert store.resolve_uri(None, Path("runs/art")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store.resolve_uri("http://host:5000", tmp_path) == "http://host:5000"
    with pytest.raises(ValueError, match="names no file"):
        store.resolve_uri("sqlite://", tmp_path)


def test_a_run_id_that_names_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run id 'a/b'"):
        open_run(None, "tests", "a/b", params={}, artifact_root=tmp_path / "artifacts")


def test_the_ui_listens_on_loopback_over_the_store(tmp_path):
    with pytest.raises(ValueError, match=r"mlflow\.db does not exist"):
        ui_command(tmp_path)
    (tmp_path / "mlflow.db").touch()
    command = ui_command(tmp_path, 5001)
    assert command == ui_command(tmp_path / "mlflow.db", 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
