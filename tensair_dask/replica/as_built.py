"""As built: what a model factory has set that nobody saves, to be compared.

Replicas take over parameters and buffers from each other, and from checkpoints. All
else each builds itself: where a factory draws it at random, or reads it from somewhere,
replicas have models of different kinds, and nothing looks wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tensair_dask._common.contents import parts
from tensair_dask.replica.attributes import unsaved

__all__ = ["as_built", "differing"]

# Names; objects in lists in objects; things of one name; numbers of one array.
_NAMES = 2_000
_DEPTH = 6
_MOST = 10_000
_SAMPLE = 16

# Machines compute the last places differently. What was drawn differs by far more.
_TOLERANCE = 1e-3

# Hooks by numbers that a process counts, for example.
_TORCHS_OWN = frozenset(vars(torch.nn.Module()))


def as_built(model: torch.nn.Module, tied: Collection[int] = ()) -> dict[str, Any]:
    """Describe attributes, and buffers that are not saved, alike in each process.

    Parameters
    ----------
    model
        As its factory has built it.
    tied
        Ids of what shares memory with its parameters.

    Returns
    -------
    described
        By dotted names; plain values, which `differing` compares. Empty if a model
        cannot be looked at.
    """
    known, named = unsaved(model, tied=tied)
    found: dict[str, Any] = {}
    try:
        for name, value in named:
            if len(found) >= _NAMES:
                break
            # A text is a name of something, a path, or the time; in a vocabulary it
            # counts.
            if name.rpartition(".")[2] in _TORCHS_OWN or isinstance(value, str):
                continue
            description = _Description(known)
            text = description.of(value, _DEPTH)
            if description.counts:
                digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
                found[name] = [digest, description.numbers, description.has_arrays]
        found.update(_layers(model))
    except Exception:  # looking does not decide whether a model can be trained
        return {}
    return found


def _layers(model: torch.nn.Module) -> dict[str, Any]:
    """Describe layers of torch without values of their own: activations, dropout.

    Others with other shapes are found when their values are taken over.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        of_torch = type(module).__module__.startswith("torch.nn.modules")
        if not of_torch or next(module.children(), None) is not None:
            continue
        if not module._parameters and not module._buffers and len(found) < _NAMES:
            text = f"{type(module).__name__}({module.extra_repr()})"
            found[name] = [text, [], True]
    return found


def differing(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], only_arrays: bool = False
) -> list[str]:
    """Name what two descriptions tell differently, of what both have.

    Parameters
    ----------
    ours, theirs
        What `as_built` has returned.
    only_arrays
        Whether to leave out what holds neither tensors nor arrays.
    """
    return [
        name
        for name, [digest, numbers, has_arrays] in ours.items()
        if name in theirs
        and (has_arrays or not only_arrays)
        and (digest != theirs[name][0] or not _close(numbers, theirs[name][1]))
    ]


def _close(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return len(ours) == len(theirs) and all(
        math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-6)
        or one == other
        or (math.isnan(one) and math.isnan(other))
        for one, other in zip(ours, theirs, strict=True)
    )


class _Description:
    """One thing, as a text and as the numbers in it, which need not be equal exactly.

    Attributes
    ----------
    numbers
        Some of the floating-point numbers.
    has_arrays
        Whether there is a tensor or an array.
    counts
        Whether there is any value; not only what is alike in all processes anyway.
    """

    def __init__(self, known: Collection[int]) -> None:
        self._known = known
        self._left = _MOST
        self.numbers: list[float] = []
        self.has_arrays = False
        self.counts = False

    def of(self, thing: Any, depth: int) -> str:
        self._left -= 1
        if self._left < 0 or depth == 0 or id(thing) in self._known:
            return ""
        if isinstance(thing, (bool, int, str, bytes, complex)):
            self.counts = True
            return repr(thing)
        if isinstance(thing, (float, np.floating)):
            self.counts = True
            self.numbers.append(float(thing))
            return "float"
        if isinstance(thing, np.generic):
            return self.of(thing.item(), depth - 1)
        if isinstance(thing, torch.Tensor):
            return self._tensor(thing)
        if isinstance(thing, np.ndarray):
            return self._array(thing)
        inner = parts(thing)
        if inner is None:
            return type(thing).__name__
        if isinstance(thing, (set, frozenset)):
            told = [self._apart(each) for each, _ in inner]
            return f"{type(thing).__name__}({sorted(told)})"
        if isinstance(thing, (list, tuple)):
            told = [self.of(each, depth - 1) for _, each in inner]
            return f"{type(thing).__name__}({told})"
        # In an order that does not depend on the process.
        items = sorted(((self._apart(key), each) for key, each in inner), key=_first)
        told = [f"{key}: {self.of(each, depth - 1)}" for key, each in items]
        return f"{type(thing).__name__}({told})"

    def _apart(self, thing: Any) -> str:
        """Describe a key, with its numbers in the text."""
        other = _Description(self._known)
        text = other.of(thing, 3)
        self.counts = self.counts or other.counts
        return f"{text} {[f'{each:.4g}' for each in other.numbers]}"

    def _tensor(self, tensor: torch.Tensor) -> str:
        if tensor.device.type == "meta" or tensor.layout is not torch.strided:
            return "tensor"
        if tensor.grad_fn is not None or tensor.is_quantized:
            return "tensor"
        flat = tensor.detach().reshape(-1)
        some = flat[:: 1 + tensor.numel() // _SAMPLE].cpu()
        wide = torch.float64 if some.dtype.is_floating_point else some.dtype
        return self._array(some.to(wide).numpy(), tuple(tensor.shape))

    def _array(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> str:
        self.counts = self.has_arrays = True
        some = array.reshape(-1)[:: 1 + array.size // _SAMPLE]
        shape = array.shape if shape is None else shape
        if some.dtype.kind in "fc":
            for each in some.tolist():
                self.numbers += [each.real, each.imag]
            return f"array{shape}"
        return f"array{shape}{some.tolist()}"


def _first(item: tuple[str, Any]) -> str:
    return item[0]
