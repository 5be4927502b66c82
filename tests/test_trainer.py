"""The trainer on a real cluster in one event loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import threading
import time
from typing import NamedTuple

import dask
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import (
    CLASSES,
    FEATURES,
    class_data,
    classes,
    expected_weight,
    linear,
    linear_data,
    mlp,
    spread,
    train_all,
)
from torch import nn
from trainers import Pair, Slow, until

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.batches.predictions import Prediction
from tensair_dask.exchange.wire import unpack

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)


@two()
async def test_it_learns(c, s, a, b):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, **classes(metrics=metrics)) as trainer:
        reports = await train_all(trainer, class_data(400))
        scores = await trainer.evaluate(class_data(5, seed=9))
        assert reports[0].loss > 0.9
        assert scores["loss"] < 0.4
        assert scores["accuracy"] > 0.85
        assert scores["samples"] == 5 * 16


@one()
async def test_every_mini_batch_is_scored_before_it_is_learned(c, s, a):
    data = class_data(60)
    torch.manual_seed(3)
    plain = mlp()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    async with ta.Trainer(c, **classes(seed=3, keep_predictions=True)) as trainer:
        reports = [await trainer.train(x, y) for x, y in data]
    for report, (x, y) in zip(reports, data, strict=True):
        prediction = plain(torch.from_numpy(x))
        loss = nn.functional.cross_entropy(prediction, torch.from_numpy(y))
        assert report.loss == pytest.approx(loss.item(), abs=1e-5)
        assert np.allclose(report.prediction, prediction.detach(), atol=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@one()
async def test_a_report_describes_its_step(c, s, a):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, **classes(metrics=metrics)) as trainer:
        report = await trainer.train(X, Y)
        assert report.index == 0
        assert report.samples == 4
        assert report.replica == a.address
        assert report.error is None
        assert 0 <= report.metrics["accuracy"] <= 1
        assert 0 < report.seconds < 5
        assert report.staleness == 0
        assert abs(report.time - time.time()) < 60
        frame = trainer.history
        assert frame["loss"].tolist() == [report.loss]
        assert frame["accuracy"].tolist() == [report.metrics["accuracy"]]


@two()
async def test_replicas_report_their_state(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(100))
        infos = trainer.replicas
        assert {info.address for info in infos} == {a.address, b.address}
        assert sum(info.steps for info in infos) == 100
        assert sum(info.samples for info in infos) == 400
        assert all(info.alive and info.version == 100 for info in infos)
        assert "2 of 2 replicas alive" in repr(trainer)


@two()
async def test_replicas_are_dask_actors_and_go_when_the_trainer_closes(c, s, a, b):
    async with ta.Trainer(c, **linear()):
        assert len(a.state.actors) == len(b.state.actors) == 1
    while a.state.actors or b.state.actors:
        await asyncio.sleep(0.01)


@two()
async def test_as_many_replicas_as_asked_for(c, s, a, b):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        assert len(trainer.replicas) == 1
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        assert len(trainer.replicas) == 3
        states = await trainer.state_dicts()
        assert len(states) == 3
        assert sum("#2" in name for name in states) == 1


@two()
async def test_two_trainers_share_a_cluster(c, s, a, b):
    async with (
        ta.Trainer(c, **linear()) as first,
        ta.Trainer(c, **classes()) as second,
    ):
        await asyncio.gather(
            train_all(first, linear_data(50)), train_all(second, class_data(50))
        )
        assert sum(info.steps for info in first.replicas) == 50
        assert sum(info.steps for info in second.replicas) == 50


@one()
async def test_predictions_come_as_the_inputs_were_given(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        array = await trainer.predict(X)
        tensor = await trainer.predict(torch.from_numpy(X))
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        assert array.shape == tensor.shape == (4, CLASSES)
        assert np.allclose(array, tensor)


@pytest.fixture
def slow():
    Slow.gate.clear()
    Slow.entered.clear()
    yield Slow
    Slow.gate.set()


def test_a_step_does_not_block_the_workers_event_loop(slow):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes(model=slow)) as trainer:
            learning = asyncio.ensure_future(trainer.train(X, Y))
            await until(slow.entered.is_set)
            assert await c.submit(sum, [1, 2]) == 3  # the worker still works
            assert not learning.done()
            slow.gate.set()
            assert (await learning).error is None

    run()


def test_a_prediction_goes_before_the_mini_batches_that_wait(slow):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes(model=slow)) as trainer:
            learning = [
                asyncio.ensure_future(trainer.train(x, y)) for x, y in class_data(2)
            ]
            await until(slow.entered.is_set)
            predicting = asyncio.ensure_future(trainer.predict(X))
            handle = trainer.session.replicas.handles[0]
            replica = a.state.actors[handle.key]
            await until(lambda: replica.thread.calls)
            slow.gate.set()
            await predicting
            await asyncio.gather(*learning)

    run()


def test_a_stopped_replica_stops_the_source(slow):
    @one()
    async def run(c, s, a):
        arguments = classes(model=slow, max_in_flight=3)
        async with ta.Trainer(c, **arguments) as trainer:
            tasks = [
                asyncio.ensure_future(trainer.train(x, y)) for x, y in class_data(20)
            ]
            await until(slow.entered.is_set)
            lane = trainer.session.dispatcher.lanes[0]
            await until(lambda: trainer.backlog == 20)
            assert lane.batches <= 3
            assert len(trainer.session.dispatcher.waiting) >= 17
            slow.gate.set()
            reports = await asyncio.gather(*tasks)
            assert sorted(report.index for report in reports) == list(range(20))

    run()


@one(config={"tensair.timeouts.drain": "50ms"})
async def drain_with_a_stopped_replica(c, s, a):
    trainer = await ta.Trainer(c, **classes(model=Slow))
    learning = asyncio.ensure_future(trainer.train(X, Y))
    await until(Slow.entered.is_set)
    with pytest.raises(errors.TensairTimeoutError, match=r"timeouts\.drain"):
        await trainer.drain()
    Slow.gate.set()
    await learning
    await trainer.close()


def test_draining_is_bounded(slow):
    drain_with_a_stopped_replica()


@one()
async def test_torch_threads_follow_the_worker(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        replica = a.state.actors[trainer.session.replicas.handles[0].key]
        assert await replica.thread.call(torch.get_num_threads) == a.state.nthreads


@two()
async def test_several_inputs_and_tensors(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Pair)) as trainer:
        for x in ((X, X), {"left": X, "right": X}, X, (torch.from_numpy(X),)):
            report = await trainer.train(x, Y)
            assert report.error is None
        assert (await trainer.predict({"left": X})).shape == (4, CLASSES)


@two()
async def test_buffers_stay_with_their_replica(c, s, a, b):
    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))

    async with ta.Trainer(c, **classes(model=build)) as trainer:
        await train_all(trainer, class_data(50))
        steps = [info.steps for info in trainer.replicas]
        states = await trainer.state_dicts()
        seen = [int(state["0.num_batches_tracked"]) for state in states.values()]
        assert sorted(seen) == sorted(steps)
        first, second = states.values()
        assert torch.allclose(first["1.weight"], second["1.weight"], atol=1e-4)


@two()
async def test_bfloat16_parameters_are_exchanged(c, s, a, b):
    def build() -> nn.Module:
        return nn.Linear(FEATURES, CLASSES).to(torch.bfloat16)

    async with ta.Trainer(c, **classes(model=build)) as trainer:
        x = torch.zeros(4, FEATURES, dtype=torch.bfloat16)
        for _ in range(20):
            assert (await trainer.train(x, Y)).error is None
        await trainer.drain()
        states = await trainer.state_dicts()
        assert all(state["weight"].dtype == torch.bfloat16 for state in states.values())


@two()
async def test_a_bad_mini_batch_changes_nothing_and_lies_in_the_dead_letters(
    c, s, a, b
):
    nan = X.copy()
    nan[1, 1] = np.nan
    bad = [
        (nan, Y, errors.NonFiniteError),
        (X, np.full((4, CLASSES), np.inf, "float32"), errors.NonFiniteError),
        (X, np.full((4, CLASSES), np.nan, "float32"), errors.NonFiniteError),
        (np.full_like(X, np.inf), Y, errors.NonFiniteError),
        (X[:, :2], Y, errors.ShapeError),
        (X.astype("float64"), Y, errors.DtypeError),
        (X, Y.astype("float32"), errors.DtypeError),
        (X, Y + 99, errors.LossError),
        (X, Y[:2], errors.ShapeError),
        (X[:0], Y[:0], errors.ShapeError),
        (np.array(["a"] * 4), Y, errors.DtypeError),
        (X.astype("longdouble"), Y, errors.DtypeError),
        (None, Y, errors.DtypeError),
    ]
    async with ta.Trainer(c, **classes()) as trainer:
        assert (await trainer.train(X, Y)).error is None
        await trainer.drain()
        before = await trainer.state_dict()
        for x, y, kind in bad:
            report = await trainer.train(x, y)
            assert type(report.error) is kind
            assert np.isnan(report.loss)
            with pytest.raises(kind):
                report.raise_for_error()
        await trainer.drain()
        after = await trainer.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert [type(letter.error) for letter in trainer.dead_letters] == [
            kind for *_, kind in bad
        ]
        kept = trainer.dead_letters[0].item[0]
        assert np.array_equal(kept, nan, equal_nan=True)
        assert trainer.dead_letters[0].index == 1
        assert (await trainer.train(X, Y)).error is None
        assert all(info.alive for info in trainer.replicas)


@one()
async def test_inputs_in_another_structure_than_before_are_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        assert (await trainer.train(X, Y)).error is None
        for x in ((X, X), {"no_such_argument": X}):
            report = await trainer.train(x, Y)
            with pytest.raises(errors.ShapeError, match=r"Learned before: x \(n, 6\)"):
                report.raise_for_error()


@two()
async def test_a_bad_mini_batch_among_good_ones_is_refused_alone(c, s, a, b):
    data = class_data(50)
    data[20][0][3, 2] = np.nan
    async with ta.Trainer(c, **classes()) as trainer:
        reports = await train_all(trainer, data)
        assert [r.index for r in reports if r.error is not None] == [20]
        assert sum(info.steps for info in trainer.replicas) == 49


@one()
async def test_a_prediction_that_cannot_be_made_raises(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        with pytest.raises(errors.ShapeError, match=r"x \(4, 2\) float32"):
            await trainer.predict(X[:, :2])
        with pytest.raises(errors.ShapeError, match=r"x \(0, 2\) float32"):
            await trainer.predict(X[:0, :2])
        assert (await trainer.predict(X[:0])).shape == (0, CLASSES)


@one()
async def test_a_prediction_has_the_version_of_its_model_and_its_age(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        first = await trainer.predict(X, details=True)
        assert isinstance(first, ta.Prediction)
        assert first.version == 0
        assert first.replica == a.address
        assert first.value.shape == (4, CLASSES)
        assert (await trainer.predict(X, details=True)).age > first.age > 0

        start = time.monotonic()
        assert (await trainer.train(X, Y)).error is None
        after = await trainer.predict(X, details=True)
        assert after.version == 1
        assert 0 < after.age < time.monotonic() - start
        assert not np.allclose(first.value, after.value)

        refused = await trainer.train(X[:, :2], Y)  # changes nothing
        assert refused.error is not None
        last = await trainer.predict(X, details=True)
        assert last.version == 1
        assert last.age > after.age


@two()
async def test_gradients_of_a_peer_make_a_model_young_again(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        block = Block.join(trainer.run_id, [MiniBatch.of(X)])
        start = time.monotonic()
        await trainer.train(X, Y)  # on one of the two
        await trainer.drain()
        for handle in trainer.session.replicas.handles:
            answer = Prediction(**unpack(await handle.call("predict", block)))
            assert answer.version == 1
            assert 0 < answer.age < time.monotonic() - start
            assert answer.replica == handle.place.address


class Scores(NamedTuple):
    best: torch.Tensor
    all: torch.Tensor


class Answering(torch.nn.Module):
    """Returns what it is told to, made of its scores."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.layer = mlp()
        self.answer = answer

    def forward(self, x: torch.Tensor):
        return self.answer(self.layer(x))


