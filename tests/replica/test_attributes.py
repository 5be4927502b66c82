"""State in plain attributes of a model is not saved, and that is reported."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, mlp, train_all
from learners import data, learner
from torch import nn

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.replica.attributes import contents_of

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


class Lstm(nn.Module):
    """Keeps both of its states, in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.layer = nn.LSTMCell(3, 4), nn.Linear(4, 2)
        self.state = None

    def forward(self, x):
        state = self.cell(x, self.state)
        self.state = tuple(each.detach() for each in state)
        return self.layer(state[0])


class Meter:
    def __init__(self) -> None:
        self.rows = 0


class Noting(nn.Module):
    """Writes down what it has seen, in containers, arrays and objects."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.counts = {"rows": {"all": 0}}
        self.past, self.ids = [], set()
        self.means, self.meter = np.zeros(3), Meter()
        self.seen_by: list[nn.Module] = [nn.BatchNorm1d(3)]  # as if it were not there
        self.register_buffer("recent", torch.zeros(3), persistent=False)
        self.settings, self.where = {"width": 3, "names": ["a"]}, torch.device("cpu")
        self.call = self.note

    def note(self, x):
        self.counts["rows"]["all"] += len(x)
        self.past.append(1)
        self.ids.add(len(self.past))
        self.means += x.numpy().mean(0)
        self.meter.rows += len(x)
        self.seen_by[0](x)
        self.recent.lerp_(x.mean(0), 0.1)
        self.where, self.call = torch.device(x.device), self.note

    def forward(self, x):
        self.call(x)
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Lstm, ["'state'"]),
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


def test_it_is_seen_within_containers_arrays_and_objects_too():
    ours = learner(Noting)
    before = contents_of(ours.model)
    ours.learn(*data(), 8)
    after = contents_of(ours.model)
    changed = {
        name for name in before.tokens if after.tokens[name] != before.tokens[name]
    }
    noted = {"counts", "past", "ids", "means", "meter", "seen_by", "recent"}
    assert changed == noted
    for _ in range(5):
        ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert "and 4 others" in said


def test_what_cannot_be_looked_at_is_learned_all_the_same():
    class Odd:
        @property
        def __dict__(self):
            raise OSError

    def build():
        model = nn.Linear(3, 2)
        model.odd = Odd()
        return model

    ours = learner(build)
    for _ in range(4):
        ours.learn(*data(), 8)
    assert ours.notices.take() == {}


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
    "function": lambda model, optimizers: setattr(model, "act", torch.relu),
    "forward": lambda model, optimizers: setattr(model, "forward", torch.relu),
    "tensor": lambda model, optimizers: setattr(model, "scales", torch.ones(3)),
    "tensor in place": lambda model, optimizers: model.scales.mul_(2.0),
    "tensor behind autograd": lambda model, optimizers: model.scales.data.mul_(2.0),
    "list of tensors": lambda model, optimizers: model.masks[0].zero_(),
    "dict": lambda model, optimizers: model.settings["deep"].update(scale=7.0),
    "array": lambda model, optimizers: np.copyto(model.means, 3.0),
    "object": lambda model, optimizers: setattr(model.meter, "rows", 5),
    "teacher in a list": lambda model, optimizers: model.teacher[0].weight.data.zero_(),
    "buffer that is not saved": lambda model, optimizers: model.recent.fill_(2.0),
    "layer without parameters": lambda model, optimizers: setattr(
        model, "1", nn.Dropout(0.5)
    ),
    "class": lambda model, optimizers: setattr(model, "__class__", Louder),
    "hook of a parameter": lambda model, optimizers: model[0].weight.register_hook(
        torch.zeros_like
    ),
    "hook behind a parameter": lambda model, optimizers: model[
        0
    ].bias.register_post_accumulate_grad_hook(print),
    "note at a parameter": lambda model, optimizers: setattr(
        model[0].weight, "scale", 3.0
    ),
}


class Louder(nn.Sequential):
    pass


def full():
    """A model with something of each kind."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    model.act, model.scales = torch.tanh, torch.full((3,), 2.0)
    model.masks, model.means = [torch.ones(2)], np.zeros(3)
    model.settings, model.meter = {"deep": {"scale": 1.0}}, Meter()
    model.teacher = [nn.Linear(2, 2)]
    nn.init.ones_(model.teacher[0].weight)
    model.register_buffer("recent", torch.zeros(3), persistent=False)
    model[0].weight.scale = 1.0
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_apply_refuses_what_other_replicas_would_not_take_over(change):
    ours = learner(full)
    with pytest.raises(errors.ModelError, match="in a buffer"):
        ours.change(CHANGES[change])
    model = ours.model
    assert type(model) is nn.Sequential
    assert model.training
    assert model[1].p == 0.1
    assert not hasattr(model, "note")
    assert model.act is torch.tanh
    assert "forward" not in vars(model)
    assert model.scales.tolist() == [2.0] * 3
    assert model.masks[0].all()
    assert model.settings == {"deep": {"scale": 1.0}}
    assert not model.means.any()
    assert model.meter.rows == 0
    assert model.teacher[0].weight.all()
    assert not model.recent.any()
    assert model[0].weight.scale == 1.0
    before = model[0].weight.detach().clone()
    ours.learn(*data(), 8)
    assert not torch.equal(model[0].weight, before)


def test_attributes_that_are_set_to_what_they_were_are_no_change():
    def change(model, optimizers):
        model.settings = {"deep": {"scale": 1.0}}
        model.scales = torch.full((3,), 2.0)
        model.train()
        model[0].bias.data.zero_()

    ours = learner(full)
    ours.change(change)
    assert not ours.model[0].bias.any()


def replace_step(model, optimizers):
    optimizers[0].step = lambda closure=None: None


def schedule(model, optimizers):
    torch.optim.lr_scheduler.StepLR(optimizers[0], 3)


def note(model, optimizers):
    optimizers[0].notes = {"k": 1}


@pytest.mark.parametrize("change", [replace_step, schedule, note])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_methods_and_attributes_of_optimizers_are_refused_as_well(change, optimizer):
    ours = learner(optimizer=functools.partial(optimizer, lr=0.1))
    ours.learn(*data(), 8)
    (made,) = ours.optimizers
    were = set(vars(made))
    with pytest.raises(errors.OptimizerError, match="schedule="):
        ours.change(change)
    assert set(vars(made)) == were
    before = ours.model.weight.detach().clone()
    ours.learn(*data(), 8)
    assert not torch.equal(ours.model.weight, before)


def test_steps_and_states_of_optimizers_are_changed_as_before():
    def change(model, optimizers):
        model(torch.ones(4, 3)).sum().backward()
        optimizers[0].step()
        optimizers[0].load_state_dict(optimizers[0].state_dict())
        optimizers[0].param_groups[0]["lr"] = 0.5

    ours = learner(optimizer=torch.optim.Adam)
    ours.change(change)
    # Gradients that were left there would be taken for those of a model's backward().
    ours.learn(*data(), 8)


def test_gradients_of_a_function_that_fails_are_let_go_of():
    def change(model, optimizers):
        model(torch.ones(4, 3)).sum().backward()
        raise ZeroDivisionError

    ours = learner()
    with pytest.raises(ZeroDivisionError):
        ours.change(change)
    ours.learn(*data(), 8)


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
