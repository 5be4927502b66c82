"""Metrics only watch: whatever they do, the model learns as without them."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import CLASSES, class_data, classes, train_all
from learners import data, learner
from streamz import Stream
from torch import nn

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.replica import scoring

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


def raises(prediction, y):
    raise RuntimeError("no luck")


def ends(prediction, y):
    raise SystemExit


def vector(prediction, y):
    return prediction[:, 0]


def nothing(prediction, y):
    return None


def not_a_number(prediction, y):
    return float("nan")


def in_place(prediction, y):
    prediction.zero_()
    y.fill_(1)
    return 1.0


def in_place_in_numpy(prediction, y):
    prediction.numpy()[:] = 0
    y.numpy()[:] = 0
    return 1.0


def seeds(prediction, y):
    torch.manual_seed(0)
    return torch.rand(()).item()


def stops_gradients(prediction, y):
    torch.set_grad_enabled(False)
    return 1.0


def wants_gradients(prediction, y):
    prediction.requires_grad_(True).sum().backward()
    return 1.0


class Collected:
    """Keeps state as torchmetrics objects do, and fails where it is read."""

    higher_is_better = True

    def __call__(self, prediction, y):
        raise AssertionError

    def to(self, device):
        return self

    def reset(self):
        pass

    def update(self, prediction, y):
        prediction.mul_(2)

    def compute(self):
        raise ValueError("nothing was collected")


METRICS = [
    raises, ends, vector, nothing, not_a_number, in_place, in_place_in_numpy, seeds,
    stops_gradients, wants_gradients, Collected(),
]  # fmt: skip


class Dropping(nn.Module):
    """Drops out, and returns one of its parameters besides the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        hidden = nn.functional.dropout(self.layer(x) * self.scale, 0.5, self.training)
        return hidden, self.scale


def of_the_first(metric: Any) -> Any:
    if not callable(metric) or isinstance(metric, Collected):
        return metric
    return lambda prediction, y: metric(prediction[0], y)


def of_the_parameter(prediction, y):
    prediction[1].mul_(100)
    return 1.0


def learned_with(metrics: dict[str, Any]) -> tuple[list[float], list[torch.Tensor]]:
    ours = learner(
        Dropping,
        loss=lambda p, y: nn.functional.cross_entropy(p[0], y),
        metrics=metrics,
    )
    torch.manual_seed(7)
    losses = [ours.learn(*data(), 8)[0].loss for _ in range(5)]
    return losses, [p.detach().clone() for p in ours.model.parameters()]


@pytest.mark.parametrize(
    "metric",
    [*map(of_the_first, METRICS), of_the_parameter],
    ids=[*(getattr(each, "__name__", "object") for each in METRICS), "parameter"],
)
def test_what_is_learned_does_not_depend_on_metrics(metric):
    losses, parameters = learned_with({})
    watched, same = learned_with({"metric": metric})
    assert watched == losses
    assert all(map(torch.equal, same, parameters))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("metric", METRICS[:5], ids=lambda each: each.__name__)
def test_the_score_is_nan_and_that_is_said_once_for_each_kind(metric):
    ours = learner(metrics={"mine": metric, "accuracy": ta.metrics.accuracy})
    steps = [ours.learn(*data(), 8)[0] for _ in range(3)]
    assert all(np.isnan(step.metrics[0]) for step in steps)
    assert all(0 <= step.metrics[1] <= 1 for step in steps)
    (said,) = ours.notices.take().values()
    assert "'mine'" in said
    assert "learned all the same" in said


def test_each_kind_of_failure_is_said():
    kinds = iter([ValueError, KeyError, ValueError, KeyError])

    def unlucky(prediction, y):
        raise next(kinds)("no luck")

    ours = learner(metrics={"mine": unlucky})
    for _ in range(4):
        ours.learn(*data(), 8)
    assert len(ours.notices.take()) == 2


def test_the_notice_for_a_metric_that_seeds_advises_a_generator():
    ours = learner(metrics={"mine": seeds})
    ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert "Generator" in said


@pytest.mark.parametrize("learn", [True, False], ids=["learned", "scored"])
def test_a_dict_makes_a_column_of_each_key(learn):
    def several(prediction, y):
        return {"one": 1, "inner": {"two": torch.tensor(2.0)}}

    ours = learner(metrics={"all": several, "accuracy": ta.metrics.accuracy})
    for _ in range(2):
        step = ours.learn(*data(), 8)[0] if learn else ours.score(*data(), 8)
    scores = dict(zip(ours.metric_names, step.metrics, strict=True))
    assert scores.pop("all") is None
    assert 0 <= scores.pop("accuracy") <= 1
    assert scores == {"all.one": 1.0, "all.inner.two": 2.0}
    assert ours.notices.take() == {}
    evaluation = ours.evaluation()
    evaluation.add(*data(), 8)
    assert evaluation.result()["all.inner.two"] == 2.0


