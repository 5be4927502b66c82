"""bytewax: two processes read a socket each, and keep a model in `stateful_map`."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Iterator

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition

from open_loop.learner import Learner
from open_loop.wire import Acks, Item, data_socket, stream

# bytewax sends a key to the worker that its hash says; these stay where they are read.
KEYS = ("4", "0")


class _Partition(StatelessSourcePartition):
    def __init__(self, worker: int) -> None:
        self._key = KEYS[worker]
        self._socket = data_socket()
        self._items: Iterator[Item] = stream(self._socket)

    def next_batch(self) -> list[tuple[str, Item]]:
        if not select.select([self._socket], [], [], 0)[0]:
            return []
        for item in self._items:
            return [(self._key, item)]
        raise StopIteration


class _Sockets(DynamicSource):
    def build(
        self, step_id: str, worker_index: int, worker_count: int
    ) -> StatelessSourcePartition:
        return _Partition(worker_index)


# Not in the state: bytewax pickles that at the end of each epoch.
_acks = functools.cache(Acks)


def _learn(learner: Learner | None, item: Item) -> tuple[Learner, None]:
    learner = learner or Learner()
    index, x, y = item
    _acks().learned(index, learner.learn(x, y))
    return learner, None


flow = Dataflow("open_loop")
_learned = op.stateful_map("learn", op.input("in", flow, _Sockets()), _learn)
op.output("out", op.filter("none", _learned, lambda _: False), StdOutSink())


if __name__ == "__main__":
    target = "open_loop.bytewax_flow:flow"
    command = [sys.executable, "-m", "bytewax.testing", target, "-p2", "-w1"]
    os.execv(sys.executable, command)
