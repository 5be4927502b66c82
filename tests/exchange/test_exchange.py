"""The invariant: all replicas hold initial - lr * (sum of all gradients)."""

from __future__ import annotations

import asyncio
import functools
import random
import time

import dask
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    RATE,
    class_data,
    classes,
    expected_weight,
    linear,
    linear_data,
    spread,
    train_all,
)
from torch import nn

import tensair_dask as ta
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.exchange import Exchange, Holding
from tensair_dask.pubsub import faults
from tensair_dask.pubsub.faults import Fault

TOLERANCE = {"atol": 2e-4, "rtol": 0}
cluster = functools.partial(gen_cluster, client=True, timeout=60)


def workers(count: int) -> list[tuple[str, int]]:
    return [("127.0.0.1", 1)] * count


async def assert_the_invariant_holds(client, replicas: int, count: int = 120) -> None:
    data = linear_data(count)
    async with ta.Trainer(client, **linear(replicas=replicas)) as trainer:
        reports = await train_all(trainer, data)
        assert all(report.error is None for report in reports)
        states = await trainer.state_dicts()
        assert len(states) == replicas
        expected = expected_weight(data)
        for state in states.values():
            assert torch.allclose(state["weight"].double(), expected, **TOLERANCE)
        assert {info.version for info in trainer.replicas} == {count}


@cluster(nthreads=workers(2))
async def test_the_invariant_holds_for_2_replicas(c, s, a, b):
    await assert_the_invariant_holds(c, 2)


@cluster(nthreads=workers(3))
async def test_the_invariant_holds_for_3_replicas(c, s, *_):
    await assert_the_invariant_holds(c, 3)


@cluster(nthreads=workers(5))
async def test_the_invariant_holds_for_5_replicas(c, s, *_):
    await assert_the_invariant_holds(c, 5)


@cluster(nthreads=workers(2))
async def test_the_invariant_holds_for_several_replicas_on_one_worker(c, s, a, b):
    await assert_the_invariant_holds(c, 4)


@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_the_invariant_holds_under_random_delays_and_conflation(replicas):
    @cluster(nthreads=workers(replicas), config={"tensair.exchange.staleness": "1ms"})
    async def run(c, s, *_):
        data = linear_data(300)
        dice = random.Random(replicas)
        with faults.inject(Fault.DELAY, lambda _: dice.random() * 0.03):
            async with ta.Trainer(c, **linear()) as trainer:
                await train_all(trainer, data)
                states = await trainer.state_dicts()
                stats = await trainer.exchange_stats()
        for state in states.values():
            assert torch.allclose(
                state["weight"].double(), expected_weight(data), **TOLERANCE
            )
        # Gradients that waited for a slow link were summed into one message.
        assert sum(one["conflated"] for one in stats.values()) > 0

    run()


@pytest.mark.parametrize("fault", [Fault.CONNECT_FAILS, Fault.SENT_ACK_LOST])
def test_every_gradient_is_applied_exactly_once_under_reconnects(fault):
    @cluster(
        nthreads=workers(3),
        config={"tensair.exchange.staleness": "1ms", "tensair.pubsub.retry": "1ms"},
    )
    async def run(c, s, *_):
        data = linear_data(300)
        dice = random.Random(1)
        struck: list[bool] = []

        def strikes(destination: object) -> bool:
            struck.append(dice.random() < 0.3)
            return struck[-1]

        with faults.inject(fault, strikes):
            async with ta.Trainer(c, **linear()) as trainer:
                await train_all(trainer, data)
                states = await trainer.state_dicts()
                versions = {info.version for info in trainer.replicas}
        assert sum(struck) > 0
        assert versions == {300}
        for state in states.values():
            assert torch.allclose(
                state["weight"].double(), expected_weight(data), **TOLERANCE
            )

    run()


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.Adam, lr=0.01),
        functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    ],
    ids=["adam", "momentum"],
)
def test_updates_make_replicas_agree_under_any_optimizer(optimizer):
    @cluster(nthreads=workers(3))
    async def run(c, s, *_):
        arguments = classes(optimizer=optimizer, share="update")
        async with ta.Trainer(c, **arguments) as trainer:
            before = await trainer.state_dict()
            await train_all(trainer, class_data(200))
            states = await trainer.state_dicts()
            assert spread(states) < 1e-4
            assert spread({"before": before, "after": states.popitem()[1]}) > 0.01

    run()


@cluster(nthreads=workers(3))
async def test_replicas_of_a_nonlinear_model_agree_after_a_drain(c, s, *_):
    async with ta.Trainer(c, **classes()) as trainer:
        await train_all(trainer, class_data(200))
        assert spread(await trainer.state_dicts()) < 1e-5


