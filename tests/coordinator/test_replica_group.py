"""A call that ends its replicas is given up after the configured number of losses."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from distributed.comm import CommClosedError
from helpers import (
    class_data,
    classes,
    feed,
    linear,
    linear_data,
    train_all,
)
from lab import assert_learned_once
from losses import cluster, kill
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import (
    KilledReplicasError,
    NoReplicasError,
    ReplicaLeavingError,
    ReplicaLostError,
)

X = class_data(1)[0][0]
POISON = np.full_like(X, 666)
# None comes back: what a call takes with it is counted.
FINAL = {"tensair.replicas.watch": "1h", "tensair.dispatch.allowed-losses": 2}


def deadly(trainer: Any, workers: Any, *functions: str) -> list[Any]:
    """Let calls of these functions end whoever answers them; give those that ended.

    Of predictions, those of 666 only.
    """
    ended: list[Any] = []

    def of(handle: Any) -> Any:
        answer = handle.call

        async def call(function: str, *args: Any) -> Any:
            if function in functions and _is_poison(args):
                await asyncio.sleep(0)
                ended.append(handle)
                kill(trainer, handle, workers)
                raise ReplicaLostError("lost") from CommClosedError("closed")
            return await answer(function, *args)

        return call

    for handle in trainer.session.replicas.handles:
        handle.call = of(handle)
    return ended


def _is_poison(args: tuple[Any, ...]) -> bool:
    if not args or not hasattr(args[0], "groups"):
        return True
    return any((np.asarray(leaf) == 666).any() for leaf in args[0].groups[0].leaves)


def alive(trainer: Any) -> int:
    return len(trainer.session.replicas.alive())


CALLS = {
    "predict": (lambda trainer, path: trainer.predict(POISON), "predict"),
    "predict_one": (lambda trainer, path: trainer.predict_one(POISON[0]), "predict"),
    "state_dict": (lambda trainer, path: trainer.state_dict(), "state_dict"),
    "state_dicts": (lambda trainer, path: trainer.state_dicts(), "state_dict"),
    "apply": (lambda trainer, path: trainer.apply(lambda *both: None), "change"),
    "save": (lambda trainer, path: trainer.save(path / "model"), "checkpoint"),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_a_call_that_ends_its_replica_is_given_up_before_all_replicas_have_ended(
    tmp_path, name
):
    @cluster(4, **FINAL)
    async def run(c, s, *workers):
        call, function = CALLS[name]
        async with ta.Trainer(c, **classes()) as trainer:
            ended = deadly(trainer, workers, function)
            with pytest.raises(KilledReplicasError, match="allowed-losses"):
                await call(trainer, tmp_path)
            assert len(ended) == 3
            reports = await train_all(trainer, class_data(20))
            assert all(report.error is None for report in reports)
            assert (await trainer.predict(X)).shape == (16, 3)

    run()


@pytest.mark.parametrize(
    ("replicas", "allowed", "lost"),
    [(5, 2, 3), (5, 1, 2), (5, 0, 1), (3, 2, 2), (2, 9, 1)],
)
def test_the_last_replica_is_not_risked_for_what_another_was_lost_with(
    replicas, allowed, lost
):
    @cluster(replicas, **{**FINAL, "tensair.dispatch.allowed-losses": allowed})
    async def run(c, s, *workers):
        async with ta.Trainer(c, **classes()) as trainer:
            ended = deadly(trainer, workers, "predict")
            with pytest.raises(KilledReplicasError, match=f"^{lost} replicas"):
                await trainer.predict(POISON)
            assert len(ended) == lost
            assert alive(trainer) == replicas - lost

    run()


@cluster(1, **FINAL)
async def test_without_another_replica_the_loss_of_all_is_reported(c, s, a):
    trainer = await ta.Trainer(c, **classes())
    deadly(trainer, [a], "predict")
    with pytest.raises(NoReplicasError):
        await trainer.predict(POISON)
    await trainer.close()


@cluster(4, **FINAL)
async def test_what_was_asked_beside_a_deadly_call_is_answered(c, s, *workers):
    async with ta.Trainer(c, **classes()) as trainer:
        ended = deadly(trainer, workers, "predict")
        asked = [POISON if number == 5 else X for number in range(30)]
        answers = await asyncio.gather(
            *map(trainer.predict, asked), return_exceptions=True
        )
        assert isinstance(answers.pop(5), KilledReplicasError)
        assert all(answer.shape == (16, 3) for answer in answers)
        assert len(ended) == 3


@cluster(4, **FINAL)
async def test_what_is_learned_beside_a_deadly_call_is_not_blamed(c, s, *workers):
    data = linear_data(400)
    async with ta.Trainer(c, **linear()) as trainer:
        deadly(trainer, workers, "change", "state_dict")
        reports = feed(trainer, data)
        with pytest.raises(KilledReplicasError):
            await trainer.state_dict()
        await trainer.drain()
        assert [report.error for report in reports if report.error] == []
        assert sorted(report.index for report in reports) == list(range(400))
        for survivor in trainer.session.replicas.alive():
            vars(survivor).pop("call", None)
        trainer.session.replicas.losses.clear()
        await assert_learned_once(trainer, data)


@cluster(2, **FINAL)
async def test_a_call_made_again_by_a_timer_does_not_end_the_last_one(
    c, s, *workers, tmp_path
):
    async with ta.Trainer(c, **classes()) as trainer:
        ended = deadly(trainer, workers, "checkpoint")
        for _ in range(3):
            with pytest.raises(KilledReplicasError, match="only one replica"):
                await trainer.save(tmp_path / "model")
        assert len(ended) == 1
        (survivor,) = trainer.session.replicas.alive()
        del survivor.call
        # The other may have been ended for another reason: some time later it is tried.
        count, when = trainer.session.replicas.losses["checkpoint"]
        trainer.session.replicas.losses["checkpoint"] = count, when - 3600
        await trainer.save(tmp_path / "model")
        assert not trainer.session.replicas.losses


# Lost in a way that is no fault of the call: it never came there, the process lives and
# has dropped the replica, or the replica leaves.
BLAMELESS = {
    "unreachable": ConnectionRefusedError("refused"),
    "dropped": KeyError("no actor"),
}


@pytest.mark.parametrize("how", [*BLAMELESS, "leaving"])
def test_a_call_that_is_not_to_blame_is_answered_by_the_last_one(how):
    @cluster(2, **FINAL)
    async def run(c, s, *workers):
        async with ta.Trainer(c, **classes()) as trainer:
            first = trainer.session.replicas.least_loaded()

            async def call(function: str, *args: Any) -> Any:
                if how == "leaving":
                    raise ReplicaLeavingError("leaves")
                kill(trainer, first, workers)
                raise ReplicaLostError("lost") from BLAMELESS[how]

            before, first.call = first.call, call
            answer = await trainer.predict(X, details=True)
            assert answer.replica != first.place.address
            if how == "leaving":
                first.call = before

    run()


@cluster(3, **FINAL)
async def test_the_dead_letter_of_a_deadly_prediction_says_so(c, s, *workers):
    async with ta.Trainer(c, **classes()) as trainer:
        deadly(trainer, workers, "predict")
        source = Stream(asynchronous=True)
        answers = source.predict(trainer, on_error="dead-letter").sink_to_list()
        for x in (X, POISON, X):
            await source.emit(x)
        assert len(answers) == 2
        (letter,) = trainer.dead_letters
        assert isinstance(letter.error, KilledReplicasError)
        assert alive(trainer) == 1


@cluster(3, **FINAL)
async def test_what_ended_replicas_by_its_prediction_is_not_learned(c, s, *workers):
    async with ta.Trainer(c, **classes()) as trainer:
        ended = deadly(trainer, workers, "predict", "learn")
        source = Stream(asynchronous=True)
        reports = source.predict_then_train(trainer).sink_to_list()
        for x in (X, POISON, X):
            await source.emit((x, x[:, :3].argmax(1)))
        await trainer.drain()
        reports.sort(key=lambda report: report.index)  # they come as they are done
        assert [report.error is None for report in reports] == [True, False, True]
        assert isinstance(reports[1].error, KilledReplicasError)
        assert len(ended) == 2
        assert [letter.index for letter in trainer.dead_letters] == [1]


def shift(model, optimizers):
    with torch.no_grad():
        model[0].weight.add_(1.0)


def widen(model, optimizers):
    model[2] = torch.nn.Linear(16, 4)


@pytest.mark.parametrize("change", [shift, widen])
@pytest.mark.parametrize(("replicas", "lost"), [(6, 3), (4, 2), (3, 1)])
def test_a_change_that_ends_its_replica_is_undone_before_all_replicas_have_ended(
    replicas, lost, change
):
    @cluster(replicas, **FINAL)
    async def run(c, s, *workers):
        async with ta.Trainer(c, **classes()) as trainer:
            await train_all(trainer, class_data(20))
            before = await trainer.state_dict()
            ended = deadly(trainer, workers, "adopt")
            with pytest.raises(KilledReplicasError, match="The change is undone"):
                await trainer.apply(change)
            assert len(ended) == lost
            assert alive(trainer) == replicas - lost - (change is shift)
            for survivor in trainer.session.replicas.alive():
                vars(survivor).pop("call", None)
            for state in (await trainer.state_dicts()).values():
                for key in before:  # but for rounding, in another order
                    torch.testing.assert_close(state[key], before[key])
            reports = await train_all(trainer, class_data(20))
            assert all(report.error is None for report in reports)

    run()


@cluster(4, **FINAL)
async def test_a_replica_that_is_lost_beside_a_change_does_not_undo_it(c, s, *workers):
    async with ta.Trainer(c, **classes()) as trainer:
        handles = trainer.session.replicas.handles
        ended = deadly(trainer, workers, "adopt")
        for handle in handles[2:]:  # of those that are asked to, one ends
            vars(handle).pop("call")
        before = await trainer.state_dict()
        await trainer.apply(shift)
        assert len(ended) <= 1
        states = await trainer.state_dicts()
        assert len(states) == 4 - len(ended)
        for state in states.values():
            assert torch.equal(state["0.weight"], before["0.weight"] + 1.0)
