"""Tensors on the wire: as their bytes, which Dask's comms send without a copy.

torch's own pickling copies, and Dask's serializer for torch fails on bfloat16. And who
reads bytes and a plain description of them runs no code of who wrote them, as who
unpickles does.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from tensair_dask.batches import outputs
from tensair_dask.batches.dense import why_not_dense
from tensair_dask.errors import ModelError

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

Frame: TypeAlias = memoryview | bytearray | bytes
# Of a tensor: the name of its dtype, and its shape.
Described: TypeAlias = "Sequence[Any]"

# What msgpack knows; integers of 64 bits.
_PLAIN = (type(None), bool, int, float, str, bytes)
_INTEGERS = range(-(1 << 63), 1 << 63)
# What travels spelt out: large integers, complex numbers, and subclasses.
_SPELT: dict[str, Any] = {"int": int, "float": float, "complex": complex, "str": str}
# Kinds of numpy arrays that are only numbers.
_NUMBERS = "biufc"


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
    return torch.frombuffer(_writable(frame), dtype=dtype).reshape(shape)


def _writable(frame: Frame) -> Frame:
    # torch cannot promise not to write.
    return bytearray(frame) if memoryview(frame).readonly else frame


class Packed:
    """A structure of tensors, ready to travel.

    Attributes
    ----------
    description
        The structure, of lists and what msgpack knows.
    frames
        The bytes of its tensors and arrays, in the order of the description.
    """

    __slots__ = ("description", "frames")

    def __init__(self, description: Any, frames: Sequence[Frame]) -> None:
        self.description = description
        self.frames = frames

    def __reduce__(self) -> tuple[Any, ...]:
        """As part of something that is pickled: still without a copy."""
        return Packed, (self.description, [*map(pickle.PickleBuffer, self.frames)])


@dask_serialize.register(Packed)
def _to_frames(packed: Packed) -> tuple[dict[str, Any], list[Frame]]:
    return {"description": packed.description}, list(packed.frames)


@dask_deserialize.register(Packed)
def _from_frames(header: dict[str, Any], frames: Sequence[Frame]) -> Packed:
    return Packed(header["description"], frames)


def pack(tree: Any, typed: bool = False) -> Packed:
    """Make a structure ready to travel, without a copy of what lies on the CPU.

    Parameters
    ----------
    tree
        Tensors, arrays, numbers, strings and None, in lists, tuples and dicts.
    typed
        Whether containers of other types (named tuples, dataclasses, mappings) travel
        with the names of these, so that `unpack` can make them again. Otherwise other
        mappings arrive as dicts, and named tuples as tuples.

    Raises
    ------
    ModelError
        If there is something else in it.
    """
    frames: list[Frame] = []
    return Packed(_describe(tree, frames, "", typed), frames)


def _describe(tree: Any, frames: list[Frame], where: str, typed: bool) -> Any:
    """Describe what is not plain as a list that begins with its kind."""
    if type(tree) in _PLAIN and (type(tree) is not int or tree in _INTEGERS):
        return tree
    if isinstance(tree, torch.Tensor):
        if why := why_not_dense(tree, "it"):
            at = f" at {where}" if where else ""
            raise ModelError(f"The model gives{at} {why}")
        frames.append(to_frame(tree.resolve_conj().resolve_neg()))
        return ["tensor", *described(tree)]
    if typed and not outputs.is_plain(tree):
        # What it holds, as a tuple, list or dict, and of what type it is.
        items = outputs.contents(tree) or []
        held: Any = dict(items)
        if isinstance(tree, (tuple, list)):
            held = [value for _, value in items]
            held = tuple(held) if isinstance(tree, tuple) else held
        return ["type", *outputs.name_of(tree), _describe(held, frames, where, typed)]
    if isinstance(tree, Mapping):
        return [
            "dict",
            *(
                [
                    _describe(key, frames, f"{where}, a key", typed),
                    _describe(value, frames, f"{where}[{key!r}]", typed),
                ]
                for key, value in tree.items()
            ),
        ]
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return [
            kind,
            *(
                _describe(value, frames, f"{where}[{position}]", typed)
                for position, value in enumerate(tree)
            ),
        ]
    if isinstance(tree, (np.ndarray, np.generic)) and tree.dtype.kind in _NUMBERS:
        frames.append(np.ascontiguousarray(tree).reshape(-1).view(np.uint8).data)
        kind = "array" if isinstance(tree, np.ndarray) else "scalar"
        return [kind, tree.dtype.str, list(tree.shape)]
    for name, kind in _SPELT.items():
        if isinstance(tree, kind):
            return [name, str(kind(tree))]
    raise ModelError(
        f"The model gives a {type(tree).__module__}.{type(tree).__qualname__}"
        f"{' at ' + where if where else ''}, which does not travel. Tensors, arrays, "
        "numbers, strings and None do, in lists, tuples and dicts: let the model (its "
        "prediction, its state_dict, or that of its optimizer) give these."
    )


def unpack(packed: Packed, unknown: Callable[[str], Any] | None = None) -> Any:
    """Reverse `pack`; tensors share the memory of frames that are writable.

    Parameters
    ----------
    packed
        If it is ``typed``, its types are looked for only where there is ``unknown``:
        that imports the modules which are named in it.
    unknown
        Called with the name of a type that is not here: the tuple, list or dict is
        then a plain one, and a dataclass a dict.
    """
    return _build(packed.description, iter(packed.frames), unknown)


def _build(
    description: Any,
    frames: Iterator[Frame],
    unknown: Callable[[str], Any] | None,
) -> Any:
    if not isinstance(description, (list, tuple)):
        return description
    kind, *rest = description

    def build(part: Any) -> Any:
        return _build(part, frames, unknown)

    if kind == "tensor":
        return from_frame(rest, next(frames))
    if kind == "dict":
        return {build(key): build(value) for key, value in rest}
    if kind == "list":
        return [build(value) for value in rest]
    if kind == "tuple":
        return tuple(build(value) for value in rest)
    if kind in ("array", "scalar"):
        dtype, shape = rest
        array = np.frombuffer(_writable(next(frames)), dtype).reshape(tuple(shape))
        return array if kind == "array" else array[()]
    if kind == "type":
        module, name, held = rest
        return _typed(module, name, build(held), unknown)
    return _SPELT[kind](rest[0])


def _typed(
    module: str, name: str, held: Any, unknown: Callable[[str], Any] | None
) -> Any:
    if unknown is None:
        return held
    try:
        return outputs.made(outputs.find(module, name), held)
    except Exception:
        unknown(f"{module}.{name}")
        return held
