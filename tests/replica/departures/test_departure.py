"""A replica that leaves finishes its mini-batches and hands its model over."""

from __future__ import annotations

import asyncio
import functools
import logging

import pytest
from departing import FleetOf, Slow, until
from distributed.utils_test import captured_logger, gen_cluster
from helpers import CLASSES, linear_data

from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.errors import (
    ReplicaLeavingError,
    ReplicaLostError,
    TensairTimeoutError,
)
from tensair_dask.exchange.wire import unpack

three = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60
)
one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


@three()
async def test_what_a_replica_has_is_learned_answered_and_handed_over(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    data = linear_data(60)
    feeding = [
        asyncio.create_task(fleet.feed(data[at : at + 20], each))
        for each, at in enumerate((0, 20, 40))
    ]
    await until(lambda: len(fleet.learned) > 10)
    status = await fleet.call(0, "leave", 10.0)
    assert status.leaving
    await asyncio.gather(*feeding)
    assert len(fleet.learned) == 60
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_gradients_that_wait_to_be_published_are_published(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    (replica,) = workers[0].state.actors.values()
    replica.exchange.due = lambda busy: None  # it never publishes by itself
    del replica
    await fleet.learn(linear_data(10), 0)
    assert (await fleet.call(1, "status")).version == 0
    await fleet.call(0, "leave", 10.0)
    for each in (1, 2):
        assert (await fleet.call(each, "status")).version == 10
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_new_work_is_refused_and_what_is_under_way_is_answered(c, s, *workers):
    addresses = [w.address for w in workers]
    fleet = await FleetOf(c, addresses, model=Slow).start()
    (x, y), *_ = linear_data(1)
    sent = [
        asyncio.create_task(fleet.call(0, "learn", fleet.block([(x, y)] * 2)))
        for _ in range(2)
    ]
    await fleet.call(0, "status")
    predicting = asyncio.create_task(fleet.call(0, "predict", fleet.block([(x, y)])))
    evaluating = asyncio.create_task(
        fleet.call(0, "evaluate", fleet.block([(x, y)]), "session")
    )
    departures = workers[0].plugins["tensair-departures"]
    await until(lambda: replica(workers[0]).departure.under_way == 4)
    leaving = asyncio.create_task(departures.leave(10.0))
    await until(lambda: replica(workers[0]).departure.begun)
    for function, *rest in (("learn",), ("predict",), ("evaluate", "another")):
        with pytest.raises(ReplicaLeavingError, match="replica-0 leaves: its worker"):
            await fleet.call(0, function, fleet.block([(x, y)]), *rest)
    for outcome in await asyncio.gather(*sent):
        assert len(outcome.losses) == 2
        assert outcome.status.leaving
    assert unpack(await predicting)["value"].shape == (4, CLASSES)
    await evaluating
    assert (await fleet.call(0, "evaluate", None, "session"))["samples"] == 4
    assert await leaving == ["replica-0"]
    assert (await fleet.call(1, "status")).version == 4
    with pytest.raises(ReplicaLostError):
        await fleet.call(0, "snapshot")
    fleet.release()


@one()
async def test_a_block_that_overtook_a_refused_one_is_refused_with_it(c, s, a):
    fleet = await FleetOf(c, [a.address]).start()
    pair = linear_data(1)
    zero, first = (
        Block.join(fleet.run_id, [MiniBatch.of(*pair[0])], number) for number in (0, 1)
    )
    overtaking = asyncio.create_task(fleet.call(0, "learn", first))
    await until(lambda: replica(a).thread.early)
    leaving = asyncio.create_task(fleet.call(0, "leave", 5.0))
    await until(lambda: replica(a).departure.begun)
    with pytest.raises(ReplicaLeavingError):
        await fleet.call(0, "learn", zero)
    with pytest.raises(ReplicaLeavingError):
        await asyncio.wait_for(overtaking, 2)
    assert (await leaving).steps == 0
    fleet.release()


def replica(worker):
    (found,) = worker.state.actors.values()
    return found


@three()
async def test_peers_do_not_wait_for_a_replica_that_has_left(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    await fleet.call(0, "leave", 10.0)
    await fleet.call(0, "leave", 10.0)  # has been done
    await fleet.learn(linear_data(5), 1)
    assert (await fleet.call(1, "flush", 5.0)).version == 5
    assert (await fleet.call(2, "status")).version == 5
    assert (await fleet.call(0, "status")).version == 0
    fleet.release()


@three()
async def test_all_may_leave_at_the_same_time(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    await asyncio.gather(*(fleet.learn(linear_data(5), each) for each in range(3)))
    begin = asyncio.get_running_loop().time()
    await asyncio.gather(*(fleet.call(each, "leave", 10.0) for each in range(3)))
    assert asyncio.get_running_loop().time() - begin < 5
    fleet.release()


@one()
async def test_one_without_peers_says_that_its_model_goes_with_it(c, s, a):
    fleet = await FleetOf(c, [a.address]).start()
    await fleet.learn(linear_data(3), 0)
    with captured_logger(
        "tensair_dask.replica.departure", level=logging.WARNING
    ) as log:
        await fleet.call(0, "leave", 0.2)
    assert "what it learned in 3 steps goes with it" in log.getvalue()
    assert await fleet.call(0, "snapshot")  # somebody may still save it
    fleet.release()


@one()
@pytest.mark.parametrize("word", [("let_go", True), ("set_free",)])
async def test_one_without_peers_waits_for_a_word_of_after_it_began_to_leave(
    c, s, a, word
):
    fleet = await FleetOf(c, [a.address]).start()
    await fleet.learn(linear_data(4), 0)
    await fleet.call(0, "let_go", True)  # one has joined from it, and is gone since
    leaving = asyncio.create_task(fleet.call(0, "leave", 30.0))
    free = replica(a).departure.free
    await until(lambda: free._waiters or leaving.done())
    await fleet.call(0, "let_go", False)  # another one has tried in vain
    assert not free.is_set()
    await fleet.call(0, *word)
    assert (await leaving).leaving
    fleet.release()


@three()
async def test_a_block_for_which_time_is_short_is_refused_as_a_whole(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers], model=Slow).start()
    data = linear_data(30)
    # 3 s of work, the first blocks of it within half of the time.
    sent = [
        asyncio.create_task(fleet.learn(data[at : at + 3], 0)) for at in range(0, 30, 3)
    ]
    await until(lambda: replica(workers[0]).departure.under_way == 10)
    begin = asyncio.get_running_loop().time()
    await fleet.call(0, "leave", 2.0)
    assert asyncio.get_running_loop().time() - begin < 2.0
    await asyncio.gather(*sent)
    assert 1 <= fleet.refused < 10
    assert len(fleet.learned) == 30
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_a_step_that_takes_too_long_is_reported_and_leaving_can_be_tried_again(
    c, s, *workers
):
    fleet = await FleetOf(c, [w.address for w in workers], model=Slow).start()
    x, y = linear_data(1)[0]
    replica(workers[0]).learner.model.seconds = 1.0
    learning = asyncio.create_task(fleet.learn([(x, y)], 0))
    await until(lambda: replica(workers[0]).departure.under_way == 1)
    with pytest.raises(TensairTimeoutError, match="has not left within"):
        await fleet.call(0, "leave", 0.2)
    await fleet.call(0, "leave", 10.0)
    await learning
    await fleet.check([1, 2])
    fleet.release()
