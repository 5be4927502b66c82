"""What goes into a checkpoint comes out of it as it was, or is refused by name."""

from __future__ import annotations

import collections
import datetime
import io
import math

import numpy as np
import pytest
import torch

from tensair_dask._common.plain_values.tensors import pack, unpack
from tensair_dask.errors import CheckpointError


def written(tree):
    file = io.BytesIO()
    torch.save(pack(tree, "it"), file)
    return file.getvalue()


def there_and_back(tree):
    return unpack(torch.load(io.BytesIO(written(tree)), weights_only=True))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 2**62, 2**200, 0.1, math.inf, "", "ü", b"", b"\x00\xff"),
        *([], {}, (), [[]], (1, (2, [3])), {"a": {1: None, None: "b", (1, "c"): 2.5}}),
        *([True] * 100, list(range(-50, 50)), tuple(map(float, range(100)))),
        *([2**70] * 100, [1, 1.0] * 50, ["a"] * 100, {True: 1, "b": 0}, {b"": b"k"}),
        {"\0tensair": "list", "content": [1]},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_plain_values_stay_what_they_are(value):
    again = there_and_back({"it": value})["it"]
    assert again == value
    assert repr(again) == repr(value)  # True is not 1, and 1 not 1.0


def test_numpys_numbers_become_pythons():
    again = there_and_back({np.int64(3): np.float32(0.5), "b": np.bool_(True)})
    assert again == {3: 0.5, "b": True}
    assert [*map(type, again)] == [int, str]
    assert [*map(type, again.values())] == [float, bool]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.arange(4.0)[::-1],
        np.array(3.5),
        np.empty((0, 4), dtype=np.float32),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array([1, 2], dtype=np.uint64),
        np.arange(3, dtype=">f8"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([0.5], dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_as_arrays(array):
    array = array.view()
    array.flags.writeable = False
    again = there_and_back([array])[0]
    np.testing.assert_array_equal(again, array)
    assert type(again) is np.ndarray
    assert again.dtype == array.dtype.newbyteorder("=")
    assert again.shape == array.shape


DTYPES = [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.float8_e4m3fn])
def test_tensors_of_all_kinds_come_back_bit_by_bit(dtype):
    tensor = torch.tensor([0.0, 1.0, 0.0]).to(dtype)
    again = there_and_back({"t": tensor})["t"]
    assert again.dtype == dtype
    assert torch.equal(again.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.0),
        torch.empty(0),
        torch.empty(3, 0, 2),
        torch.randn(4, 6).T,
        torch.ones(1).expand(5),
        torch.randn(5, 6)[2:, ::2],
        torch.eye(3).to_sparse(),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}",
)
def test_tensors_of_all_shapes_come_back(tensor):
    again = there_and_back([tensor])[0]
    assert again.layout == tensor.layout
    assert torch.equal(again.to_dense(), tensor.to_dense())


def test_parameters_become_tensors_without_a_gradient():
    again = there_and_back([torch.nn.Parameter(torch.ones(2))])[0]
    assert type(again) is torch.Tensor
    assert not again.requires_grad


def test_tensors_that_share_memory_still_do():
    table = torch.zeros(4, 2)
    tree = there_and_back({"one": table, "other": table, "row": table[1]})
    tree["one"][1] = 7
    assert tree["other"][1].tolist() == [7, 7]
    assert tree["row"].tolist() == [7, 7]


def test_of_a_large_storage_only_what_is_used_is_written():
    large = torch.randn(1_000_000, dtype=torch.float64)
    tree = {"a": large[500_001:500_004], "b": large[500_002:500_003], "whole": "no"}
    assert len(written(tree)) < 10_000
    again = there_and_back(tree)
    assert torch.equal(again["a"], tree["a"])
    again["b"].zero_()
    assert again["a"][1] == 0


def test_what_is_packed_is_not_copied():
    tensor, array = torch.ones(10), np.ones(10)
    packed = pack({"t": tensor, "a": array}, "it")
    assert packed["t"].data_ptr() == tensor.data_ptr()
    assert packed["a"]["content"].data_ptr() == array.ctypes.data


class Own:
    pass


class OwnList(list):
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(Own(), Own, OwnList(), {1}, collections.deque(), len, lambda: None),
        *(datetime.date(2020, 1, 1), torch.device("cpu"), torch.float32),
        *(np.array(["text"]), np.array([Own()]), np.array("2020", dtype="M8[D]")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_need_code_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match=r"scores\['a'\]\[1\] is .*cannot hold"):
        pack({"a": [0, value]}, "scores")


def test_keys_are_plain_too():
    with pytest.raises(CheckpointError, match=r"scores\['a'\] has a key that is a Own"):
        pack({"a": {Own(): 1}}, "scores")


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match="holds itself"):
        pack(endless, "scores")
