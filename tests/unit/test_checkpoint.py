"""A checkpoint is whole or not there: kills, damage and full disks."""

import errno
import logging
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from yw_ray.recipe import EmaConfig, OptimConfig, Recipe
from yw_ray.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    load_checkpoint,
    prune,
    restore_generators,
    save_checkpoint,
)
from yw_ray.training.ema import Ema
from yw_ray.training.optim import build_optimizer


class Parts:
    """A tiny model in training."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.optimizer = build_optimizer(self.model, OptimConfig(), total_batch=64)
        self.ema = Ema(self.model, EmaConfig())

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(6, 4)).square().mean().backward()
        self.optimizer.step()
        self.ema.update(self.model)

    def save(self, root: Path, epoch: int, extra: dict[str, Any] | None = None) -> Path:
        return save_checkpoint(
            root / f"epoch_{epoch:03d}",
            model=self.model,
            ema=self.ema,
            optimizer=self.optimizer,
            cursor=(epoch, 0),
            recipe=Recipe(name="toy"),
            dataset_digest="abc",
            generators=generator_states(),
            extra=extra,
        )


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_restored_run_continues_bit_for_bit(tmp_path: Path) -> None:
    parts = Parts()
    for _ in range(3):
        parts.step()
    folder = parts.save(tmp_path, 3, extra={"note": "plain"})
    for _ in range(3):
        parts.step()

    again = Parts(seed=1)
    state = load_checkpoint(folder)
    assert state["cursor"] == (3, 0) and state["dataset_digest"] == "abc"
    assert state["extra"] == {"note": "plain"} and state["scaler"] is None
    assert Recipe.model_validate(state["recipe"]) == Recipe(name="toy")
    again.model.load_state_dict(state["model"])
    again.ema.load_state_dict(state["ema"])
    again.optimizer.load_state_dict(state["optimizer"])
    restore_generators(state["generators"])
    for _ in range(3):
        again.step()
    assert _equal(again.model.state_dict(), parts.model.state_dict())
    assert _equal(again.ema.module.state_dict(), parts.ema.module.state_dict())


def test_keys_of_the_weights_are_the_model_s_own_names(tmp_path: Path) -> None:
    parts = Parts()
    state = load_checkpoint(parts.save(tmp_path, 0))
    assert state["model"].keys() == parts.model.state_dict().keys()


def test_a_folder_without_checkpoints_gives_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def _truncate(path: Path, rng: np.random.Generator) -> None:
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(path.stat().st_size)))


def _flip_byte(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    spots = [i for i, byte in enumerate(raw) if not chr(byte).isspace()]
    raw[spots[int(rng.integers(len(spots)))]] ^= 1  # a letter or digit becomes its neighbour
    path.write_bytes(bytes(raw))


def _remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_byte, _remove])
@pytest.mark.parametrize("name", ["model.pt", "ema.pt", "state.pt", "recipe.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path,
    damage: Callable[[Path, np.random.Generator], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = Parts()
    good, bad = parts.save(tmp_path, 1), parts.save(tmp_path, 2)
    rng = np.random.default_rng(len(name))
    for _ in range(4):
        shutil.rmtree(bad)
        parts.save(tmp_path, 2)
        damage(bad / name, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert latest_checkpoint(tmp_path) == good
        assert len(caplog.messages) == 1
        assert bad.name in caplog.messages[0] and name in caplog.messages[0]
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
            load_checkpoint(bad)
        assert "\n" not in str(error.value)


def test_code_hidden_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    folder = Parts().save(tmp_path, 0, extra={"trap": Trap()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    parts = Parts()
    parts.save(tmp_path, 1)
    parts.step()
    folder = parts.save(tmp_path, 1)
    assert _equal(load_checkpoint(folder)["model"], parts.model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    folder = Parts().save(tmp_path, 1)
    folder.rename(tmp_path / "epoch_001.replaced")
    found = latest_checkpoint(tmp_path)
    assert found is not None and load_checkpoint(found)["cursor"] == (1, 0)
    assert prune(tmp_path, 1) == []


def test_prune_keeps_the_furthest_and_clears_what_killed_runs_left(tmp_path: Path) -> None:
    parts = Parts()
    folders = [parts.save(tmp_path, epoch) for epoch in range(5)]
    (tmp_path / ".unfinished-epoch_009").mkdir()
    (folders[3] / "ema.pt").write_bytes(b"short")
    removed = prune(tmp_path, 2)
    assert sorted(removed) == folders[:2]
    # 4 and 2 are whole and stay; 3 is damaged, does not count and stays for inspection
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_002", "epoch_003", "epoch_004"]


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Runs a function in a forked process and gives its id."""
    started: list[int] = []

    def start(work: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                work()
                os._exit(0)
            except BaseException:
                os._exit(1)
        started.append(child)
        return child

    yield start
    for child in started:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_killed_at_any_moment_leaves_its_last_whole_checkpoint(
    tmp_path: Path, in_child: Callable[[Callable[[], None]], int]
) -> None:
    parts = Parts(width=4096)
    rng = np.random.default_rng(0)
    reported, unfinished = tmp_path / "reported", 0
    root = tmp_path / "checkpoints"

    first = 0

    def train() -> None:
        for epoch in range(first, first + 10_000):
            parts.save(root, epoch)
            reported.write_text(str(epoch))
            prune(root, 2)

    for _ in range(12):
        child = in_child(train)
        time.sleep(0.02 + 0.1 * float(rng.random()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unfinished += len(list(root.glob(".unfinished-*")))
        found = latest_checkpoint(root)
        done = int(reported.read_text() or -1) if reported.exists() else -1
        if found is None:
            assert done == -1
            continue
        epoch = load_checkpoint(found)["cursor"][0]
        assert epoch >= done
        first = epoch + 1
    assert first > 0, "no checkpoint was ever finished"
    assert unfinished > 0, "no kill hit a checkpoint in the making"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("limit", [0, 700, 5_000, 100_000])
def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(
    tmp_path: Path, limit: int, in_child: Callable[[Callable[[], None]], int]
) -> None:
    root = tmp_path / "checkpoints"
    good = Parts().save(root, 1)
    heavy = Parts(width=8192)

    def save_on_a_small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="earlier checkpoints are whole") as error:
            heavy.save(root, 2)
        assert "epoch_002" in str(error.value) and "\n" not in str(error.value)

    _, status = os.waitpid(in_child(save_on_a_small_disk), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [path.name for path in root.iterdir()] == [good.name]
    assert latest_checkpoint(root) == good


def test_a_disk_that_fills_while_flushing_is_reported_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts()
    good = parts.save(tmp_path, 1)

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left on device") as error:
        parts.save(tmp_path, 2)
    assert error.value.errno == errno.ENOSPC and "\n" not in str(error.value)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path) == good
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
