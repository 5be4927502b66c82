"""What a message costs, as `scaling.py` measured it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scale_out.figures import Figures

__all__ = ["Costs", "Line", "fitted"]


@dataclass(frozen=True)
class Line:
    """CPU seconds that grow with the size."""

    fixed: float
    per_mb: float

    def __call__(self, mb: float) -> float:
        """Return the seconds that a message of this size takes."""
        return self.fixed + self.per_mb * mb


@dataclass(frozen=True)
class Costs:
    """CPU of a message between two replicas.

    Attributes
    ----------
    loop
        Of the event loops, both ends together, with the acknowledgement.
    thread
        Of the thread that trains, for each message that it applies. Its part that grows
        with the size is what one addition takes.
    """

    loop: Line
    thread: Line

    @property
    def end(self) -> Line:
        """Of the event loop at one end: as much to receive as to send."""
        return Line(self.loop.fixed / 2, self.loop.per_mb / 2)


def fitted(measured: Iterable[Figures], transport: str) -> Costs:
    """Draw lines through what models of two sizes cost, where the machine had room.

    Raises
    ------
    ValueError
        If there are not two sizes.
    """
    rows = [
        each
        for each in measured
        if each.transport == transport and each.delivered and not each.full
    ]
    if len({row.gradient_bytes for row in rows}) < 2:
        raise ValueError(f"{transport}: models of two sizes are needed, at 2 replicas.")
    return Costs(
        loop=_line(rows, [row.exchange_loop for row in rows]),
        thread=_line(rows, [row.exchange_threads for row in rows]),
    )


def _line(rows: list[Figures], cpu: list[float]) -> Line:
    """Fit CPU = messages * fixed + MB * per_mb, where the largest count no more."""
    messages = np.array([row.delivered for row in rows])
    mb = np.array([row.received_bytes / 1e6 for row in rows])
    weights = 1 / (messages * np.sqrt(mb / messages))
    terms = np.stack([messages, mb], axis=1) * weights[:, None]
    fixed, per_mb = np.linalg.lstsq(terms, np.array(cpu) * weights, rcond=None)[0]
    return Line(max(0.0, float(fixed)), max(0.0, float(per_mb)))
