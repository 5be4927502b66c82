"""DDM: an error rate that rises above its lowest level."""

from __future__ import annotations

import math

from tensair_dask._common.checks import allow, number, whole
from tensair_dask.drift.base import MOST, Detector, Recent, river
from tensair_dask.errors import DriftError

__all__ = ["DDM"]


class DDM(Detector):
    """Watch the error rate since the start against the lowest that it has been.

    Parameters
    ----------
    minimum
        Values needed before the first look.
    warning, threshold
        Warning and alarm where the rate and its deviation exceed their lowest by so
        many deviations.

    Notes
    -----
    For: 0/1 errors on the least memory and time (1.7 kB, 1 µs a value), and to compare
    with the literature. A rise of the rate from 0.2 to 0.8 is found after 60 values,
    with 0.2 false alarms in 2,000. Take `ADWIN` where errors are rare: at a rate of
    0.01 there are 4.6 false alarms (after 30 values without an error the first error is
    one). Take `OPTWIN` where the model learned before: after 0.8 and 0.2, a rise
    to 0.5 was missed in all of 30 streams, as the rate is that since the start.

    The mean of a mini-batch counts as one error rate, whatever its size. Its deviation
    is then smaller than that of an error, so alarms are later, not more frequent.

    The `Shift` is taken from the newest 30 values and the older ones.

    References
    ----------
    Gama, Medas, Castillo and Rodrigues, "Learning with drift detection", SBIA 2004.
    The implementation is river's.
    """

    name = "ddm"
    directions = ("up",)
    errors_only = True

    def __init__(
        self, minimum: int = 30, warning: float = 2.0, threshold: float = 3.0
    ) -> None:
        super().__init__("up")
        self.minimum = whole("minimum", minimum, 1, 30, MOST)
        allowed = "give a number of deviations above 0, for example "
        self.warning = number("warning", warning, _positive, f"{allowed}2")
        self.threshold = number("threshold", threshold, _positive, f"{allowed}3")
        allow(
            self.warning <= self.threshold,
            f"warning={warning!r} with threshold={threshold!r}",
            "give a warning of at most the threshold, for example 2 and 3",
        )
        self._recent = Recent()
        self._restart()

    @property
    def bytes(self) -> int:
        """Size of the state at most, in bytes."""
        return self._recent.bytes + 512

    def _restart(self) -> None:
        self._recent.clear()
        self._river = river("DDM").binary.DDM(
            warm_start=self.minimum,
            warning_threshold=self.warning,
            drift_threshold=self.threshold,
        )

    def _check(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise DriftError(
                f"DDM was given {value!r}; it takes errors (0 or 1) or error rates in "
                "[0, 1]. For losses take OPTWIN, for example make('optwin')."
            )

    def _observe(self, value: float) -> bool:
        self._recent.add(value)
        self._river.update(value)
        self.warning_detected = bool(self._river.warning_detected)
        if not self._river.drift_detected:
            return False
        self.shift = self._recent.shift()
        return True


def _positive(given: float) -> bool:
    return 0 < given < math.inf
