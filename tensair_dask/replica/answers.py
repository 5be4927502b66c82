"""Answers: what a function that changes a model returns, on its way to who gave it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tensair_dask._wording import in_words
from tensair_dask.exchange.wire import Packed, pack
from tensair_dask.replica.scoring import shapes

__all__ = ["Answer"]

# Bytes of the arrays that travel to the client.
MOST = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What a function has returned, copied.

    Attributes
    ----------
    packed
        Numbers, texts, arrays, in tuples, lists and dicts; None for no answer.
    dropped
        Why there is none although it returned something, in words; else empty.
    idle
        Whether it has changed nothing, and returned nothing.
    """

    packed: Packed | None = None
    dropped: str = ""
    idle: bool = False

    @classmethod
    def of(
        cls,
        value: Any,
        given: Collection[Any],
        to_arrays: Callable[[Any], Any],
    ) -> Answer:
        """Copy what a function returns.

        Parameters
        ----------
        value
            What it returned.
        given
            What it was given: as an answer, which many methods return, these are none.
        to_arrays
            Copies tensors.
        """
        if value is None or any(value is each for each in given):
            return cls()
        try:
            packed = pack(to_arrays(value))
        except Exception as error:
            return cls(dropped=f"{shapes(value)} ({in_words(error)})")
        size = sum(memoryview(frame).nbytes for frame in packed.frames)
        if size > MOST:
            return cls(dropped=f"{shapes(value)}, {size / 2**20:,.0f} MiB")
        # It travels while the model goes on: arrays may be of that.
        frames = [bytearray(frame) for frame in packed.frames]
        return cls(Packed(packed.description, frames))
