"""Scoring: the metrics of a trainer, which watch what is learned and never decide it.

Whatever a metric does (it raises, returns NaN, writes into what it is given, seeds
torch), the mini-batch is learned as if nobody had looked.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tensair_dask._common.notices import Notices
from tensair_dask._common.score_columns import columns, is_stateful
from tensair_dask._wording import in_words
from tensair_dask.batches.outputs import mapped
from tensair_dask.errors import MetricError
from tensair_dask.metrics import Mean, accuracy, binary_accuracy
from tensair_dask.replica.fresh import fresh, may_keep_something

__all__ = ["Scoring", "Totals", "map_tensors", "shapes"]

# Columns of one metric. A dict with other keys each time must not grow for ever.
MOST_COLUMNS = 64


class Scoring:
    """Computes the metrics of each mini-batch.

    Parameters
    ----------
    metrics
        By name.
    notices
        Where it is said what a metric does that it should not.
    device
        To which torchmetrics objects are moved.

    Attributes
    ----------
    names
        Of the columns: that of the metric, or ``name.key`` for each key of the dict
        that it returns. More may come; none changes its place.
    """

    def __init__(
        self, metrics: Mapping[str, Any], notices: Notices, device: torch.device
    ) -> None:
        self.names: list[str] = columns(metrics)
        self._notices = notices
        self._device = device
        self._places = {name: place for place, name in enumerate(self.names)}
        self._measures = [_Measure(*each, device) for each in metrics.items()]
        # As they were given: training goes on with what it has counted.
        self._given = [_Given(each) for each in self._measures]

    def __call__(self, prediction: Any, y: Any) -> list[float | None]:
        """Score a mini-batch.

        Returns
        -------
        values
            In the order of ``names``. NaN where a metric failed; None where it has no
            value of that name.
        """
        values: list[float | None] = [None] * len(self.names)
        if not self._measures:
            return values
        # Detached, so that nothing of a metric is recorded for the backward pass.
        prediction = map_tensors(torch.Tensor.detach, prediction)
        for measure in self._measures:
            try:
                value = self._guarded(measure, prediction, y)
                if type(value) is dict:
                    self._take_dict(measure, value, values)
                    continue
                place = self._places.get(measure.name)
                if place is None:
                    place = self._grown(measure.name, values)
                values[place] = value
                if value - value != 0.0:
                    self._say_not_finite(measure.name, value)
            # Also what ends programs, such as SystemExit: not by a metric.
            except BaseException as error:
                self._fail(measure, error, prediction, y, values)
        return values

    def _guarded(self, measure: _Measure, prediction: Any, y: Any) -> Any:
        """Measure, and put back what of torch a metric has changed."""
        if measure.is_own:
            return measure(prediction, y)
        generator = torch.default_generator
        seed, state = generator.initial_seed(), generator.get_state()
        with_gradient = torch.is_grad_enabled()
        try:
            return measure(*_copies(prediction, y))
        finally:
            if torch.is_grad_enabled() != with_gradient:
                torch.set_grad_enabled(with_gradient)
            if generator.initial_seed() != seed:
                self._put_back(measure, state)

    def _put_back(self, measure: _Measure, state: torch.Tensor) -> None:
        # Dropout would leave out the same at every step.
        torch.default_generator.set_state(state)
        if self._device.type == "cuda":
            torch.cuda.seed()
        self._notices.say(
            f"metric {measure.name} seeds",
            f"Metric {measure.name!r} seeds torch's random numbers, which models draw "
            "from as well (dropout); they go on as if it had not. Give the metric a "
            "torch.Generator of its own.",
        )

    def _take_dict(
        self, measure: _Measure, found: dict[str, Any], values: list[float | None]
    ) -> None:
        measure.columns.pop(measure.name, None)  # as it was thought to return one
        for name, value in found.items():
            if name not in measure.columns and not self._admits(measure, name):
                continue
            place = self._places.get(name)
            if place is None:
                place = self._grown(name, values)
            measure.columns[name] = None
            values[place] = value
            if value - value != 0.0:
                self._say_not_finite(name, value)

    def _admits(self, measure: _Measure, name: str) -> bool:
        """Whether a key may become a column; else that is said once."""
        if len(measure.columns) >= MOST_COLUMNS:
            self._notices.say(
                f"metric {measure.name} keys",
                f"Metric {measure.name!r} has returned more than {MOST_COLUMNS} "
                f"different keys; {name!r} and further ones are left out. Return a "
                "dict with the same keys each time.",
            )
            return False
        if name in self._places:
            self._notices.say(
                f"metric {measure.name} key {name}",
                f"Metric {measure.name!r} returns a dict of which {name!r} would be a "
                "column, as it is of another metric: it is left out. Give one of them "
                "another name.",
            )
            return False
        return True

    def _grown(self, name: str, values: list[float | None]) -> int:
        place = self._places[name] = len(self.names)
        self.names.append(name)
        values.append(None)
        return place

    def _fail(
        self,
        measure: _Measure,
        error: BaseException,
        prediction: Any,
        y: Any,
        values: list[float | None],
    ) -> None:
        for name in measure.columns:
            values[self._places[name]] = float("nan")
        said = failure(measure.name, error, prediction, y)
        self._notices.say(
            f"metric {measure.name} raised {type(error).__name__}",
            f"{said} The mini-batch is learned all the same; its score is NaN, and so "
            "is that of others like it, of which no more is said.",
        )

    def _say_not_finite(self, name: str, value: float) -> None:
        self._notices.say(
            f"metric {name} is not finite",
            f"Metric {name!r} is {value} for a mini-batch, which is learned all the "
            "same; means leave it out. Others like it follow without a word.",
        )

    def totals(self) -> Totals:
        """Begin to score held-out mini-batches."""
        return Totals(self._given, self._notices)


class Totals:
    """Metrics over several mini-batches; torchmetrics objects see all of them.

    All others see each mini-batch as if it were the first that they are given.
    """

    def __init__(self, given: list[_Given], notices: Notices) -> None:
        self._notices = notices
        self._plain = [each for each in given if not each.measure.is_stateful]
        self._stateful = [
            each.measure.fresh() for each in given if each.measure.is_stateful
        ]
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._left_out: dict[str, int] = {}
        self._batches = 0

    def add(self, prediction: Any, y: Any, samples: int) -> None:
        """Score one mini-batch.

        Raises
        ------
        MetricError
            If a metric raises, or returns what is no number.
        """
        self._batches += 1
        measures = [each.fresh(self._notices) for each in self._plain]
        for measure in [*measures, *self._stateful]:
            try:
                given = (prediction, y)
                if not measure.is_own:
                    given = _copies(prediction, y)
                if measure.is_stateful:
                    measure.metric.update(*given)
                    continue
                for name, value in measure.named(measure.mean(*given)):
                    self._take(name, value, samples)
            except BaseException as error:
                raise MetricError(
                    failure(measure.name, error, prediction, y)
                ) from error

    def _take(self, name: str, value: float, samples: int) -> None:
        weight = value.count if isinstance(value, Mean) else samples
        if math.isnan(value):
            if weight:
                self._left_out[name] = self._left_out.get(name, 0) + 1
            weight = value = 0.0
        self._sums[name] = self._sums.get(name, 0.0) + weight * value
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        """Means weighted by what counts; torchmetrics objects give their own value."""
        for name, count in self._left_out.items():
            self._notices.say(
                f"evaluate {name} left out",
                f"Metric {name!r} is NaN for {count} of the {self._batches} "
                "mini-batches that evaluate was given; its mean is that of the others.",
            )
        result = {
            name: total / (self._weights[name] or math.nan)
            for name, total in self._sums.items()
        }
        for measure in self._stateful:
            try:
                value = _numbers(measure.name, measure.metric.compute())
            except BaseException as error:
                raise MetricError(
                    f"Metric {measure.name!r} raised {in_words(error)}. "
                    "Its compute() must return a number, or a dict of numbers."
                ) from error
            result.update(measure.named(value))
        return result


class _Measure:
    """One metric, told apart once, because it is called at every step.

    Attributes
    ----------
    columns
        Names under which it has given a value, or is known to do so.
    is_own
        Whether it is of this package, which writes into nothing that it is given.
    """

    __slots__ = ("columns", "is_own", "is_stateful", "metric", "name")

    def __init__(self, name: str, metric: Any, device: torch.device) -> None:
        self.is_stateful = is_stateful(metric)
        self.name = name
        moves = self.is_stateful or isinstance(metric, torch.nn.Module)
        self.metric = metric.to(device) if moves else metric
        self.is_own = metric is accuracy or metric is binary_accuracy
        self.columns: dict[str, None] = dict.fromkeys(columns({name: metric}))

    def mean(self, prediction: Any, y: Any) -> Any:
        """As a call; but what is a `Mean` stays one."""
        return _numbers(self.name, self.metric(prediction, y), _mean)

    def __call__(self, prediction: Any, y: Any) -> Any:
        """A number, or a dict of numbers by column."""
        if self.is_stateful:
            # The value on this mini-batch alone: state would grow with the stream.
            self.metric.reset()
            self.metric.update(prediction, y)
            value = self.metric.compute()
        else:
            value = self.metric(prediction, y)
        return _numbers(self.name, value)

    def fresh(self) -> _Measure:
        """The same with a state of its own, apart from training's."""
        other = copy.copy(self)
        other.metric = copy.deepcopy(self.metric)
        other.metric.reset()
        return other

    def named(self, value: Any) -> list[tuple[str, float]]:
        """Column and number of each."""
        return [*value.items()] if type(value) is dict else [(self.name, value)]


