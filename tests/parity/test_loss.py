"""A training step of every recorded configuration: losses, assignment, gradients, statistics.

One forward and backward in training mode from the recorded inputs, then one optimiser step with
plain torch optimisers over the recorded parameter table.
"""

from pathlib import Path
from typing import Any

import golden_models as gm
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yw_ray.data.sample import Batch
from yw_ray.losses.criterion import Criterion
from yw_ray.weights.official import official_from_ours, ours_from_official

LOSS_RTOL = 1e-4
SCORE_ATOL = 1e-5
"""Of target scores, beside LOSS_RTOL: behind a whole network they carry its noise (in float64 they
are as far from the recorded ones as in float32, 1.3e-5)."""
GRADIENT_RTOL, GRADIENT_ATOL = 1e-3, 1e-6
"""Norms; the absolute tolerance is in units of the total norm."""
STATISTICS_RTOL = 1e-5
STEP_RTOL, VANISHING = 1e-2, 1e-8
"""Changes are not judged where the gradient is noise: below `VANISHING` of the total norm."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = gm.files(metafunc.config, "loss")
    metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


def official_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by official name."""
    return {official_from_ours(name): p for name, p in model.named_parameters()}


def set_training(model: nn.Module, table: dict[str, Any]) -> None:
    """Train mode, recorded parameters frozen and recorded batch norms still."""
    parameters = official_parameters(model)
    trained = {row[0]: bool(row[4]) for row in table["table"]}
    assert set(trained) == set(parameters)
    for name, parameter in parameters.items():
        parameter.requires_grad_(trained[name])
    model.train()
    for name in table["batchnorms_in_eval_during_training"]:
        ours = ours_from_official(name + ".")
        assert ours is not None, name
        model.get_submodule(ours.removesuffix(".")).eval()


def batch_of(goldens: Path, case: dict[str, Any]) -> Batch:
    """The recorded objects, with masks where the case has them."""
    spec = case["boxes"]
    size = case["image"]["height"], case["image"]["width"]
    rows = torch.tensor(spec["rows"]).reshape(-1, 6)
    masks = None
    if case["masks"]:
        masks = torch.from_numpy(gm.recipe(goldens).masks(spec["rows"], *size)).bool()
    return Batch(
        images=torch.empty(0),
        text_ids=None,
        boxes=rows[:, 2:],
        labels=rows[:, 1].long(),
        image_index=rows[:, 0].long(),
        image_ids=torch.arange(len(spec["counts"])),
        masks=masks,
    )


def check_assignment(criterion: Criterion, outputs: Any, batch: Batch, case: dict) -> None:
    """Foreground, its labels and its scores, image by image."""
    fg = criterion.assign(outputs, batch)
    np.testing.assert_allclose(fg.weight.sum(), case["assigned_scores_sum"], rtol=LOSS_RTOL)
    for i, count in enumerate(case["positives_per_image"]):
        here = fg.image == i
        assert int(here.sum()) == count
        assert fg.anchor[here].tolist() == case["positive_priors"][i]
        assert batch.labels[fg.target[here]].tolist() == case["positive_labels"][i]
        np.testing.assert_allclose(
            fg.weight[here], case["positive_scores"][i], rtol=LOSS_RTOL, atol=SCORE_ATOL
        )


def check_gradients(
    gradients: dict[str, Tensor | None], recorded: dict[str, float | None], total: float
) -> None:
    """L2 norms; null means that a tensor is not reached."""
    assert set(gradients) == set(recorded)
    for name, want in recorded.items():
        got = gradients[name]
        norm = 0.0 if got is None else float(got.norm())
        np.testing.assert_allclose(
            norm, want or 0.0, rtol=GRADIENT_RTOL, atol=GRADIENT_ATOL * total, err_msg=name
        )


