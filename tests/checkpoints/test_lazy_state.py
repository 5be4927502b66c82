"""Models that become more than their factory built are saved, restored and joined."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, mlp, train_all, until
from torch import nn

import tensair_dask as ta
from tensair_dask.checkpoints import Store
from tensair_dask.errors import CheckpointError, TensairTimeoutError

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
one = functools.partial(
    gen_cluster,
    client=True,
    nthreads=[("127.0.0.1", 1)],
    timeout=60,
    config={"tensair.replicas.watch": "20ms"},
)


class Growing(nn.Module):
    """Makes a scale at first, keeps a queue, and counts beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("scale", None)
        self.register_buffer("queue", torch.empty(0, FEATURES))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            self.scale = torch.full((CLASSES,), 2.0)
        self.queue = torch.cat([self.queue, x])[-40:]
        self.calls += 1
        return self.layer(x) * self.scale

    def get_extra_state(self) -> Any:
        return self.calls

    def set_extra_state(self, state: Any) -> None:
        self.calls = state


class Unsaveable(nn.Module):
    """Builds a layer with a state while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(CLASSES, affine=False)
        return self.norm(self.layer(x))


@two()
async def test_what_was_made_while_it_ran_is_saved_and_read(c, s, a, b, tmp_path):
    arguments = classes(model=Growing, replicas=1)
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, class_data(10))
        path = await trainer.save(tmp_path / "model.tensair")
        saved = await trainer.state_dict()
    checkpoint, _ = Store(path).load()
    assert checkpoint.made == ["queue", "scale"]
    async with ta.Trainer.restore(
        path, c, **classes(model=Growing, replicas=2)
    ) as trainer:
        for state in (await trainer.state_dicts()).values():
            assert state["_extra_state"] == saved["_extra_state"] == 10
            assert torch.equal(state["queue"], saved["queue"])
            assert torch.equal(state["scale"], saved["scale"])
        await train_all(trainer, class_data(10))


@one()
async def test_a_replica_joins_a_model_that_has_grown(c, s, a):
    async with ta.Trainer(c, **classes(model=Growing)) as trainer:
        await train_all(trainer, class_data(10))
        async with Worker(s.address, nthreads=1):
            await until(lambda: len(trainer.session.replicas.alive()) == 2)
            await train_all(trainer, class_data(10))
            states = list((await trainer.state_dicts()).values())
            assert [len(each["queue"]) for each in states] == [40, 40]


@one()
async def test_what_cannot_be_taken_over_is_said_at_the_first_step(c, s, a, tmp_path):
    async with ta.Trainer(c, **classes(model=Unsaveable)) as trainer:
        await train_all(trainer, class_data(10))
        assert any("'norm.running_mean'" in each for each in trainer.events["text"])
        with pytest.raises(CheckpointError, match=r"'norm\.running_mean' .*factory"):
            await trainer.save(tmp_path / "model.tensair")
        assert not list(tmp_path.iterdir())
        async with Worker(s.address, nthreads=1):
            with pytest.raises(TensairTimeoutError, match=r"'norm\.running_mean'"):
                await trainer.scale(2, timeout=3)
        (reported,) = [
            each for each in trainer.events["text"] if "No replica could be" in each
        ]
        assert "'norm.running_mean'" in reported
        await train_all(trainer, class_data(10))


class WithObject(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"words": frozenset("abc")}

    def set_extra_state(self, state: Any) -> None:
        pass


@one()
async def test_a_state_that_does_not_travel_is_named_at_the_first_step(
    c, s, a, tmp_path
):
    model = functools.partial(WithObject, FEATURES, CLASSES)
    async with ta.Trainer(c, **classes(model=model)) as trainer:
        await train_all(trainer, class_data(2))
        assert any("_extra_state" in each for each in trainer.events["text"])
        with pytest.raises(CheckpointError, match="_extra_state"):
            await trainer.save(tmp_path / "model.tensair")


def compiled() -> nn.Module:
    return torch.compile(mlp(), backend="eager")


def compiled_within() -> nn.Module:
    model = mlp()
    model[0] = torch.compile(model[0], backend="eager")
    return model


@two()
@pytest.mark.parametrize("saved", [mlp, compiled, compiled_within])
@pytest.mark.parametrize("restored", [mlp, compiled, compiled_within])
async def test_checkpoints_of_compiled_and_plain_models_are_the_same(
    c, s, a, b, tmp_path, saved, restored
):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    async with ta.Trainer(c, **classes(model=saved, optimizer=adam)) as trainer:
        await train_all(trainer, class_data(10))
        path = await trainer.save(tmp_path / "model.tensair")
    checkpoint, _ = Store(path).load()
    mlp().load_state_dict(checkpoint.model)
    arguments = classes(model=restored, optimizer=adam)
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        x = class_data(1)[0][0]
        expected = mlp()
        expected.load_state_dict(checkpoint.model)
        assert torch.allclose(
            torch.from_numpy(await trainer.predict(x)),
            expected(torch.from_numpy(x)),
            atol=1e-6,
        )
        await train_all(trainer, class_data(10))
