"""Options and fixtures shared by all tests."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        default=str(GOLDEN),
        help="folder of recorded reference numbers (same layout as tests/golden)",
    )


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> Path:
    """Folder of recorded reference numbers."""
    return Path(request.config.getoption("--goldens"))
