"""Calling: what a function of the user's is given, by what it takes.

A function is called with more than its first argument where it asks for more: by a
parameter that needs a value, or by one of that name. Its first parameter gets the
first argument, unless its name asks for another one. One with a default of its own,
``def init_weights(model, std=0.02)``, is the user's setting, and stays as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tensair_dask.errors import CallError

__all__ = ["DRIFT", "OPTIMIZERS", "START", "Fitted", "as_called", "defaulted", "doubts"]

# What may be given, by the names that ask for it.
MODEL = frozenset({"model", "net", "network", "module", "nn"})
OPTIMIZERS = frozenset(
    {"optimizers", "optimizer", "optims", "optim", "opts", "opt"}
    | {"optimisers", "optimiser"}
)
DRIFT = frozenset({"drift", "shift"})
START = frozenset(
    {"start", "begin", "first", "skip", "offset", "index", "position", "at", "from"}
    | {"start_at", "begin_at", "first_item", "number", "i", "n"}
)
# Names that mean nothing else; the usual order of scikit-learn and Keras.
_TRUE = frozenset(
    {"y_true", "true", "truth", "target", "targets", "label", "labels", "gold"}
    | {"ground_truth", "y_test", "actual", "expected", "trues", "ytrue"}
)
_PREDICTED = frozenset(
    {"y_pred", "pred", "preds", "prediction", "predictions", "predicted", "y_hat"}
    | {"yhat", "input", "inputs", "output", "outputs", "logits", "logit", "y_score"}
    | {"scores", "y_prob", "y_proba", "probs", "ypred", "estimate", "forecast"}
)
TARGET = frozenset(
    {"y", "yt", "y_true", "true", "truth", "target", "targets", "label", "labels"}
    | {"gold", "expected", "actual", "observed", "reference", "answer", "answers"}
    | {"other", "b", "ys", "t", "trues", "ground_truth", "input2", "x2"}
)
COUNT = frozenset(
    {"gradients", "gradient", "count", "step", "n", "t", "i", "k", "x", "clock"}
    | {"epoch", "version", "iteration", "optimizer", "optimiser", "opt", "at", "now"}
)

_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Fitted:
    """Calls a function with those of several arguments that it takes.

    Parameters
    ----------
    function
        Of the user's.
    places
        For each argument that may be given where it goes: the number of a position, a
        name, or None for nowhere.
    """

    def __init__(
        self, function: Callable[..., Any], places: Sequence[int | str | None]
    ) -> None:
        self.function = function
        self.places = tuple(places)

    def __call__(self, *arguments: Any) -> Any:
        """Call it with those of the arguments that have a place."""
        given = list(zip(self.places, arguments, strict=True))
        by_place = {at: value for at, value in given if isinstance(at, int)}
        by_name = {at: value for at, value in given if isinstance(at, str)}
        placed = [by_place[at] for at in sorted(by_place)]
        return self.function(*placed, **by_name)


def as_called(
    function: Callable[..., Any],
    what: str,
    others: Sequence[tuple[str, frozenset[str]]],
) -> Callable[..., Any]:
    """Find which arguments a function takes, before it is called anywhere.

    Parameters
    ----------
    function
        Called with the model, and with those of the others that it takes.
    what
        How it was given, for messages: ``"apply"``.
    others
        What may be given beside the model: how it is called, and the names of
        parameters that ask for it.

    Returns
    -------
    call
        To be called with all of them. The function itself where it takes all, or does
        not tell what it takes.

    Raises
    ------
    CallError
        If it needs something else, or does not tell which of them it needs.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some that are written in C do not tell
        return function
    kinds = [each.kind for each in parameters]
    if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL]:  # a wrapper passes on all
        return function
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    own = function.keywords if isinstance(function, functools.partial) else {}
    asked = [names - own.keys() for names in (MODEL, *(names for _, names in others))]
    places = _places(positional, parameters, asked)
    if places is None:
        wanted = ", ".join(["model", *(name for name, _ in others)])
        name = getattr(function, "__name__", type(function).__name__)
        raise CallError(
            f"{what} calls a function ({wanted}), and {name}"
            f"{inspect.signature(function)} cannot be called so. Give one with these "
            "parameters; what else it needs give it with functools.partial, or as "
            "defaults."
        )
    if places == list(range(1 + len(others))):
        return function
    return Fitted(function, places)


