"""Ctrl-C for a program that starts worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

__all__ = ["Interrupts", "kept_from_children"]


class Interrupts:
    """Turn Ctrl-C into an orderly end of one asyncio task.

    The first signal calls what `stopping` has set, if anything, and else cancels the
    task; the second cancels the task if the first has not; the third ends the process
    on the spot.

    Attributes
    ----------
    received
        The first signal; None as long as there was none.
    cancelled
        Whether the task was cancelled: what it raises then is the fault of that.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._task: asyncio.Task[object] | None = None
        self._stop: Callable[[], object] | None = None
        self.cancelled = False
        self._count = 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM for the current task."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        handled = []
        for number in (signal.SIGINT, signal.SIGTERM):
            # Without such handlers (Windows, threads) Python raises KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self.receive, number)
                handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Let the first signal call ``stop`` in this block."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None

    def receive(self, number: signal.Signals) -> None:
        """Act on one signal."""
        self._count += 1
        self.received = self.received or number
        if self._count == 1 and self._stop is not None:
            self._stop()
        elif self._count > 2:
            # Dask's workers leave when the process that started them is gone.
            os._exit(self.exit_code)
        elif not self.cancelled and self._task is not None:
            self.cancelled = True
            self._task.cancel()

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal has ended."""
        return 128 + (self.received or signal.SIGINT)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started in this block.

    A terminal sends SIGINT to every process of the foreground group. The workers would
    die of it, each with a traceback, before the program that started them could take
    leave of them. Where there are no signal masks, this does nothing.
    """
    if (
        not hasattr(signal, "pthread_sigmask")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    # It unblocks SIGINT in the thread that happens to start it: before us, then.
    resource_tracker.ensure_running()
    # Children inherit the mask of the thread that starts them, so this thread and all
    # that it starts block SIGINT. One thread does not: the kernel delivers it there,
    # and Python then runs its handlers in the main thread as ever.
    done = threading.Event()
    receiver = threading.Thread(target=done.wait, name="Ctrl-C", daemon=True)
    receiver.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()
        receiver.join()
