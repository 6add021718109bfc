"""Convolution blocks shared by backbone, neck and head.

Place in the flow: the smallest parts; `backbone.py`, `neck.py` and `head.py` are made of them.
Source: YOLOv8's CSPDarknet as used by YOLO-World (arXiv 2401.17270, section 3.1). The order in
which sub-modules are defined is the order of the published state dict: do not rearrange.
"""

import torch
from torch import Tensor, nn

BN_EPS = 1e-3
BN_MOMENTUM = 0.03


class ConvBnAct(nn.Module):
    """Convolution without bias, batch norm, SiLU (or nothing)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions of equal width, with or without identity."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(channels, channels, 3)
        self.conv2 = ConvBnAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CspLayer(nn.Module):
    """YOLOv8's C2f: widen, run bottlenecks on one half, join every intermediate map.

    `attention`, where given, reads the last map and the texts and adds one more map to the join.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        num_blocks: int,
        *,
        shortcut: bool = False,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        mid = c_out // 2
        num_maps = 2 + num_blocks + (attention is not None)
        self.expand = ConvBnAct(c_in, 2 * mid, 1)
        self.merge = ConvBnAct(num_maps * mid, c_out, 1)
        self.blocks = nn.ModuleList(Bottleneck(mid, shortcut=shortcut) for _ in range(num_blocks))
        self.attention = attention

    def forward(self, x: Tensor, text_feats: Tensor | None = None) -> Tensor:
        """(B, c_in, H, W) and texts (B, K, D) or None -> (B, c_out, H, W)."""
        maps = list(self.expand(x).chunk(2, 1))
        for block in self.blocks:
            maps.append(block(maps[-1]))
        if self.attention is not None:
            maps.append(self.attention(maps[-1], text_feats))
        return self.merge(torch.cat(maps, 1))


class Sppf(nn.Module):
    """Spatial pyramid pooling: three chained 5x5 max pools, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvBnAct(channels, channels // 2, 1)
        self.merge = ConvBnAct(channels // 2 * 4, channels, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.merge(torch.cat(maps, 1))
