"""A function of the user's is given what it asks for, and keeps its own settings."""

from __future__ import annotations

import functools

import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, linear, train_all

import tensair_dask as ta
from tensair_dask._common.user_functions import DRIFT, OPTIMIZERS, as_called, doubts
from tensair_dask.drift.policies import Call
from tensair_dask.errors import CallError, ConfigurationError

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)

APPLY = [("optimizers", OPTIMIZERS)]
POLICY = [*APPLY, ("drift", DRIFT)]


def notes_of(trainer, said):
    texts = trainer.events["text"]
    return [each for each in texts if said in each]


class Resets:
    def __init__(self, value=0.5):
        self.value = value

    def only(self, model, bias=True):
        return model, bias

    def __call__(self, model, optimizers):
        return model, optimizers


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda model: model, "m"),
        (lambda model, optimizers: (model, optimizers), ("m", "o")),
        (lambda model, _: model, "m"),
        (lambda model, *_: (model, _), ("m", ())),
        (lambda model, std=0.0: (model, std), ("m", 0.0)),
        (lambda model, optimizer=None: (model, optimizer), ("m", "o")),
        (lambda model, std=0.0, optimizers=(): (model, std, optimizers), ("m", 0, "o")),
        (lambda model, *, optimizers: (model, optimizers), ("m", "o")),
        (lambda model, *optimizers: (model, optimizers), ("m", ("o",))),
        (lambda model, opts, rate=0.1: (model, opts, rate), ("m", "o", 0.1)),
        (lambda *both: both, ("m", "o")),
        (functools.partial(lambda model, std: (model, std), std=2), ("m", 2)),
        (functools.partial(lambda m, optimizer: (m, optimizer), optimizer=3), ("m", 3)),
        (lambda optimizers: optimizers, "o"),
        (lambda optimizers, model: (optimizers, model), ("o", "m")),
        (lambda opt, m: (opt, m), ("o", "m")),
        (lambda o, net: (o, net), ("o", "m")),
        (lambda optimizers=(), model=None: (optimizers, model), ("o", "m")),
        (lambda optim, *, model: (optim, model), ("o", "m")),
        (lambda m, module=3: (m, module), ("m", 3)),
        (Resets(), ("m", "o")),
        (Resets().only, ("m", True)),
    ],
)
def test_optimizers_are_given_where_they_are_meant(function, given):
    assert as_called(function, "apply", APPLY)("m", "o") == given


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda model, optimizers, drift: (model, optimizers, drift), ("m", "o", "d")),
        (lambda a, b, c: (a, b, c), ("m", "o", "d")),
        (lambda model, drift: (model, drift), ("m", "d")),
        (lambda model, drift, optimizers: (model, drift, optimizers), ("m", "d", "o")),
        (lambda drift: drift, "d"),
        (lambda drift, model: (drift, model), ("d", "m")),
        (lambda shift, model, opts: (shift, model, opts), ("d", "m", "o")),
        (lambda optimizers, drift: (optimizers, drift), ("o", "d")),
        (lambda drift, rest=7: (drift, rest), ("d", 7)),
        (lambda model, optimizers, f=5: (model, optimizers, f), ("m", "o", 5)),
        (lambda model, factor=5: (model, factor), ("m", 5)),
        (lambda model, factor=5, drift=None: (model, factor, drift), ("m", 5, "d")),
    ],
)
def test_a_policy_is_given_the_drift_where_it_is_meant(function, given):
    assert as_called(function, "on_drift", POLICY)("m", "o", "d") == given


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda model, optimizers, rate: None,
        lambda model, *, rate: None,
        lambda *, model: None,
        lambda optimizers, model, rate: None,
    ],
)
def test_a_function_that_needs_something_else_is_refused(function):
    with pytest.raises(CallError, match=r"apply calls a function .model, optimizers."):
        as_called(function, "apply", APPLY)


def test_a_policy_whose_second_parameter_is_not_the_drift_is_refused():
    with pytest.raises(ConfigurationError, match="on_drift"):
        Call(lambda model, that: None)


@two()
async def test_the_default_of_a_function_that_is_applied_is_its_own(c, s, a, b):
    def init_weights(model, std=0.25):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, std)

    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(init_weights)
        for state in (await trainer.state_dicts()).values():
            assert all((value == 0.25).all() for value in state.values())
        assert not notes_of(trainer, "nothing")


