from __future__ import annotations

import asyncio

import pytest
from distributed.utils_test import gen_test
from streamz import Stream

import tensair_dask.sources  # noqa: F401  gives Stream its sources
from tensair_dask.errors import (
    ConfigurationError,
    SourceError,
    TensairError,
    TensairTimeoutError,
)


async def numbers(start: int = 0):
    for number in range(start, 100):
        await asyncio.sleep(0)
        yield number


FORMS = {
    "list": lambda: list(range(100)),
    "function": lambda: lambda start: range(start, 100),
    "asynchronous": numbers,
    "asynchronous function": lambda: numbers,
}


@pytest.mark.parametrize("form", FORMS)
@gen_test()
async def test_every_item_is_emitted_once_and_a_restart_goes_on_behind_the_last(form):
    source = Stream.from_batches(FORMS[form](), name="mine", asynchronous=True)
    got = source.sink_to_list()
    source.sink(lambda item: source.stop() if item == 41 else None)
    source.start()
    await source.ended()
    assert got == list(range(42))
    kept = {source.tracker.name: source.tracker.learned()}
    assert kept == {"mine": {"items": 42}}

    again = Stream.from_batches(
        FORMS[form](), name="mine", positions=kept, asynchronous=True
    )
    rest = again.sink_to_list()
    async with again:
        await again.ended()
    assert got + rest == list(range(100))
    assert again.tracker.released() == {"items": 100}


@gen_test()
async def test_what_is_learned_out_of_order_is_replayed_from_the_first_gap():
    source = Stream.from_batches(range(10), asynchronous=True)
    marks, held = [], []

    class Keep(Stream):
        def update(self, x, who=None, metadata=None):
            self._retain_refs(metadata)
            held.append(metadata)
            marks.extend(each["mark"] for each in metadata)

    node = Keep(source)
    async with source:
        await source.ended()
    for number in (0, 1, 2, 5, 6):
        marks[number].learned()
    assert source.tracker.learned() == {"items": 3}
    assert source.tracker.released() == {"items": 0}
    for number in (0, 1):
        node._release_refs(held[number])
    assert source.tracker.released() == {"items": 2}


@gen_test()
async def test_a_source_waits_for_the_stream():
    gate = asyncio.Event()
    entered = []

    async def slow(item):
        entered.append(item)
        await gate.wait()

    source = Stream.from_batches(range(100), asynchronous=True)
    source.sink(slow)
    source.start()
    while not entered:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert entered == [0]
    assert source.running
    gate.set()
    await source.ended()
    assert entered == list(range(100))
    assert not source.running


@gen_test()
async def test_an_item_that_is_never_taken_is_cut_short_when_the_source_is_closed():
    source = Stream.from_batches(range(100), asynchronous=True)
    source.sink(lambda item: asyncio.Event().wait())
    async with source:
        while source.tracker.outstanding() == 0:
            await asyncio.sleep(0)
        await source.close(timeout=0.01)
    await source.ended()
    assert source.tracker.released() == {"items": 0}


@gen_test()
async def test_others_on_the_event_loop_get_their_turn():
    turns = []

    async def other():
        while True:
            turns.append(source.position)
            await asyncio.sleep(0)

    source = Stream.from_batches(range(20_000), asynchronous=True)
    got = source.sink_to_list()
    task = asyncio.ensure_future(other())
    source.start()
    await source.ended()
    task.cancel()
    assert len(got) == 20_000
    assert len(set(turns)) > 3


@gen_test()
async def test_a_source_that_was_stopped_goes_on_when_it_is_started_again():
    source = Stream.from_batches(range(10), asynchronous=True)
    got = source.sink_to_list()
    source.sink(lambda item: source.stop() if item == 4 else None)
    source.start()
    await source.ended()
    assert got == [0, 1, 2, 3, 4]
    source.start()
    await source.ended()
    assert got == list(range(10))


@pytest.mark.parametrize("make", [lambda: iter(range(100)), numbers])
@gen_test()
async def test_an_iterator_goes_on_where_it_is_when_it_is_started_again(make):
    # It begins behind a position: what is left out is left out once.
    source = Stream.from_batches(
        make(),
        name="mine",
        positions={"mine": {"items": 10}},
        asynchronous=True,
    )
    got = source.sink_to_list()
    source.sink(lambda item: source.stop() if item in (20, 30) else None)
    for _ in range(4):  # stopped twice; then to the end, where nothing more comes
        source.start()
        await source.ended()
    assert got == list(range(10, 100))
    await source.close()
    source.start()
    with pytest.raises(SourceError, match=r"go on behind item 100: .*iterator"):
        await source.ended()


@gen_test()
async def test_a_list_that_has_become_longer_goes_on_behind_its_old_end():
    items = [0, 1, 2]
    source = Stream.from_batches(items, asynchronous=True)
    got = source.sink_to_list()
    for more in ([3], []):
        source.start()
        await source.ended()
        items += more
    assert got == [0, 1, 2, 3]


@gen_test()
async def test_an_iterator_that_has_raised_does_not_seem_to_be_at_its_end():
    source = Stream.from_batches(broken(), name="b", asynchronous=True)
    source.sink_to_list()
    for message in ("could not make item 1", "cannot go on behind item 1"):
        source.start()
        with pytest.raises(SourceError, match=message):
            await source.ended()


def broken():
    yield 0
    raise OSError("the disk is gone")


@gen_test()
async def test_what_the_iterable_raises_comes_out_at_the_end():
    source = Stream.from_batches(lambda start: broken(), name="b", asynchronous=True)
    got = source.sink_to_list()
    source.start()
    with pytest.raises(SourceError, match="b could not make item 1: OSError: the disk"):
        await source.ended()
    assert got == [0]


