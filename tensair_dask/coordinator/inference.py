"""What is asked of the replicas: predictions, evaluations, the state of the model."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tensair_dask import config
from tensair_dask._common.serial_queue import OneByOne
from tensair_dask.batches.batch import ABSENT, Block, refusing
from tensair_dask.batches.predictions import (
    Prediction,
    as_batch,
    unknown_type,
    why_no_inputs,
    without_batch_axis,
)
from tensair_dask.coordinator.intake import Intake
from tensair_dask.coordinator.lifecycle import Lifecycle
from tensair_dask.coordinator.replica_group import ReplicaGroup, names_of
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.errors import BatchError, RaisedError, TensairError
from tensair_dask.exchange.wire import unpack
from tensair_dask.replica.learner import to_arrays

__all__ = ["Inference"]


class Inference(Subscriber):
    """Asks replicas, with a bound on how many questions are under way.

    Belongs to the client's event loop.

    Parameters
    ----------
    lifecycle
        Whether the trainer is open.
    run_id
        Of the trainer.
    replicas
        Those that are asked.
    intake
        What is known of the mini-batches that came.
    events
        Gets an event for what an answer lacks.

    Attributes
    ----------
    most
        Predictions that may be under way at the same time; others wait.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        run_id: str,
        replicas: ReplicaGroup,
        intake: Intake,
        events: RunEvents,
    ) -> None:
        self.most = 0
        self._lifecycle = lifecycle
        self._run_id = run_id
        self._replicas = replicas
        self._intake = intake
        self._events = events
        self._each = int(config.get("predictions.max-in-flight"))
        self._room = asyncio.Semaphore(0)
        self._forgetting = OneByOne("Forgetting an evaluation that was broken off")

    def replica_joined(self, handle: ReplicaHandle) -> None:
        """Let more predictions be under way, if there are more replicas than ever."""
        most = self._each * len(self._replicas.alive())
        for _ in range(most - self.most):
            self.most += 1
            self._room.release()

    async def close(self) -> None:
        """Give up what is not done."""
        await self._forgetting.close()

    # ---- predictions -----------------------------------------------------------------

    async def predict_given(self, x: Any, details: bool) -> Any:
        """Predict what a user has given; see `Trainer.predict`."""
        self._say_if_pair(x)
        return await self.predict(x, details)

    async def predict(self, x: Any, details: bool = False) -> Any:
        """Predict what a stream has given."""
        prediction = await self._prediction(x)
        return prediction if details else prediction.value

    async def predict_one(self, record: Any, details: bool) -> Any:
        """Predict for one record; see `Trainer.predict_one`."""
        with refusing():
            x = as_batch(record)
        self._say_if_pair(x)
        prediction = await self._prediction(x)
        value = without_batch_axis(prediction.value)
        return replace(prediction, value=value) if details else value

    def _say_if_pair(self, x: Any) -> None:
        """Say that what was given to be predicted may be a pair (x, y)."""
        if why := why_no_inputs(x, self._intake.structures):
            self._events.say_once(
                "predicted pair",
                f"trainer.predict: {why}. If it is a pair (x, y), give x only; if the "
                "others are arguments of the model, a dict by their names says so.",
            )

    async def _prediction(self, x: Any) -> Prediction:
        await self._lifecycle.ready()
        with refusing():
            batch = self._intake.column_names.batch(x, ABSENT)
            block = Block.join(self._run_id, [batch])
            as_tensors = _has_tensors(x)
        async with self._room:
            await self._lifecycle.ready()  # it may have been closed meanwhile
            try:
                packed = await self._replicas.ask_any("predict", block)
            except TensairError as error:
                self._events.prediction_refused(error)
                raise
        answer = Prediction(**unpack(packed, self._miss_type))
        if as_tensors:
            return answer
        return replace(answer, value=to_arrays(answer.value))

    def _miss_type(self, name: str) -> None:
        self._events.say_once(name, unknown_type(name))

    # ---- evaluations -----------------------------------------------------------------

    async def evaluate(self, batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        """Score held-out mini-batches at one replica; see `Trainer.evaluate`."""
        await self._lifecycle.ready()
        session = uuid.uuid4().hex
        handle = self._replicas.least_loaded()
        try:
            count = await self._score_each(handle, session, batches)
            if not count:
                raise BatchError(
                    f"evaluate was given a {type(batches).__name__} without a single "
                    "mini-batch: there is nothing to score. A generator gives what it "
                    "has once; make a list of it to evaluate on it again."
                )
            scores: dict[str, Any]
            scores = await self._replicas.ask(handle, "evaluate", None, session)
            with contextlib.suppress(TensairError):  # it may be lost: there is a score
                status = await self._replicas.ask(handle, "status")
                self._replicas.dispatcher.hear(status)
        except BaseException:
            if handle.lane.alive:
                self._forgetting.do(
                    functools.partial(self._replicas.ask, handle, "forget", session)
                )
            raise
        scores["samples"] = int(scores["samples"])
        return scores

    async def _score_each(
        self, handle: ReplicaHandle, session: str, batches: Iterable[tuple[Any, Any]]
    ) -> int:
        """Let a replica score all mini-batches; give how many there were."""
        count = 0
        with refusing():
            iterator = iter(batches)
        for pair in iterator:
            try:
                if hasattr(pair, "shape"):  # its rows would be x and y
                    raise TypeError("it is an array")
                x, y = pair
            except Exception as error:
                raise BatchError(
                    f"evaluate was given a {type(pair).__name__} where a "
                    "mini-batch should be: give pairs (x, y), for example "
                    "evaluate([(x, y)])."
                ) from RaisedError.unless_fit(error)
            with refusing():
                batch = self._intake.column_names.batch(x, y)
                block = Block.join(self._run_id, [batch])
            await self._replicas.ask(handle, "evaluate", block, session)
            count += 1
        return count

    # ---- the state of the model ------------------------------------------------------

    async def state_dict(self) -> dict[str, Any]:
        """Copy the parameters of one replica; see `Trainer.state_dict`."""
        await self._lifecycle.ready()
        state: dict[str, Any] = unpack(await self._replicas.ask_any("state_dict"))
        return state

    async def state_dicts(self) -> dict[str, dict[str, Any]]:
        """Copy those of all replicas, by the addresses of their workers."""
        await self._lifecycle.ready()
        states = await self._replicas.ask_each("state_dict")
        return dict(zip(names_of(states), map(unpack, states.values()), strict=True))

    async def exchange_stats(self) -> dict[str, dict[str, float]]:
        """Ask all replicas for their counts; see `Trainer.exchange_stats`."""
        await self._lifecycle.ready()
        stats = await self._replicas.ask_all("statistics")
        return dict(zip(names_of(stats), stats.values(), strict=True))


def _has_tensors(x: Any) -> bool:
    values = x.values() if isinstance(x, Mapping) else x
    if hasattr(x, "detach"):
        return True
    return isinstance(x, (Mapping, tuple, list)) and any(
        hasattr(value, "detach") for value in values
    )
