from __future__ import annotations

import pickle
import time

import pytest
import torch
from distributed.protocol import serialize
from helpers import carried
from messages import message

from tensair_dask.exchange.codec import decode, encode
from tensair_dask.exchange.compression import COMPRESSIONS, Encodings, make_compressor
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.message import GradientMessage
from tensair_dask.exchange.rows import Rows


def some(*dtypes: torch.dtype, touched=None, table=torch.float32) -> Gradients:
    ids = torch.tensor([2, 7, 30])
    return Gradients(
        [torch.randn(50).to(dtype) for dtype in dtypes],
        touched,
        {1: Rows(ids, torch.randn(3, 4).to(table))},
    )


CONTENTS = {
    "dense": Gradients([torch.randn(100)]),
    "two dtypes": Gradients([torch.randn(100), torch.randn(30).double()]),
    "bfloat16": some(torch.bfloat16, table=torch.bfloat16),
    "rows": some(torch.float32, touched=frozenset({0, 3})),
    "no rows": Gradients(
        [], None, {0: Rows(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))}
    ),
    "nothing": Gradients([]),
    "nothing touched": Gradients([torch.zeros(16)], frozenset()),
    "large row numbers": Gradients(
        [], None, {0: Rows(torch.tensor([5, 1 << 33]), torch.ones(2, 1))}
    ),
}
for name in COMPRESSIONS:
    if name != "none":
        compressor = make_compressor(name)
        CONTENTS[name] = (compressor.compress(some(torch.float32)),)
        CONTENTS[f"{name} of bfloat16"] = (
            make_compressor(name).compress(some(torch.bfloat16, table=torch.bfloat16)),
        )
        CONTENTS[f"{name}, merged"] = tuple(
            compressor.compress(some(torch.float32)) for _ in range(2)
        )


def bits(content) -> list:
    """All that a content consists of, to be compared exactly."""
    if isinstance(content, tuple):
        return [each for part in content for each in bits(part)]
    if isinstance(content, torch.Tensor):
        raw = content.contiguous().view(-1).view(torch.uint8).tolist()
        return [content.dtype, content.shape, raw]
    if isinstance(content, (Gradients, Encodings)):
        rows = [
            (table, bits(ids), bits(values))
            for table, part in content.rows.items()
            for ids, values in [
                (part.ids, part.values) if isinstance(part, Rows) else part
            ]
        ]
        return [content.touched, [bits(each) for each in content.buffers], rows]
    scales = None if content.scales is None else bits(content.scales)
    return [bits(content.codes), scales, content.shape, content.dtype]


@pytest.mark.parametrize("name", CONTENTS)
def test_a_message_arrives_bit_by_bit(name):
    sent = message(2, 9, 0.0, taken=11, clock={"a": 1, "b": 7}, content=CONTENTS[name])
    got = carried(sent)
    for field in ("run_id", "origin", "first", "last", "samples", "taken", "clock"):
        assert getattr(got, field) == getattr(sent, field)
    assert type(got.content) is type(sent.content)
    assert bits(got.content) == bits(sent.content)
    assert bits(got.gradients) == bits(sent.gradients)
    assert got.nbytes == sent.nbytes


def test_the_age_of_a_message_goes_on_from_where_it_was_on_the_wire():
    got = carried(message(1, 1, 0.0, oldest=time.monotonic() - 5))
    assert 5 <= time.monotonic() - got.oldest < 6


@pytest.mark.parametrize("name", CONTENTS)
def test_nothing_of_a_message_is_pickled(name, monkeypatch):
    def refuse(obj, *args, **kwargs):
        assert obj is GradientMessage  # its name, by Dask
        return b""

    monkeypatch.setattr("distributed.protocol.pickle.dumps", refuse)
    header, frames = serialize(message(1, 1, 0.0, content=CONTENTS[name]))
    with monkeypatch.context() as patched:
        patched.setattr(pickle, "loads", None)
        patched.setattr("distributed.protocol.pickle.loads", None)
        decode(header["sub-header"], frames)


def test_dense_memory_leaves_and_arrives_without_a_copy():
    gradients = Gradients([torch.zeros(1000)])
    header, frames = encode(message(1, 1, 0.0, content=gradients))
    gradients.buffers[0][:] = 3
    assert bytes(frames[0]) == bytes(gradients.buffers[0].numpy())
    frame = bytearray(frames[0])
    got = decode(header, [frame])
    frame[:4] = bytes(4)
    assert got.gradients.buffers[0][:2].tolist() == [0, 3]


def test_bytes_that_cannot_be_written_or_are_not_aligned_are_read():
    header, frames = encode(message(1, 1, 0.0, content=some(torch.float32)))
    fixed = decode(header, [bytes(frame) for frame in frames])
    shifted = decode(header, [memoryview(b"x" + bytes(frame))[1:] for frame in frames])
    moved = decode(
        header, [memoryview(bytearray(b"x" + bytes(frame)))[1:] for frame in frames]
    )
    total = fixed.gradients + shifted.gradients + moved.gradients
    assert torch.allclose(total.buffers[0], 3 * fixed.gradients.buffers[0])


def test_row_numbers_take_four_bytes_where_they_fit():
    for last, size in ((2**31 - 1, 4), (2**31, 8)):
        rows = {0: Rows(torch.tensor([last]), torch.ones(1, 1))}
        _, frames = encode(message(1, 1, 0.0, content=Gradients([], None, rows)))
        assert memoryview(frames[0]).nbytes == size
