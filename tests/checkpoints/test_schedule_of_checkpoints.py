"""Checkpoints when they are due, while the event loop runs on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from datetime import timedelta

import dask
import pytest
import torch
from checkpoint_examples import small

from tensair_dask.checkpoints import Checkpoint, Checkpointer, Store
from tensair_dask.checkpoints.schedule import parse_every
from tensair_dask.errors import (
    CheckpointError,
    ConfigurationError,
    TrainerClosedError,
)


class Training:
    """What a trainer is to a checkpointer: it counts, and gives itself on request."""

    def __init__(self) -> None:
        self.index = 0
        self.done: list[tuple[int, str, float]] = []
        self.errors: list[Exception] = []

    async def take(self) -> Checkpoint:
        return small(self.index)

    def note(self, checkpoint: Checkpoint, path: str, seconds: float) -> None:
        self.done.append((checkpoint.index, path, seconds))

    def advance(self, checkpointer: Checkpointer, count: int) -> None:
        for _ in range(count):
            self.index += 1
            checkpointer.noticed(self.index - 1)


class Slow(Store):
    """A store that writes when it is let."""

    def __init__(self, path) -> None:
        super().__init__(path, keep=100)
        self.gate = threading.Event()
        self.entered = 0

    def add(self, checkpoint: Checkpoint) -> str:
        self.entered += 1
        assert self.gate.wait(30)
        return super().add(checkpoint)


class Broken(Store):
    broken = True

    def add(self, checkpoint: Checkpoint) -> str:
        if self.broken:
            raise CheckpointError("the disk is full")
        return super().add(checkpoint)


def checkpointer(training: Training, store: Store | None, every) -> Checkpointer:
    return Checkpointer(
        store, every, training.take, training.note, training.errors.append
    )


async def until(predicate) -> None:
    deadline = time.monotonic() + 20
    while not predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def run(test):
    """Run a test on an event loop of its own."""

    def wrapped(tmp_path):
        asyncio.run(test(tmp_path))

    wrapped.__name__ = test.__name__
    return wrapped


@run
async def test_so_many_mini_batches_are_one_checkpoint(tmp_path):
    training = Training()
    one = checkpointer(training, Store(tmp_path, keep=9), every=10)
    training.advance(one, 9)
    await one.settled()
    assert not training.done
    training.advance(one, 1)
    await one.settled()
    training.advance(one, 10)
    await one.settled()
    assert [index for index, _, _ in training.done] == [10, 20]
    assert [path for _, path, _ in training.done] == Store(tmp_path).paths()
    assert all(0 < seconds < 20 for _, _, seconds in training.done)
    assert (one.written, one.failures, one.last_error) == (2, 0, None)
    assert one.last_path == Store(tmp_path).paths()[-1]
    await one.close()


@run
async def test_after_a_restart_they_come_at_the_same_multiples(tmp_path):
    training = Training()
    training.index = 34
    one = checkpointer(training, Store(tmp_path), every=10)
    training.advance(one, 6)
    await one.settled()
    assert [index for index, _, _ in training.done] == [40]
    await one.close()


@run
async def test_every_mini_batch_may_be_one(tmp_path):
    training = Training()
    one = checkpointer(training, Store(tmp_path), every=1)
    for _ in range(3):
        training.advance(one, 1)
        await one.settled()
    assert [index for index, _, _ in training.done] == [1, 2, 3]
    await one.close()


@run
async def test_reports_in_another_order_count_once(tmp_path):
    training = Training()
    one = checkpointer(training, Store(tmp_path), every=4)
    for index in (1, 0, 3, 2, 6, 4, 5):
        one.noticed(index)
        await one.settled()
    assert len(training.done) == 1
    await one.close()


@run
async def test_time_is_one_checkpoint_and_none_without_anything_new(tmp_path):
    training = Training()
    one = checkpointer(training, Store(tmp_path), every=0.05)
    start = time.monotonic()
    training.advance(one, 1)
    await until(lambda: len(training.done) == 1)
    assert time.monotonic() - start >= 0.05
    assert one._timer is None  # nothing is to come
    training.advance(one, 3)
    await until(lambda: len(training.done) == 2)
    assert time.monotonic() - start >= 0.1
    assert [index for index, _, _ in training.done] == [1, 4]
    await one.close()


@run
async def test_one_is_written_at_a_time_and_one_waits(tmp_path):
    training, store = Training(), Slow(tmp_path)
    one = checkpointer(training, store, every=1)
    training.advance(one, 1)
    await until(lambda: store.entered)
    training.advance(one, 50)
    assert store.entered == 1
    store.gate.set()
    await one.settled()
    assert [index for index, _, _ in training.done] == [1, 51]
    await one.close()


@run
async def test_the_loop_runs_on_while_a_large_one_is_written(tmp_path):
    training = Training()
    weights = {"w": torch.zeros(25_000_000)}

    async def take() -> Checkpoint:
        return Checkpoint(weights, index=training.index)

    one = Checkpointer(Store(tmp_path, keep=1), 1, take, training.note)
    turns = 0
    training.advance(one, 1)
    while not training.done:
        await asyncio.sleep(0)
        turns += 1
    # Had it been held up there would have been a handful.
    assert turns > 100
    await one.close()


@run
async def test_a_failed_checkpoint_is_reported_once_and_tried_again_when_due(
    tmp_path,
):
    training, store = Training(), Broken(tmp_path)
    one = checkpointer(training, store, every=1)
    records = Records()
    with records:
        for _ in range(3):
            training.advance(one, 1)
            await one.settled()
        assert (one.written, one.failures) == (0, 3)
        assert str(one.last_error) == "the disk is full"
        assert len(training.errors) == 1
        assert [r.levelname for r in records.found] == ["WARNING"]
        assert "the disk is full" in records.found[0].getMessage()
        store.broken = False
        training.advance(one, 1)
        await one.settled()
        assert (one.written, one.failures, one.last_error) == (1, 3, None)
        store.broken = True
        training.advance(one, 1)
        await one.settled()
    assert len(records.found) == len(training.errors) == 2  # it has become news again
    await one.close()


class Records(logging.Handler):
    """What the checkpointer logs within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)

    def __enter__(self) -> None:
        logging.getLogger("tensair_dask.checkpoints.schedule").addHandler(self)

    def __exit__(self, *_) -> None:
        logging.getLogger("tensair_dask.checkpoints.schedule").removeHandler(self)


