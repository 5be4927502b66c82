"""Stream.predict_then_train: a prediction now, learning when the labels have come."""

from __future__ import annotations

import asyncio
import functools
import logging

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from torch import nn
from tornado.ioloop import IOLoop
from trainers import Slow, until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors

metrics = pytest.importorskip("river.metrics", reason="needs river")

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)


@pytest.fixture
def slow():
    Slow.gate.clear()
    Slow.entered.clear()
    yield Slow
    Slow.gate.set()


def accuracies(**options):
    return ta.Prequential(metrics.Accuracy(), window=64, **options)


def accuracy(scores, whose="model", horizon="whole"):
    return scores.get()[whose]["Accuracy"][horizon]


def hits(data, reports):
    """Whether each record was predicted rightly, in the order of the stream."""
    by_index = {report.index: report.prediction for report in reports}
    return np.concatenate(
        [by_index[at].argmax(1) == y for at, (_, y) in enumerate(data)]
    )


@pytest.mark.parametrize("one_pass", [True, False])
def test_every_mini_batch_is_predicted_scored_and_learned(one_pass):
    @two()
    async def run(c, s, a, b):
        data = class_data(150)
        scores = accuracies()
        arguments = classes(keep_predictions=one_pass)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            reports = source.predict_then_train(trainer, scores).sink_to_list()
            for item in data:
                await source.emit(item)
            await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(150))
        assert scores.records == 150 * 16
        right = hits(data, reports)
        assert accuracy(scores) == right.mean()
        assert accuracy(scores, horizon="window") == right[-64:].mean()
        # It learned, and no baseline can. Not asked of the window: the newest ones may
        # have been predicted by a replica that has not heard of the other yet.
        assert accuracy(scores) > 0.5
        assert accuracy(scores, "majority") < 0.45
        labels = np.concatenate([y for _, y in data])
        persistence = np.mean(labels[1:] == labels[:-1])
        assert accuracy(scores, "last label") == persistence

    run()


@two()
async def test_in_one_pass_no_prediction_is_asked_for(c, s, a, b):
    async with ta.Trainer(c, **classes(keep_predictions=True)) as trainer:
        asked = []
        trainer.session.inference.predict = asked.append
        source = Stream(asynchronous=True)
        scores = accuracies()
        source.predict_then_train(trainer, scores)
        for item in class_data(20):
            await source.emit(item)
        await trainer.drain()
        assert scores.records == 20 * 16
        assert asked == []


@two()
async def test_what_is_emitted_side_by_side_is_scored_in_order(c, s, a, b):
    data = class_data(120)
    for keep in (True, False):
        scores = accuracies()
        async with ta.Trainer(c, **classes(keep_predictions=keep)) as trainer:
            source = Stream(asynchronous=True)
            reports = source.predict_then_train(trainer, scores).sink_to_list()
            await asyncio.gather(*(source.emit(item) for item in data))
            await trainer.drain()
        right = hits(data, reports)
        assert accuracy(scores) == right.mean()
        assert accuracy(scores, horizon="window") == right[-64:].mean()


@two()
async def test_labels_that_come_late_are_learned_late(c, s, a, b):
    data = class_data(20)  # of 16 records each
    scores = accuracies()
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, scores, delay=40)
        reports = node.sink_to_list()
        refs = [RefCounter(loop=IOLoop.current()) for _ in data]
        for number, (item, ref) in enumerate(zip(data, refs, strict=True)):
            await source.emit(item, metadata=[{"ref": ref}])
            # Learned is what ended 40 records ago or more: 3 mini-batches wait.
            learned = max(0, number - 2)
            assert trainer.session.events.index == learned
            assert scores.records == learned * 16
            assert node.waiting == scores.waiting == (number + 1 - learned) * 16
        await trainer.drain()
        assert [ref.count for ref in refs] == [0] * 17 + [1] * 3
        await node.flush()
        await trainer.drain()
        assert [ref.count for ref in refs] == [0] * 20
    assert (node.waiting, scores.waiting, scores.forgotten) == (0, 0, 0)
    assert len(reports) == 20
    assert accuracy(scores) == hits(data, reports).mean()
    # When a record comes, the newest label that has come is that of 40 before it.
    labels = np.concatenate([y for _, y in data])
    assert accuracy(scores, "last label") == np.mean(labels[40:] == labels[:-40])


