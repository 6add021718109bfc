"""The running maximum over texts equals the dense one, and holds no dense tensor."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yw_ray.models import running_max as module
from yw_ray.models.running_max import dense_max, running_max


def inputs(num_texts: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(2, 3, 8, 50, generator=g).requires_grad_()
    keys = torch.randn(2, 3, num_texts, 8, generator=g).requires_grad_()
    return queries, keys, torch.randn(2, 3, 50, generator=g)


class Largest(TorchDispatchMode):
    """Notes the largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("num_texts", [1, 15, 16, 17, 40, 100])
def test_values_and_gradients_equal_the_dense_form(
    num_texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CHUNK", 32)  # several chunks, the last one partly filled
    queries, keys, upstream = inputs(num_texts)
    results = []
    for function in (dense_max, running_max):
        queries.grad = keys.grad = None
        out = function(queries, keys)
        out.backward(upstream)
        assert queries.grad is not None and keys.grad is not None
        results.append((out.detach(), queries.grad, keys.grad))
    for name, ours, theirs in zip(("out", "queries", "keys"), *results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(running_max(queries, keys), results[0][0])


def test_of_equal_texts_the_first_gets_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CHUNK", 16)
    queries, keys, upstream = inputs(20)
    doubled = torch.cat([keys.detach(), keys.detach()], 2).requires_grad_()
    running_max(queries, doubled).backward(upstream)
    assert doubled.grad is not None
    assert doubled.grad[:, :, 20:].abs().max() == 0 < doubled.grad[:, :, :20].abs().max()


@pytest.mark.parametrize("train", [True, False])
def test_no_tensor_grows_with_the_number_of_texts(
    train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CHUNK", 16)
    queries, keys, upstream = inputs(640)
    with torch.set_grad_enabled(train), Largest() as largest:
        out = running_max(queries, keys)
        if train:
            out.backward(upstream)
    assert largest.numel <= max(2 * 3 * 50 * 16, 2 * 3 * 640 * 8)
    assert largest.numel < math.prod((2, 3, 50, 640)) / 4


def test_mixed_precision_works_in_its_type_and_returns_gradients_in_float32() -> None:
    queries, keys, upstream = inputs(100)
    with torch.autocast("cpu", torch.bfloat16):
        out = running_max(queries, keys)
    assert out.dtype == torch.bfloat16
    out.backward(upstream.bfloat16())
    assert queries.grad is not None and keys.grad is not None
    assert queries.grad.dtype == keys.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), dense_max(queries, keys), atol=0.1, rtol=0.02)
