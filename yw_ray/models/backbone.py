"""Image backbone: YOLOv8's CSPDarknet, and the table of scales the whole model is cut from.

Place in the flow: images -> (C3, C4, C5) at strides 8, 16, 32 -> neck.
Source: YOLO-World (arXiv 2401.17270) and its published configurations for s, m, l, x, xl; `n` is
ours, s at half its width, with narrow mask prototypes so that masks too can be learned on a CPU.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from yw_ray.models.layers import ConvBnAct, CspLayer, Sppf

STRIDES = (8, 16, 32)
TEXT_DIM = 512


@dataclass(frozen=True, slots=True)
class Scale:
    """Width and depth factors of one model size, and the channel numbers that follow."""

    depth: float
    width: float
    last_stage: int
    proto_width: int = 256
    """Hidden channels of the mask prototypes; published models never scale them."""

    def channels(self, base: int) -> int:
        """Channels of a convolution, a multiple of 8."""
        return 8 * math.ceil(base * self.width / 8)

    def num_blocks(self, base: int) -> int:
        """Bottlenecks of a CSP layer."""
        return max(round(base * self.depth), 1)

    def rounded(self, base: float) -> int:
        """Embedding widths and head counts of the neck scale with the width, not in eights."""
        return max(round(base * self.width), 1)

    @property
    def pyramid(self) -> tuple[int, int, int]:
        """Channels at strides 8, 16, 32."""
        return self.channels(256), self.channels(512), self.channels(self.last_stage)

    @property
    def num_heads(self) -> tuple[int, int, int]:
        """Attention heads of the neck at strides 8, 16, 32."""
        return self.rounded(4), self.rounded(8), self.rounded(self.last_stage / 2 / 32)


SCALES = {
    "n": Scale(0.33, 0.25, 1024, proto_width=64),
    "s": Scale(0.33, 0.50, 1024),
    "m": Scale(0.67, 0.75, 768),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.25, 512),
    "xl": Scale(1.00, 1.50, 512),
}


class Backbone(nn.Module):
    """Stem and four stages; the last three feed the neck."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        widths = [scale.channels(c) for c in (64, 128, 256, 512, scale.last_stage)]
        blocks = [scale.num_blocks(n) for n in (3, 6, 6, 3)]

        def stage(i: int, *tail: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                ConvBnAct(widths[i], widths[i + 1], 3, 2),
                CspLayer(widths[i + 1], widths[i + 1], blocks[i], shortcut=True),
                *tail,
            )

        self.stem = ConvBnAct(3, widths[0], 3, 2)
        self.stage1 = stage(0)
        self.stage2 = stage(1)
        self.stage3 = stage(2)
        self.stage4 = stage(3, Sppf(widths[4]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) float RGB 0..1 -> maps (B, c, H / s, W / s) at strides 8, 16, 32."""
        c3 = self.stage2(self.stage1(self.stem(images)))
        c4 = self.stage3(c3)
        return c3, c4, self.stage4(c4)
