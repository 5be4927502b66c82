"""Compression of gradients on the wire: fewer bytes, and nothing lost in the long run.

What rounding leaves out is kept at the sender and added to what it sends next (error
feedback; Seide et al. 2014, Karimireddy et al. 2019), so a gradient may arrive a little
later, but arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows, sum_rows

__all__ = [
    "BLOCK",
    "COMPRESSIONS",
    "Compressor",
    "Encoded",
    "Encodings",
    "make_compressor",
]

# Elements that share a scale in a dense buffer under int8; a row shares one in a table.
BLOCK = 1024


@dataclass(slots=True)
class Encoded:
    """One tensor in few bytes.

    Attributes
    ----------
    codes
        bfloat16 or float16, of the tensor's shape; or int8, (blocks, elements).
    scales
        With int8, one float32 a block; else None.
    shape
        Of the tensor.
    dtype
        Of the tensor.
    """

    codes: torch.Tensor
    scales: torch.Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    def decode(self) -> torch.Tensor:
        """Give the tensor; the same numbers at the sender and at every receiver."""
        if self.scales is None:
            return self.codes.to(self.dtype)
        values = self.codes.to(self.dtype) * self.scales.to(self.dtype)[:, None]
        return values.reshape(-1)[: _count(self.shape)].reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def to_bfloat16(tensor: torch.Tensor, width: int) -> Encoded:
    """Half the bytes; the range of float32, three digits."""
    return Encoded(tensor.to(torch.bfloat16), None, tuple(tensor.shape), tensor.dtype)


def to_float16(tensor: torch.Tensor, width: int) -> Encoded:
    """Half the bytes; four digits, from 6e-8 to 65,504 (larger ones are cut there)."""
    most = torch.finfo(torch.float16).max
    return Encoded(
        tensor.clamp(-most, most).to(torch.float16),
        None,
        tuple(tensor.shape),
        tensor.dtype,
    )


def to_int8(tensor: torch.Tensor, width: int) -> Encoded:
    """A quarter of the bytes; 255 steps between the extremes of a row or block."""
    flat = tensor.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % width))
    blocks = padded.reshape(-1, width)
    scales = blocks.abs().amax(1).float() / 127
    steps = blocks / torch.where(scales > 0, scales, 1.0).to(blocks.dtype)[:, None]
    return Encoded(
        steps.round().to(torch.int8), scales, tuple(tensor.shape), tensor.dtype
    )


Encode = Callable[[torch.Tensor, int], Encoded]

COMPRESSIONS: dict[str, Encode | None] = {
    "none": None,
    "bfloat16": to_bfloat16,
    "float16": to_float16,
    "int8": to_int8,
}


def make_compressor(name: str) -> Compressor | None:
    """Give the compressor of that name; None for ``"none"``.

    Raises
    ------
    ConfigurationError
        If there is none of that name.
    """
    if not isinstance(name, str) or name not in COMPRESSIONS:
        raise ConfigurationError(
            f"compression={name!r} was given; one of "
            f"{', '.join(map(repr, COMPRESSIONS))} is allowed."
        )
    encode = COMPRESSIONS[name]
    return None if encode is None else Compressor(encode)


@dataclass(slots=True)
class Encodings:
    """Gradients in few bytes: what travels in place of them.

    Attributes
    ----------
    buffers
        One for each buffer of the arena.
    rows
        By the number of a table: ids, and the encoded values.
    """

    buffers: list[Encoded]
    rows: dict[int, tuple[torch.Tensor, Encoded]]
    touched: frozenset[int] | None

    def decode(self) -> Gradients:
        """Give the gradients."""
        return Gradients(
            [buffer.decode() for buffer in self.buffers],
            self.touched,
            {
                table: Rows(ids, values.decode())
                for table, (ids, values) in self.rows.items()
            },
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return sum(buffer.nbytes for buffer in self.buffers) + sum(
            4 * len(ids) + values.nbytes for ids, values in self.rows.values()
        )

    @property
    def decoded_nbytes(self) -> int:
        """Bytes that the gradients have on the wire when they are not encoded."""

        def size(one: Encoded) -> int:
            return _count(one.shape) * one.dtype.itemsize

        return sum(map(size, self.buffers)) + sum(
            4 * len(ids) + size(values) for ids, values in self.rows.values()
        )


class Compressor:
    """Encodes gradients and keeps what rounding left out for the next time.

    Belongs to the thread that trains.

    Parameters
    ----------
    encode
        One of `COMPRESSIONS`.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._buffers: list[torch.Tensor] | None = None
        self._rows: dict[int, Rows] = {}

    def compress(self, gradients: Gradients) -> Encodings:
        """Encode, with what was left out before; keep what is left out now.

        Of a table, only the rows that are sent anyway get what was left out of them
        before: a message does not grow by rows of earlier ones.
        """
        buffers = self._with_remainder(gradients)
        encoded = [self._encode(buffer, BLOCK) for buffer in buffers]
        self._buffers = [
            buffer - code.decode()
            for buffer, code in zip(buffers, encoded, strict=True)
        ]
        rows = {
            table: self._compress_rows(table, part)
            for table, part in gradients.rows.items()
        }
        # A remainder may lie at parameters that this message did not touch.
        return Encodings(encoded, rows, None if self._buffers else gradients.touched)

    def remainder(self, gradients: Gradients) -> Gradients:
        """Add all that was left out so far, exactly, and keep nothing."""
        rest = Gradients(self._with_remainder(gradients), None, dict(gradients.rows))
        rest = rest + Gradients(
            [torch.zeros_like(buffer) for buffer in rest.buffers], None, self._rows
        )
        self.drop()
        return rest

    def drop(self) -> None:
        """Forget what was left out: there is nobody who lacks it."""
        self._buffers = None
        self._rows = {}

    def _with_remainder(self, gradients: Gradients) -> list[torch.Tensor]:
        if self._buffers is None:
            return list(gradients.buffers)
        return [
            fresh + left
            for fresh, left in zip(gradients.buffers, self._buffers, strict=True)
        ]

    def _compress_rows(self, table: int, part: Rows) -> tuple[torch.Tensor, Encoded]:
        left = self._rows.get(table)
        values = part.values
        if left is not None and len(left):
            # Both ascend: find the rows of the remainder that are sent now.
            places = torch.searchsorted(part.ids, left.ids).clamp(max=len(part) - 1)
            now = part.ids[places] == left.ids if len(part) else left.ids < 0
            values = values.clone()
            values[places[now]] += left.values[now]
            left = Rows(left.ids[~now], left.values[~now])
        width = max(1, values[0].numel()) if len(values) else 1
        encoded = self._encode(values, width)
        kept = Rows(part.ids, values - encoded.decode())
        self._rows[table] = kept if left is None else sum_rows([left, kept])
        return part.ids, encoded
