"""What the replicas of a mesh send each other, for each gradient."""

from __future__ import annotations

import pytest
from helpers import CLASSES, FEATURES, linear, linear_data, train_all
from lab import cluster, exchange_of

import tensair_dask as ta

# A gradient of the linear model, in bytes, as the arena lays it out; and what a message
# may weigh beside it: its header, with the clock of all replicas.
GRADIENT = -(-4 * FEATURES * CLASSES // 64) * 64
HEADER = 512
NAME = 48  # of a replica, in a clock


@pytest.mark.parametrize("replicas", [2, 4, 8])
@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_gradient_costs_a_message_of_its_size_to_each_peer_at_most(
    replicas, shared_memory
):
    @cluster(
        replicas,
        config={
            "tensair.pubsub.shared-memory": shared_memory,
            # As often as can be: what is to be bounded is then most.
            "tensair.exchange.share-of-time": 1.0,
            "tensair.exchange.staleness": "1ms",
        },
    )
    async def run(c, s, *workers):
        async with ta.Trainer(c, **linear()) as trainer:
            reports = await train_all(trainer, linear_data(25 * replicas))
            stats = (await trainer.exchange_stats()).values()
            links = [
                link
                for worker in workers
                for link in exchange_of(trainer, worker).pub.links.values()
            ]
        gradients, peers = len(reports), replicas - 1
        assert len(links) == replicas * peers
        assert all(link.shared_memory == shared_memory for link in links)

        received = sum(each["received"] for each in stats)
        assert 0 < received <= gradients * peers
        assert sum(each["sent"] for each in stats) <= gradients
        assert sum(each["received_bytes"] for each in stats) == received * GRADIENT
        # Each is acknowledged, and none was sent twice.
        assert sum(link.messages for link in links) == received
        assert sum(link.resent for link in links) == 0
        weight = GRADIENT + HEADER + NAME * replicas
        assert sum(link.bytes for link in links) <= received * weight

    run()
