"""A step of the optimizers is made as a whole, or not at all."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from learners import CPU, SGD, data, learner
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tensair_dask.errors import ReplicaFailedError, StepError
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.replica import before_step
from tensair_dask.replica.learner import Learner

Adam = functools.partial(torch.optim.Adam, lr=0.1)
Momentum = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Table(nn.Module):
    """A table beside a dense layer."""

    def __init__(self, rows: int = 10) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 4, sparse=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


class Own(torch.optim.Optimizer):
    """Moves parameters one by one, and its state with them."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.fails = False

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for number, parameter in enumerate(self.param_groups[0]["params"]):
                if number and self.fails:
                    raise MemoryError("no room for the second")
                state = self.state[parameter]
                state["sum"] = state.get("sum", 0.0) + parameter.grad.to_dense()
                state.setdefault("seen", []).append(number)
                parameter -= 0.1 * state["sum"]
                self.param_groups[0]["lr"] *= 0.5


class Switch:
    """A hook that raises when the test says so, having moved what it can reach."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self, optimizer: Any, *_: Any) -> None:
        if self.error is not None:
            with torch.no_grad():
                first = optimizer.param_groups[0]["params"][0]
                first.add_(1.0)
                optimizer.param_groups[0]["lr"] = 5.0
            raise self.error


def with_hook(factory: Any, register: str, switch: Switch) -> Any:
    def build(parameters: Any) -> Any:
        optimizer = factory(parameters)
        getattr(optimizer, register)(switch)
        return optimizer

    return build


def everything(ours: Learner) -> tuple[Any, Any]:
    return copy.deepcopy(ours.state_dict()), copy.deepcopy(
        [each.state_dict() for each in ours.optimizers]
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one.to_dense(), other.to_dense())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def words(samples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(samples) % 5, torch.arange(samples) % 2


def refused_in_between(
    ours: Learner, undisturbed: Learner, item: Any, fail: Callable[[], Any]
) -> None:
    """A step that fails, between two that do not, is as if it had never been."""
    ours.learn(*item, 8)
    undisturbed.learn(*item, 8)
    before = everything(ours)
    with fail(), pytest.raises(StepError, match="as they were before"):
        ours.learn(*item, 8)
    assert same(before, everything(ours))
    assert all(p.grad is None for p in ours.model.parameters())
    ours.learn(*item, 8)
    undisturbed.learn(*item, 8)
    assert same(everything(undisturbed), everything(ours))


@pytest.mark.parametrize(
    "register", ["register_step_pre_hook", "register_step_post_hook"]
)
@pytest.mark.parametrize(
    "factory", [SGD, Momentum, Adam], ids=["sgd", "momentum", "adam"]
)
@pytest.mark.parametrize("error", [OSError("full"), SystemExit(1), KeyboardInterrupt()])
def test_a_hook_that_raises_leaves_everything_as_it_was(register, factory, error):
    switch = Switch()
    ours = learner(optimizer=with_hook(factory, register, switch))
    plain = learner(optimizer=with_hook(factory, register, Switch()))

    @contextmanager
    def fail() -> Iterator[None]:
        switch.error = error
        yield
        switch.error = None

    refused_in_between(ours, plain, data(), fail)


def test_a_hook_of_all_optimizers_that_raises_leaves_everything_as_it_was():
    switch = Switch()
    handle = register_optimizer_step_post_hook(switch)
    try:
        ours, plain = learner(), learner()

        @contextmanager
        def fail() -> Iterator[None]:
            switch.error = ValueError("no")
            yield
            switch.error = None

        refused_in_between(ours, plain, data(), fail)
    finally:
        handle.remove()


@pytest.mark.parametrize("small", [1_000_000, 0], ids=["whole", "rows"])
@pytest.mark.parametrize("first", [SGD, Adam], ids=["sgd", "adam"])
def test_a_second_optimizer_that_raises_undoes_the_first(monkeypatch, small, first):
    monkeypatch.setattr(before_step, "SMALL_TABLE", small)
    switch = Switch()
    kinds = {
        "dense": first,
        "sparse": with_hook(torch.optim.SparseAdam, "register_step_pre_hook", switch),
    }
    ours = learner(Table, optimizer=kinds)
    plain = learner(Table, optimizer={**kinds, "sparse": torch.optim.SparseAdam})

    @contextmanager
    def fail() -> Iterator[None]:
        # It moves a row of the table that the mini-batch touches.
        switch.error = RuntimeError("no")
        yield
        switch.error = None

    monkeypatch.setattr(Switch, "__call__", _moves_row_one)
    refused_in_between(ours, plain, words(), fail)


def _moves_row_one(switch: Switch, optimizer: Any, *_: Any) -> None:
    if switch.error is not None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0][1] += 1.0
        raise switch.error


@pytest.mark.parametrize("model", [None, Table], ids=["dense", "table"])
def test_an_optimizer_of_the_users_that_raises_half_way_is_undone(model):
    ours, plain = learner(model, optimizer=Own), learner(model, optimizer=Own)

    @contextmanager
    def fail() -> Iterator[None]:
        ours.optimizers[0].fails = True
        yield
        ours.optimizers[0].fails = False

    item = data() if model is None else words()
    refused_in_between(ours, plain, item, fail)


def test_a_state_that_finds_no_room_in_the_first_step_leaves_no_half_of_it(monkeypatch):
    ours, plain = learner(optimizer=Adam), learner(optimizer=Adam)
    before = everything(ours)
    make, made = torch.zeros_like, []

    def full(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(1)
        if len(made) > 1:
            raise torch.OutOfMemoryError("no room for a second moment")
        return make(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", full)
        with pytest.raises(StepError, match="OutOfMemoryError"):
            ours.learn(*data(), 8)
    assert same(before, everything(ours))
    ours.learn(*data(), 8)
    plain.learn(*data(), 8)
    assert same(everything(plain), everything(ours))


def of_peers(ours: Learner) -> Gradients:
    buffers = ours.arena.layout.zeros(CPU)
    for buffer in buffers:
        buffer.fill_(0.5)
    return Gradients(buffers)


@pytest.mark.parametrize(
    "register", ["register_step_pre_hook", "register_step_post_hook"]
)
def test_gradients_of_peers_are_applied_as_a_whole_or_not_at_all(register):
    switch = Switch()
    ours = learner(optimizer=with_hook(Adam, register, switch))
    ours.learn(*data(), 8)
    before = everything(ours)
    switch.error = OSError("full")
    with pytest.raises(StepError, match="full"):
        ours.apply(of_peers(ours))
    assert same(before, everything(ours))
    assert any("could not be applied" in each for each in ours.notices.take().values())
    switch.error = None
    ours.apply(of_peers(ours))
    assert not same(before, everything(ours))


def test_torchs_own_optimizer_is_copied_once_and_refuses_what_it_does_not_write():
    ours = learner(optimizer=Adam)
    ours.learn(*data(), 8)
    assert ours._stepper._before is None
    before = everything(ours)
    ours.optimizers[0].step = raises  # of which nobody could know
    with pytest.raises(StepError, match="as they were"):
        ours.learn(*data(), 8)
    assert same(before, everything(ours))


def test_what_is_half_written_and_was_not_copied_ends_the_replica():
    ours = learner(optimizer=Adam)
    ours.learn(*data(), 8)

    def half() -> None:
        with torch.no_grad():
            next(iter(ours.optimizers[0].state.values()))["exp_avg"].add_(1.0)
        raise MemoryError("no room")

    ours.optimizers[0].step = half
    with pytest.raises(ReplicaFailedError, match=r"half way.*no copy was taken"):
        ours.learn(*data(), 8)


def raises() -> None:
    raise RuntimeError("no luck")


def test_a_state_that_is_made_half_later_on_counts_as_written(monkeypatch):
    class Two(nn.Module):
        """The second layer is used when the test says so."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)
            self.both = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.two(x) if self.both else self.one(x)

    ours = learner(Two, optimizer=Adam)
    ours.learn(*data(), 8)
    ours.model.both = True

    make, made = torch.zeros_like, []

    def full(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(1)
        if len(made) > 1:
            raise MemoryError("no room")
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", full)
    with pytest.raises(ReplicaFailedError, match="no room"):
        ours.learn(*data(), 8)


class Holding(torch.optim.SGD):
    """Keeps what cannot be copied, and refers to its parameters."""

    def __init__(self, parameters: Any) -> None:
        parameters = list(parameters)
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["lock"] = threading.Lock()
        self.state["all"] = {"held": parameters, "counts": [0], "fails": False}

    def step(self, closure: Any = None) -> None:
        state = self.state["all"]
        state["counts"][0] += 1
        with torch.no_grad():
            for parameter in state["held"]:
                parameter -= 0.1 * parameter.grad
        if state["fails"]:
            raise RuntimeError("no")


def test_what_cannot_be_copied_and_what_is_the_models_stays_as_it_is():
    ours, plain = learner(optimizer=Holding), learner()
    (optimizer,) = ours.optimizers
    for fails in (False, True, False):
        optimizer.state["all"]["fails"] = fails
        if fails:
            with pytest.raises(StepError):
                ours.learn(*data(), 8)
            continue
        ours.learn(*data(), 8)
        plain.learn(*data(), 8)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], atol=1e-6)
    assert optimizer.state["all"]["counts"] == [2]
    for held, own in zip(optimizer.state["all"]["held"], ours.arena.dense, strict=True):
        assert held is own
