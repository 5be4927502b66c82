"""A model and its optimizers as they were before a function changed them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.replica.learner import Learner, Recipe

X, Y = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def learner() -> Learner:
    recipe = Recipe(
        network,
        nn.functional.cross_entropy,
        functools.partial(torch.optim.Adam, lr=0.1),
        {},
        "gradient",
        0,
        False,
    )
    made = Learner(recipe, torch.device("cpu"))
    made.learn(X, Y, 2)
    return made


def all_of(made: Learner) -> list[torch.Tensor]:
    (adam,) = made.optimizers
    state = [
        value
        for parameter in made.arena.parameters
        for value in adam.state[parameter].values()
    ]
    values = [*made.model.state_dict().values(), *made.arena.buffers, *state]
    return [torch.as_tensor(value).clone() for value in values]


def scale(model, optimizers):
    with torch.no_grad():
        model[2].weight.mul_(3)


def test_a_change_in_place_stays():
    made = learner()
    before = made.model[2].weight.clone()
    made.change(scale)
    assert torch.equal(made.model[2].weight, 3 * before)


def test_a_rate_that_is_changed_is_learned_with():
    made = learner()
    made.change(lambda _, optimizers: optimizers[0].param_groups[0].update(lr=0.0))
    before = made.model[2].weight.clone()
    made.learn(X, Y, 2)
    assert torch.equal(made.model[2].weight, before)


def fail_halfway(model, optimizers):
    scale(model, optimizers)
    model[1].running_mean.fill_(7)
    optimizers[0].param_groups[0]["lr"] = 99
    optimizers[0].state.clear()
    model.eval()
    raise ZeroDivisionError("halfway")


def replace(model, optimizers):
    model[2] = nn.Linear(4, 2)


def replace_parameter(model, optimizers):
    model[2].weight = nn.Parameter(torch.zeros(2, 4))


def replace_data(model, optimizers):
    model[2].weight.data = torch.zeros(2, 4)


def freeze(model, optimizers):
    model[0].weight.requires_grad_(False)


def add_parameters(model, optimizers):
    model[2].extra = nn.Parameter(torch.zeros(3))
    optimizers[0].add_param_group({"params": [model[2].extra]})


def change_attributes(model, optimizers):
    model.classes = 3
    model[2].out_features = 3
    del model[1]


@pytest.mark.parametrize(
    "function",
    [
        fail_halfway,
        replace,
        replace_parameter,
        replace_data,
        freeze,
        add_parameters,
        change_attributes,
    ],
)
def test_after_a_change_that_fails_all_is_as_it_was(function):
    def and_fail(model, optimizers):
        function(model, optimizers)
        raise ZeroDivisionError

    made, twin = learner(), learner()
    with pytest.raises(ZeroDivisionError):
        made.change(and_fail)
    assert not hasattr(made.model, "classes")
    assert str(made.model) == str(twin.model)
    for _ in range(3):
        assert all(map(torch.equal, all_of(made), all_of(twin)))
        assert made.learn(X, Y, 2)[0].loss == twin.learn(X, Y, 2)[0].loss


def test_the_error_says_what_is_allowed():
    with pytest.raises(ModelError, match="Leave one as it is"):
        learner().change(lambda model, _: model.requires_grad_(False))
