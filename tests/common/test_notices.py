"""Notices are said once to the user, wherever they arise."""

from __future__ import annotations

import functools
import logging

from distributed.utils_test import gen_cluster
from helpers import linear, linear_data, train_all

import tensair_dask as ta
from tensair_dask import _wording
from tensair_dask._common import notices
from tensair_dask._common.notices import Notices

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


def test_the_same_key_is_said_once():
    said = Notices()
    assert said.say("a", "first")
    assert not said.say("a", "again")
    assert said.take() == {"a": "first"}
    assert said.take() == {}
    assert not said.say("a", "after it was passed on")
    assert said.take() == {}


def test_keys_that_user_code_makes_take_bounded_memory():
    said = Notices()
    for number in range(notices.MOST + 10):
        said.say(f"key {number}", "text")
    assert len(said.take()) == notices.MOST
    assert not said.say("one more", "text")


def test_a_long_text_is_cut():
    said = Notices()
    said.say("a", "x" * 10_000_000)
    assert len(said.take()["a"]) < _wording.LONGEST + 10


@two()
async def test_what_two_replicas_notice_is_one_warning_and_one_event(c, s, a, b):
    caught = []

    class Keep(logging.Handler):
        def emit(self, record):
            caught.append(record.getMessage())

    logger = logging.getLogger("tensair_dask.coordinator.run_events")
    logger.addHandler(handler := Keep())
    try:
        async with ta.Trainer(c, **linear()) as trainer:
            for worker in (a, b):
                (replica,) = worker.state.actors.values()
                replica.learner.notices.say("key", "every replica notices this")
            await train_all(trainer, linear_data(40))
            await trainer.drain()
            assert caught.count("every replica notices this") == 1
            texts = list(trainer.events["text"])
            assert texts.count("every replica notices this") == 1
    finally:
        logger.removeHandler(handler)


@two()
async def test_what_is_said_after_the_last_mini_batch_comes_with_drain(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(4))
        (replica,) = b.state.actors.values()
        replica.learner.notices.say("late", "noticed late")
        await trainer.drain()
        assert "noticed late" in list(trainer.events["text"])


@two()
async def test_the_client_says_a_key_once(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        trainer.session.intake.say_once("key", "at the client")
        trainer.session.intake.say_once("key", "at the client, again")
        assert [t for t in trainer.events["text"] if "client" in t] == ["at the client"]
