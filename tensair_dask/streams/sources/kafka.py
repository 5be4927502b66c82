"""A source over topics of Kafka, which commits what has been learned."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Literal, Unpack

from streamz import Stream

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask.errors import ConfigurationError, SourceError
from tensair_dask.streams.sources.kafka_options import KafkaOptions
from tensair_dask.streams.sources.kafka_reader import Reader
from tensair_dask.streams.sources.kafka_records import (
    Gathering,
    Parcel,
    partition_key,
)
from tensair_dask.streams.sources.positions import named
from tensair_dask.streams.sources.thread_queue import Handover
from tensair_dask.streams.sources.unreadable import (
    CarefulOptions,
    CarefulSource,
    PoisonRecord,
)

__all__ = ["from_kafka_records"]

logger = logging.getLogger(__name__)


@Stream.register_api(staticmethod)
class from_kafka_records(CarefulSource[PoisonRecord]):
    """Emit the records of topics; commit those that were learned.

    Parameters
    ----------
    topics
        One name or several. With a group, a name that begins with ``^`` is a pattern.
    consumer
        Settings of librdkafka: ``{"bootstrap.servers": "...", "group.id": "..."}`` and
        what security needs. Without ``group.id`` nothing is committed, and
        ``partitions`` has to be given. With ``auto.offset.reset`` a partition begins
        there that has no position ("earliest" if it is not given), and librdkafka goes
        there when the records at a position were deleted; else that is an error.
    parse
        ``parse(value: bytes)``, by default ``json.loads``; None leaves the bytes. Runs
        on the source's thread. Nothing is ever unpickled.
    chunk
        Emit lists of so many records, which ``map(collate).train(trainer)`` learns as
        they are: the fast way. None emits single records.
    linger
        How long records wait for a chunk to be full; by default
        ``tensair.sources.linger``.
    partitions
        Numbers of the partitions to read, of each topic, or "all": at once, without
        joining the group. None joins the group, which shares out the partitions.
    follow
        Whether to wait for more at the end of the topics; else the source ends there.
    on_error
        What becomes of a record that ``parse`` raises for: "dead-letter" keeps it in
        `dead_letters`, "skip" only counts it, "raise" ends the source. In the first two
        cases it counts as done.
    name
        In checkpoints; by default the topics. Give each a name of its own where one
        trainer learns from several sources over the same topics.
    positions
        Where to continue: what a checkpoint keeps, ``{name: {"flights:0": 500}}``.
    commit_every
        How often to commit; by default ``tensair.sources.commit``.
    buffer
        Records that may wait to be emitted; by default ``tensair.sources.buffer``.
    start
        Whether to start at once.
    **kwargs
        As of `Source`.

    Attributes
    ----------
    dead_letters
        The newest records that could not be parsed, `PoisonRecord`; its ``total``
        counts all. The bound is ``tensair.dead-letters``.
    skipped
        Records that were left out with ``on_error="skip"``.

    Raises
    ------
    ConfigurationError
        If an argument cannot be used. At `ended`: if librdkafka refuses a setting.
    SourceError
        At `ended`: no broker can be reached within ``tensair.sources.connect``; there
        is no such topic or partition; records were deleted before they were read; the
        broker refuses the source.
    RecordError
        At `ended`: a record could not be parsed, and ``on_error="raise"``.

    Notes
    -----
    *At least once.* An offset is committed when its record, and all before it in its
    partition, are released: when their gradients are applied, and with checkpoints when
    one holds them. A restart begins at ``positions``, else at what was committed, and
    so reads again what the restored model has not seen; nothing is left out, and some
    records may be learned twice.

    *Positions win.* A partition that has a position begins there when it is first
    assigned, whatever is committed, be that less or more: the model is as old as its
    checkpoint. When it is assigned again later, it begins at what was committed.

    *Rebalancing.* Of a partition that is taken away, what is released is committed;
    records that wait to be emitted are dropped, those under way are learned here and
    perhaps by the next owner, too.

    *Back-pressure.* While the stream has no room, at most ``buffer`` records wait, the
    partitions are paused, and the thread goes on polling, so that the group does not
    take it for dead.

    The source commits until it is closed: call `close` after ``trainer.drain()``.
    """

    def __init__(
        self,
        topics: str | list[str],
        consumer: dict[str, Any],
        parse: Callable[[bytes], Any] | None = json.loads,
        chunk: int | None = None,
        linger: str | float | None = None,
        partitions: list[int] | Literal["all"] | None = None,
        follow: bool = True,
        commit_every: str | float | None = None,
        buffer: int | None = None,
        **kwargs: Unpack[CarefulOptions],
    ) -> None:
        options = KafkaOptions(
            _names(topics),
            consumer,
            partitions,
            parse,
            follow,
            config.get_seconds("sources.commit", commit_every),
        )
        if chunk is not None:
            chunk = whole("chunk", chunk, 1, 64, otherwise="None for single records")
        buffer = whole("buffer", config.get("sources.buffer", buffer), 1, 4000)
        linger = config.get_seconds("sources.linger", linger)
        start = kwargs.pop("start", False)
        super().__init__(",".join(options.topics), **kwargs)
        self._note_unknown(options.topics)
        self._single = chunk is None
        self._hand = Handover(buffer)
        self.reader = Reader(
            options,
            self._positions,
            self.tracker,
            self._hand,
            Gathering(self.tracker, chunk or 1, linger),
            self._meet,
        )
        if start:
            self.start()

    def start(self) -> None:
        """Begin to emit; after `stop`, go on where it was stopped.

        Raises
        ------
        SourceError
            If it was closed.
        """
        if self.reader.closing.is_set():
            raise SourceError(f"{self.name} was closed; make a new source.")
        super().start()

    def _note_unknown(self, topics: list[str]) -> None:
        """Say which positions are of topics that are not read."""
        if any(each.startswith("^") for each in topics):  # an expression
            return
        unknown = [
            each for each in self._positions if each.rpartition(":")[0] not in topics
        ]
        if unknown:
            self._note(
                f"positions= of {self.name} has {named(unknown)}, which are not used: "
                f"it reads {named(topics)}. A partition is 'topic:number'."
            )

    async def _run(self) -> None:
        if not self.reader.begun and not self._stopping:
            self._hand.open()
            self.reader.begin()
        while not self._stopping:
            parcel = self._hand.take()
            if parcel is not None:
                await self._emit_parcel(parcel)
            elif self._hand.over:
                return
            else:
                await self._hand.moved()

    def _why_nothing(self) -> str:
        return (
            "no record lies between where it began (positions=, else what was "
            "committed) and the end that the topic had then. follow=True waits for "
            "more; to read what has come since, close it, and make another source."
        )

    async def _emit_parcel(self, parcel: Parcel) -> None:
        records, marks = parcel
        lost = {mark.partition for mark in marks if mark.dropped}
        if lost:
            records = [
                each
                for each in records
                if partition_key(each.topic, each.partition) not in lost
            ]
            marks = [mark for mark in marks if mark.partition not in lost]
        if records:
            await self._pass_on(records[0] if self._single else records, marks)

    def _wake(self) -> None:
        super()._wake()
        self._hand.wake()

    async def _let_go(self, timeout: float) -> None:
        self.reader.close()
        if not self.reader.begun:
            return
        gone = asyncio.wrap_future(self.reader.gone)
        done, _ = await asyncio.wait({gone}, timeout=timeout)
        if not done:
            logger.warning(
                "%s has not taken leave of its broker within %g s; what was learned "
                "since the last commit will be read again",
                self.name,
                timeout,
            )


def _names(topics: Any) -> list[str]:
    names = [topics] if isinstance(topics, str) else topics
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(isinstance(each, str) and each for each in names)
    ):
        raise ConfigurationError(
            f"topics={topics!r} was given; the name of a topic is needed, or a list."
        )
    return list(names)
