from __future__ import annotations

import numpy as np
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.prequential import (
    BinaryPrequential,
    last_label,
    majority_so_far,
    share_so_far,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")


@pytest.fixture
def stream() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    target = random.random(5_000) < 0.25
    probability = np.clip(random.random(5_000) * 0.8 + target * 0.2, 0, 1)
    # Rounded, so that there are ties, and certain, so that there are 0 and 1.
    return target, probability.round(2).astype(np.float32)


def feed(scores, target, probability, size=64, order=None):
    starts = range(0, len(target), size)
    for start in starts:
        scores.expect(target[start : start + size])
    for index in range(len(starts)) if order is None else order(len(starts)):
        scores.add(index, probability[index * size : (index + 1) * size])


def assert_as_sklearn(scores, target, probability):
    assert scores.records == len(target)
    assert scores.accuracy == sklearn_metrics.accuracy_score(target, probability > 0.5)
    assert scores.auc == pytest.approx(
        sklearn_metrics.roc_auc_score(target, probability), abs=1e-12
    )
    assert scores.log_loss == pytest.approx(
        sklearn_metrics.log_loss(target, probability), rel=1e-6
    )


def test_scores_are_those_of_scikit_learn(stream):
    target, probability = stream
    scores = BinaryPrequential(window=1_000)
    feed(scores, target, probability)
    assert_as_sklearn(scores.overall(), target, probability)
    assert_as_sklearn(scores.recent(), target[-1_000:], probability[-1_000:])


def test_order_of_completion_does_not_matter(stream):
    one, other = BinaryPrequential(window=1_000), BinaryPrequential(window=1_000)
    feed(one, *stream)
    feed(other, *stream, order=np.random.default_rng(0).permutation)
    assert one.overall() == other.overall()
    assert one.recent() == other.recent()
    assert one.curves().equals(other.curves())


def test_records_without_prediction_are_left_out(stream):
    target, probability = stream
    scores = BinaryPrequential(window=1_000)
    feed(scores, target, probability, order=lambda n: [i for i in range(n) if i != 3])
    kept = np.r_[0 : 3 * 64, 4 * 64 : len(target)]
    assert_as_sklearn(scores.overall(), target[kept], probability[kept])
    assert scores.records == len(kept)
    majority = scores.baselines()["majority"]
    assert majority.accuracy == np.mean(majority_so_far(target)[kept] == target[kept])


def test_curves_are_scores_of_the_window(stream):
    target, probability = stream
    scores = BinaryPrequential(window=1_000)
    feed(scores, target, probability)
    curves = scores.curves(points=20)
    assert curves.index[-1] == len(target)
    for stop in curves.index[[0, 10, -1]]:
        rows = slice(max(0, stop - 1_000), stop)
        row = curves.loc[stop]
        expected = sklearn_metrics.roc_auc_score(target[rows], probability[rows])
        assert row["AUC", "model"] == pytest.approx(expected)
        expected = sklearn_metrics.log_loss(target[rows], probability[rows])
        assert row["log loss", "model"] == pytest.approx(expected, rel=1e-6)
        expected = np.mean(last_label(target)[rows] == target[rows])
        assert row["accuracy", "last label"] == pytest.approx(expected)
        expected = np.mean(majority_so_far(target)[rows] == target[rows])
        assert row["accuracy", "majority"] == pytest.approx(expected)


def test_baselines_know_the_past_only():
    target = np.array([1, 1, 0, 0, 0, 1])
    assert majority_so_far(target).tolist() == [0, 1, 1, 1, 0, 0]
    assert last_label(target).tolist() == [0, 1, 1, 0, 0, 0]
    assert share_so_far(target) == pytest.approx(
        [1 / 2, 2 / 3, 3 / 4, 3 / 5, 1 / 2, 3 / 7]
    )
    changed = np.array([1, 1, 0, 1, 1, 0])
    for baseline in (majority_so_far, last_label, share_so_far):
        assert baseline(changed)[:4].tolist() == baseline(target)[:4].tolist()


def test_nothing_scored_and_one_class():
    scores = BinaryPrequential()
    assert scores.records == 0
    assert np.isnan(scores.overall().accuracy)
    scores.expect(np.zeros(3))
    scores.add(0, np.full(3, 0.1))
    assert scores.recent().accuracy == 1.0
    assert np.isnan(scores.recent().auc)
    assert scores.curves().index.tolist() == [3]


def test_a_prediction_that_fits_no_label_is_refused():
    scores = BinaryPrequential()
    scores.expect(np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"3 labels.*shape \(2,\)"):
        scores.add(0, np.zeros(2))
    for window in (0, 1.5, "a", None, True):
        with pytest.raises(ConfigurationError, match=f"window={window!r}"):
            BinaryPrequential(window=window)
    assert type(BinaryPrequential(window=np.int64(5)).window) is int
