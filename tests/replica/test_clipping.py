"""Gradients are clipped before a step is made of them, and before they are shared."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    FEATURES,
    class_data,
    classes,
    linear,
    linear_data,
    spread,
    train_all,
)
from lab import cluster
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError
from tensair_dask.replica.clipping import Clipping, as_clipping

CLIPPED_BY_TORCH = {
    "norm": nn.utils.clip_grad_norm_,
    "value": nn.utils.clip_grad_value_,
}


def parameters(sparse: bool = False, dtype: Any = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    dense = nn.Parameter(torch.zeros(3, 4, dtype=dtype))
    unused, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(5, 2))
    dense.grad = torch.randn(3, 4, dtype=dtype)
    other.grad = torch.randn(5, 2)
    if sparse:  # a row twice: its gradient is the sum of both
        rows = torch.tensor([[1, 3, 1]])
        other.grad = torch.sparse_coo_tensor(
            rows, torch.randn(3, 2), (5, 2), check_invariants=True
        )
    return [dense, unused, other]


@pytest.mark.parametrize("limit", [0.5, 100.0])
@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_clipped_as_torch_does_it(kind, limit, sparse):
    ours, plain = parameters(sparse), parameters(sparse)
    for each in plain:
        if each.grad is not None:
            each.grad = each.grad.to_dense()
    Clipping(kind, limit).clip(ours)
    CLIPPED_BY_TORCH[kind](plain, limit)
    assert ours[1].grad is None
    for one, other in zip(ours, plain, strict=True):
        if one.grad is not None:
            assert torch.allclose(one.grad.to_dense(), other.grad, atol=1e-6)


def test_the_norm_is_that_of_all_gradients_whatever_their_type():
    mixed = parameters(dtype=torch.bfloat16)
    Clipping("norm", 0.5).clip(mixed)
    total = sum(each.grad.float().square().sum() for each in (mixed[0], mixed[2]))
    assert total.sqrt().item() == pytest.approx(0.5, rel=1e-2)
    Clipping("norm", 0.5).clip([nn.Parameter(torch.zeros(2))])  # nothing to clip


def test_what_may_be_given():
    assert as_clipping(None) is None
    assert as_clipping(1) == as_clipping(("norm", 1.0)) == Clipping("norm", 1.0)
    assert as_clipping(["value", np.float32(0.5)]) == Clipping("value", 0.5)


@pytest.mark.parametrize(
    "given", [0, -1.0, True, float("nan"), "norm", ("max", 1.0), ("value",), (1, 2, 3)]
)
def test_what_is_no_clipping_is_refused(given):
    with pytest.raises(ConfigurationError, match="clip_gradients="):
        as_clipping(given)


@cluster(2)
async def test_clipped_gradients_are_what_all_replicas_learn(c, s, a, b):
    # Linear: a gradient does not depend on the parameters, so that the sum is known.
    rate, limit = 0.1, 0.7
    arguments = linear(
        optimizer=functools.partial(torch.optim.SGD, lr=rate), clip_gradients=limit
    )
    data = linear_data(60)
    async with ta.Trainer(c, **arguments) as trainer:
        assert trainer.share == "gradient"  # clipped ones add up, too
        await train_all(trainer, data)
        total = np.zeros((3, FEATURES))
        for x, y in data:
            gradient = y.astype("float64").T @ x.astype("float64")
            total += gradient * min(1.0, limit / np.linalg.norm(gradient))
        expected = torch.from_numpy(1.0 - rate * total)
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@pytest.mark.parametrize("given", [0.1, ("value", 0.01)])
def test_replicas_agree_with_any_optimizer(given):
    @cluster(2)
    async def run(c, s, a, b):
        adam = functools.partial(torch.optim.Adam, lr=0.01)
        arguments = classes(optimizer=adam, clip_gradients=given)
        async with ta.Trainer(c, **arguments) as trainer:
            reports = await train_all(trainer, class_data(100))
            assert all(report.error is None for report in reports)
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()
