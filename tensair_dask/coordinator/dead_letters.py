"""Dead letters: mini-batches and records that were refused, kept with their errors."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tensair_dask.errors import RaisedError, TensairError

__all__ = ["DeadLetter", "DeadLetters", "Letters"]

logger = logging.getLogger(__name__)

Letter = TypeVar("Letter")


@dataclass(slots=True)
class DeadLetter:
    """One refused mini-batch, or record.

    Attributes
    ----------
    index
        Its number in order of submission, as in its report; -1 for a record that
        `try_map` refused, before it was part of a mini-batch, and for what was only to
        be predicted.
    item
        What was given: ``(x, y)`` or the item of the stream.
    error
        Why it was refused.
    replica
        Address of the worker that refused it; empty if the client did.
    time
        Seconds since the epoch.
    positions
        Where it was in its sources: what they put under ``"mark"`` in the ``metadata``
        of the stream, as they gave it.
    """

    index: int
    item: Any = field(repr=False)
    error: TensairError
    replica: str
    time: float
    positions: tuple[Any, ...] = ()


class Letters(Generic[Letter]):
    """The newest of what was refused; iterate, index, or ask for the length.

    The bound is ``tensair.dead-letters`` in the configuration. `total` counts all, also
    what a stream with ``on_error="skip"`` or ``"raise"`` did not keep here.
    """

    def __init__(self, maxlen: int) -> None:
        self._letters: deque[Letter] = deque(maxlen=maxlen)
        self._listeners: list[Callable[[Letter], Any]] = []
        self.total = 0

    def append(self, letter: Letter) -> None:
        """Keep a letter and tell the listeners."""
        self.total += 1
        self._letters.append(letter)
        for listener in list(self._listeners):
            try:
                listener(letter)
            except BaseException as error:
                logger.error(
                    "A listener raised; the stream goes on",
                    exc_info=RaisedError.unless_fit(RaisedError.caught(error)),
                )

    def pass_over(self) -> None:
        """Count what was refused, and is not kept here."""
        self.total += 1

    def subscribe(self, listener: Callable[[Letter], Any]) -> Callable[[], None]:
        """Call ``listener(letter)`` for each new letter, on the client's event loop.

        Returns
        -------
        unsubscribe
            Call it to end the subscription.
        """
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def __len__(self) -> int:
        return len(self._letters)

    def __iter__(self) -> Iterator[Letter]:
        return iter(list(self._letters))

    def __getitem__(self, position: int) -> Letter:
        return self._letters[position]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} kept of {self.total}>"


class DeadLetters(Letters[DeadLetter]):
    """The newest refused mini-batches."""
