"""What is called is copied with all that it keeps."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import nn

from tensair_dask.replica.fresh import fresh, may_keep_something


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: int = 1) -> int:
        self.count += step
        return self.count


def in_a_closure():
    count = 0

    def call() -> int:
        nonlocal count
        count += 1
        return count

    return call


def in_a_list():
    seen: list[int] = []

    def call() -> int:
        seen.append(1)
        return len(seen)

    return call


def through_another():
    inner = in_a_closure()
    return lambda: inner()


def on_itself():
    def call() -> int:
        call.count += 1
        return call.count

    call.count = 0
    return call


MAKERS = [
    Counting,
    lambda: Counting().__call__,
    lambda: functools.partial(Counting(), step=1),
    in_a_closure,
    lambda: functools.partial(in_a_closure()),
    in_a_list,
    through_another,
    on_itself,
]


@pytest.mark.parametrize("make", MAKERS)
def test_neither_sees_what_the_other_keeps(make):
    one = make()
    assert may_keep_something(one)
    other = fresh(one)
    assert [one(), one(), other(), one(), other()] == [1, 2, 1, 3, 2]


def plain(prediction, y):
    return 1.0


@pytest.mark.parametrize("one", [plain, functools.partial(plain, y=1), max, torch.sum])
def test_functions_that_keep_nothing_are_taken_as_they_are(one):
    assert not may_keep_something(one)


def test_parameters_of_modules_are_shared_and_buffers_are_not():
    one = nn.BatchNorm1d(3)
    other = fresh(one)
    assert other.weight is one.weight
    other(torch.rand(4, 3))
    assert not one.num_batches_tracked


def test_what_cannot_be_copied_raises():
    lock = threading.Lock()
    with pytest.raises(TypeError):
        fresh(lambda: lock)
