"""Work is done in order, one piece at a time."""

from __future__ import annotations

import asyncio
import logging

import pytest
from distributed.utils_test import gen_test

from tensair_dask._common.serial_queue import OneByOne
from tensair_dask.errors import TensairTimeoutError, TrainerClosedError


@gen_test()
async def test_work_is_done_in_the_order_in_which_it_was_given():
    works, done = OneByOne("Counting"), []

    async def count(number: int) -> None:
        await asyncio.sleep(0.01 / (1 + number))
        done.append(number)

    for number in range(10):
        works.do(lambda number=number: count(number))
    await works.settled(10)
    assert done == list(range(10))
    works.do(lambda: count(10))
    await works.settled(10)
    assert done[-1] == 10


@gen_test()
async def test_what_fails_is_logged_and_the_next_is_done(caplog):
    works, done = OneByOne("Dividing"), []

    async def divide(by: int) -> None:
        done.append(1 / by)

    with caplog.at_level(logging.WARNING):
        works.do(lambda: divide(0))
        works.do(lambda: divide(2))
        await works.settled(10)
    assert done == [0.5]
    assert "Dividing failed" in caplog.text


@gen_test()
async def test_after_the_end_of_the_trainer_nothing_more_is_done():
    works, done = OneByOne("Asking"), []

    async def closed() -> None:
        raise TrainerClosedError("closed")

    async def ask() -> None:
        done.append(1)

    works.do(closed)
    works.do(ask)
    await works.settled(10)
    assert not done


@gen_test()
async def test_the_wait_for_it_is_bounded():
    works = OneByOne("Waiting")
    works.do(asyncio.Event().wait)
    works.do(asyncio.Event().wait)
    with pytest.raises(TensairTimeoutError, match="Waiting was not done within"):
        await works.settled(0.01)
    await works.close()


@gen_test()
async def test_there_may_be_nothing_to_wait_for():
    works = OneByOne("Nothing")
    await works.settled(0.01)
    await works.close()
