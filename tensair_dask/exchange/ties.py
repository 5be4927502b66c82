"""Ties: tensors that share memory with parameters, and follow them to the arena.

``decoder.weight.data = encoder.weight.data``, ``nn.Parameter(weight.data.t())``, a row
of a weight that is kept as a buffer, a tensor or a numpy array: in torch these are one
memory under several names. The arena moves parameters to a memory of its own; what is
left behind would stay as it was for ever, without a word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tensair_dask._common.contents import parts
from tensair_dask.errors import ModelError

__all__ = ["Block", "Ties", "memory", "share"]

# How deep it is looked into what attributes hold, and at how many things of a model.
_DEPTH = 6
_MOST = 100_000

# Where modules keep what is looked at by itself.
_OWN = ("_parameters", "_buffers", "_modules")


@dataclass(eq=False)
class _Member:
    """One name of a memory.

    Attributes
    ----------
    name
        Dotted.
    thing
        The tensor or array; once it has followed, the one that took its place.
    kind
        ``"parameter"``, ``"buffer"`` or ``"attribute"``.
    address, strides, shape, itemsize
        Of its elements, in bytes.
    start, end
        Of its bytes.
    places
        Containers and keys under which it is kept; empty where it cannot be replaced.
    """

    name: str
    thing: Any
    kind: str
    address: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    itemsize: int
    start: int
    end: int
    places: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def is_dense(self) -> bool:
        """Whether it has each byte between its first and its last, and once."""
        expected = self.itemsize
        for stride, length in sorted(zip(self.strides, self.shape, strict=True)):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True

    def units(self, start: int, unit: int) -> torch.Tensor:
        """Number the units of memory that its elements take, from an address on."""
        found = torch.tensor([self.address - start]) // unit
        inner = [(self.itemsize // unit, 1)]
        outer = [
            (length, stride // unit)
            for length, stride in zip(self.shape, self.strides, strict=True)
            if stride
        ]
        for length, stride in [*outer, *inner]:
            found = (found[:, None] + torch.arange(length) * stride).reshape(-1)
        return found


class Block:
    """Members that lie in one another's memory, and are moved together.

    Attributes
    ----------
    size
        In elements of its parameters; known when it is `claimed`.
    repeated
        Ids of the parameters of which each element is one of another parameter, too.
    """

    def __init__(self, members: list[_Member]) -> None:
        self._members = members
        self.size = 0
        self.repeated: set[int] = set()
        self._start = 0
        self._aliases: list[_Member] = []
        self._home: tuple[torch.Tensor, int] | None = None

    @property
    def members(self) -> Sequence[_Member]:
        """All that share memory here."""
        return self._members

    def claimed(self, dense: Collection[int], tables: Collection[int]) -> bool:
        """See what is to be moved together, because a parameter of it is.

        Parameters
        ----------
        dense, tables
            Ids of the trained parameters.

        Returns
        -------
        is_tied
            Whether something is to follow parameters.

        Raises
        ------
        ModelError
            If it cannot be moved without that something is cut off.
        """
        trained = [each for each in self._members if id(each.thing) in dense]
        rows = [each for each in self._members if id(each.thing) in tables]
        if rows and len(rows) + len(trained) > 1:
            raise self._refusal(
                [*rows, *trained], "gradients of a table are rows, and count twice"
            )
        if not trained:
            return False
        self._aliases = [each for each in self._members if each not in trained]
        self._start = min(each.start for each in trained)
        self._compare(trained)
        length = max(each.end for each in trained) - self._start
        self.size = length // trained[0].itemsize
        return bool(self.repeated or self._aliases)

    def _compare(self, trained: list[_Member]) -> None:
        if len({each.thing.dtype for each in trained}) > 1:
            raise self._refusal(trained, "they are of different dtypes")
        whole = {(each.start, each.end) for each in self._members}
        if len(whole) == 1 and all(each.is_dense for each in self._members):
            self.repeated = {id(each.thing) for each in trained[1:]}
            return
        start = min(each.start for each in self._members)
        end = max(each.end for each in self._members)
        # The largest that each begin and stride is a multiple of.
        unit = math.gcd(
            *(each.itemsize for each in self._members),
            *(each.address - start for each in self._members),
            *(abs(stride) for each in self._members for stride in each.strides),
        )
        covered = torch.zeros((end - start) // unit, dtype=torch.bool)
        self.repeated = set()
        largest_first = sorted(trained, key=lambda each: -math.prod(each.shape))
        for each in largest_first:
            found = covered[(units := each.units(start, unit))]
            if found.any() and not found.all():
                raise self._refusal(trained, "each has a part that the other lacks")
            if found.any():
                self.repeated.add(id(each.thing))
            covered[units] = True
        for each in self._aliases[:]:
            found = covered[each.units(start, unit)]
            if not found.any():
                self._aliases.remove(each)  # it lies between the rows only
                self._members.remove(each)
            elif not found.all():
                raise self._refusal(
                    [*trained, each], "it reaches beyond what is trained"
                )

    def slot(self, parameter: torch.Tensor) -> tuple[int, tuple[int, ...]]:
        """Where a parameter lies in it: its offset and strides, in elements."""
        member = next(each for each in self._members if each.thing is parameter)
        size = member.itemsize
        strides = tuple(stride // size for stride in member.strides)
        return (member.address - self._start) // size, strides

    def placed(self, buffer: torch.Tensor, offset: int) -> list[str]:
        """Take note of where it lies now, in elements, and let all others `follow`.

        Returns
        -------
        left
            Names of those that cannot, because they are on another device.
        """
        if self.repeated and buffer.device.type != "cpu":
            raise self._refusal(
                [each for each in self._members if each.kind == "parameter"],
                f"on {buffer.device} both may be stepped at the same time",
            )
        self._home = buffer, offset * buffer.element_size()
        return self.follow()

    def follow(self) -> list[str]:
        """Let what is no trained parameter be where these are."""
        assert self._home is not None
        buffer, offset = self._home
        left = []
        for each in self._aliases:
            place = offset + each.address - self._start
            if not _moved(each, buffer, place):
                left.append(each.name)
        return left

    def cut(self, kind: str) -> bool:
        """Give members of a kind memory of their own; whether there are any."""
        those = [each for each in self._aliases if each.kind == kind]
        for each in those:
            self._aliases.remove(each)
            self._members.remove(each)
            _replace(each, each.thing.detach().clone())
        return bool(those)

    def moved_out(self) -> None:
        """Let all of it have a memory of its own: nothing of it is trained."""
        start = min(each.start for each in self._members)
        size = max(each.end for each in self._members) - start
        thing = self._members[0].thing
        device = thing.device if isinstance(thing, torch.Tensor) else "cpu"
        moved = torch.zeros(size, dtype=torch.uint8, device=device)
        with torch.no_grad():
            for each in self._members:
                if each.kind == "parameter":
                    view = _view(each.thing, each, moved, each.address - start)
                    view.copy_(each.thing.detach())
            for each in self._members:
                _moved(each, moved, each.address - start)

    def _refusal(self, members: Sequence[_Member], why: str) -> ModelError:
        names = [repr(_plain(each.name)) for each in members]
        first, *others = sorted(
            (each for each in members if each.kind == "parameter"),
            key=lambda each: -math.prod(each.shape),
        ) or [members[0]]
        other = _plain((others or [members[-1]])[0].name)
        advice = (
            f"Use one parameter in both places (model.{other} = "
            f"model.{_plain(first.name)}), and transpose it or take a part of it in "
            "forward."
        )
        return ModelError(
            f"{' and '.join(names[:4])} share memory, and that cannot be kept while "
            f"parameters are exchanged: {why}. {advice} To have them apart, clone() "
            "one."
        )


class Ties:
    """Finds what shares memory with the parameters of a model.

    Parameters
    ----------
    model
        Its parameters, its buffers, and the tensors and arrays that its modules keep
        as attributes, also in lists, dicts and objects.

    Attributes
    ----------
    left
        Names of what could not follow to the device of the parameters.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._blocks = [Block(each) for each in _overlapping(_members(model))]
        self._placed: list[Block] = []
        self.left: list[str] = []

    def blocks(
        self, dense: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]
    ) -> dict[int, Block]:
        """Give those that are to be moved with dense parameters, by the ids of these.

        Raises
        ------
        ModelError
            If one cannot be.
        """
        known = {id(each) for each in dense}
        rows = {id(each) for each in tables}
        self._placed = [each for each in self._blocks if each.claimed(known, rows)]
        self._blocks = [
            block
            for block in self._blocks
            if block in self._placed
            or not known.intersection(id(each.thing) for each in block.members)
        ]
        return {
            id(member.thing): block
            for block in self._placed
            for member in block.members
            if id(member.thing) in known
        }

    def placed(self, places: Mapping[Block, tuple[torch.Tensor, int]]) -> None:
        """Let all others follow to where parameters were moved."""
        self.left = [
            name for block, place in places.items() for name in block.placed(*place)
        ]

    def follow(self) -> None:
        """Let all others be where the parameters are, once more."""
        for block in self._placed:
            block.follow()

    def with_same_memory(self, name: str) -> list[str]:
        """Name the parameters and buffers that share memory with one of them."""
        return [
            _plain(each.name)
            for block in self._placed
            if name in _names(block)
            for each in block.members
            if each.kind != "attribute"
        ]

    def cut_buffers(self, name: str) -> bool:
        """Cut buffers off what shares memory with this; whether there were any."""
        return any(
            [each.cut("buffer") for each in self._placed if name in _names(each)]
        )

    def moved_out(self, held: Collection[int], trained: Collection[int]) -> set[int]:
        """Move ties of which nothing is trained any more out of an arena.

        Parameters
        ----------
        held
            Ids of the parameters that are in it.
        trained
            Ids of those that are trained still.

        Returns
        -------
        moved
            Ids of the parameters that need not be moved any more.
        """
        moved: set[int] = set()
        for block in self._blocks:
            ids = {id(each.thing) for each in block.members}
            if ids.intersection(trained):
                moved |= ids  # they follow the others
            elif ids.intersection(held):
                block.moved_out()
                moved |= ids
        return moved

    @property
    def ids(self) -> set[int]:
        """Ids of what shares memory with parameters, and is none that is trained."""
        return {
            id(each.thing)
            for block in self._blocks
            for each in block.members
            if each.kind != "parameter" or not each.thing.requires_grad
        }

    @property
    def parameters(self) -> set[int]:
        """Ids of the parameters of which something has followed."""
        return {
            id(each.thing)
            for block in self._placed
            for each in block.members
            if each.kind == "parameter"
        }

    @property
    def saved(self) -> set[int]:
        """Ids of the parameters and buffers that share memory."""
        return {
            id(each.thing)
            for block in self._placed
            for each in block.members
            if each.kind != "attribute"
        }

    @property
    def described(self) -> set[frozenset[tuple[str, tuple[int, ...]]]]:
        """Tell which parameters and buffers share memory: their names and shapes."""
        told = (
            frozenset(
                (_plain(each.name), each.shape)
                for each in block.members
                if each.kind != "attribute"
            )
            for block in self._blocks
        )
        return {each for each in told if len(each) > 1}


