"""Calls of a file system that may not come back."""

from __future__ import annotations

import asyncio
import threading

import dask
import pytest

from tensair_dask.checkpoints import FileCall
from tensair_dask.errors import CheckpointError


def test_it_gives_what_the_function_returns_or_raises():
    async def test() -> None:
        assert await FileCall("read", "here", int, "7").result() == 7
        call = FileCall("write", "here", int, "seven")
        await call.ended()
        with pytest.raises(ValueError, match="seven"):
            await call.result()

    asyncio.run(test())


@pytest.mark.parametrize(("what", "words"), [("read", "read"), ("write", "written")])
def test_nobody_waits_for_a_call_that_hangs(what, words):
    gate = threading.Event()

    async def test() -> None:
        call = FileCall(what, "s3://here", gate.wait, 30)
        reported = rf"s3://here was not {words} within 0.02 s.*checkpoints\.{what} if"
        for _ in range(2):
            with pytest.raises(CheckpointError, match=reported):
                await call.result()
        gate.set()
        while True:  # it may come yet
            try:
                assert await call.result()
            except CheckpointError:
                await asyncio.sleep(0.001)
            else:
                break

    with dask.config.set({f"tensair.checkpoints.{what}": "20ms"}):
        asyncio.run(test())


def test_a_call_that_ends_after_its_loop_disturbs_nobody():
    gate = threading.Event()

    async def test() -> None:
        FileCall("read", "here", gate.wait, 30)

    asyncio.run(test())
    (thread,) = (
        each for each in threading.enumerate() if each.name == "tensair-checkpoint"
    )
    assert thread.daemon
    gate.set()
    thread.join(10)
    assert not thread.is_alive()
