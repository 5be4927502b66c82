"""What the scheduler does so that N replicas know each other: bytes and CPU.

The endpoints of N workers around the scheduler's half, in one process and without a
network: what is counted is what the scheduler would send and receive, packed as Dask
packs it, and the CPU of its handlers alone. Registrations arrive at random within a
second, as those of processes do.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import click
import dask
import msgpack

from tensair_dask.pubsub import Pub, Sub
from tensair_dask.pubsub.scheduler import PubSubScheduler

TOPIC = "tensair/0123456789abcdef0123456789abcdef/gradients"
SETTINGS = {
    "tensair.pubsub.timeout": "200s",
    "tensair.pubsub.retry": "200s",
    "tensair.pubsub.shared-memory": False,
}
SPREAD = 1.0


class Timed:
    """Runs a coroutine, and tells the CPU time of each of its steps."""

    def __init__(
        self, work: Coroutine[Any, Any, Any], tell: Callable[[float], None]
    ) -> None:
        self._work, self._tell = work, tell

    def __await__(self) -> Generator[Any, Any, Any]:
        value = None
        while True:
            start = time.thread_time()
            try:
                waits = self._work.send(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self._tell(time.thread_time() - start)
            value = yield waits


class Plugin(PubSubScheduler):
    """The scheduler's half; counts the CPU of telling, which no call waits for."""

    def _tell_all(self) -> None:
        start = time.thread_time()
        super()._tell_all()
        self.scheduler.cpu += time.thread_time() - start
        self.scheduler.count()


class Scheduler:
    """As much of Dask's scheduler as the plugin needs; counts what passes."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.stream_comms: dict[str, None] = {}
        self.client_comms: dict[str, None] = {}
        self.workers: dict[str, Any] = {}
        self._pushed: list[tuple[str, dict[str, Any]]] = []
        self.forget()

    def forget(self) -> None:
        """Count from 0."""
        self.calls = self.pushes = self.bytes = 0
        self.cpu = self.cpu_of_workers = 0.0

    def worker_send(self, address: str, message: dict[str, Any]) -> None:
        """Take what the plugin pushes."""
        self._pushed.append((address, message))

    def count(self) -> None:
        """Count what was pushed, and let it arrive."""
        for address, message in self._pushed:
            self.pushes += 1
            self.bytes += len(msgpack.packb(message))
            asyncio.get_running_loop().call_soon(self._arrive, address, message)
        self._pushed.clear()

    def _arrive(self, address: str, message: dict[str, Any]) -> None:
        start = time.thread_time()
        arguments = {key: value for key, value in message.items() if key != "op"}
        self.workers[address].stream_handlers[message["op"]](**arguments)
        self.cpu_of_workers += time.thread_time() - start

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Answer a call of a worker."""
        self.calls += 1
        self.bytes += len(msgpack.packb({"op": name, **arguments}))
        answer = await Timed(self.handlers[name](**arguments), self._add)
        self.bytes += len(msgpack.packb(answer))
        return answer

    def _add(self, seconds: float) -> None:
        self.cpu += seconds

    def connect(self) -> Any:
        """Return one more worker."""
        number = len(self.workers)
        host = f"10.0.{number // 250}.{number % 250}"
        address = f"tcp://{host}:{random.randrange(32768, 60999)}"
        worker = SimpleNamespace(
            loop=SimpleNamespace(asyncio_loop=asyncio.get_running_loop()),
            contact_address=address,
            plugins={},
            handlers={},
            stream_handlers={},
            scheduler=Calls(self),
            status=SimpleNamespace(name="running"),
        )
        self.stream_comms[address] = None
        self.workers[address] = worker
        return worker


class Calls:
    """What workers call at the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def register_scheduler_plugin(self, **arguments: Any) -> None:
        """Answer that the plugin is there."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def call(**arguments: Any) -> Any:
            return await self._scheduler.call(name, arguments)

        return call


async def join(worker: Any, number: int, replicas: int, known: int) -> tuple[Sub, Pub]:
    """Take part as a replica does, and wait until so many are known."""
    name, together = f"replica-{number}", 2 * replicas
    sub = Sub(TOPIC, worker=worker, handler=print, member=name, together=together)
    pub = Pub(TOPIC, worker=worker, member=name)
    await sub
    await pub
    await pub.wait_for(lambda view: len(view.subscribers) == known, "200s")
    return sub, pub


def shown(what: str, scheduler: Scheduler, replicas: int) -> str:
    """Describe what was counted."""
    return (
        f"{what:16} {scheduler.calls:6d} calls {scheduler.pushes:6d} pushes "
        f"{scheduler.bytes / 1e3:10.1f} kB; CPU of the scheduler "
        f"{1e3 * scheduler.cpu:8.2f} ms, of a replica for views "
        f"{1e3 * scheduler.cpu_of_workers / replicas:6.3f} ms"
    )


async def measure(replicas: int) -> None:
    """Print what a start, a leave and a join take."""
    scheduler = Scheduler()
    plugin = Plugin()
    await plugin.start(scheduler)

    async def begin(number: int) -> tuple[Sub, Pub]:
        await asyncio.sleep(random.random() * SPREAD)
        return await join(scheduler.connect(), number, replicas, replicas)

    pairs = await asyncio.gather(*map(begin, range(replicas)))
    bound = replicas * max(1.0, math.log2(replicas))
    print(shown(f"start of {replicas}", scheduler, replicas), f"(bound {bound:.0f} kB)")
    scheduler.forget()
    for end in pairs[0]:
        await end.close(0)
    print(shown("one leaves", scheduler, replicas))
    scheduler.forget()
    await join(scheduler.connect(), replicas, 1, replicas)
    print(shown("one joins", scheduler, replicas))


@click.command(help=__doc__)
@click.option("--replicas", type=int, multiple=True, default=(4, 16, 64, 256))
def main(replicas: tuple[int, ...]) -> None:
    """Measure each number of replicas."""
    with dask.config.set(SETTINGS):
        for count in replicas:
            asyncio.run(measure(count))


if __name__ == "__main__":
    main()
