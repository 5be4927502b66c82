from __future__ import annotations

import re

import dask.array
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from distributed.protocol import serialize
from helpers import carried

from tensair_dask.batches.batch import Block, MiniBatch, as_pair, collate, stack
from tensair_dask.errors import BatchError, DtypeError, ShapeError
from tensair_dask.replica.learner import non_finite, to_tensors

X = np.arange(12, dtype="float32").reshape(4, 3)
Y = np.arange(4)
CPU = torch.device("cpu")


def test_a_pair_of_arrays_is_a_mini_batch():
    batch = MiniBatch.of(X, Y)
    assert batch.samples == 4
    assert batch.nbytes == X.nbytes + Y.nbytes
    assert batch.describe() == "x (4, 3) float32, y (4,) int64"


@pytest.mark.parametrize(
    "x",
    [X, (X, X), {"one": X, "two": X}, torch.from_numpy(X), [X, X]],
    ids=["array", "tuple", "dict", "tensor", "list"],
)
def test_inputs_arrive_in_the_structure_in_which_they_were_given(x):
    block = Block.join("run", [MiniBatch.of(x, Y)] * 3)
    assert len(block) == 3
    for got, y, samples in to_tensors(block.groups[0], CPU):
        assert samples == 4
        assert torch.equal(y, torch.from_numpy(Y))
        if isinstance(x, dict):
            assert list(got) == ["one", "two"]
            got = got["two"]
        elif isinstance(x, (tuple, list)):
            assert isinstance(got, tuple)
            got = got[1]
        assert torch.equal(got, torch.from_numpy(X))


def test_bfloat16_travels_as_its_bits():
    x = torch.rand(4, 3).bfloat16()
    batch = MiniBatch.of(x, Y)
    assert "bfloat16" in batch.describe()
    block = Block.join("run", [batch, batch])
    assert all(torch.equal(got, x) for got, *_ in to_tensors(block.groups[0], CPU))