def _places(
    positional: Sequence[inspect.Parameter],
    parameters: Sequence[inspect.Parameter],
    asked: Sequence[frozenset[str]],
) -> list[int | str | None] | None:
    """Where each argument goes; None if a parameter that needs a value has none."""
    if not positional:
        return None
    places: list[int | str | None] = [None] * len(asked)
    served = set()
    first, *others = positional
    elsewhere = any(
        _asks(each, MODEL) and each.default is each.empty for each in others
    )
    by_name = any(_asks(first, names) for names in asked[1:])
    if not by_name and (_asks(first, MODEL) or not elsewhere):
        places[0] = 0
        served.add(first.name)
    rest = [each for each in parameters if each.name not in served]
    for number, names in enumerate(asked):
        if places[number] is not None:
            continue
        for each in rest:
            if _asks(each, names) and each.name not in served:
                places[number] = _place(each, positional)
                served.add(each.name)
                break
    needing = [
        each
        for each in rest
        if each.default is each.empty
        and each.name not in served
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needing and places[0] is None:
        places[0] = _place(needing.pop(0), positional)
    free = [n for n, place in enumerate(places) if n and place is None]
    # Which of several is meant by one that has another name, nobody knows.
    if needing and (len(needing) != len(free) or needing[-1].kind not in _POSITIONAL):
        return None
    for number, each in zip(free, needing, strict=False):
        places[number] = _place(each, positional)
    return _without_gaps(places, positional)


def _asks(parameter: inspect.Parameter, names: frozenset[str]) -> bool:
    return parameter.name.strip("_").lower() in names


def _place(
    parameter: inspect.Parameter, positional: Sequence[inspect.Parameter]
) -> int | str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return len(positional)
    if parameter.kind not in _POSITIONAL:
        return parameter.name
    return positional.index(parameter)


def _without_gaps(
    places: list[int | str | None], positional: Sequence[inspect.Parameter]
) -> list[int | str | None] | None:
    """Give by name what stands behind a parameter that is left as it is."""
    taken = {place for place in places if isinstance(place, int)}
    reached = 0
    while reached in taken:
        reached += 1
    for number, place in enumerate(places):
        if isinstance(place, int) and place >= reached:
            if place >= len(positional):
                return None
            if positional[place].kind is inspect.Parameter.POSITIONAL_ONLY:
                return None
            places[number] = positional[place].name
    return places


def defaulted(
    function: Callable[..., Any], at: int, names: frozenset[str]
) -> str | None:
    """Name the parameter that would be given something in the place of its default.

    Parameters
    ----------
    function
        Of the user's.
    at
        Of the argument that it is given by its position.
    names
        By which a parameter asks for it, though it has a default.

    Returns
    -------
    name
        None if there is none such, or nobody can tell.
    """
    if isinstance(function, functools.partial) and function.args:
        return None  # whoever has filled in the first knows of the next
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    if at >= len(positional):
        return None
    parameter = positional[at]
    if parameter.default is parameter.empty:
        return None
    return None if _asks(parameter, names) else parameter.name


def doubts(loss: Any, metrics: Mapping[str, Any], schedule: Any) -> Iterator[str]:
    """Find where a function is given something else than its parameters say.

    Parameters
    ----------
    loss, metrics, schedule
        As a trainer is given them.
    """
    of_two = {"loss": loss} | {f"metrics[{name!r}]": m for name, m in metrics.items()}
    for place, function in of_two.items():
        function = getattr(function, "forward", function)
        if (name := defaulted(function, 1, TARGET)) is not None:
            yield (
                f"{place} is called with (prediction, y), so that y takes the place of "
                f"the default of {name}. If that is a setting, give a function of "
                f"both: lambda prediction, y: function(prediction, {name}=...)."
            )
        if (names := _swapped(function)) is not None:
            true, predicted = names
            yield (
                f"{place} is called with (prediction, y), as the losses of torch are, "
                f"and its parameters are ({true}, {predicted}): {true} is given the "
                f"prediction, and {predicted} the target. If that matters, as it does "
                "where the function is not symmetrical, give it in that order: "
                "lambda prediction, y: function(y, prediction)."
            )
    if schedule is None or (name := defaulted(schedule, 0, COUNT)) is None:
        return
    yield (
        "schedule is called with the number of gradients, or with the optimizer, which "
        f"takes the place of the default of {name}. If that is a setting, give a "
        f"function of the number: lambda gradients: function({name}=...)(gradients)."
    )


def _swapped(function: Callable[..., Any]) -> tuple[str, str] | None:
    """Give the names of two parameters that ask for target and prediction."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    if len(positional) < 2:
        return None
    first, second = positional[:2]
    if _asks(first, _TRUE) and _asks(second, _PREDICTED):
        return first.name, second.name
    return None
