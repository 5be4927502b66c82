"""Settings of a factory are alike on all replicas, or a notice says otherwise."""

from __future__ import annotations

import functools
import itertools
import random
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, mlp, train_all
from torch import nn

import tensair_dask as ta
from tensair_dask.replica.as_built import as_built, differing

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)

numbers = itertools.count()


class Holding(nn.Module):
    """Holds something in an attribute of a layer within."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.layer.thing = thing

    def forward(self, x):
        return self.layer(x)


class Unsaved(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mask", values, persistent=False)


class Own:
    def __init__(self, value: float) -> None:
        self.inner = [value, {"a": None}]


def compared(one: nn.Module, other: nn.Module) -> list[str]:
    return differing(as_built(one), as_built(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.ones(3)),
        (np.arange(9), np.arange(9) + 1),
        (0.25, 0.5),
        (3, 4),
        ([0, [1.5]], [0, [2.5]]),
        ({"a": 0, "b": 1}, {"a": 1, "b": 0}),
        ({"x", "y"}, {"x", "z"}),
        (Own(1.0), Own(2.0)),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), [torch.zeros(3)]),
    ],
)
def test_values_that_differ_are_found(one, other):
    assert compared(Holding(one), Holding(other)) == ["layer.thing"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0 + 1e-6])),
        (float("nan"), float("nan")),
        ({"a": 0, "b": 1.5}, {"b": 1.5, "a": 0}),
        (frozenset("abc"), frozenset("cba")),
        ("one path", "another path"),
        (object(), object()),
        (torch.device("cpu"), torch.device("cuda")),
        (Own(1.0), Own(1.0)),
        (len, max),
    ],
)
def test_what_is_the_same_or_no_value_is_not(one, other):
    assert compared(Holding(one), Holding(other)) == []


def test_hooks_of_which_a_process_has_seen_more_are_no_difference():
    one, other = mlp(), mlp()
    for model in (one, mlp(), other):
        model[0].register_forward_hook(lambda *_: None)
    assert compared(one, other) == []


def test_buffers_that_are_not_saved_are_looked_at_and_parameters_are_not():
    one, other = Unsaved(torch.zeros(2)), Unsaved(torch.eye(2)[0])
    assert compared(one, other) == ["mask"]
    assert compared(mlp(), mlp()) == []


def test_names_that_only_one_has_are_no_difference():
    assert differing(as_built(Holding(1)), as_built(mlp())) == []


def test_of_an_earlier_run_only_tensors_and_arrays_count():
    first, now = as_built(Holding(0.1)), as_built(Holding(0.2))
    assert differing(first, now, only_arrays=True) == []
    first, now = as_built(Holding(np.zeros(1))), as_built(Holding(np.ones(1)))
    assert differing(first, now, only_arrays=True) == ["layer.thing"]


def test_a_large_thing_is_described_in_few_words():
    described = as_built(Holding([torch.zeros(1_000_000), list(range(100_000))]))
    assert len(str(described)) < 10_000


def numbered() -> nn.Module:
    return Holding(torch.full((3,), float(next(numbers))))


def drawn() -> nn.Module:
    """Draw from all that `seed=` holds for."""
    mixed = [np.random.rand(3), random.random(), random.sample(range(99), 5)]
    return Holding([*mixed, torch.rand(2)])


def generated() -> nn.Module:
    return Holding(np.random.default_rng().normal(size=3))


def reported(trainer: ta.Trainer) -> list[str]:
    texts = trainer.events.text
    return [each for each in texts if "The model factory has made" in each]


@two()
async def test_replicas_that_are_built_otherwise_are_reported_at_the_start(
    c, s, *workers
):
    for factory in (numbered, generated):
        async with ta.Trainer(c, **classes(model=factory)) as trainer:
            await train_all(trainer, class_data(4))
            [text] = reported(trainer)
            assert "'layer.thing'" in text
            assert "another replica" in text
            assert "register_buffer" in text


@two()
async def test_a_replica_that_joins_with_another_model_is_reported(c, s, *workers):
    async with ta.Trainer(c, **classes(model=numbered, replicas=1)) as trainer:
        await train_all(trainer, class_data(4))
        assert not reported(trainer)
        await trainer.scale(2)
        await train_all(trainer, class_data(40))
        assert len(reported(trainer)) == 1


@two()
async def test_all_replicas_draw_the_same_and_so_does_a_joining_one(c, s, *workers):
    async with ta.Trainer(c, **classes(model=drawn, replicas=1)) as trainer:
        await trainer.scale(2)
        await train_all(trainer, class_data(40))
        assert not reported(trainer)


@two()
async def test_restoring_another_model_is_reported(c, s, *workers):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/saved"
        async with ta.Trainer(c, **classes(model=numbered, replicas=1)) as trainer:
            await train_all(trainer, class_data(4))
            await trainer.save(path)
        again = functools.partial(ta.Trainer.restore, path, c, replicas=1)
        async with again(**classes(model=numbered)) as trainer:
            await train_all(trainer, class_data(4))
            [text] = reported(trainer)
            assert "the run of the checkpoint" in text


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(0.1)), ["1"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.9)), ["2"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.1)), []),
    ],
)
def test_layers_without_values_of_their_own_are_compared(other, named):
    one = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.1))
    found = differing(as_built(one), as_built(other), only_arrays=True)
    assert found == named


@two()
async def test_another_activation_and_clipping_are_reported_at_a_restore(
    c, s, a, b, tmp_path
):
    def model(activation):
        return nn.Sequential(
            nn.Linear(FEATURES, 8), activation(), nn.Linear(8, CLASSES)
        )

    first = classes(model=functools.partial(model, nn.ReLU), clip_gradients=1.0)
    async with ta.Trainer(c, **first) as trainer:
        await train_all(trainer, class_data(5))
        path = await trainer.save(tmp_path / "model.tensair")
    async with ta.Trainer.restore(path, c, **first) as trainer:
        await train_all(trainer, class_data(5))
        assert not any("otherwise" in text for text in trainer.events["text"])
        assert not any("Other settings" in text for text in trainer.events["text"])
    second = classes(model=functools.partial(model, nn.Tanh))
    async with ta.Trainer.restore(path, c, **second) as trainer:
        await train_all(trainer, class_data(5))
        texts = list(trainer.events["text"])
        assert (
            sum("has made '1' otherwise than in the run" in text for text in texts) == 1
        )
        (reported,) = [text for text in texts if "Other settings" in text]
        assert "clip_gradients=None (was 1.0)" in reported
