"""What a configuration weighs: parameters and floating-point operations.

Place in the flow: shown by dry runs and compared with the published cost table; nothing is
computed, the model is built and run on torch's meta device.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from yw_ray.models.backbone import TEXT_DIM
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Cost of one configuration without its text encoder.

    parameters: trainable numbers by part (`prompts`, `backbone`, `neck`, `head`);
    flops: of one forward pass for one image, additions and multiplications of convolutions and
    matrix products counted separately.
    """

    parameters: dict[str, int]
    flops: int
    image_size: int
    num_texts: int

    @property
    def total_parameters(self) -> int:
        """All parts together."""
        return sum(self.parameters.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in self.parameters.items())
        return (
            f"{self.total_parameters / 1e6:.2f} M parameters ({parts}), "
            f"{self.flops / 1e9:.1f} GFLOP an image at {self.image_size} px and "
            f"{self.num_texts} texts"
        )


def model_card(config: ModelConfig, *, image_size: int = 640, num_texts: int = 80) -> ModelCard:
    """Count parameters and forward operations of a configuration.

    Args:
        image_size: side of the square input, pixels.
        num_texts: K; fixed by the configuration where prompts are learned or folded.
    """
    with torch.device("meta"):
        model = build_model(config).eval()
        images = torch.empty(1, 3, image_size, image_size)
        texts = None
        if config.prompts == "texts":
            texts = torch.empty(1, num_texts, TEXT_DIM)
        else:
            num_texts = config.num_prompts
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images, texts)
    parameters = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    return ModelCard(
        parameters=parameters,
        flops=counter.get_total_flops(),
        image_size=image_size,
        num_texts=num_texts,
    )
