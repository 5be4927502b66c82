from __future__ import annotations

import pytest
import torch
from messages import message

from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows


def test_merging_sums_and_spans_both_ranges():
    one, two = message(1, 3, 1.0), message(4, 4, 2.0)
    merged = one.merge(two)
    assert (merged.first, merged.last, merged.samples, merged.taken) == (1, 4, 40, 4)
    assert merged.gradients.buffers[0].tolist() == [3.0] * 4
    assert merged.clock == {"a": 0}
    assert merged.oldest == one.oldest


def test_merging_changes_neither_message_since_they_are_shared_among_peers():
    one, two = message(1, 3, 1.0), message(4, 4, 2.0)
    one.merge(two)
    assert one.gradients.buffers[0].tolist() == [1.0] * 4
    assert two.gradients.buffers[0].tolist() == [2.0] * 4


@pytest.mark.parametrize("later", [message(3, 5, 1.0), message(5, 5, 1.0)])
def test_a_message_that_overlaps_or_leaves_a_gap_cannot_be_merged(later):
    with pytest.raises(ValueError, match="does not follow"):
        message(1, 3, 1.0).merge(later)


def test_a_message_of_another_origin_cannot_be_merged():
    with pytest.raises(ValueError, match="does not follow"):
        message(1, 3, 1.0).merge(message(4, 4, 1.0, origin="b"))


def test_touched_is_everything_if_either_message_touched_everything():
    some = Gradients([torch.zeros(1)], frozenset({0}))
    other = Gradients([torch.zeros(1)], frozenset({2}))
    everything = Gradients([torch.zeros(1)])
    assert (some + other).touched == frozenset({0, 2})
    assert (some + everything).touched is None


def test_rows_of_a_table_that_only_one_message_has_are_kept():
    one = Gradients([], None, {0: Rows(torch.tensor([1]), torch.ones(1, 2))})
    two = Gradients([], None, {3: Rows(torch.tensor([4]), torch.ones(1, 5))})
    assert sorted((one + two).rows) == [0, 3]