@two()
async def test_a_prediction_is_of_the_model_that_knows_no_later_label(c, s, a, b):
    data = class_data(12)
    async with ta.Trainer(c, **classes(replicas=1)) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, delay=64)
        reports = node.sink_to_list()
        versions = []
        for x, y in data:
            versions.append((await trainer.predict(x, details=True)).version)
            await source.emit((x, y))
            await trainer.drain()
        assert versions == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
        await node.flush()
        await trainer.drain()
        fresh = await ta.Trainer(c, **classes(replicas=1))
        for (x, _), report in list(zip(data, reports, strict=True))[:4]:
            expected = await fresh.predict(x)
            assert np.allclose(report.prediction, expected, atol=1e-6)
        assert not np.allclose(reports[11].prediction, await fresh.predict(data[11][0]))
        await fresh.close()


@two()
async def test_labels_that_come_with_a_record_are_learned_before_it_is_predicted(
    c, s, a, b
):
    async with ta.Trainer(c, **classes()) as trainer:
        calls = []
        feed, ask = trainer.session.intake.feed, trainer.session.inference.predict

        def fed(*args):
            calls.append("learn")
            return feed(*args)

        def asked(x):
            calls.append("predict")
            return ask(x)

        trainer.session.intake.feed, trainer.session.inference.predict = fed, asked
        source = Stream(asynchronous=True)
        source.predict_then_train(trainer, delay=4)
        for _ in range(3):
            await source.emit((X, Y))
        await trainer.drain()
    assert calls == ["predict", "learn", "predict", "learn", "predict"]


@two()
async def test_a_delay_in_time_goes_by_the_moments_of_the_items(c, s, a, b):
    scores = accuracies()
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(
            trainer,
            scores,
            delay="2h",
            collate=lambda item: (item["x"], item["y"]),
            moment=lambda item: item["time"],
        )
        waiting = []
        for hour in (0, 1, 2, 3, 9):
            time = np.datetime64("2013-01-01T00") + np.timedelta64(hour, "h")
            await source.emit({"x": X, "y": Y, "time": time})
            waiting.append(node.waiting // 4)
        assert waiting == [1, 2, 2, 2, 1]
        await source.emit({"x": X, "y": Y})  # without a time: refused
        await node.flush()
        await trainer.drain()
        (letter,) = trainer.dead_letters
        assert "KeyError" in str(letter.error)
    assert scores.records == 20


@pytest.mark.parametrize("options", [{}, {"delay": 30}, {"keep": True}], ids=repr)
def test_bad_items_leave_the_stream_running(options):
    options = dict(options)

    @two()
    async def run(c, s, a, b):
        arguments = classes(keep_predictions=options.pop("keep", False))
        scores = accuracies()
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            node = source.predict_then_train(trainer, scores, **options)
            reports = node.sink_to_list()
            nan = np.full_like(X, np.nan)
            items = [(X, Y), None, (nan, Y), "text", (X[:, :1], Y), (X, Y), (X, Y)]
            refs = [RefCounter(loop=IOLoop.current()) for _ in items]
            for item, ref in zip(items, refs, strict=True):
                await source.emit(item, metadata=[{"ref": ref}])
            await node.flush()
            await trainer.drain()
            assert [ref.count for ref in refs] == [0] * len(items)
            refused = sorted(type(e.error).__name__ for e in reports if e.error)
        assert refused == ["BatchError", "BatchError", "NonFiniteError", "ShapeError"]
        assert len(trainer.dead_letters) == 4
        assert (scores.records, scores.unmatched, scores.waiting) == (12, 0, 0)
        assert node.unscored == (0 if node._one_pass else 8)

    run()


@two()
async def test_predictions_that_cannot_be_scored_are_counted(c, s, a, b):
    caught = logging.getLogger("tensair_dask.coordinator.run_events")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    caught.addHandler(handler)
    try:
        for keep in (False, True):
            scores = accuracies()
            async with ta.Trainer(c, **classes(keep_predictions=keep)) as trainer:
                source = Stream(asynchronous=True)
                node = source.predict_then_train(
                    trainer, scores, decide=lambda output: output[:, 0] / 0.3
                )
                reports = node.sink_to_list()
                for item in class_data(5, samples=4):
                    await source.emit(item)
                await trainer.drain()
            assert len(reports) == 5
            assert (scores.records, node.unscored) == (0, 20)
    finally:
        caught.removeHandler(handler)
    messages = [each for each in said if "are not scored" in each]
    assert len(messages) == 2
    assert "take labels" in messages[0]


@two()
async def test_decide_makes_probabilities_of_logits(c, s, a, b):
    def logistic(output):
        return 1 / (1 + np.exp(-output))

    scores = ta.Prequential(
        {"log loss": metrics.LogLoss(), "accuracy": metrics.Accuracy()}
    )
    arguments = classes(
        model=lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)),
        loss=nn.functional.binary_cross_entropy_with_logits,
    )
    data = [(x, (x[:, 0] > 0).astype("float32")) for x, _ in class_data(100)]
    async with ta.Trainer(c, **arguments) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, scores, decide=logistic)
        reports = node.sink_to_list()
        for item in data:
            await source.emit(item)
        await trainer.drain()
    chances = np.concatenate([logistic(report.prediction) for report in reports])
    order = np.concatenate([data[report.index][1] for report in reports])
    expected = -np.log(np.where(order, chances, 1 - chances)).mean()
    got = scores.get()["model"]
    assert got["log loss"]["whole"] == pytest.approx(expected, rel=1e-4)
    assert got["accuracy"]["whole"] > 0.7


