"""Place: where a worker stands and how it reaches the outside; no Ray in it.

Place in the flow: made by `jobs/train.py` (under Ray Train or in this process), used by
`jobs/worker.py` and `jobs/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from yw_ray.data.feed import SampleMaker
from yw_ray.data.plan import Window
from yw_ray.data.sample import Record, Sample
from yw_ray.data.windows import read_windows

WindowReader = Callable[
    [Path, Sequence[tuple[Window, int]]], Iterator[tuple[Window, int, list[Record]]]
]
SampleReader = Callable[
    [Path, Sequence[tuple[Window, int]], Sequence[int], SampleMaker], Iterator[Sample]
]


def no_report(_: dict[str, Any]) -> None:
    """A report to nobody."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker stands.

    read: gives windows of encoded rows; make_samples: finished samples made elsewhere, or None for
    threads of this process; report: called by all ranks once an epoch, a barrier under Ray.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    read: WindowReader = read_windows
    make_samples: SampleReader | None = None
    report: Callable[[dict[str, Any]], None] = no_report

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def average_buffers(self, *models: nn.Module) -> None:
        """Give all ranks the mean of their floating-point buffers.

        Batch-norm statistics differ between workers where batch norm is not synchronised (CPU).
        """
        if self.world == 1:
            return
        for model in models:
            buffers = [b for b in model.buffers() if b.is_floating_point()]
            if not buffers:
                continue
            flat = torch.cat([b.reshape(-1) for b in buffers])
            dist.all_reduce(flat)
            flat /= self.world
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