@pytest.mark.parametrize(
    "x",
    [
        X,
        np.repeat(X, 2, 1)[:, ::2],
        (X, X.astype("int16")),
        {"a": X, "b": X > 0, 3: X.astype("complex64")},
        torch.ones(len(X), 2).bfloat16(),
        np.broadcast_to(X[:1], X.shape),
        X[:, :0],
    ],
    ids=["array", "a view", "tuple", "dict", "bfloat16", "one row", "no columns"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_block_arrives_bit_by_bit(x, count):
    sent = Block.join("run", [MiniBatch.of(x, Y)] * count + [MiniBatch.of(X)])
    got = carried(sent)
    assert (got.run_id, len(got)) == (sent.run_id, len(sent))
    for mine, theirs in zip(got.groups, sent.groups, strict=True):
        assert (mine.kind, mine.lengths) == (theirs.kind, theirs.lengths)
        assert mine.learn is theirs.learn
        for one, other in zip(mine.leaves, theirs.leaves, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("number", [None, 0, 7])
def test_a_block_arrives_with_its_place_among_the_others(number):
    assert carried(Block.join("run", [MiniBatch.of(X, Y)], number)).number == number


def test_a_block_is_not_pickled(monkeypatch):
    def refuse(obj, *args, **kwargs):
        assert obj is Block  # its name, by Dask
        return b""

    monkeypatch.setattr("distributed.protocol.pickle.dumps", refuse)
    batch = MiniBatch.of(X, Y)
    _, frames = serialize(Block.join("run", [batch]))
    assert [memoryview(frame).nbytes for frame in frames] == [X.nbytes, Y.nbytes]
    assert np.shares_memory(np.frombuffer(frames[0], "uint8"), batch.leaves[0])


def test_a_dict_whose_names_do_not_travel_is_refused():
    with pytest.raises(ShapeError, match=r"key \(1, 2\).*strings or whole numbers"):
        MiniBatch.of({(1, 2): X})


def test_mini_batches_of_different_length_are_joined():
    block = Block.join("run", [MiniBatch.of(X, Y), MiniBatch.of(X[:1], Y[:1])])
    assert len(block.groups) == 1
    assert [samples for *_, samples in to_tensors(block.groups[0], CPU)] == [4, 1]


def test_mini_batches_of_another_kind_begin_a_new_group():
    wide = MiniBatch.of(np.zeros((4, 5), "float32"), Y)
    one = MiniBatch.of(X, Y)
    block = Block.join("run", [one, one, wide, one])
    assert [len(group.lengths) for group in block.groups] == [2, 1, 1]


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (X, Y[:3], ShapeError, "differ in their number of rows"),
        (X[:0], Y[:0], ShapeError, "no rows"),
        (np.float32(1), Y, ShapeError, "shape"),
        (np.array(["a", "b"]), Y[:2], DtypeError, "Encode text"),
        (np.array([object()]), Y[:1], DtypeError, "dtype object"),
        (X.astype("longdouble"), Y, DtypeError, r"x\.astype\('float64'\)"),
        (X, {"a": Y, "b": None}, DtypeError, r"y\['b'\] is None"),
        (X, (Y, Y[:1]), ShapeError, r"\[4, 4, 1\]"),
        (X, None, DtypeError, "y is None"),
        ([[1, 2], [3]], Y[:2], ShapeError, "one shape"),
        ({"a": {"b": X}}, Y, ShapeError, "one level"),
        ((), Y, ShapeError, "no array"),
    ],
)
def test_what_is_no_mini_batch_is_refused_with_what_to_do(x, y, error, words):
    with pytest.raises(error, match=words):
        MiniBatch.of(x, y)


@pytest.mark.parametrize(
    "x",
    [X.astype(">f4"), X[::-1][::-1], np.asfortranarray(X), X.copy()[:, ::1]],
    ids=["other byte order", "backwards twice", "fortran", "sliced"],
)
def test_every_layout_of_memory_reaches_torch(x):
    block = Block.join("run", [MiniBatch.of(x, Y)])
    ((got, _, _),) = to_tensors(block.groups[0], CPU)
    assert torch.equal(got, torch.from_numpy(X))


def test_a_pair_of_a_known_kind_is_looked_at_as_the_first_one():
    assert MiniBatch.of(X, Y).kind is MiniBatch.of(X[1:], Y[1:]).kind
    for x, y in ((X, Y[:3]), (X[:0], Y[:0]), (np.float32(X[0, 0]), Y)):
        with pytest.raises(ShapeError):
            MiniBatch.of(x, y)
    with pytest.raises(ShapeError, match="single value"):
        MiniBatch.of(np.array(1.0, "float32"), np.array(1))
    assert MiniBatch.of(X, Y.astype(">i8")).kind == MiniBatch.of(X, Y).kind
    x, _ = MiniBatch.of(X[::-1], Y[::-1], owned=True).leaves
    assert x.strides[0] > 0
    assert np.array_equal(x, X[::-1])


def test_rows_that_run_backwards_reach_torch():
    block = Block.join("run", [MiniBatch.of(X[::-1], Y)])
    ((got, _, _),) = to_tensors(block.groups[0], CPU)
    assert torch.equal(got, torch.from_numpy(X).flip(0))


def test_a_read_only_array_is_not_written_to():
    fixed = X.copy()
    fixed.flags.writeable = False
    block = Block.join("run", [MiniBatch.of(fixed, Y)])
    ((got, _, _),) = to_tensors(block.groups[0], CPU)
    got.zero_()
    assert np.array_equal(fixed, X)


@pytest.mark.parametrize("scalar", [int, np.int64, torch.tensor])
def test_a_list_of_numbers_is_an_array_whatever_their_kind(scalar):
    batch = MiniBatch.of(X, [scalar(1), scalar(0), scalar(1), scalar(2)])
    assert batch.describe() == "x (4, 3) float32, y (4,) int64"


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ((X, (Y, Y)), "x (4, 3) float32, y[0] (4,) int64, y[1] (4,) int64"),
        (((X, X, X), (Y, Y)), "x[2] (4, 3) float32"),
        (({"a": X}, (Y, Y)), "x['a'] (4, 3) float32"),
        ((X, {"b": Y}), "y['b'] (4,) int64"),
        (((X, X), Y), "x[1] (4, 3) float32, y (4,) int64"),
    ],
)
def test_ready_arrays_may_be_several_on_either_side(item, kind):
    assert kind in MiniBatch.of(*as_pair(item)).describe()


