"""The first replicas of a run: they know each other, and hold the same."""

from __future__ import annotations

from distributed.utils_test import gen_cluster
from helpers import linear

import tensair_dask as ta
from tensair_dask.pubsub.scheduler import NAME


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_all_replicas_of_a_start_are_told_of_in_one_view(c, s, *_):
    async with ta.Trainer(c, **linear(replicas=5)):
        (topic,) = s.plugins[NAME].topics.values()
        members = list(topic.view.members)
        assert len(members) == 10
        assert {topic.number_of([one.id]) for one in members} == {topic.view.number}