@one()
async def test_a_prediction_may_be_a_structure(c, s, a):
    def answer(scores):
        return {"scores": Scores(scores.amax(1), scores), "kind": "mlp", "at": 3}

    arguments = classes(model=functools.partial(Answering, answer))
    async with ta.Trainer(c, **arguments) as trainer:
        got = await trainer.predict(X)
    best, scores = got["scores"]
    np.testing.assert_array_equal(best, scores.max(1))
    assert (got["kind"], got["at"]) == ("mlp", 3)


@one()
async def test_a_prediction_that_does_not_travel_says_what_does(c, s, a):
    arguments = classes(model=functools.partial(Answering, lambda scores: {scores}))
    async with ta.Trainer(c, **arguments) as trainer:
        with pytest.raises(
            errors.ModelError, match=r"builtins\.set at .*does not travel"
        ):
            await trainer.predict(X)


@one()
async def test_one_record_is_given_and_answered_without_the_batch_axis(c, s, a):
    row = class_data(1)[0][0][0]
    async with ta.Trainer(c, **classes()) as trainer:
        (expected,) = await trainer.predict(row[None])
        array = await trainer.predict_one(row)
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, expected)
        assert np.array_equal(await trainer.predict_one(row.tolist()), expected)
        tensor = await trainer.predict_one(torch.from_numpy(row))
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(tensor, expected)
        await trainer.train(X, Y)
        details = await trainer.predict_one(row, details=True)
        assert details.version == 1
        assert details.value.shape == (CLASSES,)


