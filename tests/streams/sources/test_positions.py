from __future__ import annotations

import random
import threading

import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.streams.sources.positions import Tracker, check_positions


def ranges(generator: random.Random, count: int, gaps: bool) -> list[tuple[int, int]]:
    made, offset = [], generator.randrange(100)
    for _ in range(count):
        offset += generator.randrange(3) if gaps else 0
        stop = offset + generator.randrange(1, 5)
        made.append((offset, stop))
        offset = stop
    return made


def lowest_not_done(emitted: list[tuple[int, int]], done: set[int]) -> int:
    """The definition, the slow way."""
    for number, (start, _) in enumerate(emitted):
        if number not in done:
            return start
    return emitted[-1][1]


@pytest.mark.parametrize("seed", range(20))
def test_watermarks_are_the_lowest_offsets_that_are_not_done(seed):
    generator = random.Random(seed)
    tracker = Tracker("source")
    emitted = ranges(generator, 200, gaps=seed % 2 == 0)
    marks = [tracker.emitted("0", *each) for each in emitted]
    learned: set[int] = set()
    released: set[int] = set()
    steps = [(number, phase) for number in range(200) for phase in ("learned", "both")]
    steps += generator.choices(steps, k=100)  # some come twice
    generator.shuffle(steps)
    for number, phase in steps:
        learned.add(number)
        if phase == "learned":
            marks[number].learned()
        else:
            marks[number].released()
            released.add(number)
        assert tracker.learned() == {"0": lowest_not_done(emitted, learned)}
        assert tracker.released() == {"0": lowest_not_done(emitted, released)}
        assert tracker.outstanding() == 200 - len(released)
    assert tracker.released() == {"0": emitted[-1][1]}


def test_partitions_do_not_hold_one_another_back():
    tracker = Tracker("source")
    first = tracker.emitted("a", 0, 10)
    tracker.emitted("b", 0, 10).released()
    assert tracker.released() == {"a": 0, "b": 10}
    first.learned()
    assert tracker.learned() == {"a": 10, "b": 10}
    assert tracker.released() == {"a": 0, "b": 10}


def test_a_partition_that_has_given_nothing_yet_is_where_it_began():
    tracker = Tracker("source")
    tracker.begin("0", 500)
    assert tracker.learned() == tracker.released() == {"0": 500}


def test_marks_of_a_dropped_partition_are_void():
    tracker = Tracker("source")
    heard = []
    tracker.listen(lambda *moved: heard.append(moved))
    old = tracker.emitted("0", 0, 10)
    tracker.drop("0")
    assert old.dropped
    assert tracker.released() == {}
    assert tracker.begun() == {"0"}
    tracker.begin("0", 5)
    new = tracker.emitted("0", 5, 6)
    old.released()
    assert tracker.released() == {"0": 5}
    assert heard == []
    assert not new.dropped
    new.released()
    assert heard == [("0", 6)]


def test_listeners_hear_when_the_released_watermark_moves_and_only_then():
    tracker = Tracker("source")
    heard = []
    unlisten = tracker.listen(lambda *moved: heard.append(moved))
    one, two, three = (tracker.emitted("0", i, i + 1) for i in range(3))
    two.released()
    one.learned()
    assert heard == []
    one.released()
    assert heard == [("0", 2)]
    one.released()
    assert heard == [("0", 2)]
    unlisten()
    three.released()
    assert heard == [("0", 2)]


def test_a_range_that_stays_open_costs_no_memory_for_those_behind_it():
    tracker = Tracker("source")
    stuck = tracker.emitted("0", 0, 1)
    for offset in range(1, 10_000):
        tracker.emitted("0", offset, offset + 1).released()
    (assignment,) = tracker._assignments.values()
    assert len(assignment.released) == len(assignment.learned) == 1
    assert tracker.released() == {"0": 0}
    stuck.released()
    assert tracker.released() == {"0": 10_000}


@pytest.mark.parametrize("wrong", [(3, 5), (0, 1), (10, 10), (12, 11)])
def test_ranges_ascend(wrong):
    tracker = Tracker("source")
    tracker.emitted("0", 0, 10)
    with pytest.raises(ConfigurationError, match="must ascend"):
        tracker.emitted("0", *wrong)


def test_threads_may_release_side_by_side():
    tracker = Tracker("source")
    marks = [tracker.emitted("0", i, i + 1) for i in range(4_000)]
    threads = [
        threading.Thread(target=lambda own=marks[i::4]: [m.released() for m in own])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.released() == {"0": 4_000}
    assert tracker.outstanding() == 0


def test_positions_are_those_of_the_source_by_its_name():
    kept = {"flights": {"flights:0": 7}, "others": {"0": 1}}
    assert check_positions(kept, "flights") == {"flights:0": 7}
    assert check_positions(kept, "unknown") == {}
    assert check_positions(None, "flights") == {}


@pytest.mark.parametrize(
    "wrong", [[1], {"flights": 7}, {"flights": {"0": -1}}, {"flights": {"0": "7"}}]
)
def test_positions_of_another_form_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="was given"):
        check_positions(wrong, "flights")
