"""Usable workers: on which workers a replica may be started just now."""

from __future__ import annotations

import logging
import time

from distributed import Client

from tensair_dask import config

__all__ = ["UsableWorkers"]

logger = logging.getLogger(__name__)


class UsableWorkers:
    """Knows the workers that there are, and avoids some of them for a while.

    Parameters
    ----------
    client
        Of the trainer.

    Attributes
    ----------
    avoided
        Workers on which no replica could be started, or that go; and since when, on
        the monotonic clock.
    """

    def __init__(self, client: Client) -> None:
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
        logger.warning(message, address, error or repr(error))
