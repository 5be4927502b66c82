"""KSWIN: the newest values against a sample of those before, as distributions."""

from __future__ import annotations

from collections import deque
from itertools import islice
from statistics import fmean, pvariance

from tensair_dask._common.checks import allow, number, whole
from tensair_dask.drift.base import MOST, Detector, Direction, Shift, river

__all__ = ["KSWIN"]


class KSWIN(Detector):
    """Kolmogorov-Smirnov test of the newest values in a short sliding window.

    Parameters
    ----------
    alpha
        Level of one test, in (0, 1). There is one test a value.
    window
        Values kept.
    newest
        How many of them count as new; as many of the others are drawn at random.
    seed
        Of these draws: the same values give the same alarms.
    direction
        ``"up"``: the newest values must also have the larger mean. ``"both"``: any
        change of the distribution is a drift.

    Notes
    -----
    For: changes of the distribution that leave the mean as it is
    (``direction="both"``), in a stream that is not fast: 200 to 300 µs a value, 200
    times the others; 8 kB. It forgets after ``window`` values, so a slow change is
    missed: all gradual ones of 0/1 errors, and 26 of 30 sudden ones by half a standard
    deviation. Take `OPTWIN` for a change of the mean.

    A level of 0.005, which is often seen, raises 1 to 2 false alarms in 2,000 values;
    the default 0 to 0.2.

    The `Shift` compares the newest values with all others of the window.

    References
    ----------
    Raab, Heusinger and Schleif, "Reactive soft prototype computing for concept drift
    streams", Neurocomputing 416, 2020. The implementation is river's.
    """

    name = "kswin"

    def __init__(
        self,
        alpha: float = 0.0001,
        window: int = 100,
        newest: int = 30,
        seed: int = 0,
        *,
        direction: Direction = "up",
    ) -> None:
        super().__init__(direction)
        self.alpha = number(
            "alpha",
            alpha,
            lambda given: 0 < given < 1,
            "give a probability between 0 and 1, for example 0.0001",
        )
        self.newest = whole("newest", newest, 2, 30, MOST)
        self.window = whole("window", window, 4, 100, MOST)
        allow(
            self.window >= 2 * self.newest,
            f"window={window!r}",
            f"give at least twice newest={newest}, for example {max(100, 3 * newest)}",
        )
        self.seed = whole("seed", seed, 0, 5)
        self._restart()

    @property
    def bytes(self) -> int:
        """Size of the state at most, in bytes."""
        # The window twice (river's and ours, the floats shared); a Mersenne twister.
        return self.window * (2 * 8 + 24) + 4096

    def _restart(self) -> None:
        self._values: deque[float] = deque(maxlen=self.window)
        self._river = river("KSWIN").KSWIN(
            alpha=self.alpha,
            window_size=self.window,
            stat_size=self.newest,
            seed=self.seed,
        )

    def _observe(self, value: float) -> bool:
        self._values.append(value)
        self._river.update(value)
        if not self._river.drift_detected:
            return False
        split = len(self._values) - self.newest
        old = list(islice(self._values, split))
        new = list(islice(self._values, split, None))
        before, after = fmean(old), fmean(new)
        if after <= before and self.direction == "up":
            # The model learns: what follows is compared with what follows.
            self._start_afresh()
            return False
        self.shift = Shift.between(before, after, pvariance(old, before))
        return True
