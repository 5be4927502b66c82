from __future__ import annotations

from datetime import timedelta

import dask
import pytest

from tensair_dask import config
from tensair_dask.errors import ConfigurationError


def test_every_default_can_be_read():
    assert config.get_seconds("exchange.staleness") == 0.1
    assert config.get_bytes("dispatch.message-bytes") == 8 << 20
    assert config.get("history") == 100000


def test_dask_config_overrides_a_default_and_an_argument_overrides_both():
    with dask.config.set({"tensair.exchange.staleness": "2s"}):
        assert config.get_seconds("exchange.staleness") == 2
        assert config.get_seconds("exchange.staleness", "30ms") == 0.03


@pytest.mark.parametrize("value", [1.5, "1500ms", timedelta(seconds=1.5)])
def test_durations_have_three_forms(value):
    assert config.get_seconds("timeouts.drain", value) == 1.5


@pytest.mark.parametrize("value", ["soon", "5 apples", [], {"a": 1}])
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"was given for tensair.timeouts.dr"):
        config.get_seconds("timeouts.drain", value)


def test_what_a_user_has_set_stays_when_the_defaults_are_loaded():
    with dask.config.set({"tensair.history": 5}):
        config.load_defaults()
        assert config.get("history") == 5
