"""The source over topics, against a broker in a process of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import numpy as np
import pytest
from distributed.utils_test import gen_cluster, gen_test
from helpers import FEATURES, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.sources
import tensair_dask.streams
from tensair_dask import config
from tensair_dask.errors import (
    ConfigurationError,
    RecordError,
    SourceError,
    TensairTimeoutError,
)

pytestmark = pytest.mark.processes
SOON = "10ms"


class Gate(Stream):
    """Holds the references of all that comes, as a trainer does."""

    def __init__(self, upstream: Stream) -> None:
        super().__init__(upstream)
        self.items: list = []
        self.held: list = []

    def update(self, x, who=None, metadata=None):
        self._retain_refs(metadata)
        self.items.append(x)
        self.held.append(metadata)

    def learn(self, number: int) -> None:
        for each in self.held[number]:
            each["mark"].learned()

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self._release_refs(self.held[number])


async def until(predicate, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


def opened(broker, topic, group=None, settings=None, **kwargs):
    """A source over all partitions, on the loop that runs here."""
    settings = broker.settings(group) | (settings or {})
    arguments = {"partitions": "all", "commit_every": SOON, "asynchronous": True}
    return Stream.from_kafka_records(topic, settings, **{**arguments, **kwargs})


async def values_to_the_end(source):
    got = []
    source.sink(lambda record: got.append(record.value))
    async with source:
        await source.ended()
    return got


async def crash(source):
    """End as a process ends that is killed: nothing more is committed."""
    source.reader._commits = False
    await source.close()


@gen_test()
async def test_every_record_comes_once_and_in_order(broker):
    topic = broker.topic()
    broker.write(topic, ({"i": i} for i in range(5_000)))
    source = opened(broker, topic, "all", follow=False)
    records = source.sink_to_list()
    before = time.time()
    async with source:
        await source.ended()
    assert [record.value["i"] for record in records] == list(range(5_000))
    assert [record.offset for record in records] == list(range(5_000))
    assert {record[:2] for record in records} == {(topic, 0)}
    assert abs(records[0].timestamp - before) < 60
    assert broker.committed("all", topic) == [5_000]


@gen_test()
async def test_an_offset_is_committed_when_all_up_to_it_is_released(broker):
    topic = broker.topic()
    broker.write(topic, range(10))
    source = opened(broker, topic, "some")
    gate = Gate(source)
    async with source:
        await until(lambda: len(gate.items) == 10)
        gate.release(1, 2, 5)
        gate.learn(0)
        await until(lambda: source.tracker.learned() == {f"{topic}:0": 3})
        await until(lambda: broker.committed("some", topic) == [0])
        gate.release(0)
        await until(lambda: broker.committed("some", topic) == [3])
        gate.release(4)
    assert broker.committed("some", topic) == [3]


@gen_test()
async def test_what_was_not_committed_is_read_again_after_a_crash(broker):
    topic = broker.topic()
    broker.write(topic, range(100))
    source = opened(broker, topic, "crash")
    gate = Gate(source)
    source.start()
    await until(lambda: len(gate.items) == 100)
    gate.release(*range(40))
    await until(lambda: broker.committed("crash", topic) == [40])
    gate.release(*range(60, 100))
    await crash(source)
    assert broker.committed("crash", topic) == [40]
    again = await values_to_the_end(opened(broker, topic, "crash", follow=False))
    assert again == list(range(40, 100))


@pytest.mark.parametrize("position", [20, 70])
@gen_test()
async def test_the_position_of_a_checkpoint_wins_over_what_is_committed(
    broker, position
):
    topic = broker.topic()
    broker.write(topic, range(100))
    group = f"position-{position}"
    source = opened(broker, topic, group)
    gate = Gate(source)
    async with source:
        await until(lambda: len(gate.items) == 100)
        gate.release(*range(50))
    assert broker.committed(group, topic) == [50]
    kept = {"flights": {f"{topic}:0": position}}
    restored = opened(broker, topic, group, name="flights", positions=kept)
    gate = Gate(restored)
    async with restored:
        await until(lambda: broker.committed(group, topic) == [position])
        assert restored.tracker.learned() == kept["flights"]
        await until(lambda: gate.items and gate.items[-1].offset == 99)
    assert [record.value for record in gate.items] == list(range(position, 100))


@gen_test()
async def test_a_stream_that_takes_nothing_is_waited_for(broker):
    topic = broker.topic()
    broker.write(topic, range(5_000))
    gate = asyncio.Event()
    got = []

    async def slow(record):
        got.append(record.value)
        await gate.wait()

    source = opened(broker, topic, "slow", buffer=200)
    source.sink(slow)
    async with source:
        # Paused, and polled all the same: the group does not take it for dead.
        await until(lambda: source.reader._paused)
        assert source.tracker.outstanding() <= 200 + 500 + 1
        assert got == [0]
        gate.set()
        await until(lambda: len(got) == 5_000)
    assert got == list(range(5_000))
    assert broker.committed("slow", topic) == [5_000]


async def on_its_thread(reader, work):
    """Let the reader do something between two polls, where it is told of rebalances."""
    original, done = reader._commit_when_due, threading.Event()

    def once():
        reader._commit_when_due = original
        work()
        done.set()

    reader._commit_when_due = once
    await until(done.is_set)


POISON = [0, b"{", 2, b"\xff", 4]


@gen_test()
async def test_a_record_that_cannot_be_parsed_is_kept_and_the_stream_goes_on(broker):
    topic = broker.topic()
    broker.write(topic, POISON)
    source = opened(broker, topic, "poison", follow=False)
    assert await values_to_the_end(source) == [0, 2, 4]
    assert source.dead_letters.total == 2
    assert [letter.record.value for letter in source.dead_letters] == [b"{", b"\xff"]
    assert [letter.record.offset for letter in source.dead_letters] == [1, 3]
    assert f"at offset 1 of {topic}:0" in str(source.dead_letters[0].error)
    assert broker.committed("poison", topic) == [5]


@gen_test()
async def test_a_record_that_cannot_be_parsed_can_be_skipped(broker):
    topic = broker.topic()
    broker.write(topic, POISON)
    source = opened(broker, topic, "skip", follow=False, on_error="skip")
    assert await values_to_the_end(source) == [0, 2, 4]
    assert (source.skipped, source.dead_letters.total) == (2, 0)
    assert broker.committed("skip", topic) == [5]


@gen_test()
async def test_a_record_that_cannot_be_parsed_can_end_the_source(broker):
    topic = broker.topic()
    broker.write(topic, [0, 1, 2, b"{", 4])
    source = opened(broker, topic, "raise", chunk=2, on_error="raise")
    chunks = source.sink_to_list()
    async with source:
        with pytest.raises(RecordError, match=f"at offset 3 of {topic}:0 cannot be"):
            await source.ended()
        # What came before is still committed.
        await until(lambda: broker.committed("raise", topic) == [3])
    assert [[record.value for record in chunk] for chunk in chunks] == [[0, 1], [2]]


@gen_test()
async def test_bytes_stay_as_they_are_without_parse(broker):
    topic = broker.topic()
    broker.write(topic, POISON[3:])
    source = opened(broker, topic, follow=False, parse=None)
    assert await values_to_the_end(source) == [b"\xff", b"4"]


@gen_test()
async def test_chunks_are_full_unless_nothing_comes(broker):
    topic = broker.topic(partitions=2)
    source = opened(broker, topic, "chunks", chunk=64, linger="20ms")
    gate = Gate(source)
    async with source:
        broker.write(topic, range(100), partition=0)
        broker.write(topic, range(100), partition=1)
        await until(lambda: sum(map(len, gate.items)) == 200)
        assert all(len(chunk) <= 64 for chunk in gate.items)
        assert sum(len(chunk) == 64 for chunk in gate.items) >= 2
        for number, chunk in enumerate(gate.items):
            marks = {each["mark"].partition: each["mark"] for each in gate.held[number]}
            for record in chunk:
                mark = marks[f"{topic}:{record.partition}"]
                assert mark.start <= record.offset < mark.stop
        gate.release(*range(len(gate.items)))
    assert broker.committed("chunks", topic) == [100, 100]


@gen_test()
async def test_a_partition_that_is_taken_away_is_committed_and_dropped(broker):
    from confluent_kafka import TopicPartition

    topic = broker.topic(partitions=2)
    for partition in (0, 1):
        broker.write(topic, range(10), partition)
    source = opened(broker, topic, "rebalance", commit_every="1h")
    gate = Gate(source)
    async with source:
        await until(lambda: len(gate.items) == 20)
        first = [n for n, record in enumerate(gate.items) if record.partition == 0]
        gate.release(*first[:5])
        reader, lost = source.reader, [TopicPartition(topic, 0)]
        await on_its_thread(reader, lambda: reader._revoked(reader._consumer, lost))
        assert broker.committed("rebalance", topic) == [5, 0]
        assert source.tracker.learned() == {f"{topic}:1": 0}
        # What is released too late is not ours to commit.
        gate.release(*first[5:])
        assert source.tracker.released() == {f"{topic}:1": 0}
        # It comes back, and goes on where it is committed.
        await on_its_thread(reader, lambda: reader._assigned(reader._consumer, lost))
        await until(lambda: len(gate.items) == 25)
        assert [record.offset for record in gate.items[20:]] == [5, 6, 7, 8, 9]
        assert source.tracker.released() == {f"{topic}:0": 5, f"{topic}:1": 0}


@gen_test()
async def test_records_that_wait_are_dropped_with_their_partition(broker):
    from confluent_kafka import TopicPartition

    topic = broker.topic(partitions=2)
    for partition in (0, 1):
        broker.write(topic, range(10), partition)
    gate = asyncio.Event()
    got = []

    async def slow(record):
        got.append(record)
        await gate.wait()

    source = opened(broker, topic, "waiting")
    source.sink(slow)
    async with source:
        await until(lambda: got and source.tracker.outstanding() == 20)
        reader, first = source.reader, got[0].partition
        lost = [TopicPartition(topic, first)]
        await on_its_thread(reader, lambda: reader._lost(reader._consumer, lost))
        gate.set()
        await until(lambda: len(got) == 11)
        await until(lambda: source.tracker.outstanding() == 0)
    assert [each.partition for each in got[1:]] == [1 - first] * 10


@pytest.mark.timeout(120)
@gen_test(timeout=110)
async def test_the_members_of_a_group_go_on_where_the_last_one_has_stopped(broker):
    topic = broker.topic(partitions=2)
    for partition in (0, 1):
        broker.write(topic, range(50), partition)
    # This broker lets nobody into a group for half of that time, 45 s by default.
    settings = {"session.timeout.ms": 10_000}
    source = opened(broker, topic, "group", settings, partitions=None)
    got = source.sink_to_list()
    async with source:
        await until(lambda: len(got) == 100, timeout=60)
        await until(lambda: broker.committed("group", topic) == [50, 50])
        broker.write(topic, range(50, 60))
        await until(lambda: len(got) == 110)
    assert broker.committed("group", topic) == [60, 50]
    assert source.tracker.learned() == {f"{topic}:0": 60, f"{topic}:1": 50}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_what_a_trainer_has_learned_is_committed(c, s, a, b):
    # gen_cluster hands no fixtures on.
    broker = test_what_a_trainer_has_learned_is_committed.broker
    topic = broker.topic()
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(640, FEATURES)).round(3)
    broker.write(
        topic, ({"x": row.tolist(), "y": int(row.argmax() % 3)} for row in rows)
    )

    def collate(chunk):
        x = np.array([record.value["x"] for record in chunk], "float32")
        return x, np.array([record.value["y"] for record in chunk])

    source = opened(broker, topic, "trainer", chunk=64, follow=False)
    async with ta.Trainer(c, **classes()) as trainer:
        reports = source.map(collate).train(trainer).sink_to_list()
        async with source:
            await source.ended()
            await trainer.drain()
    assert sum(report.samples for report in reports) == 640
    assert all(report.error is None for report in reports)
    assert broker.committed("trainer", topic) == [640]


@gen_test()
async def test_a_second_start_behind_the_end_says_that_nothing_came(broker, caplog):
    topic = broker.topic()
    broker.write(topic, range(5))
    source = opened(broker, topic, "again", follow=False)
    got = source.sink_to_list()
    for _ in range(2):
        source.start()
        await source.ended()
    assert len(got) == 5
    assert caplog.text.count("has ended without an item: no record lies between") == 1
    await source.close()


@pytest.fixture(autouse=True)
def broker_at_hand(request):
    test = request.function
    if test is test_what_a_trainer_has_learned_is_committed:
        test.broker = request.getfixturevalue("broker")


def test_a_program_without_an_event_loop_reads_a_topic(broker):
    topic = broker.topic()
    broker.write(topic, range(50))
    source = opened(broker, topic, "plain", asynchronous=False)
    got = source.sink_to_list()
    with source:
        with pytest.raises(TensairTimeoutError, match="has not ended within"):
            source.join(0.1)
        deadline = time.monotonic() + 10
        while len(got) < 50:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        source.stop()
        source.join(10)
    assert broker.committed("plain", topic) == [50]
    with pytest.raises(SourceError, match="was closed; make a new source"):
        source.start()


@gen_test()
async def test_a_source_that_was_never_started_is_closed_without_a_broker():
    pytest.importorskip("confluent_kafka")
    settings = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g"}
    for begin in (False, True):
        source = Stream.from_kafka_records("f", settings, asynchronous=True)
        if begin:
            source.start()
        await asyncio.wait_for(source.close(), 5)
        assert not source.reader.begun


async def failure(source) -> str:
    async with source:
        with pytest.raises(SourceError) as caught:
            await source.ended()
    return str(caught.value)


@gen_test()
async def test_a_missing_broker_topic_or_partition_is_named(broker):
    import dask

    topic = broker.topic()
    reported = await failure(opened(broker, "nowhere"))
    assert "Topic nowhere cannot be read at 127.0.0.1" in reported
    reported = await failure(opened(broker, topic, partitions=[0, 7]))
    assert reported == f"Topic {topic} has no partition 7; it has [0]."
    with dask.config.set({"tensair.sources.connect": "200ms"}):
        source = Stream.from_kafka_records(
            topic,
            {"bootstrap.servers": "127.0.0.1:1"},
            partitions="all",
            asynchronous=True,
        )
        reported = await failure(source)
    assert reported.startswith("No broker answers at 127.0.0.1:1 within 0.2 s: ")
    assert "Connection refused" in reported
    assert config.get_seconds("sources.connect") == 10
    settings = broker.settings() | {"auto.offset.reset": "error", "group.id": "new"}
    source = Stream.from_kafka_records(
        topic, settings, partitions="all", asynchronous=True
    )
    assert "has no position, nothing is committed" in await failure(source)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"topics": []}, "the name of a topic is needed"),
        ({"consumer": {}}, "have no 'bootstrap.servers'"),
        ({"consumer": {"bootstrap.servers": "a:1"}}, "have no 'group.id'"),
        ({"chunk": 0}, "chunk=0 is not allowed"),
        ({"topics": None}, "topics=None was given"),
        ({"topics": ["f", 5]}, "the name of a topic is needed"),
        ({"consumer": "a:1"}, "a dict of settings is needed"),
        (
            {"chunk": "64"},
            "chunk='64' is not allowed; .* from 1, .* or None for single",
        ),
        ({"buffer": -1}, "buffer=-1 is not allowed; give a whole number from 1"),
        ({"buffer": 0.5}, "buffer=0.5 is not allowed"),
        ({"partitions": 0}, r"partitions=0 was given; a list of numbers"),
        ({"partitions": []}, r"partitions=\[\] was given; a list of numbers"),
        ({"partitions": [-1]}, r"partitions=\[-1\] was given"),
        ({"linger": "soon"}, r"'soon' was given for tensair.sources.linger"),
        ({"parse": "json"}, "parse='json' was given; a function"),
        ({"on_error": "cry"}, "allowed are 'dead-letter', 'skip', 'raise'"),
        ({"topics": "^f", "partitions": [1]}, "with a pattern of topics"),
        ({"positions": [1]}, "was given; {source name"),
        (
            {"consumer": {"bootstrap.servers": "a:1", "enable.auto.commit": True}},
            "'enable.auto.commit' is the source's own",
        ),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    given = {"topics": "f", "consumer": {"bootstrap.servers": "a:1", "group.id": "g"}}
    pytest.importorskip("confluent_kafka")
    with pytest.raises(ConfigurationError, match=message):
        Stream.from_kafka_records(**{**given, **wrong}, asynchronous=False)


@gen_test()
async def test_a_setting_that_librdkafka_does_not_know_is_named():
    pytest.importorskip("confluent_kafka")
    settings = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "group.ib": "h"}
    source = Stream.from_kafka_records("f", settings, asynchronous=True)
    async with source:
        with pytest.raises(ConfigurationError, match=r'refuses .*"group.ib".* correct'):
            await source.ended()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tensair-dask\[kafka\]"):
        Stream.from_kafka_records("f", {"bootstrap.servers": "a:1", "group.id": "g"})


@pytest.mark.parametrize(
    ("topics", "keys", "said"),
    [
        ("flights", ["flights:0", "flights:12"], ""),
        (["flights", "a:b"], ["flights:0", "a:b:3"], ""),
        ("^fl.*", ["flights:0"], ""),
        ("flights", ["flights:0", "fligths:1"], "has 'fligths:1', which are not used"),
        ("flights", ["0", "items"], "has '0', 'items', which are not used"),
    ],
)
def test_positions_of_other_topics_are_said(caplog, topics, keys, said):
    pytest.importorskip("confluent_kafka")
    positions = {"n": dict.fromkeys(keys, 5)}
    settings = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g"}
    source = Stream.from_kafka_records(topics, settings, name="n", positions=positions)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
    source.close()
