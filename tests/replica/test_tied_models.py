"""Tensors that share memory are learned, saved and taken over as in a plain loop."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import spread
from learners import data, learner
from torch import nn
from torch.nn import functional

import tensair_dask as ta
from tensair_dask.errors import ForwardError, ModelError

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
SGD = functools.partial(torch.optim.SGD, lr=0.1)
MOMENTUM = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


class Coder(nn.Module):
    """Encodes, decodes with what the encoder has, and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2)
        self.tie()

    def tie(self) -> None:
        self.decoder.weight = nn.Parameter(self.encoder.weight.data.t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(x).tanh()))


class SameData(Coder):
    def tie(self) -> None:
        self.decoder.weight.data = self.encoder.weight.data


class Kept(Coder):
    """Uses views of a weight that it has kept, of every kind."""

    def tie(self) -> None:
        self.register_buffer("first", self.encoder.weight.data[0])
        self.last = self.encoder.weight.detach()[-1]
        self.numbers = [self.head.weight.detach().numpy()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 + self.first.sum() + self.last.sum() + float(self.numbers[0].sum())
        return super().forward(x) * scale


class FrozenOther(Coder):
    def tie(self) -> None:
        self.decoder.weight.data = self.encoder.weight.data
        self.decoder.weight.requires_grad_(False)


TIED = [Coder, SameData, Kept, FrozenOther]


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM])
@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("model", TIED)
def test_it_is_learned_as_in_a_plain_loop(model, share, optimizer):
    ours = learner(model, optimizer=optimizer, share=share)
    torch.manual_seed(0)
    plain = model()
    stepper = optimizer([each for each in plain.parameters() if each.requires_grad])
    x, y = data()
    for _ in range(10):
        ours.learn(x, y, 8)
        stepper.zero_grad()
        functional.cross_entropy(plain(x), y).backward()
        stepper.step()
    expected = plain.state_dict()
    for key, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    inexact = {"share"} if share == "gradient" and optimizer is not SGD else set()
    assert set(ours.notices.take()) == inexact


@pytest.mark.parametrize("model", TIED)
def test_a_replica_that_takes_it_over_is_tied_as_well(model):
    ours, again = learner(model, share=None), learner(model, share=None, seed=1)
    ours.learn(*data(), 8)
    snapshot = ours.snapshot()
    again.load(snapshot["model"], snapshot["optimizers"], made=snapshot["made"])
    for _ in range(3):
        for each in (ours, again):
            each.learn(*data(), 8)
    for key, value in ours.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert again.arena.homes.hold()


class Moving(Coder):
    """A mean that begins as the weight itself, and goes its own way."""

    def tie(self) -> None:
        self.register_buffer("mean", self.encoder.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * self.encoder.weight.detach()
        return super().forward(x)


def test_a_buffer_that_has_gone_its_own_way_is_cut_off_on_the_other_side():
    ours, again = learner(Moving), learner(Moving)
    for _ in range(3):
        ours.learn(*data(), 8)
    snapshot = ours.snapshot()
    again.load(snapshot["model"], snapshot["optimizers"], made=snapshot["made"])
    for key, value in ours.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert not torch.equal(again.model.mean, again.model.encoder.weight)


def test_values_that_differ_cannot_be_put_into_one_memory():
    class Apart(Coder):
        def tie(self):
            pass

    apart, tied = learner(Apart), learner(Coder)
    snapshot = apart.snapshot()
    with pytest.raises(ModelError, match=r"'encoder.weight' and 'decoder.weight'"):
        tied.load(snapshot["model"], snapshot["optimizers"])


def double_it(model, optimizers):
    with torch.no_grad():
        model.encoder.weight.mul_(2.0)


def grow(model, optimizers):
    model.head = nn.Linear(3, 3)
    if hasattr(model, "numbers"):
        model.numbers = [model.head.weight.detach().numpy()]


def freeze(model, optimizers):
    model.encoder.requires_grad_(False)
    model.decoder.requires_grad_(False)


def bias_more(model, optimizers):
    model.decoder.bias = nn.Parameter(torch.zeros(3))


def is_tied(model) -> bool:
    """Whether what is tied follows what is written into the encoder."""
    with torch.no_grad():
        model.encoder.weight.add_(1.0)
        model.head.weight.add_(1.0)
    if isinstance(model, Kept):
        views = [model.first, model.last, torch.from_numpy(model.numbers[0])]
        weight = model.encoder.weight
        sources = [weight[0], weight[-1], model.head.weight]
    else:
        is_turned = type(model) is Coder
        views = [model.decoder.weight.t() if is_turned else model.decoder.weight]
        sources = [model.encoder.weight]
    return all(map(torch.equal, views, sources))


@pytest.mark.parametrize("change", [double_it, grow, freeze, bias_more])
@pytest.mark.parametrize("model", TIED)
def test_what_is_tied_stays_so_when_the_model_is_changed(model, change):
    ours = learner(model, share=None)
    ours.learn(*data(), 8)
    ours.change(change)
    assert is_tied(ours.model)
    ours.keep_change()
    ours.learn(*data(), 8)
    assert is_tied(ours.model)


@pytest.mark.parametrize("change", [double_it, grow, freeze, bias_more])
@pytest.mark.parametrize("model", TIED)
def test_what_is_tied_stays_so_when_a_change_is_undone(model, change):
    ours = learner(model, share=None)
    ours.learn(*data(), 8)
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}

    def half_way(model, optimizers):
        change(model, optimizers)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ours.change(half_way)
    ours.change(change)
    ours.undo_change()
    for key, value in ours.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert is_tied(ours.model)
    ours.learn(*data(), 8)
    assert is_tied(ours.model)


