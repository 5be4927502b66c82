"""When a trainer learns, what it watches for drift, and what it does then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensair_dask import config
from tensair_dask.drift.base import Detector
from tensair_dask.drift.convergence import Convergence
from tensair_dask.drift.modes import (
    Modes,
    as_convergence,
    as_detector,
    check_mode,
)
from tensair_dask.drift.policies import Policy, as_policy
from tensair_dask.drift.watch import as_watch
from tensair_dask.reports import Report

__all__ = ["DriftConfig"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftConfig:
    """When a trainer learns, what it watches for drift, and what it does then.

    Parameters
    ----------
    mode
        When to train; None: that of the checkpoint where it goes on from one, else
        ``"always"``. ``"always"``: on everything. ``"never"``: only predict and
        score, whatever ``on_drift`` is; drifts are reported only. No parameter is
        trained; what a model writes in ``forward`` also in ``eval()``, such as a
        counter in a buffer, it writes as ever. ``"auto"``: train until the loss has
        converged, then only predict and score, and train again when the stream has
        drifted. All replicas switch at the same mini-batch, and each switch is one of
        the `Trainer.events`.
    detector
        What finds drift, one of `tensair_dask.drift`, or its name. None is OPTWIN in
        mode auto, and no detection in the others. By name or by default OPTWIN has
        confidence 0.998: a false alarm costs a training. In mode auto it looks while
        the model only predicts, in the others all the time. An object is used itself,
        by one open trainer.
    watch
        What the detector is given: ``"loss"``, the name of a metric, or a function of
        a `Report`. Larger must be worse. DDM takes errors only, not losses.
    convergence
        When the loss has converged; None for ``Convergence()``. Each trainer takes a
        copy that has seen nothing.
    on_drift
        What is done beside training on drift, which only a detector finds:
        ``"train"`` (nothing), ``"raise-learning-rate"``, ``"restore"``, a policy of
        `tensair_dask.adaptation` with its arguments, or a function
        ``(model, optimizers, drift)`` that changes the model in place.

    Raises
    ------
    ConfigurationError
        If a value is not allowed.
    """

    mode: str | None = None
    detector: Detector | str | None = None
    watch: str | Callable[[Report], float] = "loss"
    convergence: Convergence | None = None
    on_drift: Policy | str | Callable[..., Any] = "train"

    def __post_init__(self) -> None:
        as_detector(self.detector, check_mode(self._first_mode))
        as_convergence(self.convergence)
        as_policy(self.on_drift)

    @property
    def _first_mode(self) -> str:
        return "always" if self.mode is None else self.mode

    def modes(self, metrics: Mapping[str, Any]) -> Modes:
        """Make what decides, for one trainer with these metrics."""
        detector = as_detector(self.detector, self._first_mode)
        modes = Modes(
            self._first_mode,
            detector,
            as_convergence(self.convergence),
            as_policy(self.on_drift),
            as_watch(self.watch, metrics, detector),
            int(config.get("drift.reorder")),
        )
        self._warn_of_no_detector(modes)
        return modes

    def _warn_of_no_detector(self, modes: Modes) -> None:
        """Say what will have no effect: in mode auto it would, so it is no error."""
        ignored = ["on_drift="] * modes.policy.acts + ["watch="] * (
            self.watch != "loss"
        )
        if ignored and not modes.watches:
            logger.warning(
                "%s given, but without a detector nothing looks for drift in mode %r, "
                "until set_mode('auto'). Give one, for example detector='optwin'.",
                " and ".join(ignored) + (" is" if len(ignored) == 1 else " are"),
                modes.mode,
            )
