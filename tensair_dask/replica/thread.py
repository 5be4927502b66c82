"""The thread of one replica: applies all that has arrived, then computes one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tensair_dask import config
from tensair_dask._common.work_clock import open_work_clock, work_time
from tensair_dask._wording import in_words
from tensair_dask.batches.batch import Block, Group
from tensair_dask.errors import (
    BatchError,
    ForwardError,
    NonFiniteError,
    RaisedError,
    ReplicaFailedError,
    ReplicaLostError,
)
from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.exchange import Exchange
from tensair_dask.observe.telemetry.counters import Counters
from tensair_dask.replica.learner import Learner, Step, non_finite, to_tensors
from tensair_dask.replica.stability import Stability

__all__ = ["Outcome", "Status", "TrainingThread"]

logger = logging.getLogger(__name__)

# Upper bound of a sleep; the thread then looks whether its worker still lives.
HEARTBEAT = 1.0

# Flags of functions that may stand still in between.
_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(slots=True)
class Status:
    """How a replica stands; comes with every outcome.

    Attributes
    ----------
    steps, samples
        That it has learned itself.
    staleness
        Mean of the newest gradients of its peers.
    version
        Steps of all replicas that its model holds.
    leaving
        Whether it leaves the run: it takes no more work.
    """

    steps: int
    samples: int
    staleness: float
    version: int
    # Mini-batches dealt with, and how many of these all peers hold as well.
    taken: int = 0
    confirmed: int = 0
    # Whether the replica takes no more mini-batches.
    leaving: bool = False
    # Whether gradients of a peer have not reached it, and no more of that peer do.
    missed: bool = False
    # What is to be said once to the user, by key; see `tensair_dask._common.notices`.
    notices: dict[str, str] = field(default_factory=dict)
    # "gradient" or "update": what it publishes.
    share: str = ""
    # Whether that is wrong for this model, and another was not asked for.
    inexact: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of a block: one entry a mini-batch, in the block's order.

    Attributes
    ----------
    work
        Seconds from the beginning of the first mini-batch to the end of the last, less
        those in which the thread waited for a CPU; see `work_time`.
    """

    metric_names: list[str]
    losses: list[float] = field(default_factory=list)
    metrics: list[list[float | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stalenesses: list[int] = field(default_factory=list)
    predictions: list[Any] = field(default_factory=list)
    errors: dict[int, BatchError] = field(default_factory=dict)
    status: Status | None = None
    work: float = 0.0


@dataclass(slots=True)
class _Job:
    """A block being learned, and the future that waits for its outcome."""

    batches: Iterator[tuple[Group, Any, Any, int, BaseException | None]]
    remaining: int
    outcome: Outcome
    future: asyncio.Future[Outcome]
    begun: float | None = None


class TrainingThread:
    """Runs a learner and its exchange on a thread of their own.

    The worker's event loop is never blocked by torch, and several replicas on one
    worker do not wait for each other as Dask's synchronous actor methods would.

    Parameters
    ----------
    name
        Of the thread.
    loop
        The worker's event loop; futures are resolved there.
    torch_threads
        Threads that torch may use for one operation; None leaves its setting.
    is_alive
        Asked about once a second; the thread ends when it says False.

    Attributes
    ----------
    counters
        What it has learned and refused.
    leaving
        Whether the replica leaves; every status says so.
    failure
        By what it has ended, if it was not closed.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        torch_threads: int | None,
        is_alive: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._torch_threads = torch_threads
        self._is_alive = is_alive
        self.learner: Learner | None = None
        self.exchange: Exchange | None = None
        self.stability: Stability | None = None
        # Appended to by the event loop, taken from by the thread: deque operations
        # are atomic. The condition is only for sleeping.
        self.calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._jobs: deque[_Job] = deque()
        # Blocks that have overtaken an earlier one, by number.
        self.early: dict[int, _Job] = {}
        self._next_block = 0
        self._wakeup = threading.Condition()
        self._stopping = False
        self._ended = False
        self.failure: ReplicaFailedError | None = None
        self._staleness = 0
        self.counters = Counters()
        self.leaving = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ---- on the event loop ------------------------------------------------------

    def attach(self, learner: Learner, exchange: Exchange) -> None:
        """Give the thread its learner and exchange, before the first block."""
        self.learner, self.exchange = learner, exchange
        every = int(config.get("exchange.stability-check"))
        self.stability = Stability(learner, every)
        self.counters = Counters(learner.metric_names)

    def learn(self, block: Block) -> asyncio.Future[Outcome]:
        """Queue a block; the future resolves with its outcome."""
        assert self.learner is not None
        job = _Job(
            self._batches(block),
            len(block),
            Outcome(self.learner.metric_names),
            self._loop.create_future(),
        )
        if block.number is None:
            return self._queue(self._jobs, job, job.future)
        self.early[block.number] = job
        while self._next_block in self.early:
            ready = self.early.pop(self._next_block)
            self._next_block += 1
            self._queue(self._jobs, ready, ready.future)
        return job.future

    def refuse_early(self, error: Exception) -> None:
        """Refuse the blocks that have overtaken one which does not come any more."""
        with self._wakeup:  # the thread may end just now
            while self.early:
                self._resolve(self.early.popitem()[1].future, error=error)

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call a function on the thread; it waits behind at most one mini-batch."""
        future: asyncio.Future[Any] = self._loop.create_future()
        return self._queue(self.calls, (function, future), future)

    def _queue(self, queue: deque[Any], item: Any, future: Any) -> Any:
        queue.append(item)
        self.wake()
        if self._ended:  # before or while this was queued
            self._abandon()
        return future

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more work."""
        return self._ended

    def wake(self) -> None:
        """Make the thread look at its queues; from any thread."""
        with self._wakeup:
            self._wakeup.notify()

    def stop(self) -> None:
        """End the thread after the step it is in; what is queued fails."""
        self._stopping = True
        self.wake()

    async def stopped(self) -> None:
        """Stop and wait for the end; a step is not interrupted."""
        self.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 30)

    # ---- on the thread ----------------------------------------------------------

    def _run(self) -> None:
        if self._torch_threads is not None:
            torch.set_num_threads(self._torch_threads)
        try:
            with open_work_clock():
                while not self._stopping:
                    self._turn()
        except BaseException as error:
            # Not a mini-batch's fault, which is caught where it is learned.
            logger.exception("A replica ends; its mini-batches go to others")
            self.failure = _failure(error)
            _forget_locals(error)
            if self.exchange is not None:
                # Its peers must not wait for it to apply what they publish.
                self.exchange.abandon()
        finally:
            self._stopping = True
            # In this order: who queues something looks at the flag afterwards, so that
            # one of the two finds it.
            self._ended = True
            self._abandon()

    def _turn(self) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.has_arrivals:
            self._staleness = max(self._staleness, exchange.apply_arrived())
        # All that have waited, so that each waits behind one mini-batch at most; but
        # not those that come meanwhile, so that there is a mini-batch in every turn.
        for _ in range(len(self.calls)):
            self._answer()
        if self._jobs:
            self._take_one(self._jobs[0])
        if exchange is not None:
            due = exchange.due(busy=bool(self._jobs))
            if due is not None and time.monotonic() >= due:
                exchange.publish()
        self._sleep()

    def _sleep(self) -> None:
        if self._jobs:
            return
        with self._wakeup:
            exchange = self.exchange
            if (
                self._jobs
                or self.calls
                or self._stopping
                or (exchange is not None and exchange.has_arrivals)
            ):
                return
            timeout = HEARTBEAT
            due = exchange.due(busy=False) if exchange is not None else None
            if due is not None:
                timeout = min(timeout, max(0.0, due - time.monotonic()))
            notified = self._wakeup.wait(timeout)
        if not notified and not self._is_alive():
            self._stopping = True

    def _answer(self) -> None:
        function, future = self.calls.popleft()
        try:
            result = function()
        except BaseException as error:
            self._resolve(future, error=RaisedError.unless_fit(error))
            if isinstance(error, ReplicaFailedError):
                raise
        else:
            self._resolve(future, result)

    def _batches(
        self, block: Block
    ) -> Iterator[tuple[Group, Any, Any, int, BaseException | None]]:
        assert self.learner is not None
        for group in block.groups:
            try:
                bad = set(non_finite(group))
                tensors = list(to_tensors(group, self.learner.device))
            except BaseException as error:  # the device has no room for it, say
                for samples in group.lengths:
                    yield group, None, None, samples, error
                continue
            for position, (x, y, samples) in enumerate(tensors):
                yield group, x, y, samples, _not_finite() if position in bad else None

    def _take_one(self, job: _Job) -> None:
        assert self.learner is not None
        assert self.exchange is not None
        outcome = job.outcome
        if job.begun is None:
            job.begun = work_time()
        group, x, y, samples, bad = next(job.batches)
        try:
            if bad is not None:
                raise bad
            if group.learn or self.learner.moves:
                self.exchange.before_step()
            with self.learner.drawing:
                if group.learn:
                    if self.learner.follows:
                        self.learner.follow(self.exchange.clock.version)
                    step, changes = self._learn(x, y, samples)
                else:
                    step = self.learner.score(x, y, samples)
        except ReplicaFailedError:
            raise
        except BaseException as error:
            # Of user code, whatever it is: nobody interrupts this thread.
            self._refuse(outcome, error, group, samples)
        else:
            if group.learn:
                self.exchange.learned(samples, step.seconds, changes)
            self.counters.scored(
                samples, step.loss, step.metrics, step.seconds, group.learn
            )
            self.learner.learned_kind = group.kind
            outcome.losses.append(step.loss)
            outcome.metrics.append(step.metrics)
            outcome.seconds.append(step.seconds)
            outcome.predictions.append(step.prediction)
        self.exchange.dealt()
        outcome.stalenesses.append(self._staleness)
        self._staleness = 0
        job.remaining -= 1
        if not job.remaining:
            self._jobs.popleft()
            outcome.status = self.status()
            outcome.work = max(0.0, work_time() - job.begun)
            self._resolve(job.future, outcome)

    def _learn(self, x: Any, y: Any, samples: int) -> tuple[Step, Changes]:
        assert self.learner is not None
        assert self.exchange is not None
        assert self.stability is not None
        replicas = self.exchange.peers + 1
        if not self.stability.is_due(replicas):
            return self.learner.learn(x, y, samples)
        before = self.stability.before_step()
        learned = self.learner.learn(x, y, samples)
        if before is not None:
            self.stability.look(before, x, y)
            self.stability.judge(replicas, self.exchange.staleness)
        return learned

    def _refuse(
        self, outcome: Outcome, error: BaseException, group: Group, samples: int
    ) -> None:
        assert self.learner is not None
        if not isinstance(error, BatchError):  # the optimizer, or a lack of memory
            error = ForwardError(f"The step raised {in_words(error)}")
        refusal = self.learner.refusal(error, group, samples)
        outcome.errors[len(outcome.losses)] = refusal
        self.counters.refused += 1
        outcome.losses.append(float("nan"))
        outcome.metrics.append([])
        outcome.seconds.append(0.0)
        outcome.predictions.append(None)

    def status(self) -> Status:
        """How the replica stands; on the thread."""
        exchange = self.exchange
        assert exchange is not None
        if self.learner is not None:
            exchange.report_to(self.learner.notices)
        return Status(
            exchange.steps,
            exchange.samples,
            exchange.staleness,
            exchange.clock.version,
            exchange.taken,
            exchange.confirmed(),
            self.leaving,
            exchange.missed(),
            self.learner.notices.take() if self.learner is not None else {},
            exchange.share,
            self.learner is not None and self.learner.is_inexact,
        )

    def refuse_waiting(self, error: Exception) -> None:
        """Refuse the blocks of which nothing was taken; `call` it."""
        while self._jobs and not self._jobs[-1].outcome.losses:
            self._resolve(self._jobs.pop().future, error=error)

    def _abandon(self) -> None:
        error = self.failure or ReplicaLostError(
            "The replica is closed; the work was not done."
        )
        with self._wakeup:  # the thread and the event loop may both be here
            while self.calls:
                self._resolve(self.calls.popleft()[1], error=error)
            while self._jobs:
                self._resolve(self._jobs.popleft().future, error=error)
            self.refuse_early(error)

    def _resolve(
        self, future: asyncio.Future[Any], result: Any = None, error: Any = None
    ) -> None:
        def resolve() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # loop closed: nobody waits any more
            self._loop.call_soon_threadsafe(resolve)


def _failure(error: BaseException) -> ReplicaFailedError:
    if isinstance(error, ReplicaFailedError):
        return error
    return ReplicaFailedError(f"The replica has ended, by {in_words(error)}")


def _forget_locals(error: BaseException | None) -> None:
    """Let go of what the functions of a failure held: gradients, and peers' memory.

    The error is kept, by logs and by whoever asks why the replica has ended. Coroutines
    that it was raised in, too, are left alone: to clear them would end them.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if not frame.f_code.co_flags & _SUSPENDED:
                with contextlib.suppress(RuntimeError):  # it runs
                    frame.clear()
        error = error.__cause__ or error.__context__


def _not_finite() -> NonFiniteError:
    return NonFiniteError(
        "The mini-batch holds NaN or infinite values; all must be finite. Clean the "
        "records before training, or drop them."
    )
