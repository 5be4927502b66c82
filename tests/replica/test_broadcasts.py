"""A loss that broadcasts prediction and target to a third shape is said once."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import FEATURES
from torch import nn

import tensair_dask as ta
from tensair_dask._common.notices import Notices
from tensair_dask.replica.broadcasts import MOST_FORMS, Broadcasts

functional = nn.functional
N = 8


def said_of(loss, prediction, y) -> list[str]:
    notices = Notices()
    broadcasts = Broadcasts(loss, notices)
    for _ in range(3):
        broadcasts(prediction, y)
    return list(notices.take().values())


COLUMN, ROW = torch.rand(N, 1), torch.rand(N)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    "loss",
    [
        functional.mse_loss,
        functional.l1_loss,
        nn.MSELoss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(),
        lambda p, y: ((p - y) ** 2).mean(),
        lambda p, y: ((p - y.double().log()) ** 2).mean(),
        lambda p, y: torch.pow(y - p, 2).mean(),
        lambda p, y: (torch.exp(p) - y * p).mean(),
    ],
)
@pytest.mark.parametrize(("prediction", "y"), [(COLUMN, ROW), (ROW, COLUMN)])
def test_a_column_against_a_row_is_said_with_both_shapes(loss, prediction, y):
    (text,) = said_of(loss, prediction, y)
    assert f"{tuple(prediction.shape)} against the target {tuple(y.shape)}" in text


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_losses_of_torch_take_no_column_for_several_numbers():
    assert len(said_of(functional.mse_loss, torch.rand(N, 3), COLUMN)) == 1


def test_outputs_and_targets_in_dicts_are_looked_at():
    def loss(p, y):
        return functional.cross_entropy(p["kind"], y["kind"]) + (
            (p["size"] - y["size"]).abs().mean()
        )

    prediction = {"kind": torch.rand(N, 3), "size": COLUMN}
    y = {"kind": torch.zeros(N, dtype=int), "size": ROW}
    assert len(said_of(loss, prediction, y)) == 1
    assert said_of(loss, prediction | {"size": ROW}, y) == []


def test_integers_as_targets_are_looked_at():
    assert len(said_of(lambda p, y: (p - y).abs().mean(), COLUMN, torch.arange(N))) == 1


@pytest.mark.parametrize(
    ("loss", "prediction", "y"),
    [
        (functional.cross_entropy, torch.rand(N, 3), torch.zeros(N, dtype=int)),
        (functional.mse_loss, ROW, ROW),
        (lambda p, y: functional.mse_loss(p[:, 0], y), COLUMN, ROW),
        (lambda p, y: functional.mse_loss(p.squeeze(), y), COLUMN, ROW),
        (lambda p, y: functional.mse_loss(p, y[:, None]), COLUMN, ROW),
        # Several quantiles of one number, on purpose.
        (lambda p, y: (y - p).abs().mean(), torch.rand(N, 3), COLUMN),
        # All pairs, on purpose.
        (lambda p, y: ((y[:, None] - y) * p).mean(), torch.rand(N, N), ROW),
        (lambda p, y: (p[:, 0] - y).abs().mean() + (p.T - p).mean(), COLUMN, ROW),
    ],
)
def test_losses_that_are_right_are_left_alone(loss, prediction, y):
    assert said_of(loss, prediction, y) == []


def test_one_row_says_nothing_and_the_next_mini_batch_is_looked_at():
    notices = Notices()
    broadcasts = Broadcasts(lambda p, y: (p - y).abs().mean(), notices)
    broadcasts(COLUMN[:1], ROW[:1])
    assert notices.take() == {}
    broadcasts(COLUMN, ROW)
    assert len(notices.take()) == 1


def test_what_the_loss_raises_passes_and_forms_are_bounded():
    def refuse(p, y):
        raise KeyError("no luck")

    with pytest.raises(KeyError, match="no luck"):
        Broadcasts(refuse, Notices())(COLUMN, ROW)
    broadcasts = Broadcasts(lambda p, y: p.sum(), Notices())
    for length in range(MOST_FORMS + 10):
        broadcasts(torch.zeros(2, length), torch.zeros(2))
    assert len(broadcasts._known) == MOST_FORMS


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_it_is_one_event_of_all_replicas(c, s, a, b):
    arguments = {
        "model": functools.partial(nn.Linear, FEATURES, 1),
        "loss": lambda p, y: ((p - y) ** 2).mean(),
        "optimizer": functools.partial(torch.optim.SGD, lr=0.01),
    }
    async with ta.Trainer(c, **arguments) as trainer:
        x = np.ones((4, FEATURES), "float32")
        for _ in range(20):
            assert (await trainer.train(x, np.ones(4, "float32"))).learned
        await trainer.drain()
        (said,) = trainer.events[trainer.events.kind == "note"].text
        assert "(4, 1) against the target (4,)" in said
