"""Prequential, as river's own evaluation and scikit-learn score the same streams."""

from __future__ import annotations

import builtins
import pickle
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.prequential import (
    BinaryPrequential,
    majority_so_far,
    questions_and_answers,
)
from tensair_dask.prequential.baselines import Majority

river = pytest.importorskip("river", reason="needs river")
from river import (  # noqa: E402
    datasets,
    dummy,
    evaluate,
    linear_model,
    metrics,
    preprocessing,
    stats,
)


def logistic():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def linear():
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


STREAMS = {
    "Phishing": (datasets.Phishing, logistic, "predict_proba_one"),
    "Bananas": (datasets.Bananas, logistic, "predict_proba_one"),
    "TrumpApproval": (datasets.TrumpApproval, linear, "predict_one"),
    "ChickWeights": (datasets.ChickWeights, linear, "predict_one"),
}
OF_CLASSES = {
    "accuracy": metrics.Accuracy,
    "F1": metrics.F1,
    "kappa": metrics.CohenKappa,
    "balanced accuracy": metrics.BalancedAccuracy,
    "log loss": metrics.LogLoss,
    "AUC": metrics.ROCAUC,
}
OF_NUMBERS = {"MAE": metrics.MAE, "RMSE": metrics.RMSE, "R2": metrics.R2}


def run(stream, model, method, scores, delay):
    """Score a model of river on a stream with late labels; record by record."""
    kept = {}
    for event in questions_and_answers(stream, delay):
        if hasattr(event, "y"):
            model.learn_one(event.x, event.y)
        else:
            kept[event.number] = getattr(model, method)(event.x)
    for number, (_, y) in enumerate(stream):
        scores.add(y, kept[number])
    scores.flush()


@pytest.mark.parametrize("delay", [None, 1, 100])
@pytest.mark.parametrize("name", STREAMS)
def test_scores_are_those_of_rivers_progressive_validation(name, delay):
    data, model, method = STREAMS[name]
    regression = method == "predict_one"
    chosen = OF_NUMBERS if regression else OF_CLASSES
    scores = ta.Prequential(
        {key: kind() for key, kind in chosen.items()}, delay=delay, window=10**6
    )
    run(data(), model(), method, scores, delay)
    mean = dummy.StatisticRegressor(stats.Mean())
    constant = ("mean", mean) if regression else ("majority", dummy.PriorClassifier())
    contestants = [("model", model()), constant]
    if not regression:
        contestants.append(("last label", dummy.NoChangeClassifier()))
    got = scores.get()
    for whose, contestant in contestants:
        for key, kind in chosen.items():
            if whose == "mean":
                # river's guesses 0 before the first label, ours does not guess.
                expected = without_first(data(), contestant.clone(), kind(), delay)
            else:
                expected = evaluate.progressive_val_score(
                    data(), contestant.clone(), kind(), delay=delay
                ).get()
            assert got[whose][key]["whole"] == pytest.approx(expected, rel=1e-9)
            # A window that holds everything is the whole stream.
            assert got[whose][key]["window"] == pytest.approx(expected, rel=1e-9)


def without_first(stream, model, metric, delay):
    kept, known = {}, False
    for event in questions_and_answers(stream, delay):
        if hasattr(event, "y"):
            if event.number in kept:
                metric.update(event.y, kept[event.number])
            model.learn_one(event.x, event.y)
            known = True
        elif known:
            kept[event.number] = model.predict_one(event.x)
    return metric.get()


@pytest.fixture(scope="module")
def flights():
    pytest.importorskip("tensair_dask.pipelines.flights")
    from tensair_dask.pipelines.flights import load

    late = load(40_000).late
    noise = np.random.default_rng(0).random(len(late))
    return late, np.clip(0.3 * late + 0.7 * noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 64, 1_000])
