"""Policies: what is done to the model when its stream has drifted."""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensair_dask._common.checks import whole
from tensair_dask._common.learning_rates import scale_rates
from tensair_dask._common.user_functions import DRIFT, OPTIMIZERS, as_called
from tensair_dask.errors import ConfigurationError

if TYPE_CHECKING:
    from tensair_dask.drift.modes import Drift

__all__ = [
    "POLICIES",
    "Call",
    "KeepTraining",
    "Policy",
    "RaiseLearningRate",
    "Reinitialise",
    "RestoreLastGood",
    "as_policy",
]


class Policy:
    """What is done when the stream has drifted; subclass it to write your own.

    Whatever a policy does, all replicas hold the same parameters afterwards: the
    stream is held for a moment, every gradient is applied everywhere, one replica is
    changed, and the others take over its model and the state of its optimizers.

    Attributes
    ----------
    acts
        Whether there is anything to do; if not, nothing is held.
    lasts
        Mini-batches after which `undo` is called, or sooner, when the loss has
        converged; None if there is nothing to undo.
    every
        Mini-batches between two snapshots of the model, which a policy that goes back
        to one needs; None for no snapshots.
    """

    acts = True
    lasts: int | None = None
    every: int | None = None

    def check(self, model: Any) -> None:
        """Raise `ConfigurationError` if it cannot be carried out on this model."""

    def on_drift(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """Change the model in place, on a worker.

        Parameters
        ----------
        model
            The `torch.nn.Module` of one replica. Set the values of its parameters;
            do not put others in their place.
        optimizers
            Its optimizers, one most often.
        drift
            What was detected; its ``magnitude`` says how much the loss has risen, in
            standard deviations.
        """

    def undo(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """End what `on_drift` began, on a worker."""

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        return type(self).__name__


class KeepTraining(Policy):
    """Train on, from the model as it is (passive adaptation)."""

    acts = False

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        return "train on"


class RaiseLearningRate(Policy):
    """Learn faster for a while.

    Parameters
    ----------
    factor
        The learning rates are multiplied by it; or a function of the `Drift`, for
        example ``lambda drift: min(1 + drift.magnitude, 10)``.
    batches
        For so many mini-batches, or until the loss has converged if that is sooner.

    Notes
    -----
    A schedule goes on meanwhile; it is multiplied, too.

    Helps where the rate has been chosen small for accuracy, and a drift asks for
    speed. A rate at the edge of divergence must not be raised.
    """

    def __init__(
        self, factor: float | Callable[[Drift], float] = 5.0, batches: int = 500
    ) -> None:
        if not callable(factor):
            _check_factor(factor)
        self.factor = factor
        self.lasts = whole("batches", batches, 1, 500)

    def _factor(self, drift: Drift) -> float:
        if not callable(self.factor):
            return _check_factor(self.factor)
        factor = self.factor(drift)
        if factor != factor and math.isnan(drift.magnitude):
            raise ConfigurationError(
                "The factor of the learning rate is nan, since the magnitude of this "
                f"drift is: {drift.detector} did not tell it. Let the function return "
                "a number above 0 also where math.isnan(drift.magnitude)."
            )
        return _check_factor(factor)

    def on_drift(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """Multiply the learning rates."""
        scale_rates(optimizers, self._factor(drift))

    def undo(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """Divide them again."""
        scale_rates(optimizers, 1 / self._factor(drift))

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        factor = self._factor(drift)
        return f"learning rate times {factor:g} for {self.lasts} mini-batches"


class Reinitialise(Policy):
    """Forget what some layers have learned.

    Parameters
    ----------
    layers
        Names of modules as ``model.named_modules()`` has them, with wildcards:
        ``"head"``, ``"layers.4"``, ``"classifier.*"``. What is below them is included.

    Notes
    -----
    Calls ``reset_parameters()`` of these modules, or ``_reset_parameters()`` as some of
    torch's call it, and clears what the optimizer keeps of their parameters. A module
    with parameters that none of these resets is refused at the start.

    For drifts that leave the features useful and make the decision wrong, as swapped
    labels do. Where little has changed it forgets what was still right:
    `RaiseLearningRate` is milder.
    """

    def __init__(self, *layers: str) -> None:
        if not layers or not all(isinstance(name, str) for name in layers):
            raise ConfigurationError(
                f"layers={layers!r} was given; names of modules are needed, for "
                "example Reinitialise('head') or Reinitialise('layers.4')."
            )
        self.layers = layers

    def check(self, model: Any) -> None:
        """See that every name is that of a layer that can be reset, as a whole."""
        names = [name for name, _ in model.named_modules() if name]
        for pattern in self.layers:
            found = fnmatch.filter(names, pattern)
            if not any(_resettable(model.get_submodule(name)) for name in found):
                raise ConfigurationError(
                    f"Reinitialise({pattern!r}): the model has no such layer with "
                    f"reset_parameters(). Its modules are {', '.join(names[:20])}."
                )
            left = [
                f"{name}.{each}"
                for name in found
                for each in _left(model.get_submodule(name))
            ]
            if left:
                raise ConfigurationError(
                    f"Reinitialise({pattern!r}) would leave {', '.join(left[:20])} as "
                    "they are: their modules have no reset_parameters(). Write one for "
                    "them, or give a function instead: on_drift=lambda model, "
                    "optimizers, drift: ..."
                )

    def on_drift(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """Reset the layers."""
        names = [name for name, _ in model.named_modules() if name]
        modules = {
            id(module): module
            for pattern in self.layers
            for name in fnmatch.filter(names, pattern)
            for module in _resettable(model.get_submodule(name))
        }
        # As when they are built: the outer ones have the last word.
        for module in reversed(modules.values()):
            if reset := _reset(module):
                reset()
            for parameter in module.parameters():
                for optimizer in optimizers:
                    optimizer.state.pop(parameter, None)

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        return f"re-initialise {', '.join(self.layers)}"


class RestoreLastGood(Policy):
    """Go back to the model as it was before the drift, and train on from there.

    Parameters
    ----------
    every
        Mini-batches between two snapshots while nothing drifts. Restored is the
        newest one that is at least so old: a younger one may have been taken between
        the drift and its detection.

    Notes
    -----
    For ``mode="always"`` and drifts that pass, such as a sensor that fails for an
    hour: what was learned from it is thrown away. In ``mode="auto"`` nothing is
    learned between convergence and drift, so there is little to go back from.

    There is nothing to restore before mini-batch ``2 * every``, about: the first
    snapshot is taken at ``every`` (in mode auto also when training ends), and must be
    that old. Snapshots lie in the memory of the client, two at a time.
    """

    def __init__(self, every: int = 1000) -> None:
        self.every = whole("every", every, 1, 1000)

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        return "restore the last good model"


class Call(Policy):
    """Call a function of the user's with model, optimizers and drift.

    Parameters
    ----------
    function
        See `Policy.on_drift`. It runs on one worker. Model, optimizers and drift are
        given to parameters of these names, else to those without a default, in this
        order; one with a default of its own keeps it.

    Raises
    ------
    CallError
        If it cannot be called with these.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._called = as_called(
            function, "on_drift", [("optimizers", OPTIMIZERS), ("drift", DRIFT)]
        )

    def on_drift(self, model: Any, optimizers: Sequence[Any], drift: Drift) -> None:
        """Call it."""
        self._called(model, optimizers, drift)

    def describe(self, drift: Drift) -> str:
        """Say in few words what is done."""
        return f"call {getattr(self._function, '__name__', 'a function')}"


# Those that need no arguments, by the name that a user gives.
POLICIES: dict[str, Callable[[], Policy]] = {
    "train": KeepTraining,
    "raise-learning-rate": RaiseLearningRate,
    "restore": RestoreLastGood,
}


def as_policy(given: Any) -> Policy:
    """Make a policy of what a user may give: a name, a policy, a function.

    Raises
    ------
    ConfigurationError
        If it is none of them.
    """
    if isinstance(given, Policy):
        return given
    if isinstance(given, str) and given in POLICIES:
        return POLICIES[given]()
    if callable(given) and not isinstance(given, type):
        return Call(given)
    raise ConfigurationError(
        f"on_drift={given!r} was given; allowed are {', '.join(map(repr, POLICIES))}, "
        "a policy such as tensair_dask.adaptation.Reinitialise('head'), or a function "
        "(model, optimizers, drift)."
    )


def _check_factor(factor: Any) -> float:
    number = isinstance(factor, numbers.Real) and not isinstance(factor, bool)
    if not number or not 0 < factor < math.inf:
        raise ConfigurationError(
            f"The factor of the learning rate is {factor!r}; a number above 0 is "
            "allowed, for example 5."
        )
    return float(factor)


def _reset(module: Any) -> Callable[[], Any] | None:
    """Find what sets the parameters of a module as at the start, if it has that."""
    own = getattr(module, "reset_parameters", None)
    return own or getattr(module, "_reset_parameters", None)


def _resettable(module: Any) -> list[Any]:
    return [each for each in module.modules() if _reset(each)]


def _left(module: Any) -> Iterator[str]:
    """Names of the parameters that no module with a reset holds."""
    if _reset(module):
        return
    yield from (name for name, _ in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        yield from (f"{name}.{each}" for each in _left(child))
