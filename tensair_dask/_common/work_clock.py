"""A clock that stands still while a thread waits for a CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["open_work_clock", "work_time"]

# Of a thread: nanoseconds on a CPU, nanoseconds in which it waited for one, and how
# often it got one (the kernel's Documentation/scheduler/sched-stats.rst).
_FILE = "/proc/thread-self/schedstat"

# Its ``file`` is the number of the open file of this thread.
_opened = threading.local()


def work_time() -> float:
    """Seconds of this thread, less those in which it could run, and had no CPU.

    Unlike ``time.thread_time`` it goes on while the thread sleeps, or waits for a GPU;
    unlike ``time.monotonic`` it does not run faster than the work where other processes
    take the CPU. So bounds and budgets that are made of it do not shrink there, which
    would cost more CPU where there is less.

    Returns
    -------
    seconds
        On a clock of this thread: compare it only with others of the same thread. Right
        but for one wait for a CPU, milliseconds, if that falls into the reading. Where
        the system does not tell how long a thread has waited (no Linux), the monotonic
        clock.
    """
    try:
        waited = os.pread(_opened.file, 64, 0)
    except AttributeError:
        waited = _read()
    return time.monotonic() - (1e-9 * int(waited.split()[1]) if waited else 0.0)


def _read() -> bytes:
    try:
        with open(_FILE, "rb", buffering=0) as file:
            return file.read(64)
    except OSError:
        return b""


@contextmanager
def open_work_clock() -> Iterator[None]:
    """Keep the clock of this thread open meanwhile: so it is several times as fast."""
    try:
        file = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    _opened.file = file
    try:
        yield
    finally:
        del _opened.file
        os.close(file)