@one()
async def test_one_record_of_several_inputs_and_outputs(c, s, a):
    async with ta.Trainer(c, **classes(model=Pair)) as trainer:
        answer = await trainer.predict_one({"left": X[0], "right": X[0]})
        assert np.array_equal(answer, (await trainer.predict((X, X)))[0])
        assert np.array_equal(answer, await trainer.predict_one((X[0], X[0])))
    async with ta.Trainer(c, **classes(model=Heads, loss=both)) as trainer:
        answer = await trainer.predict_one(np.zeros((3, 8, 8), "float32"))
        assert answer["kind"].shape == (CLASSES,)
        assert answer["size"].shape == ()


class Whole(nn.Module):
    """Says one thing of all records together."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sum(0)


@one()
async def test_one_record_that_cannot_be_predicted_says_why(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        for record, kind, words in [
            (X[0, :2], errors.ShapeError, r"x \(1, 2\) float32"),
            ([0.5, 1.5], errors.ShapeError, r"x \(1, 2\) float32"),
            (X[0].astype("float64"), errors.DtypeError, r"astype\('float32'\)"),
            ("text", errors.DtypeError, "numbers and booleans"),
            (None, errors.DtypeError, "numbers and booleans"),
            ([[0.5], [1.5, 2.5]], errors.ShapeError, "cannot be made an array"),
            ((), errors.ShapeError, "holds no array"),
            (((X[0], X[0]), X[0]), errors.ShapeError, "one level"),
        ]:
            with pytest.raises(kind, match=words):
                await trainer.predict_one(record)
    async with ta.Trainer(c, **classes(model=Whole)) as trainer:
        assert (await trainer.predict(X)).shape == (CLASSES,)
        with pytest.raises(errors.ShapeError, match=r"output has shape \(3,\)"):
            await trainer.predict_one(X[0])


class Stepwise(nn.Module):
    """Takes a permit of the test for each mini-batch that it learns."""

    permits = threading.Semaphore(0)
    entered = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            Stepwise.entered.set()
            Stepwise.permits.acquire(timeout=30)
        return self.layer(x)


@one()
async def test_every_prediction_waits_behind_one_mini_batch_at_most(c, s, a):
    Stepwise.permits = threading.Semaphore(0)
    Stepwise.entered.clear()
    async with ta.Trainer(c, **classes(model=Stepwise)) as trainer:
        data = class_data(30)
        learning = [asyncio.ensure_future(trainer.train(x, y)) for x, y in data]
        await until(Stepwise.entered.is_set)
        asking = [
            asyncio.ensure_future(trainer.predict(X, details=True)) for _ in range(10)
        ]
        replica = a.state.actors[trainer.session.replicas.handles[0].key]
        await until(lambda: len(replica.thread.calls) == 10)
        Stepwise.permits.release()  # for the mini-batch that is being learned
        answers = await asyncio.gather(*asking)
        assert [answer.version for answer in answers] == [1] * 10
        Stepwise.permits.release(len(data))
        await asyncio.gather(*learning)


class Hesitant(nn.Module):
    """Waits in evaluation mode until the test lets it go."""

    gate = threading.Event()
    entered = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            Hesitant.entered.set()
            Hesitant.gate.wait(30)
        return self.layer(x)


@pytest.fixture
def hesitant():
    Hesitant.gate.clear()
    Hesitant.entered.clear()
    yield Hesitant
    Hesitant.gate.set()


def test_predictions_under_way_are_bounded_and_spread_over_the_replicas(hesitant):
    @two(config={"tensair.predictions.max-in-flight": 3})
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=hesitant)) as trainer:
            asking = [
                asyncio.ensure_future(trainer.predict(X, details=True))
                for _ in range(20)
            ]
            await until(lambda: sum(trainer.session.replicas.under_way.values()) == 6)
            assert sorted(trainer.session.replicas.under_way.values()) == [3, 3]
            hesitant.gate.set()
            answers = await asyncio.gather(*asking)
            assert {answer.replica for answer in answers} == {a.address, b.address}
            assert sum(trainer.session.replicas.under_way.values()) == 0

    run()


def test_a_prediction_whose_replica_is_lost_is_made_by_another(hesitant):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=hesitant)) as trainer:
            asking = asyncio.ensure_future(trainer.predict(X, details=True))
            await until(hesitant.entered.is_set)
            (key,) = (
                key
                for key, count in trainer.session.replicas.under_way.items()
                if count
            )
            asked, other = (a, b) if key in a.state.actors else (b, a)
            await asked.close()
            hesitant.gate.set()
            answer = await asyncio.wait_for(asking, 10)
            assert answer.replica == other.address

    run()


def test_predictions_that_wait_for_their_turn_end_when_the_trainer_closes(hesitant):
    @one(config={"tensair.predictions.max-in-flight": 1})
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=hesitant))
        asking = [asyncio.ensure_future(trainer.predict(X)) for _ in range(5)]
        await until(lambda: sum(trainer.session.replicas.under_way.values()) == 1)
        closing = asyncio.ensure_future(trainer.close())
        for each in asking:
            with pytest.raises(errors.TrainerClosedError):
                await asyncio.wait_for(each, 5)
        hesitant.gate.set()
        await closing

    run()


def test_a_prediction_that_takes_too_long_says_so(hesitant):
    @one(config={"tensair.timeouts.request": "50ms"})
    async def run(c, s, a):
        async with ta.Trainer(c, **classes(model=hesitant)) as trainer:
            with pytest.raises(errors.TensairTimeoutError, match=r"timeouts\.request"):
                await trainer.predict(X)
            hesitant.gate.set()
            assert all(info.alive for info in trainer.replicas)

    run()


@pytest.mark.parametrize("value", [0, "many"])
def test_a_bound_on_predictions_that_is_none_is_refused(value):
    @one(config={"tensair.predictions.max-in-flight": value})
    async def run(c, s, a):
        with pytest.raises(errors.ConfigurationError, match="whole number from 1"):
            ta.Trainer(c, **classes())

    run()


def broken() -> nn.Module:
    raise ValueError("no such file")


def broken_with(parameters: object) -> None:
    raise ValueError("no such rate")


def frozen() -> nn.Module:
    return mlp().requires_grad_(False)


class Elsewhere:
    """Needs a package that the workers do not have."""

    def __call__(self, prediction: object, y: object) -> None: ...

    def __reduce__(self):
        return importlib.import_module, ("no_such_package.inside",)


class Spoiled(Elsewhere):
    """Can be pickled, and not be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": broken}, errors.ModelError, "no such file"),
        ({"model": lambda: "text"}, errors.ModelError, "returned str"),
        ({"model": nn.Identity}, errors.ModelError, "nothing to train"),
        ({"optimizer": lambda p: None}, errors.OptimizerError, "NoneType"),
        ({"replicas": 0}, errors.ConfigurationError, "whole number from 1"),
        ({"device": "cuda:7"}, errors.ConfigurationError, "cuda:7"),
        ({"device": "no-such"}, errors.ConfigurationError, "no-such"),
        ({"loss": functools.partial(print, threading.Lock())}, None, "picklable"),
        ({"loss": Elsewhere()}, errors.PackageMissingError, "pip install no_such_pack"),
        ({"loss": Spoiled()}, errors.ModelError, "same versions of Python and torch"),
        ({"model": lambda: nn.LazyLinear(2)}, errors.ModelError, "lazy module"),
        ({"model": frozen}, errors.ModelError, "Leave at least one unfrozen"),
        ({"optimizer": broken_with}, errors.OptimizerError, "no such rate.*partial"),
        ({"optimizer": torch.optim.LBFGS}, errors.OptimizerError, "first-order"),
    ],
)
def test_a_trainer_that_cannot_be_built_says_why(arguments, error, words):
    @two()
    async def run(c, s, a, b):
        with pytest.raises(error or errors.ConfigurationError, match=words):
            await ta.Trainer(c, **classes(**arguments))
        await until(lambda: not (a.state.actors or b.state.actors))
        await until(no_replica_thread)

    gc.disable()  # what is left behind must not wait for it
    try:
        run()
    finally:
        gc.enable()


