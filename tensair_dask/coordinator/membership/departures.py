"""Hearing: replicas say that they leave, in one topic for all trainers of a client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

from distributed import Client

from tensair_dask.replica.worker_departures import LEAVING_TOPIC

__all__ = ["Hearing"]

_hearings: WeakKeyDictionary[Client, Hearing] = WeakKeyDictionary()


class Hearing:
    """Passes on to each trainer of a client what its replicas say.

    In one topic, not one for each run: Dask's scheduler and client keep what belongs to
    a topic for as long as they live. And weakly, so that a trainer which is forgotten
    without being closed is not held.

    Belongs to the client's event loop.
    """

    def __init__(self, client: Client) -> None:
        self._runs: dict[str, WeakMethod[Callable[[str], None]]] = {}
        client.subscribe_topic(LEAVING_TOPIC, self._hear)

    @classmethod
    def begin(cls, client: Client, run_id: str, leaves: Callable[[str], None]) -> None:
        """Call a method with the name of each replica of a run that leaves."""
        hearing = _hearings.get(client)
        if hearing is None:
            hearing = _hearings[client] = cls(client)
        hearing._runs[run_id] = WeakMethod(leaves)

    @classmethod
    def end(cls, client: Client, run_id: str) -> None:
        """Hear nothing more of a run, if anything was heard."""
        hearing = _hearings.get(client)
        if hearing is None:
            return
        hearing._runs.pop(run_id, None)
        if not hearing._runs:
            del _hearings[client]
            with contextlib.suppress(Exception):  # the client is closed
                client.unsubscribe_topic(LEAVING_TOPIC)

    def _hear(self, event: Any) -> None:
        _, (run_id, name) = event
        method = self._runs.get(run_id)
        leaves = None if method is None else method()
        if leaves is not None:
            leaves(name)
