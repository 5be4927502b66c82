"""The client's half: tells the scheduler, once a second, what only the client knows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from distributed.protocol.pickle import dumps

from tensair_dask._wording import in_words

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)

# Seconds: between two messages, and how long an answer may take.
INTERVAL = 1.0
PATIENCE = 5.0

_NO_PAGES = (
    "Training is not shown on Dask's dashboard: %s. Training itself is not affected."
)


class Reporter:
    """Makes a trainer known to the scheduler and keeps it informed.

    Training never waits for it, and goes on if it fails: that is logged once.

    Parameters
    ----------
    client
        Of the trainer.
    plugin
        The scheduler plugin to register, and its name.
    about
        What `Telemetry.open` takes: run id, name, client, metrics, target.
    state
        Called for what `Telemetry.update` takes.

    Attributes
    ----------
    page
        Path of the pages on Dask's dashboard; None if there are none.
    """

    def __init__(
        self,
        client: Any,
        plugin: tuple[str, Any],
        about: dict[str, Any],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self.page: str | None = None
        self._client = client
        self._plugin = plugin
        self._about = about
        self._state = state
        self.reporting: asyncio.Task[None] | None = None
        self._begun = False
        self._known = False
        self._has_given_up = False

    async def open(self) -> None:
        """Register the plugin and the trainer; say why if there are no pages."""
        self._begun = True
        with self._tolerated():
            await _soon(self._open())
        self.reporting = asyncio.ensure_future(self._report_regularly())

    async def _open(self) -> None:
        name, plugin = self._plugin
        scheduler = self._client.scheduler
        refusal: Exception | None = None
        try:
            await scheduler.register_scheduler_plugin(
                plugin=dumps(plugin), name=name, idempotent=True
            )
        except OSError:
            raise
        except Exception as error:  # it takes none from clients: preloaded, perhaps
            refusal = error
        answer = await scheduler.tensair_telemetry_open(**self._about)
        if answer is None:
            raise refusal or LookupError(
                f"the scheduler's plugin {name!r} is not tensair's"
            )
        self.page = answer["page"]
        self._known = answer["known"]
        if not self._known:
            self._off(answer["reason"])
        elif self.page is None:
            logger.warning(_NO_PAGES, answer["reason"])

    async def _report_regularly(self) -> None:
        while not (self._has_given_up or self._client_is_closed):
            with self._tolerated():
                await _soon(self.report())
            await asyncio.sleep(INTERVAL)

    async def report(self) -> None:
        """Report the state of the trainer."""
        if not self._known:  # the scheduler did not answer when we opened
            await self._open()
        known = await self._client.scheduler.tensair_telemetry_tell(
            run_id=self._about["run_id"], told=self._state()
        )
        if known is False:  # the plugin is another one than we opened at
            self._known = False
        elif known is None:
            raise LookupError(f"the scheduler has no plugin {self._plugin[0]!r}")

    async def close(self, replicas: dict[str, Any]) -> None:
        """Report that the trainer is closed.

        Parameters
        ----------
        replicas
            See `Telemetry.close`.
        """
        begun, self._begun = self._begun, False
        if self.reporting is not None:
            self.reporting.cancel()
            self.reporting = None
        if begun and not (self._has_given_up or self._client_is_closed):
            with self._tolerated():
                await _soon(self._close(replicas))

    async def _close(self, replicas: dict[str, Any]) -> None:
        await self.report()
        await self._client.scheduler.tensair_telemetry_close(
            run_id=self._about["run_id"], replicas=replicas
        )

    @property
    def _client_is_closed(self) -> bool:
        return self._client.status in ("closed", "closing")

    @contextlib.contextmanager
    def _tolerated(self) -> Any:
        try:
            yield
        except (TimeoutError, OSError) as error:
            logger.debug(
                "The scheduler did not get the state of the trainer: %r", error
            )
        except Exception as error:
            self._off(in_words(error))

    def _off(self, reason: str) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            logger.warning(_NO_PAGES, reason)


async def _soon(answer: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await answer
