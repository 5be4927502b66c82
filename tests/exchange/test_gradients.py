"""Sums of what several messages carry."""

from __future__ import annotations

import pytest
import torch

from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows


def gradients(value: float, touched: set[int] | None, *ids: int) -> Gradients:
    rows = {}
    if ids:
        rows[0] = Rows(torch.tensor(ids), torch.full((len(ids), 2), value))
    kept = None if touched is None else frozenset(touched)
    return Gradients([torch.full((3,), value), torch.full((2,), -value)], kept, rows)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_total_is_the_sum_of_all_and_leaves_the_parts(count):
    parts = [gradients(float(number + 1), {number}) for number in range(count)]
    total = Gradients.total(parts)
    expected = float(sum(range(1, count + 1)))
    assert total.buffers[0].tolist() == [expected] * 3
    assert total.buffers[1].tolist() == [-expected] * 2
    assert total.touched == set(range(count))
    for number, part in enumerate(parts):
        assert part.buffers[0].tolist() == [number + 1.0] * 3


def test_what_touches_all_makes_a_total_that_does():
    parts = [gradients(1.0, {0}), gradients(1.0, None), gradients(1.0, {2})]
    assert Gradients.total(parts).touched is None


def test_rows_of_several_messages_are_summed_by_their_ids():
    parts = [
        gradients(1.0, set(), 4, 7),
        gradients(1.0, set()),
        gradients(2.0, set(), 7),
        gradients(3.0, set(), 1),
    ]
    (rows,) = Gradients.total(parts).rows.values()
    found = dict(zip(rows.ids.tolist(), rows.values[:, 0].tolist(), strict=True))
    assert found == {1: 3.0, 4: 1.0, 7: 3.0}
