"""Launch: what `python experiments/NAME.py` does.

Place in the flow: experiment file -> typed overrides -> checks -> training -> tables -> MLflow.
Cheap to import: torch, ray and mlflow are loaded when a run really starts.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict, ValidationError

from yw_ray.recipe import Recipe, science, to_dotted, with_overrides

Result = TypeVar("Result")


class Command(BaseModel):
    """One experiment: every field of its recipe can be overridden by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the resolved recipe, parameter counts and steps, then stop."""
    print_config: bool = False
    """Print the resolved recipe as JSON, then stop."""
    smoke: bool = False
    """Shrink data, image size and epochs, not the architecture; random text vectors if need be."""


def main(recipe: Recipe, args: Sequence[str] | None = None) -> None:
    """Parse overrides, run, exit: 0 when the run is complete, 2 for what the user can mend."""
    sys.exit(one_line_errors(lambda: _main(recipe, list(sys.argv[1:] if args is None else args))))


def one_line_errors(action: Callable[[], int]) -> int:
    """Run an action; a user's mistake becomes one line on stderr and exit code 2."""
    try:
        return action()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        print(f"error: {where + ': ' if where else ''}{message}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except (RuntimeError, FloatingPointError) as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 2


def parse(kind: Any, args: list[str], *, default: Any = None, prog: str | None = None) -> Any:
    """tyro with errors of one line.

    Raises: ValueError for an unknown option (the nearest one is named) or a bad value.
    """
    caught = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(caught):
            value, unknown = tyro.cli(
                kind, args=args, prog=prog, return_unknown_args=True, **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_condense(caught.getvalue())) from None
    for word in unknown:
        name = word.split("=")[0]
        known = ["--" + key.replace("_", "-") for key in _option_names(default)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists them"
        raise ValueError(f"unknown option {name}{hint}")
    return value


def _flags(args: list[str], recipe: Recipe) -> list[str]:
    """`--augment.mosaic False`, the words of a table, as tyro's `--augment.no-mosaic`."""
    switches = {
        "--" + k.replace("_", "-") for k, v in to_dotted(recipe).items() if isinstance(v, bool)
    }
    out: list[str] = []
    for word in args:
        if out and out[-1] in switches and word.lower() in ("true", "false"):
            if word.lower() == "false":
                head, dot, tail = out[-1].removeprefix("--").rpartition(".")
                out[-1] = f"--{head}{dot}no-{tail}"
            continue
        out.append(word)
    return out


def _option_names(default: Any) -> list[str]:
    if isinstance(default, Command):
        flags = [key for key in Command.model_fields if key != "recipe"]
        return [*to_dotted(default.recipe), *flags]
    return []


def _condense(box: str) -> str:
    """The message inside tyro's box as one line."""
    lines = [line.strip("│╭╮╰╯ ").strip() for line in box.splitlines()]
    body: list[str] = []
    for line in lines:
        if line.startswith("─"):
            if body:
                break
            continue
        if line:
            body.append(line)
    text = " ".join(body)
    if found := re.search(r"Value error, (.*?) \[type=", text):  # pydantic, inside tyro's words
        return found[1]
    return text or "the command line could not be read; see --help"


def smoke(recipe: Recipe) -> Recipe:
    """The same architecture on little data: 160 px, 2 epochs, 64 images, random start.

    Figures of a smoke run say nothing about the row.
    """
    return with_overrides(
        recipe,
        {
            "name": f"{recipe.name}_smoke",
            "init_from": None,
            "published": {},
            "text.encoder": "hashed-words",
            "data.image_size": 160,
            "data.max_train_images": 64,
            "data.max_val_images": 32,
            "data.lanes": 2,
            "schedule.epochs": 2,
            "schedule.global_batch": 8,
            "schedule.close_mosaic_epochs": 1,
            "schedule.warmup_min_steps": 0,
            "schedule.warmup_epochs": 1.0,
            "eval.every_epochs": 1,
            "compute.checkpoint_every_epochs": 1,
            "compute.workers": min(recipe.compute.workers, 2),
        },
    )


def _main(recipe: Recipe, args: list[str]) -> int:
    if "--smoke" in args:  # before overrides, so that these have the last word
        recipe = smoke(recipe)
    command = parse(Command, _flags(args, recipe), default=Command(recipe=recipe))
    if science(command.recipe) != science(recipe):  # another experiment than the published row
        recipe = with_overrides(command.recipe, {"published": {}})
    else:
        recipe = command.recipe
    if command.print_config:
        print(json.dumps(recipe.model_dump(mode="json"), indent=1))
        return 0
    if command.dry_run:
        from yw_ray.jobs.dry_run import describe

        print(describe(recipe))
        return 0
    from yw_ray.jobs.run import run

    run(recipe)
    return 0
