"""Where a Dask scheduler is, and whether anybody listens there."""

from __future__ import annotations

import asyncio

__all__ = ["CONNECT_TIMEOUT", "LOOPBACK", "SCHEDULER_PORT", "complete", "reach"]

LOOPBACK = "127.0.0.1"
SCHEDULER_PORT = 8786
CONNECT_TIMEOUT = 5.0  # seconds


def complete(address: str) -> str:
    """Add what Dask leaves out: ``tcp://`` in front, the usual port behind.

    Raises
    ------
    ValueError
        If the port is no number.
    """
    from distributed.comm.addressing import (
        parse_address,
        parse_host_port,
        unparse_address,
        unparse_host_port,
    )

    scheme, location = parse_address(address)
    if scheme not in ("tcp", "tls"):
        return address
    return unparse_address(
        scheme, unparse_host_port(*parse_host_port(location, SCHEDULER_PORT))
    )


async def reach(address: str) -> None:
    """Raise OSError at once where nobody listens; Dask would go on asking there."""
    from distributed.comm.addressing import parse_address, parse_host_port

    scheme, location = parse_address(address)
    if scheme in ("tcp", "tls"):
        host, port = parse_host_port(location, SCHEDULER_PORT)
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
