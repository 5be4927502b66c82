"""The streamz nodes: reports, back-pressure, references, two event loops."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from torch import nn
from tornado.ioloop import IOLoop
from trainers import Pair, Slow, until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors

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


@pytest.mark.parametrize("node", ["train", "predict", "predict_then_train"])
def test_what_is_no_trainer_is_refused(node):
    with pytest.raises(errors.ConfigurationError, match=r"trainer='mine' .*an open"):
        getattr(Stream(), node)("mine")


@two()
async def test_every_mini_batch_gives_one_report(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        for item in class_data(200):
            await source.emit(item)
        await trainer.drain()
    assert sorted(report.index for report in reports) == list(range(200))
    assert all(report.error is None for report in reports)


@two()
async def test_a_stream_is_learned_although_nobody_reads_its_reports(c, s, a, b):
    trainer = await ta.Trainer(c, **classes())
    source = Stream(asynchronous=True)
    source.partition(2).train(trainer)
    gc.collect()
    for x, y in class_data(3):
        for record in zip(x, y, strict=True):
            await source.emit(record)
    await trainer.drain()
    assert sum(each.samples for each in trainer.replicas) == 3 * 16
    (node,) = trainer.session.intake.nodes
    node = weakref.ref(node)
    await trainer.close()
    gc.collect()
    assert node() is None


@two()
async def test_a_node_that_is_destroyed_is_let_go(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).destroy()
        assert not trainer.session.intake.nodes


@two()
async def test_partitions_of_records_are_mini_batches(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.partition(8).train(trainer).sink_to_list()
        for x, y in class_data(10):
            for record in zip(x, y, strict=True):
                await source.emit(record)
        await trainer.drain()
    assert [report.samples for report in reports] == [8] * 20


@two()
async def test_several_inputs_stream_too(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Pair)) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        await source.emit(((X, X), Y))
        await source.emit(({"left": X}, Y))
        records = Stream(asynchronous=True)
        records.train(trainer).sink(reports.append)
        await records.emit(tuple(((row, row), 0) for row in X))
        await trainer.drain()
    assert [report.error for report in reports] == [None] * 3


@two()
async def test_an_own_collate_takes_the_place_of_the_two_forms(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.train(trainer, collate=lambda table: (table["x"], table["y"]))
        reports = node.sink_to_list()
        await source.emit({"x": X, "y": Y})
        await source.emit({"x": X})
        await trainer.drain()
    assert reports[1].error is None or reports[0].error is None
    (refused,) = [report for report in reports if report.error is not None]
    assert isinstance(refused.error, errors.BatchError)
    assert "KeyError" in str(refused.error)


@two()
async def test_bad_items_leave_the_stream_running(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        nan = np.full_like(X, np.nan)
        for item in [(X, Y), None, (nan, Y), "text", (X[:, :1], Y), (X, Y)]:
            await source.emit(item)
        await trainer.drain()
    bad = {report.index: type(report.error) for report in reports if report.error}
    assert bad == {
        1: errors.BatchError,
        2: errors.NonFiniteError,
        3: errors.BatchError,
        4: errors.ShapeError,
    }
    items = {letter.index: letter.item for letter in trainer.dead_letters}
    assert items[3] == "text"
    assert np.isnan(items[2][0]).all()


def test_references_are_held_until_the_report_has_passed(slow):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=slow, replicas=1)) as trainer:
            source = Stream(asynchronous=True)
            passed = asyncio.Event()
            node = source.train(trainer)

            class Sink(Stream):
                def update(self, x, who=None, metadata=None):
                    return [passed.wait()]

            sink = Sink(node)
            released: list[int] = []
            ref = RefCounter(cb=lambda: released.append(1), loop=IOLoop.current())
            await source.emit((X, Y), metadata=[{"ref": ref}])
            await until(slow.entered.is_set)
            assert ref.count == 1
            slow.gate.set()
            await until(lambda: trainer.history.shape[0] == 1)
            assert ref.count == 1  # the report is still on its way downstream
            passed.set()
            await trainer.drain()
            await until(lambda: released)
            assert ref.count == 0
            assert released == [1]
            assert sink is not None

    run()


@two()
async def test_references_of_every_fate_are_released_once(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).sink(lambda report: None)
        refs = []
        bad = [None, (X[:, :1], Y), (np.full_like(X, np.nan), Y)]
        items = [*class_data(30), *bad]
        for item in items:
            refs.append(RefCounter(loop=IOLoop.current()))
            await source.emit(item, metadata=[{"ref": refs[-1]}])
        await trainer.drain()
        assert [ref.count for ref in refs] == [0] * len(items)


@two()
async def test_references_of_a_mini_batch_that_was_sent_again_are_released_once(
    c, s, a, b
):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).sink(lambda report: None)
        refs = [RefCounter(loop=IOLoop.current()) for _ in range(200)]
        for number, (item, ref) in enumerate(zip(class_data(200), refs, strict=True)):
            if number == 100:
                lane = trainer.session.dispatcher.lanes[0]
                await until(lambda lane=lane: lane.sent)
                trainer.session.dispatcher.lose(lane, OSError("its network broke"))
            await source.emit(item, metadata=[{"ref": ref}])
        await trainer.drain()
        assert trainer.session.dispatcher.redispatched > 0
        assert [ref.count for ref in refs] == [0] * 200


def test_references_stay_held_where_no_replica_is_left_to_learn(slow):
    @two()
    async def run(c, s, a, b):
        arguments = classes(model=slow, replicas=1)
        trainer = await ta.Trainer(c, **arguments)
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        ref = RefCounter(loop=IOLoop.current())
        await source.emit((X, Y), metadata=[{"ref": ref}])
        await until(slow.entered.is_set)
        trainer.session.dispatcher.lose(
            trainer.session.dispatcher.lanes[0], OSError("killed")
        )
        await until(lambda: reports)
        assert isinstance(reports[0].error, errors.NoReplicasError)
        assert np.array_equal(trainer.dead_letters[0].item[0], X)
        assert ref.count == 1
        slow.gate.set()
        await trainer.close()

    run()


@two()
async def test_a_listener_of_dead_letters_that_raises_stops_nothing(c, s, a, b):
    def fails(letter):
        raise RuntimeError("a listener that fails")

    async with ta.Trainer(c, **classes()) as trainer:
        trainer.dead_letters.subscribe(fails)
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        for item in [(np.full_like(X, np.nan), Y), None, (X, Y)]:
            await source.emit(item)
        await trainer.drain()
        assert sorted(report.index for report in reports) == [0, 1, 2]


def test_a_slow_receiver_of_reports_stops_the_source():
    @two()
    async def run(c, s, a, b):
        arguments = classes(max_in_flight=2, replicas=1)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            gate = asyncio.Event()

            class Sink(Stream):
                def update(self, x, who=None, metadata=None):
                    return [gate.wait()]

            sink = Sink(source.train(trainer))
            await source.emit((X, Y))
            await until(lambda: trainer.history.shape[0] == 1)
            with pytest.raises(errors.TensairTimeoutError):
                await trainer.drain(timeout=0.02)
            gate.set()
            await trainer.drain()
            assert sink is not None

    run()


@two()
async def test_a_sink_that_raises_does_not_stop_the_stream(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        seen: list[int] = []

        def sink(report):
            seen.append(report.index)
            raise RuntimeError("a sink that fails")

        source.train(trainer).sink(sink)
        for item in class_data(20):
            await source.emit(item)
        await trainer.drain()
    assert sorted(seen) == list(range(20))


@two()
async def test_predictions_stream_in_order(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        predictions = source.predict(trainer).sink_to_list()
        samples = [x for x, _ in class_data(5)]
        for x in samples:
            await source.emit(x)
        records = Stream(asynchronous=True)
        records.partition(len(samples[0])).predict(trainer).sink(predictions.append)
        await asyncio.gather(*map(records.emit, samples[0]))
        for x, prediction in zip([*samples, samples[0]], predictions, strict=True):
            assert np.allclose(prediction, await trainer.predict(x), atol=1e-6)


class Picky(nn.Module):
    """Waits with the prediction of one certain input until the test lets it go."""

    gate = threading.Event()
    entered = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and bool((x == 7).all()):
            Picky.entered.set()
            Picky.gate.wait(30)
        return self.layer(x)


@two()
async def test_predictions_keep_their_order_though_replicas_answer_in_any(c, s, a, b):
    Picky.gate.clear()
    Picky.entered.clear()
    async with ta.Trainer(c, **classes(model=Picky)) as trainer:
        source = Stream(asynchronous=True)
        lengths: list[int] = []
        source.predict(trainer).sink(lambda prediction: lengths.append(len(prediction)))
        first = asyncio.ensure_future(source.emit(np.full((1, FEATURES), 7, "float32")))
        await until(Picky.entered.is_set)
        # The least-loaded replica is now the other one.
        busy = [asyncio.ensure_future(trainer.train(X, Y)) for _ in range(2)]
        await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
        second = asyncio.ensure_future(source.emit(X))
        answered = asyncio.ensure_future(trainer.predict(X))
        await answered
        assert lengths == []
        Picky.gate.set()
        await asyncio.gather(first, second, *busy)
        assert lengths == [1, 4]


class Echo(nn.Module):
    """Answers with what it was asked; waits with numbers that the test holds back."""

    held: ClassVar[dict[float, threading.Event]] = {}
    entered: ClassVar[list[float]] = []

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 1:
            raise ValueError("one number a record is what I take")
        number = x[0, 0].item()
        Echo.entered.append(number)
        if number in Echo.held:
            Echo.held[number].wait(10)
        return x * self.one


def number(value: float) -> np.ndarray:
    return np.full((1, 1), value, "float32")


WRONG = np.zeros((1, 2), "float32")


@pytest.fixture
def echo():
    Echo.entered.clear()
    yield Echo
    for gate in Echo.held.values():
        gate.set()
    Echo.held.clear()


def echoing(trainer, **options) -> tuple[Stream, list[float]]:
    """A stream of predictions, and the numbers that come out of it."""
    source = Stream(asynchronous=True)
    passed: list[float] = []
    source.predict(trainer, **options).sink(lambda answer: passed.append(answer.item()))
    return source, passed


@pytest.mark.parametrize("bad", [WRONG, "no array at all"])
def test_items_behind_one_that_fails_overtake_none_before_it(echo, bad):
    @two()
    async def run(c, s, a, b):
        echo.held[0.0] = threading.Event()
        async with ta.Trainer(c, **classes(model=echo)) as trainer:
            source, passed = echoing(trainer)
            first = asyncio.ensure_future(source.emit(number(0)))
            await until(lambda: echo.entered == [0.0])
            with pytest.raises(errors.BatchError):
                await source.emit(bad)  # at once: it waits for no other
            last = asyncio.ensure_future(source.emit(number(1)))
            await until(lambda: echo.entered == [0.0, 1.0])
            answered = trainer.session.replicas.under_way
            await until(lambda: sum(answered.values()) == 1)
            assert passed == []
            echo.held[0.0].set()
            await asyncio.gather(first, last)
            assert passed == [0.0, 1.0]

    run()


def test_many_items_at_once_keep_their_order_with_bad_ones_among_them(echo):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=echo)) as trainer:
            source, passed = echoing(trainer)
            refs = [RefCounter(loop=IOLoop.current()) for _ in range(200)]
            outcomes = await asyncio.gather(
                *(
                    source.emit(
                        WRONG if position % 7 == 3 else number(position),
                        metadata=[{"ref": ref}],
                    )
                    for position, ref in enumerate(refs)
                ),
                return_exceptions=True,
            )
            bad = [at for at, outcome in enumerate(outcomes) if outcome != [None]]
            assert bad == list(range(3, 200, 7))
            assert {type(outcomes[at]) for at in bad} == {errors.ForwardError}
            assert passed == [float(at) for at in range(200) if at not in bad]
            assert echo.entered != sorted(echo.entered)  # two replicas, in any order
            assert {ref.count for ref in refs} == {0}

    run()


def test_an_item_that_is_given_up_holds_none_behind_it_back(echo):
    @two()
    async def run(c, s, a, b):
        echo.held[0.0] = threading.Event()
        async with ta.Trainer(c, **classes(model=echo)) as trainer:
            source, passed = echoing(trainer)
            (node,) = source.downstreams
            first = asyncio.ensure_future(node.update(number(0)))
            await until(lambda: echo.entered == [0.0])
            second = asyncio.ensure_future(source.emit(number(1)))
            await until(lambda: echo.entered == [0.0, 1.0])
            first.cancel()
            await asyncio.wait_for(second, 10)
            assert passed == [1.0]
            echo.held[0.0].set()

    run()


def test_items_under_way_are_bounded(echo):
    @two(config={"tensair.predictions.max-in-flight": 2})
    async def run(c, s, a, b):
        echo.held[0.0] = threading.Event()
        async with ta.Trainer(c, **classes(model=echo)) as trainer:
            source, passed = echoing(trainer)
            emits = [asyncio.ensure_future(source.emit(number(at))) for at in range(9)]
            # Four at once; two of them lie at the replica that waits. The other two
            # were answered, stand behind the first one, and keep their room.
            await until(lambda: sum(trainer.session.replicas.under_way.values()) == 2)
            assert sorted(echo.entered) == [0.0, 1.0, 3.0]
            assert not any(emit.done() for emit in emits)
            echo.held[0.0].set()
            await asyncio.gather(*emits)
            assert passed == [float(at) for at in range(9)]

    run()


@two()
async def test_a_receiver_that_is_slow_holds_the_next_predictions_back(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Echo)) as trainer:
        source = Stream(asynchronous=True)
        gate, reached = asyncio.Event(), []

        class Sink(Stream):
            def update(self, x, who=None, metadata=None):
                reached.append(x.item())
                return [gate.wait()]

        sink = Sink(source.predict(trainer))
        emits = [asyncio.ensure_future(source.emit(number(at))) for at in range(3)]
        await until(lambda: reached)
        await until(lambda: sum(trainer.session.replicas.under_way.values()) == 0)
        assert reached == [0.0]
        gate.set()
        await asyncio.gather(*emits)
        assert reached == [0.0, 1.0, 2.0]
        assert sink is not None


@two()
async def test_predictions_stream_with_their_details(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reported = source.predict(trainer, details=True).sink_to_list()
        await source.emit(X)
        await trainer.train(X, Y)
        await trainer.drain()
        await source.emit(X)
        assert [prediction.version for prediction in reported] == [0, 1]
        assert all(isinstance(prediction, ta.Prediction) for prediction in reported)
        assert reported[1].value.shape == (4, 3)
        assert reported[1].replica in (a.address, b.address)


@two()
async def test_a_prediction_that_cannot_be_made_raises_at_emit(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.predict(trainer).sink(lambda prediction: None)
        ref = RefCounter(loop=IOLoop.current())
        with pytest.raises(errors.ShapeError):
            await source.emit(X[:, :1], metadata=[{"ref": ref}])
        assert ref.count == 0
        with pytest.raises(errors.BatchError, match=r"map\(parse\)"):
            await source.emit("text", metadata=[{"ref": ref}])
        assert ref.count == 0
        await source.emit(X, metadata=[{"ref": ref}])  # the stream goes on
        assert ref.count == 0


@two()
@pytest.mark.parametrize("on_error", ["dead-letter", "skip"])
async def test_an_item_that_cannot_be_predicted_may_be_left_out(c, s, a, b, on_error):
    def parse(item):
        return np.full((1, FEATURES), float(item), "float32") if item != 2 else X[:, :1]

    items = [0, "no number", 1, 2, 3]
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        passed = source.predict(trainer, parse, on_error=on_error).sink_to_list()
        refs = [RefCounter(loop=IOLoop.current()) for _ in items]
        for item, ref in zip(items, refs, strict=True):
            await source.emit(item, metadata=[{"ref": ref, "mark": item}])
        assert len(passed) == 3
        assert [ref.count for ref in refs] == [0] * 5
        letters = trainer.dead_letters
        assert letters.total == 2
        if on_error == "skip":
            assert len(letters) == 0
            return
        assert [each.item for each in letters] == ["no number", 2]
        assert [type(each.error) for each in letters] == [
            errors.BatchError,
            errors.ShapeError,
        ]
        assert "ValueError" in str(letters[0].error)
        assert letters[0].positions == ("no number",)


@two()
async def test_what_the_cluster_cannot_answer_is_raised_in_any_case(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.predict(trainer, on_error="dead-letter").sink(lambda prediction: None)
        await trainer.close()
        with pytest.raises(errors.TrainerClosedError):
            await source.emit(X)
        assert trainer.dead_letters.total == 0


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_synchronous_script(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        for item in class_data(50):
            source.emit(item)
        trainer.drain()
        assert len(reports) == 50
        assert trainer.predict(X).shape == (4, 3)
        assert trainer.predict_one(X[0]).shape == (3,)
        assert trainer.predict_one(X[0], details=True).version == 50
        assert trainer.train(X, Y).error is None
        assert set(trainer.state_dict()) == set(trainer.state_dicts().popitem()[1])
        assert trainer.evaluate([(X, Y)])["samples"] == 4
    with pytest.raises(errors.TrainerClosedError):
        trainer.train(X, Y)


def test_leaving_the_with_block_drains(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        for item in class_data(50):
            source.emit(item)
    assert len(reports) == 50


def test_an_error_in_the_with_block_is_not_covered_up(client):
    with pytest.raises(RuntimeError, match="mine"), ta.Trainer(client, **classes()):
        raise RuntimeError("mine")


def test_a_stream_on_another_event_loop_than_the_clients(client):
    from streamz.core import get_io_loop

    with client.as_current(), ta.Trainer(client, **classes()) as trainer:
        other = IOLoop(make_current=False)
        thread = threading.Thread(target=other.start, daemon=True)
        thread.start()
        try:
            assert other is not get_io_loop()
            source = Stream(loop=other, asynchronous=False)
            reports = source.train(trainer).sink_to_list()
            predictions = source.map(lambda item: item[0]).predict(trainer)
            predictions = predictions.sink_to_list()
            for item in class_data(20):
                source.emit(item)
            trainer.drain()
            assert len(reports) == len(predictions) == 20
        finally:
            other.add_callback(other.stop)
            thread.join(10)
            other.close(all_fds=True)


# ---- functions that raise what ends a program --------------------------------------

ENDS = [SystemExit(1), GeneratorExit(), asyncio.CancelledError()]


class Sometimes:
    """A function of the user's that raises whatever it is given to raise."""

    def __init__(self, otherwise):
        self.otherwise = otherwise
        self.error: BaseException | None = None

    def __call__(self, *given):
        if self.error is not None:
            raise self.error
        return self.otherwise(*given)


