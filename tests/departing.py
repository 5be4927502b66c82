"""Replicas without a trainer: every answer and every refusal is seen.

What is refused is sent to another replica, what is answered is not sent again: so the
survivors must hold each gradient exactly once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from distributed import Client
from distributed.protocol import to_serialize
from helpers import CLASSES, FEATURES, RATE, SGD, Linear, linear_loss

from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.coordinator.code_transfer import dumps
from tensair_dask.errors import ReplicaLeavingError
from tensair_dask.exchange.settings import ExchangeConfig
from tensair_dask.exchange.wire import unpack
from tensair_dask.replica.actor import Replica, ReplicaPlan
from tensair_dask.replica.learner import Recipe
from tensair_dask.replica.placement import Place
from tensair_dask.replica.thread import Outcome

__all__ = ["FleetOf", "Slow", "Steady", "until"]


class Slow(Linear):
    """Takes its time for a step."""

    seconds = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().forward(x)


class Steady(Slow):
    """Takes long enough that there is always something under way."""

    seconds = 0.005


class FleetOf:
    """Replicas of one run, one on each of these workers, called directly."""

    def __init__(
        self,
        client: Client,
        addresses: Sequence[str],
        run_id: str = "0123456789",
        model: Callable[[], Any] = Linear,
        settings: ExchangeConfig | None = None,
    ) -> None:
        self.client = client
        self.addresses = list(addresses)
        self.run_id = run_id
        self.model = model
        self.settings = settings
        self.futures: list[Any] = []
        self.gone: set[int] = set()
        self.learned: list[tuple[Any, Any]] = []
        self.refused = 0

    async def start(self) -> FleetOf:
        recipe = Recipe(self.model, linear_loss, SGD, {}, "gradient", 0, False)
        payload = dumps(recipe, ["departing", "helpers"], "The recipe")
        for number, address in enumerate(self.addresses):
            plan = ReplicaPlan(
                self.run_id,
                f"replica-{number}",
                Place(address, "cpu", 1),
                payload,
                self.settings,
            )
            self.futures.append(
                self.client.submit(
                    Replica,
                    plan,
                    actor=True,
                    workers=[address],
                    key=f"tensair-{self.run_id[:8]}-{number}",
                    pure=False,
                )
            )
        await asyncio.gather(*self.futures)
        everyone = range(len(self.futures))
        await asyncio.gather(*(self.call(each, "build") for each in everyone))
        await asyncio.gather(*(self.call(each, "join") for each in everyone))
        count = len(self.futures)
        await asyncio.gather(
            *(self.call(each, "wait_for_peers", count, 20.0) for each in everyone)
        )
        return self

    async def call(self, number: int, function: str, *args: Any) -> Any:
        answer = await self.client.rpc(self.addresses[number]).actor_execute(
            function=function,
            actor=self.futures[number].key,
            args=[to_serialize(arg) for arg in args],
            kwargs={},
        )
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    def block(self, data: Iterable[tuple[Any, Any]]) -> Block:
        return Block.join(self.run_id, [MiniBatch.of(x, y) for x, y in data])

    async def learn(self, data: Sequence[tuple[Any, Any]], number: int) -> Outcome:
        """Have this learned by a replica; by the next one if that one refuses."""
        while True:
            if number not in self.gone:
                try:
                    outcome = await self.call(number, "learn", self.block(data))
                except (ReplicaLeavingError, KeyError, OSError):
                    # Refused, or dropped after it had left, or its worker is gone:
                    # nothing was taken. If it was after all, `check` finds out.
                    self.refused += 1
                    self.gone.add(number)
                else:
                    assert not outcome.errors
                    assert len(outcome.losses) == len(data)
                    if outcome.status.leaving:
                        self.gone.add(number)
                    self.learned += data
                    return outcome
            assert len(self.gone) < len(self.futures), "no replica is left"
            number = (number + 1) % len(self.futures)

    async def feed(
        self, data: Sequence[tuple[Any, Any]], number: int, size: int = 2
    ) -> None:
        """Keep three blocks at a replica until all is learned."""
        window = asyncio.Semaphore(3)

        async def one(start: int) -> None:
            try:
                await self.learn(data[start : start + size], number)
            finally:
                window.release()

        tasks = []
        for start in range(0, len(data), size):
            await window.acquire()
            tasks.append(asyncio.create_task(one(start)))
        await asyncio.gather(*tasks)

    async def settled(self, survivors: Iterable[int]) -> None:
        """All gradients of the survivors are everywhere."""
        for _ in range(2):
            await asyncio.gather(
                *(self.call(each, "flush", 20.0) for each in survivors)
            )

    async def check(self, survivors: Sequence[int]) -> None:
        """The survivors hold every gradient that was learned, each exactly once."""
        await self.settled(survivors)
        total = torch.zeros(CLASSES, FEATURES, dtype=torch.float64)
        for x, y in self.learned:
            total += torch.from_numpy(y.astype("float64").T @ x.astype("float64"))
        for each in survivors:
            status = await self.call(each, "status")
            assert status.version == len(self.learned)
            state = unpack(await self.call(each, "state_dict"))
            torch.testing.assert_close(
                state["weight"].double(), 1.0 - RATE * total, rtol=1e-4, atol=1e-4
            )

    def release(self) -> None:
        for future in self.futures:
            future.release()
        self.futures = []


async def until(predicate: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)
