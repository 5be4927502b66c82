"""Schedules: learning rates by the number of gradients that the model holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.optim import lr_scheduler

from tensair_dask._common.learning_rates import FACTOR
from tensair_dask._common.notices import Notices
from tensair_dask._wording import in_words
from tensair_dask.errors import OptimizerError

__all__ = ["Schedule", "has_schedule"]

# Gradients during which all rates are 0 before that is said: a cycle may pass 0.
IDLE = 100
# What is below 0 by less is 0.
ROUNDING = 1e-12
# As torch calls the rate with which a schedule begins.
INITIAL = "initial_lr"

# Schedulers of torch whose rates are a function of the count alone, beside those that
# have a closed form.
PURE = (lr_scheduler.LambdaLR, lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)

_EXAMPLES = (
    "Give a function of the number of gradients, for example schedule=lambda gradients:"
    " 0.999 ** gradients, or what builds a scheduler of torch when called with the "
    "optimizer, for example schedule=functools.partial(torch.optim.lr_scheduler."
    "StepLR, step_size=1000)."
)


_GO_ON = (
    "Give one that reaches as far as the stream, or has no end, for example "
    "schedule=lambda gradients: 1 / (1 + 0.001 * gradients)."
)


class _Course(Protocol):
    name: str
    # The count at which it is over; infinite if it has no end.
    end: float

    def rates(self, count: int) -> list[float]:
        """Learning rates of the groups of one optimizer after so many gradients."""


class Schedule:
    """Has the learning rates follow the clock of a replica.

    So all replicas have the same rates when they hold the same gradients, whoever has
    computed these, and whenever a replica has come. Nothing of a schedule is saved: it
    is told where it stands.

    Parameters
    ----------
    given
        See the argument of `Trainer`.
    optimizers
        All follow it.
    notices
        Told of what has no effect.

    Raises
    ------
    OptimizerError
        If it is no schedule.
    """

    def __init__(
        self,
        given: Callable[[Any], Any],
        optimizers: Sequence[torch.optim.Optimizer],
        notices: Notices,
    ) -> None:
        self._given = given
        self._optimizers = optimizers
        self._notices = notices
        self._idle_since: int | None = None
        self.begin()
        self.follow(0)

    def begin(self) -> None:
        """Begin anew with the optimizers, which may have taken over another state."""
        self._count: int | None = None
        self._courses: list[_Course] = []
        self._rates: list[list[float]] = []
        for optimizer in self._optimizers:
            groups = optimizer.param_groups
            rates = [float(group["lr"]) for group in groups]
            for group, rate in zip(groups, rates, strict=True):
                group.setdefault(FACTOR, 1.0)
                group.setdefault(INITIAL, rate)
                _write(group, float(group[INITIAL]))
            self._courses.append(_course(self._given, optimizer))
            for group, rate in zip(groups, rates, strict=True):
                _write(group, rate)

    def follow(self, count: int) -> None:
        """Set the rates for a model that holds so many gradients.

        Raises
        ------
        OptimizerError
            If the schedule raises, or gives no rates.
        """
        if count == self._count:
            return
        self._rates = [_checked(course, count) for course in self._courses]
        for group, rate in self._each():
            _write(group, rate * group[FACTOR])
        self._count = count
        self._tell_of_the_end(count)

    def _tell_of_the_end(self, count: int) -> None:
        for course, rates in zip(self._courses, self._rates, strict=True):
            if count >= course.end:
                self._notices.say(
                    "schedule-over",
                    f"The schedule has ended: {course.name} has total_steps="
                    f"{course.end:g}, and the model holds {count} gradients, those of "
                    "all replicas together, of which each is a step. The learning "
                    f"rate stays where it has ended, {_told(rates)}: little may be "
                    f"learned from now on. {_GO_ON}",
                )
        if any(map(any, self._rates)):
            self._idle_since = None
        elif self._idle_since is None or count < self._idle_since:
            self._idle_since = count
        elif count - self._idle_since >= IDLE:
            names = " and ".join(dict.fromkeys(each.name for each in self._courses))
            self._notices.say(
                "schedule-idle",
                f"The schedule ({names}) has had all learning rates at 0 since the "
                f"model holds {self._idle_since} gradients, and now it holds {count}, "
                "those of all replicas together: nothing is learned, although no "
                f"mini-batch is refused. {_GO_ON}",
            )

    def keep_changes(self) -> None:
        """Go on relative to rates that were changed by hand since `follow`."""
        for group, rate in self._each():
            found = float(group["lr"])
            if math.isclose(found, rate * group[FACTOR], rel_tol=1e-6):
                continue
            if rate > 0:
                group[FACTOR] = found / rate
            else:
                self._notices.say(
                    "schedule-at-0",
                    f"The learning rate was set to {found:g} while the schedule is at "
                    "0: it has no effect, since the schedule goes on from there. "
                    "Change it at another time, or with tensair_dask.adaptation."
                    "RaiseLearningRate, which multiplies the schedule.",
                )

    def _each(self) -> list[tuple[dict[str, Any], float]]:
        return [
            (group, rate)
            for optimizer, rates in zip(self._optimizers, self._rates, strict=True)
            for group, rate in zip(optimizer.param_groups, rates, strict=True)
        ]


def _checked(course: _Course, count: int) -> list[float]:
    given = course.rates(count)
    # Of a ramp that ends at 0, rounding may leave a little below.
    rates = [max(rate, 0.0) if rate > -ROUNDING else rate for rate in given]
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise OptimizerError(
                f"The schedule ({course.name}) gives the learning rate {rate:g} for a "
                f"model that holds {count} gradients; a finite number from 0 is "
                f"allowed. {_GO_ON}"
            )
    return rates


def _told(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(rates))


def has_schedule(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether their state comes from a run with a schedule."""
    return any(FACTOR in group for each in optimizers for group in each.param_groups)


