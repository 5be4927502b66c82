"""Trees of plain values, as what torch writes and reads without running code."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

from tensair_dask._common.plain_values.kinds import (
    LONG,
    NUMERIC,
    SIMPLE,
    is_key,
    within_depth,
)
from tensair_dask.errors import CheckpointError

__all__ = ["pack", "unpack"]

# A dict with this key stands for something else. It is no key that anybody would use,
# and a dict that has it all the same is told apart, too.
_MARK = "\0tensair"

# Bytes are plain, but torch refuses to read none of them.
_AS_THEY_ARE = SIMPLE - {bytes}
_DICTS = (dict, OrderedDict, defaultdict)
_NUMBERS: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64}


def pack(tree: Any, where: str) -> Any:
    """Make a tree of what ``torch.load(weights_only=True)`` reads.

    Parameters
    ----------
    tree
        Plain values, tensors and numpy arrays, below dicts, lists and tuples. Nothing
        is copied that lies in the memory of the CPU and fills its storage.
    where
        What it is, for the error.

    Raises
    ------
    CheckpointError
        If it holds anything else: the message says where and what.
    """
    with within_depth(where):
        return _trim(_pack(tree, where))


def unpack(tree: Any) -> Any:
    """Reverse `pack`."""
    kind = type(tree)
    if kind in (list, tuple):
        return kind(unpack(value) for value in tree)
    if kind not in (dict, OrderedDict):
        return tree
    mark = tree.get(_MARK)
    if mark is None:
        return {key: unpack(value) for key, value in tree.items()}
    content = tree["content"]
    if mark == "array":
        return content.numpy()
    if mark == "list":
        return content.tolist()
    if mark == "tuple":
        return tuple(content.tolist())
    if mark == "bytes":
        return content.encode("latin-1")
    return {unpack(key): unpack(value) for key, value in content}


def _pack(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        return plain if type(plain) is torch.Tensor else plain.as_subclass(torch.Tensor)
    if kind is bytes:
        return {_MARK: "bytes", "content": value.decode("latin-1")}
    if kind is np.ndarray:
        return {_MARK: "array", "content": _tensor(value, where)}
    if isinstance(value, np.generic):
        return _pack(value.item(), where)
    if kind in (list, tuple):
        numbers = _numbers(value) if len(value) >= LONG else None
        if numbers is not None:
            return {_MARK: kind.__name__, "content": numbers}
        return kind(_pack(each, f"{where}[{at}]") for at, each in enumerate(value))
    if kind in _DICTS:
        packed = {
            _key(key, where): _pack(each, f"{where}[{key!r}]")
            for key, each in value.items()
        }
        if _MARK in packed or any(type(key) not in _AS_THEY_ARE for key in packed):
            pairs = [(_pack(key, where), each) for key, each in packed.items()]
            return {_MARK: "dict", "content": pairs}
        return packed
    raise CheckpointError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint "
        "cannot hold: reading it would run code. Give tensors, numpy arrays, or plain "
        "values (None, numbers, strings, bytes) in dicts, lists or tuples."
    )


def _key(key: Any, where: str) -> Any:
    if isinstance(key, np.generic):
        key = key.item()
    if is_key(key):
        return key
    raise CheckpointError(
        f"{where} has a key that is a {type(key).__qualname__}, which a checkpoint "
        "cannot hold. Use numbers, strings, or tuples of them as keys."
    )


def _numbers(values: Any) -> torch.Tensor | None:
    """Make one tensor of numbers of the same kind; None if they are not."""
    kinds = set(map(type, values))
    if len(kinds) != 1 or (dtype := _NUMBERS.get(kinds.pop())) is None:
        return None
    try:
        return torch.from_numpy(np.array(values, dtype=dtype))
    except OverflowError:  # whole numbers beyond 64 bits
        return None


def _tensor(array: np.ndarray, where: str) -> torch.Tensor:
    if array.dtype.kind not in NUMERIC:
        raise CheckpointError(
            f"{where} is a numpy array of dtype {array.dtype}, which a checkpoint "
            "cannot hold; give an array of numbers, or a list."
        )
    array = np.require(array, array.dtype.newbyteorder("="), ["A", "W"])
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise CheckpointError(
            f"{where} is a numpy array of dtype {array.dtype}, which torch does not "
            "know; give another one, for example float64."
        ) from error


# ---- what is written of a storage ---------------------------------------------------


def _trim(tree: Any) -> Any:
    """Cut storages to what is used of them: torch writes each as a whole.

    Tensors that share memory still do afterwards.
    """
    used: dict[int, tuple[int, int]] = {}
    storages: dict[int, torch.UntypedStorage] = {}

    def measure(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        start, stop = _span(tensor)
        low, high = used.get(storage._cdata, (start, stop))
        used[storage._cdata] = min(low, start), max(high, stop)
        storages[storage._cdata] = storage

    _each_tensor(tree, measure)
    large = {
        key: storages[key]
        for key, (low, high) in used.items()
        if high - low < storages[key].nbytes()
    }
    if not large:
        return tree
    cut: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for key, storage in large.items():
        low, high = used[key]
        low -= low % 16  # the largest number takes so many bytes
        content = torch.empty(0, dtype=torch.uint8).set_(
            storage, low, (high - low,), (1,)
        )
        cut[key] = low, content.clone().untyped_storage()

    def view(tensor: torch.Tensor) -> torch.Tensor:
        low, storage = cut.get(tensor.untyped_storage()._cdata, (0, None))
        if storage is None:
            return tensor
        offset = tensor.storage_offset() - low // tensor.element_size()
        new = torch.empty(0, dtype=tensor.dtype)
        return new.set_(storage, offset, tensor.shape, tensor.stride())

    return _each_tensor(tree, view)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte of a storage that a tensor uses, and the one after the last."""
    size = tensor.element_size()
    start = int(tensor.storage_offset())
    if not tensor.numel():
        return start * size, start * size
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    stop = start + sum((length - 1) * int(stride) for length, stride in steps) + 1
    return start * size, stop * size


def _each_tensor(tree: Any, do: Any) -> Any:
    """Replace each tensor that has a storage by what a function makes of it."""
    kind = type(tree)
    if kind is torch.Tensor:
        return do(tree) if tree.layout is torch.strided else tree
    if kind is dict:
        return {key: _each_tensor(value, do) for key, value in tree.items()}
    if kind in (list, tuple):
        return kind(_each_tensor(value, do) for value in tree)
    return tree
