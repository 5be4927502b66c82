"""The structure of a model: its parameters and who steps them, and changes of both.

A class more, a layer unfrozen, a layer more: a function may change these while the
model learns. Then the optimizers follow here, and what a checkpoint is told of it lets
a model that is built as before grow to what was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from tensair_dask.errors import ModelError, OptimizerError
from tensair_dask.exchange.arena import sparse_tables
from tensair_dask.replica.model_state import modules_plainly, named_plainly

__all__ = [
    "Groups",
    "Parameters",
    "attributes_of",
    "describe",
    "groups_of",
    "reconcile",
    "reshape",
]

# By its name, of a parameter: shape, dtype, and whether it is trained.
Parameters: TypeAlias = dict[str, list[Any]]
# Names of the parameters of each group of each optimizer.
Groups: TypeAlias = list[list[list[str]]]

# Attributes of modules that checkpoints hold where the structure was changed: the
# numbers of classes of a layer, for one.
_PLAIN = (int, float, bool, str, type(None))


def describe(model: torch.nn.Module) -> Parameters:
    """Describe all parameters of a model, by plain names and in order.

    Raises
    ------
    ModelError
        If one has no shape yet.
    """
    for name, parameter in named_plainly(model).items():
        if torch.nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"Parameter {name!r} has no shape yet: it is of a lazy module. Give it "
                "its sizes, for example torch.nn.Linear(8, 4)."
            )
    return {
        name: [
            list(parameter.shape),
            str(parameter.dtype).removeprefix("torch."),
            parameter.requires_grad,
        ]
        for name, parameter in named_plainly(model).items()
    }


def groups_of(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Groups:
    """Name the parameters that optimizers hold; those of no name are left out."""
    names = {id(each): name for name, each in named_plainly(model).items()}
    return [
        [
            [names[id(each)] for each in group["params"] if id(each) in names]
            for group in optimizer.param_groups
        ]
        for optimizer in optimizers
    ]


def attributes_of(model: torch.nn.Module) -> dict[str, Any]:
    """Give numbers, texts and the like that modules keep, by their dotted names."""
    return {
        f"{path}{name}": value
        for path, module in modules_plainly(model).items()
        for name, value in vars(module).items()
        if type(value) in _PLAIN
    }


def reconcile(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    was: Parameters,
    were_in: Groups,
    kinds: Sequence[str] = (),
) -> None:
    """Let optimizers hold what is trained now: the same as before, and what is new.

    State and settings of what was there stay. What takes the place of a parameter, or
    is trained for the first time, begins with no state.

    Parameters
    ----------
    model, optimizers
        As a function has left them.
    was, were_in
        As they were before: see `describe` and `groups_of`.
    kinds
        ``"dense"`` or ``"sparse"`` for each optimizer, if there are two of a kind.

    Raises
    ------
    OptimizerError
        If it is open which group a new parameter belongs to.
    """
    named = named_plainly(model)
    trained = {id(each): name for name, each in named.items() if each.requires_grad}
    placed = _let_go(optimizers, trained, was)
    before = {
        name: (number, place)
        for number, groups in enumerate(were_in)
        for place, names in enumerate(groups)
        for name in names
    }
    tables = sparse_tables(model)
    for name, parameter in named.items():
        if id(parameter) not in trained or id(parameter) in placed:
            continue
        if name in was and was[name][2] and name not in before:
            continue  # no optimizer was ever to step it
        number, place = before.get(name) or _place(
            name, optimizers, kinds, "sparse" if id(parameter) in tables else "dense"
        )
        if place >= len(optimizers[number].param_groups):
            raise _open(name)
        optimizers[number].param_groups[place]["params"].append(parameter)
    order = {id(each): position for position, each in enumerate(named.values())}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"].sort(key=lambda each: order[id(each)])


def _let_go(
    optimizers: Sequence[torch.optim.Optimizer],
    trained: Mapping[int, str],
    was: Parameters,
) -> set[int]:
    """Take out what is not trained any more; give the ids of what stays."""
    placed: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [each for each in group["params"] if id(each) in trained]
            placed.update(map(id, group["params"]))
        for each in list(optimizer.state):
            kind = [list(each.shape), str(each.dtype).removeprefix("torch.")]
            if id(each) not in placed or was.get(trained[id(each)], kind)[:2] != kind:
                del optimizer.state[each]
    return placed


def _place(
    name: str,
    optimizers: Sequence[torch.optim.Optimizer],
    kinds: Sequence[str],
    kind: str,
) -> tuple[int, int]:
    """Find the group of a parameter that is trained for the first time."""
    if kinds and kind not in kinds:
        raise OptimizerError(
            f"Parameter {name!r} is {kind}, and the model had none of these when it "
            f"was built: there is no optimizer[{kind!r}]. Build the model with one."
        )
    number = list(kinds).index(kind) if kinds else 0
    if (not kinds and len(optimizers) > 1) or len(optimizers[number].param_groups) > 1:
        raise _open(name)
    return number, 0


def _open(name: str) -> OptimizerError:
    return OptimizerError(
        f"Parameter {name!r} is new, and the optimizer has several groups: put it "
        "into one, within the function, for example with "
        "optimizers[0].param_groups[1]['params'].append(model.head.weight)."
    )


def reshape(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    parameters: Parameters,
    groups: Groups,
    attributes: Mapping[str, Any],
) -> None:
    """Let a model grow to what was saved of another one that its factory built.

    Parameters
    ----------
    model, optimizers
        To be changed.
    parameters, attributes
        What is different there: see `describe` and `attributes_of`.
    groups
        All that there are: see `groups_of`.

    Raises
    ------
    ModelError
        If there is a parameter that this model has no place for, or none that it has.
    """
    named = named_plainly(model)
    for name, (shape, dtype, is_trained) in parameters.items():
        if name not in named:
            raise ModelError(
                f"The model was changed while it ran (by trainer.apply), and has a "
                f"parameter {name!r} of shape {tuple(shape)}, for which the factory "
                "builds no layer. Give a model= that builds the changed model: one, "
                "for example, that calls the same function."
            )
        found = named[name]
        if list(found.shape) != shape or found.dtype != getattr(torch, dtype):
            _replace(model, found, shape, getattr(torch, dtype))
            found = named_plainly(model)[name]
        found.requires_grad_(is_trained)
    modules = modules_plainly(model)
    for name, value in attributes.items():
        path, dot, leaf = name.rpartition(".")
        if path + dot in modules and type(value) in _PLAIN:
            setattr(modules[path + dot], leaf, value)
    _regroup(named_plainly(model), optimizers, groups)


def _replace(
    model: torch.nn.Module,
    old: torch.nn.Parameter,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> None:
    """Put a parameter of another shape in the place of one, wherever it is."""
    new = torch.nn.Parameter(torch.zeros(*shape, dtype=dtype, device=old.device))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is old:
                setattr(module, name, new)
        if isinstance(module, torch.nn.LayerNorm) and module.weight is new:
            module.normalized_shape = tuple(shape)


def _regroup(
    named: Mapping[str, torch.nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    groups: Groups,
) -> None:
    if len(groups) != len(optimizers):
        raise ModelError(
            f"It was saved with {len(groups)} optimizers, and there are "
            f"{len(optimizers)}. Give the optimizer= that it was saved with."
        )
    for name in (name for saved in groups for names in saved for name in names):
        if name not in named:
            raise ModelError(
                f"It has a parameter {name!r}, for which the factory builds no layer. "
                "Give the model= that it was saved with."
            )
    for optimizer, saved in zip(optimizers, groups, strict=True):
        for place, names in enumerate(saved):
            held = [named[name] for name in names]
            if place < len(optimizer.param_groups):
                optimizer.param_groups[place]["params"] = held
            else:
                optimizer.add_param_group({"params": held})
        del optimizer.param_groups[len(saved) :]
