from __future__ import annotations

import pickle

import pytest
import torch

from tensair_dask.exchange.wire import Packed, pack, unpack


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
def test_a_tensor_arrives_as_it_left(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    again = pickle.loads(pickle.dumps(pack(tensor))).tensor()
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_structures_and_scalars_survive():
    tree = {"a": [torch.ones(2), 3], "b": (torch.tensor(1.5), None, "text")}
    again = unpack(pack(tree))
    assert torch.equal(again["a"][0], torch.ones(2))
    assert again["a"][1] == 3
    assert again["b"][0].shape == ()
    assert again["b"][1:] == (None, "text")


def test_the_memory_leaves_a_pickle_without_a_copy():
    tensor = torch.zeros(1000)
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(Packed.of(tensor), protocol=5, buffer_callback=buffers.append)
    assert len(small) < 500
    assert buffers[0].raw().nbytes == 4000


def test_an_empty_tensor_arrives():
    assert unpack(pack(torch.zeros(0, 3))).shape == (0, 3)
