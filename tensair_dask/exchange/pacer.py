"""When to publish: as often as a budget of time allows, as late as a bound allows."""

from __future__ import annotations

__all__ = ["Pacer"]

# Weight of a new measurement in the running means.
SMOOTHING = 0.2


class Pacer:
    """Decides when the pending gradients leave.

    Conflation loses nothing, so publishing less often costs staleness only. The
    exchange may cost ``share`` of the time; but no gradient waits longer than the
    bound on staleness, less what delivery takes.

    Parameters
    ----------
    share
        Fraction of the time, in (0, 1], that the exchange may cost.
    staleness
        Seconds between the computation of a gradient and its application at the
        peers; wins over the share.
    """

    def __init__(self, share: float, staleness: float) -> None:
        self._share = share
        self._staleness = staleness
        self.cost = 0.0
        self.delivery = 0.0
        self.step = 0.0

    def published(self, cost: float) -> None:
        """Record what one round of publishing has cost, in seconds."""
        self.cost += SMOOTHING * (cost - self.cost) if self.cost else cost

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
    def interval(self) -> float:
        """Seconds that gradients gather before they leave."""
        # Delivery can take longer than the whole bound (large steps, slow peers);
        # to publish at every step would then only add load.
        latest = max(self._staleness - self.delivery, self._staleness / 4)
        return min(self.cost / self._share, latest)

    def due(self, oldest: float | None, busy: bool) -> float | None:
        """Tell when the pending gradients must leave.

        Parameters
        ----------
        oldest
            Time of the oldest pending gradient; None if there is none.
        busy
            Whether a step comes next, during which nothing can leave: what would
            become due in it leaves before. With large steps that is every time.

        Returns
        -------
        moment
            On the same clock; None if nothing is pending.
        """
        if oldest is None:
            return None
        return oldest + self.interval - (self.step if busy else 0.0)