def test_a_year_of_flights_is_scored_as_scikit_learn_and_the_fast_tool_do(
    flights, size
):
    sklearn = pytest.importorskip("sklearn.metrics")
    late, chances = flights
    if size == 1:
        late, chances = late[:5_000], chances[:5_000]
    scores = ta.Prequential(
        {
            "accuracy": metrics.Accuracy(),
            "F1": metrics.F1(),
            "MCC": metrics.MCC(),
            "log loss": metrics.LogLoss(),
        },
        window=3_000,
    )
    fast = BinaryPrequential(3_000)
    for index, start in enumerate(range(0, len(late), size)):
        rows = slice(start, start + size)
        fast.expect(late[rows])
        fast.add(index, chances[rows])
        scores.add(late[rows], chances[rows])
    got = scores.get()["model"]
    guess = chances > 0.5
    for horizon, rows in (("whole", slice(None)), ("window", slice(-3_000, None))):
        y, g, c = late[rows], guess[rows], chances[rows].astype(float)
        for name, expected in {
            "accuracy": sklearn.accuracy_score(y, g),
            "F1": sklearn.f1_score(y, g),
            "MCC": sklearn.matthews_corrcoef(y, g),
            "log loss": sklearn.log_loss(y, np.clip(c, 1e-15, 1 - 1e-15)),
        }.items():
            assert got[name][horizon] == pytest.approx(expected, rel=1e-9)
    assert got["accuracy"]["whole"] == fast.overall().accuracy
    assert got["accuracy"]["window"] == fast.recent().accuracy
    # The fast tool's baselines guess False before the first label; ours do not.
    ours, theirs = scores.get(), fast.baselines()
    for whose in ("majority", "last label"):
        assert ours[whose]["accuracy"]["whole"] == pytest.approx(
            theirs[whose].accuracy, abs=1.1 / len(late)
        )


def test_a_mini_batch_is_its_records():
    random = np.random.default_rng(3)
    y, p = random.integers(0, 3, 2_000), random.integers(0, 3, 2_000)
    one, other = (
        ta.Prequential([metrics.Accuracy(), metrics.MacroF1()], window=70, fading=0.99)
        for _ in range(2)
    )
    for start in range(0, 2_000, 37):
        one.add(y[start : start + 37], p[start : start + 37])
    for pair in zip(y.tolist(), p.tolist(), strict=True):
        other.add(*pair)
    # But for the rounding: equal records of a mini-batch are counted together.
    pd.testing.assert_frame_equal(one.frame(), other.frame(), rtol=1e-12)
    pd.testing.assert_frame_equal(one.curve(), other.curve(), rtol=1e-12)


def test_baselines_may_guess_a_mini_batch_at_once_as_its_model_does():
    scores = ta.Prequential(metrics.Accuracy())
    scores.add([1, 1, 1], [1, 1, 1], together=True)
    assert np.isnan(scores.get()["majority"]["Accuracy"]["whole"])
    scores.add([2, 1], [1, 1], together=True)
    assert scores.get()["majority"]["Accuracy"]["whole"] == 0.5
    assert scores.get()["last label"]["Accuracy"]["whole"] == 0.5
    # The last label is 1, as is the majority.
    scores.add([1, 1], [1, 1], together=True)
    assert scores.get()["last label"]["Accuracy"]["whole"] == 0.75


def test_majority_goes_to_the_label_that_came_first_where_two_are_equal():
    labels = np.random.default_rng(5).integers(0, 4, 300).tolist()
    prior, ours, at_once = dummy.PriorClassifier(), Majority(), Majority()
    for number, label in enumerate(labels):
        prior.learn_one({}, label)
        ours.learn([label])
        assert ours.guess() == prior.predict_one({})
        assert ours.chances(False) == prior.predict_proba_one({})
        if number % 10 == 9:
            at_once.learn(labels[number - 9 : number + 1])
            assert at_once.guess() == ours.guess()


def test_the_fast_tool_and_this_one_use_the_same_words():
    fast = BinaryPrequential()
    fast.expect(np.array([1, 0, 1]))
    fast.add(0, np.array([0.9, 0.2, 0.4]))
    names = list(ta.Prequential(metrics.Accuracy()).get())
    assert names == ["model", *fast.baselines()] == ["model", "majority", "last label"]


def test_the_majority_is_that_of_the_fast_tool():
    y = np.random.default_rng(6).random(500) < 0.5
    scores = ta.Prequential(metrics.Accuracy(), baselines=["majority"])
    scores.add(y, y)
    # Where equally many came, the fast tool guesses False.
    ours = scores.get()["majority"]["Accuracy"]["whole"]
    assert ours == pytest.approx(np.mean(majority_so_far(y) == y), abs=0.03)


# ------------------------------------------------------------------- what may be given


@pytest.mark.parametrize(
    "given",
    [
        [metrics.Accuracy(), metrics.F1()],
        metrics.Accuracy() + metrics.F1(),
        {"Accuracy": metrics.Accuracy(), "F1": metrics.F1()},
    ],
)
def test_metrics_come_one_by_one_as_a_list_a_sum_or_a_dict(given):
    scores = ta.Prequential(given)
    scores.add([True, False], [True, True])
    assert scores.get()["model"] == {
        "Accuracy": {"whole": 0.5},
        "F1": {"whole": pytest.approx(2 / 3)},
    }


