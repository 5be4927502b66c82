"""Waits for a predicate: bounded, and heard when they are cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest
from distributed.utils_test import gen_test

from tensair_dask.errors import TensairTimeoutError
from tensair_dask.pubsub.pulse import Pulse


@gen_test()
async def test_what_holds_already_is_not_waited_for():
    await Pulse().until(lambda: True, 0, "nothing")


@gen_test()
async def test_each_beat_lets_the_predicate_be_looked_at():
    pulse, seen = Pulse(), []
    loop = asyncio.get_running_loop()

    def is_third() -> bool:
        seen.append(None)
        loop.call_soon(pulse.beat)
        return len(seen) == 3

    await pulse.until(is_third, None, "the third look")


@pytest.mark.parametrize("seconds", [-1, 0, 0.01])
@gen_test()
async def test_what_does_not_hold_in_time_is_named(seconds):
    with pytest.raises(TensairTimeoutError, match=rf"rain: not within {seconds:g} s"):
        await Pulse().until(lambda: False, seconds, "rain")


@gen_test()
async def test_what_holds_at_the_last_moment_holds():
    pulse, held = Pulse(), []
    waiting = asyncio.ensure_future(pulse.until(lambda: bool(held), 0.02, "it"))
    await asyncio.sleep(0)

    def hold() -> None:
        held.append(None)
        pulse.beat()

    asyncio.get_running_loop().call_later(0.01, hold)
    time.sleep(0.03)  # so that the beat and the end of the wait come in one turn
    await waiting


@gen_test()
async def test_a_cancellation_is_heard_though_the_beat_comes_at_once():
    pulse, held = Pulse(), []
    waiting = asyncio.ensure_future(pulse.until(lambda: bool(held), 10, "it"))
    await asyncio.sleep(0)
    held.append(None)
    pulse.beat()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
