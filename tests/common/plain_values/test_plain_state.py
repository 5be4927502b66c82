"""Objects that go on where others were, without a class being named in a file."""

from __future__ import annotations

import collections
import random
import threading
from array import array
from collections import defaultdict, deque

import numpy as np
import pytest

from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import CheckpointError


class Thing:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Other(Thing):
    pass


def fresh():
    shared = [1, 2]
    return Thing(
        none=None,
        number=0,
        text="",
        numbers=array("d", [0.0, 0.0]),
        array=np.zeros(2),
        last=deque(maxlen=3),
        rows=deque(maxlen=100),
        names=set(),
        counts=collections.Counter(),
        nested=defaultdict(lambda: defaultdict(float)),
        pair=(Thing(value=0), 1),
        shared=shared,
        again=shared,
        inner=Thing(inner=Thing(value=0)),
        random=random.Random(0),
        function=len,
    )


def used():
    thing = fresh()
    thing.none, thing.number, thing.text = 2.5, 2**70, "ü"
    thing.numbers[1] = 7.0
    thing.array = np.arange(5)
    thing.last.extend([3, 4, 5, 6])
    thing.rows.extend((at, at / 2, None) for at in range(80))
    thing.names.update(["a", ("b", 1)])
    thing.counts.update("hello")
    thing.nested[True][b"x"] = 0.5
    thing.pair[0].value = 8
    thing.shared.append(3)
    thing.inner.inner.value = float("inf")
    thing.random.random()
    return thing


def test_all_that_has_changed_is_there_and_kinds_stay():
    one, other = used(), fresh()
    plain_state.put(other, plain_state.take(one))
    assert (other.none, other.number, other.text) == (2.5, 2**70, "ü")
    assert other.numbers == one.numbers
    assert other.array.tolist() == [0, 1, 2, 3, 4]
    assert other.last == deque([4, 5, 6])
    assert other.last.maxlen == 3
    assert other.rows == one.rows
    assert other.names == one.names
    assert type(other.counts) is collections.Counter
    assert other.counts == one.counts
    assert other.nested == one.nested
    assert other.nested["new"]["one"] == 0.0
    assert other.pair[0].value == 8
    assert other.inner.inner.value == float("inf")
    assert other.random.random() == one.random.random()
    assert other.function is len


def test_what_is_one_object_stays_one():
    one, other = used(), fresh()
    plain_state.put(other, plain_state.take(one))
    other.shared.append(4)
    assert other.again == [1, 2, 3, 4]


def test_what_is_empty_empties():
    other = used()
    plain_state.put(other, plain_state.take(fresh()))
    assert not other.last
    assert not other.names
    assert not other.counts
    assert not other.nested
    assert other.shared == [1, 2]


def test_rows_travel_as_columns():
    state = plain_state.take(Thing(rows=[(at, at / 2) for at in range(100)]))
    columns = state["attributes"]["rows"]["list"]["columns"]
    assert columns == [list(range(100)), [at / 2 for at in range(100)]]


@pytest.mark.parametrize(
    "value", [object(), threading.Lock(), Thing, random, np.array(["a"]), iter([])]
)
def test_what_is_not_plain_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match=r"^it\.a\[1\]\.b\['c'\] is a "):
        plain_state.take(Thing(a=[0, Thing(b={"c": value})]), where="it")


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (Thing(a=Thing()), Thing(a=Other()), r"an Other where it\.a has a Thing"),
        (Thing(a=Thing()), Thing(a=1), r"a value where it\.a has a Thing"),
        (Thing(a=1), Thing(a=Thing()), r"a Thing where it\.a has an? int"),
        (Thing(b=1), Thing(a=1), "it has no 'a', which the state has"),
        (Thing(a=array("d")), Thing(a=array("d", [1.0])), "1 numbers where it.a has"),
        (Thing(a=[]), Thing(a=deque()), r"a deque where it\.a has a list"),
    ],
)
def test_a_state_of_something_else_is_refused(here, there, said):
    with pytest.raises(CheckpointError, match=said):
        plain_state.put(here, plain_state.take(there), "it")


@pytest.mark.parametrize("state", [{}, {"same": 5}, {"keys": [1]}, [], {"list": 3}])
def test_nonsense_is_refused(state):
    node = {"class": "Thing", "attributes": {"a": state}}
    with pytest.raises(CheckpointError):
        plain_state.put(Thing(a=[]), node)


def test_what_is_nested_too_deeply_is_refused_by_name():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(CheckpointError, match=r"^It is nested too deeply"):
        plain_state.take(nested, where="It")