def test_a_dict_that_fails_later_is_nan_in_all_its_columns():
    broken = []

    def several(prediction, y):
        if broken:
            raise ValueError
        return {"a": 1, "b": 2}

    ours = learner(metrics={"all": several})
    ours.learn(*data(), 8)
    broken.append(True)
    step, _ = ours.learn(*data(), 8)
    scores = dict(zip(ours.metric_names, step.metrics, strict=True))
    assert scores["all"] is None
    assert np.isnan([scores["all.a"], scores["all.b"]]).all()


def test_keys_without_end_and_those_of_another_metric_are_left_out_and_said():
    number = iter(range(1000))
    ours = learner(
        metrics={
            "all": lambda p, y: {f"key {next(number)}": 1},
            "a.b": lambda p, y: 3,
            "a": lambda p, y: {"b": 5},
        }
    )
    for _ in range(100):
        step, _ = ours.learn(*data(), 8)
    assert len(ours.metric_names) == 3 + scoring.MOST_COLUMNS
    assert step.metrics[ours.metric_names.index("a.b")] == 3
    said = " ".join(ours.notices.take().values())
    assert "same keys each time" in said
    assert "'a.b' would be a column" in said


def test_evaluation_hides_no_metric_that_fails():
    for metric in (raises, Collected()):
        ours = learner(metrics={"mine": metric})
        evaluation = ours.evaluation()

        def evaluate(evaluation=evaluation):
            evaluation.add(*data(), 8)
            return evaluation.result()

        with pytest.raises(errors.MetricError, match="'mine' raised"):
            evaluate()


class Output(NamedTuple):
    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x):
        scores = self.layer(x)
        return Output(scores, [scores.relu()])


def named(**overrides):
    return classes(
        model=Named,
        loss=lambda output, y: nn.functional.cross_entropy(output.logits, y),
        metrics={"right": lambda o, y: (o.logits.argmax(1) == y).float().mean()},
        **overrides,
    )


@two()
async def test_loss_metrics_and_predictions_get_the_type_of_the_output(c, s, a, b):
    async with ta.Trainer(c, **named(keep_predictions=True)) as trainer:
        reports = await train_all(trainer, class_data(10))
        assert all(report.learned for report in reports)
        assert all(0 <= report.metrics["right"] <= 1 for report in reports)
        x, y = class_data(1)[0]
        for found in (reports[0].prediction, await trainer.predict(x)):
            assert type(found) is Output
            assert type(found.logits) is np.ndarray
            assert type(found.hidden) is list
        assert type(await trainer.predict(torch.from_numpy(x))) is Output
        one_of_them = await trainer.predict_one(x[0])
        assert type(one_of_them) is Output
        assert one_of_them.logits.shape == (CLASSES,)
        assert 0 <= (await trainer.evaluate([(x, y)]))["right"] <= 1
        assert len(trainer.events[trainer.events.kind == "note"]) == 0


@one()
async def test_a_type_that_only_the_workers_have_is_said_once(c, s, a):
    class Local(NamedTuple):
        logits: torch.Tensor

    class Model(Named):
        def forward(self, x):
            return Local(self.layer(x))

    x, y = class_data(1)[0]
    async with ta.Trainer(c, **{**named(), "model": Model}) as trainer:
        for _ in range(3):
            assert type(await trainer.predict(x)) is tuple
        (said,) = trainer.events[trainer.events.kind == "note"].text
        assert "Local" in said
        assert (await trainer.train(x, y)).learned


@one()
async def test_predictions_that_reports_cannot_carry_are_said_once(c, s, a):
    class Normal(Named):
        def forward(self, x):
            return torch.distributions.Normal(self.layer(x), 1.0)

    def likelihood(output, y):
        return -output.log_prob(y[:, None].float()).mean()

    arguments = classes(model=Normal, loss=likelihood, keep_predictions=True)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = await train_all(trainer, class_data(5))
        assert all(report.learned and report.prediction is None for report in reports)
        (said,) = trainer.events[trainer.events.kind == "note"].text
        assert "Normal" in said
        with pytest.raises(errors.ModelError, match=r"Normal.*does not travel"):
            await trainer.predict(class_data(1)[0][0])


@two()
async def test_a_metric_that_fails_is_one_warning_and_one_event(c, s, a, b):
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("tensair_dask.coordinator.run_events")
    logger.addHandler(handler)
    try:
        metrics = {"mine": raises, "ours": ta.metrics.accuracy}
        async with ta.Trainer(c, **classes(metrics=metrics)) as trainer:
            reports = await train_all(trainer, class_data(40))
            assert all(report.learned for report in reports)
            assert trainer.dead_letters.total == 0
            assert trainer.history["mine"].isna().all()
            assert trainer.curves["mine"].isna().all()
            assert trainer.curves["ours"].notna().any()
            (said,) = trainer.events[trainer.events.kind == "note"].text
    finally:
        logger.removeHandler(handler)
    assert "'mine' raised RuntimeError: no luck" in said
    assert messages == [said]


