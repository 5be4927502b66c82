"""A start that fails leaves nothing behind in a cluster that closes."""

from __future__ import annotations

import functools
import threading

import pytest
from distributed.utils_test import captured_logger, gen_cluster
from helpers import classes, feed, linear, linear_data, mlp, until

import tensair_dask as ta
from tensair_dask.errors import TensairError
from tensair_dask.replica.worker_departures import Departures, expect_replicas

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


def raises():
    raise ValueError("no model")


def no_optimizer(parameters):
    raise ZeroDivisionError


FAILING = {
    "the model": classes(model=raises),
    "the optimizer": classes(optimizer=no_optimizer),
    "a checkpoint": classes(restore="/nowhere/at/all"),
    "a device": classes(device="cuda:77"),
}


@two()
@pytest.mark.parametrize("what", FAILING)
async def test_workers_that_are_retired_right_after_it_say_nothing(c, s, a, b, what):
    with (
        captured_logger("distributed.core") as core,
        captured_logger("tensair_dask") as ours,
    ):
        with pytest.raises(TensairError):
            await ta.Trainer(c, **FAILING[what])
        await s.retire_workers([a.address, b.address])
    assert "tensair_leave" not in core.getvalue()
    assert "not retire" not in ours.getvalue()
    assert "handed over" not in ours.getvalue()


go_on = threading.Event()


def waits():
    go_on.wait(20)
    return mlp()


@two(config={"tensair.timeouts.start": "300ms"})
async def test_a_worker_that_still_builds_can_be_asked_to_retire(c, s, a, b):
    with captured_logger("distributed.core") as core:
        try:
            with pytest.raises(TensairError, match="not ready within"):
                await ta.Trainer(c, **classes(model=waits))
            await s.retire_workers([a.address, b.address])
        finally:
            go_on.set()
    assert "tensair_leave" not in core.getvalue()


@two()
async def test_a_worker_can_be_asked_before_its_first_replica_is_built(c, s, a, b):
    expect_replicas(a)
    assert not await s.rpc(a.address).tensair_leave(timeout=1)
    Departures.of(a)
    expect_replicas(a)
    assert a.handlers["tensair_leave"] == Departures.of(a).leave


@two()
@pytest.mark.parametrize("learned", [0, 5])
async def test_a_model_that_has_learned_something_is_missed(c, s, a, b, learned):
    trainer = await ta.Trainer(c, **linear())
    reports = feed(trainer, linear_data(learned))
    await until(lambda: len(reports) == learned)
    with captured_logger(
        "tensair_dask.coordinator.membership.last_replica"
    ) as reported:
        await s.retire_workers([a.address, b.address])
        await until(lambda: not any(info.alive for info in trainer.replicas))
        await trainer.close()
    assert ("handed over" in reported.getvalue()) == bool(learned)
