"""Neck: a path-aggregation pyramid in which texts gate the image features.

Place in the flow: (C3, C4, C5) and texts -> (P3, N4, N5) -> head.
Source: RepVL-PAN of YOLO-World (arXiv 2401.17270, section 3.3). `vlpan_bn` is the published v2
neck, `dual_vlpan` v1's with texts updated from the image, `efficient` drops the attention.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import Scale
from yw_ray.models.fusion import ImagePoolingAttention
from yw_ray.models.layers import ConvBnAct, CspLayer


class Neck(nn.Module):
    """Two top-down and two bottom-up CSP layers, each with one attention block.

    make_attention: (channels, num_heads) -> block called with (map, texts).
    text_enhancer: updates the texts between the two directions; the head never sees the update.
    """

    def __init__(
        self,
        scale: Scale,
        make_attention: Callable[[int, int], nn.Module],
        text_enhancer: ImagePoolingAttention | None = None,
    ) -> None:
        super().__init__()
        c3, c4, c5 = scale.pyramid
        h3, h4, h5 = scale.num_heads
        blocks = scale.num_blocks(3)

        def layer(c_in: int, c_out: int, heads: int) -> CspLayer:
            return CspLayer(c_in, c_out, blocks, attention=make_attention(c_out // 2, heads))

        self.top_down = nn.ModuleList([layer(c4 + c5, c4, h4), layer(c3 + c4, c3, h3)])
        self.downsample = nn.ModuleList([ConvBnAct(c3, c3, 3, 2), ConvBnAct(c4, c4, 3, 2)])
        self.bottom_up = nn.ModuleList([layer(c3 + c4, c4, h4), layer(c4 + c5, c5, h5)])
        self.text_enhancer = text_enhancer

    def forward(
        self, pyramid: tuple[Tensor, Tensor, Tensor], text_feats: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at strides 8, 16, 32 and texts (B, K, D) or None -> maps of the same shapes."""
        c3, c4, c5 = pyramid
        p4 = self.top_down[0](torch.cat([_double(c5), c4], 1), text_feats)
        p3 = self.top_down[1](torch.cat([_double(p4), c3], 1), text_feats)
        if self.text_enhancer is not None:
            text_feats = self.text_enhancer(text_feats, (p3, p4, c5))
        n4 = self.bottom_up[0](torch.cat([self.downsample[0](p3), p4], 1), text_feats)
        n5 = self.bottom_up[1](torch.cat([self.downsample[1](n4), c5], 1), text_feats)
        return p3, n4, n5


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
