"""A trainer that is made again, while an older one of its name is open, says so."""

from __future__ import annotations

import functools

from distributed.utils_test import gen_cluster
from helpers import classes

import tensair_dask as ta

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


def said(trainer):
    return [text for text in trainer.events["text"] if "are open on this" in text]


@one()
async def test_an_older_open_trainer_of_the_same_name_is_reported_with_its_replicas(
    c, s, a
):
    first = await ta.Trainer(c, **classes(), name="mine")
    async with ta.Trainer(c, **classes(), name="mine") as second:
        assert said(first) == []
        (text,) = said(second)
        assert "1 other trainer(s) of the name 'mine'" in text
        assert "1 replica(s)" in text
        assert "close()" in text
    await first.close()


@one()
async def test_closed_trainers_and_those_of_other_names_cause_no_warning(c, s, a):
    await (await ta.Trainer(c, **classes(), name="mine")).close()
    async with (
        ta.Trainer(c, **classes(), name="mine") as one_more,
        ta.Trainer(c, **classes(), name="other") as other,
    ):
        assert said(one_more) == said(other) == []
