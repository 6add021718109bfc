"""Plan: which samples make global batch (epoch, step), as a pure function.

Place in the flow: manifest + seed -> plan -> windows to read and the order inside them. The order
depends on (dataset digest, seed, epoch, step) and on nothing else: not on the worker count, not on
timing, not on restarts. Number `i` of an epoch's samples belongs to lane `i mod L`; worker `r` of
`W` serves the lanes `l` with `l mod W == r`. Global batch `step` is the numbers
`step * G ... (step + 1) * G - 1`. Numbers past the last row are padding, all of it in the last
batch, and repeat rows of the lane's last window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_GROUPS, _WINDOW, _SAMPLE = 0, 1, 2
"""Separate random streams of one seed: order of row groups, order in a window, one sample."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a shard: its file, its number in the file and its count of rows."""

    file: str
    index: int
    rows: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start ... stop - 1` of one row group."""

    group: RowGroup
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Window:
    """What is read together: a lane's rows among which partners are drawn.

    pieces: parts of row groups, their rows numbered through; order: (n,) numbers of those rows in
    the order in which they are used; padding: how many of `order`'s last entries repeat rows.
    """

    epoch: int
    lane: int
    index: int
    pieces: tuple[Piece, ...]
    order: tuple[int, ...]
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the training order: the next step to take."""

    epoch: int = 0
    step: int = 0


class Plan:
    """The order of all epochs of a run.

    Args:
        groups: row groups of the data set, in manifest order.
        digest: the data set's digest; other data, other order.
        seed: of the recipe.
        lanes: L, fixed in the recipe.
        window_rows: rows of a window.
        global_batch: images of one optimiser step.
    Raises: ValueError if there are no rows.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        *,
        digest: str,
        seed: int,
        lanes: int,
        window_rows: int,
        global_batch: int,
    ) -> None:
        self.groups = tuple(groups)
        self.num_rows = sum(group.rows for group in self.groups)
        if self.num_rows == 0:
            raise ValueError("the training shards hold no images; prepare a data set with images")
        self.lanes, self.window_rows, self.global_batch = lanes, window_rows, global_batch
        self._seed = (int(digest[:16], 16), seed)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.global_batch)

    @property
    def padding(self) -> int:
        """Repeated samples in the last batch of each epoch."""
        return self.steps_per_epoch * self.global_batch - self.num_rows

    def sample_rng(self, epoch: int, image_id: int) -> np.random.Generator:
        """The generator of one image in one epoch: `(seed, epoch, image id)`."""
        return np.random.default_rng((*self._seed, _SAMPLE, epoch, image_id))

    def lane_windows(self, epoch: int, lane: int) -> list[Window]:
        """All windows of a lane, in order, the last one with the lane's padding."""
        groups, ends = self._permuted(epoch)
        n, lanes = self.num_rows, self.lanes
        share = [n // lanes + (k < n % lanes) for k in range(lanes)]
        begin = sum(share[:lane])
        rows = share[lane]
        total = self.steps_per_epoch * self.global_batch
        wanted = total // lanes + (lane < total % lanes)
        if rows == 0:  # fewer rows than lanes: the lane is padding alone
            begin, rows, real = lane % n, 1, 0
        else:
            real = rows
        windows = []
        for index, low in enumerate(range(0, rows, self.window_rows)):
            high = min(low + self.window_rows, rows)
            pieces = tuple(_cut(groups, ends, begin + low, begin + high))
            mix = np.random.default_rng((*self._seed, _WINDOW, epoch, lane, index))
            order = mix.permutation(high - low).tolist()
            padding = 0
            if high == rows:
                order = order if real else []
                padding = wanted - real
                cycle = order or list(range(high - low))
                order = order + [cycle[k % len(cycle)] for k in range(padding)]
            windows.append(Window(epoch, lane, index, pieces, tuple(order), padding))
        return windows

    def worker_windows(
        self, epoch: int, rank: int, world: int, first_step: int = 0
    ) -> list[tuple[Window, int]]:
        """Windows that a worker reads, in the order it first needs them, each with the number of
        its samples that lie before `first_step` and are not used again.

        Raises: ValueError if the worker count does not divide the lanes or the global batch.
        """
        check_world(world, self.lanes, self.global_batch)
        found = []
        for lane in range(rank, self.lanes, world):
            used = self._lane_position(lane, first_step)
            begin = 0
            for window in self.lane_windows(epoch, lane):
                end = begin + len(window.order)
                if end > used:
                    found.append((begin, lane, window, max(0, used - begin)))
                begin = end
        found.sort(key=lambda item: (item[0], item[1]))
        return [(window, skip) for _, _, window, skip in found]

    def worker_lanes(self, rank: int, world: int, step: int) -> list[int]:
        """The lane of each of a worker's samples of a step, in order."""
        first = step * self.global_batch
        return [
            i % self.lanes
            for i in range(first, first + self.global_batch)
            if i % self.lanes % world == rank
        ]

    def _permuted(self, epoch: int) -> tuple[list[RowGroup], np.ndarray]:
        """Row groups in the order of an epoch and their cumulated rows."""
        rng = np.random.default_rng((*self._seed, _GROUPS, epoch))
        groups = [self.groups[i] for i in rng.permutation(len(self.groups))]
        return groups, np.cumsum([group.rows for group in groups])

    def _lane_position(self, lane: int, step: int) -> int:
        """How many samples a lane has given before `step`."""
        total = step * self.global_batch
        return total // self.lanes + (lane < total % self.lanes)


def share_windows(
    groups: Sequence[RowGroup], *, rank: int, world: int, window_rows: int
) -> list[Window]:
    """A worker's share of a data set read once and in order, as evaluation does.

    Shares are consecutive, differ by at most one row, and cover every row exactly once.
    """
    total = sum(group.rows for group in groups)
    begin, end = total * rank // world, total * (rank + 1) // world
    ends = np.cumsum([group.rows for group in groups])
    windows = []
    for index, low in enumerate(range(begin, end, window_rows)):
        high = min(low + window_rows, end)
        pieces = tuple(_cut(groups, ends, low, high))
        windows.append(Window(0, rank, index, pieces, tuple(range(high - low))))
    return windows


def check_world(world: int, lanes: int, global_batch: int) -> None:
    """Refuse a worker count under which the order could not be kept.

    Raises: ValueError naming the counts that are possible.
    """
    if lanes % world or global_batch % world:
        valid = [w for w in range(1, lanes + 1) if lanes % w == 0 and global_batch % w == 0]
        nearest = sorted(sorted(valid, key=lambda w: abs(w - world))[:2])
        raise ValueError(
            f"{world} workers cannot share {lanes} lanes and a global batch of {global_batch}; "
            f"set compute.workers to {' or '.join(map(str, nearest))} (possible: {valid})"
        )


def epoch_ids(plan: Plan, ids: Sequence[Sequence[int]], epoch: int) -> np.ndarray:
    """Image ids of a whole epoch in global order, padding included.

    Args:
        ids: per row group of the plan, in its order, the image ids of its rows.
    Returns: (steps, global_batch) int64.
    """
    number = {group: k for k, group in enumerate(plan.groups)}
    lanes = []
    for lane in range(plan.lanes):
        out: list[int] = []
        for window in plan.lane_windows(epoch, lane):
            rows = [
                ids[number[piece.group]][row]
                for piece in window.pieces
                for row in range(piece.start, piece.stop)
            ]
            out.extend(rows[k] for k in window.order)
        lanes.append(iter(out))
    total = plan.steps_per_epoch * plan.global_batch
    order = [next(lanes[i % plan.lanes]) for i in range(total)]
    return np.asarray(order, np.int64).reshape(plan.steps_per_epoch, plan.global_batch)


def _cut(groups: Sequence[RowGroup], ends: np.ndarray, begin: int, end: int) -> Iterator[Piece]:
    """Pieces that hold rows `begin ... end - 1` of the groups; ends: their cumulated rows."""
    for k in range(int(np.searchsorted(ends, begin, side="right")), len(groups)):
        at = int(ends[k]) - groups[k].rows
        if at >= end:
            return
        yield Piece(groups[k], max(begin - at, 0), min(end - at, groups[k].rows))