@run
async def test_a_trainer_that_cannot_give_one_is_a_failure_too(tmp_path):
    async def take() -> Checkpoint:
        raise OSError("the replica is gone")

    training = Training()
    one = Checkpointer(Store(tmp_path), 1, take, None, training.errors.append)
    training.advance(one, 1)
    await one.settled()
    assert str(training.errors[0]) == "the replica is gone"
    await one.close()


@run
async def test_a_callback_that_raises_stops_no_checkpoint(tmp_path):
    def fail(*_) -> None:
        raise KeyError("a fault of who listens")

    training = Training()
    one = Checkpointer(Store(tmp_path), 1, training.take, fail)
    for _ in range(2):
        training.advance(one, 1)
        await one.settled()
    assert one.written == 2
    await one.close()


@run
async def test_one_is_written_now(tmp_path):
    training = Training()
    training.index = 7
    one = checkpointer(training, Store(tmp_path / "run"), every=None)
    path = await one.write_now()
    assert path == Store(tmp_path / "run").paths()[-1]
    assert Store(path).load()[0].index == 7
    path = await one.write_now(Store(tmp_path / "model"))
    assert path == str(tmp_path / "model")
    assert Store(path).load()[0].index == 7
    one.noticed(1_000)
    # What is saved elsewhere is of no concern to the run.
    assert [(index, path) for index, path, _ in training.done] == [
        (7, Store(tmp_path / "run").paths()[-1])
    ]
    await one.close()


@run
async def test_a_checkpoint_that_is_added_now_waits_for_the_one_under_way(tmp_path):
    training, store = Training(), Slow(tmp_path)
    one = checkpointer(training, store, every=1)
    training.advance(one, 1)
    await until(lambda: store.entered)
    saving = asyncio.ensure_future(one.write_now())
    training.index = 9
    await asyncio.sleep(0)
    assert store.entered == 1
    store.gate.set()
    assert Store(await saving).load()[0].index == 9
    await one.settled()
    await one.close()


@run
async def test_a_checkpoint_that_is_saved_elsewhere_waits_for_nothing(tmp_path):
    training, store = Training(), Slow(tmp_path / "run")
    one = checkpointer(training, store, every=1)
    training.advance(one, 1)
    await until(lambda: store.entered)
    path = await one.write_now(Store(tmp_path / "model"))
    assert Store(path).load()[0].index == 1
    assert not training.done
    store.gate.set()
    await one.settled()
    assert len(training.done) == 1
    await one.close()


