"""Tensors on the wire: as numpy bytes, which Dask's comms send without a copy.

torch's own pickling copies, and Dask's serializer for torch fails on bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = [
    "Described",
    "Frame",
    "Packed",
    "described",
    "from_frame",
    "pack",
    "to_frame",
    "unpack",
]

Frame: TypeAlias = "memoryview | bytearray | bytes"
# Of a tensor: the name of its dtype, and its shape.
Described: TypeAlias = "Sequence[Any]"


def described(tensor: torch.Tensor) -> Described:
    """Name dtype and shape of a tensor, as a header can hold them."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def to_frame(tensor: torch.Tensor) -> Frame:
    """Take the bytes of a tensor; no copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def from_frame(described: Described, frame: Frame) -> torch.Tensor:
    """Reverse `to_frame`; the tensor shares the memory of a frame that is writable."""
    dtype, shape = getattr(torch, described[0]), tuple(described[1])
    if not memoryview(frame).nbytes:
        return torch.empty(shape, dtype=dtype)
    if memoryview(frame).readonly:
        frame = bytearray(frame)  # torch cannot promise not to write
    return torch.frombuffer(frame, dtype=dtype).reshape(shape)


class Packed:
    """One tensor as bytes, its dtype and its shape."""

    __slots__ = ("array", "dtype", "shape")

    def __init__(self, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
        self.array = array
        self.dtype = dtype
        self.shape = shape

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Packed:
        """Take the bytes of a tensor; no copy if it is contiguous and on the CPU."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return cls(
            flat.view(torch.uint8).numpy(),
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
        )

    def tensor(self) -> torch.Tensor:
        """Give the tensor back; it owns its memory or shares it with the message."""
        array = self.array
        if not array.size:
            return torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        if not array.flags.writeable:
            array = array.copy()  # torch cannot promise not to write
        flat = torch.from_numpy(array).view(getattr(torch, self.dtype))
        return flat.reshape(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.array, self.dtype, self.shape)


def pack(tree: Any) -> Any:
    """Replace every tensor below dicts, lists and tuples by a `Packed`."""
    if isinstance(tree, torch.Tensor):
        return Packed.of(tree)
    if isinstance(tree, Mapping):
        return {key: pack(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(pack(value) for value in tree)
    return tree


def unpack(tree: Any) -> Any:
    """Reverse `pack`."""
    if isinstance(tree, Packed):
        return tree.tensor()
    if isinstance(tree, dict):
        return {key: unpack(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(unpack(value) for value in tree)
    return tree
