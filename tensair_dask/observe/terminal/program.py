"""The loop of ``tensair monitor``: ask, show, wait."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import dask

from tensair_dask._common.interrupts import Interrupts
from tensair_dask._common.program import execute
from tensair_dask._common.scheduler_address import LOOPBACK, SCHEDULER_PORT
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.terminal.remote import RemoteTelemetry
from tensair_dask.observe.terminal.views import View, nobody_reads, view

__all__ = ["find_scheduler", "run"]


def run(
    scheduler: str | None,
    scheduler_file: Path | None = None,
    *,
    as_json: bool = False,
    count: int | None = None,
    interval: float = 1.0,
    debug: bool = False,
) -> int:
    """Show the training of a cluster until Ctrl-C; the exit code.

    Parameters
    ----------
    scheduler, scheduler_file
        As `find_scheduler` has them.
    as_json
        Print one JSON object a line instead of drawing.
    count
        How often; None for no end.
    interval
        Seconds between two.
    debug
        Show tracebacks and logs.
    """

    async def main() -> None:
        address = find_scheduler(scheduler, scheduler_file)
        async with RemoteTelemetry(address) as telemetry:
            with view(as_json) as chosen:
                await _watch(telemetry, chosen, count, interval)

    return execute(main, Interrupts(), debug=debug)


def find_scheduler(address: str | None, file: Path | None = None) -> str:
    """Return where the scheduler is.

    Parameters
    ----------
    address
        As it was given; None for that of the file, else for Dask's own setting
        ``scheduler-address`` (``DASK_SCHEDULER_ADDRESS``), else for the usual port
        on this machine.
    file
        That ``dask scheduler --scheduler-file`` has written.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or names no address.
    """
    if address is not None:
        return address
    if file is not None:
        return _read(file)
    configured = dask.config.get("scheduler-address", None)
    return configured or f"tcp://{LOOPBACK}:{SCHEDULER_PORT}"


def _read(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{file} does not say where a scheduler is ({type(error).__name__}: "
            f"{error}). Give the file that 'dask scheduler --scheduler-file' writes."
        ) from error


async def _watch(
    telemetry: RemoteTelemetry, view: View, count: int | None, interval: float
) -> None:
    loop = asyncio.get_running_loop()
    begun, shown = loop.time(), 0
    while shown != count:
        if shown:
            # On time, also if an answer took long: what is late then is left out.
            passed = loop.time() - begun
            await asyncio.sleep(interval - passed % interval)
        snapshot = await telemetry.read(view.recent)
        try:
            view.show(snapshot)
        except BrokenPipeError:  # `| head` has seen enough
            nobody_reads()
            return
        shown += 1