@two()
async def test_a_method_of_modules_can_be_applied_as_it_is(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(functools.partial(torch.nn.Module.requires_grad_))
        await train_all(trainer, class_data(4))
        assert trainer.history["error"].isna().all()


def of_layers(module):
    if isinstance(module, torch.nn.Linear):
        torch.nn.init.zeros_(module.weight)


def of_nothing(model, optimizers):
    model.state_dict()["0.bias"].sum()


@one()
@pytest.mark.parametrize("function", [of_layers, of_nothing])
async def test_it_is_said_that_a_function_has_changed_nothing(c, s, a, function):
    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(function)
        await trainer.apply(function)
        (note,) = notes_of(trainer, "nothing")
        assert function.__name__ in note
        assert "model.apply" in note


def faster(model, optimizers):
    optimizers[0].param_groups[0]["lr"] *= 2


def freeze(model, optimizers):
    model[0].requires_grad_(False)


def norm(model):
    return float(model[0].weight.detach().norm())


def to_ones(model):
    for parameter in model.parameters():
        parameter.data.fill_(1)


@one()
@pytest.mark.parametrize("function", [faster, freeze, norm, to_ones])
async def test_a_function_that_changes_the_model_or_returns_a_value_causes_no_notice(
    c, s, a, function
):
    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(function)
        assert not notes_of(trainer, "nothing")


def entropy(prediction, eps=1e-8):
    return -(prediction + eps).log().mean()


def half_life(steps=1000):
    return lambda gradients: 0.5 ** (gradients / steps)


class Weighted(torch.nn.Module):
    def forward(self, prediction, weight=None):
        return prediction.mean()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"loss": entropy}, "eps"),
        ({"loss": Weighted()}, "weight"),
        ({"metrics": {"entropy": entropy}}, "eps"),
        ({"schedule": half_life}, "steps"),
    ],
)
def test_what_takes_the_place_of_a_setting_is_said(given, named):
    sound = {"loss": torch.nn.functional.mse_loss, "metrics": {}, "schedule": None}
    (text,) = doubts(**{**sound, **given})
    assert f"the default of {named}" in text


@pytest.mark.parametrize(
    "given",
    [
        {"loss": torch.nn.MSELoss(), "schedule": half_life()},
        {"loss": lambda prediction, y=None: 0, "schedule": lambda n=0: 1.0},
        {"metrics": {"accuracy": ta.metrics.accuracy}},
        {"schedule": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2)},
    ],
)
def test_nothing_is_said_of_usual_functions(given):
    sound = {"loss": torch.nn.functional.mse_loss, "metrics": {}, "schedule": None}
    assert not list(doubts(**{**sound, **given}))


def pinball(y_true, y_pred):
    return torch.maximum(0.9 * (y_true - y_pred), 0.1 * (y_pred - y_true)).mean()


def r2_score(y_true, y_pred, *, sample_weight=None):
    return 1 - ((y_true - y_pred) ** 2).sum() / ((y_true - y_true.mean()) ** 2).sum()


class Reversed(torch.nn.Module):
    def forward(self, target, logits):
        return (target - logits).mean()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"loss": pinball}, "loss is called"),
        ({"loss": Reversed()}, "(target, logits)"),
        ({"metrics": {"a": r2_score}}, "metrics['a'] is called"),
        ({"metrics": {"a": lambda labels, preds: 0.0}}, "labels is given the pred"),
        ({"loss": functools.partial(lambda t, target, output: 0, 1)}, "(target, out"),
    ],
)
def test_a_target_that_comes_first_is_said(given, named):
    sound = {"loss": torch.nn.functional.mse_loss, "metrics": {}, "schedule": None}
    (text,) = doubts(**{**sound, **given})
    assert named in text
    assert "lambda prediction, y: function(y, prediction)" in text


@pytest.mark.parametrize(
    "function",
    [
        lambda y_pred, y_true: 0,
        lambda prediction, y: 0,
        lambda input, target: 0,
        lambda true, other: 0,
        lambda a, prediction: 0,
        functools.partial(lambda target, output, t: 0, torch.zeros(1)),
        torch.nn.CrossEntropyLoss(),
        max,
    ],
)
def test_nothing_is_said_of_other_names(function):
    metrics = {"a": function, "b": ta.metrics.accuracy}
    assert not list(doubts(loss=function, metrics=metrics, schedule=None))


@one()
async def test_the_trainer_says_it_of_targets_that_come_first(c, s, a):
    async with ta.Trainer(c, **linear(metrics={"pinball": pinball})) as trainer:
        assert notes_of(trainer, "y_true is given the prediction")


@one()
async def test_a_function_of_the_optimizers_alone_is_applied(c, s, a):
    def slower(optimizers):
        optimizers[0].param_groups[0]["lr"] *= 0.5

    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(slower)
        rate = await trainer.apply(lambda optims: optims[0].param_groups[0]["lr"])
        assert rate == 0.05


@one()
async def test_the_trainer_says_it(c, s, a):
    metrics = {"share": lambda prediction, above=0.5: (prediction > above).mean()}
    async with ta.Trainer(c, **linear(metrics=metrics)) as trainer:
        assert notes_of(trainer, "default of above")
