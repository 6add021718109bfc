"""Read task: what Ray runs on a node to read windows; loads neither torch nor the transforms.

Place in the flow: `jobs/stream.py` sends it out, one window a block.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from yw_ray.data.plan import Window
from yw_ray.data.windows import read_window


def read_windows_task(folder: str, batch: pa.Table) -> Iterator[pa.Table]:
    """The rows of each window of `batch`, marked with its number in a column `window`."""
    for number, window in window_specs(batch):
        table = read_window(Path(folder), window)
        yield table.append_column("window", pa.array(np.full(table.num_rows, number, np.int32)))


def window_specs(batch: pa.Table) -> Iterator[tuple[int, Window]]:
    """Number and window of each row that `jobs/stream.py` made."""
    for number, spec in zip(batch["window"].to_pylist(), batch["spec"].to_pylist(), strict=True):
        yield number, pickle.loads(spec)
