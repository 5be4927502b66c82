"""What shares memory in a model shares it in the arena, or is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.exchange.arena import Arena


class Holder:
    """An object of the user's own."""

    def __init__(self, thing):
        self.thing = thing


class Tied(nn.Module):
    """Two layers, of which the second is tied to the first by one of the ways below."""

    def __init__(self, tie):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        tie(self)


def by_data(model):
    model.b.weight.data = model.a.weight.data


def transposed(model):
    model.b.weight = nn.Parameter(model.a.weight.data.t())


def reshaped(model):
    model.b.flat = nn.Parameter(model.a.weight.data.view(-1))


def a_part(model):
    model.b.bias = nn.Parameter(model.a.weight.data[1])


def parts_of_a_flat_one(model):
    flat = torch.randn(20)
    model.flat = nn.Parameter(flat)
    model.a.weight.data = flat[:16].view(4, 4)
    model.a.bias.data = flat[16:]


PARAMETERS = [by_data, transposed, reshaped, a_part, parts_of_a_flat_one]


def buffer(model):
    model.register_buffer("alias", model.a.weight.data)


def hidden_buffer(model):
    model.register_buffer("alias", model.a.weight.data[1:, ::2], persistent=False)


def attribute(model):
    model.alias = model.a.weight.data.t()


def detached(model):
    model.alias = model.a.weight.detach()[2]


def differentiable(model):
    model.alias = model.a.weight.t()


def array(model):
    model.alias = model.a.weight.detach().numpy()


def reversed_array(model):
    model.alias = model.a.weight.detach().numpy()[::-1, 1:]


def array_of_bytes(model):
    model.alias = model.a.weight.detach().numpy().view(np.uint8)


def in_a_list(model):
    model.alias = [None, model.a.weight.detach().numpy()]


def in_a_dict(model):
    model.alias = {"deep": [(model.a.weight.data,)], "array": np.zeros(3)}


def in_an_object(model):
    model.alias = Holder(model.a.weight.detach().numpy())


def expanded(model):
    model.register_buffer("alias", model.a.bias.data.expand(3, 4))


def frozen(model):
    by_data(model)
    model.b.weight.requires_grad_(False)


def flat_attribute(model):
    model.alias = torch.randn(20)
    model.a.weight.data = model.alias[:16].view(4, 4)
    model.a.bias.data = model.alias[16:]


ALIASES = [
    buffer,
    hidden_buffer,
    attribute,
    detached,
    differentiable,
    array,
    reversed_array,
    array_of_bytes,
    in_a_list,
    in_a_dict,
    in_an_object,
    expanded,
    frozen,
    flat_attribute,
]


def alias(model):
    """Give a copy of what the model keeps."""
    kept = getattr(model, "alias", model.b.weight)
    kept = getattr(kept, "thing", kept)
    if isinstance(kept, list):
        kept = kept[1]
    if isinstance(kept, dict):
        kept = kept["deep"][0][0]
    if isinstance(kept, torch.Tensor):
        return kept.detach().clone()
    return torch.from_numpy(kept.copy())


