"""How much of a stream was refused, and when that is to be said."""

from __future__ import annotations

from collections import Counter

from tensair_dask.errors import TensairError

__all__ = ["Refused", "kind_of", "refusal_text", "verdict"]


class Refused:
    """Counts what was refused, and what was not.

    Attributes
    ----------
    batches, records
        Mini-batches that were refused, and records that were before they were part
        of one, by the name of the error.
    kept
        How many of these mini-batches are dead letters. The others were skipped, or
        raised to who feeds the stream, as it was asked for.
    kept_records
        The same of the records.
    sound, samples
        Mini-batches that were learned, or scored where the mode only predicts; and
        records in them.
    first
        The error of the first dead letter.
    """

    def __init__(self) -> None:
        self.batches: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.kept = self.kept_records = 0
        self.sound = self.samples = 0
        self.first: TensairError | None = None
        self._said = 0

    def learned(self, samples: int) -> None:
        """Count a mini-batch that was not refused."""
        self.sound += 1
        self.samples += samples

    def refuse(self, error: TensairError, *, is_batch: bool, is_kept: bool) -> None:
        """Count a mini-batch, or a record, that was."""
        counts = self.batches if is_batch else self.records
        counts[type(error).__name__] += 1
        if is_kept:
            self.kept += is_batch
            self.kept_records += not is_batch
            self.first = self.first or error

    def by_kind(self) -> dict[str, int]:
        """Give how many were refused in all, by the name of the error."""
        return dict(self.batches + self.records)

    def verdict(self) -> str:
        """Say that most was refused; nothing if it was not."""
        text = verdict(self.kept, self.sound, self.kept_records, self.samples)
        return f"{text} The first: {self.first}" if text else ""

    def news(self, at_the_end: bool = False) -> str:
        """Give the verdict, unless it was given, or much the same was.

        Parameters
        ----------
        at_the_end
            Whether there is no later time to give it.
        """
        count = self.kept + self.kept_records
        if count == self._said or (not at_the_end and count < 2 * self._said):
            return ""
        text = self.verdict()
        if text:
            self._said = count
        return text


def verdict(refused: int, sound: int, refused_records: int, samples: int) -> str:
    """Say that nothing was learned of a stream, or less than half of it.

    Parameters
    ----------
    refused, sound
        Mini-batches that were refused, and that were not.
    refused_records, samples
        Records that were refused before they were part of a mini-batch, and those in
        the mini-batches that were not refused.

    Returns
    -------
    text
        Empty if more than half was learned, or nothing was refused.
    """
    counts = []
    if refused > sound:
        counts.append(f"{refused:,} of {refused + sound:,} mini-batches")
    if refused_records > samples:
        counts.append(f"{refused_records:,} of {refused_records + samples:,} records")
    if not counts:
        return ""
    whole = "Nothing was learned" if not sound else "Less than half was learned"
    return (
        f"{whole}: {' and '.join(counts)} were refused. See trainer.dead_letters, and "
        "mend what feeds the stream, or the model and the loss."
    )


def kind_of(error: TensairError) -> str:
    """Name what an error is about: where it tells of another, that one, too."""
    cause = error.__cause__
    name = type(error).__name__
    return name if cause is None else f"{name} of {type(cause).__name__}"


def refusal_text(
    what: str, error: TensairError, where: str = "trainer.dead_letters"
) -> str:
    """Describe the first refusal of a kind: of what, why, and where it is kept."""
    return (
        f"{what} was refused ({type(error).__name__}), and the stream goes on without "
        f"it: {error} Further ones of this kind are only counted; the newest are in "
        f"{where}."
    )
