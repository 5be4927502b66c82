"""Targets that a loss leaves out are counted, and a mean of nothing is explained."""

from __future__ import annotations

import functools

import pytest
import torch
from learners import data, learner
from torch import nn
from torch.nn import functional

from tensair_dask.errors import LossError, NonFiniteError, OptimizerError
from tensair_dask.replica.counted import counted

part = functools.partial
CLASSES = torch.tensor([0, -100, 1, -100])
SCORES = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0], [1.0, 1.0]])


def log_loss(prediction, y):
    return functional.nll_loss(prediction.log_softmax(1), y)


@pytest.mark.parametrize(
    ("loss", "target", "weight"),
    [
        (functional.cross_entropy, CLASSES, 2),
        (nn.CrossEntropyLoss(), CLASSES, 2),
        (nn.CrossEntropyLoss(ignore_index=1), CLASSES.clamp(0), 3),
        (part(functional.cross_entropy, ignore_index=0), CLASSES.clamp(0), 1),
        (lambda p, y: functional.cross_entropy(p, y), CLASSES, 2),
        (log_loss, CLASSES, 2),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0])), CLASSES, 5),
        (functional.cross_entropy, SCORES.softmax(1), None),
        (part(functional.cross_entropy, reduction="sum"), CLASSES, None),
        (lambda p, y: functional.cross_entropy(p, y) + p.mean(), CLASSES, None),
    ],
)
def test_the_weight_of_a_mean_over_classes_is_known(loss, target, weight):
    value, seen = counted(lambda: loss(SCORES, target))
    assert value == loss(SCORES, target)
    assert seen.weight == weight


def test_what_is_left_out_is_seen_also_in_a_sum_of_losses():
    both = lambda p, y: functional.cross_entropy(p, y) + p.mean()  # noqa: E731
    _, seen = counted(lambda: both(SCORES, CLASSES))
    assert (seen.counts, seen.leaves_out) == (True, True)
    _, seen = counted(lambda: both(SCORES, CLASSES * 0 - 100))
    assert (seen.counts, seen.leaves_out) == (False, True)
    _, seen = counted(lambda: SCORES.mean())
    assert (seen.counts, seen.leaves_out) == (None, False)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (functional.cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=1), 1),
        (log_loss, -100),
        (lambda p, y: functional.cross_entropy(p, y) + 0.1 * p.square().mean(), -100),
    ],
)
@pytest.mark.parametrize("learns", [True, False])
def test_the_error_for_a_mini_batch_without_any_target_says_so(loss, y, learns):
    ours = learner(loss=loss)
    x, was = data()
    step = ours.learn if learns else ours.score
    with pytest.raises(NonFiniteError, match="none of its targets counts") as raised:
        step(x, was * 0 + y, 8)
    assert "learning rate" not in str(raised.value)


def test_a_mask_that_leaves_all_out_is_thought_of():
    ours = learner(loss=lambda p, y: (p[:, 0] * (y > 5)).sum() / (y > 5).sum())
    with pytest.raises(NonFiniteError, match="where a mask leaves all out"):
        ours.learn(*data(), 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_error_names_parameters_that_are_no_longer_finite(value):
    ours = learner()
    with torch.no_grad():
        ours.model.bias.fill_(value)
    for step in (ours.learn, ours.score):
        with pytest.raises(NonFiniteError, match="the parameters of the model are not"):
            step(*data(), 8)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, y: functional.cross_entropy(p, y).item(),
        lambda p, y: functional.cross_entropy(p, y).detach().numpy(),
        lambda p, y: int((p.argmax(1) != y).sum()),
    ],
)
def test_the_error_for_a_loss_that_is_no_tensor_says_what_to_leave_out(loss):
    with pytest.raises(LossError, match=r"leave \.item\(\)"):
        learner(loss=loss).learn(*data(), 8)


@pytest.mark.parametrize(
    "optimizer",
    [
        part(torch.optim.SGD, lr=float("nan")),
        part(torch.optim.SGD, lr=float("inf")),
        part(torch.optim.SGD, lr=0.1, momentum=float("nan")),
        part(torch.optim.SGD, lr=torch.tensor(float("nan"))),
    ],
)
def test_settings_that_are_no_numbers_are_refused_at_the_start(optimizer):
    with pytest.raises(OptimizerError, match="finite number"):
        learner(optimizer=optimizer)


def test_they_are_refused_when_they_are_changed_too():
    ours = learner()
    with pytest.raises(OptimizerError, match="lr=nan"):
        ours.change(lambda model, them: them[0].param_groups[0].update(lr=float("nan")))
    assert ours.optimizers[0].param_groups[0]["lr"] == 0.1
