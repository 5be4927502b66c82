"""Real processes, killed and used from synchronous code."""

from __future__ import annotations

import os
import signal

import pytest
from distributed import Client, LocalCluster, get_worker

from tensair_dask.pubsub import Pub, Sub

pytestmark = pytest.mark.processes


class Listener:
    """An actor that remembers what it hears, slowly acknowledged or not."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.sub = Sub("t", worker=get_worker(), handler=self.take)

    def take(self, message: object, sender: object) -> None:
        self.heard.append(message)

    def get(self) -> list[object]:
        return self.heard

    def pid(self) -> int:
        return os.getpid()


def test_a_worker_that_is_killed_costs_the_others_nothing():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        listeners = [
            client.submit(Listener, actor=True, workers=[address], pure=False).result()
            for address in client.scheduler_info()["workers"]
        ]
        victim = listeners[0].pid().result()
        with Pub("t") as pub:
            assert len(pub.subscribers) == 2
            for number in range(50):
                pub.put(number)
            os.kill(victim, signal.SIGKILL)
            for number in range(50, 100):
                pub.put(number)
            pub.flushed(timeout="20s")
            pub.wait_for(lambda view: len(view.subscribers) == 1, timeout="20s")
            pub.put("after")
            pub.flushed(timeout="20s")
        assert listeners[1].get().result() == [*range(100), "after"]


def test_synchronous_iteration_ends_with_the_client():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=":0"
    ) as cluster:
        with Client(cluster) as client, Client(cluster) as other:
            sub = Sub("t", client=client)
            with Pub("t", client=other) as pub:
                for number in range(5):
                    pub.put(number)
            got = []
            for message in sub:
                got.append(message)
                if message == 4:
                    break
            assert got == [0, 1, 2, 3, 4]
        assert list(sub) == []