def no_replica_thread() -> bool:
    return not any("tensair-" in each.name for each in threading.enumerate())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"share": "weights"}, "'gradient' or 'update'"),
        ({"model": nn.Linear(2, 2)}, "built already"),
        ({"model": 3}, "cannot be called"),
        ({"loss": None}, "cross_entropy"),
        ({"optimizer": "sgd"}, "functools.partial"),
        ({"optimizer": {"tables": torch.optim.Adam}}, r"\['tables'\].*'sparse'"),
        ({"optimizer": {"dense": "sgd"}}, r"optimizer\['dense'\] is a str"),
        ({"staleness": "soon"}, "positive number of seconds"),
        ({"staleness": 0}, "staleness=0 was given"),
        ({"compression": "zip"}, "'bfloat16'"),
        ({"metrics": ["accuracy"]}, "map names to callables"),
        ({"max_in_flight": 0}, "whole number from 1"),
        ({"metrics": {"loss": print}}, r"\['loss'\].*Give other names"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(arguments, words):
    @one()
    async def run(c, s, a):
        with pytest.raises(errors.ConfigurationError, match=words):
            ta.Trainer(c, **classes(**arguments))

    run()


def test_something_else_than_a_client_is_refused():
    with pytest.raises(errors.ConfigurationError, match="connected Dask client"):
        ta.Trainer("tcp://127.0.0.1:8786", **classes())


@gen_cluster(client=True, nthreads=[], config={"tensair.timeouts.workers": "20ms"})
async def test_a_cluster_without_workers_is_refused_in_bounded_time(c, s):
    with pytest.raises(errors.NoWorkersError, match=r"cluster\.scale\(2\)"):
        await ta.Trainer(c, **classes())


@one()
async def test_a_closed_trainer_refuses_work(c, s, a):
    trainer = await ta.Trainer(c, **classes())
    await trainer.close()
    await trainer.close()
    for call in (
        lambda: trainer.train(X, Y),
        lambda: trainer.predict(X),
        lambda: trainer.predict_one(X[0]),
        lambda: trainer.evaluate([(X, Y)]),
        trainer.drain,
        trainer.state_dict,
        trainer.state_dicts,
        trainer.exchange_stats,
    ):
        with pytest.raises(errors.TrainerClosedError, match="Make a new one"):
            await call()
    assert trainer.history.empty


def test_a_client_whose_scheduler_died_is_refused():
    @gen_cluster(client=False, nthreads=[("127.0.0.1", 1)])
    async def run(s, a):
        async with Client(s.address, asynchronous=True, timeout=2) as c:
            await a.close()
            await s.close()
            await until(lambda: c.status != "running")
            with pytest.raises(errors.SchedulerLostError, match="new client"):
                await ta.Trainer(c, **classes())

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        run()


@two()
async def test_a_trainer_whose_client_was_closed_says_so(c, s, a, b):
    trainer = await ta.Trainer(c, **classes())
    await c.close()
    for call in (
        lambda: trainer.train(X, Y),
        lambda: trainer.predict(X),
        lambda: trainer.predict_one(X[0]),
        lambda: trainer.evaluate([(X, Y)]),
        trainer.drain,
        trainer.state_dict,
        trainer.state_dicts,
        trainer.exchange_stats,
    ):
        with pytest.raises(errors.SchedulerLostError, match="Keep the client open"):
            await call()
    await trainer.close()


def test_closing_answers_all_who_wait_and_is_bounded(slow):
    @one(config={"tensair.timeouts.close": "50ms"})
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=slow, max_in_flight=1))
        waiting = [
            asyncio.ensure_future(trainer.train(X, Y)),  # being learned
            asyncio.ensure_future(trainer.train(X, Y)),  # waits for room
            asyncio.ensure_future(trainer.drain()),
        ]
        await until(slow.entered.is_set)
        waiting.append(asyncio.ensure_future(trainer.state_dict()))
        waiting.append(asyncio.ensure_future(trainer.apply(lambda *of: None)))
        await until(lambda: trainer.session.dispatcher.waiting)
        await until(lambda: trainer.session.dispatcher.held)
        await trainer.close()
        for each in waiting:
            with pytest.raises(errors.TrainerClosedError):
                await asyncio.wait_for(each, 1)
        slow.gate.set()

    run()