def test_what_is_given_is_left_alone():
    metric = metrics.Accuracy()
    metric.update(1, 1)
    scores = ta.Prequential(metric)
    scores.add(1, 0)
    assert scores.get()["model"]["Accuracy"]["whole"] == 0
    assert metric.get() == 1


def test_parameters_of_metrics_are_kept():
    scores = ta.Prequential(
        {
            "spam": metrics.F1(pos_val="spam"),
            "ham": metrics.F1(pos_val="ham"),
            "F2": metrics.FBeta(beta=2, pos_val="spam"),
        }
    )
    y = ["spam", "ham", "ham", "spam", "ham"]
    p = ["spam", "spam", "ham", "ham", "ham"]
    scores.add(y, p)
    sklearn = pytest.importorskip("sklearn.metrics")
    got = scores.get()["model"]
    assert got["spam"]["whole"] == sklearn.f1_score(y, p, pos_label="spam")
    assert got["ham"]["whole"] == sklearn.f1_score(y, p, pos_label="ham")
    f2 = sklearn.fbeta_score(y, p, beta=2, pos_label="spam")
    assert got["F2"]["whole"] == pytest.approx(f2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "No metric"),
        ("accuracy", "river.metrics.Accuracy()"),
        (metrics.Accuracy, "is a class"),
        ([metrics.F1(), metrics.F1()], "given twice"),
        ([metrics.F1(), metrics.MAE()], "a Prequential each"),
        (metrics.ConfusionMatrix(), "no single number"),
        (metrics.ClassificationReport(), "no single number"),
        (metrics.Silhouette(), "for clusterings"),
        (metrics.multioutput.MacroAverage(metrics.MAE()), "several outputs"),
        (metrics.ROCAUC(pos_val="spam"), "to True and False"),
    ],
)
def test_metrics_that_are_not_allowed_are_refused(given, said):
    with pytest.raises(errors.ConfigurationError) as caught:
        ta.Prequential(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"baselines": ["mean"]},
        {"baselines": ["majority class"]},
        {"baselines": ["majority", "majority"]},
        {"pending": 0},
        {"points": 1},
    ],
)
def test_options_that_are_not_allowed_are_refused(options):
    with pytest.raises(errors.ConfigurationError, match="allowed"):
        ta.Prequential(metrics.Accuracy(), **options)
    with pytest.raises(errors.ConfigurationError, match="'last label', 'mean'"):
        ta.Prequential(metrics.MAE(), baselines=["majority"])


NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "y_true", "y_pred", "kind"),
    [
        (metrics.Accuracy, [1, 2], [1], errors.ShapeError),
        (metrics.Accuracy, 1, [1, 2], errors.ShapeError),
        (metrics.Accuracy, [], [], errors.ShapeError),
        (metrics.Accuracy, np.zeros((2, 3), int), [1, 2], errors.ShapeError),
        (metrics.Accuracy, [[1, 2], [3]], [1, 2], errors.ShapeError),
        (metrics.Accuracy, np.array([1, NAN]), [1, 1], errors.NonFiniteError),
        (metrics.Accuracy, NAN, 1, errors.NonFiniteError),
        (metrics.Accuracy, None, 1, errors.DtypeError),
        (metrics.Accuracy, [1, None], [1, 1], errors.DtypeError),
        (metrics.Accuracy, {"a": 1}, 1, errors.DtypeError),
        (metrics.Accuracy, 0.5, 1, errors.DtypeError),
        (metrics.Accuracy, [True, False], [0.7, 0.2], errors.DtypeError),
        (metrics.Accuracy, pd.Timestamp(0), 1, errors.DtypeError),
        (metrics.Accuracy, np.array(["2013"], "M8[D]"), [1], errors.DtypeError),
        (metrics.LogLoss, [True], [1.5], errors.BatchError),
        (metrics.LogLoss, [True], [NAN], errors.NonFiniteError),
        (metrics.LogLoss, [True], ["yes"], errors.DtypeError),
        (metrics.LogLoss, [True], [{True: 2.0}], errors.BatchError),
        (metrics.LogLoss, [0], np.array([[0.2, NAN]]), errors.NonFiniteError),
        (metrics.MAE, [1.0, np.inf], [1.0, 1.0], errors.NonFiniteError),
        (metrics.MAE, [1.0], [NAN], errors.NonFiniteError),
        (metrics.MAE, ["a"], [1.0], errors.DtypeError),
        (metrics.MAE, np.array(["a"]), [1.0], errors.DtypeError),
        (metrics.MAE, [1.0], [{1: 0.5}], errors.DtypeError),
    ],
)
def test_what_cannot_be_scored_is_refused_and_nothing_of_it_scored(
    metric, y_true, y_pred, kind
):
    scores = ta.Prequential(metric())
    with pytest.raises(errors.BatchError) as caught:
        scores.add(y_true, y_pred)
    assert type(caught.value) is kind
    assert scores.records == 0
    fine = 1.0 if metric is metrics.MAE else 1
    scores.add(fine, fine)
    assert scores.records == 1


