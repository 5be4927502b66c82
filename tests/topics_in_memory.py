"""Topics of a cluster without network: real endpoints, a real scheduler half."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

from tensair_dask.pubsub.scheduler import PubSubScheduler

SETTINGS = {
    "tensair.pubsub.shared-memory": False,
    "tensair.pubsub.retry": "1ms",
    "tensair.pubsub.timeout": "50s",
}


class Cluster:
    """As much of Dask's scheduler as the plugin needs, and the streams to workers.

    Parameters
    ----------
    seed
        Of all that is random.
    lose, repeat
        Shares of the pushes to workers that never arrive, and that arrive once more
        at some later time.
    unsure
        Share of the calls to the scheduler that end in a connection error, half of
        them before they were heard.

    Attributes
    ----------
    told
        By the number of each view that was told, the ids that are in it.
    pushed
        Address and message of each push.
    """

    def __init__(self, seed=0, lose=0.0, repeat=0.0, unsure=0.0):
        self.dice = random.Random(seed)
        self.lose, self.repeat, self.unsure = lose, repeat, unsure
        self.handlers, self.workers = {}, {}
        self.stream_comms, self.client_comms = {}, {}
        self.told, self.pushed, self.calls = {}, [], []
        self._streams = {}

    async def start(self):
        """Begin with a plugin that knows nobody; call it again for another one."""
        self.half = PubSubScheduler()
        await self.half.start(self)
        return self

    def worker(self):
        """Let a worker connect."""
        address = f"tcp://10.0.0.{len(self._streams)}:1"
        loop = SimpleNamespace(asyncio_loop=asyncio.get_running_loop())
        node = SimpleNamespace(
            loop=loop,
            contact_address=address,
            plugins={},
            handlers={},
            stream_handlers={},
            scheduler=_Calls(self),
            status=SimpleNamespace(name="running"),
        )
        self.stream_comms[address] = None
        self.workers[address] = node
        self._streams[address] = asyncio.Queue()
        return node

    async def kill(self, node):
        """Let a worker be gone, as the scheduler notices it."""
        address = node.contact_address
        del self.stream_comms[address], self.workers[address]
        for plugin in node.plugins.values():
            await plugin.teardown(node)
        self.half.remove_worker(self, address)

    def worker_send(self, address, message):
        for topic in self.half.topics.values():
            view = topic.view
            self.told[view.number] = {*view.publishers, *view.subscribers}
        self.pushed.append((address, message))
        copies = [] if self.dice.random() < self.lose else [message]
        if self.dice.random() < self.repeat:
            copies.append(message)
        for delay, copy in enumerate(copies):
            asyncio.get_running_loop().call_later(
                delay * self.dice.random() / 100, self._arrive, address, dict(copy)
            )

    def _arrive(self, address, message):
        if address in self.workers:
            self.workers[address].stream_handlers[message.pop("op")](**message)


class _Calls:
    """What workers call at the scheduler."""

    address = "tcp://scheduler:1"

    def __init__(self, cluster):
        self._cluster = cluster

    async def register_scheduler_plugin(self, plugin, name, idempotent):
        await asyncio.sleep(0)

    def __getattr__(self, name):
        cluster = self._cluster

        async def call(**arguments):
            await asyncio.sleep(cluster.dice.choice([0, 0, 0.001]))
            unsure = cluster.dice.random()
            if unsure < cluster.unsure / 2:
                raise OSError("it was not heard")
            cluster.calls.append((name, arguments))
            answer = await cluster.handlers[name](**arguments)
            if unsure < cluster.unsure:
                raise OSError("its answer was lost")
            return answer

        return call
