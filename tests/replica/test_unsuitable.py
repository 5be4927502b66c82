"""Models that cannot work as meant are refused at the start, or reported."""

from __future__ import annotations

import copy

import pytest
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, train_all
from learners import learner
from torch import nn

import tensair_dask as ta
from tensair_dask import errors

NET = nn.Linear(FEATURES, CLASSES)


class Sharded(nn.Parameter):
    """Stands for the parameters that fully_shard makes."""


Sharded.__name__ = "DTensor"


class FullyShardedDataParallel(nn.Sequential):
    pass


def sharded():
    model = nn.Linear(3, 2)
    model.weight.__class__ = Sharded
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.DataParallel(nn.Linear(3, 2)), "a DataParallel"),
        (lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 2))), "a DataParallel"),
        (lambda: FullyShardedDataParallel(nn.Linear(3, 2)), "FullyShardedDataParallel"),
        (sharded, "DTensor"),
        (lambda: nn.LazyLinear(2), "lazy"),
        (lambda: nn.Linear(3, 2).requires_grad_(False), "nothing to train"),
    ],
)
def test_a_model_that_no_replica_can_be_is_refused_at_the_start(model, said):
    with pytest.raises(errors.ModelError, match=said):
        learner(model)


def test_layers_that_have_no_process_group_are_reported():
    ours = learner(lambda: nn.Sequential(nn.Linear(3, 2), nn.SyncBatchNorm(2)))
    (said,) = ours.notices.take().values()
    assert "SyncBatchNorm" in said


def test_two_replicas_of_a_process_do_not_train_the_same_parameters():
    net = nn.Linear(3, 2)
    ours = learner(lambda: net)
    for again in (lambda: net, lambda: nn.Sequential(net)):
        with pytest.raises(errors.ModelError, match=r"copy\.deepcopy"):
            learner(again)
    learner(lambda: copy.deepcopy(net))
    ours.claim.release()
    learner(lambda: net)


def test_what_a_learner_that_is_gone_had_may_be_trained():
    net = nn.Linear(3, 2)
    learner(lambda: net)
    learner(lambda: net)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_a_trainer_whose_factory_builds_once_is_refused(c, s, a, b):
    arguments = classes(model=once)
    with pytest.raises(errors.ModelError, match="new model each time"):
        await ta.Trainer(c, **arguments)
    async with ta.Trainer(c, **{**arguments, "model": anew}) as trainer:
        assert all(each.learned for each in await train_all(trainer, class_data(6)))
    for _ in range(2):  # a trainer that is closed lets go of what it had
        async with ta.Trainer(c, **arguments, replicas=1) as trainer:
            assert (await trainer.train(*class_data(1)[0])).learned


def once():
    return NET


def anew():
    return copy.deepcopy(NET)
