"""One registration in a topic, and the views that it gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensair_dask.errors import TrainerClosedError
from tensair_dask.pubsub.pulse import Pulse
from tensair_dask.pubsub.view import Member, View

if TYPE_CHECKING:
    from tensair_dask.pubsub.endpoint import Endpoint

__all__ = ["Participant"]

logger = logging.getLogger(__name__)


class Participant:
    """What a publisher and a subscription have in common.

    All methods run on the event loop of the endpoint.
    """

    role: str

    def __init__(self, endpoint: Endpoint, topic: str, member: str | None) -> None:
        self.endpoint = endpoint
        self.topic = topic
        self.id = endpoint.new_id()
        self.member = member
        # How many begin at the same time.
        self.together = 1
        self.view = View(topic)
        self.on_view: list[Callable[[View], Any]] = []
        self.ready = False
        self.closing = False
        self.closed = False
        self.error: Exception | None = None
        self.pulse = Pulse()
        self.end: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.topic!r} at {self.endpoint.address}>"

    @property
    def identity(self) -> Member:
        """How others see this participant."""
        return Member(self.id, self.endpoint.address, self.member, self.endpoint.kind)

    def see(self, view: View) -> None:
        """Take a view, unless it is old or from before this was registered."""
        if self.closed or view.number <= self.view.number or self.id not in view:
            return
        self.view = view
        self._adopt(view)
        for callback in list(self.on_view):
            self._notify(callback, view)
        self.pulse.beat()

    def _notify(self, callback: Callable[[View], Any], view: View) -> None:
        try:
            callback(view)
        except Exception:
            logger.exception("on_view of %r failed", self)

    def _adopt(self, view: View) -> None:
        raise NotImplementedError

    def renew(self) -> None:
        """Take a new identity, after the scheduler has forgotten the old one."""
        self.id = self.endpoint.new_id()
        self.view = View(self.topic)
        self.ready = False

    def become_ready(self) -> None:
        """Registration is complete."""
        self.ready = True
        self.pulse.beat()

    def fail(self, error: Exception) -> None:
        """Registration has failed for good."""
        self.error = error
        self.shut()

    def check_open(self) -> None:
        """Raise why this cannot be used any more, if so.

        Raises
        ------
        TrainerClosedError
            If it is closed.
        """
        if self.error is not None:
            raise self.error
        if self.closing or self.closed:
            raise TrainerClosedError(
                f"{self!r} is closed: make a new one to go on with the topic"
            )

    async def until(
        self, predicate: Callable[[], bool], timeout: float | None, what: str
    ) -> None:
        """Wait for a predicate on the state of this participant."""

        def holds() -> bool:
            if predicate():
                return True
            self.check_open()
            return False

        self.check_open()
        await self.pulse.until(holds, timeout, f"{self!r}: {what}")

    async def until_ready(self) -> None:
        """Wait until it is registered; the registration itself is bounded in time."""
        await self.until(lambda: self.ready, None, "registered")

    async def close(self, linger: float) -> None:
        """Leave the topic."""
        self.closing = True
        try:
            await self._say_goodbye(linger)
        finally:
            self.shut()
            await self.endpoint.leave(self)

    async def _say_goodbye(self, linger: float) -> None:
        """Do what is to be done before leaving."""

    def shut(self) -> None:
        """End at once everything that waits; the scheduler gets no message."""
        self.closing = self.closed = True
        self.pulse.beat()
