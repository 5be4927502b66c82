"""Write the flights of a year into a topic of Kafka, as they would have gone by.

    python examples/produce_flights.py --kafka 127.0.0.1:9092 --rate 5000
    tensair run flights --kafka 127.0.0.1:9092

One record for each flight, as JSON: what is known before it departs, and how late it
arrived. The topic is made if it is not there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tensair_dask.pipelines import flights

CONNECT = 10.0  # seconds
EVERY = 0.02  # seconds between two looks at the clock


def records(limit: int | None) -> Iterator[bytes]:
    """Give the flights in the order of their schedule."""
    frame = flights.in_order(flights.read("flights.csv.zip", flights.FIELDS))
    if limit is not None:
        frame = frame.head(limit)
    for row in frame.itertuples(index=False):
        told = {
            name: None if value != value else value  # only NaN differs from itself
            for name, value in row._asdict().items()
        }
        yield json.dumps(told).encode()


def make_topic(kafka: str, topic: str) -> None:
    """Make the topic, with one partition: flights stay in their order."""
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 2})
    try:
        admin.list_topics(timeout=CONNECT)
        admin.create_topics([NewTopic(topic, 1)])[topic].result(CONNECT)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        raise click.ClickException(
            f"Topic {topic} cannot be made at {kafka}: {error.args[0].str()}"
        ) from error


def send(producer: Producer, topic: str, data: bytes) -> None:
    """Hand a record over; wait while the producer is full."""
    while True:
        try:
            producer.produce(topic, data, on_delivery=_check)
            return
        except BufferError:
            producer.poll(0.1)


def _check(error: Any, message: Any) -> None:
    if error is not None:
        raise click.ClickException(f"A flight could not be written: {error.str()}")


@click.command()
@click.option("--kafka", metavar="ADDRESS", required=True, help="Of a broker.")
@click.option("--topic", default="flights", show_default=True)
@click.option("--rate", type=click.FloatRange(min=1), help="Flights a second.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many flights.")
def main(kafka: str, topic: str, rate: float | None, limit: int | None) -> None:
    """Write the flights of 2013 into a topic."""
    make_topic(kafka, topic)
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5})
    began, written = time.monotonic(), 0
    try:
        for data in records(limit):
            if rate is not None and written % max(1, int(rate * EVERY)) == 0:
                producer.poll(0)
                time.sleep(max(0.0, began + written / rate - time.monotonic()))
            send(producer, topic, data)
            written += 1
    except KeyboardInterrupt:
        pass
    left = producer.flush(CONNECT)
    seconds = time.monotonic() - began
    click.echo(f"{written - left:,} flights in {seconds:.1f} s in topic {topic}")


if __name__ == "__main__":
    main()