@pytest.mark.parametrize("node", ["train", "predict", "predict_then_train", "try_map"])
def test_a_function_of_a_node_that_would_end_the_program_costs_an_item(node):
    @two()
    async def run(c, s, a, b):
        collate = Sometimes(lambda *given: given[0] if node != "predict" else X)
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            if node == "try_map":
                out = source.try_map(collate, trainer).train(trainer).sink_to_list()
            else:
                out = getattr(source, node)(
                    trainer, collate=collate, on_error="dead-letter"
                ).sink_to_list()
            for error in ENDS:
                await source.emit((X, Y))
                collate.error = error
                await source.emit((X, Y))
                collate.error = None
            await trainer.drain()
            letters = [str(each.error) for each in trainer.dead_letters]
        assert len(letters) == len(ENDS)
        for error, letter in zip(ENDS, letters, strict=True):
            assert type(error).__name__ in letter
        if node != "predict":
            out = [each for each in out if each.error is None]
        assert len(out) == len(ENDS)

    run()


def test_ctrl_c_of_a_function_on_the_clients_loop_costs_an_item():
    collate = Sometimes(lambda pair: pair)
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes()) as trainer,
    ):
        source = Stream()
        out = source.train(trainer, collate=collate).sink_to_list()
        collate.error = KeyboardInterrupt()
        source.emit((X, Y))
        collate.error = None
        source.emit((X, Y))
        trainer.drain()
        refused = [str(each.error) for each in out if each.error is not None]
    assert len(out) == 2
    assert len(refused) == 1
    assert "KeyboardInterrupt" in refused[0]