def test_arrays_series_tensors_and_lists_are_the_same():
    torch = pytest.importorskip("torch")
    y, p = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])
    forms = [
        (y, p),
        (y.tolist(), p.tolist()),
        (list(y), list(p)),
        (tuple(y), tuple(p)),
        (pd.Series(y), pd.Series(p, index=[3, 4, 5, 6])),
        (torch.tensor(y), torch.tensor(p)),
        (y[:, None], p[:, None].astype(np.uint8)),
        (y.astype(np.float32), np.eye(3)[p]),
        (y.astype(object), [{k: 0.9 if k == v else 0.1 for k in range(3)} for v in p]),
    ]
    for form in forms:
        scores = ta.Prequential(metrics.Accuracy())
        scores.add(*form)
        assert scores.get()["model"]["Accuracy"]["whole"] == 0.75


def test_a_record_that_was_not_predicted_teaches_the_baselines_only():
    scores = ta.Prequential(metrics.Accuracy(), delay=1)
    for y, guess in [(3, None), (3, {}), (3, 3)]:
        scores.add(y, guess)
    scores.flush()
    assert scores.records == 1
    assert scores.get()["majority"]["Accuracy"]["whole"] == 1


def test_without_river_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_river(name, *rest):
        if name.partition(".")[0] == "river":
            raise ImportError("No module named 'river'")
        return real(name, *rest)

    metric = metrics.Accuracy()
    monkeypatch.setattr(builtins, "__import__", no_river)
    with pytest.raises(errors.ConfigurationError) as caught:
        ta.Prequential(metric)
    assert 'pip install "tensair-dask[drift]"' in str(caught.value)


