"""Continuation: where a run goes on, and what the next one goes on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamz import Stream

from tensair_dask._wording import in_words
from tensair_dask.checkpoints import Checkpoint, FileCall, Store
from tensair_dask.errors import CheckpointError, CheckpointMissingError
from tensair_dask.streams.sources.positions import Mark, Tracker
from tensair_dask.streams.sources.source import Reference

if TYPE_CHECKING:
    from tensair_dask.reports import Report

__all__ = ["Continuation", "counted"]

# The position of a run is one number; a checkpoint keeps it by these names.
SOURCE, PARTITION = "mini-batches", "all"

# What a trainer is given to keep in its checkpoints.
RUN = "run"


class Continuation:
    """Where a run goes on, and what the next one goes on from.

    The mini-batches of a stream are numbered from 0, across all runs over it. Those
    that a run begins behind are all learned. What is kept beside the model is put back
    to where that was, so that every record counts once.

    Parameters
    ----------
    folder
        For the checkpoints, on any file system that fsspec knows; None for none: then
        the stream is only counted.
    every
        How often; see `Trainer`.

    Attributes
    ----------
    begins
        Mini-batches that the checkpoint holds.
    again
        Of those that come next, how many its model may hold as well, at most: they
        were under way when it was taken, and are learned twice.
    path
        Of the checkpoint that the run goes on from; empty if it begins anew.

    Notes
    -----
    Belongs to one trainer. Call `open` before that is made.
    """

    def __init__(self, folder: str | None = None, every: int | str = "10s") -> None:
        self._folder = folder
        self._every = every
        self._options: dict[str, Any] = {}
        self._checkpoint: Checkpoint | None = None
        self._first = 0
        self._kept: dict[str, Any] = {}
        self._tracker = Tracker(SOURCE)
        self._next = 0
        self.begins = 0
        self.again = 0
        self.path = ""

    async def open(self, name: str, **options: Any) -> None:
        """Read the newest checkpoint of the folder, if there is one.

        Parameters
        ----------
        name
            Of the trainer.
        **options
            What must be the same from run to run.

        Raises
        ------
        CheckpointError
            If the folder cannot be used, or its checkpoint is of another run.
        """
        self._options = options
        if self._folder is None:
            return
        store = Store(self._folder)
        await FileCall("write", store.path, store.check).result()
        reading = FileCall("read", store.path, store.load)
        try:
            checkpoint, self.path = await reading.result()
        except CheckpointMissingError:
            return
        self._compare(checkpoint, name)
        self._checkpoint = checkpoint
        self._first = checkpoint.index
        self.again = checkpoint.again
        # Not there, if the run was ended before its first mini-batch.
        reached = checkpoint.positions.get(SOURCE, {})
        self.begins = self._next = reached.get(PARTITION, 0)
        self._tracker.begin(PARTITION, self.begins)

    def _compare(self, checkpoint: Checkpoint, name: str) -> None:
        if checkpoint.name != name or RUN not in checkpoint.scores:
            raise CheckpointError(
                f"{self.path} is a checkpoint of {checkpoint.name!r}, and this is a "
                f"run of {name!r}. Give a folder that this pipeline has written to, or "
                "an empty one."
            )
        made_with = checkpoint.scores[RUN]["options"]
        for option, value in self._options.items():
            if made_with.get(option) != value:
                raise CheckpointError(
                    f"{self.path} was written by a run with "
                    f"{_named(option, made_with)}, and this one has "
                    f"{_named(option, self._options)}. Give the same, or "
                    "an empty folder."
                )

    @property
    def positions(self) -> dict[str, dict[str, int]] | None:
        """Where sources with positions of their own continue; None for their start."""
        return None if self._checkpoint is None else self._checkpoint.positions

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of a `Trainer` that saves, and goes on."""
        if self._folder is None:
            return {}
        return {
            "checkpoint_to": self._folder,
            "checkpoint_every": self._every,
            "restore": self.path or None,
            "scores": {RUN: self},
        }

    def keep(self, name: str, thing: Any) -> None:
        """Have something in the checkpoints, and put it to where the run goes on.

        Parameters
        ----------
        name
            In the checkpoints.
        thing
            Has ``state_dict`` and ``load_state_dict``. If it has ``rewind``, that is
            called with the number of mini-batches that are not to come again.

        Raises
        ------
        CheckpointError
            If what the checkpoint holds does not fit.
        """
        self._kept[name] = thing
        if self._checkpoint is None:
            return
        try:
            thing.load_state_dict(self._checkpoint.scores[RUN]["kept"][name])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} does not hold {name} as this pipeline keeps it "
                f"({in_words(error)}). Give an empty folder, or the "
                "program that has written it."
            ) from error
        if hasattr(thing, "rewind"):
            thing.rewind(self.begins)

    # ---- the stream -----------------------------------------------------------------

    def mark(self) -> Mark:
        """Number the next mini-batch."""
        self._next += 1
        return self._tracker.emitted(PARTITION, self._next - 1, self._next)

    def number(self, index: int) -> int:
        """Number in the stream of what the trainer has given an index.

        The trainer counts what is learned again, the stream does not.
        """
        return index - self._first + self.begins

    def numbered(self, report: Report) -> Report:
        """Give a report the number in the stream for its index."""
        number = self.number(report.index)
        if number == report.index:
            return report
        return dataclasses.replace(report, index=number)

    # ---- in the checkpoints ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copy what is kept, and what must be the same."""
        kept = {name: each.state_dict() for name, each in self._kept.items()}
        return {"options": dict(self._options), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is left to do: `keep` has put everything back."""


def _named(option: str, options: Mapping[str, Any]) -> str:
    name = option.replace("_", " ")
    return f"{name} {options[option]!r}" if option in options else f"no {name}"


@Stream.register_api()
class counted(Stream):
    """Number the mini-batches of a stream, so that a checkpoint tells which it holds.

    Parameters
    ----------
    upstream
        Gives mini-batches; put ``train`` right behind.
    continuation
        Numbers them.
    """

    def __init__(
        self, upstream: Stream, continuation: Continuation, **kwargs: Any
    ) -> None:
        super().__init__(upstream, **kwargs)
        self._continuation = continuation

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Pass it on with its mark."""
        mark = self._continuation.mark()
        reference = Reference(mark)
        own = {"ref": reference, "mark": mark}
        passing = self._emit(x, metadata=[*(metadata or []), own])
        reference.release()  # what is downstream holds it by now
        return passing