class _Given:
    """A metric as it was given, of which copies are made to evaluate with."""

    def __init__(self, measure: _Measure) -> None:
        self.measure = measure
        self._metric: Any = None
        self._error: BaseException | None = None
        if not measure.is_stateful and may_keep_something(measure.metric):
            try:
                self._metric = fresh(measure.metric)
            except BaseException as error:  # whatever a copy of user code raises
                self._error = error

    def fresh(self, notices: Notices) -> _Measure:
        """The metric, with nothing of what it was given before."""
        if self._error is not None:
            notices.say(
                f"metric {self.measure.name} is not copied",
                f"Metric {self.measure.name!r} cannot be copied "
                f"({in_words(self._error)}), so that evaluate uses the object that "
                "training uses: if it keeps something from call to call, such as a "
                "count, each sees that of the other. Give a function, or an object "
                "with update, compute and reset.",
            )
        if self._metric is None:
            return self.measure
        other = copy.copy(self.measure)
        other.metric = fresh(self._metric)
        return other


def _numbers(
    name: str, value: Any, number: Callable[[Any], float] | None = None
) -> Any:
    """Make a number of what a metric returns; of a dict one of numbers by column."""
    number = number or _number
    if isinstance(value, Mapping):
        return dict(_flat(name, value, number))
    return number(value)


