"""B1: cv2.imdecode, as `pipelines.load` uses it, against torchvision and PIL.

    python benchmarks/b01_decode.py [--images 60]

JPEG bytes in memory to pixels, one thread. Checks first that all give the same bytes (torchvision
and PIL in RGB order), then times. The pass mark is against the quicker of the two.
Not covered: progressive and grey JPEGs, cold storage.
"""

from __future__ import annotations

import argparse
import io
import statistics

import cv2
import numpy as np
import torch
from photos import photo_records
from PIL import Image
from timing import interleave, report
from torchvision.io import decode_jpeg


def by_cv2(coded: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def by_torchvision(coded: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(coded), dtype=torch.uint8))


def by_pil(coded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(coded)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    count = parser.parse_args().images
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    coded = [r.jpeg for r in photo_records(count)]
    for one in coded:
        rgb = by_cv2(one)[..., ::-1]
        np.testing.assert_array_equal(by_torchvision(one).permute(1, 2, 0).numpy(), rgb)
        np.testing.assert_array_equal(by_pil(one), rgb)
    decoders = {"cv2": by_cv2, "torchvision": by_torchvision, "pil": by_pil}
    seconds = interleave(
        {name: lambda d=decode: [d(one) for one in coded] for name, decode in decoders.items()},
        repeats=9,
    )
    best = min(("torchvision", "pil"), key=lambda name: statistics.median(seconds[name]))
    report(
        "b01_decode",
        seconds["cv2"],
        seconds[best],
        0.9,
        peer_name=best,
        images=count,
        mean_kb=round(sum(map(len, coded)) / count / 1000, 1),
        pil_s=round(statistics.median(seconds["pil"]), 6),
    )


if __name__ == "__main__":
    main()