@two()
async def test_no_more_wait_for_their_labels_than_may(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(
            trainer, delay="1 day", moment=lambda item: 0.0, pending=10
        )
        reports = node.sink_to_list()
        for _ in range(4):
            await source.emit((X, Y))
        assert node.waiting == 8
        assert ["pending=10" in str(report.error) for report in reports] == [True] * 2
        assert len(trainer.dead_letters) == 2
        await node.flush()
        await trainer.drain()
        assert len(reports) == 4


def test_emit_waits_while_no_replica_has_room(slow):
    @two()
    async def run(c, s, a, b):
        async def answered(x):
            return np.zeros((len(x), 3), "float32")  # no question waits for the step

        arguments = classes(model=slow, replicas=1, max_in_flight=1)
        async with ta.Trainer(c, **arguments) as trainer:
            trainer.session.inference.predict = answered
            source = Stream(asynchronous=True)
            source.predict_then_train(trainer, accuracies(), delay=4)
            await source.emit((X, Y))  # waits for its labels
            await source.emit((X, Y))  # the first one is learned
            await until(slow.entered.is_set)
            third = asyncio.ensure_future(source.emit((X, Y)))
            fourth = asyncio.ensure_future(source.emit((X, Y)))
            await until(lambda: trainer.session.dispatcher.waiting)
            assert not third.done()
            assert not fourth.done()
            slow.gate.set()
            await asyncio.gather(third, fourth)
            await trainer.drain()

    run()


@two()
async def test_an_emit_after_the_trainer_is_closed_raises(c, s, a, b):
    for keep in (True, False):
        trainer = await ta.Trainer(c, **classes(keep_predictions=keep))
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, accuracies(), delay=None)
        await source.emit((X, Y))
        await trainer.close()
        with pytest.raises(errors.TrainerClosedError):
            await source.emit((X, Y))
        assert node.unscored == 0


@two()
async def test_options_that_are_not_allowed_are_refused(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        for options, said in [
            ({"delay": "2h"}, "moment="),
            ({"delay": -1}, "delay='2h'"),
            ({"delay": 500, "pending": 100}, "pending="),
            ({"scores": accuracies(delay=5)}, "a delay of its own"),
            ({"scores": "accuracy"}, "scores='accuracy' is not allowed; give a Preq"),
            ({"scores": metrics.Accuracy()}, "give a Prequential"),
            ({"delay": "2h", "moment": 3}, "moment=3 is not allowed; give a function"),
            ({"decide": "argmax"}, "decide='argmax' is not allowed"),
            ({"collate": (X, Y)}, "collate="),
            ({"pending": 10.5}, "pending=10.5 is not allowed; give a whole number"),
        ]:
            with pytest.raises(errors.ConfigurationError) as caught:
                source.predict_then_train(trainer, **options)
            assert said in str(caught.value)
        for given in ("x", None, ta.Trainer, c):
            with pytest.raises(errors.ConfigurationError, match="give an open Trainer"):
                source.predict_then_train(given)
        assert not trainer.session.intake.nodes
        assert not source.downstreams


def test_a_synchronous_script():
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes()) as trainer,
    ):
        source = Stream()
        scores = accuracies()
        node = source.partition(8).predict_then_train(trainer, scores, delay=20)
        reports = node.sink_to_list()
        for x, y in class_data(10):
            for record in zip(x, y, strict=True):
                source.emit(record)
            assert "model" in repr(scores)
        node.flush()
        trainer.drain()
        assert scores.records == 160
        assert len(reports) == 20


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("delay", [0, "1h"])
def test_what_decides_may_raise_what_ends_a_program(error, delay):
    @two()
    async def run(c, s, a, b):
        raising = [False]

        def decide(output):
            if raising[0]:
                raise error
            return output.argmax(1)

        moments = iter(range(0, 1_000_000, 10_000))

        def moment(item):
            time = next(moments)
            if raising[0] and delay:
                raise error
            return time

        options = {"moment": moment} if delay else {}
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            node = source.predict_then_train(
                trainer, accuracies(), decide=decide, delay=delay, **options
            )
            reports = node.sink_to_list()
            for raises in (False, True, False):
                raising[0] = raises
                await source.emit((X, Y))
            await node.flush()
            await trainer.drain()
        refused = [each for each in reports if each.error is not None]
        assert len(reports) == 3
        assert len(refused) == (1 if delay else 0)

    run()