@gen_test()
async def test_what_a_node_raises_comes_out_at_the_end_and_its_item_is_not_done():
    source = Stream.from_batches([1, 2, 0, 3], asynchronous=True)
    source.map(lambda item: 1 / item).sink(lambda item: None)
    source.start()
    with pytest.raises(ZeroDivisionError):
        await source.ended()
    assert source.tracker.released() == {"items": 2}


@pytest.mark.parametrize("items", [range(3), numbers(97), lambda start: 7])
@gen_test()
async def test_data_that_do_not_reach_the_position_are_refused(items):
    source = Stream.from_batches(
        items, name="b", positions={"b": {"items": 5}}, asynchronous=True
    )
    source.start()
    with pytest.raises(SourceError, match=r"has only 3 items|returned int"):
        await source.ended()


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(ConfigurationError, match="was given int; an iterable"):
        Stream.from_batches(7)


def test_a_source_runs_beside_a_program_without_an_event_loop():
    source = Stream.from_batches(range(50))
    got = source.sink_to_list()
    with source:
        source.join(10)
    assert got == list(range(50))


def test_waiting_for_the_end_is_bounded():
    source = Stream.from_batches(range(50))
    source.sink(lambda item: asyncio.sleep(60))
    source.start()
    with pytest.raises(TensairTimeoutError, match=r"has not ended within 0.01 s"):
        source.join(0.01)
    source.close(timeout=0.01)
    source.join(10)


@gen_test()
async def test_waiting_on_the_event_loop_that_is_waited_for_is_refused():
    source = Stream.from_batches(range(50), asynchronous=True)
    with pytest.raises(SourceError, match=r"Use await source.ended\(\)"):
        source.join(1)


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("place", ["items", "stream"])
def test_what_would_end_the_program_ends_the_source_with_an_error(place, error):
    @gen_test()
    async def run():
        def items(start):
            yield 1
            if place == "items":
                raise error
            yield 2

        def sink(item):
            if item == 2:
                raise error

        source = Stream.from_batches(items, name="mine", asynchronous=True)
        source.sink(sink)
        source.start()
        with pytest.raises(TensairError, match=type(error).__name__):
            await source.ended()

    run()


@pytest.mark.parametrize("key", ["item", "0"])
def test_a_position_by_another_key_is_refused(key):
    with pytest.raises(ConfigurationError, match="'items' is allowed"):
        Stream.from_batches([1, 2, 3], positions={"batches": {key: 2}})


@pytest.mark.parametrize("make", [lambda: [1], lambda *, start: [1]])
def test_a_function_that_takes_no_start_is_refused(make):
    with pytest.raises(ConfigurationError, match="lambda start: data"):
        Stream.from_batches(make)


def heard(source):
    """Give the notes that the source tells the trainers which learn of it."""
    reported: list[str] = []

    class Hearer:
        def note_soon(self, text):
            reported.append(text)

    source.hearer = Hearer()  # sources hold them only weakly
    source.tracker.add_hearer(source.hearer)
    source.sink_to_list()
    return reported


@pytest.mark.parametrize(
    "make",
    [lambda: [1, 2, 3], lambda: range(3), lambda: lambda start: [1, 2, 3][start:]],
)
@gen_test()
async def test_a_second_start_behind_the_end_says_that_nothing_came(make):
    source = Stream.from_batches(make(), name="mine", asynchronous=True)
    reported, got = heard(source), source.sink_to_list()
    for _ in range(3):
        source.start()
        await source.ended()
    assert len(got) == 3
    (text,) = reported
    assert "mine has ended without an item: it is behind the last one, at " in text
    assert "items * 3" in text


@gen_test()
async def test_a_start_that_had_items_or_was_stopped_says_nothing_of_an_end():
    items = [0, 1]
    source = Stream.from_batches(items, asynchronous=True)
    reported = heard(source)
    for _ in range(2):
        source.start()
        await source.ended()
        items.append(2)
    source.start()
    source.stop()
    await source.ended()
    assert reported == []


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: iter([]), "list_iterator that it was given is exhausted"),
        (lambda: [], "there are none in what it was given"),
    ],
)
@gen_test()
async def test_a_source_without_an_item_says_so_at_its_first_start(make, why):
    source = Stream.from_batches(make(), asynchronous=True)
    reported = heard(source)
    source.start()
    await source.ended()
    assert len(reported) == 1
    assert why in reported[0]


@gen_test()
async def test_an_iterator_that_is_started_behind_its_end_says_that_it_is_exhausted():
    source = Stream.from_batches((n for n in range(3)), asynchronous=True)
    reported = heard(source)
    for _ in range(2):
        source.start()
        await source.ended()
    assert len(reported) == 1
    assert "the generator that it was given is exhausted" in reported[0]


@gen_test()
async def test_a_position_at_the_end_says_that_nothing_is_left():
    positions = {"mine": {"items": 3}}
    source = Stream.from_batches(
        [1, 2, 3], name="mine", positions=positions, asynchronous=True
    )
    reported = heard(source)
    source.start()
    await source.ended()
    assert "at position 3, and none was added" in reported[0]


@pytest.mark.parametrize(
    "function",
    [lambda epochs=3: [1] * epochs, lambda data=(1, 2), start=0: data[start:]],
)
@gen_test()
async def test_its_place_is_not_given_to_a_setting_of_the_function(function):
    with pytest.raises(ConfigurationError, match=r"is (epochs|data), "):
        Stream.from_batches(function, asynchronous=True)


@gen_test()
async def test_a_function_may_have_a_default_for_where_it_begins():
    source = Stream.from_batches(lambda start=7: [1, 2][start:], asynchronous=True)
    got = source.sink_to_list()
    async with source:
        await source.ended()
    assert got == [1, 2]
