"""Ctrl-C is for the program at the terminal, not for the workers that it has started.

A terminal sends it to every process of the foreground group. A worker would end with a
traceback, before the program that started it could take leave of it.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import Any

__all__ = ["ignore_sigint"]


def ignore_sigint(worker: Any) -> None:
    """Ignore Ctrl-C for good, if a nanny has started this process for the worker.

    The nanny gets it as well, and ends the worker as it sees fit; the process ends by
    itself when the nanny's is gone.

    Parameters
    ----------
    worker
        A Dask worker whose event loop runs here.
    """
    if (
        worker.nanny is not None
        and multiprocessing.parent_process() is not None
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
