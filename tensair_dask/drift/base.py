"""What all drift detectors have in common."""

from __future__ import annotations

import copy
import math
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, Literal

from tensair_dask._common.checks import shown
from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import ConfigurationError, DriftError

__all__ = ["MOST", "Detector", "Direction", "Shift", "river"]

Direction = Literal["up", "both"]

# Values that a setting may count: some detectors make room for all of them at once.
MOST = 100_000_000


@dataclass(frozen=True)
class Shift:
    """Mean, spread and size of a change, as a detector saw it.

    Attributes
    ----------
    before, after
        Mean of the values before the change and since, in their unit.
    spread
        Standard deviation before the change, in their unit.
    magnitude
        (after - before) / spread: above 0 is worse. Infinite where nothing varied
        before, 0 where nothing changed.
    """

    before: float
    after: float
    spread: float
    magnitude: float

    @classmethod
    def between(cls, before: float, after: float, variance: float) -> Shift:
        """Build it from two means and the variance before."""
        spread = math.sqrt(max(0.0, variance))
        change = after - before
        if spread:
            magnitude = change / spread
        else:
            magnitude = math.copysign(math.inf, change) if change else 0.0
        return cls(before, after, spread, magnitude)


class Detector(ABC):
    """Base of all detectors: raises an alarm when the values of a stream get worse.

    Values are losses, error rates or other figures of which more is worse. A detector
    takes them one by one and holds a bounded state, whatever the length of the stream.

    Parameters
    ----------
    direction
        ``"up"``: only a rise is a drift; a fall means that the model learns.
        ``"both"``: a fall is one as well, where the detector can tell.

    Attributes
    ----------
    drift_detected
        Whether the newest value raised an alarm.
    warning_detected
        Whether the newest value came close; always False where the detector has no
        such level.
    observed
        Values since the detector was made, reset, or started afresh: after a drift, or
        after a fall where it forgets what came before one.
    shift
        What changed at the newest drift; None before the first.

    Notes
    -----
    A detector can be pickled at any point of a stream; the copy raises the alarms that
    the original does. So does one of the same parameters that was given its
    `state_dict`, which holds plain values only and goes into checkpoints.
    """

    name: str
    directions: tuple[str, ...] = ("up", "both")
    # Whether it takes errors and error rates only, in [0, 1].
    errors_only = False
    # Attributes that are no state: what detectors share, what is computed again.
    _shared: tuple[str, ...] = ()

    def __init__(self, direction: Direction = "up") -> None:
        if direction not in self.directions:
            allowed = " or ".join(map(repr, self.directions))
            raise ConfigurationError(
                f"direction={direction!r} is not allowed for {type(self).__name__}; "
                f"give {allowed}."
            )
        self.direction = direction
        self.drift_detected = False
        self.warning_detected = False
        self.observed = 0
        self.shift: Shift | None = None

    def update(self, value: Any) -> bool:
        """Take the next value and say whether it shows a drift.

        After a drift the detector starts afresh by itself.

        Parameters
        ----------
        value
            A finite number, or anything that `float` makes one of (a NumPy scalar, a
            tensor of one element).

        Raises
        ------
        DriftError
            It is not; the detector is then as it was before.
        """
        # x - x is 0 for finite numbers only.
        if type(value) is not float or value - value != 0.0:
            value = self._number(value)
        self._check(value)
        self.drift_detected = self.warning_detected = False
        self.observed += 1
        if self._observe(value):
            self.drift_detected = True
            self.warning_detected = False
            self._start_afresh()
            return True
        return False

    def reset(self) -> None:
        """Forget everything, as if the detector were new."""
        self.drift_detected = self.warning_detected = False
        self.shift = None
        self._start_afresh()

    def state_dict(self) -> dict[str, Any]:
        """Copy the state as plain values.

        Returns
        -------
        state
            Dicts, lists and tuples of numbers, strings, bytes and numpy arrays.

        Raises
        ------
        CheckpointError
            If a detector of your own holds what cannot be saved so. Write both methods
            for it.
        """
        leave_out = ("shift", *self._shared)
        state = {
            "values": plain_state.take(self, leave_out),
            "shift": self.shift and astuple(self.shift),
        }
        return plain_state.describe(self, plain_state.parameters_of(self), state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the detector was of which this is the `state_dict`.

        Raises
        ------
        CheckpointError
            If that is one of another class or of other parameters; this one is then
            as it was.
        """
        state = plain_state.check(self, plain_state.parameters_of(self), state)
        new = copy.deepcopy(self)
        plain_state.put(new, state["values"])
        new.shift = state["shift"] and Shift(*state["shift"])
        self.__dict__.update(new.__dict__)

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Size of the state at most, in bytes, without what detectors share."""

    @abstractmethod
    def _observe(self, value: float) -> bool:
        """Take a value; set `shift` and return True if it shows a drift."""

    @abstractmethod
    def _restart(self) -> None:
        """Forget all values."""

    def _start_afresh(self) -> None:
        self._restart()
        self.observed = 0

    def _check(self, value: float) -> None:  # noqa: B027
        """Refuse finite values that this detector cannot take."""

    def _number(self, value: Any) -> float:
        number = math.nan
        if hasattr(type(value), "__float__") and not isinstance(value, complex):
            with suppress(TypeError, ValueError, OverflowError, RuntimeError):
                number = float(value)
        if not math.isfinite(number):
            raise DriftError(
                f"{type(self).__name__} was given {shown(value)}, which is not a "
                "finite number; it takes losses or error rates. Leave out values of "
                "mini-batches that were refused."
            )
        return number

    def __repr__(self) -> str:
        state = f"observed={self.observed}, drift_detected={self.drift_detected}"
        return f"<{type(self).__name__} {state}>"


class Recent:
    """The newest values, apart from mean and variance of everything older.

    For detectors whose own state does not tell a `Shift`.

    Parameters
    ----------
    size
        Values that count as new.

    Notes
    -----
    An approximation: an alarm that comes earlier than ``size`` values after a change
    counts some older values as new, a later one some new values as older.
    """

    def __init__(self, size: int = 30) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forget all values."""
        self.values.clear()
        self.older = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        """Take a value; the oldest of the new ones becomes an older one."""
        if len(self.values) == self.size:
            # Welford's update.
            old = self.values[0]
            self.older += 1
            change = old - self.mean
            self.mean += change / self.older
            self._squares += change * (old - self.mean)
        self.values.append(value)

    @property
    def variance(self) -> float:
        """Of the older values; 0 for fewer than two."""
        return self._squares / (self.older - 1) if self.older > 1 else 0.0

    def shift(self) -> Shift:
        """Compare the new values with the older ones; without those, by halves."""
        new = list(self.values)
        if self.older >= 2:
            return Shift.between(self.mean, sum(new) / len(new), self.variance)
        half = max(1, len(new) // 2)
        old, new = new[:half], new[half:] or new
        before = sum(old) / half
        variance = sum((v - before) ** 2 for v in old) / max(1, half - 1)
        return Shift.between(before, sum(new) / len(new), variance)

    @property
    def bytes(self) -> int:
        """Size at most: a pointer and a float each, and the sums."""
        return self.size * (8 + sys.getsizeof(0.0)) + 200


def river(name: str) -> Any:
    """Return river's detectors.

    Raises
    ------
    ConfigurationError
        If it is not installed.
    """
    try:
        import river.drift
    except ImportError as error:
        raise ConfigurationError(
            f"{name} comes from river, which is not installed. Install it: "
            'pip install "tensair-dask[drift]"; or take OPTWIN, which needs nothing.'
        ) from error
    return river.drift
