"""The average follows trained weights and statistics, and leaves frozen ones bit for bit."""

import torch
from torch import nn

from yw_ray.recipe import EmaConfig
from yw_ray.training.ema import Ema, ema_momentum


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _move(model: nn.Module, seed: int) -> None:
    """A step's worth of change to everything that trains, statistics included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.train()
    model(torch.randn(8, 3, generator=generator))


def test_momentum_starts_near_one_and_settles() -> None:
    config = EmaConfig()
    assert abs(ema_momentum(config, 1) - 0.9990) < 1e-5
    assert ema_momentum(config, 9200) > 0.01 > ema_momentum(config, 9400)


def test_the_first_update_copies_and_later_ones_average() -> None:
    model = _model()
    ema = Ema(model, EmaConfig())
    _move(model, 0)
    ema.update(model)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(first[k], v) for k, v in ema.module.state_dict().items())
    _move(model, 1)
    ema.update(model)
    weight = ema_momentum(EmaConfig(), 1)
    for name, value in ema.module.state_dict().items():
        new = model.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, first[name] * (1 - weight) + new * weight)
        else:
            assert torch.equal(value, first[name]) and not torch.equal(value, new)


def test_the_averaged_module_is_ready_for_validation_and_apart_from_the_model() -> None:
    model = _model()
    ema = Ema(model, EmaConfig())
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in ema.module.parameters()
    }
    assert not shared


def test_frozen_weights_stay_bit_identical_through_many_updates() -> None:
    model = _model()
    model[0].requires_grad_(False)
    ema = Ema(model, EmaConfig())
    for step in range(20):
        _move(model, step)
        ema.update(model)
    average = ema.module.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(average[name], value) == (name.startswith("0.")), name


def test_a_saved_and_restored_average_goes_on_bit_for_bit() -> None:
    model = _model()
    ema = Ema(model, EmaConfig())
    for step in range(3):
        _move(model, step)
        ema.update(model)
    state = {
        "num_updates": ema.state_dict()["num_updates"],
        "module": {k: v.clone() for k, v in ema.state_dict()["module"].items()},
    }
    again = Ema(model, EmaConfig())
    again.load_state_dict(state)
    for step in range(3, 6):
        _move(model, step)
        ema.update(model)
        again.update(model)
    expected = ema.module.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in again.module.state_dict().items())
    assert again.num_updates == ema.num_updates == 6