class Embeddings(nn.Module):
    """Two tables of different width beside a dense layer; one row is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 5, sparse=True, padding_idx=0)
        self.bags = nn.EmbeddingBag(30, 3, sparse=True)
        self.layer = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([self.words(ids).mean(1), self.bags(ids % 30)], 1))


TWO_ADAMS = {
    "sparse": functools.partial(torch.optim.SparseAdam, lr=0.01),
    "dense": functools.partial(torch.optim.Adam, lr=0.01),
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"share": "gradient"},
        {"share": "update"},
        {"share": "update", "optimizer": TWO_ADAMS},
        {
            "share": "update",
            "optimizer": functools.partial(torch.optim.Adagrad, lr=0.05),
        },
    ],
    ids=["gradients", "updates", "two optimizers", "Adagrad"],
)
def test_sparse_tables_beside_dense_layers_agree_after_a_drain(arguments):
    @cluster(nthreads=workers(3))
    async def run(c, s, *_):
        generator = torch.Generator().manual_seed(0)
        data = [
            (
                torch.randint(0, 40, (8, 4), generator=generator),
                torch.randint(0, 3, (8,), generator=generator),
            )
            for _ in range(100)
        ]
        async with ta.Trainer(c, **classes(model=Embeddings, **arguments)) as trainer:
            before = await trainer.state_dict()
            await train_all(trainer, data)
            states = await trainer.state_dicts()
        assert spread(states) < 1e-4
        state = next(iter(states.values()))
        assert torch.equal(state["words.weight"][0], torch.zeros(5))
        assert not torch.equal(state["words.weight"], before["words.weight"])

    run()


@cluster(nthreads=workers(2))
async def test_staleness_is_measured_for_each_message(c, s, a, b):
    with dask.config.set({"tensair.exchange.staleness": "5ms"}):
        async with ta.Trainer(c, **linear()) as trainer:
            reports = await train_all(trainer, linear_data(400))
            stats = list((await trainer.exchange_stats()).values())
    assert max(report.staleness for report in reports) > 0
    for one in stats:
        assert 0 < one["staleness_mean"] <= one["staleness_max"] <= 400
        assert 0 < one["age_mean"] <= one["age_max"] < 60
        assert one["received"] > 0
        assert one["refused"] == 0


@cluster(
    nthreads=workers(2),
    config={"tensair.pubsub.linger": "1h", "tensair.exchange.staleness": "1ms"},
)
async def test_replicas_that_close_together_wait_for_none(c, s, *_, caplog):
    # What they publish arrives when neither of them applies anything any more.
    with faults.inject(Fault.DELAY, lambda _: 0.3):
        trainer = await ta.Trainer(c, **linear())
        await asyncio.gather(*(trainer.train(*each) for each in linear_data(8)))
        await trainer.close()
    assert not [text for text in caplog.messages if "did not close within" in text]


def test_gradients_that_stay_older_than_requested_are_reported_once(
    monkeypatch, caplog
):
    monkeypatch.setattr("tensair_dask.exchange.ages.LOOK", 2)

    @cluster(nthreads=workers(2))
    async def run(c, s, *_):
        with faults.inject(Fault.DELAY, lambda _: 0.05):
            async with ta.Trainer(c, **linear(staleness="1ms")) as trainer:
                while "are applied, in the mean" not in caplog.text:
                    await train_all(trainer, linear_data(4))
                await train_all(trainer, linear_data(4))

    run()
    assert caplog.text.count("were asked for (staleness=)") == 1


@cluster(nthreads=workers(1))
async def test_a_single_replica_exchanges_nothing(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(20))
        (stats,) = (await trainer.exchange_stats()).values()
    assert stats["sent"] == stats["received"] == 0


@cluster(nthreads=workers(2))
async def test_the_staleness_that_the_client_asks_for_holds_on_the_workers(c, s, a, b):
    async with ta.Trainer(c, **linear(staleness="10s")) as trainer:
        for x, y in linear_data(20):
            await trainer.train(x, y)
        stats = await trainer.exchange_stats()
        # Publishing costs next to nothing, so the share of time decides, not the bound.
        assert all(one["interval"] < 5 for one in stats.values())
    with dask.config.set({"tensair.exchange.share-of-time": 1e-9}):
        async with ta.Trainer(c, **linear(staleness="10s")) as trainer:
            await trainer.train(*linear_data(1)[0])
            await trainer.drain()
            await trainer.train(*linear_data(1)[0])
            await trainer.drain()
            stats = await trainer.exchange_stats()
            assert any(one["interval"] > 5 for one in stats.values())


def bags() -> nn.Module:
    """Sums of rows: the gradient of a row is the sum of the targets that it met."""
    model = nn.EmbeddingBag(40, 3, mode="sum", sparse=True)
    nn.init.ones_(model.weight)
    return model


@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("compression", ["none", "int8"])
def test_the_invariant_holds_for_sparse_tables(share, compression):
    @cluster(nthreads=workers(3), config={"tensair.exchange.staleness": "1ms"})
    async def run(c, s, *_):
        generator = torch.Generator().manual_seed(0)
        data = [
            (
                torch.randint(0, 40, (8, 4), generator=generator),
                torch.randn(8, 3, generator=generator),
            )
            for _ in range(150)
        ]
        total = torch.zeros(40, 3, dtype=torch.float64)
        for ids, y in data:
            total.index_add_(0, ids.flatten(), y.double().repeat_interleave(4, 0))
        arguments = linear(model=bags, share=share, compression=compression)
        async with ta.Trainer(c, **arguments) as trainer:
            await train_all(trainer, data)
            states = await trainer.state_dicts()
        for state in states.values():
            expected = 1.0 - RATE * total
            assert torch.allclose(state["weight"].double(), expected, **TOLERANCE)

    run()


@cluster(nthreads=workers(2))
async def test_a_drain_with_nothing_to_say_sends_nothing(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(20))
        before = await trainer.exchange_stats()
        await trainer.drain()
        after = await trainer.exchange_stats()
    assert [x["sent"] for x in before.values()] == [x["sent"] for x in after.values()]


def test_a_model_that_was_taken_over_has_just_changed():
    arena = Arena(nn.Linear(2, 2))
    exchange = Exchange("run", "me", arena, lambda total: None, lambda: None)
    built = exchange.changed
    exchange.adopted(Holding({"me": 3, "other": 4}, {"other": 5}))
    assert exchange.clock.version == 7
    assert built < exchange.changed <= time.monotonic()
