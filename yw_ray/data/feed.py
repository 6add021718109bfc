"""Feed: windows of encoded rows in, ordered step batches out, made by a few threads.

Place in the flow: the stream (`jobs/stream.py`, or `read_windows` without Ray) hands windows
over; a train worker takes `StepBatch` values in the plan's order. Pixels are made by the pure
`augment`; which thread or process makes them changes nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from yw_ray.data.collate import collate
from yw_ray.data.pipelines import augment, load
from yw_ray.data.plan import Plan, Window
from yw_ray.data.sample import Record, Sample, StepBatch
from yw_ray.data.shards import Manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.data.windows import row_groups
from yw_ray.recipe import Recipe


class DecodedCache:
    """Decoded pictures of open windows, bounded by bytes, least recently used out first.

    A picture that was dropped is decoded again when asked for: the bound costs time, never order.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max, self._bytes = max_bytes, 0
        self._items: OrderedDict[tuple[int, int, int], Sample] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int], make: Callable[[], Sample]) -> Sample:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        sample = make()
        with self._lock:
            if key not in self._items:
                self._items[key] = sample
                self._bytes += sample.image.nbytes
                while self._bytes > self._max and len(self._items) > 1:
                    self._bytes -= self._items.popitem(last=False)[1].image.nbytes
        return sample

    def drop_window(self, lane: int, index: int) -> None:
        """Forget a window that is used up."""
        with self._lock:
            for key in [key for key in self._items if key[:2] == (lane, index)]:
                self._bytes -= self._items.pop(key).image.nbytes


class SampleMaker:
    """Makes the training sample of a window's row: the one place that joins plan and pixels."""

    def __init__(self, recipe: Recipe, plan: Plan, vocabulary: Vocabulary | None) -> None:
        self._recipe, self._plan, self._vocabulary = recipe, plan, vocabulary
        self._close_from = recipe.schedule.epochs - recipe.schedule.close_mosaic_epochs

    def __call__(
        self, window: Window, records: list[Record], row: int, cache: DecodedCache
    ) -> Sample:
        recipe = self._recipe
        fetch = partial(self._fetch, window, records, cache)

        def draw(rng: np.random.Generator) -> Sample:
            return fetch(int(rng.integers(len(records))))

        return augment(
            fetch(row),
            draw,
            self._plan.sample_rng(window.epoch, records[row].image_id),
            recipe.augment,
            recipe.data,
            num_texts=recipe.text.num_train_texts,
            vocabulary=self._vocabulary,
            close_mosaic=window.epoch >= self._close_from,
            segmentation=recipe.model.segmentation,
        )

    def _fetch(
        self, window: Window, records: list[Record], cache: DecodedCache, row: int
    ) -> Sample:
        make = partial(load, records[row], self._recipe.augment.mask_refine)
        return cache.get((window.lane, window.index, row), make)


def plan_for(recipe: Recipe, manifest: Manifest) -> Plan:
    """The order of a run over prepared shards."""
    return Plan(
        row_groups(manifest, recipe.data.max_train_images),
        digest=manifest.dataset_digest,
        seed=recipe.seed,
        lanes=recipe.data.lanes,
        window_rows=recipe.data.window_rows,
        global_batch=recipe.schedule.global_batch,
    )


def ordered_samples(
    windows: Iterator[tuple[Window, int, list[Record]]],
    lanes: Iterable[int],
    make: SampleMaker,
    *,
    threads: int,
    cache_bytes: int,
    ahead: int,
) -> Iterator[Sample]:
    """Samples in the order of `lanes`, made by `threads` threads up to `ahead` in advance.

    Args:
        windows: windows with the number of their samples to leave out, in the order of need.
        lanes: for each sample to give, the lane that gives it.
    """
    cache = DecodedCache(cache_bytes)
    opened: dict[int, tuple[Window, list[Record], deque[int]]] = {}
    waiting: dict[int, deque[tuple[Window, int, list[Record]]]] = {}

    def next_of(lane: int) -> tuple[Window, list[Record], int]:
        while lane not in opened:
            if waiting.get(lane):
                window, skip, records = waiting[lane].popleft()
            else:
                window, skip, records = next(windows)
                if window.lane != lane:
                    waiting.setdefault(window.lane, deque()).append((window, skip, records))
                    continue
            opened[lane] = (window, records, deque(window.order[skip:]))
        window, records, left = opened[lane]
        row = left.popleft()
        if not left:
            del opened[lane]
        return window, records, row

    pending: deque[tuple[Future[Sample], Window, bool]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="augment") as pool:
        try:
            for lane in lanes:
                window, records, row = next_of(lane)
                task = pool.submit(make, window, records, row, cache)
                pending.append((task, window, lane not in opened))
                if len(pending) > ahead:
                    yield _finish(pending, cache)
            while pending:
                yield _finish(pending, cache)
        finally:
            for task, _, _ in pending:
                task.cancel()


def _finish(pending: deque[tuple[Future[Sample], Window, bool]], cache: DecodedCache) -> Sample:
    task, window, last = pending.popleft()
    sample = task.result()
    if last:
        cache.drop_window(window.lane, window.index)
    return sample


def step_batches(
    samples: Iterator[Sample],
    plan: Plan,
    *,
    epoch: int,
    first_step: int,
    rank: int,
    world: int,
    max_images: int,
) -> Iterator[StepBatch]:
    """Collate a worker's ordered samples into its share of each step, lane by lane."""
    for step in range(first_step, plan.steps_per_epoch):
        lanes = plan.worker_lanes(rank, world, step)
        taken = sorted(
            ((lane, k, next(samples)) for k, lane in enumerate(lanes)), key=lambda t: t[:2]
        )
        num_lanes = len(set(lanes))
        size = len(lanes) // num_lanes
        joined = max(
            k
            for k in range(1, num_lanes + 1)
            if num_lanes % k == 0 and k * size <= max(max_images, size)
        )
        chunk = joined * size
        micro = tuple(
            collate([sample for _, _, sample in taken[at : at + chunk]])
            for at in range(0, len(taken), chunk)
        )
        yield StepBatch(epoch=epoch, step=step, micro=micro, groups=joined)
