"""Homes: where the values of each trained parameter lie, and that they lie there.

The exchange reads and writes buffers; a model may be cut off from them by its own
code: ``weight.data = ...``, ``module.to(...)``, ``load_state_dict(assign=True)``,
`flatten_parameters`, a layer that is made anew. What peers learned would then never
reach it, without a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from tensair_dask.errors import ModelError
from tensair_dask.exchange.ties import Ties, memory, share

__all__ = ["Homes"]

_ADVICE = (
    "Parameters are made in the model factory (run one mini-batch through the model "
    "there if a layer makes them late), and changed while it runs by trainer.apply."
)


class Homes:
    """Sees that trained parameters lie where the exchange looks for them.

    Parameters
    ----------
    model
        Its trained parameters lie in their homes now.
    parameters
        These, each once.
    ties
        What shares memory with them.

    Attributes
    ----------
    changed
        Whether what was last brought back had other values than its home.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Sequence[torch.nn.Parameter],
        ties: Ties,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._ties = ties
        self.changed = False
        self._remember()

    def _remember(self) -> None:
        model, trained = self._model, {id(each) for each in self._parameters}
        self._homes = {id(each): each.data for each in self._parameters}
        self._pointers = [(each, each.data_ptr()) for each in self._parameters]
        named = list(model.named_parameters(remove_duplicate=False))
        self._names = {name: each for name, each in named if id(each) in trained}
        self._frozen = {name: each for name, each in named if id(each) not in trained}
        # Modules are looked at through their own dicts. Scripted ones have no such,
        # and let nobody put anything into them either.
        modules = [
            module
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        self._slots = [
            (module, name, parameter)
            for module in modules
            for name, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in trained
        ]
        self._places = [
            (module, name, child)
            for module in modules
            for name, child in module._modules.items()
        ]
        self._sizes = [
            (module, len(module._parameters), len(module._modules))
            for module in modules
        ]

    def seem_to_hold(self) -> bool:
        """Whether all that was just learned with is in its place; for each step.

        What took the place of a parameter has its gradient, too.
        """
        for parameter, pointer in self._pointers:
            if parameter.grad is None or parameter.data_ptr() != pointer:
                return False
        return True

    def hold(self) -> bool:
        """Whether all is in its place."""
        for parameter in self._parameters:
            if not _lies_at(parameter, self._homes[id(parameter)]):
                return False
        for module, name, parameter in self._slots:
            if module._parameters.get(name) is not parameter:
                return False
        for module, name, child in self._places:
            if module._modules.get(name) is not child:
                return False
        for module, parameters, modules in self._sizes:
            if len(module._parameters) != parameters or len(module._modules) != modules:
                return False
        return not any(each.requires_grad for each in self._frozen.values())

    def mend(self) -> tuple[list[str], list[str]]:
        """Bring all back: values and gradients are kept, the places are the old ones.

        Returns
        -------
        moved
            Names of the parameters that lay elsewhere.
        thawed
            Names of those that were frozen and ask for a gradient; they are frozen
            again.

        Raises
        ------
        ModelError
            If there are other parameters now, or of other shapes, or what shared
            memory does so no more, or not before. The model then has those that it
            had, with the values that they had.
        """
        now = dict(self._model.named_parameters(remove_duplicate=False))
        try:
            self._compare(now)
            self._compare_ties(now)
        except ModelError:
            self._put_back()
            raise
        self.changed = False
        moved = [
            name
            for name, parameter in self._names.items()
            if self._bring_back(name, parameter, now[name])
        ]
        thawed = [
            name for name in now if name in self._frozen and now[name].requires_grad
        ]
        for name in thawed:
            now[name].requires_grad_(False).grad = None
        self._remember()
        return moved, thawed

    def _compare(self, now: dict[str, torch.nn.Parameter]) -> None:
        for name, parameter in self._names.items():
            if name not in now:
                raise ModelError(f"Parameter {name!r} is gone. {_ADVICE}")
            was, found = self._homes[id(parameter)].shape, now[name].shape
            if found != was:
                raise ModelError(
                    f"Parameter {name!r} has the shape {tuple(found)}, and had "
                    f"{tuple(was)}. {_ADVICE}"
                )
        for name, other in now.items():
            known = name in self._names or name in self._frozen
            if other.requires_grad and not known:
                raise ModelError(
                    f"Parameter {name!r} has appeared, which is not trained. {_ADVICE}"
                )

    def _compare_ties(self, now: dict[str, torch.nn.Parameter]) -> None:
        """See that memory is shared as before."""
        tied = self._ties.parameters
        places: list[tuple[int, int, int, str]] = []
        order = {id(each): number for number, each in enumerate(self._parameters)}
        for name, parameter in self._names.items():
            found, home = now[name], self._homes[id(parameter)]
            if id(parameter) in tied and not _lies_at(found, home):
                raise ModelError(
                    f"Parameter {name!r} shares memory with others, and has been put "
                    "elsewhere: it would share it no more. Change its values in place, "
                    "for example with parameter.copy_(...), within torch.no_grad()."
                )
            reach = memory(found)
            if reach is not None:
                places.append((*reach, order[id(parameter)], name))
        places.sort()
        for (_, end, one, name), (start, _, two, other) in itertools.pairwise(places):
            both = {id(self._parameters[one]), id(self._parameters[two])}
            if start >= end or len(both) == 1 or both <= tied:
                continue
            if share(now[name], now[other]):
                raise ModelError(
                    f"Parameters {name!r} and {other!r} share memory now, and did not "
                    f"when training began. Use one parameter in both places "
                    f"(model.{other} = model.{name}), in the model factory."
                )

    @torch.no_grad()
    def _bring_back(
        self, name: str, parameter: torch.nn.Parameter, found: torch.nn.Parameter
    ) -> bool:
        home = self._homes[id(parameter)]
        if found is parameter and _lies_at(parameter, home):
            return False
        if not _lies_at(found, home):
            values = found.detach().clone()  # it may be the same memory, transposed
            self.changed |= not torch.equal(home, values)
            home.copy_(values)
        # Of one that was replaced behind its use, the gradient came to the old one.
        gradient = parameter.grad if found.grad is None else found.grad
        found.grad = parameter.grad = None
        parameter.data = home
        if gradient is not None:
            parameter.grad = gradient.to(home.device, home.dtype)
        if found is not parameter:
            path, _, leaf = name.rpartition(".")
            # Not into its dict: recurrent layers keep a list of their own beside it.
            setattr(self._model.get_submodule(path), leaf, parameter)
        return True

    def _put_back(self) -> None:
        for module, name, child in self._places:
            module._modules[name] = child
        for module, name, parameter in self._slots:
            module._parameters[name] = parameter
        for module, parameters, modules in self._sizes:
            while len(module._parameters) > parameters:
                module._parameters.popitem()
            while len(module._modules) > modules:
                module._modules.popitem()
        for each in self._parameters:
            each.grad = None
            each.data = self._homes[id(each)]
        self._ties.follow()


def _lies_at(parameter: torch.Tensor, home: torch.Tensor) -> bool:
    return (
        parameter.data_ptr() == home.data_ptr() and parameter.stride() == home.stride()
    )
