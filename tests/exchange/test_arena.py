from __future__ import annotations

import pytest
import torch
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.exchange.arena import ALIGNMENT, Arena


def test_parameters_become_views_and_keep_their_values():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    before = [p.detach().clone() for p in model.parameters()]
    arena = Arena(model)
    assert len(arena.buffers) == 1
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert (
            parameter.untyped_storage().data_ptr()
            == arena.buffers[0].untyped_storage().data_ptr()
        )


def test_one_operation_on_the_buffer_moves_all_parameters():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    arena = Arena(model)
    before = [p.detach().clone() for p in model.parameters()]
    arena.buffers[0].add_(1.0)
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was + 1)


def test_parameters_are_aligned():
    arena = Arena(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7)))
    base = arena.buffers[0].data_ptr()
    assert all((p.data_ptr() - base) % ALIGNMENT == 0 for p in arena.parameters)


def test_shared_weights_are_held_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    arena = Arena(model)
    assert len(arena.parameters) == 3
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()


def test_frozen_parameters_stay_where_they_are():
    model = nn.Linear(4, 4)
    model.bias.requires_grad_(False)
    where = model.bias.data_ptr()
    arena = Arena(model)
    assert arena.parameters == [model.weight]
    assert model.bias.data_ptr() == where


def test_each_dtype_has_a_buffer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    arena = Arena(model)
    assert arena.layout.dtypes == [torch.float32, torch.bfloat16]


def test_a_memory_format_is_kept():
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    was = model.weight.detach().clone()
    Arena(model)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.weight, was)


def test_sparse_embeddings_are_tables_beside_the_buffers():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    arena = Arena(model)
    assert arena.tables == [model[0].weight]
    assert arena.dense == [model[1].weight, model[1].bias]


def test_a_lazy_module_is_refused_with_what_to_do():
    with pytest.raises(ModelError, match="Run one mini-batch through the model"):
        Arena(nn.LazyLinear(3))
