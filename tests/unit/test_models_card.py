"""Parameters and operations against the published cost table."""

import pytest

from yw_ray.models.model_card import model_card
from yw_ray.recipe import ModelConfig

TOLERANCE = 0.005
ROWS = [  # configuration, parameters in millions, GFLOP at 640 px and 80 texts
    (ModelConfig(size="s"), 12.76, 32.7),
    (ModelConfig(size="l"), 46.83, 175.5),
    (ModelConfig(size="s", version="v1", neck="dual_vlpan"), 13.38, 33.5),
    (ModelConfig(size="l", version="v1", neck="dual_vlpan"), 47.55, 177.0),
    (ModelConfig(size="s", segmentation=True), 13.94, 68.1),
    (ModelConfig(size="l", version="v1", neck="dual_vlpan", segmentation=True), 49.60, 218.8),
    (ModelConfig(size="s", prompts="reparam"), 12.63, None),
    (ModelConfig(size="l", neck="efficient"), 46.37, None),
]


@pytest.mark.parametrize(("config", "parameters", "gflop"), ROWS)
def test_cost_equals_the_published_table(
    config: ModelConfig, parameters: float, gflop: float | None
) -> None:
    card = model_card(config)
    assert card.total_parameters / 1e6 == pytest.approx(parameters, rel=TOLERANCE)
    if gflop is not None:
        assert card.flops / 1e9 == pytest.approx(gflop, rel=TOLERANCE)


def test_parts_and_vocabulary_are_counted() -> None:
    small = model_card(ModelConfig(size="s"))
    assert {k: round(v / 1e6, 3) for k, v in small.parameters.items()} == {
        "backbone": 5.080,
        "neck": 5.363,
        "head": 2.317,
    }
    many = model_card(ModelConfig(size="s"), num_texts=1203)
    assert many.flops / 1e9 == pytest.approx(45.1, rel=TOLERANCE)
    assert many.total_parameters == small.total_parameters
    assert "12.76 M parameters" in str(small) and "1203 texts" in str(many)
