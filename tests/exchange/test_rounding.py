"""What int8 leaves out of a message arrives later, or is lost with its replica."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import RATE, expected_weight, feed, linear, linear_data, train_all, until
from lab import SILENT, cluster, cut_off, exchange_of, handle_on

import tensair_dask as ta

EXACT = {"atol": 2e-5, "rtol": 0}


def leave(model: Any, optimizers: Any) -> None:
    """Change nothing."""


async def publish_in_parts(
    trainer: Any, workers: Any, data: list[Any], share: str = "gradient"
) -> list[Any]:
    """Learn and publish in rounded messages; give what each replica has left out."""
    exchanges = [exchange_of(trainer, worker) for worker in workers]
    arenas = []
    for exchange in exchanges:
        exchange.due = lambda busy: None
    for part in (data[:20], data[20:]):
        reports = feed(trainer, part)
        await until(lambda reports=reports, part=part: len(reports) == len(part))
        for worker, exchange in zip(workers, exchanges, strict=True):
            replica = worker.state.actors[handle_on(trainer, worker).key]
            arenas.append(replica.learner.arena)
            await replica.thread.call(exchange.publish)
            await exchange.flushed(10)
    left = []
    for exchange, arena in zip(exchanges, arenas, strict=False):
        (view,) = arena.layout.views(exchange._compressor._buffers)
        left.append(view.double().clone())
        moves = (RATE if share == "gradient" else 1.0) * left[-1].abs().max()
        assert moves > 3 * EXACT["atol"]  # it would be seen
    return left


async def weights(trainer: Any) -> list[torch.Tensor]:
    states = await trainer.state_dicts()
    return [state["weight"].double() for state in states.values()]


@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("what", ["leaves", "applies", "drains", "joins"])
def test_what_rounding_left_out_is_handed_over_by_all_that_live(what, share):
    @cluster(3, config=SILENT)
    async def run(c, s, *workers):
        data = linear_data(60)
        arguments = linear(compression="int8", share=share, replicas=2)
        async with ta.Trainer(c, **arguments) as trainer:
            addresses = {
                each.place.address for each in trainer.session.replicas.handles
            }
            two = [each for each in workers if each.address in addresses]
            await publish_in_parts(trainer, two, data[:40], share)
            if what == "leaves":
                await trainer.scale(1)
            elif what == "joins":
                await trainer.scale(3)
            elif what == "applies":
                await trainer.apply(leave)
            else:
                await trainer.drain()
            for weight in await weights(trainer):
                assert torch.allclose(weight, expected_weight(data[:40]), **EXACT)
            await train_all(trainer, data[40:])
            for weight in await weights(trainer):
                assert torch.allclose(weight, expected_weight(data), **EXACT)

    run()


@cluster(2, config=SILENT)
async def test_what_rounding_left_out_is_lost_with_a_replica_that_is_killed(c, s, a, b):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(compression="int8", replicas=2)) as trainer:
        lost, _ = await publish_in_parts(trainer, (a, b), data[:40])
        cut_off(trainer, a)
        await train_all(trainer, data[40:])
        # No more than that: half of one of 127 steps for each number.
        for weight in await weights(trainer):
            assert torch.allclose(weight - RATE * lost, expected_weight(data), **EXACT)
