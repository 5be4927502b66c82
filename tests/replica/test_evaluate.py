"""An evaluation covers all of the data that it is given, and nothing else."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all
from learners import learner
from torch import nn
from torch.nn import functional

import tensair_dask as ta
from tensair_dask.metrics import Mean, accuracy, binary_accuracy

part = functools.partial
one = part(gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60)


class Running:
    """Averages by itself."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def __call__(self, prediction, y):
        self.right += int((prediction.argmax(1) == y).sum())
        self.count += len(y)
        return self.right / self.count


def running():
    right, count = 0, []

    def metric(prediction, y):
        nonlocal right
        right += int((prediction.argmax(1) == y).sum())
        count.extend(y.tolist())
        return right / len(count)

    return metric


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("right", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, prediction, y):
        self.right += (prediction.argmax(1) == y).sum()
        self.count += len(y)
        return self.right / self.count


def tensors(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator)
    return x, torch.randint(0, 2, (samples,), generator=generator)


def evaluated(ours: Any, *batches: Any) -> dict[str, float]:
    evaluation = ours.evaluation()
    for x, y in batches:
        evaluation.add(x, y, len(x))
    return evaluation.result()


@pytest.mark.parametrize("make", [Running, running, Module, lambda: Running().__call__])
def test_a_metric_that_averages_by_itself_sees_each_mini_batch_alone(make):
    ours = learner(metrics={"running": make(), "accuracy": accuracy})
    for seed in range(5):
        ours.learn(*tensors(20, seed), 20)
    held_out = [tensors(size, 50 + size) for size in (10, 30, 7)]
    scores = evaluated(ours, *held_out)
    assert scores["running"] == pytest.approx(scores["accuracy"])
    assert evaluated(ours, *held_out) == scores
    # Training goes on where it was.
    undisturbed = learner(metrics={"running": make()})
    for seed in range(5):
        undisturbed.learn(*tensors(20, seed), 20)
    step, _ = ours.learn(*tensors(20, 6), 20)
    expected, _ = undisturbed.learn(*tensors(20, 6), 20)
    assert step.metrics[0] == expected.metrics[0]
    assert ours.notices.take() == {}


def test_a_metric_that_cannot_be_copied_is_reported_once():
    class Locked(Running):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    ours = learner(metrics={"locked": Locked()})
    assert ours.notices.take() == {}
    for _ in range(2):
        evaluated(ours, tensors(10), tensors(10))
    (said,) = ours.notices.take().values()
    assert "'locked' cannot be copied" in said


def partly(samples: int, counting: int, seed: int = 0) -> Any:
    x, y = tensors(samples, seed)
    y[counting:] = -100
    return x, y


def joined(*batches: Any) -> Any:
    return tuple(map(torch.cat, zip(*batches, strict=True)))


def nll(prediction, y):
    return functional.nll_loss(prediction.log_softmax(1), y)


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        nn.CrossEntropyLoss(),
        nll,
        lambda p, y: functional.cross_entropy(p, y, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])),
        lambda p, y: functional.mse_loss(p[:, 0], y.float()),
    ],
)
@pytest.mark.parametrize("metric", [accuracy, lambda p, y: accuracy(p, y)])
def test_mini_batches_are_scored_as_one_would_be(loss, metric):
    ours = learner(loss=loss, metrics={"accuracy": metric})
    batches = [partly(100, 1), partly(4, 4, 1), partly(30, 20, 2)]
    scores = evaluated(ours, *batches)
    assert scores == pytest.approx(evaluated(ours, joined(*batches)))
    assert scores["samples"] == 134
    assert ours.notices.take() == {}


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        nn.CrossEntropyLoss(ignore_index=-100),
        lambda p, y: functional.cross_entropy(p, y) + p.square().mean(),
    ],
)
def test_a_mini_batch_without_any_target_is_left_out(loss):
    ours = learner(loss=loss, metrics={"accuracy": accuracy})
    expected = evaluated(ours, partly(8, 8))
    scores = evaluated(ours, partly(8, 8), partly(5, 0))
    assert scores == {**expected, "samples": 13}
    nothing = evaluated(ours, partly(5, 0))
    assert math.isnan(nothing["loss"])
    assert math.isnan(nothing["accuracy"])


