"""Timing shared by the benchmarks: interleaved variants, ratios, one JSON line.

Place in the flow: imported by `b*.py` beside it; each of them checks that its variants agree before
it times them. CPU seconds of this process are compared, since wall time on a shared machine is
mostly other people's work; wall time is kept beside them.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

WALL: dict[str, list[float]] = {}
"""Wall seconds of the last `interleave`, by variant."""


def interleave(
    variants: dict[str, Callable[[], object]], repeats: int = 7, warmup: int = 1, seed: int = 0
) -> dict[str, list[float]]:
    """CPU seconds of each variant, `repeats` times, in an order shuffled at every repeat.

    Raises: ValueError for fewer than 5 repeats, which cannot show a spread.
    """
    if repeats < 5:
        raise ValueError(f"at least 5 repeats are needed to show a spread, got {repeats}")
    order = list(variants)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in order}
    WALL.clear()
    WALL.update({name: [] for name in order})
    for name in order:
        for _ in range(warmup):
            variants[name]()
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            seconds[name].append(time.process_time() - cpu)
            WALL[name].append(time.perf_counter() - wall)
    return seconds


def report(
    name: str,
    ours: list[float],
    peer: list[float],
    threshold: float,
    *,
    peer_name: str = "reference",
    **more: Any,
) -> dict[str, Any]:
    """Print and return one JSON line: how many times cheaper ours is than the peer.

    ratio: median of peer over median of ours; spread: half the inter-quartile range of the
    ratios of the single repeats; pass: "inconclusive" where the spread exceeds the distance
    between ratio and threshold, otherwise whether the ratio reaches the threshold.
    """
    ratio = statistics.median(peer) / statistics.median(ours)
    low, _, high = statistics.quantiles([p / o for p, o in zip(peer, ours, strict=True)], n=4)
    spread = (high - low) / 2
    verdict: bool | str = ratio >= threshold
    if spread > abs(ratio - threshold):
        verdict = "inconclusive"
    line = {
        "name": name,
        "ratio": round(ratio, 3),
        "peer": peer_name,
        "spread": round(spread, 3),
        "pass": verdict,
        "threshold": threshold,
        "ours_s": round(statistics.median(ours), 6),
        "peer_s": round(statistics.median(peer), 6),
        **more,
    }
    print(json.dumps(line), flush=True)
    return line