@pytest.mark.parametrize("delay", [None, 24, "12h"])
def test_the_last_label_of_a_stream_in_mini_batches_is_persistence(delay):
    """Beside an oracle that is computed record by record."""

    @two()
    async def run(c, s, a, b):
        random = np.random.default_rng(0)
        y = 5 * np.sin(np.arange(640) / 24 * 2 * np.pi) + random.normal(size=640)
        x = random.normal(size=(640, FEATURES)).astype("float32")
        start = np.datetime64("2013-01-01T00")

        def hours(item):
            return start + item[2].astype("timedelta64[h]")

        scores = ta.Prequential(metrics.MAE())
        arguments = classes(
            model=lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)),
            loss=nn.functional.mse_loss,
        )
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            node = source.predict_then_train(
                trainer,
                scores,
                delay=delay,
                collate=lambda item: (item[0], item[1].astype("float32")),
                moment=hours if isinstance(delay, str) else None,
            )
            for at in range(0, 640, 64):
                rows = slice(at, at + 64)
                await source.emit((x[rows], y[rows], np.arange(at, at + 64)))
            await node.flush()
            await trainer.drain()
        assert (scores.records, node.unscored) == (640, 0)
        back = {None: 1, 24: 24, "12h": 12}[delay]
        persistence = np.abs(y[back:] - y[:-back]).mean()
        got = scores.get()["last label"]["MAE"]["whole"]
        assert got == pytest.approx(persistence, rel=1e-5)

    run()


@pytest.mark.parametrize("samples", [4, 7])
def test_records_that_wait_for_their_labels_are_reported_and_not_learned(
    samples, caplog
):
    @two()
    async def run(c, s, a, b):
        caplog.set_level(logging.WARNING)
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            node = source.predict_then_train(trainer, delay=1000)
            reports = node.sink_to_list()
            for item in class_data(3, samples=samples):
                await source.emit(item)
            for _ in range(2):
                await trainer.drain()
            assert node.waiting == 3 * samples
            assert not reports
            said = [text for text in caplog.messages if "wait for their labels" in text]
            assert len(said) == 1
            assert f"{3 * samples} records" in said[0]
            assert "flush()" in said[0]
        at_the_end = [text for text in caplog.messages if "were not learned" in text]
        assert len(at_the_end) == 1
        assert sum("their labels" in text for text in trainer.events.text) == 2

    run()


@two()
async def test_nothing_is_said_where_all_labels_have_come(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, delay=1000)
        for item in class_data(3):
            await source.emit(item)
        await node.flush()
        await trainer.drain()
    assert not [text for text in trainer.events.text if "labels" in text]


def one_logit():
    return nn.Linear(FEATURES, 1)


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, 3)

    def forward(self, x):
        return {"logits": self.linear(x), "half": x / 2}


def loss_by_name(output, y):
    return nn.functional.cross_entropy(output["logits"], y)


def loss_of_logit(output, y):
    target = (y[:, None] > 0).float()
    return nn.functional.binary_cross_entropy_with_logits(output, target)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("arguments", "decide"),
    [
        ({"model": one_logit, "loss": loss_of_logit}, "output > 0"),
        (
            {"model": ByName, "loss": loss_by_name},
            "output['logits'].argmax(1)",
        ),
    ],
)
def test_the_warning_for_unscorable_predictions_comes_once_with_a_decide_that_works(
    arguments, decide, keep
):
    @two()
    async def run(c, s, a, b):
        arguments_of = classes(**arguments, keep_predictions=keep)
        async with ta.Trainer(c, **arguments_of) as trainer:
            source = Stream(asynchronous=True)
            scores = ta.Prequential(metrics.Accuracy())
            node = source.predict_then_train(trainer, scores)
            for x, y in class_data(2):
                await source.emit((x, y))
            await trainer.drain()
            assert (scores.records, node.unscored) == (0, 32)
            reported = [each for each in trainer.events["text"] if "not scored" in each]
            assert len(reported) == 1
            assert f"decide=lambda output: {decide}" in reported[0]
            node.destroy()
            node = source.predict_then_train(
                trainer, scores, decide=lambda output: eval(decide)
            )
            for x, y in class_data(2):
                await source.emit((x, y % 2))
            await trainer.drain()
            assert (scores.records, node.unscored) == (32, 0)

    run()
