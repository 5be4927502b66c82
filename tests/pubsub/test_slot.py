from __future__ import annotations

import os

import numpy as np
import pytest

from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.slot import AVAILABLE, Slot, pack

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no files in memory here")


def made(nbytes):
    slot, file = Slot.made(nbytes)
    os.close(file)
    return slot


def through_a_slot(*messages):
    header, frames, nbytes = pack([Parcel(each).seal() for each in messages], number=7)
    slot, file = Slot.made(nbytes)
    slot.write(header, frames)
    fields, found = Slot.received(file).read(len(header))
    assert fields["number"] == 7
    return [
        Parcel.sealed(sealed, frames).open()
        for (sealed, _), frames in zip(fields["parcels"], found, strict=True)
    ]


def test_messages_are_read_as_they_were_written():
    arrays = [np.arange(5.0), np.arange(100_000), np.zeros((0, 3), "float32")]
    read = through_a_slot(*arrays, {"plain": 1}, "text")
    for array, again in zip(arrays, read, strict=False):
        np.testing.assert_array_equal(array, again)
        assert array.dtype == again.dtype
    assert read[3:] == [{"plain": 1}, "text"]


def test_a_slot_is_used_again_for_what_fits():
    slot = made(10_000)
    for value in (b"first" * 100, b"second"):
        header, frames, nbytes = pack([({}, [value])])
        assert nbytes <= slot.nbytes
        slot.write(header, frames)
        _, ((frame,),) = slot.read(len(header))
        assert bytes(frame) == value


def test_a_slot_has_room_for_what_it_was_made_for():
    for nbytes in (1, 65_536, 65_537, 5_000_000):
        assert made(nbytes).nbytes >= nbytes


def test_frames_are_aligned_and_writable():
    header, frames, nbytes = pack([({}, [b"abc", b"defg", b""])])
    slot = made(nbytes)
    slot.write(header, frames)
    _, (found,) = slot.read(len(header))
    starts = [np.frombuffer(each, np.uint8).ctypes.data for each in found[:2]]
    assert all(start % 64 == 0 for start in starts)
    assert not any(each.readonly for each in found)
    assert list(map(bytes, found)) == [b"abc", b"defg", b""]


def test_the_size_of_a_slot_cannot_be_changed():
    slot, file = Slot.made(100)
    try:
        for size in (0, 2 * slot.nbytes):
            with pytest.raises(PermissionError):
                os.ftruncate(file, size)
    finally:
        os.close(file)


def test_memory_of_which_the_size_can_change_is_refused():
    file = os.memfd_create("other", os.MFD_CLOEXEC)
    os.ftruncate(file, 4096)
    with pytest.raises(OSError, match="sealed"):
        Slot.received(file)


@pytest.mark.parametrize("nbytes", [-1, 1 << 40])
def test_a_frame_that_lies_outside_is_refused(nbytes):
    import msgpack

    slot = made(100)
    header = msgpack.packb({"parcels": [[{}, [nbytes]]]})
    slot.write(header, [])
    with pytest.raises(ValueError, match="outside"):
        slot.read(len(header))


def test_what_cannot_be_packed_raises():
    with pytest.raises(TypeError):
        pack([({"header": object()}, [])])
