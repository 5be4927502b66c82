from __future__ import annotations

from datetime import timedelta

import dask
import pytest
from distributed.utils_test import gen_cluster
from helpers import linear

import tensair_dask as ta
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


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("dispatch.max-in-flight", 0, "whole number from 1"),
        ("dispatch.max-in-flight", True, "whole number from 1"),
        ("dispatch.max_in_flight", "lots", "whole number from 1"),
        ("dispatch.allowed-losses", -1, "whole number from 0"),
        ("dispatch.message-bytes", "much", "a size"),
        ("dispatch.message-bytes", 0, "a size"),
        ("dashboard.rows", 10, "whole number from 48"),
        ("dashboard.enabled", "no", "true or false"),
        ("exchange.share-of-time", 5, "above 0 and at most 1"),
        ("exchange.stability-check", -1, "whole number from 0"),
        ("dispatch.message-rate", 0, "whole number from 1"),
        ("exchange.share-of-time", float("nan"), "above 0 and at most 1"),
        ("pubsub.queue", 0, "whole number from 1"),
        ("drift.reorder", 0.5, "whole number from 1"),
        ("drift.cache", 5, "a folder, or null"),
        ("curves.interval", 0, "a time above 0"),
        ("timeouts.start", "soon", "a time"),
        ("timeouts.start", -1, "a time"),
        ("timeouts.start", float("inf"), "a time"),
        ("timeouts", 5, "a section"),
        ("history", -1, "whole number from 0"),
    ],
)
def test_values_that_are_not_allowed_are_refused_with_their_key(key, value, allowed):
    with dask.config.set({f"tensair.{key}": value}):
        with pytest.raises(ConfigurationError, match=f"is configured; .*{allowed}"):
            config.check()
        if "." in key:
            with pytest.raises(ConfigurationError, match=key.replace("_", "-")):
                config.get(key.replace("_", "-"))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("dispatch.max-inflight", "dispatch.max-in-flight"),
        ("timeout.start", "timeouts.start"),
        ("dashbord.enabled", "dashboard.enabled"),
        ("dead_leters", "dead-letters"),
    ],
)
def test_the_error_for_an_unknown_key_names_the_nearest(key, meant):
    with dask.config.set({f"tensair.{key}": 1}):
        (said,) = config.check()
    assert f"Is tensair.{meant} meant?" in said


def test_what_is_configured_by_default_is_allowed():
    assert config.check() == []
    with dask.config.set({"tensair.xyz": 1}):
        (said,) = config.check()
    assert "no key, and has no effect" in said


@pytest.mark.parametrize(
    "section", [{"checkpoints.keep": 1}, {"checkpoints": {"a.keep": 1}}]
)
def test_a_key_with_a_dot_in_a_file_is_reported(section):
    with dask.config.set({"tensair": section}):
        said = config.check()
    assert any("'keep' on a line of its own" in each for each in said)


@pytest.mark.parametrize("section", [{}, {"dispatch": {"max_in_flight": 7}}])
def test_keys_that_are_not_set_are_the_defaults(section):
    with dask.config.set({"tensair": section}):
        assert config.check() == []
        assert config.get("history") == 100000
        assert config.get_seconds("timeouts.drain") == 300
        assert config.get("dispatch.max-in-flight") == (7 if section else 256)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_trainer_looks_at_the_whole_configuration(c, s, a):
    with (
        dask.config.set({"tensair.drift.reorder": 0}),
        pytest.raises(ConfigurationError, match=r"drift\.reorder=0"),
    ):
        ta.Trainer(c, **linear())
    with dask.config.set({"tensair.timeout.start": "3s"}):
        async with ta.Trainer(c, **linear()) as trainer:
            texts = list(trainer.events.text)
    assert sum("Is tensair.timeouts.start meant?" in text for text in texts) == 1
