"""The thread of one replica, without a cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_test
from torch import nn

from tensair_dask.batches.batch import Block, Group, MiniBatch
from tensair_dask.errors import (
    BatchError,
    ForwardError,
    NonFiniteError,
    RaisedError,
    ReplicaFailedError,
    ReplicaLostError,
)
from tensair_dask.exchange.exchange import Exchange
from tensair_dask.replica.learner import Learner, Recipe
from tensair_dask.replica.thread import TrainingThread

X = np.zeros((2, 3), "float32")
Y = np.zeros(2, int)
CPU = torch.device("cpu")


class Gated(nn.Module):
    """Takes a permit of the test for each forward pass."""

    def __init__(self, permits: threading.Semaphore) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.permits = permits
        self.entered = threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.entered.set()
            self.permits.acquire()
        return self.layer(x)


@asynccontextmanager
async def running(
    permits: threading.Semaphore | None = None,
    recipe: dict[str, Any] | None = None,
    **overrides: Any,
) -> AsyncIterator[TrainingThread]:
    """A thread that learns; without permits, as fast as it can."""
    changed = recipe or {}
    recipe = Recipe(
        (lambda: nn.Linear(3, 2)) if permits is None else (lambda: Gated(permits)),
        nn.functional.cross_entropy,
        functools.partial(torch.optim.SGD, lr=0.1),
        {},
        "gradient",
        0,
        False,
    )
    arguments = {
        "name": "tensair-test",
        "loop": asyncio.get_running_loop(),
        "torch_threads": None,
        "is_alive": lambda: True,
    }
    thread = TrainingThread(**{**arguments, **overrides})
    learner = Learner(dataclasses.replace(recipe, **changed), CPU)
    exchange = Exchange("run", "me", learner.arena, learner.apply, thread.wake)
    thread.attach(learner, exchange)
    try:
        yield thread
    finally:
        if permits is not None:
            permits.release(1000)
        await thread.stopped()


def block(count: int, x: np.ndarray = X) -> Block:
    return Block.join("run", [MiniBatch.of(x, Y)] * count)


async def until(predicate: Callable[[], object]) -> None:
    while not predicate():
        await asyncio.sleep(0.001)


@gen_test()
async def test_blocks_are_learned_in_order_and_answered_one_by_one():
    async with running() as thread:
        futures = [thread.learn(block(count)) for count in (3, 1, 2)]
        outcomes = await asyncio.gather(*futures)
    assert [len(outcome.losses) for outcome in outcomes] == [3, 1, 2]
    assert [outcome.status.steps for outcome in outcomes] == [3, 4, 6]
    losses = [loss for outcome in outcomes for loss in outcome.losses]
    assert losses == sorted(losses, reverse=True)
    assert outcomes[-1].status.samples == 12


@gen_test()
async def test_a_call_is_answered_between_two_mini_batches_of_a_long_block():
    permits = threading.Semaphore(0)
    async with running(permits) as thread:
        learning = thread.learn(block(50))
        asking = thread.call(lambda: thread.status().steps)
        permits.release()
        assert await asking <= 1
        assert not learning.done()
        permits.release(49)
        assert len((await learning).losses) == 50


@gen_test()
async def test_all_calls_that_wait_are_answered_before_the_next_mini_batch():
    permits = threading.Semaphore(0)
    async with running(permits) as thread:
        learning = thread.learn(block(50))
        await until(thread.learner.model.entered.is_set)
        asking = [thread.call(lambda: thread.status().steps) for _ in range(20)]
        permits.release()  # for the mini-batch that is being learned, and no other
        assert await asyncio.gather(*asking) == [1] * 20
        assert not learning.done()
        permits.release(49)
        await learning


@gen_test()
async def test_training_goes_on_though_each_answer_brings_a_new_call():
    permits = threading.Semaphore(0)
    async with running(permits) as thread:
        steps: list[int] = []
        nobody: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def ask() -> None:
            steps.append(thread.status().steps)
            if steps[-1] < 50:
                thread.calls.append((ask, nobody))

        learning = thread.learn(block(50))
        await until(thread.learner.model.entered.is_set)
        thread.call(ask)
        permits.release(50)
        assert len((await learning).losses) == 50
        await until(lambda: steps[-1] == 50)
    assert steps == list(range(1, 51))  # one answer, one mini-batch


@gen_test()
async def test_an_error_of_a_call_goes_to_the_caller_and_the_thread_goes_on():
    async with running() as thread:
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 / 0)
        assert await thread.call(lambda: 1 + 1) == 2


@gen_test()
async def test_a_bad_mini_batch_is_refused_in_its_place_of_the_block():
    nan = X.copy()
    nan[0, 0] = np.nan
    good, wide = MiniBatch.of(X, Y), MiniBatch.of(np.zeros((2, 9), "f4"), Y)
    batches = [good, MiniBatch.of(nan, Y), good, wide, good]
    async with running() as thread:
        outcome = await thread.learn(Block.join("run", batches))
    assert {at: type(error).__name__ for at, error in outcome.errors.items()} == {
        1: "NonFiniteError",
        3: "ShapeError",
    }
    assert isinstance(outcome.errors[1], NonFiniteError)
    assert np.isnan(outcome.losses).tolist() == [False, True, False, True, False]
    assert outcome.status.steps == 3


@gen_test()
async def test_what_torch_cannot_take_is_refused_and_the_thread_goes_on():
    strange = MiniBatch.of(X, Y)
    strange.leaves[0] = X.astype("longdouble")
    groups = [Group(strange.kind, [1, 1], strange.leaves), *block(1).groups]
    async with running() as thread:
        outcome = await thread.learn(Block("run", groups))
        assert [type(error) for error in outcome.errors.values()] == [ForwardError] * 2
        assert outcome.status.steps == 1
        assert not (await thread.learn(block(1))).errors


@gen_test()
async def test_stopping_answers_what_has_not_been_done():
    permits = threading.Semaphore(0)
    async with running(permits) as thread:
        learning = thread.learn(block(2))
        await until(thread.learner.model.entered.is_set)
        waiting, asking = thread.learn(block(1)), thread.call(lambda: None)
        thread.stop()
        permits.release(10)
        for future in (learning, waiting, asking):
            with pytest.raises(ReplicaLostError, match="was not done"):
                await future
        with pytest.raises(ReplicaLostError):
            await thread.call(lambda: None)


@gen_test()
async def test_the_thread_ends_when_its_worker_is_gone(monkeypatch):
    monkeypatch.setattr("tensair_dask.replica.thread.HEARTBEAT", 0.01)
    alive = True
    async with running(is_alive=lambda: alive) as thread:
        assert await thread.call(lambda: True)
        alive = False
        await until(lambda: thread.has_ended)


@gen_test()
async def test_the_thread_has_torch_threads_of_its_own():
    before = torch.get_num_threads()
    async with running(torch_threads=3) as thread:
        assert await thread.call(torch.get_num_threads) == 3
    assert torch.get_num_threads() == before


@gen_test()
async def test_what_is_queued_while_the_thread_ends_is_answered():
    late: list[asyncio.Future[Any]] = []

    class Ending(TrainingThread):
        def _abandon(self) -> None:
            super()._abandon()
            if threading.current_thread() is self._thread:
                # Alive still, and it looks at no queue any more.
                asked = asyncio.run_coroutine_threadsafe(ask(self), self._loop)
                late.append(asked)
                asked.exception(10)

    async def ask(thread: TrainingThread) -> None:
        await thread.call(lambda: None)

    thread = Ending("tensair-test", asyncio.get_running_loop(), None, lambda: True)
    thread.stop()
    await until(lambda: late)
    with pytest.raises(ReplicaLostError):
        await asyncio.wrap_future(late[0])
    await thread.stopped()


ENDS = [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]


class Raising:
    """Raises when it is told to, wherever it is put."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error


