"""Everything that travels, between real processes over TLS, with real certificates."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest
import torch
from commands import FLIGHTS, needs_flights
from distributed import Client, LocalCluster, get_worker
from distributed.comm.core import CommClosedError
from distributed.security import Security
from helpers import class_data, classes, spread

import tensair_dask as ta
from tensair_dask.pubsub import Pub, Sub

pytestmark = pytest.mark.processes
pytest.importorskip("cryptography")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        security=Security.temporary(),
    ) as cluster:
        yield cluster


def publish(value: torch.Tensor) -> str:
    """Publish from a task; return the address of its worker."""
    with Pub("over tls") as pub:
        pub.put(value)
        pub.flushed(timeout="10s")
        return get_worker().address


def learn(client: Client, **arguments) -> None:
    """Use a trainer as its users do."""
    data = class_data(200)
    with ta.Trainer(client, replicas=2, **classes(**arguments)) as trainer:
        assert all(one.address.startswith("tls://") for one in trainer.replicas)
        before = trainer.evaluate(data[:20])["loss"]
        for x, y in data:
            trainer.train(x, y)
        trainer.drain()
        assert trainer.evaluate(data[:20])["loss"] < before
        assert trainer.predict(data[0][0]).shape == (16, 3)
        assert spread(trainer.state_dicts()) < 1e-3
        stats = list(trainer.exchange_stats().values())
    assert sum(one["received"] for one in stats) > 0
    assert not any(one["refused"] for one in stats)
    assert not any(one["shared_memory"] for one in stats)


def test_all_that_replicas_workers_and_clients_send_goes_over_tls(cluster):
    with Client(cluster) as client:
        learn(client)
        learn(client, compression="int8", share="update")
        with Sub("over tls", client=client) as sub:
            sender = client.submit(publish, torch.arange(3)).result()
            assert sender.startswith("tls://")
            assert sub.get(timeout="10s").tolist() == [0, 1, 2]


def test_a_process_with_no_or_another_certificate_is_refused_with_the_reason(cluster):
    address = cluster.scheduler_address

    async def connect(security: Security | None) -> None:
        await Client(address, security=security, timeout="5s", asynchronous=True)

    with pytest.raises(TypeError, match="TLS configuration"):
        asyncio.run(connect(None))
    with pytest.raises(CommClosedError, match="certificate does not match"):
        asyncio.run(connect(Security.temporary()))


@needs_flights
def test_the_error_for_a_run_without_a_certificate_says_what_to_configure(cluster):
    for address, reported in (
        (cluster.scheduler_address, "tls:// needs distributed.comm.tls"),
        (cluster.scheduler_address.replace("tls:", "tcp:"), "begins with tls://"),
    ):
        done = subprocess.run(
            [*FLIGHTS, "--limit", "64", "--scheduler", address],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert reported in done.stderr
        assert done.stderr.count("\n") == 1