def step(model):
    """Each parameter steps with a gradient of its own."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for number, each in enumerate(each for each in model.parameters()):
        each.grad = torch.full_like(each, number + 1.0)
    optimizer.step()


def state(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("tie", PARAMETERS)
def test_parameters_that_are_one_memory_step_as_in_a_plain_loop(tie):
    torch.manual_seed(0)
    plain = Tied(tie)
    torch.manual_seed(0)
    model = Tied(tie)
    arena = Arena(model)
    assert state(plain).keys() == state(model).keys()
    for _ in range(3):
        step(plain)
        step(model)
    for name, value in state(plain).items():
        assert torch.equal(value, state(model)[name])
    arena.buffers[0].add_(1.0)
    for name, value in state(plain).items():
        assert torch.equal(value + 1.0, state(model)[name])
    assert arena.homes.hold()


@pytest.mark.parametrize("tie", ALIASES)
def test_what_is_a_view_of_a_parameter_follows_it(tie):
    torch.manual_seed(0)
    plain = Tied(tie)
    torch.manual_seed(0)
    model = Tied(tie)
    arena = Arena(model)
    assert torch.equal(alias(model), alias(plain))
    for each in (plain, model):
        with torch.no_grad():
            each.a.weight.mul_(2.0)
            each.a.bias.mul_(2.0)
    assert torch.equal(alias(model), alias(plain))
    before = alias(model)
    for each in arena.buffers:
        each.neg_()
    assert not torch.equal(alias(model), before)
    assert torch.equal(model.a.weight, -plain.a.weight)


def test_gradients_pass_through_a_view_that_was_kept():
    model = Tied(differentiable)
    Arena(model)
    for _ in range(2):
        (torch.ones(1, 4) @ model.alias).sum().backward()
    assert torch.equal(model.a.weight.grad, torch.full((4, 4), 2.0))


def test_what_writes_into_a_view_writes_into_the_parameter():
    model = Tied(array)
    Arena(model)
    model.alias[:] = 3.0
    assert torch.equal(model.a.weight, torch.full((4, 4), 3.0))


def test_a_read_only_array_stays_one():
    def read_only(model):
        array(model)
        model.alias.flags.writeable = False

    model = Tied(read_only)
    Arena(model)
    assert not model.alias.flags.writeable


def test_one_object_in_two_places_stays_one():
    def twice(model):
        buffer(model)
        model.again = [model.alias]

    model = Tied(twice)
    Arena(model)
    assert model.again[0] is model.alias


def test_a_tensor_that_others_hold_as_well_stays_theirs():
    given = torch.ones(4, 4)

    def from_outside(model):
        model.a.weight = nn.Parameter(given)
        model.alias = given

    one, other = Tied(from_outside), Tied(from_outside)
    arena = Arena(one)
    arena.buffers[0].add_(1.0)
    Arena(other)
    assert torch.equal(one.alias, torch.full((4, 4), 2.0))
    assert torch.equal(other.a.weight, torch.ones(4, 4))


def test_columns_of_one_memory_are_no_tie():
    def columns(model):
        both = torch.randn(4, 8)
        model.a.weight.data, model.b.weight.data = both[:, :4], both[:, 4:]

    model = Tied(columns)
    values = state(model)
    arena = Arena(model)
    assert not arena.ties.parameters
    assert all(torch.equal(each, values[name]) for name, each in state(model).items())
    assert all(each.is_contiguous() for each in arena.parameters)


def test_models_without_ties_lie_as_before():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 4))
    arena = Arena(model)
    assert not arena.ties.parameters
    assert not arena.ties.ids
    copied = Arena(copy.deepcopy(model))
    assert copied.layout.sizes == arena.layout.sizes


def beyond(model):
    model.alias = torch.randn(3, 4, 4)
    model.a.weight.data = model.alias[1]


def overlapping(model):
    flat = torch.randn(24)
    model.a.weight.data = flat[:16].view(4, 4)
    model.b.weight.data = flat[8:].view(4, 4)


def as_other_numbers(model):
    model.b.weight = nn.Parameter(model.a.weight.data.view(torch.bfloat16))


def in_a_tuple(model):
    model.alias = (model.a.weight.detach().numpy(),)


@pytest.mark.parametrize(
    ("tie", "named"),
    [
        (beyond, "'a.weight' and 'alias' share memory.*beyond"),
        (overlapping, r"'a.weight' and 'b.weight' share.*model\.b\.weight = model\.a"),
        (as_other_numbers, "'a.weight' and 'b.weight' share memory.*dtypes"),
        (in_a_tuple, r"'alias\[\.\.\.\]' is a numpy array .* in a tuple"),
    ],
)
def test_what_cannot_stay_one_is_refused_with_its_names(tie, named):
    with pytest.raises(ModelError, match=named):
        Arena(Tied(tie))


def a_table_and_a_layer(model):
    model.table = nn.Embedding(4, 4, sparse=True)
    model.a.weight.data = model.table.weight.data


def two_tables(model):
    model.table = nn.Embedding(4, 4, sparse=True)
    model.other = nn.Embedding(4, 4, sparse=True)
    model.other.weight.data = model.table.weight.data


@pytest.mark.parametrize("tie", [a_table_and_a_layer, two_tables])
def test_tables_are_tied_as_one_parameter_only(tie):
    with pytest.raises(ModelError, match=r"rows.*Use one parameter in both places"):
        Arena(Tied(tie))


def test_views_of_a_table_stay_views():
    def view(model):
        model.table = nn.Embedding(4, 4, sparse=True)
        model.alias = model.table.weight.data

    model = Tied(view)
    Arena(model)
    with torch.no_grad():
        model.table.weight.fill_(2.0)
    assert torch.equal(model.alias, model.table.weight)


def test_a_tied_parameter_that_is_put_elsewhere_is_refused_and_comes_back():
    model = Tied(buffer)
    arena = Arena(model)
    was = model.a.weight.detach().clone()
    model.a.weight.data = torch.zeros(4, 4)
    with pytest.raises(ModelError, match=r"'a.weight' shares memory.*copy_"):
        arena.homes.mend()
    assert torch.equal(model.a.weight, was)
    arena.buffers[0].add_(1.0)
    assert torch.equal(model.alias, model.a.weight)


@pytest.mark.parametrize("tie", [by_data, transposed])
def test_parameters_that_are_tied_while_it_runs_are_refused(tie):
    model = Tied(lambda model: None)
    arena = Arena(model)
    tie(model)
    with pytest.raises(ModelError, match=r"share memory now.*model\.b\.weight = model"):
        arena.homes.mend()
