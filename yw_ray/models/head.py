"""Detection head: class logits by contrast with texts, and box distance distributions.

Place in the flow: (P3, N4, N5) and texts -> RawOutputs -> criterion or post-processing.
Source: YOLO-World (arXiv 2401.17270, section 3.2): text contrastive head on YOLOv8's decoupled
branches; published initial values.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import STRIDES, TEXT_DIM, Scale
from yw_ray.models.layers import BN_EPS, BN_MOMENTUM, ConvBnAct
from yw_ray.models.outputs import RawOutputs
from yw_ray.models.seg_head import Prototypes

REG_MAX = 16
NUM_PROTOTYPES = 32
NUM_CLASSES_AT_DESIGN = 80
"""Class branches were cut, and their bias set, for COCO's 80 classes whatever K is given."""


def _contrast(feats: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(B, D, H, W) against unit texts (B, K, D) -> (B, K, H, W) logits, float32.

    Products are laid out channels-last, as both the loss and post-processing read them. Scale and
    bias come in float32: near -10 half precision would round away most of the product. The scale
    is not folded into the texts: its gradient would then cost another product of matrices.
    """
    height, width = feats.shape[2:]
    products = feats.permute(0, 2, 3, 1).flatten(1, 2) @ texts.transpose(1, 2)
    logits = products.float() * scale.exp() + bias
    return logits.transpose(1, 2).unflatten(2, (height, width))


class L2Contrast(nn.Module):
    """v1: cosine of image and text features, scaled and shifted."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(_prior_bias(stride)))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: Tensor, text_feats: Tensor | None) -> Tensor:
        """(B, D, H, W) and texts (B, K, D) -> (B, K, H, W) logits."""
        assert text_feats is not None
        texts = F.normalize(text_feats, dim=-1)
        return _contrast(F.normalize(x, dim=1), texts, self.logit_scale, self.bias)


class BnContrast(nn.Module):
    """v2: batch-normalised image features against unit texts, scaled and shifted."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(_prior_bias(stride)))
        self.logit_scale = nn.Parameter(torch.tensor(-1.0))
        self.norm = nn.BatchNorm2d(TEXT_DIM, eps=BN_EPS, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor, text_feats: Tensor | None) -> Tensor:
        """(B, D, H, W) and texts (B, K, D) -> (B, K, H, W) logits."""
        assert text_feats is not None
        texts = F.normalize(text_feats, dim=-1)
        return _contrast(self.norm(x), texts, self.logit_scale, self.bias)


class FoldedContrast(nn.Module):
    """v2 for K fixed texts: they are the weights of a 1x1 convolution."""

    def __init__(self, num_texts: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(TEXT_DIM, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.conv = nn.Conv2d(TEXT_DIM, num_texts, 1)
        assert self.conv.bias is not None
        nn.init.constant_(self.conv.bias, _prior_bias(stride))

    def forward(self, x: Tensor, text_feats: Tensor | None = None) -> Tensor:
        """(B, D, H, W) -> (B, K, H, W) logits; texts are ignored."""
        return self.conv(self.norm(x)).float()


class Head(nn.Module):
    """Branches for classes and boxes, and for mask coefficients when segmenting."""

    def __init__(
        self, scale: Scale, contrasts: list[nn.Module], protos: Prototypes | None = None
    ) -> None:
        super().__init__()
        pyramid = scale.pyramid
        cls_width = max(pyramid[0], NUM_CLASSES_AT_DESIGN)
        box_width = max(16, pyramid[0] // 4, 4 * REG_MAX)
        mask_width = max(pyramid[0] // 4, NUM_PROTOTYPES)

        def branches(hidden: int, c_out: int) -> nn.ModuleList:
            return nn.ModuleList(_branch(c, hidden, c_out) for c in pyramid)

        self.cls_branches = branches(cls_width, TEXT_DIM)
        self.box_branches = branches(box_width, 4 * REG_MAX)
        self.mask_branches = branches(mask_width, NUM_PROTOTYPES) if protos else None
        self.contrasts = nn.ModuleList(contrasts)
        self.protos = protos
        for branch in self.cls_branches:
            nn.init.zeros_(_bias(branch))
        for branch in self.box_branches:
            nn.init.ones_(_bias(branch))

    def forward(
        self, pyramid: tuple[Tensor, Tensor, Tensor], text_feats: Tensor | None
    ) -> RawOutputs:
        """Maps at strides 8, 16, 32 and texts (B, K, D) or None -> RawOutputs."""
        cls_logits = tuple(
            contrast(branch(x), text_feats)
            for contrast, branch, x in zip(self.contrasts, self.cls_branches, pyramid, strict=True)
        )
        box_dist = _apply(self.box_branches, pyramid)
        if self.mask_branches is None or self.protos is None:
            return RawOutputs(cls_logits, box_dist)
        return RawOutputs(
            cls_logits, box_dist, _apply(self.mask_branches, pyramid), self.protos(pyramid[0])
        )


def _apply(branches: nn.ModuleList, pyramid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(branch(x) for branch, x in zip(branches, pyramid, strict=True))


def _branch(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions and a 1x1 prediction; hidden weights as published (He, fan-out)."""
    hidden_layers = [ConvBnAct(c_in, hidden, 3), ConvBnAct(hidden, hidden, 3)]
    for layer in hidden_layers:
        nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*hidden_layers, nn.Conv2d(hidden, c_out, 1))


def _bias(branch: nn.Module) -> Tensor:
    assert isinstance(branch, nn.Sequential)
    prediction = branch[-1]
    assert isinstance(prediction, nn.Conv2d) and prediction.bias is not None
    return prediction.bias


def _prior_bias(stride: int) -> float:
    """Logit of about five objects of 80 classes in a 640 x 640 image."""
    return math.log(5 / NUM_CLASSES_AT_DESIGN / (640 / stride) ** 2)


def build_contrasts(version: str, num_folded_texts: int | None) -> list[nn.Module]:
    """One contrast a level; `num_folded_texts` asks for the folded form."""
    if num_folded_texts is not None:
        return [FoldedContrast(num_folded_texts, stride) for stride in STRIDES]
    return [(BnContrast if version == "v2" else L2Contrast)(stride) for stride in STRIDES]
