"""Make one process of several as slow as on a slower machine, without using a CPU."""

from __future__ import annotations

import threading
import time
from typing import Any

from torch import nn

__all__ = ["slow_down"]


class _Wait:
    """Sleeps for a multiple of the CPU that its thread has used since the last time."""

    def __init__(self, more: float) -> None:
        self._more = more
        self._thread = -1
        self._used = 0.0

    def __call__(self, *_: Any) -> None:
        """Sleep; the first call of a thread has nothing to go by."""
        thread = threading.get_ident()
        if thread == self._thread:
            time.sleep(self._more * (time.thread_time() - self._used))
        self._thread, self._used = thread, time.thread_time()


def slow_down(model: nn.Module, factor: float) -> nn.Module:
    """Let whoever trains the model take ``factor`` times as long.

    Before each forward pass its thread sleeps ``factor - 1`` times the CPU that it used
    since the one before: for the whole step, so for the backward pass, the optimizer
    and what of the exchange runs on that thread as well. The sleep needs no CPU, as a
    slow machine would need none of the others. What other threads of the process do,
    such as sending and receiving, is not slowed.

    Parameters
    ----------
    model
        Gets a hook; its parameters keep their names.
    factor
        From 1, which changes nothing.
    """
    if factor > 1:
        model.register_forward_pre_hook(_Wait(factor - 1))
    return model
