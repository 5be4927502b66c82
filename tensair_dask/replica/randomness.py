"""The random generators of a process: of torch, of numpy, and Python's own.

All threads share them, and several replicas may live in one process, each on a thread
of its own. What one draws while another builds its model would move the generator on,
and ``seed=`` would build another model each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch

__all__ = ["Drawing", "seed_training", "seeded", "this_process"]

logger = logging.getLogger(__name__)

# Seconds that a step waits for a factory in the same process, and a factory for steps:
# one that loads a file for minutes, or never ends, does not hold up the others. The
# seed may then not hold, which is logged.
LIMIT = 10.0

_token = uuid.uuid4().hex
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

    def end(self) -> None:
        """Take note that its thread draws no more."""
        with _register:
            _all.discard(self)


def this_process() -> str:
    """Tell this process from all others, on whatever machine."""
    return f"{_token}-{os.getpid()}"  # a fork has the token of its parent


def seed_training(seed: int, replica: str, drawing: Drawing, client: str) -> bool:
    """Begin the random numbers of training, such as those of dropout.

    Each replica draws others, and the same each time. But not where several draw from
    the generator of a process, in an order that nobody knows; and not in the process of
    the client, whose generator is the user's.

    Parameters
    ----------
    seed
        Of the trainer.
    replica
        Its name in the run.
    drawing
        Of the replica.
    client
        `this_process` of the client.

    Returns
    -------
    is_seeded
        Whether it did.
    """
    with _register:
        alone = all(each is drawing for each in _all)
    if not alone or client == this_process():
        return False
    digest = hashlib.blake2b(f"{seed} {replica}".encode(), digest_size=8).digest()
    _seed(int.from_bytes(digest, "big") >> 1)
    return True


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    with suppress(TypeError):  # a user has put another bit generator in its place
        np.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what this seed gives, while no replica in the process draws anything.

    The generators are put back afterwards. Factories run one after the other, which
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
        held.callback(np.random.set_state, np.random.get_state())
        held.callback(random.setstate, random.getstate())
        _seed(seed)
        yield
