"""Convergence: tells when the loss has stopped falling."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from tensair_dask._common.checks import number, whole
from tensair_dask._common.plain_values import plain_state
from tensair_dask.drift.base import Shift
from tensair_dask.errors import ConfigurationError

__all__ = ["Convergence"]


class Convergence:
    """Compares the mean losses of the newest epochs of a stream.

    An epoch is so many mini-batches in a row. The loss has converged when there are
    ``epochs`` epochs, and the newest one's mean is neither lower than that of any of
    the others by more than ``factor`` (it falls still) nor clearly higher (the stream
    drifts while the model learns).

    Parameters
    ----------
    epoch
        Mini-batches in an epoch.
    epochs
        How many epochs are compared, from 2: more are slower and surer.
    factor
        How much the mean loss must fall to count as progress: as a share of the loss
        with which training began (``relative=True``), below 1, or in units of the loss.
    relative
        A share does not depend on the scale of the loss: the same 0.02 serves a cross
        entropy and minutes of delay.

    Attributes
    ----------
    began
        Mean loss of the first epoch of this training; NaN before it is complete.
    level
        Mean loss of the newest epoch that is complete; NaN before there is one.

    Notes
    -----
    ``relative=False`` is the rule of TensAIR (``convergence_factor``,
    ``epochs_for_convergence``), where the right factor differs from task to task: its
    own examples use 0.0001, 0.02 and 0.3. TensAIR takes a loss that rises for one that
    has converged, and would stop learning in the middle of a drift. Here a rise by
    more than ``factor`` and by more than three standard errors says that it has not;
    and a fall that is less than one standard error is no progress.

    Progress is measured by the first epoch of a training, and of all trainings so far
    by the one that began highest; not by the earlier epoch: where a task can be learned
    perfectly the loss falls for ever by the same share of itself, long after that has
    stopped to matter. Nor by the newest training alone: one that a false alarm has
    begun starts where the last one ended. Give an absolute factor where training
    begins at a loss that is out of all proportion.

    An epoch's mean is noisy: with losses of standard deviation s it strays by about
    s / sqrt(epoch). Choose epochs so long that this is small beside what you would
    call progress; otherwise training ends early by chance.

    References
    ----------
    Tosi, Venugopal and Theobald, "TensAIR: Real-Time Training of Neural Networks from
    Data-streams", arXiv 2211.10280.
    """

    def __init__(
        self,
        epoch: int = 100,
        epochs: int = 2,
        factor: float = 0.02,
        relative: bool = True,
    ) -> None:
        self.epoch = whole("epoch", epoch, 1, 100)
        self.epochs = whole("epochs", epochs, 2, 2)
        self.factor = number(
            "factor",
            factor,
            lambda share: 0 <= share < math.inf,
            "give a number from 0, for example 0.02 for two per cent",
        )
        if relative is True and factor >= 1:
            raise ConfigurationError(
                f"factor={factor!r} was given, as a share of the loss with which "
                "training began: the loss can never fall by more than that, and any "
                "would have converged. A number from 0 to below 1 is allowed, for "
                "example 0.02 for two per cent; or give relative=False for a factor in "
                "units of the loss."
            )
        if not isinstance(relative, bool):
            raise ConfigurationError(
                f"relative={relative!r} was given; True is allowed, for a share of the "
                "loss with which training began, or False, for units of the loss."
            )
        self.relative = relative
        self._highest = 0.0  # of the first epochs of all trainings
        self.reset()

    def reset(self) -> None:
        """Begin a new training: what was seen is forgotten, but not its scale."""
        # Of each epoch: the mean, and the square of its standard error.
        self._means: deque[tuple[float, float]] = deque(maxlen=self.epochs)
        self._mean = self._squares = 0.0  # of the one under way (Welford)
        self._count = 0
        self.began = self.level = math.nan
        self._began_error = 0.0  # squared, as in `_means`

    def fresh(self) -> Convergence:
        """Make another of the same parameters, which has seen nothing."""
        new = copy.deepcopy(self)
        new._highest = 0.0
        new.reset()
        return new

    def update(self, loss: float) -> bool:
        """Take in the loss of the next mini-batch; whether the loss has converged."""
        self._count += 1
        off = loss - self._mean
        self._mean += off / self._count
        self._squares += off * (loss - self._mean)
        if self._count < self.epoch:
            return False
        self.level = self._mean
        if math.isnan(self.began):
            self.began = self.level
            self._highest = max(self._highest, abs(self.level))
            self._began_error = self._squares / self._count**2
        self._means.append((self._mean, self._squares / self._count**2))
        self._mean = self._squares = 0.0
        self._count = 0
        return len(self._means) == self.epochs and not self._moves()

    @property
    def rose(self) -> bool:
        """Whether the loss is clearly higher than where the training began."""
        if not self._means:
            return False
        level, error = self._means[-1]
        return self._rises(self.began, self._began_error, level, error)

    @property
    def rise(self) -> Shift | None:
        """From the epoch before to one that is just complete, if the stream drifts.

        It is clear, and ends above where the training began. A lesser one may be the
        training's own, by a rate that is too high or gradients that come late: the
        model is better still than it was, and training goes on in any case.
        """
        if self._count or len(self._means) < 2 or not self.rose:
            return None
        *_, (before, error), (after, its_error) = self._means
        if not self._rises(before, error, after, its_error):
            return None
        return Shift.between(before, after, error * self.epoch)

    def forget_epochs(self) -> None:
        """Compare with none of the epochs so far: they were of something else."""
        self._means.clear()

    @property
    def _progress(self) -> float:
        """How much counts, in units of the loss."""
        return self.factor * (self._highest if self.relative else 1.0)

    def _moves(self) -> bool:
        *earlier, (newest, its_error) = self._means
        return any(
            mean - newest > max(self._progress, math.sqrt(error + its_error))
            or self._rises(mean, error, newest, its_error)
            for mean, error in earlier
        )

    def _rises(self, mean: float, error: float, newer: float, its: float) -> bool:
        """Whether a mean is clearly higher than another, by their squared errors."""
        return newer - mean > max(self._progress, 3 * math.sqrt(error + its))

    def state_dict(self) -> dict[str, Any]:
        """Copy the state as plain values."""
        parameters = plain_state.parameters_of(self)
        return plain_state.describe(self, parameters, plain_state.take(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where that was of which this is the `state_dict`.

        Raises
        ------
        CheckpointError
            If it has other parameters; this one is then as it was.
        """
        new = copy.deepcopy(self)
        parameters = plain_state.parameters_of(self)
        plain_state.put(new, plain_state.check(self, parameters, state))
        self.__dict__.update(new.__dict__)

    def __repr__(self) -> str:
        return (
            f"Convergence(epoch={self.epoch}, epochs={self.epochs}, "
            f"factor={self.factor}, relative={self.relative})"
        )
