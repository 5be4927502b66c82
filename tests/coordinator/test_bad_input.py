"""Input that cannot be learned is kept, skipped, or raised."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from tornado.ioloop import IOLoop
from trainers import Slow, until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)
NAN = np.full_like(X, np.nan)
WRONG = X[:, :1]


class Tracker:
    name = "orders"


class Mark:
    """Where a record was in its source, as sources tell it."""

    tracker = Tracker()

    def __init__(self, offset: int) -> None:
        self.offset = offset


@pytest.fixture
def slow():
    Slow.gate.clear()
    Slow.entered.clear()
    yield Slow
    Slow.gate.set()


def counter() -> RefCounter:
    return RefCounter(loop=IOLoop.current())


def parse(text: str) -> tuple[np.ndarray, int]:
    return np.full(FEATURES, float(text), "float32"), 0


def refused(trainer) -> int:
    return int(trainer.curves["dead_letters"].iloc[-1])


@one()
async def test_a_dead_letter_carries_where_it_was_in_its_source(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).sink(lambda report: None)
        refs, marks = [counter() for _ in range(3)], [Mark(at) for at in range(3)]
        for item, ref, mark in zip([(NAN, Y), None, (X, Y)], refs, marks, strict=True):
            await source.emit(item, metadata=[{"ref": ref, "mark": mark}, {"else": 1}])
        await trainer.drain()
        found = {each.index: each.positions for each in trainer.dead_letters}
        assert found == {0: (marks[0],), 1: (marks[1],)}
        assert [ref.count for ref in refs] == [0, 0, 0]  # done with


@one()
async def test_what_is_skipped_is_reported_and_counted_and_not_kept(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer, on_error="skip").sink_to_list()
        refs = [counter() for _ in range(4)]
        items = [(NAN, Y), None, (WRONG, Y), (X, Y)]
        for item, ref in zip(items, refs, strict=True):
            await source.emit(item, metadata=[{"ref": ref}])
        await trainer.drain()
        assert sum(report.error is not None for report in reports) == 3
        assert (len(trainer.dead_letters), trainer.dead_letters.total) == (0, 3)
        assert [ref.count for ref in refs] == [0] * 4


@one()
async def test_what_is_no_mini_batch_is_raised_at_its_own_emit(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer, on_error="raise").sink_to_list()
        ref = counter()
        with pytest.raises(errors.BatchError):
            await source.emit("text", metadata=[{"ref": ref}])
        assert ref.count > 0  # its source is to read it again
        await source.emit((X, Y))
        await trainer.drain()
        assert [report.error is None for report in reports] == [False, True]
        assert (len(trainer.dead_letters), trainer.dead_letters.total) == (0, 1)


@one()
async def test_what_a_replica_refuses_is_raised_once_at_the_next_emit(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer, on_error="raise").sink_to_list()
        refs = [counter() for _ in range(3)]
        await source.emit((WRONG, Y), metadata=[{"ref": refs[0]}])
        await until(lambda: reports)
        with pytest.raises(errors.ShapeError):
            await source.emit((X, Y), metadata=[{"ref": refs[1]}])
        await source.emit((X, Y), metadata=[{"ref": refs[2]}])
        await trainer.drain()
        assert [report.index for report in reports] == [0, 1]  # the second: not taken
        assert [ref.count > 0 for ref in refs] == [True, True, False]
        assert refused(trainer) == 1


@one()
async def test_draining_raises_what_no_emit_has_raised_and_has_learned_the_rest(
    c, s, a
):
    trainer = await ta.Trainer(c, **classes())
    source = Stream(asynchronous=True)
    reports = source.train(trainer, on_error="raise").sink_to_list()
    for item in [(X, Y), (WRONG, Y), (X, Y)]:
        await source.emit(item)
    with pytest.raises(errors.ShapeError):
        await trainer.drain()
    assert sum(report.error is None for report in reports) == 2
    await trainer.drain()  # it was raised
    await source.emit((X, Y))
    await trainer.close()


@one()
async def test_leaving_the_async_with_block_raises_it_too(c, s, a):
    trainer = ta.Trainer(c, **classes())

    async def learn_what_is_wrong():
        async with trainer:
            source = Stream(asynchronous=True)
            source.train(trainer, on_error="raise").sink(lambda report: None)
            await source.emit((WRONG, Y))

    with pytest.raises(errors.ShapeError):
        await learn_what_is_wrong()
    assert trainer.status == "closed"


@one()
async def test_many_refused_at_once_are_raised_as_one(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer, on_error="raise").sink_to_list()
        await asyncio.gather(*(source.emit((WRONG, Y)) for _ in range(5)))
        await until(lambda: len(reports) == 5)
        with pytest.raises(errors.ShapeError):
            await source.emit((X, Y))
        await source.emit((X, Y))
        await trainer.drain()
        assert trainer.dead_letters.total == 5


def test_what_the_cluster_could_not_learn_is_kept_under_any_policy(slow):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=slow))
        source = Stream(asynchronous=True)
        reports = source.train(trainer, on_error="skip").sink_to_list()
        await source.emit((X, Y))
        await until(slow.entered.is_set)
        trainer.session.dispatcher.lose(
            trainer.session.dispatcher.lanes[0], OSError("killed")
        )
        await until(lambda: reports)
        (letter,) = trainer.dead_letters
        assert isinstance(letter.error, errors.NoReplicasError)
        slow.gate.set()
        await trainer.close()

    run()


@pytest.mark.parametrize("delay", [None, 4])
def test_predicting_then_training_has_the_same_policies(delay):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            nodes = {
                policy: Stream(asynchronous=True).predict_then_train(
                    trainer, delay=delay, on_error=policy
                )
                for policy in ("dead-letter", "skip", "raise")
            }
            for node in nodes.values():
                node.sink(lambda report: None)
            for node in nodes.values():
                if node is not nodes["raise"]:
                    await node.update((WRONG, Y), metadata=[])
                    await node.flush()
            await trainer.drain()
            assert (len(trainer.dead_letters), trainer.dead_letters.total) == (1, 2)
            await nodes["raise"].update((WRONG, Y), metadata=[])
            await nodes["raise"].flush()
            with pytest.raises(errors.ShapeError):
                await trainer.drain()
            with pytest.raises(errors.BatchError):
                nodes["raise"].update("text", metadata=[])
            assert trainer.dead_letters.total == 4

    run()


@one()
async def test_a_policy_that_does_not_exist_is_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        for make in (source.train, source.predict_then_train):
            with pytest.raises(
                errors.ConfigurationError, match="'dead-letter', 'skip'"
            ):
                make(trainer, on_error="ignore")
        with pytest.raises(errors.ConfigurationError, match="'ignore'"):
            source.try_map(parse, trainer, on_error="ignore")
        assert not source.downstreams
        assert not trainer.session.intake.nodes


@one()
async def test_a_sink_that_raises_on_the_report_of_a_bad_item_stops_nothing(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        seen = []

        def sink(report):
            seen.append(report.index)
            report.raise_for_error()

        source.buffer(4).train(trainer).sink(sink)
        for item in ["text", (X, Y), None, (X, Y)]:
            await source.emit(item)
        await until(lambda: len(seen) == 4)
        await trainer.drain()


@one()
async def test_a_slow_sink_holds_a_refused_item_as_any_other(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        gate = asyncio.Event()

        class Sink(Stream):
            def update(self, x, who=None, metadata=None):
                return [gate.wait()]

        sink = Sink(source.train(trainer, on_error="raise"))
        emitting = asyncio.ensure_future(source.emit("text"))
        await until(lambda: trainer.history.shape[0] == 1)
        assert not emitting.done()
        gate.set()
        with pytest.raises(errors.BatchError):
            await emitting
        assert sink is not None


# ---- try_map -------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["buffer", "timed_window", "delay", "nothing"])
def test_poison_records_go_to_the_dead_letters_and_the_stream_goes_on(node):
    before = {
        "buffer": lambda stream: stream.buffer(3),
        "timed_window": lambda stream: stream.timed_window(0.005).flatten(),
        "delay": lambda stream: stream.delay(0.001),
        "nothing": lambda stream: stream,
    }[node]

    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            parsing = before(source).try_map(parse, trainer)
            reports = parsing.partition(2).train(trainer).sink_to_list()
            for number in range(40):
                await source.emit("poison" if number % 4 == 1 else str(number))
            await until(lambda: len(reports) == 15)
            await trainer.drain()
            assert {report.error for report in reports} == {None}
            assert parsing.refused == len(trainer.dead_letters) == 10
            letter = trainer.dead_letters[0]
            assert (letter.item, letter.index) == ("poison", -1)
            assert isinstance(letter.error, errors.RecordError)
            assert isinstance(letter.error.__cause__, ValueError)
            assert "parse raised ValueError" in str(letter.error)

    run()


@one()
async def test_a_chunk_is_not_done_with_when_its_last_record_is_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source, kept = Stream(asynchronous=True), counter()
        records = source.flatten().try_map(parse, trainer)
        reports = records.partition(2).train(trainer).sink_to_list()
        await source.emit(["1", "poison"], metadata=[{"ref": kept, "mark": Mark(7)}])
        await until(lambda: trainer.dead_letters.total == 1)
        assert kept.count == 1  # the first one is not learned
        await source.emit(["2"])
        await until(lambda: reports)
        await trainer.drain()
        assert kept.count == 0


@one()
async def test_a_poison_record_is_done_with_unless_it_is_raised(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        kept, mark = counter(), Mark(7)
        source.try_map(parse, trainer).sink(lambda pair: None)
        await source.emit("poison", metadata=[{"ref": kept, "mark": mark}])
        assert kept.count == 0
        assert trainer.dead_letters[0].positions == (mark,)

        source = Stream(asynchronous=True)
        source.try_map(parse, trainer, on_error="skip").sink(lambda pair: None)
        await source.emit("poison", metadata=[{"ref": kept}])
        assert kept.count == 0
        assert (len(trainer.dead_letters), trainer.dead_letters.total) == (1, 2)

        source = Stream(asynchronous=True)
        source.try_map(parse, trainer, on_error="raise").sink(lambda pair: None)
        with pytest.raises(errors.RecordError):
            await source.emit("poison", metadata=[{"ref": kept}])
        assert kept.count > 0
        assert (len(trainer.dead_letters), trainer.dead_letters.total) == (1, 3)


@one()
async def test_what_is_raised_behind_a_try_map_is_not_its_matter(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)

        def fails(pair):
            raise RuntimeError("a fault of the program")

        source.try_map(parse, trainer).sink(fails)
        with pytest.raises(RuntimeError, match="a fault"):
            await source.emit("1")
        assert len(trainer.dead_letters) == 0


@one()
async def test_further_arguments_go_to_the_function(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        numbers = source.try_map(int, trainer, base=16).sink_to_list()
        await source.emit("ff")
        await source.emit("no number")
        assert numbers == [255]
        assert trainer.dead_letters.total == 1


# ---- from a script -------------------------------------------------------------------


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_script_is_raised_what_its_stream_refuses(client):
    trainer = ta.Trainer(client, **classes())
    source = Stream()
    parsed = source.try_map(lambda item: item[:2], trainer)
    parsed.train(trainer, on_error="raise").sink(lambda report: None)
    for item in class_data(5):
        source.emit(item)
    source.emit(None)  # of the record: a dead letter
    source.emit((WRONG, Y))
    with pytest.raises(errors.ShapeError):
        trainer.drain()
    with pytest.raises(errors.BatchError):
        source.emit(("text", "text"))
    with trainer:
        source.emit((X, Y))
    assert len(trainer.history) == 8
    assert len(trainer.dead_letters) == 1