def in_the_model(raising: Raising) -> dict[str, Any]:
    def model() -> nn.Module:
        layer = nn.Linear(3, 2)
        layer.register_forward_hook(raising)
        return layer

    return {"model": model}


def in_the_loss(raising: Raising) -> dict[str, Any]:
    def loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raising()
        return nn.functional.cross_entropy(prediction, y)

    return {"loss": loss}


def in_the_gradient(raising: Raising) -> dict[str, Any]:
    def model() -> nn.Module:
        layer = nn.Linear(3, 2)
        layer.weight.register_hook(raising)
        return layer

    return {"model": model}


def in_the_step(raising: Raising) -> dict[str, Any]:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.1)
        made.register_step_post_hook(raising)
        return made

    return {"optimizer": optimizer}


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "place", [in_the_model, in_the_loss, in_the_gradient, in_the_step]
)
def test_what_would_end_a_program_costs_a_mini_batch(place, error):
    @gen_test()
    async def run() -> None:
        raising = Raising()
        async with running(recipe=place(raising)) as thread:
            raising.error = error
            outcome = await thread.learn(block(2))
            raising.error = None
            assert set(outcome.errors) == {0, 1}
            for refusal in outcome.errors.values():
                assert isinstance(refusal, BatchError)
                assert type(error).__name__ in str(refusal)
            assert not (await thread.learn(block(1))).errors
            assert thread.counters.refused == 2

    run()


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_call_that_would_end_a_program_raises_to_the_caller(error):
    @gen_test()
    async def run() -> None:
        raising = Raising()
        raising.error = error
        async with running() as thread:
            with pytest.raises(RaisedError, match=type(error).__name__):
                await thread.call(raising)
            assert await thread.call(lambda: "lives") == "lives"

    run()


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(1)])
def test_all_that_waits_learns_why_a_replica_has_ended(error):
    @gen_test()
    async def run() -> None:
        async with running() as thread:
            raising = Raising()
            raising.error = error
            thread.exchange.learned = raising
            with pytest.raises(ReplicaFailedError, match=type(error).__name__):
                await thread.learn(block(2))
            assert thread.has_ended
            with pytest.raises(ReplicaFailedError, match=type(error).__name__):
                await thread.call(lambda: None)

    run()


@gen_test()
async def test_a_call_that_ends_the_replica_answers_its_caller_first():
    def fail() -> None:
        raise ReplicaFailedError("half way")

    async with running() as thread:
        with pytest.raises(ReplicaFailedError, match="half way"):
            await thread.call(fail)
        await until(lambda: thread.has_ended)


@gen_test()
async def test_a_coroutine_that_has_got_the_failure_goes_on(monkeypatch):
    # The thread lets go of what the frames of its failure hold, while this one stands
    # still, and is one of them.
    raised = threading.Event()
    monkeypatch.setattr(
        "tensair_dask.replica.thread.logger.exception", lambda *_: raised.wait(20)
    )

    def fail() -> None:
        held = [X]
        raise ReplicaFailedError(f"no memory for {len(held)}")

    async def call(thread: TrainingThread) -> str:
        kept = "kept"
        try:
            await thread.call(fail)
        except ReplicaFailedError as error:
            raised.set()
            while not thread.has_ended:
                await asyncio.sleep(0.001)
            frames = [each for each, _ in traceback.walk_tb(error.__traceback__)]
            assert any("kept" in each.f_locals for each in frames)
            assert not any("held" in each.f_locals for each in frames)
        return kept

    async with running() as thread:
        assert await call(thread) == "kept"
