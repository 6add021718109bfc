"""Checkpoints: one folder per saved step, whole or not there at all.

Place in the flow: rank 0 of `jobs/worker.py` saves after an epoch; a restarted run takes the
newest whole one and goes on at its cursor. Keys of weights are our own module names.
A folder is written under a hidden name, every file flushed to the disk, `manifest.json` (size and
SHA-256 of each file) last, and then renamed; so a kill at any byte leaves the earlier ones whole.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from yw_ray.recipe import Recipe
from yw_ray.training.ema import Ema

_log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_REPLACED = ".replaced"


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    cursor: tuple[int, int],
    recipe: Recipe,
    dataset_digest: str,
    scaler: torch.amp.GradScaler | None = None,
    generators: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a `TrainState` folder; it appears whole or not at all.

    Args:
        folder: final name; one of the same name is replaced, and kept until the new one is there.
        cursor: (epoch, step) of the next step to run.
        generators: random states to restore (`generator_states`); extra: plain values.
    Returns: folder.
    Raises: OSError in one line when the disk refuses; earlier checkpoints are untouched.
    """
    unfinished = folder.parent / f"{_UNFINISHED}{folder.name}"
    state = {
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "generators": generators or {},
        "cursor": list(cursor),
        "extra": extra or {},
    }
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        files = {
            "model.pt": _write(unfinished / "model.pt", _torch_bytes(model.state_dict())),
            "ema.pt": _write(unfinished / "ema.pt", _torch_bytes(ema.state_dict())),
            "state.pt": _write(unfinished / "state.pt", _torch_bytes(state)),
            "recipe.json": _write(
                unfinished / "recipe.json", _text_bytes(recipe.model_dump_json(indent=1))
            ),
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "cursor": list(cursor),
            "dataset_digest": dataset_digest,
            "files": files,
        }
        manifest["seal"] = _seal(manifest)
        _write(unfinished / MANIFEST, _text_bytes(json.dumps(manifest, indent=1)))
        _sync_folder(unfinished)
        _publish(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free if folder.parent.is_dir() else 0
        raise OSError(
            error.errno or errno.EIO,
            f"checkpoint {folder} could not be written ({os.strerror(error.errno or errno.EIO)}, "
            f"{free / 1e6:.0f} MB free); earlier checkpoints are whole; make room or change "
            "tracking.storage, then start again to resume",
        ) from error
    return folder


def load_checkpoint(folder: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint after checking it against its manifest; no code in it is ever run.

    Returns: model, ema, optimizer, scaler, generators (state dicts), cursor (epoch, step), recipe
        (plain dict, for `Recipe.model_validate`), dataset_digest, extra.
    Raises: ValueError naming the file that is missing or damaged.
    """
    manifest = _checked_manifest(folder)
    loaded = {
        name: torch.load(folder / f"{name}.pt", map_location=device, weights_only=True)
        for name in ("model", "ema", "state")
    }
    state = loaded.pop("state")
    epoch, step = state["cursor"]
    return {
        **loaded,
        **state,
        "cursor": (int(epoch), int(step)),
        "recipe": json.loads((folder / "recipe.json").read_text()),
        "dataset_digest": manifest["dataset_digest"],
    }


def latest_checkpoint(root: Path) -> Path | None:
    """The whole checkpoint under `root` with the furthest cursor, or None.

    Damaged and incomplete ones are passed over with a warning that names them and the defect.
    """
    for folder in _by_cursor(root):
        try:
            _checked_manifest(folder)
        except ValueError as error:
            _log.warning("passing over %s", error)
        else:
            return folder
    return None


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` furthest checkpoints, and what killed runs left unfinished.

    Folders that fail the quick check (sizes) do not count and are left for inspection.
    Returns: removed checkpoints.
    """
    assert keep >= 1, "the last checkpoint is never removed"
    whole: list[Path] = []
    for folder in _by_cursor(root):
        try:
            _checked_manifest(folder, contents=False)
        except ValueError:
            continue
        whole.append(folder)
    twins = [f for f in whole if f.name.endswith(_REPLACED) and _final_name(f) in whole]
    spare = twins + [folder for folder in whole if folder not in twins][keep:]
    _remove_unfinished(root)
    for folder in spare:
        # a kill while removing must not leave a half-empty folder under a checkpoint's name
        os.replace(folder, root / f"{_UNFINISHED}{folder.name}")
    _remove_unfinished(root)
    return spare


def generator_states() -> dict[str, Any]:
    """States of torch's global generators; data order and augmentation need none."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Undo `generator_states`; a machine with other GPUs keeps its own GPU states."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    cuda = states.get("cuda", [])
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in cuda])


class _HashedFile(io.RawIOBase):
    """Counts and hashes what passes to a file.

    The serializer behind `torch.save` does not survive an exception from its file, so the first
    error is kept and the rest is swallowed; the caller looks at `error` when it is done.
    """

    def __init__(self, sink: io.BufferedWriter) -> None:
        self.sink = sink
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self.sink.write(data)
            except OSError as error:
                self.error = error
            self.digest.update(data)
            self.size += size
        return size


def _torch_bytes(value: Any) -> Callable[[_HashedFile], object]:
    return lambda out: torch.save(value, cast(IO[bytes], out))


def _text_bytes(text: str) -> Callable[[_HashedFile], object]:
    return lambda out: out.write(text.encode())


def _write(path: Path, fill: Callable[[_HashedFile], object]) -> dict[str, Any]:
    """Write one file down to the disk. Returns: its manifest entry."""
    with path.open("wb") as sink:
        out = _HashedFile(sink)
        fill(out)
        if out.error is not None:
            raise out.error
        sink.flush()
        os.fsync(sink.fileno())
    return {"bytes": out.size, "sha256": out.digest.hexdigest()}


def _publish(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its name; an older one of that name exists until then."""
    replaced = folder.with_name(folder.name + _REPLACED)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(folder, replaced)
    os.rename(unfinished, folder)
    _sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _final_name(replaced: Path) -> Path:
    return replaced.with_name(replaced.name.removesuffix(_REPLACED))


def _remove_unfinished(root: Path) -> None:
    for leftover in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _by_cursor(root: Path) -> list[Path]:
    """Candidate folders, furthest cursor first; those without a readable one come first of all."""
    if not root.is_dir():
        return []
    ranked = []
    for folder in root.iterdir():
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            epoch, step = json.loads((folder / MANIFEST).read_text())["cursor"]
            cursor = (float(epoch), float(step))
        except (OSError, ValueError, KeyError, TypeError):
            cursor = (float("inf"), 0.0)  # judged, reported and passed over by the caller
        ranked.append((cursor, not folder.name.endswith(_REPLACED), folder.name, folder))
    return [entry[-1] for entry in sorted(ranked, reverse=True)]


def _checked_manifest(folder: Path, *, contents: bool = True) -> dict[str, Any]:
    """The manifest, after every file was found with its size (and, with `contents`, its hash)."""
    hint = "use an earlier checkpoint"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.pop("seal") != _seal(manifest):
            raise ValueError("seal")
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {MANIFEST}, expected a whole checkpoint; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder}: {MANIFEST} is damaged; {hint}") from None
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{folder}: format {manifest['format']}, expected {FORMAT}; "
            "load it with the version that wrote it"
        )
    for name, entry in manifest["files"].items():
        size, sha256 = entry["bytes"], entry["sha256"]
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing; {hint}")
        if path.stat().st_size != size:
            raise ValueError(
                f"{folder}: {name} has {path.stat().st_size} bytes, expected {size}; {hint}"
            )
        if contents and _sha256(path) != sha256:
            raise ValueError(f"{folder}: {name} does not have its recorded content; {hint}")
    return manifest


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
