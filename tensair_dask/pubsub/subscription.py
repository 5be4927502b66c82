"""The working half of `Sub`: an inlet and a bounded queue, or a handler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask.errors import ConfigurationError
from tensair_dask.pubsub.inlet import Inlet
from tensair_dask.pubsub.participant import Participant
from tensair_dask.pubsub.pulse import Pulse
from tensair_dask.pubsub.view import Member, View

if TYPE_CHECKING:
    from tensair_dask.pubsub.endpoint import Endpoint

__all__ = ["Handler", "Subscription"]

Handler = Callable[[Any, Member], Any]


class Subscription(Participant):
    """Hold messages until somebody gets them; a full queue delays acknowledgements."""

    role = "subscribers"

    def __init__(
        self,
        endpoint: Endpoint,
        topic: str,
        member: str | None,
        handler: Handler | None,
        maxsize: int | None,
        sealed: bool = False,
    ) -> None:
        super().__init__(endpoint, topic, member)
        self.handler = handler
        if maxsize is not None:
            whole("maxsize", maxsize, 1, 1000)
        self.maxsize = config.get("pubsub.queue", maxsize)
        self.queue: deque[Any] = deque()
        self.inlet = Inlet(
            self._enqueue if handler is None else self._hand_over,
            endpoint.spawn,
            sealed,
        )
        self._room = Pulse()
        self._waiting_for_room = 0

    def _adopt(self, view: View) -> None:
        self.inlet.see(view.publishers)

    def _hand_over(self, message: Any, sender: Member) -> Awaitable[Any] | None:
        assert self.handler is not None
        result = self.handler(message, sender)
        if isinstance(result, concurrent.futures.Future):
            return asyncio.wrap_future(result)
        return result if isinstance(result, Awaitable) else None

    def _enqueue(self, message: Any, sender: Member) -> Awaitable[None] | None:
        if len(self.queue) >= self.maxsize:
            return self._enqueue_later(message)
        self._append(message)
        return None

    async def _enqueue_later(self, message: Any) -> None:
        # Counted before looking: a thread that takes a message after our look sees
        # that somebody waits.
        self._waiting_for_room += 1
        try:
            await self._room.until(
                lambda: len(self.queue) < self.maxsize, None, "room in the queue"
            )
            self._append(message)
        finally:
            self._waiting_for_room -= 1

    def _append(self, message: Any) -> None:
        self.queue.append(message)
        self.pulse.beat()

    def take(self) -> Any:
        """Return the next message; from any thread.

        Raises
        ------
        IndexError
            If there is none.
        """
        message = self.queue.popleft()
        if self._waiting_for_room:
            self.endpoint.soon(self._room.beat)
        return message

    def check_queue(self) -> None:
        """Raise if messages go to a handler instead of a queue.

        Raises
        ------
        ConfigurationError
            If there is a handler.
        """
        if self.handler is not None:
            raise ConfigurationError(
                f"{self!r} gives its messages to {self.handler!r}: get() would never "
                "return. Leave out handler= to get them one by one"
            )

    async def get(self, timeout: float | None) -> Any:
        """Wait for a message."""
        self.check_open()
        taken: list[Any] = []

        def take() -> bool:
            # Another thread may take the message first.
            with contextlib.suppress(IndexError):
                taken.append(self.take())
            return bool(taken)

        await self.until(take, timeout, "a message")
        return taken[0]

    def shut(self) -> None:
        """Refuse messages; whoever waits for one gets an error: this is closed."""
        super().shut()
        self.inlet.close()
        self.queue.clear()
