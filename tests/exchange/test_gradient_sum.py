from __future__ import annotations

import torch
from torch import nn

from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.gradient_sum import GradientSum
from tensair_dask.exchange.rows import Rows


def views(arena: Arena, message) -> list[torch.Tensor]:
    return arena.layout.views(message.gradients.buffers)


def test_steps_are_summed_until_they_are_taken():
    arena = Arena(nn.Linear(3, 2))
    accumulator = GradientSum("run", "a", arena)
    clock = VectorClock({"a": 4, "b": 7})
    for step in (5, 6):
        accumulator.add(
            step, 10, Changes([torch.ones(2, 3), torch.full((2,), 2.0)]), clock
        )
        clock.advance("a", step)
    message = accumulator.take()
    assert (message.first, message.last, message.samples) == (5, 6, 20)
    assert message.clock == {"a": 4, "b": 7}  # as it was before the oldest
    weight, bias = views(arena, message)
    assert torch.equal(weight, torch.full((2, 3), 2.0))
    assert torch.equal(bias, torch.full((2,), 4.0))
    assert message.gradients.touched is None


def test_nothing_learned_gives_no_message():
    accumulator = GradientSum("run", "a", Arena(nn.Linear(3, 2)))
    assert accumulator.take() is None
    assert accumulator.oldest is None


def test_a_taken_message_is_not_changed_by_later_steps():
    arena = Arena(nn.Linear(1, 1))
    accumulator = GradientSum("run", "a", arena)
    clock = VectorClock()
    accumulator.add(1, 1, Changes([torch.ones(1, 1), torch.ones(1)]), clock)
    first = accumulator.take()
    accumulator.add(2, 1, Changes([torch.ones(1, 1), torch.ones(1)]), clock)
    assert views(arena, first)[0].item() == 1


def test_parameters_without_a_gradient_are_distinguished():
    arena = Arena(nn.Linear(1, 1))
    accumulator = GradientSum("run", "a", arena)
    accumulator.add(1, 1, Changes([torch.ones(1, 1), None]), VectorClock())
    assert accumulator.take().gradients.touched == frozenset({0})


def test_rows_are_summed_and_never_made_dense():
    arena = Arena(nn.Embedding(1000, 4, sparse=True))
    accumulator = GradientSum("run", "a", arena)
    for step, ids in enumerate(([3, 7, 9], [9, 500]), start=1):
        values = torch.ones(len(ids), 4)
        gradient = Rows(torch.tensor(ids), values).gradient(arena.tables[0])
        accumulator.add(step, 1, Changes([], [gradient]), VectorClock())
    message = accumulator.take()
    rows = message.gradients.rows[0]
    assert rows.ids.tolist() == [3, 7, 9, 500]
    assert rows.values[:, 0].tolist() == [1, 1, 2, 1]
    assert message.nbytes == 4 * 4 + 4 * 4 * 4


def test_a_step_that_touches_no_row_sends_none():
    arena = Arena(nn.Embedding(10, 4, sparse=True))
    accumulator = GradientSum("run", "a", arena)
    accumulator.add(1, 1, Changes([], [None]), VectorClock())
    message = accumulator.take()
    assert not message.gradients.rows
    assert (message.first, message.last) == (1, 1)


def test_rows_that_wait_are_bounded_by_the_table():
    arena = Arena(nn.Embedding(10, 1, sparse=True))
    accumulator = GradientSum("run", "a", arena)
    for step in range(1, 101):
        rows = Rows(torch.arange(10), torch.ones(10, 1)).gradient(arena.tables[0])
        accumulator.add(step, 1, Changes([], [rows]), VectorClock())
        assert sum(len(ids) for ids, _ in accumulator._tables[0].parts) <= 20
    assert accumulator.take().gradients.rows[0].values.flatten().tolist() == [100] * 10


def test_a_dense_gradient_of_a_tied_table_is_taken_too():
    arena = Arena(nn.Embedding(3, 2, sparse=True))
    accumulator = GradientSum("run", "a", arena)
    accumulator.add(1, 1, Changes([], [torch.ones(3, 2)]), VectorClock())
    assert len(accumulator.take().gradients.rows[0]) == 3
