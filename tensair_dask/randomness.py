"""The random generator of torch, which all threads of a process share.

Several replicas may live in one process, each on a thread of its own. What one draws
while another builds its model would move the generator on, and ``seed=`` would build
another model each time.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["Drawing", "seeded"]

logger = logging.getLogger(__name__)

# Seconds that a step waits for a factory in the same process, and a factory for steps:
# one that loads a file for minutes, or never ends, does not hold up the others. The
# seed may then not hold, which is logged.
LIMIT = 10.0

_one = threading.Lock()
_register = threading.Lock()
_all: weakref.WeakSet[Drawing] = weakref.WeakSet()


class Drawing:
    """A context in which a thread may draw random numbers, as others may.

    Nobody sets a seed meanwhile. It costs 0.3 µs. Belongs to one thread.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        with _register:
            _all.add(self)

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            self._wait()

    def _wait(self) -> None:
        if self._lock.acquire(timeout=LIMIT):
            return
        logger.warning(
            "A step did not wait longer than %g s for a model factory in the same "
            "process; that may draw other random numbers than its seed gives",
            LIMIT,
        )
        self._lock = threading.Lock()  # the other one is the factory's
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what this seed gives, while no replica in the process draws anything.

    The generator is put back afterwards. Factories run one after the other, which
    `torch.jit.script` needs, too.
    """
    with ExitStack() as held:
        held.enter_context(_one)
        deadline = time.monotonic() + LIMIT
        with _register:
            locks = [each._lock for each in _all]
        for lock in locks:
            if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                held.callback(lock.release)
            else:
                logger.warning(
                    "A model factory did not wait longer than %g s for a step in the "
                    "same process; it may draw other random numbers than its seed "
                    "gives",
                    LIMIT,
                )
        held.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)
        yield
