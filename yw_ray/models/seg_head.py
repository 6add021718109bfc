"""Mask prototypes of the segmentation head.

Place in the flow: P3 -> prototypes; coefficients come from the mask branches of `head.py`; a mask
is sigmoid(coefficients . prototypes).
Source: YOLACT-style prototypes of YOLOv8-Seg, as used by YOLO-World-Seg (arXiv 2401.17270).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.layers import ConvBnAct


class Prototypes(nn.Module):
    """Three convolutions with one doubling; the prototypes too are normed and activated."""

    def __init__(self, c_in: int, hidden: int, num_prototypes: int = 32) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(c_in, hidden, 3)
        self.conv2 = ConvBnAct(hidden, hidden, 3)
        self.conv3 = ConvBnAct(hidden, num_prototypes, 1)
        for layer in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, p3: Tensor) -> Tensor:
        """(B, c3, H / 8, W / 8) -> (B, P, H / 4, W / 4)."""
        x = F.interpolate(self.conv1(p3), scale_factor=2.0, mode="nearest")
        return self.conv3(self.conv2(x))
