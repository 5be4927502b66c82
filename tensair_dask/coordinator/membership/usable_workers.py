"""Usable workers: on which workers a replica may be started just now."""

from __future__ import annotations

import logging
import time

from distributed import Client

from tensair_dask import config
from tensair_dask._common.notices import Notices
from tensair_dask.coordinator.run_events import RunEvents

__all__ = ["UsableWorkers"]

logger = logging.getLogger(__name__)


class UsableWorkers:
    """Knows the workers that there are, and avoids some of them for a while.

    Parameters
    ----------
    client
        Of the trainer.
    events
        Gets an event that says why none can be started.

    Attributes
    ----------
    reason
        Why none could be started on the worker that was avoided last; empty if none
        was.
    avoided
        Workers on which no replica could be started, or that go; and since when, on
        the monotonic clock.
    why
        What was said of them.
    """

    def __init__(self, client: Client, events: RunEvents) -> None:
        self.reason = ""
        self._events = events
        self._notices = Notices()
        self.avoided: dict[str, float] = {}
        self.why: dict[str, str] = {}
        self._client = client

    async def there(self) -> list[str]:
        """Give the addresses of all workers, be they usable or not."""
        return list(await self._client.scheduler.ncores())

    async def paused(self) -> list[str]:
        """Give those that begin nothing for now, since they have much in memory."""
        running = await self._client.scheduler.ncores_running()
        return [each for each in await self.there() if each not in running]

    async def usable(self) -> list[str]:
        """Give the addresses of those on which a replica may be started."""
        addresses = await self._client.scheduler.ncores_running()
        now = time.monotonic()
        pause = config.get_seconds("replicas.retry")
        self.avoided = {k: t for k, t in self.avoided.items() if now - t < pause}
        self.why = {k: why for k, why in self.why.items() if k in self.avoided}
        return [address for address in addresses if address not in self.avoided]

    def avoid(self, address: str, why: str = "its replica has left") -> None:
        """Start none on a worker for ``tensair.replicas.retry``."""
        self.avoided[address] = time.monotonic()
        self.why[address] = why

    def blame(
        self,
        address: str,
        error: BaseException,
        message: str = "No replica could be started on %s: %s",
    ) -> None:
        """Avoid a worker on which something failed: it may lack memory just now."""
        self.reason = " ".join((str(error) or repr(error)).split())
        self.avoid(address, self.reason)
        logger.warning(message, address, self.reason)
        if self._notices.say(self.reason, self.reason):
            self._events.note("note", message % (address, self.reason))
