"""Runs go on from a checkpoint of their own pipeline and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distributed.utils_test import gen_cluster, gen_test
from helpers import RATE, classes, expected_weight, linear, linear_data
from streamz import Stream

import tensair_dask.streams  # noqa: F401  gives Stream its train method
from tensair_dask import Trainer
from tensair_dask.errors import CheckpointError
from tensair_dask.runner.resume import Continuation
from tensair_dask.runner.run import Run

ONE = {"client": True, "nthreads": [("127.0.0.1", 1)]}
DATA = linear_data(20)


class Numbers:
    """Keeps the numbers of the mini-batches that were reported."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.numbers = list(state["numbers"])

    def rewind(self, batches: int) -> None:
        self.numbers = [number for number in self.numbers if number < batches]


async def opened(folder: Any, name: str = "line", **options: Any) -> Continuation:
    continuation = Continuation(str(folder), every=1_000_000)
    await continuation.open(name, **options)
    return continuation


async def learn(
    client: Any, continuation: Continuation, data: list[Any], numbers: Numbers
) -> torch.Tensor:
    """Learn a stream from where it goes on, as a pipeline does; the weight."""
    continuation.keep("numbers", numbers)
    trainer = Trainer(client, **linear(), name="line", **continuation.arguments())
    source = Stream(asynchronous=True)
    reports = source.counted(continuation).train(trainer).map(continuation.numbered)
    reports.sink(lambda report: numbers.numbers.append(report.index))
    async with trainer:
        for pair in data[continuation.begins :]:
            await source.emit(pair)
        await trainer.drain()
        return (await trainer.state_dict())["weight"]


@gen_cluster(**ONE)
async def test_the_second_run_learns_what_the_first_has_not(c, s, a):
    folder = f"memory://{id(s)}"
    first, second = Numbers(), Numbers()
    one = await opened(folder)
    assert (one.begins, one.path) == (0, "")
    await learn(c, one, DATA[:12], first)
    other = await opened(folder)
    assert other.begins == 12
    weight = await learn(c, other, DATA, second)
    assert torch.allclose(weight.double(), expected_weight(DATA), atol=RATE)
    assert second.numbers == list(range(20))


@gen_cluster(**ONE)
async def test_what_was_under_way_comes_again_and_counts_once(c, s, a):
    folder = f"memory://{id(s)}"
    one = await opened(folder)
    numbers = Numbers()
    one.keep("numbers", numbers)
    trainer = Trainer(c, **linear(), name="line", **one.arguments())
    async with trainer:
        # Three were given, the second is not learned when the checkpoint is taken.
        marks = [one.mark() for _ in range(3)]
        numbers.numbers = [0, 2]
        marks[0].learned()
        marks[2].learned()
        trainer.session.intake.ledger.emitted([{"mark": mark} for mark in marks])
        trainer.session.events.index = 3
    other = await opened(folder)
    assert other.begins == 1
    found = Numbers()
    other.keep("numbers", found)
    assert found.numbers == [0]
    assert other.mark().start == 1
    # The trainer counts what comes again anew.
    assert other.number(3) == 1


@gen_cluster(**ONE)
async def test_a_run_says_how_many_mini_batches_are_learned_twice(c, s, a):
    folder = f"memory://{id(s)}"
    one = await opened(folder)
    async with Trainer(c, **linear(), name="line", **one.arguments()) as trainer:
        trainer.session.events.index = 9
        trainer.session.intake._under_way[4] = None
    run = Run(checkpoint=folder)
    lines: list[str] = []
    run.say = lines.append
    await run.go_on("line")
    assert lines[0].endswith(
        " after 0 mini-batches; up to 5 of the next are learned twice"
    )
    run.trainer = trainer
    assert run.went_on()["checkpoint"]["again"] == 5


@gen_cluster(**ONE)
async def test_a_run_that_has_learned_nothing_is_gone_on_from(c, s, a):
    folder = f"memory://{id(s)}"
    await learn(c, await opened(folder), [], Numbers())
    other = await opened(folder)
    assert other.begins == 0
    assert other.path
    found = Numbers()
    weight = await learn(c, other, DATA, found)
    assert torch.allclose(weight.double(), expected_weight(DATA), atol=RATE)
    assert found.numbers == list(range(20))


@gen_cluster(**ONE)
async def test_a_checkpoint_of_another_run_is_refused(c, s, a):
    folder = f"memory://{id(s)}"
    await learn(c, await opened(folder, batch_size=4), DATA[:2], Numbers())
    with pytest.raises(CheckpointError, match=r"of 'line'.* run of 'flights"):
        await opened(folder, name="flights", batch_size=4)
    with pytest.raises(CheckpointError, match=r"batch size 4, .* batch size 8"):
        await opened(folder, batch_size=8)
    going_on = await opened(folder, batch_size=4)
    with pytest.raises(CheckpointError, match="does not hold scores"):
        going_on.keep("scores", Numbers())


@gen_cluster(**ONE)
async def test_another_model_of_the_same_name_is_refused(c, s, a):
    folder = f"memory://{id(s)}"
    await learn(c, await opened(folder), DATA[:2], Numbers())
    continuation = await opened(folder)
    with pytest.raises(CheckpointError):
        await Trainer(c, **classes(), name="line", **continuation.arguments())


@gen_test()
async def test_a_folder_that_cannot_be_written_to_is_reported_at_once():
    with pytest.raises(CheckpointError, match="cannot be written"):
        await opened("/dev/null/checkpoints")


@gen_test()
async def test_without_a_folder_the_stream_is_only_counted():
    continuation = Continuation()
    await continuation.open("line")
    assert continuation.arguments() == {}
    source = Stream(asynchronous=True)
    seen: list[Any] = []
    source.counted(continuation).sink(seen.append)
    for number in range(3):
        await source.emit(number)
    assert seen == [0, 1, 2]
    assert continuation.mark().start == 3
