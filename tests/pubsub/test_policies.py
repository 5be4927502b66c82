from __future__ import annotations

import operator

import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.pubsub import Block, Conflate, DropOldest


@pytest.mark.parametrize("policy", [Block, DropOldest])
@pytest.mark.parametrize("maxsize", [0, -1, 1.5, "many", True])
def test_a_bound_that_is_not_a_positive_whole_number_is_refused(policy, maxsize):
    with pytest.raises(ConfigurationError, match="a whole number from 1"):
        policy(maxsize)


@pytest.mark.parametrize("policy", [Block, DropOldest])
def test_the_bound_comes_from_the_configuration(policy):
    assert policy().maxsize == 1000


def test_conflate_needs_a_function():
    with pytest.raises(ConfigurationError, match=r"operator\.add"):
        Conflate("sum")


def test_policies_show_their_parameters():
    assert repr(Block(3)) == "Block(maxsize=3)"
    assert "add" in repr(Conflate(operator.add))


def test_a_merge_that_returns_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="would be lost"):
        Conflate(lambda waiting, new: waiting.update(new)).combine({0: 0}, {1: 1})
    with pytest.raises(ConfigurationError, match="returned None"):
        Conflate(lambda waiting, new: None).combine(1, 2)
    assert Conflate(lambda waiting, new: new).combine(1, None) is None
