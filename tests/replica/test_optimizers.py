"""Steps with the own gradients, and with those of other replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.replica.optimizers import Stepper

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Bench:
    """A model in an arena beside one that torch trains alone."""

    def __init__(
        self, build: Callable[[], nn.Module], optimizer: Callable[[Any], Any]
    ) -> None:
        torch.manual_seed(0)
        self.model = build()
        torch.manual_seed(0)
        self.plain = build()
        self.arena = Arena(self.model)
        self.optimizer = optimizer(self.arena.parameters)
        self.stepper = Stepper([self.optimizer], self.arena)
        self.reference = optimizer(list(self.plain.parameters()))

    def gradients(self, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(p.shape, generator=generator) for p in self.arena.dense]

    def message(self, gradients: list[torch.Tensor]) -> Gradients:
        buffers = self.arena.layout.zeros(torch.device("cpu"))
        for view, gradient in zip(
            self.arena.layout.views(buffers), gradients, strict=True
        ):
            view.copy_(gradient)
        return Gradients(buffers)

    def step_alone(self, gradients: list[torch.Tensor]) -> None:
        for parameter, gradient in zip(self.plain.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        self.reference.step()
        self.reference.zero_grad()

    def step(self, gradients: list[torch.Tensor]) -> Any:
        for parameter, gradient in zip(self.arena.dense, gradients, strict=True):
            parameter.grad = gradient.clone()
        changes = self.stepper.step_locally()
        for parameter in self.arena.dense:
            parameter.grad = None
        return changes

    def agrees(self) -> bool:
        pairs = zip(self.model.parameters(), self.plain.parameters(), strict=True)
        return all(torch.allclose(mine, theirs, atol=1e-6) for mine, theirs in pairs)


OPTIMIZERS = {
    "sgd": SGD,
    "decay": functools.partial(SGD, weight_decay=0.1),
    "maximize": functools.partial(SGD, maximize=True),
    "nesterov": functools.partial(SGD, momentum=0.9, nesterov=True),
    "nesterov, all at once": functools.partial(
        SGD, momentum=0.9, nesterov=True, foreach=True
    ),
    "adam": functools.partial(torch.optim.Adam, lr=0.1),
    "two groups": lambda parameters: torch.optim.SGD(
        [
            {"params": parameters[:1], "lr": 0.1},
            {"params": parameters[1:], "lr": 0.01},
        ]
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_own_and_foreign_gradients_step_as_torch_does(optimizer):
    bench = Bench(lambda: nn.Linear(3, 2), optimizer)
    for seed in range(3):
        mine, theirs = bench.gradients(seed), bench.gradients(100 + seed)
        bench.step(mine)
        bench.stepper.apply("gradient", bench.message(theirs))
        bench.step_alone(mine)
        bench.step_alone(theirs)
        assert bench.agrees()
        assert all(parameter.grad is None for parameter in bench.arena.dense)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_shared_is_the_gradient_as_it_was_before_the_step(optimizer):
    bench = Bench(lambda: nn.Linear(3, 2), optimizer)
    for seed in range(3):
        gradients = bench.gradients(seed)
        changes = bench.step(gradients)
        for shared, gradient in zip(changes.dense, gradients, strict=True):
            assert torch.equal(shared, gradient)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_message_is_not_changed_by_applying_it(optimizer):
    bench = Bench(lambda: nn.Linear(3, 2), optimizer)
    for seed in range(3):
        message = bench.message(bench.gradients(seed))
        before = [buffer.clone() for buffer in message.buffers]
        bench.stepper.apply("gradient", message)
        for was, now in zip(before, message.buffers, strict=True):
            assert torch.equal(was, now)


def test_hooks_of_the_optimizer_run_and_do_not_touch_what_is_shared():
    def clipped(parameters: Any) -> torch.optim.Optimizer:
        optimizer = SGD(parameters)

        def clip(optimizer: Any, *_: Any) -> None:
            group = optimizer.param_groups[0]
            torch.nn.utils.clip_grad_value_(group["params"], 0.01)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    bench = Bench(lambda: nn.Linear(3, 2), clipped)
    gradients = bench.gradients(0)
    message = bench.message(gradients)
    changes = bench.step(gradients)
    bench.stepper.apply("gradient", message)
    bench.step_alone(gradients)
    bench.step_alone(gradients)
    assert bench.agrees()
    assert torch.equal(changes.dense[0], gradients[0])
    assert torch.equal(bench.arena.layout.views(message.buffers)[0], gradients[0])


def test_a_learning_rate_that_changes_holds_for_own_and_foreign_gradients():
    bench = Bench(lambda: nn.Linear(3, 2), SGD)
    for group in (*bench.optimizer.param_groups, *bench.reference.param_groups):
        group["lr"] = 0.5
    gradients = bench.gradients(0)
    bench.step(gradients)
    bench.stepper.apply("gradient", bench.message(gradients))
    bench.step_alone(gradients)
    bench.step_alone(gradients)
    assert bench.agrees()


class Odd(nn.Module):
    """Parameters of every shape: a single number, none at all, and two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.wide = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.filters = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimizer", [SGD, OPTIMIZERS["adam"]])
def test_parameters_of_every_shape_and_dtype_are_stepped(optimizer):
    bench = Bench(Odd, optimizer)
    gradients = [
        gradient.to(parameter.dtype)
        for gradient, parameter in zip(
            bench.gradients(0), bench.arena.dense, strict=True
        )
    ]
    bench.step(gradients)
    bench.stepper.apply("gradient", bench.message(gradients))
    bench.step_alone(gradients)
    bench.step_alone(gradients)
    assert bench.agrees()
