"""Policies change the model when its stream has drifted."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tensair_dask.adaptation import (
    Call,
    Drift,
    KeepTraining,
    Policy,
    RaiseLearningRate,
    Reinitialise,
    RestoreLastGood,
    as_policy,
)
from tensair_dask.errors import ConfigurationError

DRIFT = Drift(0.0, 100, "OPTWIN", 1.0, 3.0, 4.0)


def network() -> nn.Module:
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.head = nn.Linear(4, 2)
    return model


def rates(*optimizers) -> list[float]:
    return [group["lr"] for each in optimizers for group in each.param_groups]


def test_the_learning_rate_is_raised_and_lowered_again():
    model = network()
    adam = torch.optim.Adam(
        [{"params": model.body.parameters(), "lr": 0.1}, *_head(model)], lr=0.01
    )
    policy = RaiseLearningRate(5)
    policy.on_drift(model, [adam], DRIFT)
    assert rates(adam) == pytest.approx([0.5, 0.05])
    policy.undo(model, [adam], DRIFT)
    assert rates(adam) == pytest.approx([0.1, 0.01])


def _head(model):
    return [{"params": model.head.parameters()}]


def test_it_may_be_raised_by_the_magnitude():
    sgd = torch.optim.SGD(network().parameters(), lr=0.1)
    policy = RaiseLearningRate(lambda drift: min(1 + drift.magnitude, 10), batches=7)
    policy.on_drift(None, [sgd], DRIFT)
    assert rates(sgd) == [0.5]
    assert policy.describe(DRIFT) == "learning rate times 5 for 7 mini-batches"
    assert policy.lasts == 7


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), "much"])
def test_a_factor_must_be_a_number_above_0(factor):
    with pytest.raises(ConfigurationError, match="a number above 0"):
        RaiseLearningRate(factor)
    with pytest.raises(ConfigurationError, match="a number above 0"):
        RaiseLearningRate(lambda drift: factor).describe(DRIFT)


def test_a_factor_may_be_a_number_of_numpy():
    said = "learning rate times 3 for 500 mini-batches"
    assert RaiseLearningRate(np.float32(3)).describe(DRIFT) == said
    assert RaiseLearningRate(lambda drift: np.int64(3)).describe(DRIFT) == said
    with pytest.raises(ConfigurationError, match="is True; a number above 0"):
        RaiseLearningRate(True)


def test_a_factor_of_an_unknown_magnitude_is_explained():
    unknown = dataclasses.replace(DRIFT, magnitude=math.nan)
    policy = RaiseLearningRate(lambda drift: 1 + drift.magnitude)
    with pytest.raises(ConfigurationError, match="OPTWIN did not tell it"):
        policy.describe(unknown)


@pytest.mark.parametrize("name", ["head", "he*", "head*"])
def test_chosen_layers_are_reinitialised_and_the_others_are_not(name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Reinitialise(name).on_drift(model, [], DRIFT)
    after = model.state_dict()
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert torch.equal(before["body.0.weight"], after["body.0.weight"])


def test_what_is_below_a_module_is_reinitialised_too():
    model = network()
    before = model.body[0].weight.clone()
    Reinitialise("body").on_drift(model, [], DRIFT)
    assert not torch.equal(before, model.body[0].weight)


def test_the_optimizer_forgets_what_it_keeps_of_their_parameters():
    model = network()
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    adam.step()
    Reinitialise("head").on_drift(model, [adam], DRIFT)
    assert model.head.weight not in adam.state
    assert model.body[0].weight in adam.state


@pytest.mark.parametrize("name", ["tail", "body.1"])
def test_a_layer_that_cannot_be_reset_is_found_out_beforehand(name):
    Reinitialise("head", "body.0").check(network())
    with pytest.raises(ConfigurationError, match=r"modules are body, body.0"):
        Reinitialise("head", name).check(network())


def test_what_torch_resets_by_another_name_is_reinitialised():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    policy = Reinitialise("0")
    policy.check(model)
    policy.on_drift(model, [], DRIFT)
    assert not [name for name, each in model.named_parameters() if (each == 7.0).any()]
    assert not model[0].self_attn.out_proj.bias.any()  # the outer module's last word


def test_parameters_that_nothing_resets_are_reported_beforehand():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.layer = nn.Linear(2, 2)

    model = network()
    model.tail = nn.Sequential(Scaled())
    with pytest.raises(
        ConfigurationError, match=r"leave tail\.0\.scale as .* give a function instead"
    ):
        Reinitialise("tail").check(model)
    Scaled.reset_parameters = lambda self: None
    Reinitialise("tail").check(model)


def test_layers_must_be_named():
    with pytest.raises(ConfigurationError, match="names of modules are needed"):
        Reinitialise()


@pytest.mark.parametrize("kind", [RestoreLastGood, RaiseLearningRate])
def test_counts_must_be_whole_numbers(kind):
    name = "every" if kind is RestoreLastGood else "batches"
    with pytest.raises(ConfigurationError, match=f"{name}=0 is not allowed"):
        kind(**{name: 0})


def test_policies_may_be_named():
    assert isinstance(as_policy("train"), KeepTraining)
    assert isinstance(as_policy("raise-learning-rate"), RaiseLearningRate)
    assert isinstance(as_policy("restore"), RestoreLastGood)
    policy = Reinitialise("head")
    assert as_policy(policy) is policy


def test_a_function_is_called_with_model_optimizers_and_drift():
    called = []

    def shrink(model, optimizers, drift):
        called.append((model, optimizers, drift))

    policy = as_policy(shrink)
    assert isinstance(policy, Call)
    policy.on_drift("model", ["sgd"], DRIFT)
    assert called == [("model", ["sgd"], DRIFT)]
    assert policy.describe(DRIFT) == "call shrink"
    assert as_policy(functools.partial(shrink)).describe(DRIFT) == "call a function"


@pytest.mark.parametrize("given", ["retrain", 5, None, Reinitialise])
def test_anything_else_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"allowed are 'train', 'raise"):
        as_policy(given)


def test_a_policy_of_the_users_own_needs_one_method():
    class Half(Policy):
        def on_drift(self, model, optimizers, drift):
            with torch.no_grad():
                model.head.weight.mul_(0.5)

    assert Half().describe(DRIFT) == "Half"
    assert Half().acts
    Half().check(network())
