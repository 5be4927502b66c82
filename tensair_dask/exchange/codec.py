"""Gradient messages on the wire: a plain header, and the tensors' bytes as frames.

The header holds numbers, names and shapes only, and every frame is the memory of one
tensor: nothing is pickled, and a receiver can look at all that a message claims before
it takes memory for it (`Gate` does).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from tensair_dask.exchange.compression import Encoded, Encodings
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.message import GradientMessage
from tensair_dask.exchange.rows import Rows
from tensair_dask.exchange.wire import Described, Frame, described, from_frame, to_frame

__all__ = ["decode", "encode"]

Header = dict[str, Any]


@dask_serialize.register(GradientMessage)
def encode(message: GradientMessage) -> tuple[Header, list[Frame]]:
    """Describe a message; its tensors' memory is not copied.

    Returns
    -------
    header, frames
        Of each tensor, the header has dtype and shape where the frames have its bytes,
        in the order of the header. Row numbers take 4 bytes where they fit.
    """
    frames: list[Frame] = []
    content = message.content
    parts = content if isinstance(content, tuple) else (content,)
    header = {
        "run_id": message.run_id,
        "token": message.token,
        "origin": message.origin,
        "first": message.first,
        "last": message.last,
        "samples": message.samples,
        "taken": message.taken,
        "clock": message.clock,
        # The age travels, not the moment: monotonic clocks differ between machines.
        "age": time.monotonic() - message.oldest,
        "encoded": parts is content,
        "parts": [_describe(part, frames) for part in parts],
    }
    return header, frames


def _describe(part: Gradients | Encodings, frames: list[Frame]) -> Header:
    touched = part.touched
    return {
        "touched": None if touched is None else sorted(touched),
        "buffers": [_put(buffer, frames) for buffer in part.buffers],
        "rows": [
            [table, _put(_short(ids), frames), _put(values, frames)]
            for table, ids, values in _tables(part)
        ],
    }


def _tables(
    part: Gradients | Encodings,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | Encoded]]:
    for table, rows in part.rows.items():
        if isinstance(rows, Rows):
            yield table, rows.ids, rows.values
        else:
            yield table, *rows


def _put(value: torch.Tensor | Encoded, frames: list[Frame]) -> Any:
    if isinstance(value, torch.Tensor):
        frames.append(to_frame(value))
        return described(value)
    scales = value.scales
    return {
        "tensor": [_name(value.dtype), list(value.shape)],
        "codes": _put(value.codes, frames),
        "scales": None if scales is None else _put(scales, frames),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _short(ids: torch.Tensor) -> torch.Tensor:
    """Row numbers in 4 bytes where they fit."""
    if len(ids) and int(ids[-1]) >= 1 << 31:
        return ids
    return ids.int()


@dask_deserialize.register(GradientMessage)
def decode(header: Mapping[str, Any], frames: Sequence[Frame]) -> GradientMessage:
    """Reverse `encode`; the tensors share the memory of writable frames.

    Who does not know the sender asks `Gate` first: here the header is believed.
    """
    remaining = iter(frames)
    content: Gradients | tuple[Encodings, ...]
    if header["encoded"]:
        content = tuple(_encodings(part, remaining) for part in header["parts"])
    else:
        content = _gradients(header["parts"][0], remaining)
    return GradientMessage(
        run_id=header["run_id"],
        origin=header["origin"],
        first=header["first"],
        last=header["last"],
        samples=header["samples"],
        taken=header["taken"],
        clock=dict(header["clock"]),
        oldest=time.monotonic() - header["age"],
        content=content,
        token=header["token"],
    )


def _gradients(part: Mapping[str, Any], frames: Iterator[Frame]) -> Gradients:
    return Gradients(
        [from_frame(one, next(frames)) for one in part["buffers"]],
        _touched(part),
        {
            table: Rows(_ids(ids, frames), from_frame(values, next(frames)))
            for table, ids, values in part["rows"]
        },
    )


def _encodings(part: Mapping[str, Any], frames: Iterator[Frame]) -> Encodings:
    return Encodings(
        [_encoded(one, frames) for one in part["buffers"]],
        {
            table: (_ids(ids, frames), _encoded(values, frames))
            for table, ids, values in part["rows"]
        },
        _touched(part),
    )


def _touched(part: Mapping[str, Any]) -> frozenset[int] | None:
    touched = part["touched"]
    return None if touched is None else frozenset(touched)


def _ids(description: Described, frames: Iterator[Frame]) -> torch.Tensor:
    return from_frame(description, next(frames)).long()


def _encoded(description: Mapping[str, Any], frames: Iterator[Frame]) -> Encoded:
    dtype, shape = description["tensor"]
    codes = from_frame(description["codes"], next(frames))
    scales = description["scales"]
    return Encoded(
        codes,
        None if scales is None else from_frame(scales, next(frames)),
        tuple(shape),
        getattr(torch, dtype),
    )
