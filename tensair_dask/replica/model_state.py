"""The state of a model, as another copy of the model can take it over.

What a factory builds and what a model has become may differ: buffers are made at the
first forward pass, grow, or change their type. Which ones is part of the state; all
others must fit as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from tensair_dask.errors import ModelError
from tensair_dask.exchange.ties import Ties

__all__ = ["ModelState", "copied", "modules_plainly", "named_plainly"]

# How a buffer was built: its shape and dtype; None if there was none.
_Built: TypeAlias = "tuple[torch.Size, torch.dtype] | None"

# torch.compile puts a module of its own around a module, which all names show.
_WRAPPED = "_orig_mod."


class ModelState:
    """Copies the state of a model, and puts a copy of another one into it.

    Names are those of the plain model: what `torch.compile` adds to them is left out,
    so that the state of a compiled model fits one that is not, and the other way round.

    Parameters
    ----------
    model
        As its factory has built it.
    device
        Where it lives.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._built = self._buffers()
        self._modules: set[str] = set()
        self.grown()

    def grown(self) -> None:
        """Take note of modules that each copy of the model has, from now on."""
        self._modules = set(modules_plainly(self._model))

    def copy(self) -> dict[str, Any]:
        """Copy parameters, buffers and all else to the CPU, by plain names."""
        plain = self._plain()
        state = copied(self._model.state_dict())
        return {plain(name): value for name, value in state.items()}

    def made(self) -> list[str]:
        """Name the buffers that are not as they were built."""
        now, built = self._buffers(), self._built
        return sorted(
            name for name in {*now, *built} if now.get(name) != built.get(name)
        )

    def check(self, state: Mapping[str, Any]) -> None:
        """See that a model that has just been built can take a `copy` of this over.

        Raises
        ------
        ModelError
            If it cannot, with the name of what does not fit.
        """
        plain = self._plain()
        for name, module in _modules(self._model):
            path = plain(f"{name}.")
            within = [key for key in state if key.startswith(path)]
            if path not in self._modules and within:
                raise ModelError(
                    f"{within[0]!r} lies in a module that the model factory does not "
                    f"build, but the model while it runs ({type(module).__name__}). "
                    "Build it in the factory."
                )
            if _gives_only(module):
                raise ModelError(
                    f"{path + '_extra_state'!r} is given by get_extra_state of "
                    f"{type(module).__name__}, which has no set_extra_state that takes "
                    "it. Write one, or leave the other out."
                )
        if set(state) != self._usual(plain):
            self._try(state)

    def _try(self, state: Mapping[str, Any]) -> None:
        """See that what a model gives in its own way is what it takes."""
        try:
            # A copy: the model may keep what it is given, and go on changing it.
            self._model.load_state_dict(dict(self._own(copied(state))))
        except BaseException as error:
            raise ModelError(
                f"{type(self._model).__name__} cannot take over the state that it "
                f"gives itself: {' '.join(str(error).split())} What its state_dict "
                "gives must be what its load_state_dict takes."
            ) from error

    def _usual(self, plain: Callable[[str], str]) -> set[str]:
        named = self._model.named_parameters(remove_duplicate=False)
        buffers = self._buffers().items()
        return {plain(name) for name, _ in named} | {
            name for name, kind in buffers if kind is not None
        }

    def put(
        self,
        state: Mapping[str, Any],
        made: Collection[str] = (),
        ties: Ties | None = None,
    ) -> None:
        """Put a state into the model.

        Parameters
        ----------
        state
            What `copy` has returned.
        made
            What `made` has returned there: these buffers are made here as they are in
            the state.
        ties
            What shares memory here. Where buffers did so no more there, they are cut
            off here as well.

        Raises
        ------
        ModelError
            If a buffer has no place here, or parameters that share memory here have
            different values in the state.
        Exception
            Of torch, if something else does not fit. What is here is then half
            replaced.
        """
        modules = modules_plainly(self._model)
        state = self._named_plainly(state)
        for name in {*self.made(), *made}:
            path, dot, leaf = name.rpartition(".")
            module = modules.get(path + dot)
            if module is None and state.get(name) is None:
                continue
            if module is None:
                raise ModelError(f"{name!r} has no place here: there is no {path!r}.")
            if name in made:
                value = state.get(name)
                _set(module, leaf, None if value is None else value.to(self._device))
            else:
                _set(module, leaf, self._as_built(name))
        own = dict(self._own(state))
        self._model.load_state_dict(own)
        if ties is None or not (tied := self._overwritten(own, ties)):
            return
        if any([ties.cut_buffers(name) for name in tied]):
            self._model.load_state_dict(own)
            tied = self._overwritten(own, ties)
        if tied:
            raise ModelError(
                f"{' and '.join(map(repr, ties.with_same_memory(tied[0])[:4]))} share "
                "memory in this model, and have different values in the state. Give "
                "the model= that it was saved with."
            )

    def _overwritten(self, own: Mapping[str, Any], ties: Ties) -> list[str]:
        """Name what has other values than those that were just put into it."""
        tied = ties.saved
        return [
            name
            for name, each in (
                *self._model.named_parameters(),
                *self._model.named_buffers(),
            )
            if id(each) in tied and name in own and not _is(each.detach(), own[name])
        ]

    def _as_built(self, name: str) -> torch.Tensor | None:
        kind = self._built.get(name)
        if kind is None:
            return None
        shape, dtype = kind
        return torch.empty(shape, dtype=dtype, device=self._device)

    # ---- names ------------------------------------------------------------------

    def _plain(self) -> Callable[[str], str]:
        return _plain(self._model)

    def _named_plainly(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out of names what torch.compile adds, also in states of elsewhere."""
        plain = self._plain()
        known = {plain(name) for name in self._model.state_dict()}
        return {
            name if name in known else name.replace(_WRAPPED, ""): value
            for name, value in state.items()
        }

    def _own(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Name a state as this model does."""
        plain = self._plain()
        own = {plain(name): name for name in self._model.state_dict()}
        for name, value in state.items():
            yield own.get(name, name), value

    def _buffers(self) -> dict[str, _Built]:
        """Shapes and dtypes of the buffers that are part of the state."""
        plain = self._plain()
        return {
            plain(f"{path}.{name}".lstrip(".")): None
            if buffer is None
            else (buffer.shape, buffer.dtype)
            for path, module in _modules(self._model)
            for name, buffer in module._buffers.items()
            if name not in getattr(module, "_non_persistent_buffers_set", ())
        }


def _modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    return model.named_modules(remove_duplicate=False)


def copied(value: Any) -> Any:
    """Copy tensors to the CPU, and arrays; also of a state that a module gives itself.

    Parameters
    ----------
    value
        A state, or what is in it.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value


def _is(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    value = value.to(tensor.device, tensor.dtype)
    return torch.allclose(tensor, value, rtol=0.0, atol=0.0, equal_nan=True)


def _gives_only(module: torch.nn.Module) -> bool:
    """Whether a module gives a state of its own, and does not take it back."""
    kind, base = type(module), torch.nn.Module
    gives = getattr(kind, "get_extra_state", None) is not base.get_extra_state
    return gives and getattr(kind, "set_extra_state", None) is base.set_extra_state


def _set(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
    if name in module._buffers:
        setattr(module, name, value)
        return
    if value is None:
        return
    # Some keep None there until they register it.
    if module.__dict__.get(name, value) is None:
        del module.__dict__[name]
    module.register_buffer(name, value)


def named_plainly(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Give the parameters of a model, each once, by names without torch.compile's."""
    plain = _plain(model)
    return {plain(name): each for name, each in model.named_parameters()}


def modules_plainly(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Give the modules of a model, by plain names with a dot; "" is the model."""
    plain = _plain(model)
    return {plain(f"{name}."): module for name, module in _modules(model)}


def _plain(model: torch.nn.Module) -> Callable[[str], str]:
    """Give a function that leaves out of a name what torch.compile adds."""
    added = sorted(
        (
            f"{name}.{_WRAPPED}".lstrip(".")
            for name, module in _modules(model)
            if type(module).__name__ == "OptimizedModule"
        ),
        key=len,
        reverse=True,
    )

    def plain(name: str) -> str:
        for prefix in added:  # the innermost first
            if name.startswith(prefix):
                kept = len(prefix) - len(_WRAPPED)
                name = name[:kept] + name[len(prefix) :]
        return "" if name == "." else name

    return plain
