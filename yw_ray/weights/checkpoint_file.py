"""Reading a checkpoint file without running anything it says.

Place in the flow: a `.pth` file -> nested dictionaries of tensors -> `official.py`.
Published files keep framework objects beside their tensors. What torch's weights-only loader
refuses is read by an unpickler of our own, which knows tensors and replaces every other class by
an inert stand-in: nothing a file names is imported or called.
"""

import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Standard-library names seen in honest files. They too are only stood in for; any other
# standard-library name has no business in a checkpoint and marks the file as hostile.
_PLAIN_MODULES = {"collections", "copyreg", "datetime", "decimal", "enum", "pathlib", "uuid"}
_PLAIN_NAMES = {("_codecs", "encode"), ("argparse", "Namespace")} | {
    (module, name)
    for module in ("builtins", "__builtin__")
    for name in (
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr"),
        *("int", "list", "object", "range", "set", "slice", "str", "tuple"),
    )
}
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StandIn:
    """What became of an object whose class we do not load: nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Lists of unknown kinds are filled item by item."""

    def extend(self, items: Any) -> None:
        """Lists of unknown kinds are filled in runs."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary a checkpoint file holds, tensors on the CPU.

    Raises: ValueError in one line for a file that is missing, damaged, of another kind, or that
    asks for code to be run.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist; give the path of a .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pickle protocol it does not know: read below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        content = _read_tensors_only(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, expected a dict")
    return dict(content)


def _read_tensors_only(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"checkpoint {path} is no torch zip file or is damaged; save it again with torch.save"
        )
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"checkpoint {path} holds {len(pickles)} data.pkl, expected one")
        folder = pickles[0][: -len("data.pkl")]
        try:
            with archive.open(pickles[0]) as stream:
                return _TensorsOnly(stream, archive, folder, path).load()
        except (
            *(pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError),
            *(TypeError, RuntimeError, zipfile.BadZipFile),
        ) as error:
            raise ValueError(f"checkpoint {path} is damaged: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors, plain containers and stand-ins; looks nothing up in the interpreter."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder
        self._path = path
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _BUILDERS[name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        known = module in _PLAIN_MODULES or (module, name) in _PLAIN_NAMES
        if not known and module.partition(".")[0] in (*sys.stdlib_module_names, "__builtin__"):
            raise ValueError(
                f"checkpoint {self._path} asks to run {module}.{name}, which no checkpoint needs; "
                f"refused, nothing was run: get the file from a source you trust"
            )
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, numel = pid
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or not isinstance(dtype, torch.dtype):
                raise pickle.UnpicklingError(f"tensor data {key} is stored in an unknown form")
            data = bytearray(self._archive.read(entry))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if len(flat) < numel:
                raise pickle.UnpicklingError(f"tensor data {key} is cut short")
            self._storages[key] = flat
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_BUILDERS: dict[str, Callable[..., Tensor]] = {
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_parameter": _rebuild_parameter,
}
