"""Parameters stay where the exchange looks for them, whatever the model does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.exchange.arena import Arena


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), nn.LSTM(4, 4), nn.Embedding(5, 4, sparse=True)
    )


def arena_of(model: nn.Module) -> Arena:
    arena = Arena(model)
    assert arena.homes.hold()
    return arena


def assign_data(model):
    model[0].weight.data = model[0].weight.data + 1


def assign_state(model):
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def make_anew(model):
    model[0] = nn.Linear(3, 4)


def set_storage(model):
    """As cuDNN does to the weights of a recurrent layer."""
    with torch.no_grad():
        flat = torch.cat([each.reshape(-1) for each in model[1].parameters()])
        start = 0
        for each in model[1].parameters():
            each.set_(flat.untyped_storage(), start, each.shape, each.stride())
            start += each.numel()


def convert(model):
    model.double()


def convert_a_table(model):
    model[2].to(torch.bfloat16)


def convert_to_new_parameters(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "cut_off",
    [
        assign_data,
        assign_state,
        make_anew,
        set_storage,
        convert,
        convert_a_table,
        convert_to_new_parameters,
    ],
)
def test_what_is_cut_off_comes_back_with_its_value_and_its_gradient(cut_off):
    model = network()
    arena = arena_of(model)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    cut_off(model)
    values = {
        name: (value.float() + 0.0).detach().clone()
        for name, value in model.named_parameters()
    }
    assert not arena.homes.hold()
    moved, thawed = arena.homes.mend()
    assert moved
    assert not thawed
    assert arena.homes.hold()
    assert all(map(lambda a, b: a is b, model.parameters(), parameters))
    for name, value in model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, values[name])
    assert all(torch.equal(each.grad, torch.ones_like(each)) for each in parameters)
    arena.buffers[0].add_(1.0)
    assert torch.equal(model[0].weight, values["0.weight"] + 1)
    x = torch.ones(2, 1, 4)
    before = model[1](x)[0]
    with torch.no_grad():
        model[1].weight_ih_l0.add_(1.0)
    assert not torch.equal(model[1](x)[0], before)  # its own list is of these, too


def test_a_shared_parameter_stays_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    arena = arena_of(model)
    model.load_state_dict(model.state_dict(), assign=True)
    arena.homes.mend()
    assert model[1].weight is model[0].weight
    assert arena.homes.hold()


def grow(model):
    model[0] = nn.Linear(3, 5)


def grow_the_data(model):
    model[0].weight.data = torch.zeros(5, 3)


def append(model):
    model.append(nn.Linear(2, 2))


def take_away(model):
    del model[1]


@pytest.mark.parametrize("change", [grow, grow_the_data, append, take_away])
def test_another_structure_is_refused_and_the_old_one_is_back(change):
    model = network()
    arena = arena_of(model)
    parameters = list(model.parameters())
    values = [each.detach().clone() for each in parameters]
    change(model)
    with pytest.raises(ModelError, match=r"Parameter '.*' .*trainer\.apply"):
        arena.homes.mend()
    assert arena.homes.hold()
    assert all(map(lambda a, b: a is b, model.parameters(), parameters))
    assert all(map(torch.equal, parameters, values))


def test_what_was_frozen_stays_frozen():
    model = network()
    model[0].requires_grad_(False)
    arena = arena_of(model)
    model[0].requires_grad_(True)
    assert not arena.homes.hold()
    assert arena.homes.mend() == ([], ["0.weight", "0.bias"])
    assert not model[0].weight.requires_grad
    assert arena.homes.hold()


def test_layers_without_parameters_may_come_as_they_like():
    model = network()
    arena = arena_of(model)
    model.append(nn.ReLU())
    assert arena.homes.mend() == ([], [])
    assert arena.homes.hold()


@pytest.mark.parametrize("make", [torch.jit.script, torch.compile])
def test_models_that_torch_has_translated_are_in_their_place(make):
    model = make(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    arena = arena_of(model)
    next(model.parameters()).data = torch.zeros(4, 3)
    assert not arena.homes.hold()
    assert len(arena.homes.mend()[0]) == 1
    assert not arena.buffers[0][:12].any()


def test_a_parameter_that_is_transposed_in_its_place_comes_back():
    model = nn.Linear(3, 3)
    arena = arena_of(model)
    expected = model.weight.detach().t().clone()
    model.weight.data = model.weight.data.t()
    assert not arena.homes.hold()
    assert arena.homes.mend() == (["weight"], [])
    assert arena.homes.changed
    assert torch.equal(model.weight, expected)
    assert torch.equal(arena.buffers[0][:9].view(3, 3), expected)
