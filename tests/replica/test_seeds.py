"""A run with one replica in a worker process repeats itself, random numbers and all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from helpers import CLASSES, FEATURES, class_data, classes
from torch import nn

import tensair_dask as ta


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES)
    )


def seeding_dropout() -> nn.Module:
    torch.manual_seed(42)
    return dropout()


class Noisy(nn.Module):
    """Draws from the generator itself, and keeps what it drew first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("first", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(4)
        if not self.first.any():
            self.first.copy_(noise)
        return self.layer(x + 0.1 * torch.randn_like(x))


class NoisyByOthers(nn.Module):
    """Draws its weight and its noise from numpy and from Python's own generator."""

    def __init__(self) -> None:
        super().__init__()
        weight = np.random.randn(FEATURES, CLASSES).astype("float32")
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.scale = random.random()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = self.scale * np.random.randn()
        return (x + 0.1 * noise) @ self.weight


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def state(client: Client, model: Any, seed: int) -> dict[str, torch.Tensor]:
    arguments = classes(model=model, seed=seed, replicas=1)
    with ta.Trainer(client, **arguments) as trainer:
        for x, y in class_data(10):
            trainer.train(x, y)
        return trainer.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.processes
def test_a_run_repeats_itself_with_its_seed_and_not_with_another(client):
    for model in (dropout, seeding_dropout, Noisy, NoisyByOthers):
        first = state(client, model, 0)
        assert same(first, state(client, model, 0))
        assert same(first, state(client, model, 0))
        assert not same(first, state(client, model, 1))


@pytest.mark.processes
def test_replicas_draw_other_numbers_each(client):
    for _ in range(2):
        with ta.Trainer(client, **classes(model=Noisy)) as trainer:
            while True:
                for x, y in class_data(10):
                    trainer.train(x, y)
                one, other = (each["first"] for each in trainer.state_dicts().values())
                if one.any() and other.any():
                    break
            assert not torch.equal(one, other)


@pytest.mark.processes
def test_the_generator_of_the_client_is_left_alone_also_where_the_workers_live_in_it():
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        with ta.Trainer(client, **classes()) as trainer:
            for x, y in class_data(3):
                trainer.train(x, y)
        assert torch.equal(torch.get_rng_state(), before)
