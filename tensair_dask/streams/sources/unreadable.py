"""What becomes of records that a source cannot read."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, Unpack

from tensair_dask import config
from tensair_dask.coordinator.dead_letters import Letters
from tensair_dask.coordinator.on_error import check_on_error
from tensair_dask.errors import RecordError
from tensair_dask.streams.sources.kafka_records import Record
from tensair_dask.streams.sources.source import Source, SourceOptions

__all__ = [
    "CarefulOptions",
    "CarefulSource",
    "OnError",
    "PoisonLine",
    "PoisonRecord",
]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip", "dead-letter"]


@dataclass(slots=True)
class PoisonRecord:
    """A record of a topic that could not be parsed.

    Attributes
    ----------
    record
        With its bytes as value.
    error
        Why; its message says where the record is.
    time
        When it was met, in seconds since the epoch.
    """

    record: Record = field(repr=False)
    error: RecordError
    time: float = field(default_factory=time.time)


@dataclass(slots=True)
class PoisonLine:
    """A line of a file that could not be read.

    Attributes
    ----------
    line
        Its bytes, with the newline.
    path
        Of the file.
    offset
        At which byte the line begins; after decompression.
    error
        Why; its message says where the line is.
    time
        When it was met, in seconds since the epoch.
    """

    line: bytes = field(repr=False)
    path: str
    offset: int
    error: RecordError
    time: float = field(default_factory=time.time)


Kind = TypeVar("Kind", PoisonRecord, PoisonLine)


class CarefulOptions(SourceOptions, total=False):
    """Options of sources over records that they may fail to read."""

    name: str | None
    on_error: OnError


class CarefulSource(Source, Generic[Kind]):
    """Base of sources over records that they may fail to read.

    Parameters
    ----------
    default_name
        Its name where it is given none.
    name, **kwargs
        As of `Source`.
    on_error
        What becomes of such a record: "dead-letter" keeps it in `dead_letters`, "skip"
        only counts it, "raise" ends the source.

    Attributes
    ----------
    dead_letters
        The newest records that were kept; its ``total`` counts all. The bound is
        ``tensair.dead-letters``.
    skipped
        Records that were only counted.

    Raises
    ------
    ConfigurationError
        If there is no policy of that name.
    """

    def __init__(
        self,
        default_name: str,
        name: str | None = None,
        on_error: OnError = "dead-letter",
        **kwargs: Unpack[SourceOptions],
    ) -> None:
        self._on_error = check_on_error(on_error)
        super().__init__(name or default_name, **kwargs)
        self.dead_letters: Letters[Kind] = Letters(int(config.get("dead-letters")))
        self.skipped = 0
        self._poisoned = False

    def _meet(self, letter: Kind) -> None:
        """Take a record that cannot be read, on the thread that reads.

        Raises
        ------
        RecordError
            That of the record, if that is the policy.
        """
        if self._on_error == "raise":
            raise letter.error
        if not self._poisoned:
            self._poisoned = True
            logger.warning("%s; the stream goes on", letter.error)
        if self._on_error == "skip":
            self.skipped += 1
        else:
            self.loop.add_callback(self.dead_letters.append, letter)
