"""Where texts meet image features inside the neck.

Place in the flow: parts of `neck.py`; text features come from `text_encoder.py`.
Source: YOLO-World (arXiv 2401.17270, section 3.3): max-sigmoid attention (text to image) and
image-pooling attention (image to text); the folded form is its re-parameterisation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import TEXT_DIM
from yw_ray.models.layers import ConvBnAct
from yw_ray.models.running_max import dense_max, running_max

DENSE_TEXTS = 64
"""Up to this many texts the dense maximum is as cheap as the running one."""


def max_sigmoid_gate(img_feats: Tensor, text_feats: Tensor, bias: Tensor) -> Tensor:
    """How strongly each pixel answers to its best-matching text.

    Args:
        img_feats: (B, E, H, W); E splits into h heads, as many as `bias` has entries.
        text_feats: (B or 1, h, K, E / h) projected texts.
        bias: (h,) added to the scaled responses.
    Returns: (B, h, H, W) gate in (0, 1).
    Source: YOLO-World (arXiv 2401.17270), section 3.3.
    """
    b, e, height, width = img_feats.shape
    heads = len(bias)
    queries = img_feats.reshape(b, heads, e // heads, height * width)
    keys = text_feats.expand(b, -1, -1, -1)
    best = (dense_max if keys.shape[2] <= DENSE_TEXTS else running_max)(queries, keys)
    gate = torch.sigmoid(best / math.sqrt(e // heads) + bias[:, None])
    return gate.to(img_feats.dtype).view(b, heads, height, width)


def gated(values: Tensor, gate: Tensor) -> Tensor:
    """Multiply each head's group of channels: (B, C, H, W) by (B, h, H, W)."""
    b, c, height, width = values.shape
    groups = values.reshape(b, gate.shape[1], c // gate.shape[1], height, width)
    return (groups * gate.unsqueeze(2)).reshape(b, c, height, width)


class MaxSigmoidAttention(nn.Module):
    """Texts gate image features (text to image)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        assert channels % num_heads == 0
        self.num_heads = num_heads
        self.bias = nn.Parameter(torch.zeros(num_heads))
        self.guide = nn.Linear(TEXT_DIM, channels)
        self.project = ConvBnAct(channels, channels, 3, act=False)

    def forward(self, x: Tensor, text_feats: Tensor) -> Tensor:
        """(B, C, H, W) and texts (B, K, D) -> (B, C, H, W)."""
        guides = self.guide(text_feats).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return gated(self.project(x), max_sigmoid_gate(x, guides, self.bias))


class FoldedMaxSigmoidAttention(nn.Module):
    """Max-sigmoid attention for K fixed texts: one 1x1 convolution a head, no text input."""

    def __init__(self, channels: int, num_heads: int, num_texts: int) -> None:
        super().__init__()
        assert channels % num_heads == 0
        self.bias = nn.Parameter(torch.zeros(num_heads))
        self.guides = nn.ModuleList(
            nn.Conv2d(channels // num_heads, num_texts, 1, bias=False) for _ in range(num_heads)
        )
        self.project = ConvBnAct(channels, channels, 3, act=False)

    def forward(self, x: Tensor, text_feats: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); texts are ignored."""
        guides = torch.stack([weight.flatten(1) for weight in self.guides.parameters()])
        return gated(self.project(x), max_sigmoid_gate(x, guides.unsqueeze(0), self.bias))


class PlainProjection(nn.Module):
    """The efficient neck's stand-in for attention: its convolution alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = ConvBnAct(channels, channels, 3, act=False)

    def forward(self, x: Tensor, text_feats: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); texts are ignored."""
        return self.project(x)


class ImagePoolingAttention(nn.Module):
    """Texts gather what the image shows (image to text), v1 only.

    Each pyramid level is projected and max-pooled to 3x3 tokens; texts attend to the 27 tokens.
    """

    def __init__(self, pyramid: tuple[int, ...], dim: int = 256, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in pyramid)
        self.query = nn.Sequential(nn.LayerNorm(TEXT_DIM), nn.Linear(TEXT_DIM, dim))
        self.key = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.value = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.proj = nn.Linear(dim, TEXT_DIM)

    def forward(self, text_feats: Tensor, pyramid: tuple[Tensor, ...]) -> Tensor:
        """Texts (B, K, D) and three maps (B, c, H, W) -> updated texts (B, K, D)."""
        tokens = torch.cat(
            [
                F.adaptive_max_pool2d(project(x), 3).flatten(2)
                for project, x in zip(self.projections, pyramid, strict=True)
            ],
            dim=2,
        ).transpose(1, 2)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        gathered = F.scaled_dot_product_attention(
            heads(self.query(text_feats)), heads(self.key(tokens)), heads(self.value(tokens))
        )
        return self.proj(gathered.transpose(1, 2).flatten(2)) + text_feats
