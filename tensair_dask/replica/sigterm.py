"""SIGTERM closes a worker properly, as a batch system sends it before it kills.

Without a nanny, ``dask worker`` ends at once on SIGTERM, without closing the worker.
With one, the nanny closes its worker; but a batch system sends the signal to all
processes of a job, and the worker's own dies of it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["close_on_sigterm"]


def close_on_sigterm(worker: Any) -> Callable[[], None]:
    """Close the worker on SIGTERM, if its process is its own.

    The second SIGTERM does what the first would have done.

    Parameters
    ----------
    worker
        A Dask worker whose event loop runs here.

    Returns
    -------
    callable
        Puts back what was there before.
    """
    if threading.current_thread() is not threading.main_thread():
        return _nothing
    previous = signal.getsignal(signal.SIGTERM)
    if not (_of_dask(previous) or _of_nanny(worker, previous)):
        return _nothing  # the process of someone else, who decides
    loop = asyncio.get_running_loop()
    closing: set[asyncio.Task[Any]] = set()

    def close() -> None:
        closing.add(asyncio.ensure_future(worker.close(nanny=False, reason="SIGTERM")))

    def handle(number: int, frame: Any) -> None:
        signal.signal(number, previous)
        loop.call_soon_threadsafe(close)

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, previous)

    signal.signal(signal.SIGTERM, handle)
    return restore


def _of_dask(handler: Any) -> bool:
    """Whether ``dask worker`` without a nanny waits for the signal."""
    return getattr(handler, "__module__", None) == "distributed._signals"


def _of_nanny(worker: Any, handler: Any) -> bool:
    """Whether this is a process that a nanny has started for the worker."""
    return (
        worker.nanny is not None
        and multiprocessing.parent_process() is not None
        and handler is signal.SIG_DFL
    )


def _nothing() -> None:
    pass