def tie_by_data(model, optimizers):
    model.decoder.weight.data = model.encoder.weight.data


def tie_and_grow(model, optimizers):
    grow(model, optimizers)
    tie_by_data(model, optimizers)


def cut(model, optimizers):
    model.decoder.weight = nn.Parameter(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("model", "change"), [(Coder, tie_by_data), (Kept, tie_and_grow), (SameData, cut)]
)
def test_functions_neither_tie_nor_cut(model, change):
    ours = learner(model, share=None)
    ours.learn(*data(), 8)
    with pytest.raises(ModelError, match=r"factory|while it runs|no_grad"):
        ours.change(change)
    assert is_tied(ours.model)
    ours.learn(*data(), 8)


def test_a_model_that_ties_while_it_runs_is_refused_with_what_to_do():
    class Late(Coder):
        def tie(self):
            pass

        def forward(self, x):
            self.decoder.weight.data = self.encoder.weight.data
            return super().forward(x)

    ours = learner(Late)
    with pytest.raises(ForwardError, match=r"share memory now.*in the model factory"):
        ours.learn(*data(), 8)


@two()
async def test_replicas_agree_on_what_is_tied(c, s, a, b):
    x, y = (each.numpy() for each in data())
    for model in (Coder, Kept):
        for optimizer in (SGD, ADAM):
            arguments = {"loss": functional.cross_entropy, "optimizer": optimizer}
            async with ta.Trainer(c, model=model, **arguments) as trainer:
                for _ in range(20):
                    assert (await trainer.train(x, y)).learned
                await trainer.drain()
                states = await trainer.state_dicts()
            assert spread(states) < 1e-5
            for state in states.values():
                weight = state["encoder.weight"]
                if model is Coder:
                    assert torch.equal(state["decoder.weight"], weight.t())
                else:
                    assert torch.equal(state["first"], weight[0])


@two()
async def test_checkpoints_of_tied_models_are_restored(c, s, a, b, tmp_path):
    x, y = (each.numpy() for each in data())
    for model in (SameData, Kept):
        path = str(tmp_path / model.__name__)
        arguments = {
            "model": model,
            "loss": functional.cross_entropy,
            "optimizer": MOMENTUM,
        }
        # One that saves and is asked: others round otherwise, and hear of it later.
        async with ta.Trainer(c, replicas=1, **arguments) as trainer:
            for _ in range(5):
                await trainer.train(x, y)
            await trainer.save(path)
            saved = await trainer.state_dict()
        async with ta.Trainer(c, restore=path, **arguments) as trainer:
            state = await trainer.state_dict()
            assert all(torch.equal(saved[key], state[key]) for key in saved)
            assert (await trainer.train(x, y)).learned
            await trainer.drain()
            for state in (await trainer.state_dicts()).values():
                weight = state["encoder.weight"]
                if model is Kept:
                    assert torch.equal(state["first"], weight[0])
                else:
                    assert torch.equal(state["decoder.weight"], weight)


@two()
async def test_a_tie_that_cannot_be_kept_is_refused_at_the_start(c, s, a, b):
    class Beyond(Coder):
        def tie(self):
            self.all = torch.zeros(4, 3, 3)
            self.encoder.weight.data = self.all[0]

    trainer = ta.Trainer(
        c, model=Beyond, loss=functional.cross_entropy, optimizer=SGD, replicas=1
    )
    with pytest.raises(ModelError, match=r"'encoder\.weight' and 'all' share memory"):
        async with trainer:
            pass


class OwnState(nn.Module):
    """Returns what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.kept = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            self.seen += 1.0
            self.kept += 1.0
        return self.layer(x), self.seen, self.layer.weight, self.kept, x


def first_loss(prediction, y):
    return functional.cross_entropy(prediction[0], y)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_what_a_model_returns_of_its_own_is_a_copy(c, s, a):
    x, y = (each.numpy() for each in data())
    arguments = {"model": OwnState, "loss": first_loss, "optimizer": SGD}
    async with ta.Trainer(c, replicas=1, **arguments) as trainer:
        answer = await trainer.predict(x)
        before = [np.array(each) for each in answer]
        await trainer.train(x, y)
        assert all(map(np.array_equal, before, answer))
        for each in answer:
            each[...] = 7.0
        assert not (x == 7.0).any()
        state = await trainer.state_dict()
        assert not any((value == 7.0).any() for value in state.values())
        again = await trainer.predict(x)
        assert not any(np.any(np.array(each) == 7.0) for each in again)


class ExtraState(nn.Linear):
    """Saves a tensor, an array and a list in its own way."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.own = {"sum": torch.zeros(2), "array": np.zeros(2), "list": [0]}

    def get_extra_state(self):
        return self.own

    def set_extra_state(self, state):
        self.own = state


def test_a_state_that_a_module_gives_itself_is_copied():
    ours = learner(ExtraState)
    for state in (ours.state_dict(), ours.snapshot()["model"]):
        for value in state["_extra_state"].values():
            value[0] = 5
    assert not ours.model.own["sum"].any()
    assert not ours.model.own["array"].any()
    assert ours.model.own["list"] == [0]