@two()
async def test_closing_goes_to_its_end_though_it_is_interrupted(c, s, a, b):
    trainer = await ta.Trainer(c, **linear())
    await train_all(trainer, linear_data(20))
    closing = asyncio.ensure_future(trainer.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await trainer.close()
    await until(lambda: not (a.state.actors or b.state.actors))
    await until(no_replica_thread)


def test_a_start_that_is_interrupted_leaves_nothing_behind(slow):
    def hesitant() -> nn.Module:
        slow.entered.set()
        slow.gate.wait()
        return slow()

    @one()
    async def run(c, s, a):
        starting = asyncio.ensure_future(
            ta.Trainer(c, **classes(model=hesitant)).__aenter__()
        )
        await until(slow.entered.is_set)
        starting.cancel()
        slow.gate.set()
        await asyncio.wait([starting])
        assert starting.cancelled()
        await until(lambda: not a.state.actors)
        await until(no_replica_thread)

    run()


@two()
async def test_a_block_of_another_run_is_refused(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        (pair,) = linear_data(1)
        stale = Block.join("yesterday", [MiniBatch.of(*pair)])
        for function in ("learn", "predict"):
            with pytest.raises(errors.ClusterError, match="of run 'yesterday'"):
                await trainer.session.replicas.handles[0].call(function, stale)
        await trainer.drain()
        assert [info.steps for info in trainer.replicas] == [0, 0]


@two()
async def test_an_evaluation_that_cannot_be_made_says_why(c, s, a, b):
    torchmetrics = pytest.importorskip("torchmetrics")

    def fails(prediction, y):
        raise RuntimeError("no luck")

    # Two classes where the model has three.
    theirs = torchmetrics.Accuracy(task="multiclass", num_classes=2)
    for metric in (fails, theirs):
        async with ta.Trainer(c, **classes(metrics={"mine": metric})) as trainer:
            with pytest.raises(errors.MetricError, match="'mine' raised"):
                await trainer.evaluate([(X, Y)])
            report = await trainer.train(X, Y)  # it watches only: see test_scoring
            assert report.learned
            assert np.isnan(report.metrics["mine"])
    async with ta.Trainer(c, **classes()) as trainer:
        with pytest.raises(errors.BatchError, match=r"give pairs \(x, y\)"):
            await trainer.evaluate([3])
        with pytest.raises(errors.ShapeError, match=r"x \(4, 2\) float32"):
            await trainer.evaluate([(X[:, :2], Y)])


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ({"loss": torch.nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss"),
        (
            {"loss": functools.partial(torch.nn.MSELoss, reduction="sum")},
            "loss is the class MSELoss",
        ),
        ({"metrics": {"mine": torch.nn.L1Loss}}, r"metrics\['mine'\] is the class L1"),
    ],
)
def test_a_class_where_an_object_is_needed_is_refused_at_the_start(argument, name):
    @one()
    async def run(c, s, a):
        with pytest.raises(errors.ConfigurationError, match=name):
            ta.Trainer(c, **classes(**argument))

    run()


@one()
async def test_an_evaluation_of_nothing_is_an_error(c, s, a):
    held_out = (pair for pair in class_data(2))
    async with ta.Trainer(c, **classes()) as trainer:
        assert (await trainer.evaluate(held_out))["samples"] == 32
        for nothing in (held_out, [], {}, iter(())):
            with pytest.raises(errors.BatchError, match="without a single mini-batch"):
                await trainer.evaluate(nothing)
        (evaluations,) = (each._evaluations for each in a.state.actors.values())
        await until(lambda: not evaluations)


@one()
async def test_an_evaluation_that_is_broken_off_is_forgotten(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        (evaluations,) = (each._evaluations for each in a.state.actors.values())
        with pytest.raises(errors.BatchError):
            await trainer.evaluate([(X, Y), 3])
        await until(lambda: not evaluations)
        began = []

        def endless():
            while True:
                began.append(bool(evaluations))
                yield X, Y

        evaluating = asyncio.ensure_future(trainer.evaluate(endless()))
        await until(lambda: began and began[-1])
        evaluating.cancel()
        await asyncio.wait([evaluating])
        await until(lambda: not evaluations)


@two()
async def test_objects_of_torchmetrics_are_metrics(c, s, a, b):
    torchmetrics = pytest.importorskip("torchmetrics")
    metrics = {
        "theirs": torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES),
        "ours": ta.metrics.accuracy,
    }
    async with ta.Trainer(c, **classes(metrics=metrics)) as trainer:
        for report in await train_all(trainer, class_data(20)):
            assert report.metrics["theirs"] == pytest.approx(report.metrics["ours"])
        scores = await trainer.evaluate(class_data(5, seed=9))
        assert scores["theirs"] == pytest.approx(scores["ours"])


class Heads(nn.Module):
    """Two outputs of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.kind, self.size = nn.Linear(4, CLASSES), nn.Linear(4, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.filters(image).mean((2, 3))
        return {"kind": self.kind(seen), "size": self.size(seen)[:, 0]}


def both(prediction: dict[str, torch.Tensor], y: dict[str, torch.Tensor]):
    kind = nn.functional.cross_entropy(prediction["kind"], y["kind"])
    return kind + nn.functional.mse_loss(prediction["size"], y["size"])


@two()
async def test_several_outputs_and_targets_and_channels_last_filters(c, s, a, b):
    images = np.random.default_rng(0).random((4, 3, 8, 8), "float32")
    y = {"kind": Y, "size": np.ones(4, "float32")}
    arguments = classes(model=Heads, loss=both, keep_predictions=True)
    # So slow that it falls even if each replica learns all of its own alone.
    arguments["optimizer"] = functools.partial(torch.optim.SGD, lr=0.003)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = await train_all(trainer, [(images, y)] * 30)
        assert reports[-1].loss < reports[0].loss
        assert reports[0].prediction["kind"].shape == (4, CLASSES)
        assert (await trainer.predict(images))["size"].shape == (4,)
        assert spread(await trainer.state_dicts()) < 1e-5


@pytest.mark.parametrize("call", ["drain", "state_dicts", "exchange_stats"])
def test_a_call_to_all_replicas_leaves_out_those_that_are_lost(call):
    @two()
    async def run(c, s, a, b):
        trainer = await ta.Trainer(c, **linear())
        await train_all(trainer, linear_data(20))
        await b.close()
        answer = await asyncio.wait_for(getattr(trainer, call)(), 10)
        assert answer is None or list(answer) == [a.address]
        alive = {info.address: info.alive for info in trainer.replicas}
        assert alive == {a.address: True, b.address: False}
        await trainer.close()

    run()


def test_an_evaluation_whose_replica_is_lost_ends(slow):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=slow))
        learning = asyncio.ensure_future(trainer.train(X, Y))
        await until(slow.entered.is_set)
        evaluating = asyncio.ensure_future(trainer.evaluate([(X, Y)]))
        await asyncio.gather(a.close(), return_exceptions=True)
        with pytest.raises(errors.ReplicaLostError, match=r"leaves|had answered"):
            await asyncio.wait_for(evaluating, 10)
        with pytest.raises(errors.NoReplicasError):
            await asyncio.wait_for(learning, 10)
        await trainer.close()
        slow.gate.set()

    run()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_a_replica_that_cannot_go_on_leaves_and_the_others_do(c, s, *workers):
    def fail() -> None:
        raise RuntimeError("an exchange that fails")

    async with ta.Trainer(c, **classes()) as trainer:
        (replica,) = workers[0].state.actors.values()
        replica.exchange.publish = fail
        reports = await train_all(trainer, class_data(100))
        await until(lambda: sum(info.alive for info in trainer.replicas) == 2)
        reports += await train_all(trainer, class_data(20))
        assert all(report.error is None for report in reports)
        assert sorted(report.index for report in reports) == list(range(120))


@two()
async def test_a_trainer_survives_its_worker_being_closed(c, s, a, b):
    data = linear_data(100)
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, data[:50])
        await a.close()
        reports = await train_all(trainer, data[50:])
        assert all(report.error is None for report in reports)
        assert {report.replica for report in reports} == {b.address}
        alive = {info.address: info.alive for info in trainer.replicas}
        assert alive == {a.address: False, b.address: True}


@one()
async def test_when_the_last_worker_is_gone_work_is_refused(c, s, a):
    trainer = await ta.Trainer(c, **linear())
    (mini_batch,) = linear_data(1)
    await trainer.train(*mini_batch)
    await a.close()
    with pytest.raises(errors.NoReplicasError, match="Start workers"):
        await trainer.train(*mini_batch)
    with pytest.raises(errors.NoReplicasError, match="Start workers"):
        await trainer.predict(mini_batch[0])
    await trainer.close()


@two()
async def test_mini_batches_go_through_the_scheduler_where_the_client_cannot_connect(
    c, s, a, b, caplog
):
    with dask.config.set({"tensair.timeouts.connect": "0s"}):
        async with ta.Trainer(c, **linear()) as trainer:
            (told,) = (t for t in caplog.messages if "go through the scheduler" in t)
            assert a.address in told
            assert b.address in told
            reports = await train_all(trainer, linear_data(30))
            assert all(report.error is None for report in reports)


class Reassigning(nn.Module):
    """Puts another tensor in the place of its weight at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data = self.weight.data.clone()
        return x @ self.weight.T


@two()
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_a_parameter_that_leaves_the_exchange_is_brought_back(c, s, a, b, share):
    data = linear_data(100)
    async with ta.Trainer(c, **linear(model=Reassigning, share=share)) as trainer:
        await train_all(trainer, data)
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(
                state["weight"].double(), expected_weight(data), atol=1e-4
            )
        (said,) = [text for text in trainer.events["text"] if "in the place" in text]
        assert "'weight'" in said


# ---- what ends a program -------------------------------------------------------------


class Exits(nn.Module):
    """Raises what ends a program, in evaluation mode or when its state is taken."""

    error: BaseException = SystemExit(3)

    def __init__(self, where):
        super().__init__()
        self.inner = mlp()
        self.where = where

    def forward(self, x):
        if self.where == "forward" and not self.training:
            raise self.error
        return self.inner(x)

    def get_extra_state(self):
        if self.where == "state":
            raise self.error
        return torch.zeros(1)

    def set_extra_state(self, state):
        pass


@two()
async def test_predicting_and_evaluating_may_raise_what_ends_a_program(c, s, a, b):
    x, y = class_data(1)[0]
    model = functools.partial(Exits, "forward")
    async with ta.Trainer(c, **classes(model=model)) as trainer:
        with pytest.raises(errors.ForwardError, match="SystemExit: 3"):
            await trainer.predict(x)
        with pytest.raises(errors.TensairError, match="SystemExit: 3"):
            await trainer.evaluate([(x, y)])
        assert (await trainer.train(x, y)).error is None
        assert len(trainer.session.replicas.alive()) == 2


@one()
async def test_a_state_may_raise_what_ends_a_program(c, s, a):
    x, y = class_data(1)[0]
    model = functools.partial(Exits, "state")
    async with ta.Trainer(c, **classes(model=model)) as trainer:
        with pytest.raises(errors.TensairError, match="SystemExit: 3"):
            await trainer.state_dict()
        assert (await trainer.train(x, y)).error is None


class ExitsOnArrival:
    """Raises what ends a program where it is unpickled."""

    def __reduce__(self):
        return (_exit, ())

    def __call__(self, prediction, y):
        raise AssertionError("it never arrives")


def _exit():
    raise SystemExit(3)


@one()
async def test_what_exits_on_its_way_to_the_workers_is_refused_at_the_start(c, s, a):
    with pytest.raises(errors.ModelError, match=r"cannot be unpickled.*SystemExit: 3"):
        await ta.Trainer(c, **classes(loss=ExitsOnArrival()))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_a_call_is_given_may_raise_what_ends_a_program(error):
    x, y = class_data(1)[0]

    class NoArray:
        def __array__(self, *args, **kwargs):
            raise error

        def __reduce__(self):
            raise error

    def ends_early():
        yield x, y
        raise error

    unsendable = NoArray()

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes()) as trainer,
    ):
        calls = [
            lambda: trainer.evaluate(ends_early()),
            lambda: trainer.predict(NoArray()),
            lambda: trainer.apply(lambda model, optimizers: unsendable),
            lambda: trainer.train(NoArray(), y).raise_for_error(),
        ]
        for call in calls:
            with pytest.raises(errors.TensairError, match=type(error).__name__):
                call()
        assert trainer.train(x, y).error is None


