"""Seeds hold, whoever else draws random numbers in the process."""

from __future__ import annotations

import functools
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, feed, train_all
from torch import nn

import tensair_dask as ta
from tensair_dask.replica import randomness
from tensair_dask.replica.learner import Learner, Recipe
from tensair_dask.replica.randomness import Drawing, seeded

four = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 4, timeout=120
)


def draw(times: int = 50) -> list[float]:
    return [torch.rand(300, 30).sum().item() for _ in range(times)]


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(functions)
    begin = threading.Barrier(len(functions))

    def run(number: int) -> None:
        begin.wait()
        results[number] = functions[number]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def drawn_with(seed: int) -> list[float]:
    with seeded(seed):
        return draw()


def test_each_seed_gives_its_own_numbers_on_several_threads_at_once():
    expected = [drawn_with(seed) for seed in (0, 1, 0)]
    calls = [functools.partial(drawn_with, seed) for seed in (0, 1, 0)]
    for _ in range(5):
        assert in_threads(*calls) == expected


def test_it_gives_them_while_others_draw():
    expected = drawn_with(0)
    drawing = Drawing()
    ended = threading.Event()

    def step() -> None:
        while not ended.is_set():
            with drawing:
                torch.rand(10)

    def build() -> list[Any]:
        try:
            return [drawn_with(0) for _ in range(10)]
        finally:
            ended.set()

    _, built = in_threads(step, build)
    assert built == [expected] * 10


def test_the_generator_goes_on_where_it_was():
    torch.manual_seed(5)
    expected = draw(2)
    torch.manual_seed(5)
    first = draw(1)
    drawn_with(0)
    assert first + draw(1) == expected


def test_after_a_factory_that_fails_all_may_draw_and_build():
    drawing = Drawing()
    with pytest.raises(ZeroDivisionError), seeded(0):
        raise ZeroDivisionError
    with drawing:
        draw(1)
    drawn_with(0)


def test_nobody_waits_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(randomness, "LIMIT", 0.01)
    drawing = Drawing()
    with drawing:
        in_threads(functools.partial(drawn_with, 0))
    assert "a step" in caplog.text
    with seeded(0):

        def step() -> None:
            with drawing:
                draw(1)

        in_threads(step)
    assert "a model factory" in caplog.text


@pytest.fixture
def nobody_draws(monkeypatch):
    monkeypatch.setattr(randomness, "_all", weakref.WeakSet())
    with torch.random.fork_rng(devices=[]):
        yield


def trained_with(seed: int, replica: str, drawing: Drawing) -> list[float]:
    assert randomness.seed_training(seed, replica, drawing, "the client's")
    return draw(3)


def test_training_draws_the_same_again_and_each_replica_others(nobody_draws):
    drawing = Drawing()
    first = trained_with(0, "replica-0", drawing)
    others = [(1, "replica-0"), (0, "replica-1"), (-1, "replica-0"), (2**63, "r")]
    assert trained_with(0, "replica-0", drawing) == first
    assert first not in [trained_with(*each, drawing) for each in others]


def test_training_is_not_seeded_where_others_draw_or_the_client_lives(nobody_draws):
    mine, other = Drawing(), Drawing()
    before = torch.get_rng_state()
    assert not randomness.seed_training(0, "replica-0", mine, "another process")
    other.end()
    here = randomness.this_process()
    assert not randomness.seed_training(0, "replica-0", mine, here)
    assert torch.equal(torch.get_rng_state(), before)
    assert randomness.seed_training(0, "replica-0", mine, "another process")


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def scripted() -> nn.Module:
    return torch.jit.script(Scripted())


def compiled() -> nn.Module:
    return torch.compile(Scripted(), backend="aot_eager")


@pytest.mark.parametrize("factory", [scripted, compiled])
def test_translated_models_are_built_and_learn_on_several_threads(factory):
    recipe = Recipe(
        factory,
        nn.functional.cross_entropy,
        functools.partial(torch.optim.SGD, lr=0.1),
        {},
        "gradient",
        0,
        False,
    )
    data = [
        (torch.from_numpy(x), torch.from_numpy(y))
        for samples in (4, 7, 16)
        for x, y in class_data(2, samples)
    ]

    def learn() -> list[float]:
        learner = Learner(recipe, torch.device("cpu"))
        with torch.enable_grad():
            return [learner.learn(x, y, len(x))[0].loss for x, y in data]

    first, *others = in_threads(*[learn] * 3)
    assert others == [first] * 2


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.Dropout(), nn.Linear(64, CLASSES))


@four()
async def test_a_model_is_the_same_while_another_trainer_draws(c, s, *workers):
    states = []
    async with ta.Trainer(c, **classes(model=noisy)) as busy:
        reports = feed(busy, class_data(300))
        for _ in range(5):
            async with ta.Trainer(c, **classes(model=noisy, seed=3)) as trainer:
                states.append(await trainer.state_dict())
        await busy.drain()
        assert len(reports) == 300
    for state in states:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


@four()
async def test_a_compiled_model_learns_on_all_workers_of_a_process(c, s, *workers):
    async with ta.Trainer(c, **classes(model=compiled)) as trainer:
        reports = await train_all(trainer, class_data(60))
        assert all(report.error is None for report in reports)


def test_the_other_generators_are_seeded_too_and_go_on_where_they_were():
    def drawn() -> list[Any]:
        return [np.random.rand(), np.random.permutation(9).tolist(), random.random()]

    random.seed(1)
    np.random.seed(1)
    expected = drawn()
    random.seed(1)
    np.random.seed(1)
    built = []
    for seed in (0, 0, 1, -1, 2**63):
        with seeded(seed):
            built.append(drawn())
    assert drawn() == expected
    first, again, *others = built
    assert first == again
    assert all(first != each for each in others)


def test_training_draws_the_same_again_from_them(nobody_draws):
    before = np.random.get_state(), random.getstate()
    drawing = Drawing()
    drawn = []
    for replica in ("replica-0", "replica-0", "replica-1"):
        assert randomness.seed_training(0, replica, drawing, "the client's")
        drawn.append((np.random.rand(), random.random()))
    np.random.set_state(before[0])
    random.setstate(before[1])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]


def test_a_bit_generator_of_the_users_is_left_as_it_is():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        expected = np.random.RandomState(np.random.PCG64(3)).rand()
        with seeded(0):
            np.random.rand()
        assert np.random.rand() == expected
    finally:
        np.random.set_bit_generator(before)
