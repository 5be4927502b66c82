"""Places are offsets, and keep what they know through copies and checkpoints."""

from __future__ import annotations

import copy
import io
import json
import pickle

from tensair_dask._common.places import Place, Trail
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.format import decode, encode


def test_a_place_is_a_number_in_all_else():
    place = Place(500, 7)
    assert (place, repr(place), json.dumps({"a": place})) == (500, "500", '{"a": 500}')
    for copied in (copy.deepcopy(place), pickle.loads(pickle.dumps(place))):
        assert (copied, copied.seen) == (500, 7)


def test_a_trail_depends_on_the_file_and_the_offset_alone():
    data = bytes(range(256)) * 3
    for offset in (0, 1, 127, 128, 129, 200, 700):
        whole = Trail.of(io.BytesIO(data), offset).at(offset)
        for size in (1, 3, 100, 400):
            trail = Trail()
            pieces = [data[at : at + size] for at in range(0, offset, size)]
            if pieces:
                pieces[-1] = pieces[-1][: (offset - 1) % size + 1]
            trail.add(pieces)
            assert trail.at(offset).seen == whole.seen


def test_a_checkpoint_keeps_places_and_plain_offsets():
    positions = {"files": {"a": Place(5, 77), "b": 6}, "topic": {0: 17}}
    saved = encode(Checkpoint(model={}, positions=positions))
    read = decode(b"".join(saved)).positions
    assert read == {"files": {"a": 5, "b": 6}, "topic": {0: 17}}
    assert read["files"]["a"].seen == 77
    assert type(read["files"]["b"]) is type(read["topic"][0]) is int