@run
async def test_a_store_that_hangs_is_reported_and_holds_one_checkpoint(tmp_path):
    training, store = Training(), Slow(tmp_path)
    one = checkpointer(training, store, every=1)
    with dask.config.set({"tensair.checkpoints.write": "50ms"}):
        for _ in range(2):
            training.advance(one, 1)
            await one.settled()
        with pytest.raises(CheckpointError, match=r"not written within 0.05 s"):
            await one.write_now()
    assert [str(error) for error in training.errors] == [str(one.last_error)]
    assert (store.entered, one.failures) == (1, 2)
    store.gate.set()
    await until(one._adding._future.done)  # it comes late, and whole
    training.advance(one, 1)
    await one.settled()
    assert [index for index, _, _ in training.done] == [3]
    assert [Store(path).load()[0].index for path in store.paths()] == [1, 3]
    await one.close()


@run
async def test_what_cannot_be_written_now_raises(tmp_path):
    training = Training()
    one = checkpointer(training, Broken(tmp_path), every=None)
    with pytest.raises(CheckpointError, match="the disk is full"):
        await one.write_now()
    without = checkpointer(training, None, every=None)
    with pytest.raises(CheckpointError, match=r"give one, for example trainer\.save"):
        await without.write_now()
    await one.close()
    with pytest.raises(TrainerClosedError):
        await one.write_now()


@run
async def test_closing_waits_for_the_one_under_way(tmp_path):
    training, store = Training(), Slow(tmp_path)
    one = checkpointer(training, store, every=1)
    training.advance(one, 2)
    await until(lambda: store.entered)
    training.advance(one, 1)
    closing = asyncio.ensure_future(one.close())
    await asyncio.sleep(0)
    store.gate.set()
    await closing
    assert len(training.done) == 1  # and the one that waited is not begun
    training.advance(one, 5)
    await one.settled()
    assert len(training.done) == 1


@run
async def test_closing_is_bounded(tmp_path):
    training, store = Training(), Slow(tmp_path)
    one = checkpointer(training, store, every=1)
    training.advance(one, 1)
    await until(lambda: store.entered)
    start = time.monotonic()
    records = Records()
    with records, dask.config.set({"tensair.checkpoints.close": "50ms"}):
        await one.close()
    assert 0.05 <= time.monotonic() - start < 5
    assert "not written within 0.05 s" in records.found[0].getMessage()
    assert not training.done
    store.gate.set()
    await until(lambda: Store(tmp_path).paths())  # whole, or not at all


@run
async def test_closing_stops_the_clock(tmp_path):
    training = Training()
    one = checkpointer(training, Store(tmp_path), every="20ms")
    training.advance(one, 1)
    await one.close()
    await asyncio.sleep(0.05)
    training.advance(one, 1)
    assert one._timer is None
    assert not training.done


@run
async def test_taking_note_costs_less_than_a_microsecond(tmp_path):
    for every in (10**9, "1h"):
        one = checkpointer(Training(), Store(tmp_path), every)
        one.noticed(0)
        best = float("inf")
        for _ in range(5):
            start = time.thread_time()
            for index in range(10_000):
                one.noticed(index)
            best = min(best, time.thread_time() - start)
        assert best / 10_000 < 1e-6
        await one.close()


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (100, (100, None)),
        (1.5, (None, 1.5)),
        ("10s", (None, 10.0)),
        ("5 minutes", (None, 300.0)),
        (timedelta(minutes=2), (None, 120.0)),
        (None, (None, None)),
    ],
)
def test_how_often_has_two_kinds(every, expected):
    assert parse_every(every) == expected


@pytest.mark.parametrize(
    "every",
    [0, -1, 0.0, -1.5, True, "", "100", "1e3", "2e0", "often", float("nan"), [], "-3s"],
)
def test_other_kinds_are_refused(every):
    with pytest.raises(ConfigurationError, match="whole number of mini-batches"):
        parse_every(every)


def test_checkpoints_that_are_due_need_a_folder():
    with pytest.raises(ConfigurationError, match="no path; give the path of a folder"):
        checkpointer(Training(), None, every=10)
