"""A cell that is run twice learns nothing twice, and dead nodes hold no stream up."""

from __future__ import annotations

import functools
import operator

import pytest
from distributed.utils_test import gen_cluster
from helpers import class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import ConfigurationError, TrainerClosedError

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
TWICE = "come to this trainer twice"


class Parser:
    def parse(self, item):
        return item


PARSER = Parser()


def cell(stream, source, trainer):
    """What a cell defines and runs: each time anew."""

    def parse(item):
        scale = [1.0, 1]
        return item[0] * scale[0], item[1]

    ways = {
        "the node itself": lambda: source,
        "a partition": lambda: source.partition(16),
        "a function": lambda: source.map(parse).partition(16),
        "a lambda": lambda: source.map(lambda item: item).buffer(9),
        "a method": lambda: source.map(PARSER.parse),
        "a partial": lambda: source.map(functools.partial(operator.mul, 2)),
        "try_map": lambda: source.try_map(parse, trainer),
        "a filter": lambda: source.filter(lambda item: item[1] is not None),
        "two branches": lambda: source.filter(bool).union(source.map(parse)),
        "map_async": lambda: source.map_async(later),
    }
    return ways[stream]()


async def later(item):
    return item


WAYS = [
    "the node itself",
    "a partition",
    "a function",
    "a lambda",
    "a method",
    "a partial",
    "try_map",
    "a filter",
    "two branches",
    "map_async",
]


@pytest.mark.parametrize("way", WAYS)
def test_a_cell_that_is_run_again_is_refused_until_its_node_is_taken_out(way):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            node = cell(way, source, trainer).train(trainer)
            for again in ("train", "predict_then_train"):
                with pytest.raises(ConfigurationError, match=r"node\.destroy\(\)"):
                    getattr(cell(way, source, trainer), again)(trainer)
            assert trainer.session.intake.nodes == {node}
            node.destroy()
            cell(way, source, trainer).train(trainer)

    run()


@one()
async def test_each_item_is_learned_once_after_a_second_node_was_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        with pytest.raises(ConfigurationError, match="each would be learned twice"):
            source.train(trainer)
        for item in class_data(3):
            await source.emit(item)
        await trainer.drain()
        assert len(reports) == 3


# Two nodes before that share a source, and whether that is said.
ROUTES = {
    "beside it": (lambda s: (s, s.buffer(9)), True),
    "other functions": (lambda s: (s.map(abs), s.map(tuple)), True),
    "another size": (lambda s: (s.map(tuple), s.partition(8)), True),
    "others beside": (lambda s: (s.union(Stream()), s), True),
    "one is a part": (lambda s: (s, s.filter(bool)), True),
    "two parts": (lambda s: (s.filter(bool), s.filter(operator.not_)), False),
    "two slices": (lambda s: (s.slice(end=3), s.slice(start=3)), False),
    "no common source": (lambda s: (s, Stream()), False),
    "closures that differ": (
        lambda s: [s.filter(lambda item, k=k: item == k) for k in (1, 2)],
        False,
    ),
}


@pytest.mark.parametrize("name", ROUTES)
def test_items_that_may_come_twice_are_reported(name):
    @one()
    async def run(c, s, a):
        build, is_told = ROUTES[name]
        async with ta.Trainer(c, **classes()) as trainer:
            for before in build(Stream(asynchronous=True)):
                before.train(trainer)
            await trainer.drain()
            reported = [text for text in trainer.events["text"] if TWICE in text]
            assert len(reported) == is_told

    run()


@one()
async def test_what_is_read_otherwise_or_only_predicted_may_hang_beside(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer)
        source.predict(trainer)
        source.predict(trainer)
        await trainer.drain()
        assert not [text for text in trainer.events["text"] if TWICE in text]
        source.train(trainer, collate=lambda item: (-item[0], item[1]))
        await trainer.drain()
        assert [text for text in trainer.events["text"] if TWICE in text]
        with pytest.raises(ConfigurationError, match="learned twice"):
            source.train(trainer, collate=lambda item: (-item[0], item[1]))


@one()
async def test_two_trainers_learn_of_one_stream(c, s, a):
    async with ta.Trainer(c, **classes()) as first, ta.Trainer(c, **classes()) as other:
        source = Stream(asynchronous=True)
        lists = [source.train(each).sink_to_list() for each in (first, other)]
        await source.emit(class_data(1)[0])
        for trainer in (first, other):
            await trainer.drain()
        assert [len(each) for each in lists] == [1, 1]


@pytest.mark.parametrize("kind", ["train", "predict", "predict_then_train"])
@pytest.mark.parametrize("way", ["the node itself", "a partition"])
def test_a_cell_that_makes_the_trainer_anew_takes_the_dead_node_out(way, kind):
    @one()
    async def run(c, s, a):
        source = Stream(asynchronous=True)
        old = await ta.Trainer(c, **classes())
        dead = getattr(cell(way, source, old), kind)(old)
        dead.sink(print)
        await old.close()
        async with ta.Trainer(c, **classes()) as trainer:
            reports = source.train(trainer).sink_to_list()
            for item in class_data(20):
                await source.emit(item)
            await trainer.drain()
            assert len(reports) == 20
            assert not dead.upstreams
            reported = [text for text in trainer.events["text"] if "taken out" in text]
            assert len(reported) == 1

    run()


@one()
async def test_a_node_whose_trainer_is_closed_later_says_how_to_take_it_out(c, s, a):
    source = Stream(asynchronous=True)
    old = await ta.Trainer(c, **classes())
    dead = source.train(old)
    async with ta.Trainer(c, **classes()) as trainer:
        reports = source.train(trainer).sink_to_list()
        await old.close()
        with pytest.raises(TrainerClosedError, match=r"node\.destroy\(\)"):
            await source.emit(class_data(1)[0])
        dead.destroy()
        await source.emit(class_data(1)[0])
        await trainer.drain()
        assert reports


@pytest.mark.parametrize("kind", ["train", "predict", "predict_then_train"])
def test_a_closed_trainer_gets_no_node(kind):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes())
        await trainer.close()
        with pytest.raises(TrainerClosedError):
            getattr(Stream(asynchronous=True), kind)(trainer)

    run()
