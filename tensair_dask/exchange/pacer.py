"""When to publish: as late as is thrifty, as early as the bound on age has it."""

from __future__ import annotations

import math
import time

from tensair_dask._common.work_clock import work_time

__all__ = ["Pacer"]

# Weight of a new measurement in the running means.
SMOOTHING = 0.2

# Part of the budget that is spent where the bound on age does not ask for more.
THRIFT = 0.25

# Gradients leave at the latest after so many times the bound on age, whatever it costs.
LATEST = 10


class Pacer:
    """Decides when the pending gradients leave.

    Conflation loses nothing, so publishing less often costs staleness only. A budget
    bounds the CPU time that the exchange takes of a replica's time; a part of it is
    spent in any case, and all of it where gradients would otherwise be older than the
    bound. A replica that has nothing to do publishes at once, within the budget.

    Time is that of `work_time`, and costs are CPU seconds: where other processes take
    the CPU, steps and round trips take longer, and a budget of these would publish more
    often the less CPU there is.

    Belongs to the thread that trains.

    Parameters
    ----------
    share
        Fraction of the time, in (0, 1], that the exchange may cost.
    staleness
        Seconds between the computation of a gradient and its application at the
        peers; kept where the share allows it.

    Attributes
    ----------
    cost
        CPU seconds of one round: to publish, to deliver, and to apply what has come
        meanwhile.
    delivery
        Seconds from publishing to applying.
    step
        Seconds of a step.
    """

    def __init__(self, share: float, staleness: float) -> None:
        self._share = share
        self._staleness = staleness
        self.cost = 0.0
        self.delivery = 0.0
        self.step = 0.0
        # When the last ones left, on both clocks.
        self._moment = self._worked = -math.inf

    def published(self, cost: float) -> None:
        """Record that the pending gradients have left, and what the round has cost."""
        self.cost += SMOOTHING * (cost - self.cost) if self.cost else cost
        self._moment, self._worked = time.monotonic(), work_time()

    def delivered(self, seconds: float) -> None:
        """Record how long a message took from publishing to being applied.

        The slow ones decide: the bound is to hold for them too.
        """
        mean = self.delivery + SMOOTHING * (seconds - self.delivery)
        self.delivery = max(seconds, mean)

    def stepped(self, seconds: float) -> None:
        """Record how long a step took: between steps is when publishing happens."""
        self.step += SMOOTHING * (seconds - self.step)

    @property
    def least(self) -> float:
        """Seconds of work between two publications that the budget asks for."""
        return min(self.cost / self._share, LATEST * self._staleness)

    @property
    def _most(self) -> float:
        """Seconds that gradients may gather, by the bound on age."""
        # Delivery can take longer than the whole bound (large steps, slow peers);
        # to publish at every step would then only add load.
        return max(self._staleness - self.delivery, self._staleness / 4)

    @property
    def interval(self) -> float:
        """Seconds that gradients of a busy replica gather before they leave."""
        thrifty = self.cost / (THRIFT * self._share)
        return max(self.least, min(thrifty, self._most))

    def due(self, oldest: float | None, busy: bool) -> float | None:
        """Tell when the pending gradients must leave.

        Parameters
        ----------
        oldest
            Time of the oldest pending gradient, on the monotonic clock; None if there
            is none.
        busy
            Whether a step comes next, during which nothing can leave: what would
            become due in it leaves before. With large steps that is every time.

        Returns
        -------
        moment
            On the monotonic clock; None if nothing is pending.
        """
        if oldest is None:
            return None
        least = self.least
        if not busy:
            return self._after(least)
        moment = self._after(self.cost / (THRIFT * self._share))
        bound = oldest + self._most - self.step
        if bound < moment:
            moment = max(bound, self._after(least))
        return moment

    def _after(self, seconds: float) -> float:
        """When so much work has been done since the last publication, at the earliest.

        Work takes no less than the time of a clock on the wall, which is cheaper to
        read: the other one is looked at only where that is over.
        """
        moment = self._moment + seconds
        now = time.monotonic()
        if moment > now:
            return moment
        return now + seconds - (work_time() - self._worked)
