"""B8: strongest response over texts, forward and backward, against the dense contraction.

Values and gradients are compared first. Run: `python benchmarks/b08_attention.py`.
The peer is the form the original computes: one einsum over all texts, then the maximum.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import timing
import torch
from torch import Tensor

from yw_ray.models.fusion import DENSE_TEXTS
from yw_ray.models.running_max import dense_max, running_max

THRESHOLDS = {80: 1.0, 1203: 2.5}
"""Texts -> how many times cheaper than the peer."""


def peer(queries: Tensor, keys: Tensor) -> Tensor:
    """(B, h, c, N) pixels and (B, h, K, c) texts -> (B, h, N), all responses held at once."""
    return torch.einsum("bhcn,bhkc->bhnk", queries, keys).max(dim=-1).values


def ours(queries: Tensor, keys: Tensor) -> Tensor:
    """What the attention blocks call for this many texts."""
    return (dense_max if keys.shape[2] <= DENSE_TEXTS else running_max)(queries, keys)


def main() -> None:
    """Compare, then time, at the finest level of scale s (4 heads, 80 x 80 pixels)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    for num_texts, threshold in THRESHOLDS.items():
        images = torch.randn(args.batch, 128, 80, 80, generator=g)
        images = images.contiguous(memory_format=torch.channels_last)
        queries = images.view(args.batch, 4, 32, 6400).requires_grad_()
        keys = torch.randn(args.batch, 4, num_texts, 32, generator=g).requires_grad_()
        upstream = torch.randn(args.batch, 4, 6400, generator=g)

        def run(function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
            queries.grad = keys.grad = None  # noqa: B023
            out = function(queries, keys)  # noqa: B023
            out.backward(upstream)  # noqa: B023
            assert queries.grad is not None and keys.grad is not None  # noqa: B023
            return [out.detach(), queries.grad, keys.grad]  # noqa: B023

        for a, b in zip(run(ours), run(peer), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        seconds = timing.interleave(
            {"ours": lambda: run(ours), "peer": lambda: run(peer)}, args.repeats
        )
        timing.report(
            f"B8 attention K={num_texts}",
            seconds["ours"],
            seconds["peer"],
            threshold,
            peer_name="einsum + max",
        )


if __name__ == "__main__":
    main()
