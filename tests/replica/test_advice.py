"""Advice names the side that is at fault, and what it says to do is right."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    ForwardError,
    LossError,
    ShapeError,
)
from tensair_dask.replica.advice import on_backward
from tensair_dask.replica.learner import Learner, Recipe, to_tensors

SGD = functools.partial(torch.optim.SGD, lr=0.1)
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3
IMAGES = np.zeros((6, 8, 8, 3), "float32")

bce = functional.binary_cross_entropy_with_logits
cross = functional.cross_entropy


def linear(outputs: int = 3, inputs: int = 4) -> Any:
    return functools.partial(nn.Linear, inputs, outputs)


class Kept(nn.Module):
    """Forgets to detach its hidden state."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(4, 3, batch_first=True)
        self.hidden = None

    def forward(self, x):
        y, self.hidden = self.layer(x[:, None], self.hidden)
        return y[:, 0]


class KeptLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.mean = 0.0

    def forward(self, x):
        self.mean = 0.9 * self.mean + self.layer(x).mean()
        return self.layer(x) - self.mean


class Mixes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x.double())


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.layer(left + right)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).detach()


class Channels(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.layer = nn.Conv2d(channels, 3, 3)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


def normalized():
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))


class Pixels(nn.Module):
    """Gives its classes last."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x):
        return self.layer(x)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Embedding(5, 3)

    def forward(self, x):
        return self.layer(x)


def refused(model: Any, loss: Any, *pairs: Any) -> BatchError:
    """Learn all pairs; give the error of the last one."""
    recipe = Recipe(model, loss, SGD, {}, None, 0, False)
    learner = Learner(recipe, torch.device("cpu"))
    for x, y in pairs:
        group = Block.join("run", [MiniBatch.of(x, y)]).groups[0]
        ((tensors, target, samples),) = to_tensors(group, learner.device)
        try:
            learner.learn(tensors, target, samples)
        except BatchError as error:
            found = learner.refusal(error, group, samples)
        else:
            found = None
            learner.learned_kind = group.kind
    assert found is not None, "it was learned"
    return found


CASES: dict[str, tuple[Any, Any, list[Any], type, str]] = {
    # ---- the loss: y --------------------------------------------------------------
    "whole numbers for floats": (
        linear(1),
        lambda p, y: bce(p[:, 0], y),
        [(X, Y % 2)],
        DtypeError,
        "y.astype('float32')",
    ),
    "whole numbers and one axis less": (
        linear(1),
        bce,
        [(X, Y % 2)],
        ShapeError,
        "The prediction has one column and y none: give y[:, None]",
    ),
    "booleans for floats": (
        linear(1),
        lambda p, y: (p[:, 0] - y).square().mean(),
        [(X, Y > 0)],
        DtypeError,
        "y.astype('float32')",
    ),
    "floats for class numbers": (
        linear(),
        cross,
        [(X, Y.astype("float32"))],
        DtypeError,
        "Class numbers are int64: cast with y.astype('int64').",
    ),
    "short class numbers": (
        linear(),
        functional.nll_loss,
        [(X, Y.astype("int32"))],
        DtypeError,
        "y.astype('int64')",
    ),
    "one-hot whole numbers": (
        linear(),
        cross,
        [(X, np.eye(3, dtype=int)[Y])],
        DtypeError,
        "y.argmax(1)",
    ),
    "no axis for one column": (
        linear(1),
        bce,
        [(X, (Y % 2).astype("float32"))],
        ShapeError,
        "give y[:, None], or take the column in the loss, prediction[:, 0]",
    ),
    "a column of class numbers": (
        linear(),
        cross,
        [(X, Y[:, None])],
        ShapeError,
        "give y[:, 0]",
    ),
    "a class too many": (
        linear(),
        cross,
        [(X, Y + 2)],
        LossError,
        "y holds the classes 2 to 4, and the prediction has 3 columns, for the classes "
        "0 to 2. Give the model 5 outputs",
    ),
    "classes from 1": (linear(), cross, [(X, Y + 1)], LossError, "from 0: y - 1"),
    "classes below 0": (linear(), cross, [(X, Y - 2)], LossError, "Number them from 0"),
    "logits for probabilities": (
        linear(1),
        lambda p, y: functional.binary_cross_entropy(p[:, 0], y),
        [(100 * X, (Y % 2).astype("float32"))],
        LossError,
        "binary_cross_entropy_with_logits",
    ),
    "classes last": (
        Pixels,
        cross,
        [(IMAGES, np.zeros((6, 8, 8), int))],
        ShapeError,
        "prediction.permute(0, 3, 1, 2)",
    ),
    "several outputs": (
        lambda: nn.GRU(4, 3, batch_first=True),
        cross,
        [(X[:, None], Y)],
        LossError,
        "The model returns a tuple",
    ),
    # ---- the model ----------------------------------------------------------------
    "a hidden state": (Kept, cross, [(X, Y)] * 2, ForwardError, "self.h = h.detach()"),
    "a hidden state of other rows": (
        Kept,
        cross,
        [(X, Y), (X[:5], Y[:5])],
        ForwardError,
        "with any number of rows",
    ),
    "a running mean": (KeptLoss, cross, [(X, Y)] * 2, ForwardError, "detach()"),
    "a model that mixes": (
        Mixes,
        cross,
        [(X, Y)],
        ForwardError,
        "x is float32, as the parameters are: the model itself",
    ),
    "a model that is detached": (
        Detached,
        cross,
        [(X, Y)],
        LossError,
        "depend on the model's parameters",
    ),
    # ---- x ------------------------------------------------------------------------
    "doubles": (
        linear(),
        cross,
        [(X.astype("f8"), Y)],
        DtypeError,
        "x.astype('float32')",
    ),
    "only one of two": (
        Two,
        cross,
        [({"left": X, "right": X.astype("f8")}, Y)],
        DtypeError,
        "cast with x['right'].astype('float32')",
    ),
    "bytes of images": (
        Channels,
        cross,
        [(IMAGES.transpose(0, 3, 1, 2).astype("uint8"), Y)],
        DtypeError,
        "x.astype('float32'). Images of bytes are scaled as well: x / 255.",
    ),
    "floats for rows of a table": (
        Words,
        cross,
        [(Y.astype("float32"), Y)],
        DtypeError,
        "An embedding takes numbers of rows: cast with x.astype('int64')",
    ),
    "a row that is not there": (
        Words,
        cross,
        [(Y + 9, Y)],
        ForwardError,
        "An embedding was asked for a row that it does not have",
    ),
    "channels last": (
        Channels,
        cross,
        [(IMAGES, Y)],
        ShapeError,
        "x.transpose(0, 3, 1, 2)",
    ),
    "channels last of a normalization": (
        normalized,
        cross,
        [(IMAGES, Y)],
        ShapeError,
        "x.transpose(0, 3, 1, 2)",
    ),
    "no channels": (
        functools.partial(Channels, 1),
        cross,
        [(IMAGES[..., 0], Y)],
        ShapeError,
        "give x[:, None] where there is one channel",
    ),
    "not flat": (
        linear(3, 192),
        cross,
        [(IMAGES, Y)],
        ShapeError,
        "give x.reshape(len(x), -1), or begin it with torch.nn.Flatten()",
    ),
    "no axis of columns": (
        linear(1, 1),
        lambda p, y: p.sum(),
        [(X[:, 0], Y)],
        ShapeError,
        "give x[:, None]",
    ),
    "a list of as many arrays": (
        linear(),
        cross,
        [([X, X], Y)],
        ShapeError,
        "numpy.stack(x)",
    ),
    "one array for two": (
        Two,
        cross,
        [(X, Y)],
        ShapeError,
        "x is one array, and the model has forward(left, right)",
    ),
    "other names": (
        Two,
        cross,
        [({"left": X, "write": X}, Y)],
        ShapeError,
        "forward(left, right)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_side_at_fault_is_named(case):
    model, loss, pairs, kind, advice = CASES[case]
    error = refused(model, loss, *pairs)
    assert advice in str(error)
    assert type(error) is kind
    assert "Given: x" in str(error)


@pytest.mark.parametrize(
    ("model", "loss", "x", "y"),
    [
        (linear(1), bce, X, (Y % 2).astype("float32")[:, None]),
        (linear(), cross, X, Y[:, None][:, 0]),
        (linear(), cross, X, np.eye(3, dtype=int)[Y].argmax(1)),
        (linear(5), cross, X, Y + 2),
        (Channels, cross, IMAGES.transpose(0, 3, 1, 2), Y),
        (linear(3, 192), cross, IMAGES.reshape(len(IMAGES), -1), Y),
        (linear(1, 1), lambda p, y: p.sum(), X[:, 0][:, None], Y),
    ],
)
def test_a_model_that_follows_the_advice_is_learned(model, loss, x, y):
    with pytest.raises(AssertionError, match="it was learned"):
        refused(model, loss, (x, y))


def test_no_cast_is_advised_where_the_dtype_is_right():
    error = refused(linear(), cross, (X[:, :2], Y))
    assert "cast" not in str(error).lower()
    error = refused(linear(), cross, (X, np.stack([Y, Y, Y], 1)[:, :2]))
    assert "int64" not in str(error).partition("Given")[2].partition(".")[2]


def test_a_loss_whose_own_tensors_are_float64_is_named():
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64))
    error = refused(linear(), weighted, (X, Y))
    assert "weight.float()" in str(error)
    assert "astype" not in str(error)


def test_a_dtype_that_only_the_backward_pass_finds_is_named_too():
    prediction, y = torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.float64)
    kind, advice = on_backward("Found dtype Double but expected Float", prediction, y)
    assert kind is DtypeError
    assert "y.astype('float32')" in advice
