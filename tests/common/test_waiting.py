"""Waits that end, and that hear when they are cancelled."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tensair_dask._common.waiting import within


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def value(result: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.parametrize("seconds", [None, 10])
@on_a_loop
async def test_what_comes_in_time_is_given(seconds):
    assert await within(value(3), seconds) == 3
    with pytest.raises(ZeroDivisionError):
        await within(value(ZeroDivisionError()), seconds)


@on_a_loop
async def test_what_is_late_is_cancelled():
    late = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await within(late, 0)
    assert late.cancelled()


@on_a_loop
async def test_several_that_are_late_are_cancelled():
    late = [asyncio.get_running_loop().create_future() for _ in range(2)]
    with pytest.raises(asyncio.TimeoutError):
        await within(asyncio.gather(*late), 0)
    assert all(each.cancelled() for each in late)


@on_a_loop
async def test_what_comes_while_it_is_cancelled_is_given():
    async def stubborn() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 3
        raise AssertionError

    assert await within(stubborn(), 0) == 3


@on_a_loop
async def test_a_cancellation_reaches_what_is_waited_for():
    inner = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(inner, 10))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inner.cancelled()


@pytest.mark.parametrize("outcome", [3, ZeroDivisionError()])
@on_a_loop
async def test_a_cancellation_is_heard_though_the_result_comes_at_once(outcome):
    complaints = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    inner = loop.create_future()
    waiting = asyncio.ensure_future(within(inner, 10))
    await asyncio.sleep(0)
    if isinstance(outcome, Exception):
        inner.set_exception(outcome)
    else:
        inner.set_result(outcome)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del inner, waiting
    gc.collect()
    assert not complaints
