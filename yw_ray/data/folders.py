"""Folders that appear whole or not at all.

Place in the flow: whatever writes a data set (generated world, shards) writes into a hidden folder
beside its goal and renames it at the end, so that a killed run leaves nothing that looks finished.
"""

import errno
import fcntl
import glob
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_log = logging.getLogger(__name__)
_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` which becomes `out` when the block ends without error.

    What a killed run left behind is removed first. One process at a time writes `out`. The folder
    has a name of its own each time, so that a lost task of an earlier run cannot write into it.
    Raises: ValueError if `out` exists and is not an empty folder, or another process writes it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} already holds something else: name another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {out.parent} ({error.strerror}): name another") from None
    with _locked(out):
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
            shutil.rmtree(leftover)
        partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
        partial.mkdir()
        try:
            yield partial
            _sync(partial)
            os.replace(partial, out)  # an empty `out` is replaced, a filled one is an error
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _USERS_TO_MEND:
                raise ValueError(
                    f"cannot write {out}: {error.strerror}; nothing was kept"
                ) from None
            raise
        _sync(out.parent)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock file of `out`; it goes when the block ends, and its lock with the process."""
    path = out.parent / f".{out.name}.lock"
    try:
        handle = path.open("w")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another folder") from None
    with handle:
        if not _try_lock(handle) or not _same_file(handle, path):
            raise ValueError(
                f"another process is writing {out}: wait for it or name another folder"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _try_lock(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _log.warning("%s: this file system has no locks; run one prepare at a time", handle.name)
    return True


def _same_file(handle: TextIO, path: Path) -> bool:
    """False if the holder removed the file between our opening and locking it."""
    return path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat())


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds the whole of it or does not exist."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
