"""Whether training settles with gradients as stale as those that come from peers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from tensair_dask._wording import in_words
from tensair_dask.replica.learner import Learner

__all__ = ["Stability", "stable_product"]

# Looks that are remembered, and that a judgement needs.
REMEMBERED = 9
NEEDED = 5

# The first looks come so many times as often as later ones.
EAGER = 10

# By what the proposed rate is below the bound, which is an estimate.
MARGIN = 2.0


def stable_product(replicas: int) -> float:
    """How large curvature times staleness may be, with so many replicas.

    Where all replicas move along one direction, each has its own gradients at once and
    those of the others late: ``x'(t) = -a x(t) - (n - 1) a x(t - d)``, with ``a`` the
    part of the slope that a step takes away. That settles whatever the delay ``d`` for
    two replicas, and else for ``d`` below ``arccos(-1 / (n - 1)) / (a sqrt((n - 1)^2
    - 1))`` (N. D. Hayes, Roots of the transcendental equation associated with a certain
    difference-differential equation, 1950). The staleness is ``n d``. Half of that is
    allowed here: what has gathered for ``d`` comes at once, as one large step.

    Parameters
    ----------
    replicas
        That learn together, from 1.

    Returns
    -------
    bound
        Infinite for two replicas and for one.
    """
    others = replicas - 1
    if others < 2:
        return math.inf
    delay = math.acos(-1 / others) / math.sqrt(others**2 - 1)
    return replicas * delay / 2


class Stability:
    """Looks now and then how far a step goes, and warns where stale ones go too far.

    A look compares the slope along a step before and after it, on the mini-batch that
    the step was made of. What is missing afterwards is the *curvature* here: of a
    quadratic function and plain SGD it is learning rate times second derivative, and 1
    is the step to the bottom. It holds for any optimizer, since the step is what the
    optimizer made of the gradient. The median of some looks is good to a factor of
    about two.

    Belongs to the thread that trains.

    Parameters
    ----------
    learner
        Whose steps are looked at, and whose notices are warned.
    every
        Steps from one look to the next, each of which costs two more steps; 0 for none.

    Attributes
    ----------
    curvature
        The median of the newest looks; None before there are enough.
    """

    def __init__(self, learner: Learner, every: int) -> None:
        self._learner = learner
        self._every = every
        self._looks: deque[float] = deque(maxlen=REMEMBERED)
        self._steps = 0
        self.curvature: float | None = None

    def is_due(self, replicas: int) -> bool:
        """Count a step; whether to look at it. Two replicas bear any staleness."""
        if replicas < 3 or not self._every:
            return False
        if self._learner.arena.tables:
            self._give_up("rows of a sparse table are too many to be copied")
            return False
        self._steps += 1
        settled = len(self._looks) == REMEMBERED
        if self._steps < (self._every if settled else self._every / EAGER):
            return False
        self._steps = 0
        return True

    def before_step(self) -> list[torch.Tensor] | None:
        """Copy the parameters, for `look`; None where there is no memory for it."""
        try:
            return self._copies()
        except Exception as error:
            self._give_up(in_words(error))
            return None

    def look(self, before: Sequence[torch.Tensor], x: Any, y: Any) -> None:
        """Compare the slopes before and after a step; the parameters stay as they are.

        Parameters
        ----------
        before
            What `before_step` gave.
        x, y
            The mini-batch that it was made of.
        """
        try:
            curvature = self._curvature(before, lambda: self._learner.gradients(x, y))
        except BaseException as error:  # of the user's code; the mini-batch is learned
            self._give_up(in_words(error))
            return
        if math.isfinite(curvature):
            self._looks.append(curvature)
        if len(self._looks) >= NEEDED:
            self.curvature = median(self._looks)

    def _curvature(
        self,
        before: Sequence[torch.Tensor],
        differentiate: Callable[[], Sequence[torch.Tensor | None]],
    ) -> float:
        after = self._copies()
        step = [new - old for new, old in zip(after, before, strict=True)]
        slope_after = _dot(differentiate(), step)
        try:
            self._put(before)
            slope_before = _dot(differentiate(), step)
        finally:
            self._put(after)
        return 1.0 - slope_after / slope_before if slope_before else math.nan

    def _copies(self) -> list[torch.Tensor]:
        return [each.detach().clone() for each in self._learner.arena.dense]

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            parameters = self._learner.arena.dense
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)

    def _give_up(self, why: str) -> None:
        self._every = 0
        self._learner.notices.say(
            "no look at stability",
            "Nobody looks whether gradients of peers are too stale for the learning "
            f"rate: {why}. Watch the loss, and lower the rate if it grows. "
            "tensair.exchange.stability-check=0 turns the looks, and this note, off.",
        )

    def judge(self, replicas: int, staleness: float) -> None:
        """Warn if gradients are too stale for steps as large as these.

        Parameters
        ----------
        replicas
            That learn together.
        staleness
            Mean, in gradients.
        """
        if self.curvature is None or self.curvature <= 0:
            return
        product, bound = self.curvature * staleness, stable_product(replicas)
        if product <= bound:
            return
        self._every = 0
        told = _too_stale(self.curvature, staleness, replicas, self._learner.rates)
        self._learner.notices.say("stability", told)


def _too_stale(
    curvature: float, staleness: float, replicas: int, rates: Sequence[float]
) -> str:
    product, bound = curvature * staleness, stable_product(replicas)
    times = MARGIN * product / bound
    proposed = ""
    if len(rates) == 1:
        proposed = f" (to {rates[0] / times:.2g} in place of {rates[0]:.2g})"
    return (
        f"Gradients of the other {replicas - 1} replicas are too stale for steps as "
        "large as these: training will not settle, or lose accuracy. A step takes "
        f"{curvature:.2g} of the slope away, and gradients come {staleness:.0f} steps "
        f"late; the product is {product:.2g}, and what settles is below {bound:.2g}, "
        "estimates that are good to a factor of about 2. Make the learning rate "
        f"{times:.2g} times smaller{proposed}, exchange sooner (a smaller staleness=, "
        "and a larger tensair.exchange.share-of-time), take fewer replicas, or larger "
        "mini-batches."
    )


def _dot(gradients: Sequence[Any], step: Sequence[torch.Tensor]) -> float:
    return sum(
        float(torch.sum(gradient * part))
        for gradient, part in zip(gradients, step, strict=True)
        if gradient is not None
    )
