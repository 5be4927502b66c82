"""The working half of `Pub`: one link to each subscriber of the topic."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from tensair_dask import config
from tensair_dask.errors import TensairTimeoutError
from tensair_dask.pubsub.link import Link
from tensair_dask.pubsub.outbox import Outbox
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.participant import Participant
from tensair_dask.pubsub.policies import Block, Policy
from tensair_dask.pubsub.view import View

if TYPE_CHECKING:
    from tensair_dask.pubsub.endpoint import Endpoint

__all__ = ["Publisher"]


class Publisher(Participant):
    """Put messages into the outboxes of all subscribers, and keep the links."""

    role = "publishers"

    def __init__(
        self,
        endpoint: Endpoint,
        topic: str,
        member: str | None,
        policy: Policy | None,
    ) -> None:
        super().__init__(endpoint, topic, member)
        self.policy = Block() if policy is None else policy
        self.retry = config.get_seconds("pubsub.retry")
        self.links: dict[str, Link] = {}
        # Keeps puts of several threads apart, so that every subscriber gets them in
        # the same order. Never held while waiting for room.
        self._putting = threading.Lock()
        # Until the first view it is not known who the subscribers are.
        self._early: Outbox | None = Outbox(self.policy)
        self._boxes: tuple[Outbox, ...] = (self._early,)
        self._ordinal = 0
        self._woken = False

    def put(self, message: Any, wait: bool, deadline: float | None = None) -> None:
        """Put a message into every outbox; from any thread.

        Parameters
        ----------
        message
            Any object.
        wait
            Whether to block this thread until all outboxes have room.
        deadline
            By ``time.monotonic()``.
        """
        parcel = Parcel(message)
        while True:
            with self._putting:
                self.check_open()
                boxes = self._boxes
                full = wait and next((box for box in boxes if not box.has_room), None)
                if not full:
                    self._ordinal += 1
                    self._offer(boxes, parcel)
                    return
            if not full.wait_for_room(deadline):
                raise TensairTimeoutError(
                    f"{self!r}: no room for a message within the time given. "
                    "Take messages faster, allow a larger maxsize, or choose a policy "
                    "that drops or merges: policy=DropOldest(...)"
                )

    def _offer(self, boxes: tuple[Outbox, ...], parcel: Parcel) -> None:
        merged: dict[int, tuple[Parcel, Parcel]] = {}
        errors: list[Exception] = []

        def offer(box: Outbox) -> bool:
            try:
                return box.put(self._ordinal, parcel, merged)
            except Exception as error:
                errors.append(error)
                return True

        # A merge that raises for one subscriber must not keep the message from others.
        asleep = [offer(box) for box in boxes]
        if any(asleep) and not self._woken:
            self._woken = True
            self.endpoint.soon(self._wake)
        if errors:
            raise errors[0]

    def _wake(self) -> None:
        # Cleared first: a put after this schedules another wake-up.
        self._woken = False
        for link in self.links.values():
            link.wake()

    def _adopt(self, view: View) -> None:
        # Known to all: it need not wait for a subscription that registers beside it.
        self.ready = True
        destinations = view.destinations(self.id)
        removed = [link for key, link in self.links.items() if key not in destinations]
        links = {
            key: self.links.get(key) or self._connect(member)
            for key, member in destinations.items()
        }
        self.links = links
        boxes = tuple(link.outbox for link in links.values())
        if self._early is None:
            self._boxes = boxes
        else:
            self._release(self._early, boxes)
        for link in removed:
            link.close()

    def _connect(self, destination: Any) -> Link:
        endpoint = self.endpoint
        return Link(
            destination,
            self.policy,
            endpoint.route(self.identity, destination),
            retry=self.retry,
            changed=self.pulse.beat,
            spawn=endpoint.spawn,
            local=destination.address == endpoint.address,
        )

    def _release(self, early: Outbox, boxes: tuple[Outbox, ...]) -> None:
        """Give what was put before the first view to those who turned out to be there.

        Messages beyond the bound were put without waiting, on the event loop.
        """
        with self._putting:
            for ordinal, parcel in early.hand_over():
                for box in boxes:
                    box.put(ordinal, parcel)
            self._early = None
            self._boxes = boxes
        self._wake()

    def renew(self) -> None:
        """Take a new identity; what the old links hold is lost with them."""
        super().renew()
        for link in self.links.values():
            link.close()
        self.links = {}
        with self._putting:
            self._early = Outbox(self.policy)
            self._boxes = (self._early,)

    async def room(self, timeout: float | None = None) -> None:
        """Wait until every outbox is within its bound again."""
        await self.pulse.until(
            lambda: self.closing or all(box.within_bound for box in self._boxes),
            timeout,
            f"{self!r}: room for a message",
        )

    async def flushed(self, timeout: float | None) -> None:
        """Wait until all that has been put is acknowledged, or its destination gone."""
        mark = self.mark
        await self.until(lambda: self.reached(mark), timeout, "everything acknowledged")

    @property
    def mark(self) -> int:
        """Stands for everything that has been put so far; see `reached`."""
        return self._ordinal

    def reached(self, mark: int) -> bool:
        """Whether all up to a mark is acknowledged, or its destination gone."""
        return all(box.settled(mark) for box in self._boxes)

    async def _say_goodbye(self, linger: float) -> None:
        mark = self.mark
        with contextlib.suppress(TensairTimeoutError):
            await self.pulse.until(
                lambda: self.closed or self.reached(mark), linger, "flushed"
            )

    def shut(self) -> None:
        """End all links; whoever waits for room gets an error."""
        super().shut()
        for link in self.links.values():
            link.close()
        for box in self._boxes:
            box.close()

    def deadline(self, timeout: float | None) -> float | None:
        """Return when a wait that begins now ends."""
        return None if timeout is None else time.monotonic() + timeout
