"""Unclosed: what becomes of a trainer that is open when its client, or all, ends.

A script that ends, and a client that closes, end the replicas: what waits is not
learned, and no last checkpoint is written. Nobody asks the trainer then, so it listens.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from typing import Any

from distributed import Client

__all__ = ["Unclosed"]

_all: weakref.WeakSet[Unclosed] = weakref.WeakSet()


class Unclosed:
    """Calls a method of a trainer when client or program end before it is closed.

    Parameters
    ----------
    client
        Of Dask. Its periodic callbacks, as which this is listed there, are stopped when
        it closes, before it says so to the scheduler; there is no other hook for it.
    name
        Under which it is listed, which no other has.
    on_end
        A bound method, called once with what has ended, in words, on any thread. It is
        held weakly.
    """

    def __init__(self, client: Client, name: str, on_end: Callable[[str], Any]) -> None:
        self._on_end = weakref.WeakMethod(on_end)
        self._name = name
        self._callbacks = getattr(client, "_periodic_callbacks", {})
        self._callbacks[name] = self
        _all.add(self)

    def start(self) -> None:
        """Do nothing: the client starts what it will stop."""

    def stop(self) -> None:
        """Take note that the client closes."""
        self._ended("its Dask client closed")

    def end(self) -> None:
        """Listen no longer: the trainer has been closed."""
        _all.discard(self)
        self._callbacks.pop(self._name, None)

    def _ended(self, what: str) -> None:
        if self not in _all:
            return
        _all.discard(self)  # the client may be gone through by now: it stays listed
        if (on_end := self._on_end()) is not None:
            on_end(what)


@atexit.register  # after those of distributed, and so called before they close clusters
def _at_exit() -> None:
    for each in list(_all):
        each._ended("the program ended")
