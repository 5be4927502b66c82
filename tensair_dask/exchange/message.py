"""The gradient message: what one replica publishes to its peers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tensair_dask.exchange.compression import Encodings
from tensair_dask.exchange.gradients import Gradients

__all__ = ["GradientMessage"]


@dataclass(slots=True)
class GradientMessage:
    """The sum of one origin's gradients (or updates) over a range of its steps.

    Attributes
    ----------
    run_id
        Run of the trainer; a replica refuses messages of another run.
    origin
        Name of the replica that computed the gradients.
    first, last
        The range of the origin's steps that is summed up, both included, from 1. A
        message that only carries what compression had left out has no steps: its
        last is one below its first.
    samples
        Rows of all mini-batches in the range.
    taken
        Mini-batches that had been sent to the origin and it had dealt with, learned or
        not, by the last of these steps: which ones live on in its peers' models.
    clock
        The origin's vector clock when it began the first of these steps: the oldest
        gradient decides the staleness of the message.
    oldest
        When the first of these gradients was computed, on the monotonic clock of the
        origin's process. Translated to an age on the way, because clocks of two
        machines cannot be compared.
    content
        The sum: plain, or compressed. Several compressed ones stand for their sum,
        as long as together they are smaller than it.
    token
        Given by the client to each replica of the run, and to nobody else: the run id
        is in the name of the topic, where others read it.
    """

    run_id: str
    origin: str
    first: int
    last: int
    samples: int
    taken: int
    clock: dict[str, int]
    oldest: float
    content: Gradients | tuple[Encodings, ...]
    token: str = ""

    def merge(self, later: GradientMessage) -> GradientMessage:
        """Sum this message with the one that follows it (lossless conflation).

        Raises
        ------
        ValueError
            If ``later`` does not follow this message without a gap.
        """
        if later.origin != self.origin or later.first != self.last + 1:
            raise ValueError(
                f"A message of {later.origin!r} with steps {later.first} to "
                f"{later.last} does not follow one of {self.origin!r} with steps "
                f"{self.first} to {self.last}."
            )
        return replace(
            self,
            last=later.last,
            samples=self.samples + later.samples,
            taken=later.taken,
            content=_sum(self, later),
        )

    @property
    def gradients(self) -> Gradients:
        """The sum, decoded."""
        if isinstance(self.content, Gradients):
            return self.content
        total, *others = (encodings.decode() for encodings in self.content)
        for other in others:
            total = total + other
        return total

    @property
    def nbytes(self) -> int:
        """Bytes of the content on the wire."""
        if isinstance(self.content, Gradients):
            return self.content.nbytes
        return sum(encodings.nbytes for encodings in self.content)


def _sum(
    earlier: GradientMessage, later: GradientMessage
) -> Gradients | tuple[Encodings, ...]:
    """Sum two messages without rounding again: side by side while that is smaller."""
    one, two = earlier.content, later.content
    if isinstance(one, tuple) and isinstance(two, tuple):
        both = one + two
        plain = max(encodings.decoded_nbytes for encodings in both)
        if sum(encodings.nbytes for encodings in both) < plain:
            return both
    return earlier.gradients + later.gradients
