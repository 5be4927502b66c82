"""A source over topics of Kafka, which commits what has been learned."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Literal

from streamz import Stream

from tensair_dask import config
from tensair_dask._common.checks import is_whole, whole
from tensair_dask._wording import in_words
from tensair_dask.errors import (
    ConfigurationError,
    RaisedError,
    RecordError,
    SourceError,
    TensairError,
)
from tensair_dask.streams.sources.kafka_records import (
    Gathering,
    Parcel,
    Record,
    partition_key,
)
from tensair_dask.streams.sources.positions import Positions, Tracker, named
from tensair_dask.streams.sources.thread_queue import Handover
from tensair_dask.streams.sources.unreadable import CarefulSource, OnError, PoisonRecord

__all__ = ["from_kafka_records"]

logger = logging.getLogger(__name__)

# What the source sets itself, and why nobody else may.
OWN_SETTINGS = {
    "enable.auto.commit": "it commits what was learned, not what was read",
    "enable.partition.eof": "it has to know where a topic ends",
    "error_cb": "its errors come out at ended()",
    "on_commit": "commits that fail are logged and made again",
}

# Seconds that one call of librdkafka may take, and that the thread waits for room
# before it pauses the partitions to stay in the group.
POLL = 0.1
PATIENCE = 0.5
# Seconds in which the same trouble is logged once.
SILENCE = 10.0
# Records that are read at once.
FETCH = 500


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
        on_error: OnError = "dead-letter",
        name: str | None = None,
        positions: Positions | None = None,
        commit_every: str | float | None = None,
        buffer: int | None = None,
        start: bool = False,
        **kwargs: Any,
    ) -> None:
        names = _names(topics)
        _check_settings(consumer)
        _check_partitions(partitions, names, consumer)
        if chunk is not None:
            chunk = whole("chunk", chunk, 1, 64, otherwise="None for single records")
        buffer = whole("buffer", config.get("sources.buffer", buffer), 1, 4000)
        if parse is not None and not callable(parse):
            raise ConfigurationError(
                f"parse={parse!r} was given; a function of the bytes of a record is "
                "needed, or None to leave them."
            )
        super().__init__(name or ",".join(names), positions, on_error, **kwargs)
        self._note_unknown(names)
        self._single = chunk is None
        self._hand = Handover(buffer)
        self.reader = _Reader(
            names,
            consumer,
            partitions=partitions,
            positions=self._positions,
            tracker=self.tracker,
            hand=self._hand,
            gathering=Gathering(
                self.tracker, chunk or 1, config.get_seconds("sources.linger", linger)
            ),
            parse=parse,
            poison=self._meet,
            follow=follow,
            commit_every=config.get_seconds("sources.commit", commit_every),
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


class _Reader:
    """The consumer, on a thread of its own: reads, parses, commits."""

    def __init__(
        self,
        topics: list[str],
        settings: dict[str, Any],
        *,
        partitions: list[int] | Literal["all"] | None,
        positions: dict[str, int],
        tracker: Tracker,
        hand: Handover,
        gathering: Gathering,
        parse: Callable[[bytes], Any] | None,
        poison: Callable[[PoisonRecord], None],
        follow: bool,
        commit_every: float,
    ) -> None:
        self._library = _library()
        self._topics = topics
        self._partitions = partitions
        self._positions = dict(positions)
        self._tracker = tracker
        self._hand = hand
        self._gathering = gathering
        self._parse = parse
        self._poison = poison
        self._follow = follow
        self._commit_every = commit_every
        self._commits = "group.id" in settings
        self._servers = settings["bootstrap.servers"]
        self._reset = settings.get("auto.offset.reset", "earliest")
        self._settings = {
            "group.id": f"tensair-{tracker.name}",  # librdkafka asks for one
            "auto.offset.reset": "error",
            **settings,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "error_cb": self._warned,
            "on_commit": self._committed_or_not,
            "log_level": 2,  # what matters comes to _warned, and from there to the log
        }
        self._connect = config.get_seconds("sources.connect")
        # By the key of each partition that is ours: the next offset to come, and what
        # was committed.
        self._next: dict[str, int] = {}
        self._committed: dict[str, int] = {}
        self._at_end: set[str] = set()
        self._paused = False
        self._leaving = False
        self._commit_due = 0.0
        self._last_error: Any = None
        self._told_at: dict[int, float] = {}
        self._consumer: Any = None
        self.begun = False
        self.closing = threading.Event()
        self.gone: Future[None] = Future()

    def begin(self) -> None:
        """Start the thread."""
        self.begun = True
        threading.Thread(
            target=self._work, name=f"tensair-kafka-{self._tracker.name}", daemon=True
        ).start()

    def close(self) -> None:
        """Let the thread commit, leave and end."""
        self.closing.set()

    # ---- the thread -----------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._consumer = self._made()
            try:
                self._join()
                self._read()
                self._stay()
            except Exception as error:
                self._hand.finish(self._told(error))
                self._stay()
            finally:
                self._leave()
        except Exception as error:
            self._hand.finish(self._told(error))
        finally:
            self._hand.finish()
            self.gone.set_result(None)

    def _made(self) -> Any:
        try:
            return self._library.Consumer(self._settings)
        except self._library.KafkaException as error:
            raise ConfigurationError(
                f"librdkafka refuses the settings of {self._tracker.name}: "
                f"{error.args[0].str()}. Allowed are those of its CONFIGURATION.md; "
                "correct consumer=."
            ) from error

    def _told(self, error: Exception) -> TensairError:
        if isinstance(error, TensairError):
            return error
        told = SourceError(
            f"{self._tracker.name} cannot be read at {self._servers}: {error}"
        )
        told.__cause__ = error
        return told

    def _stay(self) -> None:
        """Read nothing more, but commit what is released until the source is closed."""
        self._hand.finish()
        while self._next and not self.closing.is_set():
            self._pause()
            self._consumer.poll(POLL)
            self._commit_when_due()

    def _leave(self) -> None:
        self._leaving = True
        try:
            self._commit(wait=True)
            self._consumer.close()
        except Exception as error:
            logger.warning("%s has not left properly: %s", self._tracker.name, error)

    def _join(self) -> None:
        known = {}
        for topic in self._topics:
            if not topic.startswith("^"):
                known[topic] = self._described(topic)
        if self._partitions is None:
            self._consumer.subscribe(
                self._topics,
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
            return
        chosen = []
        for topic, there in known.items():
            wanted = sorted(there) if self._partitions == "all" else self._partitions
            for number in wanted:
                if number not in there:
                    raise SourceError(
                        f"Topic {topic} has no partition {number}; it has "
                        f"{sorted(there)}."
                    )
                chosen.append(self._library.TopicPartition(topic, number))
        self._assigned(self._consumer, chosen)

    def _described(self, topic: str) -> Iterable[int]:
        """Reach the brokers, and see what partitions a topic has."""
        try:
            described = self._consumer.list_topics(topic, timeout=self._connect)
        except self._library.KafkaException as error:
            self._consumer.poll(0)  # lets librdkafka tell why
            reason = self._last_error or error.args[0]
            raise SourceError(
                f"No broker answers at {self._servers} within {self._connect:g} s: "
                f"{reason.str()}. Start one or give its address as "
                "'bootstrap.servers'; raise tensair.sources.connect if it is slow."
            ) from error
        found = described.topics[topic]
        if found.error is not None:
            raise SourceError(
                f"Topic {topic} cannot be read at {self._servers}: "
                f"{found.error.str()}. Create it, or give the name of another."
            )
        return found.partitions

    def _read(self) -> None:
        ended = False
        while not ended and not self.closing.is_set():
            if self._hand.has_room():
                self._resume()
                ended = self._read_some()
            elif not self._hand.has_room(min(PATIENCE, self._commit_every)):
                self._pause()
                # Polling serves the group. Nothing comes of partitions that pause;
                # what does all the same is kept.
                self._sort([self._consumer.poll(0)])
            self._commit_when_due()

    def _read_some(self) -> bool:
        """Read what there is; whether all ends were reached."""
        patience = self._gathering.patience
        first = self._consumer.poll(POLL if patience is None else min(POLL, patience))
        self._sort([first] if first is None else self._with_those_behind(first))
        ended = not self._follow and bool(self._next) and self._at_end >= {*self._next}
        if ended or self._gathering.patience == 0.0:
            self._hand.put(self._gathered())
        return ended

    def _with_those_behind(self, first: Any) -> list[Any]:
        # One after the other, because consume() waits until all are there.
        return [first, *self._consumer.consume(FETCH - 1, timeout=0)]

    def _gathered(self) -> list[Parcel]:
        parcel = self._gathering.take()
        return [] if parcel is None else [parcel]

    def _sort(self, messages: list[Any]) -> None:
        """Hand over records, and act on what else comes."""
        parcels: list[Parcel] = []
        try:
            for message in messages:
                if message is None:
                    continue
                key = partition_key(message.topic(), message.partition())
                error = message.error()
                if error is not None:
                    self._met_error(error, key)
                elif key in self._next:  # else it was taken away meanwhile
                    self._at_end.discard(key)
                    parcel = self._taken(key, message)
                    if parcel is not None:
                        parcels.append(parcel)
        except SourceError:
            parcels += self._gathered()  # what came before is emitted all the same
            raise
        finally:
            self._hand.put(parcels)

    def _met_error(self, error: Any, key: str) -> None:
        codes = self._library.KafkaError
        if error.code() == codes._PARTITION_EOF:
            self._at_end.add(key)
        elif error.code() == codes._AUTO_OFFSET_RESET:
            raise SourceError(
                f"{key} cannot be read at offset {self._next.get(key)}: "
                f"{error.str()}. Records that were not read are deleted, or the topic "
                "was made anew. To go on where there are records, give the setting "
                "'auto.offset.reset': 'earliest' or 'latest'."
            )
        elif error.retriable() or error.code() in self._transient:
            logger.warning("%s: %s; librdkafka tries again", key, error.str())
        else:
            raise SourceError(f"{key} cannot be read any further: {error.str()}")

    @property
    def _transient(self) -> set[int]:
        codes = self._library.KafkaError
        return {
            codes._TRANSPORT,
            codes._ALL_BROKERS_DOWN,
            codes._TIMED_OUT,
            codes._RESOLVE,
            codes._MAX_POLL_EXCEEDED,
        }

    def _warned(self, error: Any) -> None:
        """Keep what librdkafka tells of its connections."""
        self._last_error = error
        now = time.monotonic()
        if now >= self._told_at.get(error.code(), -math.inf) + SILENCE:
            self._told_at[error.code()] = now
            logger.warning("%s: %s", self._tracker.name, error.str())
        if error.fatal():
            self._hand.finish(
                SourceError(f"{self._tracker.name} has failed: {error.str()}")
            )

    def _taken(self, key: str, message: Any) -> Parcel | None:
        offset = message.offset()
        if offset < self._next[key]:
            self._went_back(key, offset)
        self._next[key] = offset + 1
        value = message.value()
        if self._parse is not None and value is not None:
            try:
                value = self._parse(value)
            except BaseException as error:  # of the user's, on a thread of ours
                failure = RaisedError.caught(error)
                self._refuse(_record(message, offset, value), key, failure)
                return self._gathering.add(key, offset, None)
        return self._gathering.add(key, offset, _record(message, offset, value))

    def _went_back(self, key: str, offset: int) -> None:
        # The user has told librdkafka where to go when records were deleted; or the
        # topic was made anew.
        logger.warning(
            "%s begins anew at offset %s; %s was expected",
            key,
            offset,
            self._next[key],
        )
        self._gathering.drop([key])
        self._tracker.begin(key, offset)

    def _refuse(self, record: Record, key: str, cause: Exception) -> None:
        error = RecordError(
            f"The record at offset {record.offset} of {key} cannot be parsed: "
            f"{in_words(cause)}"
        )
        error.__cause__ = cause
        self._poison(PoisonRecord(record, error))

    # ---- partitions come and go; on the thread, within poll --------------------------

    def _assigned(self, consumer: Any, partitions: list[Any]) -> None:
        known = self._with_commits(consumer, partitions)
        begins = [self._begin(consumer, each) for each in known]
        for each in begins:
            key = partition_key(each.topic, each.partition)
            self._gathering.drop([key])
            self._tracker.begin(key, each.offset)
            self._next[key] = each.offset
            self._at_end.discard(key)
        if self._incremental:
            consumer.incremental_assign(begins)
        else:
            consumer.assign(begins)
        if self._paused:
            consumer.pause(begins)

    @property
    def _incremental(self) -> bool:
        if self._partitions is not None:
            return False
        strategy = self._settings.get("partition.assignment.strategy", "")
        protocol = self._settings.get("group.protocol", "classic")
        return "cooperative" in strategy or protocol == "consumer"

    def _with_commits(self, consumer: Any, partitions: list[Any]) -> list[Any]:
        """Ask what is committed for each."""
        if not self._commits or not partitions:
            return partitions
        return list(consumer.committed(partitions, timeout=self._connect))

    def _begin(self, consumer: Any, partition: Any) -> Any:
        """Decide where a partition begins."""
        key = partition_key(partition.topic, partition.partition)
        position = self._positions.pop(key, None)
        if partition.error is not None:
            raise SourceError(
                f"What is committed for {key} cannot be read: {partition.error.str()}"
            )
        if partition.offset >= 0:
            self._committed[key] = partition.offset
        offset = partition.offset if position is None else position
        if offset < 0:
            offset = self._edge(consumer, partition, key)
        return self._library.TopicPartition(
            partition.topic, partition.partition, offset
        )

    def _edge(self, consumer: Any, partition: Any, key: str) -> int:
        """Where a partition begins that has no position."""
        if self._reset == "error":
            raise SourceError(
                f"{key} has no position, nothing is committed, and auto.offset.reset "
                "is 'error'. Give positions=, or 'earliest' or 'latest'."
            )
        low, high = consumer.get_watermark_offsets(partition, timeout=self._connect)
        latest = self._reset in ("latest", "largest", "end")
        return int(high if latest else low)

    def _revoked(self, consumer: Any, partitions: list[Any]) -> None:
        self._commit(wait=True)
        self._lost(consumer, partitions)

    def _lost(self, consumer: Any, partitions: list[Any]) -> None:
        if self._leaving:
            return  # the watermarks stay, for a last checkpoint
        keys = [partition_key(each.topic, each.partition) for each in partitions]
        self._gathering.drop(keys)
        for key in keys:
            self._tracker.drop(key)
            self._next.pop(key, None)
            self._committed.pop(key, None)
            self._at_end.discard(key)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._consumer.pause(self._consumer.assignment())

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._consumer.resume(self._consumer.assignment())

    # ---- commits --------------------------------------------------------------------

    def _commit_when_due(self) -> None:
        if time.monotonic() >= self._commit_due:
            self._commit()
            self._commit_due = time.monotonic() + self._commit_every

    def _commit(self, wait: bool = False) -> None:
        """Commit what was released since the last time."""
        if not self._commits:
            return
        moved = {
            key: offset
            for key, offset in self._tracker.released().items()
            if key in self._next and self._committed.get(key) != offset
        }
        if not moved:
            return
        self._committed.update(moved)
        offsets = []
        for key, offset in moved.items():
            topic, _, number = key.rpartition(":")
            offsets.append(self._library.TopicPartition(topic, int(number), offset))
        try:
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except self._library.KafkaException as error:
            self._committed_or_not(error.args[0], offsets)

    def _committed_or_not(self, error: Any, partitions: list[Any]) -> None:
        """Note what was not committed, so that it is with the next commit."""
        for each in partitions:
            failed = error or each.error
            if failed is not None:
                key = partition_key(each.topic, each.partition)
                self._committed.pop(key, None)
                logger.warning(
                    "Offset %s of %s was not committed, and will be again: %s",
                    each.offset,
                    key,
                    failed.str(),
                )


def _record(message: Any, offset: int, value: Any) -> Record:
    kind, milliseconds = message.timestamp()
    return Record(
        message.topic(),
        message.partition(),
        offset,
        milliseconds / 1000 if kind else None,
        message.key(),
        value,
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


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigurationError(
            f"consumer={settings!r} was given; a dict of settings is needed: "
            "{'bootstrap.servers': '127.0.0.1:9092', 'group.id': 'mine'}."
        )
    if not settings.get("bootstrap.servers"):
        raise ConfigurationError(
            "The settings have no 'bootstrap.servers'. Give the address of a broker: "
            "{'bootstrap.servers': '127.0.0.1:9092', 'group.id': 'mine'}."
        )
    for name in sorted(OWN_SETTINGS.keys() & settings.keys()):
        if name != "enable.auto.commit" or settings[name] is not False:
            raise ConfigurationError(
                f"The setting {name!r} is the source's own: {OWN_SETTINGS[name]}. "
                "Leave it out."
            )


def _check_partitions(
    partitions: Any, topics: list[str], settings: Mapping[str, Any]
) -> None:
    if partitions is None:
        if "group.id" not in settings:
            raise ConfigurationError(
                "The settings have no 'group.id', and partitions is None. Give the "
                "group to join, or the partitions to read: partitions='all'."
            )
        return
    listed = isinstance(partitions, (list, tuple, range)) and partitions
    if partitions != "all" and not (
        listed and all(is_whole(each, 0) for each in partitions)
    ):
        raise ConfigurationError(
            f"partitions={partitions!r} was given; a list of numbers from 0 on is "
            "needed, such as [0, 1]; or 'all', or None to join the group."
        )
    if any(topic.startswith("^") for topic in topics):
        raise ConfigurationError(
            f"partitions={partitions!r} was given with a pattern of topics; give the "
            "names of the topics, or leave partitions out to join the group."
        )


def _library() -> Any:
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigurationError(
            "Reading from Kafka needs confluent-kafka, which is not installed. Install "
            "it: pip install 'tensair-dask[kafka]'"
        ) from error
    return confluent_kafka
