"""A position counts items: it means nothing where their order changes."""

from __future__ import annotations

import pytest
import torch
from distributed.utils_test import gen_cluster, gen_test
from helpers import class_data, classes
from streamz import Stream
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import tensair_dask as ta
import tensair_dask.sources
from tensair_dask.errors import SourceError

DATA = TensorDataset(torch.arange(12))
WEIGHTS = torch.ones(12)


def seeded():
    return torch.Generator().manual_seed(7)


def used():
    generator = seeded()
    torch.rand(1, generator=generator)
    return generator


async def passed(items, positions=None):
    source = Stream.from_batches(
        items, name="mine", positions=positions, asynchronous=True
    )
    got = source.sink_to_list()
    async with source:
        await source.ended()
    return [torch.as_tensor(each[0]).tolist() for each in got]


@pytest.mark.parametrize(
    ("items", "why"),
    [
        (DataLoader(DATA, 4, shuffle=True), "RandomSampler draws another order"),
        (
            DataLoader(DATA, sampler=WeightedRandomSampler(WEIGHTS, 12)),
            "WeightedRandomSampler draws another",
        ),
        (
            DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
            "RandomSampler draws another order",
        ),
        (DataLoader(DATA, 4, shuffle=True, generator=used()), "has been drawn from"),
        ({(1,), (2,)}, r"a set has no order.*sorted\(items\)"),
        (frozenset([(1,), (2,)]), "a frozenset has no order"),
    ],
)
@gen_test()
async def test_what_comes_in_another_order_is_not_gone_on_with(items, why):
    assert await passed(items)
    with pytest.raises(SourceError, match=f"cannot go on behind item 1.*{why}"):
        await passed(items, {"mine": {"items": 1}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(DATA, 4),
        lambda: DataLoader(DATA, 4, shuffle=True, generator=seeded()),
        lambda: [(torch.arange(4),), (torch.arange(4),), (torch.ones(4),)],
        lambda: {0: (1,)}.values(),
    ],
)
@gen_test()
async def test_what_comes_in_one_order_is_gone_on_with(make):
    whole = await passed(make())
    assert await passed(make(), {"mine": {"items": 1}}) == whole[1:]


@pytest.mark.parametrize("keeps", [True, False])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_trainer_with_checkpoints_warns_beforehand(c, s, a, tmp_path, keeps):
    (x, y), *_ = class_data(1)
    data = TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    kept = {"checkpoint_to": str(tmp_path / "kept")} if keeps else {}
    async with ta.Trainer(c, **classes(), **kept) as trainer:
        loader = DataLoader(data, 4, shuffle=True)
        source = Stream.from_batches(loader, asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        async with source:
            await source.ended()
        await trainer.drain()
        assert len(reports) == len(loader)
        reported = [each for each in trainer.events["text"] if "gone on with" in each]
        assert len(reported) == keeps
