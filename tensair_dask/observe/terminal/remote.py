"""RemoteTelemetry: what a scheduler knows of its trainers, read from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urljoin

from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.security import Security
from distributed.utils import format_dashboard_link

from tensair_dask import config
from tensair_dask._common.scheduler_address import CONNECT_TIMEOUT, complete, reach
from tensair_dask.errors import (
    ClusterError,
    ConfigurationError,
    PackageMissingError,
    SchedulerLostError,
)
from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard

__all__ = ["RemoteTelemetry"]

Answer = TypeVar("Answer")

# Seconds to connect again to a scheduler that has answered before.
_AGAIN = 2.0


class RemoteTelemetry:
    """Reads the telemetry of a scheduler; an asynchronous context manager.

    No Dask client: it would count as one, and a monitor is none. TLS as
    `distributed.comm.tls` is configured.

    Parameters
    ----------
    address
        Of the scheduler; scheme and port may be left out.

    Raises
    ------
    ConfigurationError
        If that is no address of a scheduler.
    SchedulerLostError
        If it does not answer, when it is entered or later.
    PackageMissingError
        If it has no tensair_dask.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        self._scheduler: Any = None
        self._link: str | None = None
        self._patience = config.get_seconds("timeouts.monitor")

    async def __aenter__(self) -> RemoteTelemetry:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _open(self) -> None:
        about = await self._connect()
        if about["type"] in ("Worker", "Nanny"):
            raise ConfigurationError(
                f"{self.address} is the address of a Dask {about['type'].lower()}. "
                "Give that of its scheduler, as 'dask scheduler' prints it."
            )
        self._link = _link(self.address, about.get("services", {}).get("dashboard"))
        await self._install()

    async def _connect(self) -> dict[str, Any]:
        """Connect, and ask who is there."""
        try:
            await reach(self.address)
        except (TimeoutError, OSError) as error:
            raise SchedulerLostError(
                f"No scheduler answers at {self.address}. Start one with 'dask "
                "scheduler' and give the address that it prints, for example: "
                "tensair monitor tcp://127.0.0.1:8786"
            ) from error
        try:
            self._scheduler = rpc(
                self.address,
                timeout=CONNECT_TIMEOUT,
                connection_args=Security().get_connection_args("client"),
            )
            async with asyncio.timeout(self._patience):
                about = await self._scheduler.identity()
            self._scheduler.timeout = _AGAIN
            return about
        except (TimeoutError, OSError) as error:
            raise SchedulerLostError(
                f"Something listens at {self.address}, but does not answer as a Dask "
                "scheduler. Give the address that 'dask scheduler' prints; with TLS it "
                "begins with tls://."
            ) from error
        except Exception as error:  # of TLS above all: Dask raises many kinds
            raise ConfigurationError(
                f"{self.address} cannot be connected to: {error}. Give an address such "
                "as tcp://127.0.0.1:8786; tls:// needs distributed.comm.tls in Dask's "
                "configuration, as Dask's own clients do."
            ) from error

    async def _install(self) -> None:
        """Register the plugin that keeps the telemetry, as every trainer does."""
        try:
            await self._answer(
                self._scheduler.register_scheduler_plugin(
                    plugin=dumps(TrainingDashboard()), name=NAME, idempotent=True
                )
            )
        except ImportError as error:
            raise PackageMissingError(
                f"The scheduler at {self.address} cannot import what it needs: "
                f"{error}. Install tensair_dask there, in the version that is here: "
                "pip install tensair-dask."
            ) from error
        except ValueError:
            # Dask may be configured to take no plugins from elsewhere; a preload of
            # the scheduler's own may have brought it.
            if await self._ask() is None:
                raise ClusterError(
                    f"The scheduler at {self.address} takes no plugins. Start it with "
                    "--preload tensair_dask.preload."
                ) from None

    async def read(self, recent: Sequence[str] = ()) -> dict[str, Any]:
        """Everything that the scheduler tells, and where its dashboard is.

        Parameters
        ----------
        recent
            As `Telemetry.read` has it.
        """
        snapshot = await self._ask(recent)
        if snapshot is None:  # somebody has taken the plugin away
            await self._install()
            snapshot = await self._ask(recent)
        if snapshot is None:
            raise ClusterError(
                f"The scheduler at {self.address} has no tensair-dashboard plugin any "
                "more. Let whoever unregisters it leave it there."
            )
        page = snapshot.pop("page", None)
        link = self._link
        if link is not None and page is not None:
            link = urljoin(link, page.lstrip("/"))
        return {"scheduler": self.address, "dashboard": link, **snapshot}

    async def _ask(self, recent: Sequence[str] = ()) -> dict[str, Any] | None:
        asked = self._scheduler.tensair_telemetry_read(recent=list(recent))
        return await self._answer(asked)

    async def _answer(self, asked: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._patience):
                return await asked
        except TimeoutError:
            raise SchedulerLostError(
                f"The scheduler at {self.address} has not answered for "
                f"{self._patience:g} s. If it is only busy, wait longer: "
                "DASK_TENSAIR__TIMEOUTS__MONITOR=60s."
            ) from None
        except OSError as error:
            raise SchedulerLostError(
                f"The scheduler at {self.address} has gone away."
            ) from error

    async def _close(self) -> None:
        if self._scheduler is not None:
            await self._scheduler.close_rpc()


def _checked(address: str) -> str:
    if address.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{address} was given, which looks like a dashboard. Give the address of "
            "the scheduler, for example tcp://127.0.0.1:8786."
        )
    try:
        return complete(address)
    except ValueError as error:
        raise ConfigurationError(
            f"{address!r} is no address of a scheduler ({error}). Give one such as "
            "tcp://127.0.0.1:8786."
        ) from error


def _link(address: str, port: int | None) -> str | None:
    """Where the dashboard is, as Dask's configuration says."""
    from distributed.comm.addressing import get_address_host

    if port is None:
        return None
    host = get_address_host(address)
    host = f"[{host}]" if ":" in host else host
    try:
        return str(format_dashboard_link(host, port))
    except KeyError:  # the template names a variable that is not set here
        return f"http://{host}:{port}/status"
