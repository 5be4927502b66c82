from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from distributed.utils_test import gen_test
from ledgers import Source

from tensair_dask.coordinator.ledger import Entry, Ledger
from tensair_dask.errors import CheckpointError, ConfigurationError
from tensair_dask.streams.sources.positions import Tracker


def filled(source: Source, count: int, **overrides: Any) -> Ledger:
    ledger = Ledger(**overrides)
    for number in range(count):
        entry = source.entry(number)
        ledger.emitted(entry.metadata)
        ledger.settled(entry)
    return ledger


def test_without_checkpoints_what_is_learned_is_let_go_at_once():
    source = Source()
    ledger = filled(source, 3)
    assert source.is_released == {0, 1, 2}
    assert ledger.positions() == {"source": {"0": 3}}
    assert len(ledger) == 0


def test_with_checkpoints_it_is_let_go_when_one_is_written():
    source = Source()
    ledger = filled(source, 3, keeps=True)
    assert not source.is_released
    assert ledger.positions() == {"source": {"0": 3}}
    count = ledger.take()
    ledger.settled(source.entry(3))  # while it is being written
    assert not source.is_released
    ledger.saved(count)
    assert source.is_released == {0, 1, 2}
    assert len(ledger) == 1


def test_a_checkpoint_that_could_not_be_written_releases_no_record():
    source = Source()
    ledger = filled(source, 3, keeps=True)
    ledger.take()
    ledger.settled(source.entry(3))
    ledger.saved(ledger.take())
    assert source.is_released == {0, 1, 2, 3}


def test_sources_that_are_not_read_yet_keep_their_position():
    source = Source()
    ledger = filled(source, 2)
    ledger.restored({"source": {"0": 1, "1": 8}, "other": {"0": 5}})
    assert ledger.positions() == {"source": {"0": 2, "1": 8}, "other": {"0": 5}}


def test_no_more_records_are_taken_than_may_wait_for_a_checkpoint():
    source = Source()
    ledger = filled(source, 1, keeps=True, limit=3)
    chunk = source.record(2)
    ledger.settled(Entry([source.record(1), chunk, chunk], lambda: None))
    with pytest.raises(CheckpointError, match="checkpoint_every="):
        ledger.emitted(source.entry(4).metadata)
    ledger.saved(ledger.take())
    ledger.emitted(source.entry(4).metadata)


def test_a_source_that_raises_does_not_keep_others_from_being_called(caplog):
    source = Source()
    ledger = Ledger()

    def fail() -> None:
        raise ZeroDivisionError

    ledger.settled(Entry([], fail))
    ledger.settled(source.entry(0))
    assert source.is_released == {0}
    assert "lets go" in caplog.text


def test_a_record_in_several_mini_batches_is_learned_when_all_of_them_are():
    source = Source()
    record = source.record(0, holders=3)  # of which one holds it twice
    ledger = Ledger(keeps=True)
    ledger.settled(Entry([record, record], lambda: None))
    ledger.positions()
    assert not source.is_learned
    ledger.settled(Entry([record], lambda: None))
    ledger.positions()
    assert source.is_learned == {0}


def test_a_record_that_is_still_on_its_way_elsewhere_is_not_learned():
    source = Source()
    record = source.record(0, holders=2)
    ledger = Ledger(keeps=True)
    ledger.settled(Entry([record], lambda: None))
    ledger.positions()
    assert not source.is_learned
    record["ref"].count -= 1
    ledger.positions()
    assert source.is_learned == {0}


def test_a_mark_without_a_reference_is_learned_with_its_mini_batch():
    source = Source()
    record = source.record(0)
    del record["ref"]
    ledger = Ledger(keeps=True)
    ledger.settled(Entry([record, {"else": 1}], lambda: None))
    ledger.positions()
    assert source.is_learned == {0}


def test_what_a_mini_batch_that_is_saved_held_of_a_record_says_nothing_of_others():
    source = Source()
    record = source.record(0, holders=2)
    ledger = Ledger(keeps=True)

    def release() -> None:
        record["ref"].count -= 1

    ledger.settled(Entry([record], release))
    ledger.saved(ledger.take())
    ledger.positions()
    assert not source.is_learned  # the other mini-batch is still on its way
    ledger.settled(Entry([record], release))
    assert source.is_learned == {0}


@gen_test()
async def test_letting_go_of_many_leaves_turns_to_others(monkeypatch):
    monkeypatch.setattr("tensair_dask.coordinator.ledger.TURN", 0.0005)
    ledger = Ledger(keeps=True)
    released: list[float] = []

    def release() -> None:
        until = time.perf_counter() + 0.0002
        while time.perf_counter() < until:
            pass
        released.append(until)

    for _ in range(50):
        ledger.settled(Entry([], release))
    ledger.saved(30)
    assert 0 < len(released) < 10
    ledger.saved(20)  # of a second checkpoint, meanwhile
    done = asyncio.ensure_future(ledger.released())
    turns = 0
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 5
    assert len(released) == 50
    assert len(ledger) == 0
    await ledger.released()


# ---- sources -------------------------------------------------------------------------


def test_two_open_sources_of_one_name_are_refused():
    first, second = Source("flights"), Source("flights")
    ledger = Ledger()
    ledger.emitted([first.record(0)])
    with pytest.raises(ConfigurationError, match="Two sources named 'flights'"):
        ledger.emitted([second.record(0)])
    with pytest.raises(ConfigurationError, match="name='flights-2'"):
        ledger.reads(second)
    first.closed = True
    ledger.emitted([second.record(0)])
    ledger.reads(Source("others"))


def test_what_a_closed_source_had_reached_holds_until_the_next_of_its_name_begins():
    ledger = Ledger(keeps=True)
    first, second = Tracker("flights"), Tracker("flights")
    first.begin("flights:0", 40)
    first.begin("flights:1", 7)
    ledger.reads(first)
    first.closed = True
    ledger.reads(second)
    assert ledger.positions() == {"flights": {"flights:0": 40, "flights:1": 7}}
    second.begin("flights:0", 30)
    assert ledger.positions() == {"flights": {"flights:0": 30, "flights:1": 7}}


@pytest.mark.parametrize("looked", [True, False])
def test_a_partition_that_was_taken_away_has_no_position_any_more(looked):
    ledger = Ledger(keeps=True)
    ledger.restored({"flights": {"flights:0": 500, "flights:1": 700}})
    tracker = Tracker("flights")
    ledger.reads(tracker)
    assert ledger.positions()["flights"] == {"flights:0": 500, "flights:1": 700}
    tracker.emitted("flights:0", 500, 5000).learned()
    if looked:
        assert ledger.positions()["flights"]["flights:0"] == 5000
    tracker.drop("flights:0")
    assert ledger.positions()["flights"] == {"flights:1": 700}
    tracker.begin("flights:0", 6000)
    assert ledger.positions()["flights"] == {"flights:0": 6000, "flights:1": 700}
