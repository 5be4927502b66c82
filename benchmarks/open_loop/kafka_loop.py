"""A stream from Kafka: a plain consumer loop, and `Stream.from_kafka_records`.

A process of its own takes what the driver sends into a topic, as a connector would; the
broker is that of the tests.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from replicas import training
from streamz import Stream

import tensair_dask as ta
import tensair_dask.sources  # registers Stream.from_kafka_records
import tensair_dask.streams  # registers Stream.train
from open_loop.learner import learn_here, workload
from open_loop.wire import Acks, data_socket, frames, from_frame

TESTS = Path(__file__).parents[2] / "tests"


def bridge(address: str, topic: str) -> None:
    """Produce each frame, at once."""
    producer = Producer({"bootstrap.servers": address, "linger.ms": 0})
    for header, body in frames(data_socket()):
        producer.produce(topic, header + bytes(body))
        producer.poll(0)


def learn_plainly(settings: dict[str, Any], topic: str) -> None:
    """Learn record after record."""
    consumer = Consumer(settings)
    consumer.assign([TopicPartition(topic, 0, 0)])
    while True:
        message = consumer.poll(1.0)
        if message is not None and not message.error():
            learn_here(*from_frame(message.value()))


def arrays(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a record."""
    return from_frame(value)[1:]


async def learn_with_replicas(settings: dict[str, Any], topic: str) -> None:
    """Train on the records."""
    async with training(workload(), 2) as (_, trainer):
        acks = Acks()

        def learned(report: ta.Report) -> None:
            report.raise_for_error()
            acks.learned(report.index, report.loss)

        source = Stream.from_kafka_records(
            topic, settings, parse=arrays, partitions="all", asynchronous=True
        )
        source.map(attrgetter("value")).train(trainer).sink(learned)
        source.start()
        await asyncio.Event().wait()


def main(kind: str) -> None:
    sys.path.insert(0, str(TESTS))
    import broker

    with (
        tempfile.TemporaryDirectory() as folder,
        broker.running(Path(folder)) as made,
    ):
        topic, settings = made.topic(), made.settings("open-loop")
        context = multiprocessing.get_context("spawn")
        context.Process(target=bridge, args=(made.address, topic), daemon=True).start()
        if kind == "plain":
            learn_plainly(settings, topic)
        else:
            asyncio.run(learn_with_replicas(settings, topic))


if __name__ == "__main__":
    main(sys.argv[1])