@two()
async def test_the_keys_of_a_dict_are_columns_of_history_and_curves(c, s, a, b):
    torchmetrics = pytest.importorskip("torchmetrics")
    collection = torchmetrics.MetricCollection(
        {
            "accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES),
            "recall": torchmetrics.Recall(task="multiclass", num_classes=CLASSES),
        }
    )

    def several(prediction, y):
        return {"mean": prediction.mean(), "rows": len(y)}

    metrics = {"all": collection, "mine": several}
    names = {"all.accuracy", "all.recall", "mine.mean", "mine.rows"}
    arguments = classes(metrics=metrics, detector="optwin")
    watch = lambda report: 1 - report.metrics["all.accuracy"]  # noqa: E731
    async with ta.Trainer(c, **arguments, watch=watch) as trainer:
        reports = await train_all(trainer, class_data(40))
        assert all(set(report.metrics) == names for report in reports)
        assert names <= set(trainer.history.columns)
        assert "mine" not in trainer.history.columns
        mean = np.mean([report.metrics["all.accuracy"] for report in reports])
        curves = trainer.curves
        weights = np.diff(curves.samples, prepend=0)
        known = weights > 0
        found = np.average(curves["all.accuracy"][known], weights=weights[known])
        assert found == pytest.approx(mean)
        assert (curves["mine.rows"][known] == 16).all()
        scores = await trainer.evaluate(class_data(5, seed=9))
        assert names <= set(scores)
        assert trainer._repr_html_()
        counts = trainer.session.status.state()["metrics"]
        assert names <= set(counts)


@pytest.mark.parametrize("watched", ["raises", "NaN", "no such key"])
def test_what_is_watched_for_drift_never_decides_what_is_learned(watched):
    watch = {
        "raises": lambda report: 1 / 0,
        "NaN": lambda report: float("nan"),
        "no such key": lambda report: report.metrics["nothing"],
    }[watched]

    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes(detector="adwin", watch=watch)) as trainer:
            reports = await train_all(trainer, class_data(20))
            assert all(report.learned for report in reports)
            (said,) = trainer.events[trainer.events.kind == "note"].text
            assert "cannot be watched" in said

    run()


def test_a_collection_is_watched_by_one_of_its_keys():
    torchmetrics = pytest.importorskip("torchmetrics")
    from tensair_dask.drift.watch import as_watch

    report = ta.Report(0, 0.5, {"all.error": 0.25, "all.accuracy": 0.75}, 8)
    collection = torchmetrics.MetricCollection(
        {
            "error": torchmetrics.MeanSquaredError(),
            "accuracy": torchmetrics.Accuracy(task="binary"),
        }
    )
    assert as_watch("all.error", {"all": collection})(report) == 0.25
    with pytest.raises(errors.ConfigurationError, match="larger is better"):
        as_watch("all.accuracy", {"all": collection})
    with pytest.raises(errors.ConfigurationError, match=r"'all\.error'"):
        as_watch("all", {"all": collection})


@one()
async def test_in_one_pass_what_no_report_can_carry_is_learned_and_not_scored(c, s, a):
    river = pytest.importorskip("river.metrics", reason="needs river")

    class Normal(Named):
        def forward(self, x):
            return torch.distributions.Normal(self.layer(x), 1.0)

    def likelihood(output, y):
        return -output.log_prob(y[:, None].float()).mean()

    arguments = classes(model=Normal, loss=likelihood, keep_predictions=True)
    async with ta.Trainer(c, **arguments) as trainer:
        source = Stream(asynchronous=True)
        scores = ta.Prequential(river.Accuracy())
        node = source.predict_then_train(trainer, scores)
        reports = node.sink_to_list()
        for item in class_data(3):
            await source.emit(item)
        await trainer.drain()
        assert [report.learned for report in reports] == [True] * 3
        assert (scores.records, node.unscored) == (0, 48)


@pytest.mark.parametrize("one_pass", [True, False])
def test_which_of_several_outputs_is_scored_is_to_be_said(one_pass, caplog):
    river = pytest.importorskip("river.metrics", reason="needs river")

    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **named(keep_predictions=one_pass)) as trainer:
            source, other = Stream(asynchronous=True), Stream(asynchronous=True)
            scores, others = (ta.Prequential(river.Accuracy()) for _ in range(2))
            node = source.predict_then_train(trainer, scores)
            other.predict_then_train(
                trainer, others, decide=lambda output: output.logits.argmax(1)
            )
            for item in class_data(3):
                await source.emit(item)
                await other.emit(item)
            await trainer.drain()
            assert (scores.records, node.unscored) == (0, 48)
            assert others.records == 48

    run()
    assert "several outputs, in a Output" in caplog.text
    assert "decide=lambda output: output.logits.argmax(1)" in caplog.text
