"""What things hold is compared, and put back."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tensair_dask._common.contents import Contents


@dataclass(slots=True)
class Slotted:
    rows: int = 0


class Own:
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


def setting(name, value):
    return lambda thing: setattr(thing, name, value)


THINGS = {
    "list": (lambda: [1, [2]], lambda thing: thing[1].append(3)),
    "dict": (lambda: {"a": {"b": 1}}, lambda thing: thing["a"].update(b=2)),
    "set": (lambda: {1}, lambda thing: thing.add(2)),
    "deque": (lambda: deque([1], maxlen=3), lambda thing: thing.append(2)),
    "counter": (lambda: Counter("aab"), lambda thing: thing.update("a")),
    "object": (lambda: Own(n=1), setting("n", 2)),
    "new attribute": (lambda: Own(n=1), setting("m", 1)),
    "slots": (Slotted, setting("rows", 1)),
    "within": (
        lambda: Own(all=[Slotted()]),
        lambda thing: setting("rows", 1)(thing.all[0]),
    ),
    "tensor": (lambda: Own(t=torch.ones(2)), lambda thing: thing.t.zero_()),
    "array": (lambda: (np.ones(2),), lambda thing: thing[0].fill(0)),
    "type": (lambda: [1], lambda thing: thing.__setitem__(0, True)),
}


@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("whole", [False, True])
def test_what_changes_is_seen(kind, whole):
    make, change = THINGS[kind]
    thing = make()
    before = Contents([("it", thing)], whole=whole)
    assert Contents([("it", thing)], whole=whole).tokens == before.tokens
    change(thing)
    assert Contents([("it", thing)], whole=whole).tokens != before.tokens
    if whole:
        before.restore()
        assert Contents([("it", thing)], whole=whole).tokens == before.tokens


@pytest.mark.parametrize("value", [float("nan"), torch.device("cpu"), np.float64(1.5)])
def test_values_that_are_the_same_are_no_change(value):
    again = type(value)(value)
    assert Contents([("it", value)]).tokens == Contents([("it", again)]).tokens


def test_what_refers_to_itself_or_is_not_the_users_is_passed_over():
    ring: list[Any] = [logging.getLogger("here"), print, torch.Generator()]
    ring.append(ring)
    before = Contents([("it", ring)], whole=True)
    logging.getLogger("here.deeper").setLevel(10)
    assert Contents([("it", ring)], whole=True).tokens == before.tokens
