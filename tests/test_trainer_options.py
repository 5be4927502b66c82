"""Options of a trainer: objects, and keywords that are short for their fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import dask
import pytest
from distributed.utils_test import gen_cluster
from helpers import linear, linear_data

import tensair_dask as ta
from tensair_dask import options
from tensair_dask.errors import ConfigurationError

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


def test_each_keyword_of_a_trainer_is_a_field_of_one_object():
    parameters = inspect.signature(ta.Trainer).parameters
    for group in options._GROUPS.values():
        fields = {each.name for each in dataclasses.fields(group.kind)}
        assert set(group.short.values()) <= fields
        assert set(group.short) <= set(parameters)


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (ta.ExchangeConfig, {"share": "weights"}, "share='weights' was given"),
        (ta.ExchangeConfig, {"compression": "zip"}, "compression"),
        (ta.ExchangeConfig, {"staleness": "-1s"}, "staleness"),
        (ta.ExchangeConfig, {"share_of_time": 2}, "share_of_time=2 was given"),
        (ta.ReplicaConfig, {"count": 0}, "replicas=0 was given"),
        (ta.ReplicaConfig, {"device": "meta"}, "device='meta'"),
        (ta.ReplicaConfig, {"max_in_flight": 0}, "max_in_flight=0"),
        (ta.DriftConfig, {"mode": "sometimes"}, "mode='sometimes' was given"),
        (ta.DriftConfig, {"detector": "none-such"}, "none-such"),
        (ta.DriftConfig, {"convergence": 3}, "convergence=3 was given"),
        (ta.DriftConfig, {"on_drift": "panic"}, "panic"),
        (ta.CheckpointConfig, {"every": 10}, "without checkpoint_to="),
        (ta.CheckpointConfig, {"or_begin": True}, "without restore="),
        (ta.CheckpointConfig, {"scores": {"one": 1}}, "state_dict"),
    ],
)
def test_what_is_not_allowed_is_refused_where_the_object_is_made(kind, wrong, words):
    with pytest.raises(ConfigurationError, match=words):
        kind(**wrong)


def test_defaults_are_those_of_the_configuration_when_the_object_is_made(tmp_path):
    with dask.config.set({"tensair.exchange.staleness": "70ms"}):
        settings = ta.ExchangeConfig()
    assert settings.staleness == pytest.approx(0.07)
    assert ta.CheckpointConfig(to=tmp_path, keep=2).store().keep == 2


@one()
async def test_an_option_that_is_given_twice_is_refused(c, s, a):
    twice = [
        ({"share": "update"}, {"exchange": ta.ExchangeConfig(compression="int8")}),
        ({"device": "cpu"}, {"replicas": ta.ReplicaConfig(1)}),
        ({"mode": "never"}, {"drift": ta.DriftConfig()}),
        ({"checkpoint_to": "one"}, {"checkpoints": ta.CheckpointConfig()}),
        ({"checkpoint_to": "one"}, {"checkpoints": "two"}),
    ]
    for short, whole in twice:
        (keyword,) = short
        with pytest.raises(ConfigurationError, match=f"{keyword}=.* was given"):
            ta.Trainer(c, **{**linear(), **short, **whole})


@one()
async def test_what_is_no_such_object_is_refused(c, s, a):
    for name in ("exchange", "drift"):
        with pytest.raises(ConfigurationError, match=f"{name}='all' was given; give"):
            ta.Trainer(c, **{**linear(), name: "all"})


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_objects_and_keywords_make_the_same_run(c, s, a, b):
    short = linear(replicas=2, share="update", compression="int8", mode="never")
    objects = linear(
        replicas=ta.ReplicaConfig(2),
        exchange=ta.ExchangeConfig("update", "int8"),
        drift=ta.DriftConfig("never"),
    )
    made = []
    for arguments in (short, objects):
        async with ta.Trainer(c, **arguments) as trainer:
            made.append((len(trainer.replicas), trainer.share, trainer.mode))
            made.append(trainer.session.options.exchange)
    assert made[:2] == made[2:]


@one()
async def test_a_trainer_is_restored_with_an_object_of_options(c, s, a, tmp_path):
    data = linear_data(20)
    folder = tmp_path / "checkpoints"
    async with ta.Trainer(c, **linear(checkpoints=folder)) as trainer:
        for x, y in data:
            await trainer.train(x, y)
    checkpoints = ta.CheckpointConfig(to=folder, keep=1)
    arguments = linear(checkpoints=checkpoints)
    async with ta.Trainer.restore(folder, c, **arguments) as trainer:
        assert trainer.emitted == len(data)
        await trainer.train(*data[0])
    assert len(list(folder.iterdir())) == 1


@one()
async def test_a_checkpoint_to_go_on_from_is_given_once(c, s, a):
    for twice in (
        {"restore": "other"},
        {"checkpoints": ta.CheckpointConfig(restore="other", or_begin=True)},
    ):
        with pytest.raises(ConfigurationError, match="restore='other' was given to"):
            ta.Trainer.restore("one", c, **linear(**twice))
