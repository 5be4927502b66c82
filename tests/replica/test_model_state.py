"""A copy of a model takes over the state of another copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensair_dask.errors import ModelError
from tensair_dask.replica.model_state import ModelState

CPU = torch.device("cpu")
X = torch.ones(4, 3)


class Late(nn.Module):
    """Makes a buffer at the first forward pass, where None was."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            self.scale = torch.full((2,), 2.0)
        return self.layer(x) * self.scale


class Registering(Late):
    """Registers it only then."""

    def __init__(self) -> None:
        super().__init__()
        del self.scale
        self.scale = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            del self.scale
            self.register_buffer("scale", torch.full((2,), 2.0))
        return self.layer(x) * self.scale


class Queue(nn.Module):
    """Keeps what it has seen, more at each pass, and counts in another type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("seen", torch.empty(0, 3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("cache", torch.zeros(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, x])
        self.count = self.count.double() + 0.5
        self.cache = None
        return self.layer(x)


class Forgetting(nn.Module):
    """Lets go of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("start", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.start = None
        return self.layer(x)


class Extra(nn.Module):
    """Has a state beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.words = ["a"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.words = [*self.words, "b"]
        return self.layer(x)

    def get_extra_state(self) -> Any:
        return {"words": self.words}

    def set_extra_state(self, state: Any) -> None:
        self.words = list(state["words"])


class Nested(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


KINDS = [Late, Registering, Queue, Forgetting, Extra]


def taken_over(source: nn.Module, target: nn.Module, before: int = 0) -> None:
    there, here = ModelState(source, CPU), ModelState(target, CPU)
    for _ in range(2):
        source(X)
    for _ in range(before):
        target(X)
    state = there.copy()
    there.check(state)
    here.put(state, there.made())
    again = here.copy()
    assert list(again) == list(state)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert again[name].dtype == value.dtype
            assert torch.equal(again[name], value)
        else:
            assert again[name] == value
    assert here.made() == there.made()
    assert torch.equal(target(X), source(X))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_new_model_takes_over_what_was_made_while_it_ran(kind, before):
    taken_over(kind(), kind(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_lies_within_another_does_so_too(kind):
    taken_over(Nested(kind), Nested(kind))


@pytest.mark.parametrize("kind", [Late, Registering, Queue])
def test_what_was_made_here_and_not_there_goes(kind):
    fresh, target = kind(), kind()
    there, here = ModelState(fresh, CPU), ModelState(target, CPU)
    target(X)
    here.put(there.copy(), there.made())
    assert here.made() == []
    assert list(here.copy()) == list(there.copy())


def test_what_was_built_otherwise_does_not_fit():
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    other.running_mean = torch.zeros(4)
    there, here = ModelState(other, CPU), ModelState(one, CPU)
    with pytest.raises(RuntimeError, match="running_mean"):
        here.put(there.copy(), there.made())
    bare = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(RuntimeError, match=r"Missing key.*running_mean"):
        here.put(ModelState(bare, CPU).copy())


class Building(nn.Module):
    """Builds a layer while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(2, affine=False)
        return self.norm(self.layer(x))


class GivesOnly(Extra):
    set_extra_state = nn.Module.set_extra_state


class Renames(nn.Linear):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {"other": super().state_dict()["weight"]}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Building(), r"'norm\.running_mean' .*factory"),
        (Nested(GivesOnly), r"'inner\._extra_state' .*set_extra_state"),
        (Renames(3, 2), "other"),
    ],
)
def test_what_no_new_model_could_take_over_is_named(model, name):
    state = ModelState(model, CPU)
    model(X)
    with pytest.raises(ModelError, match=name):
        state.check(state.copy())


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_within(model: nn.Module) -> nn.Module:
    model.inner = compiled(model.inner)
    return model


def compiled_twice(model: nn.Module) -> nn.Module:
    return compiled(compiled_within(model))


def plain(model: nn.Module) -> nn.Module:
    return model


WAYS = [plain, compiled, compiled_within, compiled_twice]


@pytest.mark.parametrize("there", WAYS)
@pytest.mark.parametrize("here", WAYS)
def test_compiled_and_plain_models_take_each_others_state_over(there, here):
    source, target = there(Nested(Late)), here(Nested(Late))
    state = ModelState(source, CPU)
    source(X)
    copied = state.copy()
    assert set(copied) == {
        "inner.layer.weight",
        "inner.layer.bias",
        "inner.scale",
    }
    ModelState(target, CPU).put(copied, state.made())
    assert torch.equal(target(X), source(X))


def test_so_they_do_if_the_names_are_those_of_the_compiled_one():
    source, target = compiled(nn.Linear(3, 2)), nn.Linear(3, 2)
    ModelState(target, CPU).put(source.state_dict())
    assert torch.equal(target.weight, source.weight)