def _names(block: Block) -> list[str]:
    return [each.name for each in block.members]


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


# ---- what there is ---------------------------------------------------------------


def _members(model: torch.nn.Module) -> list[_Member]:
    """Everything of a model that has memory, each thing once."""
    found: dict[int, _Member] = {}
    for name, thing, kind, place in _named(model):
        if id(thing) in found:
            if place is not None:
                found[id(thing)].places.append(place)
            continue
        elements = _elements(thing)
        if elements is None:
            continue
        places = [] if place is None else [place]
        found[id(thing)] = _Member(
            name, thing, kind, *elements, *_reach(*elements), places
        )
    return list(found.values())


def _named(model: torch.nn.Module) -> Iterator[tuple[str, Any, str, Any]]:
    for name, parameter in model.named_parameters():
        yield name, parameter, "parameter", None
    scripted = torch.jit.ScriptModule
    for path, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            place = None if isinstance(module, scripted) else (module._buffers, key)
            yield f"{path}.{key}".lstrip("."), buffer, "buffer", place
    known = {id(each) for each in model.modules()}
    for path, module in model.named_modules():
        if isinstance(module, scripted):
            continue
        own = vars(module)
        waiting = [
            (f"{path}.{key}".lstrip("."), value, (own, key), _DEPTH)
            for key, value in own.items()
            if key not in _OWN
        ]
        yield from _within(waiting, known)


