"""Ray's asynchronous parameter server, as in its examples, fed by a stream."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import ray
import torch

from open_loop.learner import Learner
from open_loop.wire import Acks, read_from

WORKERS = 2


@ray.remote(num_cpus=0.5)
class ParameterServer:
    """Holds the model, and makes a step of each gradient that comes."""

    def __init__(self) -> None:
        self._learner, self._acks = Learner(), Acks()

    def apply_gradients(
        self, answer: tuple[list[np.ndarray], float], index: int
    ) -> dict[str, Any]:
        """Make one step, and return the weights after it."""
        gradients, loss = answer
        pairs = zip(self._learner.model.parameters(), gradients, strict=True)
        for parameter, gradient in pairs:
            parameter.grad = torch.tensor(gradient)
        self._learner.optimizer.step()
        self._acks.learned(index, loss)
        return self.get_weights()

    def get_weights(self) -> dict[str, Any]:
        """Return the weights."""
        return {k: v.cpu() for k, v in self._learner.model.state_dict().items()}


@ray.remote(num_cpus=0.5)
class Worker:
    """Computes gradients."""

    def __init__(self) -> None:
        self._learner = Learner()

    @ray.method(num_returns=2)
    def compute_gradients(
        self, weights: dict[str, Any], x: np.ndarray, y: np.ndarray
    ) -> tuple[tuple[list[np.ndarray], float], bool]:
        """Return the gradients of one mini-batch with its loss, and that it is done."""
        self._learner.model.load_state_dict(weights)
        # Ray's arrays are read-only.
        loss = self._learner.gradients(x.copy(), y.copy())
        parameters = self._learner.model.parameters()
        return ([parameter.grad.numpy() for parameter in parameters], loss), True


class Loop:
    """Gives the next mini-batch to whichever worker has nothing to do."""

    def __init__(self) -> None:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=300_000_000)
        self._server = ParameterServer.remote()
        self._weights = self._server.get_weights.remote()
        self._reading = asyncio.Lock()

    async def run(self) -> None:
        """Learn until the driver closes the stream."""
        workers = [Worker.remote() for _ in range(WORKERS)]
        await self._weights
        port = int(os.environ["OPEN_LOOP_DATA"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            await asyncio.gather(*(self._feed(each, reader) for each in workers))
        except asyncio.IncompleteReadError:
            writer.close()

    async def _feed(self, worker: Any, reader: asyncio.StreamReader) -> None:
        while True:
            async with self._reading:
                index, x, y = await read_from(reader)
            gradients, done = worker.compute_gradients.remote(self._weights, x, y)
            await done
            self._weights = self._server.apply_gradients.remote(gradients, index)


async def main() -> None:
    await Loop().run()


if __name__ == "__main__":
    asyncio.run(main())
