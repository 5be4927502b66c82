from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
import torch
from distributed.protocol import serialize
from helpers import carried
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.exchange.wire import Packed, pack, unpack

Scores = collections.namedtuple("Scores", ["best", "all"])


def there(tree):
    """Send a structure through the bytes of Dask's protocol."""
    return unpack(carried(pack(tree)))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(3, 4), (0, 3), (), (2, 0)])
def test_a_tensor_arrives_as_it_left(dtype, shape):
    tensor = torch.randn(shape).mul(3).to(dtype)
    again = there(tensor)
    assert again.dtype == dtype
    assert again.shape == shape
    assert torch.equal(again, tensor)
    again.fill_(1)  # it can be written to


def test_a_tensor_that_is_a_view_arrives():
    assert torch.equal(
        there(torch.arange(12).reshape(3, 4).T[1:]),
        torch.arange(12).reshape(3, 4).T[1:],
    )


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -1, 2**63, -(2**70), 0.5, float("inf"), "text", b"bytes", 1 + 2j,
        [], (), {}, [1, [2, (3,)]], ("tensor", "float32"), ["list"],
        {1: {"a": (None,)}},
        {(1, "a"): 2, None: 3}, np.float32(1.5), np.int64(7), np.bool_(True),
    ],
)  # fmt: skip
def test_structures_and_scalars_arrive_with_their_types(value):
    again = there(value)
    assert again == value
    assert type(again) is type(value)


def test_tensors_deep_in_a_structure_arrive():
    tree = {"a": [torch.ones(2), 3], "b": (torch.tensor(1.5), None, "text")}
    again = there(tree)
    assert torch.equal(again["a"][0], torch.ones(2))
    assert again["a"][1] == 3
    assert again["b"][0].shape == ()
    assert again["b"][1:] == (None, "text")


@pytest.mark.parametrize("dtype", ["float64", "int16", "bool", "complex64", ">f4"])
def test_arrays_arrive(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)[:, ::2]
    again = there([array, array[:0]])
    for mine, theirs in zip(again, [array, array[:0]], strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_named_tuples_and_other_mappings_arrive_as_tuples_and_dicts():
    assert there(Scores(1, [2])) == (1, [2])
    assert type(there(collections.OrderedDict(a=1))) is dict
    assert there(torch.Size([2, 3])) == (2, 3)


def test_the_states_of_models_and_optimizers_arrive():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for kind in (torch.optim.Adam, torch.optim.Adagrad, torch.optim.LBFGS):
        optimizer = kind(model.parameters())

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        again = kind(model.parameters())
        again.load_state_dict(there(optimizer.state_dict()))
        assert str(again.state_dict()) == str(optimizer.state_dict())
    state = there(model.state_dict())
    assert str(state) == str(dict(model.state_dict()))


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"a": [object()]}, r"builtins\.object at \['a'\]\[0\]"),
        (torch.eye(3).to_sparse(), r"a tensor that is sparse.*give it\.to_dense\(\)"),
        ([torch.empty(3, device="meta")], r"at \[0\] a tensor that is without values"),
        (np.array([object()]), r"numpy\.ndarray"),
        ({1, 2}, r"builtins\.set"),
    ],
)
def test_what_does_not_travel_is_named(tree, where):
    with pytest.raises(ModelError, match=where):
        pack(tree)


def test_what_is_only_a_view_of_values_travels_as_these():
    value = torch.tensor([1 + 2j, 3 - 1j])
    packed = pack([value.conj(), value.conj().imag])
    assert [each.tolist() for each in unpack(packed)] == [[1 - 2j, 3 + 1j], [-2, 1]]


def test_nothing_is_pickled(monkeypatch):
    def refuse(obj, *args, **kwargs):
        assert obj is Packed  # its name, by Dask
        return b""

    monkeypatch.setattr("distributed.protocol.pickle.dumps", refuse)
    monkeypatch.setattr(pickle, "loads", None)
    header, frames = serialize(pack({"a": (torch.ones(2), np.ones(3), 3)}))
    assert unpack(Packed(header["sub-header"]["description"], frames))["a"][2] == 3


def test_memory_leaves_without_a_copy():
    tensor = torch.zeros(1000)
    (frame,) = pack(tensor).frames
    tensor[:] = 3
    assert bytes(frame) == tensor.numpy().tobytes()
