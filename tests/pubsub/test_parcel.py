from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from distributed.protocol import deserialize, serialize

from tensair_dask.pubsub.parcel import Parcel


@dataclass
class Message:
    values: np.ndarray
    name: str


def over_the_wire(parcel):
    header, frames = serialize(parcel)
    return deserialize(header, [bytearray(frame) for frame in frames])


def test_a_message_arrives_equal():
    got = over_the_wire(Parcel(Message(np.arange(5.0), "x"))).open()
    assert got.name == "x"
    np.testing.assert_array_equal(got.values, np.arange(5.0))


def test_arrays_inside_a_message_are_not_copied():
    message = Message(np.zeros(100_000), "x")
    _, frames = serialize(Parcel(message))
    assert any(
        np.shares_memory(np.frombuffer(frame, np.uint8), message.values.view(np.uint8))
        for frame in frames
    )


def test_an_array_that_arrived_can_be_written_to():
    got = over_the_wire(Parcel(Message(np.zeros(10), "x"))).open()
    got.values += 1


def test_a_message_is_serialized_once_for_all_destinations():
    class Counted:
        times = 0

        def __reduce__(self):
            Counted.times += 1
            return int, ()

    parcel = Parcel(Counted())
    for _ in range(3):
        serialize(parcel)
    # Dask may try more than one pickler, but only for the first destination.
    first = Counted.times
    serialize(parcel)
    assert Counted.times == first


def test_a_message_of_a_missing_class_fails_only_when_opened():
    class Vanishing:
        def __reduce__(self):
            return _explode, ()

    parcel = over_the_wire(Parcel(Vanishing()))
    with pytest.raises(ImportError, match="no such module"):
        parcel.open()


def _explode():
    raise ImportError("no such module")


def test_a_message_that_cannot_be_pickled_fails_when_sealed():
    with pytest.raises((TypeError, pickle.PicklingError)):
        Parcel(i for i in range(3)).seal()


def test_the_size_is_known_once_sealed():
    parcel = Parcel(np.zeros(1000, np.uint8))
    parcel.seal()
    assert parcel.nbytes >= 1000
