from __future__ import annotations

from tensair_dask.coordinator.dead_letters import DeadLetter, DeadLetters
from tensair_dask.errors import ShapeError


def letter(index: int) -> DeadLetter:
    return DeadLetter(index, "item", ShapeError("x"), "", 0.0)


def test_they_are_bounded_and_counted():
    letters = DeadLetters(2)
    for index in range(5):
        letters.append(letter(index))
    assert [each.index for each in letters] == [3, 4]
    assert letters[-1].index == 4
    assert (len(letters), letters.total) == (2, 5)
    assert repr(letters) == "<DeadLetters: 2 kept of 5>"


def test_subscribers_are_called_until_they_unsubscribe():
    letters = DeadLetters(2)
    heard: list[int] = []
    unsubscribe = letters.subscribe(lambda each: heard.append(each.index))
    letters.append(letter(1))
    unsubscribe()
    unsubscribe()
    letters.append(letter(2))
    assert heard == [1]


def test_a_listener_that_raises_keeps_nothing_from_the_others():
    letters = DeadLetters(2)
    heard: list[int] = []

    def fails(each: DeadLetter) -> None:
        raise RuntimeError("a listener that fails")

    letters.subscribe(fails)
    letters.subscribe(lambda each: heard.append(each.index))
    letters.append(letter(1))
    assert heard == [1]
    assert len(letters) == 1
