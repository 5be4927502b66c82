"""Attributes of modules and optimizers: what is neither parameter nor buffer.

Nobody saves them, and no other replica takes them over: a counter that a model keeps in
one, or a rate of dropout that is changed while it trains, differs between replicas.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tensair_dask._common.contents import Contents, parts
from tensair_dask._common.notices import Notices
from tensair_dask.errors import ModelError, OptimizerError
from tensair_dask.replica.reachable import of_code

__all__ = [
    "Attributes",
    "Habits",
    "OptimizerAttributes",
    "attributes_of_optimizer",
    "contents_of",
    "unsaved",
]

# How often it is looked at what a mini-batch changes.
_LOOKS = 3

# Where generators are looked for: in lists, dicts and objects, so many of each.
_WITHIN = 2
_MOST = 100

# Others look after these.
_OF_MODULES = ("_parameters", "_buffers")
_OF_OPTIMIZERS = (
    *("state", "param_groups", "defaults"),
    # How torch keeps its own accounts.
    *("_opt_called", "_step_count", "_zero_grad_profile_name"),
    *("_need_device_dtype_check_for_fused", "_warned_capturable_if_run_uncaptured"),
)
# Hooks of parameters, and how they are attached.
_HOOKS_OF_PARAMETERS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook",
}


class Habits:
    """Finds what is kept in attributes from one mini-batch to the next.

    By the first three mini-batches: what changes with each of them. Caches that are
    filled once do not.

    Parameters
    ----------
    look
        Gives what is held now, by names.
    say
        Called with the names of what changes, in words, if anything does.

    Attributes
    ----------
    knows
        Whether all mini-batches were seen that it takes.
    """

    def __init__(
        self, look: Callable[[], Contents], say: Callable[[str], object]
    ) -> None:
        self._look = look
        self._say = say
        self._seen: list[Contents] = []
        self.knows = False

    def look(self) -> None:
        """Look after a mini-batch was learned."""
        try:
            self._seen.append(self._look())
        except Exception:  # looking does not decide what is learned
            self.knows = True
            return
        if len(self._seen) < _LOOKS:
            return
        one, two, three = (each.tokens for each in self._seen)
        self.knows = True
        names = [
            name
            for name in three
            if name in one and name in two and one[name] != two[name] != three[name]
        ]
        self._seen = []
        if names:
            told = ", ".join(map(repr, names[:3]))
            more = "" if len(names) <= 3 else f" and {len(names) - 3} others"
            self._say(told + more)

    @classmethod
    def of_model(
        cls, model: torch.nn.Module, notices: Notices, tied: Collection[int] = ()
    ) -> Habits:
        """Look at the attributes of a model, and its buffers that are not saved.

        Those that are ``tied``, by their ids, are parameters under another name.
        """

        def say(names: str) -> None:
            notices.say(
                "habits",
                f"The model changes {names} with each mini-batch. That is no parameter "
                "and no buffer that is saved: no checkpoint holds it, a replica that "
                "joins begins without it, and each replica has its own, of the "
                "mini-batches that it learns itself (of a class or a module, each "
                "process may have one); those of predict and evaluate change it, too. "
                "If it matters, let it be a buffer: "
                "self.register_buffer(name, tensor).",
            )

        def look() -> Contents:
            known, named = unsaved(model, tied=tied)
            return Contents(itertools.chain(named, of_code(model)), known)

        return cls(look, say)

    @classmethod
    def of_generators(cls, model: torch.nn.Module, notices: Notices) -> Habits:
        """Look at the generators of random numbers that a model has of its own."""

        def say(names: str) -> None:
            notices.say(
                "generators",
                f"The model draws random numbers from {names}, a generator of its own. "
                "Each replica has a copy: if it was given a seed, all draw the same "
                "numbers. No checkpoint holds how far it is: after a restore, and in a "
                "replica that joins, it begins anew. Draw without it, from torch or "
                "numpy.random, which seed= seeds otherwise for each replica.",
            )

        def look() -> Contents:
            _, named = unsaved(model)
            everything = itertools.chain(named, of_code(model))
            return Contents(
                (name, state)
                for name, thing in everything
                for state in _states_of_generators(thing, _WITHIN)
            )

        return cls(look, say)


def _states_of_generators(thing: Any, depth: int) -> Iterator[int]:
    """Stand for the states of generators in a thing, in an order that stays."""
    if isinstance(thing, torch.Generator):
        yield hash(thing.get_state().numpy().tobytes())
    elif isinstance(thing, np.random.Generator):
        yield hash(repr(thing.bit_generator.state))
    elif isinstance(thing, np.random.RandomState):
        yield hash(repr(thing.get_state()))
    elif isinstance(thing, random.Random):
        yield hash(thing.getstate())
    elif depth and not isinstance(thing, (torch.nn.Module, torch.Tensor, str)):
        for _, part in itertools.islice(parts(thing) or (), _MOST):
            yield from _states_of_generators(part, depth - 1)


def contents_of(
    model: torch.nn.Module, whole: bool = False, tied: Collection[int] = ()
) -> Contents:
    """Give what the attributes of modules hold, by dotted names.

    Parameters
    ----------
    model
        Its parameters, and the buffers that are saved, are left out.
    whole
        As of `Contents`.
    tied
        Ids of what shares memory with parameters: as these, it counts by its identity.
    """
    known, named = unsaved(model, whole, tied)
    return Contents(named, known, whole)


def unsaved(
    model: torch.nn.Module, whole: bool = False, tied: Collection[int] = ()
) -> tuple[set[int], Iterator[tuple[str, Any]]]:
    """Find what no checkpoint of a model holds.

    Parameters
    ----------
    model, whole, tied
        As of `contents_of`.

    Returns
    -------
    known, named
        Ids of what others look after, and all else by dotted names: buffers that are
        not saved, and attributes.
    """
    # Its modules, too: what lies in them is found under their own names.
    known = {id(each) for each in (*model.modules(), *model.parameters())}
    known.update(tied)
    buffers = []
    for name, module in model.named_modules():
        names = getattr(module, "_non_persistent_buffers_set", ())
        for key, buffer in module.named_buffers(recurse=False):
            if key in names:
                buffers.append((f"{name}.{key}".lstrip("."), buffer))
            else:
                known.add(id(buffer))

    def named() -> Iterator[tuple[str, Any]]:
        yield from buffers
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                # Layers that are made anew are their parameters' matter, unless they
                # have none.
                if key not in _OF_MODULES and (whole or key != "_modules"):
                    yield f"{name}.{key}".lstrip("."), value

    return known, named()


class Attributes:
    """Attributes, modes and hooks of a model, before a function changes it.

    Parameters
    ----------
    model
        Which the function is about to change.
    tied
        Ids of what shares memory with its parameters.
    """

    def __init__(self, model: torch.nn.Module, tied: Collection[int] = ()) -> None:
        self._model = model
        self._tied = tied
        self._before = contents_of(model, True, tied)
        self._hooks = Contents(_hooks_and_modes(model), whole=True)
        self._of_parameters = _OfParameters(model)
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters())
        self._classes = [(each, type(each)) for each in model.modules()]

    def check(self) -> None:
        """See that the function has changed none of them.

        Raises
        ------
        ModelError
            If it has; see `restore`.
        """
        changed = _changed(self._before, contents_of(self._model, True, self._tied))
        after = Contents(_hooks_and_modes(self._model), whole=True)
        changed += _changed(self._hooks, after)
        if not changed:
            return
        told = ", ".join(map(repr, changed[:5]))
        raise ModelError(
            f"The function has changed {told} of the model. Other replicas, and "
            "checkpoints, take over values of parameters and of buffers that are "
            "saved, and settings of optimizers; not attributes, modes, hooks, and "
            "layers without parameters: only one replica would have them. Keep in a "
            "buffer what is to change while the model trains, and change its value. "
            "Build the model as it is to be, in model=."
        )

    def besides(self) -> list[str]:
        """Name what a change of the structure has changed that no checkpoint holds.

        In modules and parameters that were there before, and stay; numbers and texts
        are part of the structure. And layers without parameters, old or new.
        """
        now = dict(self._model.named_modules())
        kept = {path for path in now if self._modules.get(path) is now[path]}
        after = contents_of(self._model, True, self._tied)
        found = [
            name
            for name in _changed(self._before, after)
            if (path := name.rpartition(".")[0]) in kept
            and not _is_of_structure(now[path], name.rpartition(".")[2])
        ]
        kept |= {
            name
            for name, each in self._model.named_parameters()
            if self._parameters.get(name) is each
        }
        after = Contents(_hooks_and_modes(self._model), whole=True)
        found += [
            name
            for name in _changed(self._hooks, after)
            if name.rpartition(".")[0] in kept
        ]
        found += [
            path
            for path, module in now.items()
            if path not in kept
            and path.rpartition(".")[0] in kept
            and not any(True for _ in (*module.parameters(), *module.buffers()))
        ]
        return found

    def restore(self) -> None:
        """Put back what was changed within attributes.

        The attributes themselves are those of `Rollback`.
        """
        self._before.restore()
        self._hooks.restore()
        self._of_parameters.restore()
        for module, kind in self._classes:
            if type(module) is not kind:
                module.__class__ = kind


def _is_of_structure(module: torch.nn.Module, key: str) -> bool:
    """Whether it is known from the parameters, or saved with the structure."""
    if key == "_modules" or key.startswith("_flat_weight"):
        return True
    return type(vars(module).get(key, ())) in (int, float, bool, str, type(None))


def _hooks_and_modes(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        yield f"{name}.__class__".lstrip("."), type(module)
        if isinstance(module, torch.jit.ScriptModule):  # kept by torch elsewhere
            yield f"{name}.training".lstrip("."), module.training
    for name, parameter in model.named_parameters():
        for key, told in _HOOKS_OF_PARAMETERS.items():
            yield f"{name}.{told}", dict(getattr(parameter, key, None) or {})
        for key, value in vars(parameter).items():
            yield f"{name}.{key}", value


class _OfParameters:
    """Hooks and attributes of parameters, to be put back."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._were = [
            (each, key, dict(getattr(each, key, None) or {}))
            for each in model.parameters()
            for key in _HOOKS_OF_PARAMETERS
        ]
        self._own = [(each, dict(vars(each))) for each in model.parameters()]

    def restore(self) -> None:
        for parameter, key, were in self._were:
            hooks = getattr(parameter, key, None)
            if hooks is not None:
                hooks.clear()
                hooks.update(were)
        for parameter, own in self._own:
            vars(parameter).clear()
            vars(parameter).update(own)


