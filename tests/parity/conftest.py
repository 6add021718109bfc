"""Parity tests share `golden_models.py`, which lies beside them, and must read every golden."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
OPENED: set[str] = set()
LAST = "test_every_golden_file_was_read"


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[0], str | os.PathLike):
        OPENED.add(os.path.abspath(os.fspath(args[0])))


sys.addaudithook(_watch)


@pytest.fixture
def opened_files() -> set[str]:
    """Every path the interpreter opened since collection began."""
    return OPENED


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The count of read files comes last, and only where all parity files are being run."""
    last = [item for item in items if item.name == LAST]
    collected = {item.path for item in items}
    whole = set(HERE.glob("test_*.py")) <= collected
    rest = [item for item in items if item.name != LAST]
    if last and not whole:
        config.hook.pytest_deselected(items=last)
        last = []
    items[:] = [*rest, *last]
