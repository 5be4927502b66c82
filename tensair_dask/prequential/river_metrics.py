"""Which of river's metrics are taken, and over which horizons each of them can be."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import ConfigurationError

__all__ = ["Chosen"]

_NEEDED = 'Metrics come from river: pip install "tensair-dask[drift]"'


class Chosen:
    """Metrics by name, from which fresh ones are made for every horizon.

    Parameters
    ----------
    metrics
        As in `Prequential`.

    Attributes
    ----------
    names
        In their order.
    regression
        Whether they are those of a regression.
    takes_chances
        Whether some take probabilities.
    bounded
        Whether some of these need them between 0 and 1.

    Raises
    ------
    ConfigurationError
        If something else than metrics of river is given, or river is not installed.
    """

    def __init__(self, metrics: Any) -> None:
        self._metrics = _by_name(metrics)
        self.names = list(self._metrics)
        kinds = {name: _is_regression(name, m) for name, m in self._metrics.items()}
        if len(set(kinds.values())) > 1:
            numbers = [name for name, regression in kinds.items() if regression]
            raise ConfigurationError(
                f"{', '.join(numbers)} are for regressions, and "
                f"{', '.join(name for name in kinds if name not in numbers)} for "
                "classifications. Score the two with a Prequential each."
            )
        self.regression = any(kinds.values())
        taking = [m for m in self._metrics.values() if _takes_chances(m)]
        self.takes_chances = bool(taking)
        # What ranks a window of its own takes any score.
        self.bounded = any(not hasattr(metric, "window_size") for metric in taking)
        for name, metric in self._metrics.items():
            _check_scalar(name, metric, self.regression)

    def instances(
        self,
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, bool]], list[Any]]:
        """Make fresh metrics.

        Returns
        -------
        matrices, alone, metrics
            Confusion matrices that several share, each with the label that counts as
            positive in it (in a tuple; None: all labels count); metrics that are
            updated by themselves, and whether with probabilities; all in their order.
        """
        matrices: list[tuple[Any, Any]] = []
        alone: list[tuple[Any, bool]] = []
        metrics: list[Any] = []
        for metric in self._metrics.values():
            shares, positive = _reads_matrix(metric)
            if not shares:
                fresh = metric.clone()
                alone.append((fresh, _takes_chances(metric)))
            else:
                found = [matrix for label, matrix in matrices if label == positive]
                if not found:
                    found = [_river().ConfusionMatrix()]
                    matrices.append((positive, found[0]))
                fresh = _with_matrix(metric, found[0], positive is not None)
            metrics.append(fresh)
        return matrices, alone, metrics

    def describe(self) -> dict[str, Any]:
        """Describe the metrics by plain values, to see whether two have the same."""
        return {
            name: {
                "class": type(metric).__name__,
                "parameters": plain_state.parameters_of(metric),
            }
            for name, metric in self._metrics.items()
        }

    def check_window(self, window: int) -> None:
        """Refuse metrics that cannot forget records."""
        self._check(_can_revert, "forget a record", f"window={window}")
        for name, metric in self._metrics.items():
            own = getattr(metric, "window_size", None)
            if own is not None and own < window:
                raise ConfigurationError(
                    f"{name} looks at {own} records by itself, and window={window} was "
                    f"given. Make it with window_size={window}."
                )

    def check_fading(self) -> None:
        """Refuse metrics in which records cannot weigh more or less."""
        self._check(_can_weigh, "weigh records", "fading=")

    def _check(self, test: Any, ability: str, argument: str) -> None:
        refused = [
            name
            for name, metric in self._metrics.items()
            if not test(metric, self.regression)
        ]
        if not refused:
            return
        allowed = []
        for name in refused:
            metric = self._metrics[name]
            horizons = ["the whole stream"]
            if _can_revert(metric, self.regression):
                horizons.append("window=")
            if _can_weigh(metric, self.regression):
                horizons.append("fading=")
            allowed.append(f"{name} allows {' and '.join(horizons)}")
        raise ConfigurationError(
            f"{', '.join(refused)} cannot {ability}, as {argument} needs it: "
            f"{'; '.join(allowed)}. Leave the metric out, or score it with a "
            "Prequential of its own."
        )


# ---------------------------------------------------------------------- what is given


def _river() -> Any:
    try:
        from river import metrics
    except ImportError as error:
        raise ConfigurationError(f"{_NEEDED} ({error})") from error
    return metrics


def _by_name(given: Any) -> dict[str, Any]:
    river = _river()
    if isinstance(given, Mapping):
        named = {str(name): _one(value) for name, value in given.items()}
    else:
        several = isinstance(given, (list, tuple, river.base.Metrics))
        values = list(given) if several else [given]
        named = {}
        for value in map(_one, values):
            name = type(value).__name__
            if name in named:
                raise ConfigurationError(
                    f"{name} is given twice; name them, for example metrics="
                    f"{{'first': {name}(...), 'second': {name}(...)}}."
                )
            named[name] = value
    if not named:
        raise ConfigurationError(
            "No metric is given; for example metrics=river.metrics.Accuracy()."
        )
    for name, metric in named.items():
        _check_kind(name, metric)
    return named


def _one(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, _river().base.Metric):
        raise ConfigurationError(
            f"{value.__name__} is a class; give a metric, {value.__name__}()."
        )
    return value


def _check_kind(name: str, metric: Any) -> None:
    river = _river()
    if isinstance(metric, (river.base.Metrics, river.base.ClusteringMetric)):
        kind = "a sum of metrics" if hasattr(metric, "data") else "for clusterings"
    elif isinstance(metric, river.multioutput.base.MultiOutputMetric):
        kind = "for several outputs at once"
    elif isinstance(metric, river.base.Metric):
        return
    else:
        kind = f"a {type(metric).__name__}"
    raise ConfigurationError(
        f"The metric {name!r} is {kind}; river's metrics of classification and "
        "regression are allowed, by name or not, for example metrics={'accuracy': "
        "river.metrics.Accuracy(), 'F1': river.metrics.F1()}."
    )


def _is_regression(name: str, metric: Any) -> bool:
    river = _river()
    if isinstance(metric, river.base.RegressionMetric):
        return True
    if not isinstance(metric, river.base.ClassificationMetric):
        raise ConfigurationError(
            f"The metric {name!r} is neither for a classification nor for a "
            "regression; derive it from ClassificationMetric or RegressionMetric of "
            "river.metrics.base."
        )
    if _takes_chances(metric) and getattr(metric, "pos_val", True) != True:  # noqa: E712
        raise ConfigurationError(
            f"{name} takes the probability of the label True, and has pos_val="
            f"{metric.pos_val!r}. Map your labels to True and False."
        )
    return False


def _takes_chances(metric: Any) -> bool:
    return not getattr(metric, "requires_labels", True)


# ----------------------------------------------------------------- what a metric can do


def _samples(metric: Any, regression: bool) -> list[tuple[Any, Any]]:
    """Pairs (label, prediction) to try a metric with."""
    if regression:
        return [(1.0, 3.0), (2.0, 2.5), (4.0, 3.0), (3.0, 5.0)]
    if not _takes_chances(metric):
        return [(True, False), (False, False), (True, True), (False, True)]
    pairs = [(True, 0.9), (False, 0.6), (True, 0.3), (False, 0.2)]
    return [
        (true, {True: chance, False: 1 - chance})
        if not hasattr(metric, "window_size")
        else (true, chance)
        for true, chance in pairs
    ]


def _check_scalar(name: str, metric: Any, regression: bool) -> None:
    trial = metric.clone()
    for pair in _samples(metric, regression):
        trial.update(*pair)
    try:
        float(trial.get())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The metric {name!r} ({type(metric).__name__}) gives no single number, "
            "so there is nothing to tabulate. Read it from the records yourself."
        ) from error


def _can_revert(metric: Any, regression: bool) -> bool:
    """Whether a record that was taken out leaves no trace."""
    samples = _samples(metric, regression)
    one, other = metric.clone(), metric.clone()
    try:
        for pair in samples:
            one.update(*pair)
        one.revert(*samples[0])
        for pair in samples[1:]:
            other.update(*pair)
        return math.isclose(one.get(), other.get(), rel_tol=1e-9, abs_tol=1e-9)
    except Exception:  # whatever it is, it cannot
        return False


def _can_weigh(metric: Any, regression: bool) -> bool:
    """Whether a record of weight 2 is two records, and only ratios of weights count."""
    if not metric.works_with_weights:
        return False
    samples = _samples(metric, regression)
    results = []
    for weights, scale in (([1, 2, 1, 3], 1.0), ([1, 2, 1, 3], 1e6), (None, 1.0)):
        trial = metric.clone()
        try:
            for number, pair in enumerate(samples):
                if weights is not None:
                    trial.update(*pair, w=weights[number] * scale)
                    continue
                for _ in range([1, 2, 1, 3][number]):
                    trial.update(*pair)
            results.append(trial.get())
        except Exception:  # whatever it is, it cannot
            return False
    return all(math.isclose(results[0], other, rel_tol=1e-9) for other in results)


def _reads_matrix(metric: Any) -> tuple[bool, Any]:
    """Whether a metric does nothing but read its confusion matrix.

    Returns
    -------
    shares, positive
        And the label that counts as positive in that, in a tuple; None for all.
    """
    base = _river().base
    kind = type(metric)
    if "cm" not in inspect.signature(kind).parameters:
        return False, None
    if not getattr(metric, "requires_labels", True):
        return False, None
    for owner in (base.ClassificationMetric, base.BinaryMetric):
        if kind.update is owner.update and kind.revert is owner.revert:
            binary = owner is base.BinaryMetric
            return True, (metric.pos_val,) if binary else None
    return False, None


def _with_matrix(metric: Any, matrix: Any, binary: bool) -> Any:
    """Make a fresh metric of the same parameters that reads this confusion matrix.

    A binary one's matrix knows only whether a label is the positive one. Asked for the
    label itself, river's metrics find nothing in it, and give 0 for pos_val="spam".
    """
    parameters: Iterable[str] = inspect.signature(type(metric)).parameters
    values = {
        name: copy.deepcopy(getattr(metric, name))
        for name in parameters
        if name != "cm"
    }
    if binary:
        values["pos_val"] = True
    return type(metric)(**values, cm=matrix)
