"""The metric spool: whole lines, torn lines, and a reader that knows how far it came."""

import json

import pytest

from yw_ray.tracking.spool import Spool
from yw_ray.training.metric_log import MetricLog


def steps(entries):
    return [entry["step"] for _, entry in entries]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_a_logged_step_is_readable_at_once(path):
    with MetricLog(path) as log:
        log.log(3, {"train/total": 1.5, "lr": 2e-4})
        (line,) = path.read_text().splitlines()
    entry = json.loads(line)
    assert entry["step"] == 3
    assert entry["metrics"] == {"train/total": 1.5, "lr": 2e-4}
    assert entry["time"] > 1e9


def test_reopening_continues_and_a_torn_line_costs_only_itself(path):
    with MetricLog(path) as log:
        log.log(1, {"a": 1.0})
    with path.open("ab") as file:
        file.write(b'{"step":2,"time":1.0,"met')
    reader = Spool(path)
    assert steps(reader.read()) == [1]
    assert reader.broken_lines == 0  # may still be in the making
    with MetricLog(path) as log:
        log.log(3, {"a": 3.0})
    assert steps(reader.read()) == [1, 3]
    assert reader.broken_lines == 1


def test_a_broken_last_line_does_not_stay_pending(path):
    with MetricLog(path) as log:
        log.log(1, {"a": 1.0})
    with path.open("ab") as file:
        file.write(b'{"step":2,"time":1.0,"met\n')
    reader = Spool(path)
    reader.claim("run")
    reader.commit(reader.read()[-1][0])
    for _ in range(2):
        assert reader.read() == []
    assert reader.pending() == 0
    assert reader.broken_lines == 1


def test_not_a_number_goes_through(path):
    with MetricLog(path) as log:
        log.log(1, {"a": float("nan"), "b": float("inf")})
    ((_, entry),) = Spool(path).read()
    assert entry["metrics"]["a"] != entry["metrics"]["a"]
    assert entry["metrics"]["b"] == float("inf")


def test_a_full_disk_is_counted_and_does_not_raise(caplog):
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    with MetricLog(Path("/dev/full")) as log:
        log.log(1, {"a": 1.0})
        log.log(2, {"a": 1.0})
    assert log.lost == 2
    assert len(caplog.records) == 1


def test_the_reader_goes_on_where_it_stopped_for_the_same_tracker_run(path):
    with MetricLog(path) as log:
        for step in range(5):
            log.log(step, {"a": 1.0})
    reader = Spool(path)
    reader.claim("run one")
    entries = reader.read()
    reader.commit(entries[2][0])
    assert steps(reader.read()) == [3, 4]
    assert reader.pending() == 2
    assert [entry["step"] for entry in reader.shipped()] == [0, 1, 2]

    again = Spool(path)
    again.claim("run one")
    assert steps(again.read()) == [3, 4]
    other = Spool(path)
    other.claim("run two")
    assert steps(other.read()) == [0, 1, 2, 3, 4]


def test_a_spool_begun_anew_is_read_from_its_start(path):
    with MetricLog(path) as log:
        for step in range(5):
            log.log(step, {"a": 1.0})
    reader = Spool(path)
    reader.claim("run")
    reader.commit(reader.read()[-1][0])
    path.unlink()
    with MetricLog(path) as log:
        for step in range(10, 30):
            log.log(step, {"a": 1.0})
    again = Spool(path)
    again.claim("run")
    assert steps(again.read())[0] == 10


def test_a_spool_that_does_not_exist_yet_is_empty(path):
    reader = Spool(path)
    reader.claim("run")
    assert reader.read() == []
    assert reader.pending() == 0
    assert list(reader.shipped()) == []


def test_a_long_spool_is_read_in_pieces(path):
    with MetricLog(path) as log:
        for step in range(30000):
            log.log(step, {"train/total": 1.0})
    reader = Spool(path)
    reader.claim("run")
    seen = []
    while entries := reader.read():
        seen += steps(entries)
        assert len(entries) < 30000
        reader.commit(entries[-1][0])
    assert seen == list(range(30000))