def _within(waiting: list[Any], known: set[int]) -> Iterator[tuple[str, Any, str, Any]]:
    """Give tensors and arrays that things hold; what is ``known`` was looked into."""
    left = _MOST
    while waiting and left:
        left -= 1
        name, thing, place, depth = waiting.pop()
        if isinstance(thing, (torch.Tensor, np.ndarray)):
            yield name, thing, "attribute", place
            continue
        if id(thing) in known or not depth:
            continue
        known.add(id(thing))
        try:
            held = list(_inner(thing))
        except Exception:  # of what does not let anybody look
            continue
        for inner, value, at in held:
            waiting.append((f"{name}{inner}", value, at, depth - 1))


def _inner(thing: Any) -> Iterator[tuple[str, Any, Any]]:
    """Give what a thing holds: how it is called there, it, and where it is kept."""
    if isinstance(thing, (list, dict)):
        keyed = thing.items() if isinstance(thing, dict) else enumerate(thing)
        for key, value in itertools.islice(keyed, _MOST):
            yield f"[{key!r}]", value, (thing, key)
        return
    own = getattr(thing, "__dict__", None)
    for key, value in parts(thing) or ():
        if isinstance(key, str) and _holds(own, key, value):
            yield f".{key}", value, (own, key)
        else:
            yield "[...]", value, None