@two()
async def test_a_sink_that_would_end_the_program_ends_no_stream(c, s, a, b):
    look = Sometimes(lambda report: None)
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.train(trainer)
        node.sink(look)
        for error in ENDS:
            look.error = error
            await source.emit((X, Y))
            await trainer.drain()
        look.error = None
        out = node.sink_to_list()
        await source.emit((X, Y))
        await trainer.drain()
    assert [report.error for report in out] == [None]


@two()
async def test_an_item_without_rows_is_answered_by_one_without_rows(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        pairs = source.zip(source.predict(trainer)).sink_to_list()
        for rows in (1, 0, 2, 0, 3):
            await source.emit(np.zeros((rows, FEATURES), "float32"))
        await source.emit(())  # there is no array at all
        assert [len(y) for _, y in pairs] == [1, 0, 2, 0, 3]
        empty = np.zeros((0, FEATURES), "float32")
        assert (await trainer.predict(empty)).shape == (0, 3)
        assert (await trainer.predict(torch.from_numpy(empty))).shape == (0, 3)
        with pytest.raises(errors.ShapeError, match="no rows"):
            await trainer.evaluate([(empty, np.zeros(0, int))])


class NeedsRows(nn.Linear):
    """Takes no mini-batch without rows."""

    def __init__(self):
        super().__init__(FEATURES, 3)

    def forward(self, x):
        return super().forward(x - x.max())


@two()
async def test_an_item_without_rows_that_the_model_cannot_take_is_refused(c, s, a, b):
    async with ta.Trainer(c, **classes(model=NeedsRows)) as trainer:
        source = Stream(asynchronous=True)
        answers = source.predict(trainer, on_error="dead-letter").sink_to_list()
        for rows in (1, 0, 2):
            await source.emit({"x": np.zeros((rows, FEATURES), "float32")})
        assert [len(y) for y in answers] == [1, 2]
        assert isinstance(trainer.dead_letters[0].error, errors.ForwardError)
        with pytest.raises(errors.ForwardError):
            await trainer.predict(np.zeros((0, FEATURES), "float32"))
