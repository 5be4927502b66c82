"""The least loaded of many lanes, found without looking at all of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from distributed.utils_test import gen_test
from receivers import Hearer

from tensair_dask.batches.batch import MiniBatch
from tensair_dask.coordinator.lane import Lane, Limits
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.roomy_lanes import RoomyLanes

LIMITS = Limits(
    batches=5,
    nbytes=1 << 20,
    unconfirmed_nbytes=1 << 20,
    unconfirmed=7,
    seconds=1.0,
    message_seconds=0.01,
    message_nbytes=1 << 20,
    messages=2,
    rate=500,
    losses=2,
    room=5.0,
)


async def nothing(_: Any) -> None:
    """Learn no block."""


def pending() -> Pending:
    row = np.zeros((1, 2), "float32")
    return Pending(0, MiniBatch.of(row, np.zeros(1)), row, Hearer())


def least(lanes: list[Lane]) -> float | None:
    loads = [lane.load for lane in lanes if lane.open and lane.has_room(LIMITS)]
    return min(loads, default=None)


def act(lanes: list[Lane], roomy: RoomyLanes, choice: random.Random) -> None:
    """Do one of the things that change a lane, as the dispatcher does."""
    lane = choice.choice(lanes)
    what = choice.randrange(6)
    if what == 0:
        lane.take_back()
        lane.measured([choice.uniform(0.01, 1.0)], choice.uniform(0.01, 0.5))
        roomy.put(lane)
    elif what == 1:
        lane.unconfirmed_records = choice.randrange(8)
        roomy.put(lane)
    elif what == 2 and choice.random() < 0.1:
        lane.leaving = True
    elif what == 3 and choice.random() < 0.1:
        lane.give_up()
        roomy.drop(lane)
    elif (chosen := roomy.best()) is not None:
        chosen.gather(pending())


@pytest.mark.parametrize("seed", range(5))
@gen_test()
async def test_the_choice_is_that_of_who_looks_at_all_whatever_happens(seed):
    choice = random.Random(seed)
    lanes = [Lane(str(number), nothing) for number in range(20)]
    roomy = RoomyLanes(LIMITS)
    for lane in lanes:
        roomy.put(lane)
    for _ in range(2000):
        act(lanes, roomy, choice)
        best = roomy.best()
        assert (None if best is None else best.load) == least(lanes)


@gen_test()
async def test_lanes_of_equal_load_get_their_turns():
    lanes = [Lane(str(number), nothing) for number in range(4)]
    roomy = RoomyLanes(LIMITS)
    for lane in lanes:
        roomy.put(lane)
    for _ in range(8):
        lane = roomy.best()
        assert lane is not None
        lane.gather(pending())
    assert [lane.batches for lane in lanes] == [2, 2, 2, 2]


@gen_test()
async def test_outdated_entries_do_not_pile_up():
    lanes = [Lane(str(number), nothing) for number in range(3)]
    roomy = RoomyLanes(LIMITS)
    for _ in range(1000):
        for lane in lanes:
            roomy.put(lane)
    assert len(roomy) <= 16