def _holds(container: Any, key: Any, value: Any) -> bool:
    try:
        return container is not None and container[key] is value
    except (LookupError, TypeError):
        return False


def memory(thing: Any) -> tuple[int, int] | None:
    """Give the first address of a tensor or array, and the first one behind it.

    None where it has none.
    """
    elements = _elements(thing)
    return None if elements is None else _reach(*elements)


def share(one: Any, other: Any) -> bool:
    """Whether two tensors or arrays that reach into each other have a common byte."""
    found = []
    for each in (one, other):
        elements = _elements(each)
        if elements is None:
            return False
        found.append(_Member("", each, "", *elements, *_reach(*elements)))
    start = min(each.start for each in found)
    length = max(each.end for each in found) - start
    taken = torch.zeros(length, dtype=torch.bool)
    taken[found[0].units(start, 1)] = True
    return bool(taken[found[1].units(start, 1)].any())


def _reach(
    address: int, strides: tuple[int, ...], shape: tuple[int, ...], itemsize: int
) -> tuple[int, int]:
    steps = [
        (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
    ]
    return (
        address + sum(each for each in steps if each < 0),
        address + sum(each for each in steps if each > 0) + itemsize,
    )


def _elements(thing: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], int] | None:
    """Address, strides, shape and size of an element; None where there is no memory."""
    if isinstance(thing, np.ndarray):
        if not thing.size or thing.dtype.hasobject:
            return None
        address = thing.__array_interface__["data"][0]
        return address, thing.strides, thing.shape, thing.itemsize
    try:
        if thing.layout != torch.strided or not thing.numel() or not thing.data_ptr():
            return None
        size = thing.element_size()
        strides = tuple(stride * size for stride in thing.stride())
        return thing.data_ptr(), strides, tuple(thing.shape), size
    except Exception:  # of classes that only wrap others, or have no values
        return None


def _overlapping(members: list[_Member]) -> Iterator[list[_Member]]:
    """Put together what overlaps, if a parameter is among it."""
    together: list[_Member] = []
    end = 0
    for each in [*sorted(members, key=lambda each: (each.start, -each.end)), None]:
        if each is not None and together and each.start < end:
            together.append(each)
            end = max(end, each.end)
            continue
        if len(together) > 1 and any(one.kind == "parameter" for one in together):
            # Parameters first, in their order in the model.
            kept = {id(one) for one in together}
            yield [one for one in members if id(one) in kept]
        if each is not None:
            together, end = [each], each.end


# ---- where it goes ---------------------------------------------------------------


def _moved(member: _Member, buffer: torch.Tensor, offset: int) -> bool:
    """Let a member be a view of a buffer, so many bytes behind its begin."""
    thing = member.thing
    if isinstance(thing, np.ndarray):
        if buffer.device.type != "cpu":
            return False
        if type(thing) is not np.ndarray or not member.places:
            raise ModelError(
                f"{member.name!r} is a numpy array that shares memory with a "
                f"parameter, and cannot follow it: it is of {type(thing).__name__}, or "
                "in a tuple. Keep it as an attribute, in a list or a dict; or take it "
                "from the parameter where it is used."
            )
        data = buffer.view(torch.uint8).numpy()
        array = np.ndarray(thing.shape, thing.dtype, data, offset, thing.strides)
        array.flags.writeable = thing.flags.writeable
        _replace(member, array)
        return True
    if thing.device != buffer.device and member.kind == "attribute":
        return False
    view = _view(thing, member, buffer, offset)
    in_place = isinstance(thing, torch.nn.Parameter) or thing.grad_fn is not None
    if in_place or not member.places:
        thing.data = view
    else:
        # Not in place: others may hold the tensor, such as another replica's model.
        _replace(member, view, thing.device != buffer.device)
    return True


def _view(
    thing: torch.Tensor, member: _Member, buffer: torch.Tensor, offset: int
) -> torch.Tensor:
    size = member.itemsize
    view = torch.empty(0, dtype=thing.dtype, device=buffer.device).set_(
        buffer.untyped_storage(),
        (buffer.storage_offset() * buffer.element_size() + offset) // size,
        member.shape,
        tuple(stride // size for stride in member.strides),
    )
    if thing.is_conj():
        view = view.conj()
    return torch._neg_view(view) if thing.is_neg() else view


def _replace(member: _Member, value: Any, is_elsewhere: bool = False) -> None:
    for container, key in member.places:
        # What the model has replaced meanwhile is left; a device is no reason.
        if is_elsewhere or _holds(container, key, member.thing):
            container[key] = value
    member.thing = value
