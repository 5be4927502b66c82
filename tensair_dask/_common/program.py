"""Run a coroutine as a command: Ctrl-C, errors in one line, exit codes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import click

from tensair_dask._common.interrupts import Interrupts
from tensair_dask.errors import TensairError

__all__ = ["FAILED", "execute"]

FAILED = 1


def execute(
    main: Callable[[], Awaitable[None]],
    interrupts: Interrupts,
    *,
    debug: bool = False,
    interrupted: Callable[[], None] = lambda: None,
) -> int:
    """Run to the end; the exit code.

    Parameters
    ----------
    main
        What is run.
    interrupts
        Which signals have come; they cancel what is run.
    debug
        Whether errors are raised, with their traceback, and logs are shown.
    interrupted
        Called if a signal has ended it.

    Returns
    -------
    code
        0; 1 if it failed, with the error in one line; 130 after Ctrl-C.
    """

    async def supervised() -> None:
        with interrupts.handled():
            await main()

    if not debug:
        # They tell at length of what Ctrl-C has cut short, of what comes back as an
        # error, and of replicas that are lost, for which a run has a line of its own.
        silent = ["asyncio", "distributed", "tornado.application"]
        for name in [*silent, "tensair_dask.coordinator.dispatcher"]:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    try:
        asyncio.run(supervised())
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted()
        return interrupts.exit_code
    except Exception as error:
        if debug:
            raise
        if interrupts.cancelled:
            # Dask raises errors of its own where its closing is asked for too early.
            interrupted()
            return interrupts.exit_code
        line = " ".join(str(error).split())
        if not isinstance(error, TensairError):
            line = f"{type(error).__name__}: {line} (--debug shows where)"
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {line}", err=True)
        return FAILED
    return 0 if interrupts.received is None else interrupts.exit_code
