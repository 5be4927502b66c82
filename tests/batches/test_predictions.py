"""Single records as mini-batches of one, and what comes back for them."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import tensair_dask as ta
from tensair_dask.batches.predictions import Prediction, as_batch, without_batch_axis
from tensair_dask.errors import ShapeError

ARRAY = np.arange(3, dtype="float64")


@pytest.mark.parametrize(
    ("record", "shape", "dtype"),
    [
        (ARRAY, (1, 3), "float64"),
        (ARRAY.astype("float32").reshape(3, 1), (1, 3, 1), "float32"),
        ([0.5, 1.5], (1, 2), "float32"),
        ([[0.5], [1.5]], (1, 2, 1), "float32"),
        ([1, 2, 3], (1, 3), "int64"),
        (0.5, (1,), "float32"),
        (3, (1,), "int64"),
        (True, (1,), "bool"),
        (np.int16(3), (1,), "int16"),
    ],
)
def test_a_record_becomes_a_mini_batch_of_one(record, shape, dtype):
    batch = as_batch(record)
    assert batch.shape == shape
    assert batch.dtype == dtype
    assert np.array_equal(batch[0], record)


def test_a_tensor_stays_a_tensor():
    batch = as_batch(torch.ones(3, dtype=torch.bfloat16))
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (1, 3)
    assert batch.dtype == torch.bfloat16


def test_tuples_and_dicts_of_records_keep_their_structure():
    left, right = as_batch((ARRAY, 0.5))
    assert (left.shape, right.shape) == ((1, 3), (1,))
    batch = as_batch({"image": ARRAY, "age": 3})
    assert {key: value.shape for key, value in batch.items()} == {
        "image": (1, 3),
        "age": (1,),
    }


def test_a_ragged_record_is_refused():
    with pytest.raises(ShapeError, match="list of numbers of one shape"):
        as_batch([[1.0], [1.0, 2.0]])


def test_the_batch_axis_goes_from_every_output():
    output = {
        "scores": np.zeros((1, 3)),
        "hidden": (torch.zeros(1, 2, 2), [torch.zeros(1)]),
        "says": "the same for all",
    }
    answer = without_batch_axis(output)
    assert answer["scores"].shape == (3,)
    hidden, (one,) = answer["hidden"]
    assert hidden.shape == (2, 2)
    assert one.shape == ()
    assert answer["says"] == "the same for all"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.zeros(()), r"output has shape \(\)"),
        (torch.zeros(3, 2), r"output has shape \(3, 2\)"),
        ({"mean": torch.zeros(())}, r"output\['mean'\] has shape \(\)"),
        ((np.zeros((1, 2)), np.zeros((0, 2))), r"output\[1\] has shape \(0, 2\)"),
    ],
)
def test_an_output_without_a_batch_axis_of_one_is_refused(output, words):
    with pytest.raises(ShapeError, match=words):
        without_batch_axis(output)


def test_a_prediction_is_public_and_does_not_change():
    assert ta.Prediction is Prediction
    prediction = Prediction(ARRAY, 7, 0.25, "tcp://127.0.0.1:1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.version = 8
    copy = pickle.loads(pickle.dumps(prediction))
    assert (copy.version, copy.age, copy.replica) == (7, 0.25, "tcp://127.0.0.1:1")