def test_a_sum_of_losses_that_leaves_targets_out_is_reported():
    ours = learner(loss=lambda p, y: functional.cross_entropy(p, y) + p.mean())
    evaluated(ours, partly(8, 8))
    assert ours.notices.take() == {}
    evaluated(ours, partly(8, 3), partly(8, 8))
    (said,) = ours.notices.take().values()
    assert "by all of their samples" in said


def weighted(prediction, y):
    counting = y[y >= 0]
    return Mean(float(len(counting)), len(counting))


def test_a_metric_may_return_a_mean_with_its_weight():
    ours = learner(
        metrics={"one": weighted, "both": lambda p, y: {"a": weighted(p, y), "b": 1}}
    )
    scores = evaluated(ours, partly(8, 1), partly(8, 3))
    assert scores["one"] == scores["both.a"] == (1 + 9) / 4
    assert scores["both.b"] == 1
    step, _ = ours.learn(*partly(8, 3), 8)
    assert dict(zip(ours.metric_names, step.metrics, strict=True)) == {
        "one": 3.0,
        "both": None,
        "both.a": 3.0,
        "both.b": 1.0,
    }
    assert type(step.metrics[0]) is float


def test_nan_of_a_custom_metric_is_left_out_and_counted_in_a_notice():
    def mine(prediction, y):
        return float("nan") if len(y) == 5 else 0.5

    ours = learner(metrics={"mine": mine})
    scores = evaluated(ours, tensors(5), tensors(8), tensors(5), tensors(9))
    assert scores["mine"] == 0.5
    (said,) = ours.notices.take().values()
    assert "NaN for 2 of the 4 mini-batches" in said


def test_a_loss_that_is_not_finite_is_reported_and_not_hidden():
    ours = learner(loss=lambda p, y: p.sum() / (len(y) - 5))
    scores = evaluated(ours, tensors(5), tensors(8))
    assert not math.isfinite(scores["loss"])
    (said,) = ours.notices.take().values()
    assert "The loss of 1 of the 2 mini-batches" in said


def test_a_mean_is_a_float_that_can_be_copied_and_sent():
    mean = accuracy(np.eye(4), np.array([0, 1, 1, -1]))
    assert mean == 2 / 3
    assert mean.count == 3
    for other in (copy.deepcopy(mean), pickle.loads(pickle.dumps(mean))):
        assert (other, other.count) == (mean, 3)
    assert binary_accuracy(torch.randn(7), torch.ones(7)).count == 7
    assert accuracy(np.eye(4), np.full(4, -1)).count == 0


@one()
async def test_users_hear_of_it_from_an_evaluation_alone(c, s, a):
    def mine(prediction, y):
        return float("nan")

    async with ta.Trainer(
        c, **classes(metrics={"mine": mine, "running": Running()})
    ) as trainer:
        scores = await trainer.evaluate(class_data(2))
        assert math.isnan(scores["mine"])
        (said,) = trainer.events.text[trainer.events.kind == "note"]
        assert "2 of the 2 mini-batches" in said
        await train_all(trainer, class_data(5))
        again = (await trainer.evaluate(class_data(2)))["running"]
        assert 0 <= again <= 1


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        functools.partial(functional.cross_entropy, reduction="sum"),
        lambda p, y: functional.mse_loss(p[:, 0], y.float(), reduction="sum"),
        lambda p, y: (p[:, 0] - y).square().sum(),
        lambda p, y: torch.sum((p[:, 0] - y).abs()),
    ],
)
def test_losses_that_are_sums_are_added_up(loss):
    ours = learner(loss=loss)
    batches = [tensors(20, 1), tensors(8, 2), tensors(1, 3)]
    scores = evaluated(ours, *batches)
    assert scores == pytest.approx(evaluated(ours, joined(*batches)))


def test_a_sum_that_is_divided_is_a_mean_over_samples():
    ours = learner(loss=lambda p, y: (p[:, 0] - y).square().sum() / len(y))
    batches = [tensors(20, 1), tensors(8, 2)]
    scores = evaluated(ours, *batches)
    assert scores == pytest.approx(evaluated(ours, joined(*batches)))
