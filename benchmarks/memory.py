"""Peak memory shared by the benchmarks: what a call needs above what is there already.

Place in the flow: imported by `b*.py` beside `timing.py`. On a GPU the allocator's own count; on
Linux the kernel's peak of this process, reset before the call.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_mb(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Megabytes that `call` needs at its peak beyond those held when it starts."""
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # freed blocks that linger would hide a need for them
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    call()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory needs Linux")


def report_peak(
    name: str, ours: list[float], peer: list[float], threshold: float, **more: Any
) -> dict[str, Any]:
    """Print and return one JSON line: how many times less memory ours needs than the peer.

    Args: ours, peer: peaks in megabytes of repeated calls. Other fields as in `timing.report`.
    """
    ratios = [p / max(o, 0.1) for p, o in zip(peer, ours, strict=True)]
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4)
    spread = (high - low) / 2
    verdict: bool | str = ratio >= threshold
    if spread > abs(ratio - threshold):
        verdict = "inconclusive"
    line = {
        "name": name,
        "ratio": round(ratio, 2),
        "peer": "reference",
        "spread": round(spread, 2),
        "pass": verdict,
        "threshold": threshold,
        "ours_mb": round(statistics.median(ours), 1),
        "peer_mb": round(statistics.median(peer), 1),
        **more,
    }
    print(json.dumps(line), flush=True)
    return line
