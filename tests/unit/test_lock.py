"""The lock pins every package by hash and says nothing of where packages come from."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "requirements.lock").read_text().splitlines()


def test_every_package_is_pinned_with_hashes() -> None:
    blocks = "\n".join(LINES).split("\n")
    pins = [k for k, line in enumerate(blocks) if re.match(r"[A-Za-z0-9]", line)]
    assert len(pins) > 100
    for k in pins:
        assert re.match(r"[\w.\[\]-]+==[\w.+!]+( ;.*)? \\$", blocks[k]), blocks[k]
        assert blocks[k + 1].strip().startswith("--hash=sha256:"), blocks[k]


def test_no_address_of_an_index_stands_in_the_lock() -> None:
    assert not [line for line in LINES if "://" in line or re.match(r"-{1,2}[a-z]", line)]


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    locked = {line.split("==")[0].split("[")[0].lower() for line in LINES if "==" in line}
    for entry in wanted:
        name = re.split(r"[\[<>=]", entry)[0].lower().replace("_", "-")
        assert name in locked, entry
