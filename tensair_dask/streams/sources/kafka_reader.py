"""The consumer of a source over topics of Kafka, on a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from tensair_dask import config
from tensair_dask._wording import in_words
from tensair_dask.errors import (
    ConfigurationError,
    RaisedError,
    RecordError,
    SourceError,
    TensairError,
)
from tensair_dask.streams.sources.kafka_options import KafkaOptions
from tensair_dask.streams.sources.kafka_records import (
    Gathering,
    Parcel,
    Record,
    partition_key,
)
from tensair_dask.streams.sources.positions import Tracker
from tensair_dask.streams.sources.thread_queue import Handover
from tensair_dask.streams.sources.unreadable import PoisonRecord

__all__ = ["Reader"]

logger = logging.getLogger(__name__)

# Seconds that one call of librdkafka may take, and that the thread waits for room
# before it pauses the partitions to stay in the group.
POLL = 0.1
PATIENCE = 0.5
# Seconds in which the same trouble is logged once.
SILENCE = 10.0
# Records that are read at once.
FETCH = 500


class Reader:
    """The consumer, on a thread of its own: reads, parses, commits.

    Parameters
    ----------
    options
        What is read, and how.
    positions
        Where partitions begin, by their keys.
    tracker
        Knows which offsets are released.
    hand
        Takes what was read to the event loop.
    gathering
        Makes parcels of records.
    poison
        Called with each record that cannot be parsed.
    """

    def __init__(
        self,
        options: KafkaOptions,
        positions: Mapping[str, int],
        tracker: Tracker,
        hand: Handover,
        gathering: Gathering,
        poison: Callable[[PoisonRecord], None],
    ) -> None:
        self._library = _library()
        self._options = options
        self._positions = dict(positions)
        self._tracker = tracker
        self._hand = hand
        self._gathering = gathering
        self._poison = poison
        self._commits = options.commits
        self._servers = options.settings["bootstrap.servers"]
        self._reset = options.settings.get("auto.offset.reset", "earliest")
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
        self._logged_at: dict[int, float] = {}
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
                self._hand.finish(self._as_ours(error))
                self._stay()
            finally:
                self._leave()
        except Exception as error:
            self._hand.finish(self._as_ours(error))
        finally:
            self._hand.finish()
            self.gone.set_result(None)

    def _made(self) -> Any:
        try:
            return self._library.Consumer(
                {
                    "group.id": f"tensair-{self._tracker.name}",  # it asks for one
                    "auto.offset.reset": "error",
                    **self._options.settings,
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "error_cb": self._warned,
                    "on_commit": self._committed_or_not,
                    "log_level": 2,  # what matters comes to _warned, which logs it
                }
            )
        except self._library.KafkaException as error:
            raise ConfigurationError(
                f"librdkafka refuses the settings of {self._tracker.name}: "
                f"{error.args[0].str()}. Allowed are those of its CONFIGURATION.md; "
                "correct consumer=."
            ) from error

    def _as_ours(self, error: Exception) -> TensairError:
        if isinstance(error, TensairError):
            return error
        failure = SourceError(
            f"{self._tracker.name} cannot be read at {self._servers}: {error}"
        )
        failure.__cause__ = error
        return failure

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
        for topic in self._options.topics:
            if not topic.startswith("^"):
                known[topic] = self._described(topic)
        if self._options.partitions is None:
            self._consumer.subscribe(
                self._options.topics,
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
            return
        chosen = []
        for topic, there in known.items():
            wanted = (
                sorted(there)
                if self._options.partitions == "all"
                else self._options.partitions
            )
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
            elif not self._hand.has_room(min(PATIENCE, self._options.commit_every)):
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
        ended = (
            not self._options.follow
            and bool(self._next)
            and self._at_end >= {*self._next}
        )
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
        if now >= self._logged_at.get(error.code(), -math.inf) + SILENCE:
            self._logged_at[error.code()] = now
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
        parse = self._options.parse
        if parse is not None and value is not None:
            try:
                value = parse(value)
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
        if self._options.incremental:
            consumer.incremental_assign(begins)
        else:
            consumer.assign(begins)
        if self._paused:
            consumer.pause(begins)

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
            self._commit_due = time.monotonic() + self._options.commit_every

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


def _library() -> Any:
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigurationError(
            "Reading from Kafka needs confluent-kafka, which is not installed. Install "
            "it: pip install 'tensair-dask[kafka]'"
        ) from error
    return confluent_kafka
