"""Windows: the rows that a plan's window names, read from the shards.

Place in the flow: shards -> here -> `data/feed.py`. Loads no torch: read tasks on other nodes start
with this file alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from yw_ray.data.plan import RowGroup, Window
from yw_ray.data.sample import Record
from yw_ray.data.shards import Manifest, read_row_group, records_from_table


def row_groups(manifest: Manifest, max_rows: int | None = None) -> list[RowGroup]:
    """Row groups of prepared shards in manifest order, the first `max_rows` rows of them."""
    groups: list[RowGroup] = []
    left = max_rows
    for shard in manifest.shards:
        for index, rows in enumerate(shard.row_group_rows):
            take = rows if left is None else min(rows, left)
            left = None if left is None else left - take
            if take:
                groups.append(RowGroup(shard.file, index, take))
    return groups


def read_window(folder: Path, window: Window) -> pa.Table:
    """Rows of a window, in the numbering that `window.order` uses."""
    tables = [
        read_row_group(folder, piece.group.file, piece.group.index).slice(piece.start, piece.rows)
        for piece in window.pieces
    ]
    return pa.concat_tables(tables)


def read_windows(
    folder: Path, wanted: Iterable[tuple[Window, int]]
) -> Iterator[tuple[Window, int, list[Record]]]:
    """The stream without Ray: windows read in this process when they are due."""
    for window, skip in wanted:
        yield window, skip, records_from_table(read_window(folder, window))
