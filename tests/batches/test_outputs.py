"""What a model returns stays of its type, wherever its tensors go."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import carried

from tensair_dask.batches import outputs
from tensair_dask.exchange.wire import pack, unpack
from tensair_dask.replica.scoring import map_tensors


class Scores(NamedTuple):
    best: Any
    all: Any


@dataclasses.dataclass
class Heads:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """What is a dataclass and a dict, as transformers have them."""

    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        values = tuple(getattr(self, each.name) for each in dataclasses.fields(self))
        return ModelOutput, values


class Registry(dict):
    pass


class Layers(list):
    pass


ONE = torch.ones(2, 3)
OUTPUTS = [
    ONE,
    (ONE, ONE),
    [ONE, ONE],
    {"a": ONE, "b": [ONE]},
    Scores(ONE, (ONE, 3)),
    Heads(ONE),
    Heads(ONE, Scores(ONE, None)),
    Frozen({"x": ONE}),
    ModelOutput(logits=ONE),
    ModelOutput(logits=ONE, hidden=(ONE, ONE)),
    collections.OrderedDict(a=ONE),
    Registry(a=ONE),
    Layers([ONE]),
    torch.nn.utils.rnn.pack_sequence([ONE, ONE]),
    torch.max(ONE, 1),
    {"size": torch.Size([2, 3]), "x": ONE},
]


def alike(one: Any, other: Any) -> bool:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    items = outputs.contents(one)
    if items is None:
        return bool(one == other)
    theirs = outputs.contents(other)
    assert [key for key, _ in items] == [key for key, _ in theirs]
    return all(alike(a, b) for (_, a), (_, b) in zip(items, theirs, strict=True))


def kind_of(tree: Any) -> str:
    return type(tree).__name__


@pytest.mark.parametrize("output", OUTPUTS, ids=kind_of)
def test_other_tensors_are_put_into_the_same_containers(output):
    doubled = map_tensors(lambda tensor: tensor.double(), output)
    assert not alike_in_dtype(doubled)
    assert alike(map_tensors(torch.Tensor.float, doubled), map_float(output))
    if isinstance(output, ModelOutput):
        assert doubled.logits is doubled["logits"]
        assert doubled.hidden is doubled.get("hidden")
        assert output.logits.dtype == torch.float32


def alike_in_dtype(tree: Any) -> bool:
    found = []
    map_tensors(lambda tensor: found.append(tensor.dtype) or tensor, tree)
    return torch.float32 in found


def map_float(tree: Any) -> Any:
    return map_tensors(torch.Tensor.float, tree)


@pytest.mark.parametrize("output", OUTPUTS, ids=kind_of)
def test_the_types_of_outputs_travel(output):
    missing: list[str] = []
    there = carried(pack(output, typed=True))
    assert alike(unpack(there, missing.append), output)
    assert missing == []


@pytest.mark.parametrize("output", OUTPUTS, ids=kind_of)
def test_packed_outputs_may_be_part_of_what_is_pickled(output):
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(
        [pack(output, typed=True)], 5, buffer_callback=buffers.append
    )
    (again,) = pickle.loads(payload, buffers=buffers)
    assert alike(unpack(again, print), output)


def test_a_type_that_is_not_here_is_named_and_arrives_plain():
    class Local(NamedTuple):
        x: Any

    @dataclasses.dataclass
    class Data:
        x: Any

    class Mapped(dict):
        pass

    missing: list[str] = []
    for output, expected in [
        (Local(1), (1,)),
        (Data(2), {"x": 2}),
        (Mapped(x=3), {"x": 3}),
        (types.MappingProxyType({"x": 4}), {"x": 4}),
    ]:
        again = unpack(carried(pack(output, typed=True)), missing.append)
        assert again == expected
        assert type(again) is type(expected)
    assert [name.rpartition(".")[2] for name in missing] == [
        "Local",
        "Data",
        "Mapped",
        "mappingproxy",
    ]


def test_a_type_that_has_other_fields_here_is_not_taken(monkeypatch):
    there = pack([Scores(1, 2), Heads(1, 2)], typed=True)
    monkeypatch.setitem(globals(), "Scores", collections.namedtuple("Scores", "x"))
    monkeypatch.setitem(globals(), "Heads", Frozen)
    missing: list[str] = []
    assert unpack(there, missing.append) == [(1, 2), {"left": 1, "right": 2}]
    assert len(missing) == 2


def test_types_are_looked_for_only_where_they_are_wanted(monkeypatch):
    monkeypatch.setattr(outputs, "find", None)
    assert unpack(pack(Scores(1, 2), typed=True)) == (1, 2)


def test_no_code_of_a_type_is_run_when_it_arrives(monkeypatch):
    packed = pack([Scores(1, 2), Heads(1), ModelOutput(1), Registry(a=1)], typed=True)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError

    for kind in (Heads, ModelOutput, Registry):
        monkeypatch.setattr(kind, "__init__", refuse)
    monkeypatch.setattr(ModelOutput, "__setitem__", refuse)
    scores, heads, output, registry = unpack(packed, refuse)
    assert (scores, heads.left, output.logits, registry) == ((1, 2), 1, 1, {"a": 1})


def test_arrays_are_put_into_the_same_containers():
    found = map_tensors(lambda tensor: tensor.numpy(), Scores(ONE, [ONE]))
    assert type(found) is Scores
    assert type(found.all[0]) is np.ndarray
