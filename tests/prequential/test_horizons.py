"""Whole stream, sliding window and fading factor, against river and naive sums."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError
from tensair_dask.prequential import horizons
from tensair_dask.prequential.river_metrics import Chosen

metrics = pytest.importorskip("river.metrics", reason="needs river")
utils = pytest.importorskip("river.utils")


def scalar_metrics():
    """All metrics of river that give a number and need no further argument."""
    from river import metrics

    for name, kind in inspect.getmembers(metrics, inspect.isclass):
        try:
            Chosen(kind())
        except (ConfigurationError, TypeError):
            continue
        yield name


def records(metric, count=3_000, seed=0):
    """Labels and predictions that a metric takes, better than chance."""
    random = np.random.default_rng(seed)
    if isinstance(metric, metrics.base.RegressionMetric):
        target = random.normal(size=count) + 10
        return target, target + random.normal(size=count) * 0.3
    if not metric.requires_labels:
        target = random.random(count) < 0.3
        chances = np.clip(random.random(count) * 0.7 + 0.3 * target, 0, 1)
        if isinstance(metric, metrics.CrossEntropy):
            return target, [{True: c, False: 1 - c} for c in chances.tolist()]
        return target, chances
    target = random.integers(0, 4, count)
    return target, np.where(random.random(count) < 0.6, target, 1)


def allows(metric, **horizon):
    try:
        ta.Prequential(metric, **horizon)
    except ConfigurationError:
        return False
    return True


ALL = list(scalar_metrics())
SLIDING = [name for name in ALL if allows(getattr(metrics, name)(), window=10)]
FADING = [name for name in ALL if allows(getattr(metrics, name)(), fading=0.9)]


def in_batches(scores, target, predicted, sizes=(1, 7, 64, 130)):
    start = number = 0
    while start < len(target):
        stop = start + sizes[number % len(sizes)]
        scores.add(target[start:stop], predicted[start:stop])
        start, number = stop, number + 1


def listed(values):
    return values if isinstance(values, list) else values.tolist()


def test_most_of_rivers_metrics_can_be_had():
    assert len(ALL) > 35
    assert len(SLIDING) > 30
    assert len(FADING) > 25


@pytest.mark.parametrize("name", ALL)
def test_the_whole_stream_is_scored_as_river_scores_it(name):
    metric = getattr(metrics, name)()
    target, predicted = records(metric)
    scores = ta.Prequential(metric)
    in_batches(scores, target, predicted)
    for true, guess in zip(listed(target), listed(predicted), strict=True):
        metric.update(true, guess)
    ours = scores.get()["model"][name]["whole"]
    assert ours == pytest.approx(metric.get(), rel=1e-9, abs=1e-12)
    assert scores.records == len(target)


@pytest.mark.parametrize("name", SLIDING)
def test_a_window_is_what_its_records_alone_give(name, monkeypatch):
    monkeypatch.setattr(horizons, "_LIFE", 500)
    kind = getattr(metrics, name)
    target, predicted = records(kind(), 3_500)
    scores = ta.Prequential(kind(), window=300)
    for stop in (200, 1_234, 3_500):  # not full, before and after successors
        done = scores.records
        in_batches(scores, target[done:stop], predicted[done:stop])
        alone = kind()
        rows = slice(max(0, stop - 300), stop)
        for pair in zip(listed(target[rows]), listed(predicted[rows]), strict=True):
            alone.update(*pair)
        ours = scores.get()["model"][name]["window"]
        assert ours == pytest.approx(alone.get(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("factor", [0.9, 0.5])
@pytest.mark.parametrize("name", FADING)
def test_fading_is_what_weights_that_fade_give(name, factor, monkeypatch):
    kind = getattr(metrics, name)
    # Several successors take over within 5,000 records.
    monkeypatch.setattr(horizons, "_HEAVIEST", 1e25)
    monkeypatch.setattr(horizons, "_LIGHTEST", 1e-12)
    target, predicted = records(kind(), 5_000)
    scores = ta.Prequential(kind(), fading=factor)
    for stop in (150, 1_777, 5_000):
        done = scores.records
        in_batches(scores, target[done:stop], predicted[done:stop])
        naive = kind()
        weights = factor ** np.arange(stop - 1, -1, -1.0)
        for true, guess, weight in zip(
            listed(target[:stop]), listed(predicted[:stop]), weights, strict=True
        ):
            if weight > 1e-290:  # smaller ones lose digits in the naive sum
                naive.update(true, guess, w=weight)
        ours = scores.get()["model"][name]["fading"]
        assert ours == pytest.approx(naive.get(), rel=1e-9, abs=1e-9)


def test_fading_goes_on_without_end():
    # Weights would be 2 ** 100_000 without successors.
    scores = ta.Prequential({"MSE": metrics.MSE()}, fading=0.5, baselines=[])
    error = np.random.default_rng(1).normal(size=100_000) * 1e3
    for start in range(0, 100_000, 500):
        rows = slice(start, start + 500)
        scores.add(np.zeros(500), error[rows])
    weights = 0.5 ** np.arange(60.0)[::-1]
    expected = np.average(error[-60:] ** 2, weights=weights)
    assert scores.get()["model"]["MSE"]["fading"] == pytest.approx(expected, rel=1e-12)


def test_the_prequential_mean_of_gama_is_the_fading_one():
    # S_i = L_i + a S_{i-1}; B_i = 1 + a B_{i-1}; the score is S / B.
    scores = ta.Prequential(metrics.Accuracy(), fading=0.999)
    right = np.random.default_rng(2).random(20_000) < 0.8
    total = weight = 0.0
    for one in right.tolist():
        total, weight = one + 0.999 * total, 1 + 0.999 * weight
    in_batches(scores, np.ones(20_000, int), right.astype(int))
    ours = scores.get()["model"]["Accuracy"]["fading"]
    assert ours == pytest.approx(total / weight, rel=1e-10)


def test_a_window_forgets_the_rounding_that_a_huge_value_leaves_behind():
    scores = ta.Prequential(metrics.MSE(), window=100, baselines=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        rolling = utils.Rolling(metrics.MSE(), 100)
    errors = np.ones(20_000)
    errors[50] = 1e12
    in_batches(scores, np.zeros(20_000), errors)
    for error in errors.tolist():
        rolling.update(0.0, error)
    assert abs(rolling.get() - 1) > 1e3
    assert scores.get()["model"]["MSE"]["window"] == pytest.approx(1, rel=1e-12)


def test_a_window_of_one_is_the_newest_record():
    scores = ta.Prequential(metrics.MAE(), window=1)
    for error in (3.0, 1.0, 2.0):
        scores.add(0.0, error)
        assert scores.get()["model"]["MAE"]["window"] == error


def test_a_metric_with_a_window_of_its_own_must_hold_ours():
    scores = ta.Prequential(metrics.RollingROCAUC(window_size=200), window=200)
    target, predicted = records(metrics.ROCAUC(), 1_000)
    in_batches(scores, target, predicted)
    sklearn = pytest.importorskip("sklearn.metrics")
    expected = sklearn.roc_auc_score(target[-200:], predicted[-200:])
    ours = scores.get()["model"]["RollingROCAUC"]["window"]
    assert ours == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ConfigurationError, match="window_size=300"):
        ta.Prequential(metrics.RollingROCAUC(window_size=200), window=300)


class NoWayBack(metrics.MAE):
    """Cannot take a record out."""

    def revert(self, y_true, y_pred, w=1.0):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("metric", "horizon", "allowed"),
    [
        # Its revert forgets the logarithm that its update takes.
        (metrics.RMSLE(), {"window": 9}, "RMSLE allows the whole stream and fading="),
        (NoWayBack(), {"window": 9}, "NoWayBack allows the whole stream and fading="),
        (metrics.MutualInfo(), {"fading": 0.9}, "allows the whole stream and window="),
        (metrics.FowlkesMallows(), {"fading": 0.9}, "the whole stream and window="),
        (metrics.RollingROCAUC(), {"fading": 0.9}, "cannot weigh records"),
    ],
)
def test_metrics_say_which_horizons_they_allow(metric, horizon, allowed):
    ta.Prequential(metric)
    with pytest.raises(ConfigurationError, match=allowed):
        ta.Prequential(metric, **horizon)


@pytest.mark.parametrize(
    "horizon",
    [{"window": value} for value in (0, 1.5, True, "a", [5])]
    + [
        {"fading": value}
        for value in (0.0, 1.0, 1, -0.5, 1.5, 0.001, float("nan"), True, "a", [0.5])
    ]
    + [{name: value} for name in ("pending", "points") for value in (0, 2.5, True)],
)
def test_horizons_that_are_not_allowed_are_refused(horizon):
    with pytest.raises(ConfigurationError, match=r"is not allowed.*for example"):
        ta.Prequential(metrics.Accuracy(), **horizon)


def test_numbers_of_numpy_are_taken_for_those_of_python():
    options = {"window": 5, "fading": 0.5, "pending": 9, "points": 7}
    of_numpy = {
        name: np.float32(value) if name == "fading" else np.int64(value)
        for name, value in options.items()
    }
    scores = ta.Prequential(metrics.Accuracy(), **options)
    same = ta.Prequential(metrics.Accuracy(), **of_numpy)
    for one in (scores, same):
        one.add([1, 0, 1] * 5, [1, 1, 1] * 5)
    assert same.get() == scores.get()
    assert len(same.curve(every=np.int64(1))) == len(scores.curve(every=1))
    # As plain values, the one goes on from the state of the other.
    scores.load_state_dict(same.state_dict())
    assert {type(value) for value in (same.window, same.fading)} == {int, float}