def check_statistics(model: nn.Module, recorded: dict[str, list[float]]) -> None:
    """Sums over each batch norm's running statistics."""
    for name, (mean, mean_abs, var, batches) in recorded.items():
        ours = ours_from_official(name + ".")
        assert ours is not None, name
        norm = model.get_submodule(ours.removesuffix("."))
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        running = norm.running_mean.double()
        got = float(running.sum())
        np.testing.assert_allclose(got, mean, rtol=0, atol=STATISTICS_RTOL * mean_abs)
        np.testing.assert_allclose(float(running.abs().sum()), mean_abs, rtol=STATISTICS_RTOL)
        got = float(norm.running_var.double().sum())
        np.testing.assert_allclose(got, var, rtol=STATISTICS_RTOL)
        assert norm.num_batches_tracked is not None
        assert int(norm.num_batches_tracked) == batches


def build_optimizer(
    parameters: dict[str, nn.Parameter], table: dict[str, Any]
) -> torch.optim.Optimizer:
    """A plain torch optimiser from the recorded rows; equal rows share a group."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, _, lr, decay, trained in table["table"]:
        if trained:
            groups.setdefault((lr, decay), []).append(parameters[name])
    rows = [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in groups.items()]
    defaults = table["defaults"]
    if table["optimizer"] == "SGD":
        momentum, nesterov = defaults["momentum"], defaults["nesterov"]
        return torch.optim.SGD(rows, lr=defaults["lr"], momentum=momentum, nesterov=nesterov)
    assert table["optimizer"] == "AdamW"
    betas = (defaults["betas"][0], defaults["betas"][1])
    return torch.optim.AdamW(rows, lr=defaults["lr"], betas=betas, eps=defaults["eps"])


def check_step(
    parameters: dict[str, nn.Parameter], case: dict[str, Any], table: dict[str, Any]
) -> None:
    """One clipped optimiser step changes every parameter by the recorded norm."""
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    nn.utils.clip_grad_norm_(trained.values(), table["clip_grad"]["max_norm"])
    build_optimizer(parameters, table).step()
    assert set(trained) == set(case["step"]["change"])
    for name, (norm, _) in case["step"]["change"].items():
        if 0 < case["gradient_l2"][name] < VANISHING * case["gradient_l2_total"]:
            continue
        change = (trained[name] - before[name]).detach().norm()
        np.testing.assert_allclose(float(change), norm, rtol=STEP_RTOL, err_msg=name)


def test_training_step_equals_the_recorded_one(goldens: Path, path: Path) -> None:
    recorded = gm.read(path)
    assert recorded["world_size"] == 1 and recorded["mode"] == "train"
    table = gm.read(goldens / "params" / f"{path.stem}.json")
    model = gm.golden_model(goldens, path.stem, recorded["scales"])
    set_training(model, table)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = official_parameters(model)
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    # The original's area unit and skipped image: see the fields of Criterion.
    criterion = Criterion(mask_area=640 * 640, skip_single_object_image=True)

    for case in recorded["cases"].values():
        model.load_state_dict(start)
        batch = batch_of(goldens, case)
        with torch.set_grad_enabled("gradient_l2" in case):
            outputs = model(gm.images_of(goldens, case), gm.texts_of(goldens, case))
            losses = criterion(outputs, batch)
        for name, value in case["losses"].items():
            np.testing.assert_allclose(losses[name].item(), value, rtol=LOSS_RTOL, err_msg=name)
        np.testing.assert_allclose(losses["total"].item(), case["total"], rtol=LOSS_RTOL)
        assert int(losses["num_positives"]) == sum(case["positives_per_image"])
        check_assignment(criterion, outputs, batch, case)
        if "gradient_l2" not in case:
            continue

        check_statistics(model, case["batchnorm_after_step"])
        total = case["gradient_l2_total"]
        rest = losses["total"] - losses["loss_cls"]
        wanted = list(trained.values())
        found = torch.autograd.grad(rest, wanted, retain_graph=True, allow_unused=True)
        without_cls = dict(zip(trained, found, strict=True))
        check_gradients(without_cls, case["gradient_l2_without_loss_cls"], total)
        losses["total"].backward()
        gradients = {name: p.grad for name, p in trained.items()}
        check_gradients(gradients, case["gradient_l2"], total)
        norms = [g.norm() for g in gradients.values() if g is not None]
        np.testing.assert_allclose(float(torch.stack(norms).norm()), total, rtol=GRADIENT_RTOL)
        check_step(parameters, case, table)
