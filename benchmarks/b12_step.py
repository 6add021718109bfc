"""B12: forward and forward + backward of each model size, against ultralytics' worldv2.

Parameters and counted operations are compared first: the same network is timed on both sides.
Run: `python benchmarks/b12_step.py --sizes s m`. ultralytics is an optional extra of the benchmark
environment alone; without it our own times are printed and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import ModelConfig

THRESHOLD = 1.0
FIXED_PEER_PARAMETERS = 16
"""The peer keeps the values of its 16 distance bins as a fixed convolution."""


def build_peer(size: str) -> nn.Module | None:
    """ultralytics' worldv2 of the same size giving raw maps, or None where it is not installed."""
    try:
        from ultralytics.nn.tasks import WorldModel
    except ImportError:
        return None
    return WorldModel(f"yolov8{size}-worldv2.yaml", nc=80, verbose=False)


def peer_mode(peer: nn.Module, train: bool) -> None:
    """Batch norms as asked; the head always returns raw maps, as ours does."""
    peer.train(train)
    peer.model[-1].training = True  # type: ignore[index, union-attr]


def leaves(outputs: Any) -> list[Tensor]:
    """Class and box maps of either model."""
    if isinstance(outputs, dict):
        return [outputs["boxes"], outputs["scores"]]
    return [*outputs.cls_logits, *outputs.box_dist]


def step(model: nn.Module, call: Callable[[], Any]) -> None:
    """One forward and backward."""
    for parameter in model.parameters():
        parameter.grad = None
    torch.stack([t.square().mean() for t in leaves(call())]).sum().backward()


def counted(call: Callable[[], Any]) -> int:
    """Operations of one forward."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def judge(name: str, variants: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Time the variants and print one line."""
    seconds = timing.interleave(variants, repeats)
    if "peer" in seconds:
        timing.report(name, seconds["ours"], seconds["peer"], THRESHOLD, peer_name="ultralytics")
        return
    ours = statistics.median(seconds["ours"])
    line = {"name": name, "ratio": None, "peer": None, "spread": None, "pass": "not judged"}
    print(json.dumps({**line, "ours_s": round(ours, 4)}), flush=True)


def main() -> None:
    """Each size: the same work on both sides, then times for one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["s"], choices=["n", "s", "m", "l", "x"])
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = args.image_size
    images = torch.rand(args.batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    texts = nn.functional.normalize(torch.randn(args.batch, 80, 512), dim=-1)
    for size in args.sizes:
        model = build_model(ModelConfig.model_validate({"size": size}))
        model.to(memory_format=torch.channels_last)
        models: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
            "ours": (model, lambda model=model: model(images, texts))  # type: ignore[misc]
        }
        peer = build_peer(size)
        if peer is None:
            print("ultralytics is not installed: nothing to compare with", flush=True)
        else:
            peer.to(memory_format=torch.channels_last)
            peer_mode(peer, train=False)
            models["peer"] = (peer, lambda peer=peer: peer(images))  # type: ignore[misc]
            sizes = [sum(p.numel() for p in m.parameters()) for m, _ in models.values()]
            assert sizes[1] - sizes[0] == FIXED_PEER_PARAMETERS, sizes
            flops = [counted(call) for _, call in models.values()]
            assert abs(flops[1] / flops[0] - 1) < 0.01, flops

        model.eval()

        def forward(call: Callable[[], Any]) -> None:
            with torch.no_grad():
                call()

        label = f"{size} {side}px batch {args.batch}"
        judge(
            f"B12 forward {label}",
            {name: lambda call=call: forward(call) for name, (_, call) in models.items()},  # type: ignore[misc]
            args.repeats,
        )
        model.train()
        if peer is not None:
            peer_mode(peer, train=True)
        judge(
            f"B12 forward + backward {label}",
            {name: lambda m=m, call=call: step(m, call) for name, (m, call) in models.items()},  # type: ignore[misc]
            args.repeats,
        )


if __name__ == "__main__":
    main()