def _mean(value: Any) -> float:
    return value if isinstance(value, Mean) else _number(value)


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _flat(
    name: str, value: Mapping[Any, Any], number: Callable[[Any], float]
) -> Iterator[tuple[str, float]]:
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(f"{name}.{key}", part, number)
        else:
            yield f"{name}.{key}", number(part)


def _copies(prediction: Any, y: Any) -> tuple[Any, Any]:
    """What a metric may write into: the model may have returned its own parameters."""
    return map_tensors(_copy, prediction), map_tensors(_copy, y)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def map_tensors(function: Any, tree: Any) -> Any:
    """Apply a function to the tensors of a structure, which stays of its type."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if tree is None:
        return None
    return mapped(
        lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree
    )


def failure(name: str, error: BaseException, prediction: Any, y: Any) -> str:
    """Say what a metric has raised, and what it was given."""
    return (
        f"Metric {name!r} raised {in_words(error)}. It is called with (prediction, "
        "target) and must return a number, or a dict of numbers "
        f"(prediction: {shapes(prediction)}; target: {shapes(y)})."
    )


def shapes(tree: Any) -> str:
    """Describe a prediction or target in an error message."""
    if isinstance(tree, torch.Tensor):
        return f"a tensor {tuple(tree.shape)} {str(tree.dtype).removeprefix('torch.')}"
    if isinstance(tree, Mapping):
        kind = "dict" if type(tree) is dict else type(tree).__name__
        return f"a {kind} of {sorted(map(str, tree))}"
    if isinstance(tree, (tuple, list)):
        inner = ", ".join(shapes(value) for value in tree)
        return f"{type(tree).__name__}({inner})"
    return f"a {type(tree).__name__}"
