"""A copy reaches all others in about log2 N rounds, whoever is lost on the way."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from tensair_dask.coordinator.copying import spread
from tensair_dask.coordinator.membership.join import _copy_kept


class Copies:
    """Copies that take one second each, by a clock of their own."""

    def __init__(self, count, dice=None, lost=0.0, broken=()):
        self.others = list(range(1, count))
        self.has = {0: 0}
        self.given = []
        self.busy = set()
        self.most_at_source = 0
        self.lost = set()
        self._dice, self._lose, self._broken = dice, lost, set(broken)

    async def give(self, giver, taker, gives_on):
        if giver:
            assert giver not in self.busy, "each gives to one at a time"
        self.given.append((giver, taker, gives_on))
        if giver in self.lost or taker in self._broken:
            return False
        self.busy.add(giver)
        await asyncio.sleep(0)
        self.busy.discard(giver)
        start = max(self.has[giver], self._free.get(giver, 0))
        self._free[giver] = self.has[taker] = start + 1
        if self._dice is not None and self._dice.random() < self._lose:
            self.lost.add(taker)
        return True

    def spread(self):
        self._free = {}
        asyncio.run(spread(0, self.others, self.give))
        return self


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 64, 100, 1024])
def test_all_have_it_after_as_many_rounds_as_doublings(count):
    copies = Copies(count).spread()
    assert set(copies.has) == set(range(count))
    assert max(copies.has.values()) == math.ceil(math.log2(count))
    assert len(copies.given) == count - 1


@pytest.mark.parametrize("count", [2, 9, 100])
def test_those_that_give_it_on_were_told_so(count):
    copies = Copies(count).spread()
    givers = {giver for giver, _, _ in copies.given if giver}
    assert givers == {taker for _, taker, gives_on in copies.given if gives_on}


@pytest.mark.parametrize("seed", range(50))
def test_whoever_is_lost_after_it_has_it_takes_it_from_nobody(seed):
    copies = Copies(40, random.Random(seed), lost=0.3).spread()
    assert set(copies.has) == set(range(40))


@pytest.mark.parametrize("seed", range(50))
def test_one_that_cannot_take_it_keeps_it_from_nobody(seed):
    dice = random.Random(seed)
    broken = dice.sample(range(1, 40), 5)
    copies = Copies(40, dice, lost=0.2, broken=broken).spread()
    assert set(copies.has) == set(range(40)) - set(broken)
    assert len(copies.given) <= 2 * 39, "asked twice at most"


def test_an_error_ends_it():
    async def give(giver, taker, gives_on):
        raise KeyError(taker)

    with pytest.raises(KeyError):
        asyncio.run(spread(0, [1, 2, 3], give))


class New:
    """A new replica, as the client calls it."""

    def __init__(self, name, lost=(), broken=()):
        self.peer = name
        self.lost, self.broken = lost, broken

    async def call_within(self, seconds, function, peer, kept, gives_on):
        assert (function, kept) == ("adopt", True)
        await asyncio.sleep(0)
        if self.peer in self.broken or peer in self.lost:
            raise OSError(self.peer)


def test_what_has_failed_at_a_giver_only_is_no_failure():
    lost, broken = {"1", "5"}, {"3"}
    joining = [New(str(number), lost, broken) for number in range(1, 9)]
    failed, givers = asyncio.run(_copy_kept(New("source"), joining))
    assert [each.peer for each in failed] == ["3"]
    assert "1" in {each.peer for each in givers}
    assert not broken & {each.peer for each in givers}