def test_ready_arrays_and_partitions_of_records_are_distinguished():
    assert as_pair((X, Y))[0] is X
    records = tuple(zip(X, Y, strict=True))
    x, y = as_pair(records)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    x, y = as_pair(records[:2])  # as long as a pair, and yet two records
    assert x.shape == (2, 3)


def test_a_partition_of_one_record_is_a_mini_batch_of_one():
    x, y = as_pair(((X[0], 1),))
    assert x.shape == (1, 3)
    assert y.shape == (1,)


@pytest.mark.parametrize("item", [None, 3, "text", (1, 2, 3), X, ()])
def test_an_item_that_is_no_mini_batch_says_what_to_do(item):
    with pytest.raises(BatchError, match=r"map\(parse\)"):
        as_pair(item)


def test_records_of_several_inputs_are_stacked():
    x, _ = collate([({"a": X[0], "b": 1}, 0), ({"a": X[1], "b": 2}, 1)])
    assert x["a"].shape == (2, 3)
    assert x["b"].tolist() == [1, 2]
    (first, second), _ = collate([((X[0], X[1]), 0.5)])
    assert first.shape == second.shape == (1, 3)


def test_floats_of_python_become_float32_as_parameters_are():
    x, y = collate([(0.5, 1.5), (1.0, 2.5)])
    assert x.dtype == y.dtype == np.float32


def test_records_of_different_shape_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        collate([(np.zeros(3), 0), (np.zeros(4), 0)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_the_mini_batch_with_the_bad_value_is_found(bad):
    spoiled = X.copy()
    spoiled[2, 1] = bad
    clean = MiniBatch.of(X, Y)
    block = Block.join("run", [clean, MiniBatch.of(spoiled, Y), clean])
    assert non_finite(block.groups[0]) == [1]


def test_large_finite_numbers_whose_sum_overflows_are_no_bad_values():
    huge = np.full((4, 3), 3e38, dtype="float32")
    assert non_finite(Block.join("run", [MiniBatch.of(huge, Y)]).groups[0]) == []


def test_bad_bfloat16_values_are_found():
    x = torch.rand(4, 3).bfloat16()
    x[0, 0] = float("nan")
    assert non_finite(Block.join("run", [MiniBatch.of(x, Y)]).groups[0]) == [0]


class Fails:
    def __array__(self, dtype=None, copy=None):
        raise KeyError("no values")


class FailsSilently:
    def __array__(self, dtype=None, copy=None):
        raise StopIteration


def _nested():
    rows = [torch.zeros(2, 3), torch.zeros(3, 3)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def _quantized():
    return torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.quint8)


@pytest.mark.parametrize(
    ("make", "kind", "advice"),
    [
        (lambda: torch.eye(3).to_sparse(), DtypeError, "x.to_dense()"),
        (lambda: torch.eye(3).to_sparse_csr(), DtypeError, "x.to_dense()"),
        (_nested, DtypeError, "torch.nested.to_padded_tensor(x, 0.0)"),
        (_quantized, DtypeError, "x.dequantize()"),
        (lambda: torch.empty(2, 3, device="meta"), DtypeError, "without values"),
        (
            lambda: torch.zeros(2, 3).to(torch.float8_e4m3fn),
            DtypeError,
            "of another dtype, such as float32",
        ),
        (lambda: scipy.sparse.csr_array(np.eye(3)), DtypeError, "x.toarray()"),
        (lambda: scipy.sparse.coo_matrix(np.eye(3)), DtypeError, "x.toarray()"),
        (Fails, BatchError, "KeyError: 'no values'"),
        (FailsSilently, BatchError, "StopIteration"),
        (
            lambda: pd.DataFrame({"a": [1, None]}, dtype="Int64"),
            DtypeError,
            "x.fillna(0)",
        ),
        (lambda: pd.Series(["a", "b"], dtype="category"), DtypeError, "Encode text"),
        (lambda: [np.zeros(3)] * 4, ShapeError, "numpy.stack(x)"),
    ],
)
def test_what_has_no_dense_values_is_refused_with_what_to_give_instead(
    make, kind, advice
):
    with pytest.raises(BatchError, match=re.escape(advice)) as caught:
        MiniBatch.of(make(), np.zeros(2))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (pd.DataFrame({"a": [1.5, 2], "b": [3, 4.5]}, dtype="Float32"), "float32"),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4]}).convert_dtypes(), "int64"),
        (pd.Series([True, False], dtype="boolean"), "bool"),
        (pd.Series([1, 2], dtype="Int32"), "int32"),
        (pd.DataFrame({"a": [1, 2]}, dtype="Int8").assign(b=[0.5, 1.5]), "float64"),
    ],
)
def test_nullable_numbers_of_pandas_without_a_missing_one_are_numbers(value, dtype):
    (leaf,) = MiniBatch.of(value).leaves
    assert leaf.dtype == dtype
    assert leaf.tolist() == value.to_numpy(dtype=dtype).tolist()


