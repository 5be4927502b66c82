"""What cannot work together is refused when a trainer starts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    CLASSES,
    FEATURES,
    class_data,
    classes,
    mlp,
    spread,
    stable,
    train_all,
)
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError, ModelError, OptimizerError

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


class Typed(nn.Module):
    """Its weight is of any dtype, and may be rows of a table."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        value = torch.randn(FEATURES, CLASSES)
        self.weight = nn.Parameter(value.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if weight.is_complex():
            return (x.to(weight.dtype) @ weight).abs().float()
        return x @ weight.float()


class Rows(nn.Module):
    """A table whose gradients are rows, of any dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Embedding(FEATURES, CLASSES, sparse=True, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.table(x.abs().argmax(1))
        return found.abs().float() if found.is_complex() else found.float()


REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@two()
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("compression", ["bfloat16", "float16", "int8"])
async def test_complex_parameters_and_compression(c, s, a, b, dtype, compression):
    factory = functools.partial(Typed, dtype)
    with pytest.raises(ConfigurationError, match="imaginary"):
        await ta.Trainer(c, **classes(model=factory, compression=compression))


@two()
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_complex_parameters_are_learned_without(c, s, a, b, share):
    factory = functools.partial(Typed, torch.complex64)
    async with ta.Trainer(c, **classes(model=factory, share=share)) as trainer:
        reports = await train_all(trainer, class_data(60))
        assert all(report.error is None for report in reports)
        assert spread(await trainer.state_dicts()) < 1e-4


@two()
@pytest.mark.parametrize("model", [Typed, Rows])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("compression", ["none", "bfloat16", "float16", "int8"])
async def test_real_parameters_go_with_each_compression(
    c, s, a, b, model, dtype, compression
):
    factory = functools.partial(model, dtype)
    arguments = classes(model=factory, compression=compression)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = await train_all(trainer, class_data(60))
        assert all(report.error is None for report in reports)
        assert {info.version for info in trainer.replicas} == {60}


@one()
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"seed": "0"}, ConfigurationError, "seed='0'"),
        ({"seed": None}, ConfigurationError, "seed=None"),
        ({"seed": 1.0}, ConfigurationError, "seed=1.0"),
        ({"seed": True}, ConfigurationError, "seed=True"),
        ({"seed": 1 << 70}, ConfigurationError, "seed="),
        ({"keep_predictions": "no"}, ConfigurationError, "keep_predictions='no'"),
        ({"device": 0}, ConfigurationError, "device=0"),
        ({"device": "gpu"}, ConfigurationError, "device='gpu' cannot be used"),
        ({"device": "cuda:77"}, ConfigurationError, "device='cuda:77' cannot"),
        ({"device": "meta"}, ConfigurationError, "no values"),
        ({"device": torch.device("meta")}, ConfigurationError, "no values"),
        ({"or_begin": True}, ConfigurationError, "restore="),
        ({"compression": ["int8"]}, ConfigurationError, "compression="),
        ({"compression": "zip"}, ConfigurationError, "compression="),
        ({"share": ["update"]}, ConfigurationError, "share="),
        ({"metrics": {1: ta.metrics.accuracy}}, ConfigurationError, "are texts"),
        ({"metrics": {"": ta.metrics.accuracy}}, ConfigurationError, "are texts"),
        ({"scores": [1]}, ConfigurationError, "scores="),
        ({"scores": {"a": 1}}, ConfigurationError, "state_dict"),
        ({"scores": {1: torch.nn.Linear(1, 1)}}, ConfigurationError, "texts"),
        (
            {"model": lambda: nn.Linear(FEATURES, CLASSES, device="meta")},
            ModelError,
            "cannot be moved",
        ),
        (
            {"model": lambda: Rows(torch.complex64)},
            ModelError,
            "'table.weight' is of dtype complex64",
        ),
        (
            {"model": lambda: Typed(torch.float8_e4m3fn)},
            ModelError,
            "'weight' is of dtype float8",
        ),
    ],
    ids=stable,
)
async def test_arguments_that_cannot_be_meant(c, s, a, arguments, error, said):
    with pytest.raises(error, match=said):
        await ta.Trainer(c, **classes(**arguments))


@one()
@pytest.mark.parametrize("seed", [7, np.int64(7), -7])
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
async def test_arguments_that_are_meant(c, s, a, seed, device):
    async with ta.Trainer(c, **classes(seed=seed, device=device)) as trainer:
        await train_all(trainer, class_data(2))


def of_another_model(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(mlp().parameters(), lr=0.1)


def twice(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.param_groups.append(dict(optimizer.param_groups[0]))
    return optimizer


@one()
@pytest.mark.parametrize(
    ("factory", "said"),
    [(of_another_model, "no trained one"), (twice, "stepped twice")],
)
async def test_optimizers_hold_the_parameters_of_the_model(c, s, a, factory, said):
    with pytest.raises(OptimizerError, match=said):
        await ta.Trainer(c, **classes(optimizer=factory))


def first_layer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters)[:2], lr=0.1)


@one()
@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (first_layer, "holds no '2.weight', '2.bias'"),
        (
            {
                "dense": functools.partial(torch.optim.SGD, lr=0.1),
                "sparse": functools.partial(torch.optim.SparseAdam, lr=0.1),
            },
            r"optimizer\['sparse'\] is not used",
        ),
    ],
    ids=["left out", "not used"],
)
async def test_what_is_not_used_is_said(c, s, a, optimizer, said):
    async with ta.Trainer(c, **classes(optimizer=optimizer)) as trainer:
        await train_all(trainer, class_data(2))
        assert trainer.events["text"].str.contains(said).sum() == 1
