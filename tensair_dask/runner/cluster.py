"""The cluster of a run: one of its own on this machine, or that of a scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from tensair_dask._common.scheduler_address import CONNECT_TIMEOUT, LOOPBACK, reach
from tensair_dask.errors import ConfigurationError, SchedulerLostError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["joined", "own_cluster"]

DASHBOARD_PORT = 8787


@contextlib.asynccontextmanager
async def own_cluster(workers: int, logs: int) -> AsyncIterator[Client]:
    """Start a cluster on this machine.

    Parameters
    ----------
    workers
        How many: processes of one thread.
    logs
        Level from which on logs are shown.
    """
    from distributed import Client, LocalCluster

    async with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:{_dashboard_port()}",
            worker_dashboard_address=f"{LOOPBACK}:0",
            # What goes wrong comes back as an error; logs would tear the line.
            silence_logs=logs,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def joined(scheduler: str) -> AsyncIterator[Client]:
    """Join the cluster of a scheduler.

    Raises
    ------
    SchedulerLostError
        If no scheduler answers at the address.
    ConfigurationError
        If it wants TLS and no certificate is configured.
    """
    from distributed import Client

    _check_certificate(scheduler)
    client = None
    try:
        await reach(scheduler)
        client = Client(scheduler, asynchronous=True, timeout=CONNECT_TIMEOUT)
        # Its own timeout is for connecting, not for the first answer.
        async with asyncio.timeout(2 * CONNECT_TIMEOUT):
            await _opened(client)
    except (TimeoutError, OSError, ValueError) as error:
        if client is not None:
            with contextlib.suppress(TimeoutError, OSError, ValueError):
                await client.close(timeout=1)
        raise SchedulerLostError(
            f"No scheduler answers at {scheduler}. Start one with "
            "'dask scheduler' and give the address that it prints, for example "
            "--scheduler tcp://127.0.0.1:8786 (with TLS it begins with tls://); or "
            "leave --scheduler out."
        ) from error
    async with client:
        yield client


def _check_certificate(scheduler: str) -> None:
    """Raise ConfigurationError if TLS is wanted and Dask has no certificate."""
    from distributed.security import Security

    configured = Security().get_connection_args("client")
    if scheduler.startswith("tls://") and configured.get("ssl_context") is None:
        raise ConfigurationError(
            f"{scheduler} cannot be joined without a certificate: tls:// needs "
            "distributed.comm.tls in Dask's configuration (ca-file, client.cert and "
            "client.key), as Dask's own clients do."
        )


async def _opened(client: Client) -> Client:
    return await client


def _dashboard_port() -> int:
    """Dask's usual port if it is free, else 0 for any: no warning then."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, DASHBOARD_PORT))
        except OSError:
            return 0
    return DASHBOARD_PORT