def test_lists_of_python_floats_become_float32_as_records_do():
    batch = MiniBatch.of([[0.5, 1.0], [1.5, 2.0]], [0.25, 0.5])
    assert [leaf.dtype for leaf in batch.leaves] == ["float32", "float32"]
    assert MiniBatch.of([[1, 2], [3, 4]]).leaves[0].dtype == "int64"
    assert MiniBatch.of(np.zeros((2, 2))).leaves[0].dtype == "float64"


def test_a_conjugated_tensor_is_taken_by_its_values():
    value = torch.tensor([1 + 2j, 3 - 1j])
    (leaf,) = MiniBatch.of(value.conj()).leaves
    assert leaf.tolist() == [1 - 2j, 3 + 1j]


ROW = X[0]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"a": 1.0}, {"a": 2.0}, {"a": 3.0, "b": 4.0}], r"record 2 .*has \['b'\]"),
        ([{"a": 1.0, "b": 2.0}, {"a": 3.0}], r"record 1 .*lacks \['b'\]"),
        ([{"a": ROW}, {"b": ROW}], r"record 1 .*lacks \['a'\] and has \['b'\]"),
        ([(ROW, {"a": 1}), (ROW, {"a": 1, "b": 2})], r"x\[1\].*record 1 .*\['b'\]"),
        ([{"a": ROW}, ROW], r"record 1 .* is a ndarray"),
    ],
)
def test_records_with_other_keys_are_refused_with_their_place(records, said):
    with pytest.raises(ShapeError, match=said):
        stack(records)


def test_keys_of_records_may_come_in_any_order():
    stacked = stack([{"a": 1.0, "b": 2.0}, {"b": 4.0, "a": 3.0}])
    assert stacked["a"].tolist() == [1, 3]
    assert stacked["b"].tolist() == [2, 4]


LABELS = np.arange(4)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((X, LABELS[:, None].tolist()), "y is a list of 4 items, the first a list"),
        ((X, range(4)), r"y is a range, and no array: give numpy\.asarray\(y\)"),
        ((X, {1, 2}), "y is a set"),
        ((X, None), "y is None: where there is no target"),
        ([(ROW, 1, 0.5)] * 3, r"Record 0 is a tuple of 3 items.*\(\(x, w\), y\)"),
        ([(ROW, 1), (ROW, 2), ROW], "Record 2 is a ndarray; a record is a pair"),
        ((dask.array.from_array(X), None), r"x is an Array of Dask.*x\.compute\(\)"),
        (dask.delayed(X), r"item\.compute\(\)"),
    ],
)
def test_the_error_of_a_malformed_mini_batch_names_its_half_or_record(item, said):
    with pytest.raises(BatchError, match=said):
        as_pair(item)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (dask.array.from_array(X), r"x is an Array of Dask.*x\.compute\(\)"),
        (dask.delayed(X), r"x is a Delayed\w* of Dask.*x\.compute\(\)"),
        ({"a": dask.delayed(X)}, r"x\['a'\]\.compute\(\)"),
        ((X, dask.array.from_array(X)), r"x\[1\]\.compute\(\)"),
        (
            pd.DataFrame({"a": [0.5], "b": [True]}),
            r"\['float64', 'bool'\].*x\.astype\(\"float32\"\)",
        ),
        (pd.DataFrame({"a": [0.5], "b": ["word"]}), "float64.*encode text"),
        ({"k": pd.Series(list("ab"), dtype="category")}, r"x\['k'\]\.cat\.codes"),
    ],
)
def test_the_error_for_arrays_without_values_or_dtype_says_what_to_give(x, said):
    with pytest.raises(BatchError, match=said):
        MiniBatch.of(x, LABELS)
