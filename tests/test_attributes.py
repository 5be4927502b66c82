"""What a model keeps in plain attributes is nobody's, and that is said."""

from __future__ import annotations

import functools

import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, mlp, train_all
from test_learner import data, learner
from torch import nn

import tensair_dask as ta
from tensair_dask import errors

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


class Counting(nn.Module):
    """Anneals a temperature, and counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.steps, self.temperature = 0, 2.0

    def forward(self, x):
        self.steps += 1
        self.temperature *= 0.99
        return self.layer(x) / self.temperature


class Remembering(nn.Module):
    """Goes on from the hidden state that it had."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.layer = nn.GRUCell(3, 4), nn.Linear(4, 2)
        self.hidden = torch.zeros(8, 4)

    def forward(self, x):
        hidden = self.cell(x, self.hidden)
        self.hidden = hidden.detach()
        return self.layer(hidden)


class Caching(nn.Module):
    """Makes a mask once, and keeps a weight that is computed anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.spectral_norm(nn.Linear(3, 2))
        self.mask, self.length = None, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.length != len(x):
            self.mask, self.length = torch.ones(len(x), 1), len(x)
        self.seen += len(x)
        return self.layer(x) * self.mask


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Counting, ["'steps'", "'temperature'"]),
        (lambda: nn.Sequential(Counting()), ["'0.steps'"]),
        (Remembering, ["'hidden'"]),
    ],
)
def test_what_changes_with_each_mini_batch_is_said_once(model, named):
    ours = learner(model)
    for _ in range(6):
        ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert all(name in said for name in named)
    assert "register_buffer" in said


@pytest.mark.parametrize("model", [Caching, mlp])
def test_caches_buffers_and_weights_that_are_computed_are_left_alone(model):
    ours = learner(model) if model is Caching else learner()
    for _ in range(6):
        ours.learn(*data(), 8)
    assert ours.notices.take() == {}


CHANGES = {
    "dropout": lambda model, optimizers: setattr(model[1], "p", 0.9),
    "mode": lambda model, optimizers: model.eval(),
    "new attribute": lambda model, optimizers: setattr(model, "note", 1),
    "hook": lambda model, optimizers: model.register_forward_hook(print),
}


@pytest.mark.parametrize("change", CHANGES)
def test_apply_refuses_what_other_replicas_would_not_take_over(change):
    ours = learner(lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
    with pytest.raises(errors.ModelError, match="in a buffer"):
        ours.change(CHANGES[change])
    assert ours.model[1].p == 0.1
    assert ours.model.training
    assert not hasattr(ours.model, "note")


def test_apply_changes_values_of_parameters_and_buffers_as_before():
    def change(model, optimizers):
        with torch.no_grad():
            model.weight.zero_()
        optimizers[0].param_groups[0]["lr"] = 0.5

    ours = learner()
    ours.change(change)
    assert not ours.model.weight.any()


@two()
async def test_a_trainer_says_and_refuses_it_too(c, s, a, b):
    def build():
        model = mlp()
        model[1].register_forward_hook(count)
        return model

    def count(module, args, output):
        module.calls = getattr(module, "calls", 0) + 1

    async with ta.Trainer(c, **classes(model=build)) as trainer:
        reports = await train_all(trainer, class_data(20))
        assert all(report.learned for report in reports)
        (said,) = trainer.events[trainer.events.kind == "note"].text
        assert "'1.calls'" in said
        with pytest.raises(errors.ModelError, match="training"):
            await trainer.apply(lambda model, optimizers: model.eval())
        assert (await trainer.train(*class_data(1)[0])).learned
