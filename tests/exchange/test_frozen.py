"""What a model writes into its frozen parameters is seen, however it does so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tensair_dask.exchange.frozen import Frozen


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(50, 40)
        self.target = copy.deepcopy(self.net).requires_grad_(False)


def averaged(model):
    for mine, its in zip(model.target.parameters(), model.net.parameters()):  # noqa: B905
        mine.data = mine.data * 0.9 + (its.data + 1) * 0.1


def averaged_in_place(model):
    model.target.weight.data.mul_(0.9)


@torch.no_grad()
def copied(model):
    model.target.load_state_dict({k: v + 1 for k, v in model.net.state_dict().items()})


@torch.no_grad()
def one_value(model):
    model.target.weight[17, 33] = 5.0


def another_module(model):
    model.target = nn.Linear(50, 40).requires_grad_(False)


WRITES = [averaged, averaged_in_place, copied, one_value, another_module]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_writes_are_seen_by_name(write, dtype):
    model = Net().to(dtype)
    frozen = Frozen(model)
    assert frozen.written() == []
    write(model)
    assert "target.weight" in frozen.written()
    assert frozen.written() == []


@torch.no_grad()
def trained(model):
    model.net.weight.add_(1)


def moved(model):
    model.target.weight.data = model.target.weight.data.clone()


def used(model):
    model.target(torch.ones(1, 50))


@pytest.mark.parametrize("change", [trained, moved, used])
def test_what_leaves_their_values_is_none(change):
    model = Net()
    frozen = Frozen(model)
    change(model)
    assert frozen.written() == []


def test_what_was_taken_over_is_none():
    model = Net()
    frozen = Frozen(model)
    copied(model)
    frozen.begin()
    assert frozen.written() == []


def test_values_that_are_nan_or_none_at_all_stay_as_they_are():
    model = Net()
    model.target.bias.data.fill_(float("nan"))
    model.empty = nn.Parameter(torch.zeros(0, 3), requires_grad=False)
    model.number = nn.Parameter(torch.tensor(3), requires_grad=False)
    frozen = Frozen(model)
    assert frozen.written() == []
    model.number.data.fill_(4)
    assert frozen.written() == ["number"]


def test_where_nothing_is_frozen_there_is_nothing_to_look_at():
    assert not Frozen(nn.Linear(2, 2)).eager
