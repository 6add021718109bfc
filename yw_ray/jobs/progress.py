"""Progress: what the driver shows while workers train, read from the run's metric spool.

Place in the flow: rank 0 writes `metrics.jsonl`; this thread in the driver turns its lines into a
bar on a terminal, or into a plain line every few seconds elsewhere (`ray job logs`).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY_S = 5.0
_POLL_S = 0.3


class TrainProgress:
    """Show the steps of a run until the context is left.

    Args:
        spool: the run's `metrics.jsonl`; lines that are there already are not shown.
        total_steps: optimiser steps of the whole run.
        epochs: of the whole run.
    """

    def __init__(self, spool: Path, *, total_steps: int, epochs: int) -> None:
        self._spool, self._total, self._epochs = spool, total_steps, epochs
        self._offset = spool.stat().st_size if spool.exists() else 0
        self._begin: tuple[float, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._console = Console(file=sys.stdout)
        self._last_plain = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("waiting for workers", total=total_steps, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.stop()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._show_new()
            self._stop.wait(_POLL_S)
        self._show_new()

    def _show_new(self) -> None:
        for line in self._new_lines():
            metrics = line["metrics"]
            if "train/total" in metrics:
                self._show_step(line["step"], line["time"], metrics)
            elif "val/AP" in metrics or "val/AP50" in metrics:
                scores = "  ".join(
                    f"{key.removeprefix('val/')} {100 * value:.1f}"
                    for key, value in metrics.items()
                    if key in ("val/AP", "val/AP50", "val/base/AP50", "val/novel/AP50")
                )
                self._console.print(f"after epoch {int(metrics['epoch'])}: {scores}")

    def _show_step(self, step: int, when: float, metrics: dict[str, float]) -> None:
        if self._begin is None:
            self._begin = (when, step)
        per_step = (when - self._begin[0]) / max(step - self._begin[1], 1)
        left = per_step * (self._total - step)
        figures = (
            f"step {step}/{self._total}  loss {metrics['train/total']:.1f}  "
            f"{metrics['train/images_per_s']:.1f} images/s  "
            f"data wait {100 * metrics['train/data_wait_share']:.1f} %"
            + (f"  {_clock(left)} left" if step > self._begin[1] else "")
        )
        epoch = f"epoch {int(metrics['train/epoch']) + 1}/{self._epochs}"
        self._bar.update(self._task, completed=step, description=epoch, figures=figures)
        if not self._console.is_terminal and time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            print(f"{epoch}  {figures}", flush=True)

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        if not self._spool.exists():
            return
        with self._spool.open("rb") as source:
            source.seek(self._offset)
            for raw in source:
                if not raw.endswith(b"\n"):  # being written
                    break
                self._offset += len(raw)
                try:
                    yield json.loads(raw)
                except ValueError:  # the torn last line of a killed attempt
                    continue


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
