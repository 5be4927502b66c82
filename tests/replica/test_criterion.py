"""A loss may be a module, and hold others; only the model is trained."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all
from learners import data, learner
from torch import nn

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask._common.notices import Notices
from tensair_dask.replica.criterion import Criterion

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
cross_entropy = nn.functional.cross_entropy


class Tempered(nn.Module):
    """Cross-entropy with a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_t = nn.Parameter(torch.zeros(()))
        self.register_buffer("weights", torch.ones(2))

    def forward(self, prediction, y):
        return cross_entropy(prediction * self.log_t.exp(), y, weight=self.weights)


class Holder:
    """An object that is called, and holds what it needs."""

    def __init__(self, inner: Any) -> None:
        self.inner = [inner]

    def __call__(self, prediction, y):
        return self.inner[0](prediction, y)

    def loss(self, prediction, y):
        return self.inner[0](prediction, y)


def closing_over(inner):
    def loss(prediction, y):
        return inner(prediction, y)

    return loss


def with_default(inner):
    def loss(prediction, y, inner=inner):
        return inner(prediction, y)

    return loss


def helped(inner):
    return closing_over(closing_over(inner))


def given(inner, prediction, y):
    return inner(prediction, y)


held_globally = Tempered()


def of_a_global(prediction, y):
    return (lambda: held_globally(prediction, y))()


WAYS = {
    "module": lambda inner: inner,
    "object": Holder,
    "method": lambda inner: Holder(inner).loss,
    "closure": closing_over,
    "default": with_default,
    "helper": helped,
    "partial": lambda inner: functools.partial(given, inner),
    "module of modules": lambda inner: nn.Sequential(inner),
}


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_would_not_be_trained_are_refused_at_the_start(way):
    with pytest.raises(errors.ConfigurationError, match=r"log_t.*part of the model"):
        learner(loss=WAYS[way](Tempered()))


def test_those_of_a_global_and_of_a_tensor_are_found():
    with pytest.raises(errors.ConfigurationError, match="held_globally"):
        learner(loss=of_a_global)
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(errors.ConfigurationError, match="'scale'"):
        learner(loss=lambda p, y: cross_entropy(p * scale, y))


def test_a_penalty_on_a_model_that_is_not_the_one_trained_is_refused():
    net = nn.Linear(3, 2)

    def loss(prediction, y):
        return cross_entropy(prediction, y) + sum(w.norm() for w in net.parameters())

    with pytest.raises(errors.ConfigurationError, match=r"net\.weight.*weight_decay"):
        learner(loss=loss)


@pytest.mark.parametrize("way", [each for each in WAYS if each != "module of modules"])
def test_a_module_without_parameters_that_are_trained_is_the_loss(way):
    frozen = Tempered().requires_grad_(False)
    ours, plain = learner(loss=WAYS[way](frozen)), learner(loss=cross_entropy)
    for _ in range(3):
        mine, theirs = (each.learn(*data(), 8)[0] for each in (ours, plain))
        assert mine.loss == pytest.approx(theirs.loss)
    assert ours.notices.take() == {}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_loss_holds_goes_to_the_device_of_the_model(way):
    frozen = Tempered().requires_grad_(False)
    Criterion(WAYS[way](frozen), torch.device("meta"), Notices())
    assert frozen.weights.device.type == "meta"
    assert frozen.log_t.device.type == "meta"


def test_class_weights_of_a_partial_and_of_a_closure_go_to_the_device():
    weight = torch.ones(2)
    closed = lambda p, y: cross_entropy(p, y, weight=weight)  # noqa: E731
    given = functools.partial(cross_entropy, weight=torch.ones(2))
    for loss in (closed, given):
        Criterion(loss, torch.device("meta"), Notices())
    assert given.keywords["weight"].device.type == "meta"
    assert weight.device.type == "meta"


def test_a_loss_is_in_the_mode_of_the_model():
    class Noting(nn.Module):
        def forward(self, prediction, y):
            modes.append(self.training)
            return cross_entropy(prediction, y)

    modes: list[bool] = []
    ours = learner(loss=Noting())
    ours.learn(*data(), 8)
    ours.score(*data(), 8)
    ours.evaluation().add(*data(), 8)
    ours.learn(*data(), 8)
    assert modes == [True, False, False, True]


class Annealed:
    """Its weight follows the number of calls, as of a KL term."""

    def __init__(self) -> None:
        self.calls, self.log = 0, {"losses": []}

    def __call__(self, prediction, y):
        self.calls += 1
        loss = cross_entropy(prediction, y)
        self.log["losses"].append(loss.item())
        return loss * min(1.0, self.calls / 10)


def counting_in_a_closure():
    calls = 0

    def loss(prediction, y):
        nonlocal calls
        calls += 1
        return cross_entropy(prediction, y) * calls

    return loss


CALLS = 0


def counting_in_a_global(prediction, y):
    global CALLS
    CALLS += 1
    return cross_entropy(prediction, y) * CALLS


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(2)

    def forward(self, prediction, y):
        self.mean = 0.9 * self.mean + 0.1 * prediction.detach().mean(0)
        return cross_entropy(prediction - self.mean, y)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (Annealed(), ["'calls'", "'log'"]),
        (Annealed().__call__, ["'self.calls'"]),
        (functools.partial(Annealed.__call__, Annealed()), ["'1.calls'"]),
        (closing_over(Annealed()), ["'inner.calls'"]),
        (counting_in_a_closure(), ["'calls'"]),
        (counting_in_a_global, ["'CALLS'"]),
        (with_default(Holder(Annealed())), ["inner'"]),
        (Averaging(), ["'mean'"]),
    ],
)
def test_what_the_loss_changes_with_each_mini_batch_is_said_once(loss, named):
    ours = learner(loss=loss)
    for _ in range(6):
        ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert all(name in said for name in named), said
    assert "evaluate" in said


def test_what_a_loss_makes_once_is_left_alone():
    class Weighted:
        def __init__(self) -> None:
            self.weights = None
            self.names, self.scale = ["a", "b"], float("nan")

        def __call__(self, prediction, y):
            if self.weights is None:
                self.weights = torch.ones(2)
            return cross_entropy(prediction, y, weight=self.weights)

    ours = learner(loss=Weighted())
    for _ in range(6):
        ours.learn(*data(), 8)
        ours.score(*data(), 8)
    assert ours.notices.take() == {}


def test_buffers_that_the_loss_changes_are_reported_as_not_saved():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))

        def forward(self, prediction, y):
            self.centre.lerp_(prediction.detach().mean(0), 0.1)
            return cross_entropy(prediction - self.centre, y)

    ours = learner(loss=Centred())
    for _ in range(3):
        ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert "centre" in said
    assert "buffers of the model" in said


@one()
async def test_a_trainer_takes_modules_as_losses_and_refuses_their_parameters(c, s, a):
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    async with ta.Trainer(c, **classes(loss=weighted)) as trainer:
        reports = await train_all(trainer, class_data(5))
        assert all(report.learned for report in reports)
        assert np.isfinite((await trainer.evaluate(class_data(1)))["loss"])
    with pytest.raises(errors.ConfigurationError, match="log_t"):
        await ta.Trainer(c, **classes(loss=Tempered()))
