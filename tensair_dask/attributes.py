"""Attributes of modules: what is neither parameter nor buffer.

Nobody saves them, and no other replica takes them over: a counter that a model keeps in
one, or a rate of dropout that is changed while it trains, differs between replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch

from tensair_dask.errors import ModelError
from tensair_dask.notices import Notices

__all__ = ["Attributes", "Habits"]

_Values: TypeAlias = "dict[tuple[str, str], Any]"

_PLAIN = (int, float, bool, str, type(None))

# Numbers of the hooks that a module has.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Habits:
    """Finds what a model keeps in attributes from one mini-batch to the next.

    By the first three mini-batches: what changes with each of them. Caches that are
    filled once do not.

    Parameters
    ----------
    model
        To look at.
    notices
        Where it is said.
    """

    def __init__(self, model: torch.nn.Module, notices: Notices) -> None:
        self._model = model
        self._notices = notices
        self._seen: list[_Values] = []
        self.knows = False

    def look(self) -> None:
        """Look at the model after a mini-batch was learned."""
        self._seen.append(_kept(self._model))
        if len(self._seen) < 3:
            return
        one, two, three = self._seen
        self._seen, self.knows = [], True
        names = [
            ".".join(part for part in place if part)
            for place in three
            if place in one
            and place in two
            and one[place] != two[place] != three[place]
        ]
        if names:
            told = ", ".join(map(repr, names[:3]))
            more = "" if len(names) <= 3 else f" and {len(names) - 3} others"
            self._notices.say(
                "habits",
                f"The model changes {told}{more} with each mini-batch. That is no "
                "parameter and no buffer: it is not saved, a replica that joins begins "
                "without it, and each replica has its own, of the mini-batches that it "
                "learns itself. If it matters, let it be a buffer: "
                "self.register_buffer(name, tensor).",
            )


def _kept(model: torch.nn.Module) -> _Values:
    """Numbers, and which tensors there are; not the tensors, which hold much else.

    Tensors with a gradient are computed anew, as a normed weight is.
    """
    return {
        (name, key): (id(value), value._version)
        if isinstance(value, torch.Tensor)
        else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float) or _is_plain_tensor(value)
    }


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.requires_grad


class Attributes:
    """Plain attributes, modes and hooks of a model, before a function changes it.

    Parameters
    ----------
    model
        Which the function is about to change.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._before = dict(_plain(model))
        self._modules = dict(model.named_modules())

    def check(self) -> None:
        """See that the function has changed none of them.

        Raises
        ------
        ModelError
            If it has. They are then as they were, but for hooks.
        """
        after = dict(_plain(self._model))
        changed = [
            place
            for place in self._before
            if place[0] in dict(self._model.named_modules())
            and after.get(place, self) != self._before[place]
        ]
        changed += [place for place in after if place not in self._before]
        changed = [place for place in changed if place[0] in self._modules]
        if not changed:
            return
        for name, key in changed:
            if key in _HOOKS:
                continue
            if (name, key) in self._before:
                setattr(self._modules[name], key, self._before[name, key])
            else:
                delattr(self._modules[name], key)
        told = ", ".join(repr(f"{name}.{key}".lstrip(".")) for name, key in changed[:5])
        raise ModelError(
            f"The function has changed {told} of the model. Other replicas, and "
            "checkpoints, take over values of parameters and buffers, and settings of "
            "optimizers, not attributes, modes or hooks of modules. Keep in a buffer "
            "what is to change while the model trains, and change its value."
        )


def _plain(model: torch.nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if type(value) in _PLAIN:
                yield (name, key), value
        for key in _HOOKS:
            yield (name, key), len(getattr(module, key, ()))
