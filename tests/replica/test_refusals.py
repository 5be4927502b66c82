"""The error of a refused mini-batch explains the refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tensair_dask.batches.batch import MiniBatch
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    ForwardError,
    LossError,
    MetricError,
    NonFiniteError,
    ShapeError,
)
from tensair_dask.replica.refusals import explain

X = np.zeros((4, 3), "float32")
Y = np.zeros(4, int)
MODEL = nn.Linear(3, 2)


def explained(
    error: BatchError, x: Any = X, y: Any = Y, learned: Any = None, model: Any = MODEL
) -> BatchError:
    kind = None if learned is None else MiniBatch.of(*learned).kind
    batch = MiniBatch.of(x, y)
    return explain(error, batch.kind, batch.samples, kind, model)


def test_errors_of_torch_about_shapes_and_dtypes_are_distinguished():
    shape = explained(ForwardError("The model raised: shapes cannot be multiplied"))
    assert type(shape) is ShapeError
    wide = X.astype("float64")
    dtype = explained(ForwardError("mat1 and mat2 must have the same dtype"), wide)
    assert type(dtype) is DtypeError
    assert type(explained(ForwardError("no such key"))) is ForwardError


def test_what_was_given_stands_in_every_message():
    for kind in (ForwardError, LossError, MetricError, NonFiniteError):
        assert "Given: x (4, 3) float32, y (4,) int64" in str(explained(kind("why")))


def test_the_error_compares_with_what_was_learned_before():
    same = explained(LossError("Target 9 is out of bounds."), learned=(X, Y))
    assert type(same) is LossError
    narrow = explained(ForwardError("unclear"), X[:, :1], learned=(X, Y))
    assert type(narrow) is ShapeError
    assert "Learned before: x (n, 3) float32, y (n,) int64." in str(narrow)
    wide = explained(ForwardError("unclear"), X.astype("f8"), learned=(X, Y))
    assert type(wide) is DtypeError


def test_another_structure_than_before_is_a_matter_of_shape():
    error = explained(ForwardError("unclear"), (X, X), learned=(X, Y))
    assert type(error) is ShapeError
    assert "x[0] (4, 3) float32, x[1] (4, 3) float32" in str(error)


def test_the_number_of_rows_may_differ_from_before():
    error = explained(LossError("unclear"), X[:2], Y[:2], learned=(X, Y))
    assert type(error) is LossError


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float64, "x.astype('float64')"),
        (torch.bfloat16, "torch.as_tensor(x).bfloat16()"),
    ],
)
def test_the_advice_casts_to_the_dtype_of_the_parameters(dtype, advice):
    error = explained(ForwardError("same dtype"), model=nn.Linear(3, 2, dtype=dtype))
    assert advice in str(error)
