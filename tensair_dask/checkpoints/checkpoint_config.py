"""Where a trainer writes checkpoints, how often, and which it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from os import PathLike
from typing import Any

from tensair_dask._common.checks import allow, flag, shown
from tensair_dask.checkpoints.store import Store
from tensair_dask.errors import ConfigurationError

__all__ = ["CheckpointConfig", "Every", "Path"]

Path = str | PathLike[str]
Every = int | float | str | timedelta


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a trainer writes checkpoints, how often, and which it goes on from.

    Parameters
    ----------
    to
        Folder for checkpoints, on any file system that fsspec knows, the newest of
        which are kept. If there are some already, it must go on from there; see
        `Trainer.restore`. Records are then let go of by their sources (a Kafka offset
        is committed) when a checkpoint holds them, not when they are learned.
    every
        How often: a whole number of mini-batches, or a time such as ``"10s"``. None:
        only when `Trainer.save` is called, and at the end.
    keep
        How many of the newest are kept; None for ``tensair.checkpoints.keep``.
    scores
        By name, what scores the stream beside the trainer, such as `Prequential`
        objects: their state is in the checkpoints.
    restore, or_begin
        See `Trainer.restore`.

    Raises
    ------
    ConfigurationError
        If a value is not allowed, or has no effect without another.
    """

    to: Path | None = None
    every: Every | None = None
    keep: int | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    restore: Path | None = None
    or_begin: bool = False

    def __post_init__(self) -> None:
        if flag("or_begin", self.or_begin) and self.restore is None:
            raise ConfigurationError(
                "or_begin=True was given without restore=, which has no effect: give "
                "both, as Trainer.restore(path, client, or_begin=True, ...) does."
            )
        if self.every is not None and self.to is None:
            raise ConfigurationError(
                f"checkpoint_every={shown(self.every)} was given without "
                "checkpoint_to=, so there is no place for checkpoints: give both, for "
                "example checkpoint_to='checkpoints', checkpoint_every='10s', or "
                "CheckpointConfig(to='checkpoints', every='10s')."
            )
        _check_scores(self.scores)
        object.__setattr__(self, "scores", dict(self.scores or {}))

    def store(self) -> Store | None:
        """Open the folder; None if there is none."""
        return None if self.to is None else Store(self.to, self.keep)


def _check_scores(scores: Any) -> None:
    allow(
        scores is None or isinstance(scores, Mapping),
        f"scores={shown(scores)}",
        "give a dict of names, for example scores={'online': Prequential(...)}",
    )
    for name, each in (scores or {}).items():
        allow(
            isinstance(name, str)
            and all(
                callable(getattr(each, method, None))
                for method in ("state_dict", "load_state_dict")
            ),
            f"scores={{{shown(name)}: {shown(each)}}}",
            "the names are texts, and checkpoints take what has state_dict and "
            "load_state_dict, as Prequential has",
        )