@one()
async def test_what_a_trainer_was_given_cannot_be_set_later(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        for name in ("metrics", "loss", "clip_gradients", "checkpoint_every"):
            with pytest.raises(errors.ConfigurationError, match=f"trainer.{name} = "):
                setattr(trainer, name, None)
        for name in ("lr", "learning_rate", "weight_decay"):
            own = "lr" if name == "learning_rate" else name
            with pytest.raises(
                errors.ConfigurationError, match=rf"update\({own}=\.\.\.\)"
            ):
                setattr(trainer, name, 0.001)
        for name in ("optimizer", "model", "epochs", "batch_size", "scheduler"):
            with pytest.raises(errors.ConfigurationError, match="would change nothing"):
                setattr(trainer, name, 3)
        trainer.note = "one's own"
        assert trainer.note == "one's own"


@one()
async def test_a_mini_batch_in_place_of_a_list_of_them_is_not_read_by_its_rows(c, s, a):
    x, y = class_data(1, samples=2)[0]
    async with ta.Trainer(c, **classes()) as trainer:
        for given in ((x, y), [x, y], (torch.as_tensor(x), torch.as_tensor(y))):
            with pytest.raises(errors.BatchError, match=r"evaluate\(\[\(x, y\)\]\)"):
                await trainer.evaluate(given)