class OptimizerAttributes:
    """Attributes and methods of optimizers, before a function changes them.

    Parameters
    ----------
    optimizers
        Which the function is about to be given.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._before = self._contents()
        self._were = [dict(_own(each)) for each in optimizers]

    def _contents(self) -> Contents:
        known = {
            id(parameter)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = [
            (name, value)
            for optimizer in self._optimizers
            for name, value in _own(optimizer).items()
        ]
        return Contents(named, known, whole=True)

    def check(self) -> None:
        """See that the function has changed none of them.

        Raises
        ------
        OptimizerError
            If it has; see `restore`.
        """
        changed = _changed(self._before, self._contents())
        if not changed:
            return
        told = ", ".join(map(repr, changed[:5]))
        raise OptimizerError(
            f"The function has changed {told} of an optimizer. Other replicas take "
            "over its state and its settings, in param_groups; not its methods, hooks "
            "and attributes: only one would have them. Build it with them, in "
            "optimizer=; for learning rates that change give schedule=."
        )

    def restore(self) -> None:
        """Put them back."""
        for optimizer, were in zip(self._optimizers, self._were, strict=True):
            for name in _own(optimizer).keys() - were.keys():
                del vars(optimizer)[name]
            vars(optimizer).update(were)
        self._before.restore()


def _own(optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name not in _OF_OPTIMIZERS
    }


def attributes_of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give the attributes that are not torch's own, by names."""
    return {
        name: value
        for name, value in _own(optimizer).items()
        if not name.startswith("_optimizer_")  # hooks
    }


def _changed(before: Contents, after: Contents) -> list[str]:
    was, now = before.tokens, after.tokens
    nothing = object()
    return [
        name for name in {**was, **now} if was.get(name, nothing) != now.get(name, 0)
    ]
