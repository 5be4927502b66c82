"""Held: an object that is kept alive until it is let go of, and then found if alive."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

__all__ = ["Held"]

T = TypeVar("T")


class Held(Generic[T]):
    """Refers to an object, strongly at first.

    streamz keeps sinks for as long as Python lives, and these the nodes before them. A
    node that went on to hold a trainer after its end would keep all that it remembers.

    Attributes
    ----------
    value
        The object, until it is let go of; then None.
    """

    def __init__(self, held: T) -> None:
        self.value: T | None = held
        self._reference = weakref.ref(held)

    def __call__(self) -> T | None:
        """Give it; None if it was let go of, and nobody else held it."""
        return self._reference()

    def let_go(self) -> None:
        """Hold it no longer than others do."""
        self.value = None
