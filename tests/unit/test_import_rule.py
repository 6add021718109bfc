"""Who may import whom, read from the source; and what importing costs."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "yw_ray"

ALLOWED = {
    "recipe": set(),
    "baselines": {"recipe"},
    "boxes": set(),
    "data": {"recipe", "data"},
    "models": {"recipe", "boxes", "models"},
    "losses": {"boxes", "models.outputs", "data.sample", "losses"},
    "training": {"recipe", "models", "losses", "data.sample", "training", "weights.official"},
    "evaluation": {"recipe", "models", "data", "evaluation"},
    "weights": {"recipe", "models", "data", "weights"},
    "tracking": {"recipe", "evaluation.ap_table", "training.metric_log", "tracking"},
    "jobs": {
        "recipe", "baselines", "data", "models", "losses", "training", "evaluation", "weights",
        "tracking", "jobs",
    },
    "cli": {"recipe", "jobs", "data", "evaluation", "tracking", "weights", "models"},
}  # fmt: skip
ONLY_IN = {"ray": {"jobs"}, "mlflow": {"tracking"}}
FORBIDDEN = {"data": {"torchvision"}, "tracking": {"torch"}, "recipe": {"torch"}}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_from_the_rooms_its_room_may_use(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"{path} is in no known room"
    for name in imports(path):
        top, _, inner = name.partition(".")
        if top == "yw_ray" and inner:
            assert any(inner == a or inner.startswith(a + ".") for a in ALLOWED[room]), name
        assert room in ONLY_IN.get(top, {room}), f"{room} must not import {top}"
        assert top not in FORBIDDEN.get(room, set()), f"{room} must not import {top}"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name)
def test_an_experiment_imports_only_recipes_and_the_launcher(path: Path) -> None:
    known = ("yw_ray.recipe", "yw_ray.baselines", "yw_ray.jobs.launch", "yw_ray.jobs.sweep")
    for name in imports(path):
        assert name in known or name.split(".")[0] == "ray", name


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    assert not [p.name for p in FILES if len(p.read_text().splitlines()) > 400]


def _fresh(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def test_importing_the_package_or_an_experiment_loads_nothing_heavy() -> None:
    heavy = "import sys; assert not {'torch', 'ray', 'mlflow', 'cv2'} & set(sys.modules)"
    _fresh(f"import yw_ray; {heavy}")
    _fresh(
        f"import sys; sys.path.insert(0, {str(ROOT / 'experiments')!r}); import coco_v2_s; {heavy}"
    )


def test_a_read_task_starts_without_torch() -> None:
    _fresh("import sys; import yw_ray.jobs.read_task; assert 'torch' not in sys.modules")


def test_importing_the_package_takes_less_than_a_fifth_of_a_second() -> None:
    # best of a few, against an empty interpreter: the machine's own noise is not the package's
    empty = min(_fresh("pass") for _ in range(3))
    assert min(_fresh("import yw_ray") for _ in range(3)) - empty < 0.2
