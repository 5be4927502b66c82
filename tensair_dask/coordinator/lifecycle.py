"""Whether a trainer takes work, and how a call gets to its event loop."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from distributed import Client

from tensair_dask._common.loops import is_awaited
from tensair_dask.coordinator.replica_group import closed_error
from tensair_dask.errors import EventLoopError, RaisedError, SchedulerLostError

__all__ = ["Lifecycle"]


class Lifecycle:
    """The state of a trainer: new, open or closed; and the way to its event loop.

    Parameters
    ----------
    client
        Of the trainer. All that the trainer does is done on the client's event loop.
    start
        Starts the trainer, and sets the state.

    Attributes
    ----------
    state
        ``"new"``, ``"open"`` or ``"closed"``.
    """

    def __init__(self, client: Client, start: Callable[[], Awaitable[Any]]) -> None:
        self.client = client
        self.state = "new"
        self._start = start

    @property
    def client_is_closed(self) -> bool:
        """Whether the cluster cannot be reached any more."""
        return self.client.status in ("closed", "closing")

    async def ready(self) -> None:
        """Start the trainer if nobody has.

        Raises
        ------
        TrainerClosedError, SchedulerLostError
            If the trainer is closed, or its client is.
        """
        if self.state == "new":
            await self._start()
        if self.state != "open":
            raise closed_error()
        if self.client_is_closed:
            raise _client_closed()

    def sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Call a coroutine function: wait for it, or give an awaitable.

        The latter where the client is asynchronous, or in a coroutine on its loop.

        Raises
        ------
        EventLoopError
            If the call would wait for the event loop that it holds up.
        SchedulerLostError
            If the client is closed.
        """
        client = self.client
        if self.client_is_closed and not client.asynchronous:
            raise _client_closed()
        # A coroutine of the client's loop may await it. A plain function there would
        # get a coroutine in the place of the answer, and wait for nothing.
        on_its_loop = client.asynchronous and not client._asynchronous
        if on_its_loop and not is_awaited(_caller()):
            raise EventLoopError(
                "A method of the trainer was called in a plain function that runs on "
                "the event loop of its client, as those in the sink or map of a stream "
                "do: it would wait for the loop that it holds up. Await it in a "
                "coroutine, async def use(report): ... await "
                "trainer.evaluate(batches), with .sink(use); or call it in another "
                "thread."
            )
        return client.sync(_contained, function, *args)

    def look(self, function: Callable[[], Any]) -> Any:
        """Call a function on the client's event loop, and give what it returns."""
        if self.client.asynchronous or self.client_is_closed:
            return function()

        async def look() -> Any:
            return function()

        return self.client.sync(look)

    def soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the client's event loop; from any thread."""
        if not self.client_is_closed:
            self.client.loop.add_callback(function, *args)


def _client_closed() -> SchedulerLostError:
    return SchedulerLostError(
        "The Dask client is closed, so the trainer cannot reach the cluster. Keep "
        "the client open as long as the trainer."
    )


async def _contained(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Let what user code raises in a call be raised by the call, and end no loop.

    It runs there to make items: those of a generator, or ``__array__`` of one.
    """
    try:
        return await function(*args)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise RaisedError.caught(error) from error.__cause__


# Between who calls a method and what it does.
_BETWEEN = (
    __name__,
    "tensair_dask.trainer",
    "tensair_dask._common.other_libraries",
    "tensair_dask.coordinator.session",
    "tensair_dask.streams.node",
    "tensair_dask.streams.train_node",
)


def _caller() -> FrameType | None:
    """Give the frame from which one of the trainer's methods was called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"] in _BETWEEN:
        frame = frame.f_back
    return frame
