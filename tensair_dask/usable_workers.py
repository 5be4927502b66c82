"""Usable workers: on which workers a replica may be started just now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from distributed import Client

from tensair_dask import config
from tensair_dask.notices import Notices

__all__ = ["UsableWorkers"]

logger = logging.getLogger(__name__)


class UsableWorkers:
    """Knows the workers that there are, and avoids some of them for a while.

    Parameters
    ----------
    client
        Of the trainer.
    note
        Called with kind and text of what is to be told once.

    Attributes
    ----------
    reason
        Why none could be started on the worker that was avoided last; empty if none
        was.
    avoided
        Workers on which no replica could be started, or that go; and since when, on
        the monotonic clock.
    """

    def __init__(
        self, client: Client, note: Callable[..., Any] = lambda *_: None
    ) -> None:
        self.reason = ""
        self._note = note
        self._notices = Notices()
        self.avoided: dict[str, float] = {}
        self._client = client

    async def there(self) -> list[str]:
        """Give the addresses of all workers, be they usable or not."""
        return list(await self._client.scheduler.ncores())

    async def usable(self) -> list[str]:
        """Give the addresses of those on which a replica may be started."""
        addresses = await self.there()
        now = time.monotonic()
        pause = config.get_seconds("replicas.retry")
        self.avoided = {k: t for k, t in self.avoided.items() if now - t < pause}
        return [address for address in addresses if address not in self.avoided]

    def avoid(self, address: str) -> None:
        """Start none on a worker for ``tensair.replicas.retry``."""
        self.avoided[address] = time.monotonic()

    def blame(
        self,
        address: str,
        error: BaseException,
        message: str = "No replica could be started on %s: %s",
    ) -> None:
        """Avoid a worker on which something failed: it may lack memory just now."""
        self.avoid(address)
        self.reason = " ".join((str(error) or repr(error)).split())
        logger.warning(message, address, self.reason)
        if self._notices.say(self.reason, self.reason):
            self._note("note", message % (address, self.reason))

    def why(self) -> str:
        """Say why workers are avoided, in a sentence and a space; empty if none is."""
        if not self.avoided or not self.reason:
            return ""
        return f"Others are avoided for a while, the last one since: {self.reason} "
