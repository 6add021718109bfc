"""Spool: lines of JSON on disk between those who have something to record and a tracker that may
be away.

Place in the flow: `training.metric_log` and `TrackedRun` append, the shipping thread reads; how
far it came is remembered beside the file, for each MLflow run. No mlflow here.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


class Spool:
    """One file of lines and the mark of what has been shipped.

    The mark belongs to one tracker run (`owner`): for another one, such as after the database was
    deleted, everything counts as not yet shipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark_path = path.with_name(path.name + ".shipped")
        self.broken_lines = 0
        """Complete lines that are no JSON objects, met since this object was made."""
        self.owner: str | None = None
        """The tracker run the mark is for."""
        self._offset = 0

    def claim(self, owner: str) -> None:
        """Take up the mark that was left for this tracker run, else begin at the start."""
        self.owner, self._offset = owner, 0
        try:
            mark = json.loads(self.mark_path.read_text())
        except (FileNotFoundError, ValueError):
            return
        if mark.get("owner") == owner and mark.get("head") == self._head(mark.get("offset", 0)):
            self._offset = int(mark["offset"])

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line and hand it to the operating system."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """Complete lines after the mark, about a megabyte at most, each with the offset up to
        which it counts as shipped. A torn last line waits until it is whole; lines that are no
        objects are left out."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self._offset:  # the file was begun anew
            self._offset = 0
        entries: list[tuple[int, dict[str, Any]]] = []
        position = self._offset
        for line in self._lines(position):
            position += len(line)
            entry = _parse(line)
            if entry is None:
                self.broken_lines += 1
                if entries:  # done with when the entry before it is
                    entries[-1] = (position, entries[-1][1])
            else:
                entries.append((position, entry))
            if position - self._offset >= _CHUNK_BYTES:
                break
        if not entries:  # nothing but broken lines, if anything
            self._offset = position
        return entries

    def commit(self, offset: int) -> None:
        """Remember that everything before `offset` has been shipped."""
        assert self.owner is not None, "claim the spool before committing to it"
        self._offset = offset
        mark = {"owner": self.owner, "offset": offset, "head": self._head(offset)}
        temporary = self.mark_path.with_name(self.mark_path.name + ".new")
        temporary.write_text(json.dumps(mark))
        os.replace(temporary, self.mark_path)

    def shipped(self) -> Iterator[dict[str, Any]]:
        """Entries before the mark, oldest first."""
        position = 0
        for line in self._lines(0) if self.path.exists() else ():
            position += len(line)
            if position > self._offset:
                return
            entry = _parse(line)
            if entry is not None:
                yield entry

    def pending(self) -> int:
        """Complete lines after the mark, broken ones included until they were read over."""
        if not self.path.exists():
            return 0
        return sum(1 for _ in self._lines(min(self._offset, self.path.stat().st_size)))

    def _lines(self, start: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield line

    def _head(self, offset: int) -> str:
        """The first bytes: tells a file begun anew from the one that the mark was made in."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            return file.read(min(offset, 120)).decode(errors="replace")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
