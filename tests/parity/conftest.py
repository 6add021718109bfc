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

NEEDS = {
    "test_dataset.py": "pipeline",
    "test_ema.py": "schedule",
    "test_zz_goldens_used.py": "",
}
"""Kind of golden a test file reads, where its name does not say it."""


def _absent(config: pytest.Config) -> list[str]:
    """Test files whose kind of golden another folder does not hold; ours must hold all."""
    goldens = Path(config.getoption("--goldens"))
    if goldens.resolve() == (HERE.parent / "golden").resolve():
        return []
    kinds = {
        path.name: NEEDS.get(path.name, path.stem.removeprefix("test_"))
        for path in HERE.glob("test_*.py")
    }
    return sorted(
        name for name, kind in kinds.items() if kind and not any(goldens.glob(f"{kind}/*"))
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"goldens: {config.getoption('--goldens')}; none there for: {_absent(config) or '-'}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in _absent(config) else None


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
