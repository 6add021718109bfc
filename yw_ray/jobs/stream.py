"""Stream: Ray Data executes the plan for one worker.

Place in the flow: shards -> windows of encoded rows (or finished samples) -> `data/feed.py`. Each
train worker runs its own execution over the windows of its own lanes, one block a window, order
preserved; the plan alone decides the order, Ray only reads ahead.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, ExecutionResources

from yw_ray.data.feed import DecodedCache, SampleMaker
from yw_ray.data.plan import Window
from yw_ray.data.sample import Record, Sample
from yw_ray.data.shards import records_from_table
from yw_ray.data.windows import read_window
from yw_ray.jobs.read_task import read_windows_task, window_specs

CHUNK_ROWS = 64
"""Samples that one augmenting task makes; it reads their whole window for the partners."""


def ray_windows(
    folder: Path, wanted: Sequence[tuple[Window, int]], *, cpus: float
) -> Iterator[tuple[Window, int, list[Record]]]:
    """Windows read by Ray tasks, in the order wanted.

    Args:
        folder: of the shards, as every node sees it.
        wanted: windows and the number of their samples that are not used.
        cpus: this worker's share of the logical CPUs for reading.
    """
    windows = [window for window, _ in wanted]
    tables = _execute(windows, partial(read_windows_task, str(folder)), cpus)
    for (window, skip), table in zip(wanted, _joined(tables, windows), strict=True):
        yield window, skip, records_from_table(table.drop_columns(["window"]))


def ray_samples(
    folder: Path,
    wanted: Sequence[tuple[Window, int]],
    lanes: Sequence[int],
    make: SampleMaker,
    *,
    cpus: float,
    cache_bytes: int,
) -> Iterator[Sample]:
    """Finished samples made by Ray tasks on any node, in the order of `lanes`.

    The same samples, bit for bit, as threads of the worker make from `ray_windows`.
    """
    chunks: list[tuple[int, Window]] = []
    position: dict[int, int] = {}
    for window, skip in wanted:
        left = window.order[skip:]
        for at in range(0, len(left), CHUNK_ROWS):
            order = left[at : at + CHUNK_ROWS]
            part = Window(window.epoch, window.lane, window.index, window.pieces, order)
            chunks.append((position.get(window.lane, 0), part))
            position[window.lane] = position.get(window.lane, 0) + len(order)
    chunks.sort(key=lambda item: (item[0], item[1].lane))  # in the order of need
    parts = [part for _, part in chunks]
    tables = _execute(parts, partial(_augment, str(folder), make, cache_bytes), cpus)
    ready: dict[int, list[Sample]] = {}
    for lane in lanes:
        while not ready.get(lane):
            table = next(tables)
            part = parts[table["window"][0].as_py()]
            samples = [pickle.loads(value.as_py()) for value in table["sample"]]
            ready.setdefault(part.lane, []).extend(samples)
        yield ready[lane].pop(0)


def _execute(windows: Sequence[Window], task: Any, cpus: float) -> Iterator[pa.Table]:
    """One ordered Ray Data execution with a block for each window."""
    if not windows:
        return iter(())
    context = DataContext.get_current().copy()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=max(cpus, 1))
    with DataContext.current(context):
        items = [
            {"window": number, "spec": pickle.dumps(window)}
            for number, window in enumerate(windows)
        ]
        data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            task,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=min(cpus, 1.0),
            zero_copy_batch=True,
        )
        return iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))


def _augment(
    folder: str, make: SampleMaker, cache_bytes: int, batch: pa.Table
) -> Iterator[pa.Table]:
    """Ray task: the finished samples of each part of a window."""
    for number, window in window_specs(batch):
        records = records_from_table(read_window(Path(folder), window))
        cache = DecodedCache(cache_bytes)
        samples = [make(window, records, row, cache) for row in window.order]
        blobs = pa.array(
            [pickle.dumps(sample, protocol=5) for sample in samples], pa.large_binary()
        )
        numbers = pa.array(np.full(len(samples), number, np.int32))
        yield pa.table({"window": numbers, "sample": blobs})


def _joined(tables: Iterator[pa.Table], windows: Sequence[Window]) -> Iterator[pa.Table]:
    """One table for each window; Ray may have cut a large one into several blocks.

    Raises: RuntimeError if windows arrive out of order: the plan's order would be lost.
    """
    number, parts, rows = 0, [], 0
    for table in tables:
        seen = set(table["window"].unique().to_pylist())
        if seen != {number}:
            raise RuntimeError(f"the stream gave window {sorted(seen)} where {number} was due")
        parts.append(table)
        rows += table.num_rows
        if rows == sum(piece.rows for piece in windows[number].pieces):
            yield pa.concat_tables(parts)
            number, parts, rows = number + 1, [], 0