def _write(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _course(given: Callable[[Any], Any], optimizer: torch.optim.Optimizer) -> _Course:
    """Find out which of the two was given, by calling it."""
    try:
        factor = float(given(0))
    except BaseException as error:
        no_function = error
    else:
        return _Function(given, optimizer, factor)
    try:
        scheduler = given(optimizer)
    except BaseException as error:
        raise OptimizerError(
            f"schedule was called with 0, and raised {in_words(no_function)}; and with "
            f"the optimizer, and raised {in_words(error)}. {_EXAMPLES}"
        ) from error
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        raise OptimizerError(
            "schedule built a ReduceLROnPlateau, which asks for a score at each step; "
            "replicas have different ones. Give one that follows the number of steps, "
            "or change the rate with trainer.apply or on_drift=."
        )
    if not isinstance(scheduler, lr_scheduler.LRScheduler):
        raise OptimizerError(
            f"schedule was called with 0, and raised {in_words(no_function)}; and with "
            f"the optimizer, and returned a {type(scheduler).__name__}. {_EXAMPLES}"
        )
    if _is_pure(scheduler):
        return _Pure(scheduler)
    return _Stepped(given, scheduler)


class _Function:
    """A function of the number of gradients; gives a factor."""

    end = math.inf

    def __init__(
        self,
        function: Callable[[int], Any],
        optimizer: torch.optim.Optimizer,
        first: float,
    ) -> None:
        self._function = function
        self.name = f"the function {getattr(function, '__name__', '')}".rstrip()
        self._initial = [float(group[INITIAL]) for group in optimizer.param_groups]
        _check(first, 0)

    def rates(self, count: int) -> list[float]:
        try:
            factor = float(self._function(count))
        except BaseException as error:
            raise OptimizerError(
                f"schedule({count}) raised {in_words(error)}. It is called with the "
                "number of gradients that the model holds, and returns a factor."
            ) from error
        _check(factor, count)
        return [initial * factor for initial in self._initial]


def _check(factor: float, count: int) -> None:
    if not 0 <= factor < math.inf:
        raise OptimizerError(
            f"schedule({count}) returned {factor:g}; a factor from 0 is allowed, by "
            "which the learning rates of the optimizer are multiplied."
        )


class _Pure:
    """A scheduler of torch that can be asked for any count at once."""

    def __init__(self, scheduler: lr_scheduler.LRScheduler) -> None:
        self._scheduler = scheduler
        closed = getattr(scheduler, "_get_closed_form_lr", None)
        self._ask: Callable[[], list[Any]] = closed or scheduler.get_lr
        self.name = type(scheduler).__name__
        # Of OneCycleLR, which has no rate for what comes behind.
        self.end = getattr(scheduler, "total_steps", math.inf)

    def rates(self, count: int) -> list[float]:
        scheduler: Any = self._scheduler
        scheduler.last_epoch = int(min(count, self.end - 1))
        scheduler._get_lr_called_within_step = True
        scheduler._is_initial = False
        try:
            return [float(rate) for rate in self._ask()]
        except BaseException as error:
            raise _failed(scheduler, count, error) from error
        finally:
            scheduler._get_lr_called_within_step = False


class _Stepped:
    """Any other scheduler of torch: it is stepped once for each gradient."""

    end = math.inf

    def __init__(
        self,
        build: Callable[[Any], Any],
        scheduler: lr_scheduler.LRScheduler,
    ) -> None:
        self._build = build
        self.name = type(scheduler).__name__
        self._begin(scheduler)

    def _begin(self, scheduler: lr_scheduler.LRScheduler) -> None:
        self._scheduler: Any = scheduler
        self._optimizer = scheduler.optimizer
        # It would warn that the optimizer has not stepped: it steps over the arena.
        vars(self._optimizer)["_opt_called"] = True
        self._count = 0
        self._keep()

    def _keep(self) -> None:
        groups = self._optimizer.param_groups
        self._own = [float(group["lr"]) for group in groups]

    def rates(self, count: int) -> list[float]:
        # It goes on from the rates that it finds: it is shown those that it has made.
        groups = self._optimizer.param_groups
        if count < self._count:
            for group in groups:
                _write(group, float(group[INITIAL]))
            self._begin(self._build(self._optimizer))
        for group, rate in zip(groups, self._own, strict=True):
            _write(group, rate)
        try:
            while self._count < count:
                self._scheduler.step()
                self._count += 1
        except BaseException as error:
            raise _failed(self._scheduler, self._count + 1, error) from error
        finally:
            self._keep()
        return self._own


def _is_pure(scheduler: Any) -> bool:
    kind = type(scheduler)
    if kind.__module__ != lr_scheduler.__name__:  # what is the user's may be anything
        return False
    return kind in PURE or hasattr(scheduler, "_get_closed_form_lr")


def _failed(scheduler: Any, count: int, error: BaseException) -> OptimizerError:
    return OptimizerError(
        f"{type(scheduler).__name__}, which schedule= built, raised {in_words(error)} "
        f"after {count} gradients. Give one that has a rate for any number of them."
    )
