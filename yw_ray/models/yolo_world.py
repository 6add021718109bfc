"""YoloWorld: images and texts in, raw predictions out; and how a configuration becomes a model.

Place in the flow: Batch -> normalize_images -> YoloWorld -> RawOutputs -> criterion, postprocess.
Source: YOLO-World (arXiv 2401.17270).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import SCALES, TEXT_DIM, Backbone
from yw_ray.models.fusion import (
    FoldedMaxSigmoidAttention,
    ImagePoolingAttention,
    MaxSigmoidAttention,
    PlainProjection,
)
from yw_ray.models.head import Head, build_contrasts
from yw_ray.models.neck import Neck
from yw_ray.models.outputs import RawOutputs
from yw_ray.models.seg_head import Prototypes
from yw_ray.recipe import ModelConfig


def normalize_images(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 3, H, W) uint8 BGR -> float RGB 0..1 on the same device, laid out channels-last."""
    rgb = images.flip(1).contiguous(memory_format=torch.channels_last)
    return rgb.to(dtype).div_(255)


class PromptEmbeddings(nn.Module):
    """Learned class vectors in place of texts, optionally refined by a small adapter."""

    def __init__(self, num_prompts: int, *, adapter: bool) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(F.normalize(torch.randn(num_prompts, TEXT_DIM), dim=-1))
        self.adapter = (
            nn.Sequential(
                nn.Linear(TEXT_DIM, 2 * TEXT_DIM), nn.ReLU(), nn.Linear(2 * TEXT_DIM, TEXT_DIM)
            )
            if adapter
            else None
        )

    def forward(self, batch_size: int) -> Tensor:
        """(B, K, D); unit rows only behind the adapter, as in the original."""
        prompts: Tensor = self.embeddings
        if self.adapter is not None:
            prompts = F.normalize(self.adapter(prompts) + prompts, dim=-1)
        return prompts.expand(batch_size, -1, -1)


class YoloWorld(nn.Module):
    """Backbone, neck and head; prompts come as text features, learned vectors or folded weights.

    `text_encoder` stays empty while texts are encoded outside; a trained one is put here, so that
    the model's parameters, checkpoints and gradient synchronisation cover it.
    """

    text_encoder: nn.Module | None

    def __init__(
        self, backbone: Backbone, neck: Neck, head: Head, prompts: PromptEmbeddings | None = None
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.backbone = backbone
        self.register_module("text_encoder", None)
        self.neck = neck
        self.head = head

    def forward(
        self,
        images: Tensor,
        text_feats: Tensor | None = None,
        tokens: Tensor | None = None,
        token_rows: Tensor | None = None,
    ) -> RawOutputs:
        """One forward pass.

        Args:
            images: (B, 3, H, W) float RGB 0..1; H and W multiples of 32.
            text_feats: (B, K, D) text vectors; None with learned or folded prompts.
            tokens: (T, L) token ids for `text_encoder`, in place of `text_feats`.
            token_rows: (B, K) int64, the row of `tokens` of each text.
        Returns: RawOutputs, logits in float32.
        """
        if self.prompts is not None:
            text_feats = self.prompts(images.shape[0])
        elif tokens is not None and self.text_encoder is not None:
            text_feats = self.text_encoder(tokens)[token_rows]
        pyramid = self.backbone(images)
        pyramid = self.neck(pyramid, text_feats)
        return self.head(pyramid, text_feats)


def build_model(config: ModelConfig) -> YoloWorld:
    """A randomly initialised model, from torch's global generator.

    Raises: ValueError for a combination that has no meaning.
    """
    folded = config.prompts == "reparam"
    if folded and (config.version != "v2" or config.neck == "dual_vlpan"):
        raise ValueError(
            f"model.prompts=reparam folds the v2 head and a neck without text update, got "
            f"version={config.version} neck={config.neck}; use version v2 with vlpan_bn"
        )
    scale = SCALES[config.size]
    num_folded = config.num_prompts if folded else None
    if config.neck == "efficient":
        neck = Neck(scale, lambda channels, heads: PlainProjection(channels))
    elif num_folded is not None:
        neck = Neck(scale, partial(FoldedMaxSigmoidAttention, num_texts=num_folded))
    else:
        dual = config.neck == "dual_vlpan"
        enhancer = ImagePoolingAttention(scale.pyramid) if dual else None
        neck = Neck(scale, MaxSigmoidAttention, enhancer)
    protos = Prototypes(scale.pyramid[0], scale.proto_width) if config.segmentation else None
    prompts = None
    if config.prompts == "embeddings":
        prompts = PromptEmbeddings(config.num_prompts, adapter=config.prompt_adapter)
    head = Head(scale, build_contrasts(config.version, num_folded), protos)
    return YoloWorld(Backbone(scale), neck, head, prompts)
