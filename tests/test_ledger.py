from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tensair_dask.errors import CheckpointError
from tensair_dask.ledger import Entry, Ledger


class Source:
    """Counts what is learned and released of it, as a tracker does."""

    def __init__(self, name: str = "source") -> None:
        self.name = name
        self.is_learned: set[int] = set()
        self.is_released: set[int] = set()

    def learned(self) -> dict[str, int]:
        done = self.is_learned | self.is_released
        return {"0": next(n for n in range(1000) if n not in done)}

    def record(self, number: int, holders: int = 1) -> dict[str, Any]:
        """Metadata of a record that so many hold."""
        mark = SimpleNamespace(
            tracker=self, learned=lambda: self.is_learned.add(number)
        )
        return {"mark": mark, "ref": SimpleNamespace(count=holders)}

    def entry(self, number: int) -> Entry:
        return Entry([self.record(number)], lambda: self.is_released.add(number))


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
    assert ledger.positions() == {"source": {"0": 0}}
    count = ledger.take()
    assert ledger.positions() == {"source": {"0": 3}}
    ledger.settled(source.entry(3))  # while it is being written
    assert not source.is_released
    ledger.saved(count)
    assert source.is_released == {0, 1, 2}
    assert len(ledger) == 1


def test_one_that_could_not_be_written_lets_go_of_nothing():
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


def test_no_more_is_taken_than_may_wait_for_a_checkpoint():
    source = Source()
    ledger = filled(source, 3, keeps=True, limit=3)
    with pytest.raises(CheckpointError, match="checkpoint_every="):
        ledger.emitted(source.entry(4).metadata)
    ledger.saved(ledger.take())
    ledger.emitted(source.entry(4).metadata)


def test_a_source_that_raises_does_not_keep_others_from_being_told(caplog):
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
    ledger.take()
    assert not source.is_learned
    ledger.settled(Entry([record], lambda: None))
    ledger.take()
    assert source.is_learned == {0}


def test_a_record_that_is_still_on_its_way_elsewhere_is_not_learned():
    source = Source()
    record = source.record(0, holders=2)
    ledger = Ledger(keeps=True)
    ledger.settled(Entry([record], lambda: None))
    ledger.take()
    assert not source.is_learned
    record["ref"].count -= 1
    ledger.take()
    assert source.is_learned == {0}


def test_a_mark_without_a_reference_is_learned_with_its_mini_batch():
    source = Source()
    record = source.record(0)
    del record["ref"]
    ledger = Ledger(keeps=True)
    ledger.settled(Entry([record, {"else": 1}], lambda: None))
    ledger.take()
    assert source.is_learned == {0}
