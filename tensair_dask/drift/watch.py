"""What the detector of a trainer is given of each report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tensair_dask._common.functions import name_of, settings_of
from tensair_dask._common.score_columns import columns, is_stateful
from tensair_dask.drift.base import Detector
from tensair_dask.errors import ConfigurationError
from tensair_dask.metrics import accuracy, binary_accuracy
from tensair_dask.reports import Report

__all__ = ["Watch", "as_watch"]


@dataclass(frozen=True)
class Watch:
    """A number of each report, of which larger is worse.

    Parameters
    ----------
    value
        Gives it.
    name
        What it is, by a name that is the same after a restart.
    settings
        What a function was made with, as `settings_of` describes it.
    """

    value: Callable[[Report], float]
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, report: Report) -> float:
        """Give the number of this report."""
        return self.value(report)

    def describe(self) -> str:
        """Name it, with its settings."""
        settings = ", ".join(f"{each}={text}" for each, text in self.settings.items())
        return f"{self.name} with {settings}" if settings else self.name

    def as_saved(self, state: Mapping[str, Any]) -> Watch:
        """Describe what was watched when the state of a mode was saved.

        What an older checkpoint does not say is taken to be the same.
        """
        return replace(
            self,
            name=state.get("watched", self.name),
            settings=dict(state.get("watched_with", self.settings)),
        )


def as_watch(given: Any, metrics: Any, detector: Detector | None = None) -> Watch:
    """Make of what a user may give what is watched.

    Parameters
    ----------
    given
        ``"loss"``, the name of a metric, or a function of a report.
    metrics
        Those of the trainer, by name.
    detector
        What will be given it.

    Raises
    ------
    ConfigurationError
        If it is none of these, or larger is better, or the detector cannot take it.
    """
    if isinstance(given, str) and given == "loss":
        if detector is not None and detector.errors_only:
            raise _losses_error(detector, metrics)
        return Watch(_loss, given)
    watched = _watched(given, metrics)
    if watched:
        if any(map(_is_better, watched)):
            raise ConfigurationError(
                f"watch={given!r} was given, of which larger is better, and what is "
                f"watched must be worse where it is larger. Give {_one_minus(given)}."
            )
        return Watch(lambda report: report.metrics[given], given)
    if callable(given):
        return Watch(given, name_of(given), settings_of(given))
    names = ", ".join(map(repr, ["loss", *columns(metrics)]))
    raise ConfigurationError(
        f"watch={given!r} was given; allowed are {names}, or a function of a report of "
        "which larger values are worse, for example "
        "lambda report: 1 - report.metrics['accuracy']."
    )


def _watched(given: Any, metrics: Any) -> list[Any]:
    """The metric whose score has that name, alone; nothing if there is none.

    Of ``name.key`` that of a collection, or the function that returns a dict.
    """
    if not isinstance(given, str):
        return []
    if given in metrics:
        one = columns({given: metrics[given]}) == [given]
        return [metrics[given]] if one else []
    name, _, key = given.partition(".")
    if not key or name not in metrics:
        return []
    try:
        return [metrics[name][key]]
    except (KeyError, TypeError, AttributeError):
        return [] if is_stateful(metrics[name]) else [metrics[name]]


def _losses_error(detector: Detector, metrics: Any) -> ConfigurationError:
    kind = type(detector).__name__
    name = next((name for name in metrics if _is_better(metrics[name])), "accuracy")
    added = "" if name in metrics else " and metrics={'accuracy': ta.metrics.accuracy}"
    return ConfigurationError(
        f"detector is {kind}, which takes errors or error rates in [0, 1] only, and "
        f"watch='loss' was given. Give {_one_minus(name)}{added}, or take another for "
        "losses, such as detector='optwin'."
    )


def _is_better(metric: Any) -> bool:
    """Whether more of a metric is known to be better; torchmetrics say it."""
    known = metric is accuracy or metric is binary_accuracy
    return known or getattr(metric, "higher_is_better", None) is True


def _one_minus(name: str) -> str:
    return f"watch=lambda report: 1 - report.metrics[{name!r}]"


def _loss(report: Report) -> float:
    return report.loss
