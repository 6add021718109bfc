"""MetricLog: step curves as lines of JSON, written by training rank 0.

Place in the flow: training loop -> this file -> (the driver's tracker reads it, or nobody does).
Writing a line is all that training does for tracking, so no tracker can hold it up.
A line: {"step": int, "time": seconds since 1970, "metrics": {name: number}}.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

log = logging.getLogger(__name__)


class MetricLog:
    """Append-only spool of metrics.

    Each line is handed to the operating system whole and at once, so that a killed process leaves
    at most one torn line, the last; opening the file again goes on after it. A line that cannot
    be written (a full disk) is counted in `lost` and warned of once: curves never stop training.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for appending, its folder made where missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lost = 0
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._torn = _ends_torn(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step; numbers as given, not-a-number included."""
        line = {
            "step": int(step),
            "time": time.time(),
            "metrics": {name: float(value) for name, value in metrics.items()},
        }
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            text = b"\n" + text
        try:
            written = self._file.write(text)
        except OSError as error:
            self._lose(str(error))
            return
        self._torn = written != len(text)
        if self._torn:
            self._lose("the disk took only part of a line")

    def _lose(self, reason: str) -> None:
        if not self.lost:
            log.warning("metrics are lost, %s cannot be written: %s", self.path, reason)
        self.lost += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ends_torn(path: Path) -> bool:
    """Whether the last byte of a file that has any is not the end of a line."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
