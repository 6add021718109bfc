"""Fold a fixed vocabulary into the weights: the model then needs no texts at all.

Place in the flow: a text-conditioned v2 model and K class vectors -> the same model with
`prompts="reparam"`, for fast inference or for fine-tuning its folded weights.
Source: re-parameterisation of YOLO-World (arXiv 2401.17270, section 3.3), convolution form; the
published matrix form does not work and is not offered.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.fusion import FoldedMaxSigmoidAttention, MaxSigmoidAttention
from yw_ray.models.head import BnContrast, FoldedContrast
from yw_ray.models.layers import CspLayer
from yw_ray.models.yolo_world import YoloWorld


@torch.no_grad()
def fold_vocabulary(model: YoloWorld, text_feats: Tensor | None = None) -> YoloWorld:
    """A copy of the model for exactly these classes; the model itself is left as it is.

    Args:
        text_feats: (K, D) class vectors in label order, as the model would be given them; None
            folds the model's own learned prompts.
    Returns: an independent model whose forward takes images alone; same mode (train or eval).
    Raises: ValueError for a v1 model, whose texts depend on the image, one that is folded already,
        or vectors of another width.
    """
    if text_feats is None and model.prompts is not None:
        text_feats = model.prompts(1)[0]
    if text_feats is None or text_feats.ndim != 2 or text_feats.shape[1] != 512:
        shape = None if text_feats is None else tuple(text_feats.shape)
        raise ValueError(f"folding needs class vectors of shape (K, 512), got {shape}")
    contrasts = list(model.head.contrasts)
    if model.neck.text_enhancer is not None or not all(
        isinstance(c, BnContrast) for c in contrasts
    ):
        raise ValueError(
            "only a text-conditioned v2 model without text update can be folded; start from "
            "version v2 with neck vlpan_bn or efficient"
        )
    copied = copy.deepcopy
    folded = YoloWorld(copied(model.backbone), copied(model.neck), copied(model.head))
    for layer in (*folded.neck.top_down, *folded.neck.bottom_up):
        assert isinstance(layer, CspLayer)
        if isinstance(layer.attention, MaxSigmoidAttention):
            layer.attention = _fold_attention(layer.attention, text_feats)
    folded.head.contrasts = nn.ModuleList(
        _fold_contrast(contrast, text_feats)
        for contrast in folded.head.contrasts
        if isinstance(contrast, BnContrast)
    )
    return folded.train(model.training)


def _fold_attention(block: MaxSigmoidAttention, texts: Tensor) -> FoldedMaxSigmoidAttention:
    channels = block.guide.out_features
    folded = FoldedMaxSigmoidAttention(channels, block.num_heads, len(texts)).to(texts.device)
    folded.bias = block.bias
    folded.project = block.project
    guides = block.guide(texts).chunk(block.num_heads, dim=1)
    for weight, guide in zip(folded.guides.parameters(), guides, strict=True):
        weight.copy_(guide[:, :, None, None])
    return folded


def _fold_contrast(contrast: BnContrast, texts: Tensor) -> FoldedContrast:
    folded = FoldedContrast(len(texts), stride=8).to(texts.device)
    folded.norm = contrast.norm
    scaled = F.normalize(texts, dim=-1) * contrast.logit_scale.exp()
    folded.conv.weight.copy_(scaled[:, :, None, None])
    assert folded.conv.bias is not None
    folded.conv.bias.fill_(contrast.bias)
    return folded