def test_importing_the_room_loads_neither_river_nor_torch():
    code = (
        "import sys, tensair_dask as ta; ta.Prequential, ta.prequential;"
        "print([each in sys.modules for each in ('river', 'torch', 'distributed')])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "[False, False, False]\n"
    assert {"prequential", "Prequential"} <= set(dir(ta))


# ---------------------------------------------------------------------------- reading


def a_stream(count=20_000, **options):
    scores = ta.Prequential(
        {"accuracy": metrics.Accuracy(), "log loss": metrics.LogLoss()},
        window=1_000,
        fading=0.999,
        **options,
    )
    random = np.random.default_rng(4)
    y = random.random(count) < 0.3
    chances = np.clip(0.8 * random.random(count) + 0.2 * y, 0, 1)
    for start in range(0, count, 64):
        scores.add(y[start : start + 64], chances[start : start + 64])
    return scores


def test_the_frame_has_a_row_for_each_and_a_column_for_each_horizon():
    scores = a_stream()
    frame = scores.frame()
    assert frame.index.tolist() == ["model", "majority", "last label"]
    assert frame.columns.tolist() == [
        (metric, horizon)
        for metric in ("accuracy", "log loss")
        for horizon in ("whole", "window", "fading")
    ]
    got = scores.get()
    assert (
        frame.loc["majority", ("accuracy", "fading")]
        == (got["majority"]["accuracy"]["fading"])
    )
    assert ta.Prequential(metrics.MAE()).frame().isna().all().all()


def test_it_says_what_it_has():
    scores = a_stream(2_000)
    text = repr(scores)
    assert text.startswith("<Prequential: 2,000 records>")
    for word in ("majority", "last label", "last 1,000", "fading 0.999", "log loss"):
        assert word in text
        assert word in scores._repr_html_()
    assert "nan" in repr(ta.Prequential(metrics.F1()))


def test_a_curve_gets_coarser_not_longer():
    scores = a_stream(20_000, points=100)
    curve = scores.curve()
    assert 50 <= len(curve) <= 101
    steps = np.unique(np.diff(curve.index[:-1]))
    assert len(steps) == 1
    assert curve.index[-1] == 20_000
    last = scores.frame().stack([0, 1], future_stack=True)
    for (metric, horizon, whose), value in curve.iloc[-1].items():
        assert last[whose, metric, horizon] == value
    coarse = scores.curve(every=5_000)
    assert (np.diff(coarse.index[:-1]) >= 5_000).all()
    pd.testing.assert_frame_equal(coarse, curve.loc[coarse.index])


def test_every_row_of_the_curve_is_what_the_scores_were_then():
    scores = ta.Prequential(metrics.MAE(), window=30, points=8)
    errors_ = np.random.default_rng(0).random(3_000)
    for start in range(0, 3_000, 17):
        rows = errors_[start : start + 17]
        scores.add(np.zeros(len(rows)), rows)
    for records, row in scores.curve().iterrows():
        whole = row["MAE", "whole", "model"]
        assert whole == pytest.approx(errors_[:records].mean())
        window = errors_[max(0, records - 30) : records].mean()
        assert row["MAE", "window", "model"] == pytest.approx(window)


def test_one_horizon_of_the_curve_can_be_drawn_as_the_fast_tools_can():
    from tensair_dask.observe.figures.scores import chart

    curves = a_stream(3_000).curve().xs("window", axis=1, level="horizon")
    assert list(dict.fromkeys(curves.columns.get_level_values(1))) == [
        "model",
        "majority",
        "last label",
    ]
    moments = pd.date_range("2013-01-01", periods=len(curves)).to_numpy()
    assert [panel.label for panel in chart(curves, moments).panels] == list(
        dict.fromkeys(curves.columns.get_level_values(0))
    )


def test_a_curve_of_nothing_is_empty():
    curve = ta.Prequential(metrics.MAE(), window=3).curve()
    assert curve.shape == (0, 6)
    with pytest.raises(errors.ConfigurationError, match="every=0"):
        ta.Prequential(metrics.MAE()).curve(every=0)


def test_what_is_pickled_goes_on_as_if_it_had_not_been():
    random = np.random.default_rng(9)
    y, p = random.integers(0, 3, 3_000), random.integers(0, 3, 3_000)
    scores = ta.Prequential(
        [metrics.Accuracy(), metrics.CohenKappa(), metrics.MacroF1()],
        window=200,
        fading=0.9,
        delay=100,
    )
    again = None
    for start in range(0, 3_000, 50):
        for each in filter(None, (scores, again)):
            each.add(y[start : start + 50], p[start : start + 50])
        if start == 1_450:
            again = pickle.loads(pickle.dumps(scores))
    assert again.flush() == scores.flush() == 100
    assert again.get() == scores.get()
    pd.testing.assert_frame_equal(again.curve(), scores.curve())


def test_another_thread_may_read_and_pickle_meanwhile():
    scores = ta.Prequential(
        [metrics.MacroF1(), metrics.CohenKappa()], window=50, fading=0.99
    )
    stop, failed = threading.Event(), []

    def read():
        try:
            while not stop.is_set():
                scores.frame(), scores.curve(), repr(scores)
                pickle.dumps(scores)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    labels = np.random.default_rng(0).integers(0, 50, (100, 40))
    for row in labels:
        scores.add(row, row)
    stop.set()
    thread.join(30)
    assert failed == []
    assert scores.get()["model"]["MacroF1"]["whole"] == 1


Outputs = namedtuple("Outputs", "logits hidden")


@pytest.mark.parametrize(
    ("output", "choice"),
    [
        ({"logits": np.zeros((4, 2))}, r"give y_pred\['logits'\]"),
        ({"loss": 0.5, "logits": torch.zeros(4, 2)}, r"give y_pred\['logits'\]"),
        ((np.zeros((4, 2)), np.zeros(4)), r"give y_pred\[0\]"),
        (Outputs(np.zeros((4, 2)), np.zeros((4, 9))), r"an? Outputs of several"),
    ],
)
def test_the_error_for_several_outputs_says_to_choose_one(output, choice):
    with pytest.raises(errors.DtypeError, match=choice):
        ta.Prequential(metrics.Accuracy()).add([0, 1, 1, 0], output)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("label", [np.int64, np.float32, bool])
def test_the_error_for_one_logit_a_record_says_how_to_make_a_label(shape, label):
    logits = np.array([-2.5, 0.5, 3.5, -0.5], "float32").reshape(shape)
    y = np.array([0, 1, 1, 0], label)
    scores = ta.Prequential(metrics.Accuracy())
    with pytest.raises(errors.DtypeError, match=r"decide=lambda output: output > 0\)"):
        scores.add(y, logits)
    scores.add(y, logits > 0)
    assert scores.get()["model"]["Accuracy"]["whole"] == 1
    with pytest.raises(
        errors.BatchError, match=r"decide=lambda logits: 1 / \(1 \+ numpy"
    ):
        ta.Prequential(metrics.ROCAUC()).add(y, logits)
