"""Checkpoints of trainers that learn, and trainers that go on from them."""

from __future__ import annotations

import asyncio
import errno
import functools
import threading
from typing import Any

import dask
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    Above,
    Linear,
    class_data,
    classes,
    expected_weight,
    feed,
    linear,
    linear_data,
    spread,
    stable,
    train_all,
    until,
)
from river import metrics
from streamz import Stream

import tensair_dask as ta
import tensair_dask.sources  # from_batches
import tensair_dask.streams  # train
from tensair_dask.checkpoints import Store
from tensair_dask.drift import make
from tensair_dask.errors import (
    CheckpointError,
    CheckpointMissingError,
    ConfigurationError,
    SourceError,
)

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


@one()
async def test_settings_that_were_given_and_do_not_hold_are_reported(c, s, a, tmp_path):
    path = tmp_path / "model.tensair"
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(2))
        await trainer.save(path)
    faster = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    reported = {}
    for name, arguments in {"same": {}, "faster": {"optimizer": faster}}.items():
        async with ta.Trainer.restore(path, c, **linear(**arguments)) as trainer:
            await train_all(trainer, linear_data(2))
            texts = trainer.events[trainer.events.kind == "note"].text
            reported[name] = [
                text for text in texts if "those of the checkpoint" in text
            ]
    assert reported["same"] == []
    (said,) = reported["faster"]
    assert "lr=0.01 (given: 0.5), momentum=0 (given: 0.9)" in said


@two()
async def test_a_trainer_goes_on_where_another_was_saved(c, s, a, b, tmp_path):
    before, after = linear_data(60), linear_data(50, seed=1)
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, before)
        path = await trainer.save(tmp_path / "model.tensair")
    async with ta.Trainer.restore(path, c, **linear()) as trainer:
        assert {info.version for info in trainer.replicas} <= {0, 60}
        reports = await train_all(trainer, after)
        assert min(report.index for report in reports) == 60
        assert {info.version for info in trainer.replicas} == {110}
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(
                state["weight"].double(), expected_weight(before + after), atol=2e-4
            )


@two()
async def test_optimizer_states_are_in_it(c, s, a, b, tmp_path):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    data = class_data(60)
    arguments = classes(optimizer=adam, replicas=1)
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, data[:30])
        path = await trainer.save(str(tmp_path / "model.tensair"))
        await train_all(trainer, data[30:])
        whole = await trainer.state_dict()
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        await train_all(trainer, data[30:])
        again = await trainer.state_dict()
    # Adam without its state would take other steps.
    assert spread({"whole": whole, "again": again}) < 1e-5


@two()
async def test_checkpoints_come_by_themselves_and_the_last_one_at_the_end(
    c, s, a, b, tmp_path
):
    folder = tmp_path / "checkpoints"
    arguments = linear(checkpoint_to=folder, checkpoint_every=50)
    data = linear_data(220)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = feed(trainer, data)
        await until(lambda: len(reports) == 220)
        await until(lambda: trainer.last_checkpoint)
    checkpoint, path = Store(folder).load()
    assert path == trainer.last_checkpoint
    assert checkpoint.index == 220
    assert sum(checkpoint.clock.values()) == 220
    assert 1 <= len(Store(folder).paths()) <= 3
    weight = checkpoint.model["weight"].double()
    assert torch.allclose(weight, expected_weight(data), atol=2e-4)


@two()
async def test_training_goes_on_while_one_is_written(c, s, a, b, tmp_path):
    data = linear_data(400)
    async with ta.Trainer(c, **linear()) as trainer:
        reports = feed(trainer, data[:200])
        saving = trainer.save(tmp_path / "model.tensair")
        feed(trainer, data[200:], reports)
        path = await saving
        await trainer.drain()
        assert len(reports) == 400
        for state in (await trainer.state_dicts()).values():
            expected = expected_weight(data)
            assert torch.allclose(state["weight"].double(), expected, atol=2e-4)
    checkpoint, _ = Store(path).load()
    assert 0 <= sum(checkpoint.clock.values()) <= 400


@two()
async def test_mode_detector_and_scores_are_in_it(c, s, a, b, tmp_path):
    def scores() -> Any:
        return ta.Prequential({"accuracy": metrics.Accuracy()})

    score = scores()
    score.add([1, 0, 1, 1], [1, 0, 0, 1])
    arguments = linear(mode="never", detector=Above(3))
    async with ta.Trainer(c, scores={"online": score}, **arguments) as trainer:
        await train_all(trainer, linear_data(10))
        path = await trainer.save(tmp_path / "model.tensair")
    fresh = scores()
    again = linear(detector=Above(3))
    async with ta.Trainer.restore(
        path, c, scores={"online": fresh}, **again
    ) as trainer:
        assert (trainer.mode, trainer.phase) == ("never", "predicting")
        assert fresh.get() == score.get()
    with pytest.raises(CheckpointError, match="names that it was saved with"):
        async with ta.Trainer.restore(path, c, scores={"other": fresh}, **again):
            pass


def notes(trainer: Any, of: str) -> list[str]:
    events = trainer.events
    return [text for text in events[events.kind == "note"].text if of in text]


@pytest.mark.parametrize(
    ("saved", "given", "holds", "said"),
    [
        ("always", "never", "never", "mode='never' was given and holds"),
        ("never", "always", "always", "mode='always' was given and holds"),
        ("never", "auto", "auto", "mode='auto' was given and holds"),
        ("auto", "always", "always", "saved in mode 'auto'"),
        ("auto", None, "auto", "The mode is 'auto', that of the checkpoint"),
        ("never", None, "never", "The mode is 'never', that of the checkpoint"),
        ("never", "never", "never", ""),
        (None, None, "always", ""),
    ],
    ids=stable,
)
@one()
async def test_a_mode_that_is_given_holds_over_that_of_the_checkpoint(
    c, s, a, tmp_path, saved, given, holds, said
):
    async with ta.Trainer(c, **linear(mode=saved)) as trainer:
        await train_all(trainer, linear_data(3))
        path = await trainer.save(tmp_path / "model.tensair")
        before = await trainer.state_dict()
    async with ta.Trainer.restore(path, c, **linear(mode=given)) as trainer:
        assert trainer.mode == holds
        assert len(notes(trainer, "mode")) == bool(said)
        assert all(said in text for text in notes(trainer, "mode"))
        reports = await train_all(trainer, linear_data(3, seed=1))
        learns = holds != "never"
        assert {report.learned for report in reports} == {learns}
        after = await trainer.state_dict()
        assert torch.equal(before["weight"], after["weight"]) == (not learns)


@one()
async def test_a_checkpoint_of_another_model_is_refused(c, s, a, tmp_path):
    async with ta.Trainer(c, **linear()) as trainer:
        path = await trainer.save(tmp_path / "model.tensair")
    with pytest.raises(CheckpointError, match=r"does not fit Sequential, SGD: Runtime"):
        await ta.Trainer.restore(path, c, **classes())


@one()
async def test_a_checkpoint_of_another_optimizer_is_refused(c, s, a, tmp_path):
    async with ta.Trainer(c, **linear()) as trainer:
        path = await trainer.save(tmp_path / "model.tensair")
    with pytest.raises(CheckpointError, match=r"Linear, Adam: OptimizerError: .*betas"):
        await ta.Trainer.restore(path, c, **linear(optimizer=torch.optim.Adam))


@one()
async def test_a_checkpoint_of_an_optimizer_of_the_same_settings_is_refused(
    c, s, a, tmp_path
):
    async with ta.Trainer(c, **linear(optimizer=torch.optim.Adam)) as trainer:
        await train_all(trainer, linear_data(5))
        path = await trainer.save(tmp_path / "model.tensair")
    with pytest.raises(CheckpointError, match=r"Linear, Adamax: OptimizerError: .*inf"):
        await ta.Trainer.restore(path, c, **linear(optimizer=torch.optim.Adamax))


@one()
async def test_restoring_without_a_path_is_refused(c, s, a):
    with pytest.raises(ConfigurationError, match=r"path=None .* begins anew"):
        ta.Trainer.restore(None, c, **linear())


@two()
async def test_a_checkpoint_holds_what_the_replica_asked_for_it_had_missed(
    c, s, a, b, tmp_path
):
    data = linear_data(60)
    with dask.config.set({"tensair.replicas.watch": "1h"}):  # nobody else repairs it
        async with ta.Trainer(c, **linear()) as trainer:
            await train_all(trainer, data[:20])
            behind, other = trainer.session.replicas.handles
            workers = {worker.address: worker for worker in (a, b)}
            exchange = workers[behind.place.address].state.actors[behind.key].exchange
            # So nothing more of the other one fits.
            clock = exchange.clock.snapshot()
            exchange.clock.set_to({**clock, other.name: clock[other.name] - 1})
            reports = feed(trainer, data[20:])
            await until(lambda: len(reports) == 40 and exchange.is_behind)
            trainer.session.replicas.least_loaded = lambda: behind
            path = await trainer.save(tmp_path / "model.tensair")
            assert "missed gradients" in " ".join(trainer.events["text"])
    weight = Store(path).load()[0].model["weight"].double()
    assert torch.allclose(weight, expected_weight(data), atol=2e-4)


@one()
async def test_a_model_that_has_diverged_is_not_written_over_good_ones(
    c, s, a, tmp_path
):
    from ledgers import Source

    source = Source()
    entry = source.entry(0)
    trainer = await ta.Trainer(c, **linear(checkpoint_to=tmp_path / "folder"))
    await train_all(trainer, linear_data(5))
    good = await trainer.save()
    trainer.session.intake.ledger.emitted(entry.metadata)
    trainer.session.intake.ledger.settled(entry)
    (replica,) = a.state.actors.values()
    with torch.no_grad():
        replica.learner.model.weight[0, 0] = float("nan")
    for path in (None, tmp_path / "elsewhere"):
        with pytest.raises(CheckpointError, match=r"not finite.* diverged"):
            await trainer.save(path)
    assert Store(tmp_path / "folder").paths() == [good]
    assert not (tmp_path / "elsewhere").exists()
    assert not source.is_released
    await trainer.close()


@one()
async def test_buffers_may_hold_infinities(c, s, a, tmp_path):
    class Masked(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    async with ta.Trainer(c, **linear(model=Masked)) as trainer:
        path = await trainer.save(tmp_path / "model.tensair")
    assert Store(path).load()[0].model["mask"][1] == float("-inf")


@one()
async def test_one_may_begin_where_there_is_none(c, s, a, tmp_path):
    with pytest.raises(CheckpointMissingError):
        await ta.Trainer.restore(tmp_path / "none", c, **linear())
    data = linear_data(20)
    trainer = ta.Trainer.restore(
        tmp_path / "none",
        c,
        or_begin=True,
        checkpoint_to=tmp_path / "none",
        **linear(),
    )
    async with trainer:
        await train_all(trainer, data)
    assert Store(tmp_path / "none").load()[0].index == 20


@one()
async def test_a_folder_with_checkpoints_is_only_for_trainers_that_go_on_from_them(
    c, s, a, tmp_path
):
    arguments = linear(checkpoint_to=tmp_path / "folder")
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, linear_data(5))
        older = await trainer.save()
        other = await trainer.save(tmp_path / "other")
        await train_all(trainer, linear_data(5))
    there = Store(tmp_path / "folder").paths()
    for origin in ({}, {"restore": other}, {"restore": "no", "or_begin": True}):
        with pytest.raises(CheckpointError, match=r"earlier training.*restore\('/"):
            await ta.Trainer(c, **arguments, **origin)
    assert Store(tmp_path / "folder").paths() == there
    restored = ta.Trainer.restore(older, c, **arguments)
    async with restored as trainer:
        await trainer.save()
    assert len(Store(tmp_path / "folder").paths()) == 3


@one()
async def test_two_trainers_in_one_folder_remove_nothing_of_each_other(
    c, s, a, tmp_path
):
    arguments = linear(checkpoint_to=tmp_path)
    first = await ta.Trainer(c, **arguments)
    second = await ta.Trainer(c, **arguments)
    path = await first.save()
    with pytest.raises(CheckpointError, match="Another trainer writes to"):
        await second.save()
    assert Store(tmp_path).paths() == [path]
    await first.close()
    await second.close()


@one()
async def test_what_is_saved_elsewhere_lets_go_of_nothing(
    c, s, a, tmp_path, monkeypatch
):
    from ledgers import Source

    source = Source()
    arguments = linear(checkpoint_to=tmp_path / "folder")
    async with ta.Trainer(c, **arguments) as trainer:
        add, entered, gate = Store.add, threading.Event(), threading.Event()

        def late(store: Store, checkpoint: Any) -> str:
            if not entered.is_set():
                entered.set()
                assert gate.wait(30)
            return add(store, checkpoint)

        monkeypatch.setattr(Store, "add", late)
        trainer.session.intake.ledger.settled(source.entry(0))
        saving = asyncio.ensure_future(trainer.save())
        await until(entered.is_set)
        trainer.session.intake.ledger.settled(source.entry(1))
        await trainer.save(tmp_path / "elsewhere")
        gate.set()
        await saving
        assert source.is_released == {0}


@one()
async def test_a_folder_that_cannot_be_written_to_is_reported_at_once(
    c, s, a, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        await ta.Trainer(c, **linear(checkpoint_to=tmp_path / "file"))


@one()
async def test_without_a_folder_a_path_is_needed(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(CheckpointError, match=r"trainer.save\('model.tensair'\)"):
            await trainer.save()


@one()
async def test_what_a_source_gave_is_let_go_when_a_checkpoint_holds_it(
    c, s, a, tmp_path
):
    from ledgers import Source
    from receivers import Hearer

    source = Source()
    arguments = linear(checkpoint_to=tmp_path / "folder")
    async with ta.Trainer(c, **arguments) as trainer:
        for number, pair in enumerate(linear_data(5)):
            entry = source.entry(number)
            rest = trainer.session.intake.feed(
                pair,
                lambda item: item,
                Hearer(release=entry.release),
                entry.metadata,
            )
            if rest is not None:
                await rest
        await trainer.drain()
        assert not source.is_released
        path = await trainer.save(tmp_path / "elsewhere")
        assert not source.is_released
        assert Store(path).load()[0].positions == {"source": {"0": 5}}
        await trainer.save()
        assert source.is_released == {0, 1, 2, 3, 4}
        assert trainer.positions == {"source": {"0": 5}}
    restored = ta.Trainer.restore(tmp_path / "folder", c, **linear())
    async with restored as trainer:
        assert trainer.positions == {"source": {"0": 5}}


@two()
@pytest.mark.parametrize("saved", [True, False])
async def test_an_item_in_several_mini_batches_is_read_again_if_one_is_not_learned(
    c, s, a, b, tmp_path, saved
):
    data = linear_data(24)
    items = [data[at : at + 4] for at in range(0, 24, 4)]
    arguments = linear(checkpoint_to=tmp_path / "folder") if saved else linear()
    async with ta.Trainer(c, **arguments) as trainer:
        slow = trainer.session.replicas.handles[0].lane
        learn, gate = slow.learn, asyncio.Event()

        async def late(block: Any) -> Any:
            await gate.wait()
            return await learn(block)

        slow.learn = late
        source = Stream.from_batches(items, asynchronous=True)
        source.flatten().train(trainer)
        async with source:
            await source.ended()
            await until(
                lambda: (
                    len(trainer.session.recording.history)
                    == len(data) - len(sent(slow))
                )
            )
            first = min(pending.index for pending in sent(slow)) // 4
            assert first < 5
            await trainer.session.replicas.ask_all("flush", 10)
            await trainer.session.membership.hear()
            if saved:
                path = await trainer.save()
                assert Store(path).load()[0].positions == {"batches": {"items": first}}
            assert source.tracker.released()["items"] <= first
            gate.set()
            await trainer.drain()
            if saved:
                await trainer.save()
            assert source.tracker.released() == {"items": 6}


@two()
async def test_how_many_mini_batches_are_learned_twice_is_reported(
    c, s, a, b, tmp_path
):
    data = linear_data(24)
    arguments = linear(checkpoint_to=tmp_path / "folder")
    async with ta.Trainer(c, **arguments) as trainer:
        slow = trainer.session.replicas.handles[0].lane
        learn, gate = slow.learn, asyncio.Event()

        async def late(block: Any) -> Any:
            await gate.wait()
            return await learn(block)

        slow.learn = late
        source = Stream.from_batches(data, asynchronous=True)
        source.train(trainer)
        async with source:
            await source.ended()
            await until(
                lambda: (
                    len(trainer.session.recording.history)
                    == len(data) - len(sent(slow))
                )
            )
            first = min(pending.index for pending in sent(slow))
            await trainer.session.replicas.ask_all("flush", 10)
            path = await trainer.save(tmp_path / "model")
            gate.set()
            await trainer.drain()
        assert Store(await trainer.save()).load()[0].again == 0
    saved = Store(path).load()[0]
    assert saved.positions == {"batches": {"items": first}}
    twice = sum(saved.clock.values()) - first
    assert 0 < twice <= saved.again == len(data) - first
    async with ta.Trainer.restore(path, c, **linear()) as trainer:
        (reported,) = trainer.events["text"][trainer.events["kind"] == "note"]
        assert reported.endswith(f"UTC; up to {saved.again} are learned twice")


@one()
async def test_what_comes_while_a_checkpoint_is_taken_counts_as_learned_twice(
    c, s, a, tmp_path
):
    async with ta.Trainer(c, **linear()) as trainer:
        items: asyncio.Queue[Any] = asyncio.Queue()

        async def given() -> Any:
            while (item := await items.get()) is not None:
                yield item

        ask = trainer.session.replicas.ask_any

        async def late(name: str, *given: Any) -> Any:
            for pair in linear_data(3):
                items.put_nowait(pair)
            await until(lambda: len(trainer.session.recording.history) == 3)
            return await ask(name, *given)

        source = Stream.from_batches(given(), asynchronous=True)
        source.train(trainer)
        async with source:
            trainer.session.replicas.ask_any = late
            path = await trainer.save(tmp_path / "model")
            items.put_nowait(None)
            await source.ended()
            await trainer.drain()
    saved = Store(path).load()[0]
    assert saved.positions in ({}, {"batches": {"items": 0}})
    assert sum(saved.clock.values()) == saved.again == 3


@one()
async def test_a_second_open_source_of_one_name_is_refused(c, s, a, tmp_path):
    data = linear_data(4)
    async with ta.Trainer(c, **linear()) as trainer:
        first = Stream.from_batches(data, asynchronous=True)
        second = Stream.from_batches(data, asynchronous=True)
        first.map(tuple).train(trainer)
        with pytest.raises(ConfigurationError, match="Two sources named 'batches'"):
            second.train(trainer)
        with pytest.raises(ConfigurationError, match="Two sources named 'batches'"):
            first.union(second).train(trainer)
        second.predict(trainer, collate=lambda pair: pair[0])  # learns nothing
        joined = Stream(asynchronous=True)
        joined.train(trainer)
        second.connect(joined)  # seen when it gives something
        second.start()
        with pytest.raises(ConfigurationError, match="close the first one"):
            await second.ended()
        await first.close()
        third = Stream.from_batches(data, asynchronous=True)
        third.train(trainer)
        async with third:
            await third.ended()
        await trainer.drain()
        assert trainer.positions == {"batches": {"items": 4}}


@one()
async def test_positions_count_what_is_learned_also_between_checkpoints(
    c, s, a, tmp_path
):
    data = linear_data(10)
    arguments = linear(checkpoint_to=tmp_path / "folder")
    async with ta.Trainer(c, **arguments) as trainer:
        source = Stream.from_batches(data[:6], asynchronous=True)
        source.train(trainer)
        assert trainer.positions == {"batches": {"items": 0}}
        async with source:
            await source.ended()
        await trainer.drain()
        assert trainer.positions == {"batches": {"items": 6}}
        assert source.tracker.released() == {"items": 0}
    restored = ta.Trainer.restore(tmp_path / "folder", c, **arguments)
    async with restored as trainer:
        assert trainer.positions == {"batches": {"items": 6}}
        source = Stream.from_batches(
            data, positions=trainer.positions, asynchronous=True
        )
        source.train(trainer)
        assert trainer.positions == {"batches": {"items": 6}}
        async with source:
            await source.ended()
        await trainer.drain()
        assert trainer.positions == {"batches": {"items": 10}}


def sent(lane: Any) -> list[Any]:
    """What a replica has not reported."""
    return [*lane.gathered, *(each for sent in lane.sent.values() for each in sent)]


@two()
async def test_a_disk_with_little_room_is_reported_once(
    c, s, a, b, tmp_path, monkeypatch
):
    write = Store._write

    def full(store, path, buffers):
        if len(store.paths()) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(store, path, buffers)

    monkeypatch.setattr(Store, "_write", full)
    arguments = linear(checkpoint_to=tmp_path / "run")
    async with ta.Trainer(c, **arguments) as trainer:
        for pair in linear_data(5):
            await train_all(trainer, [pair])
            await trainer.save()
        reported = [text for text in trainer.events["text"] if "has no room" in text]
        assert len(reported) == 1
        assert "tensair.checkpoints.keep" in reported[0]
        assert len(Store(tmp_path / "run").paths()) == 2


@one()
async def test_a_file_goes_on_by_its_checkpoint_and_not_where_it_is_another(
    c, s, a, tmp_path
):
    path = tmp_path / "numbers"
    path.write_text("0\n1\n2\n")
    data = linear_data(10)

    async def learn(trainer: Any, name: str = "n") -> Any:
        source = Stream.from_lines(
            str(path), name=name, positions=trainer.positions, asynchronous=True
        )
        lines = source.sink_to_list()
        source.map(lambda line: data[int(line)]).train(trainer)
        async with source:
            await source.ended()
            await trainer.drain()
        return lines

    async with ta.Trainer(c, **linear()) as trainer:
        assert await learn(trainer) == ["0", "1", "2"]
        saved = await trainer.save(tmp_path / "model")
    path.write_text("0\n1\n2\n3\n")
    async with ta.Trainer.restore(saved, c, **linear()) as trainer:
        assert await learn(trainer) == ["3"]
        assert await learn(trainer, "other") == ["0", "1", "2", "3"]
        texts = trainer.events["text"][trainer.events["kind"] == "note"]
        assert sum("none for 'other'" in text for text in texts) == 1
    path.write_text("5\n6\n7\n8\n9\n")
    async with ta.Trainer.restore(saved, c, **linear()) as trainer:
        with pytest.raises(SourceError, match="replaced or written anew"):
            await learn(trainer)


def always_one(report: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("watch", "anew"),
    [
        ("loss", False),
        (lambda report: report.loss, True),
        (always_one, True),
    ],
    ids=stable,
)
@one()
async def test_a_detector_that_is_to_watch_something_else_begins_anew(
    c, s, a, tmp_path, watch, anew
):
    async with ta.Trainer(c, **linear(detector="adwin")) as trainer:
        await train_all(trainer, linear_data(20))
        path = await trainer.save(tmp_path / "model.tensair")
    arguments = linear(detector="adwin", watch=watch)
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        assert len(notes(trainer, "ADWIN begins anew")) == anew
        assert trainer.session.drift_response.modes.detector.observed == (
            0 if anew else 20
        )
        path = await trainer.save(tmp_path / "again.tensair")
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        assert notes(trainer, "begins anew") == []


@one()
async def test_what_of_a_checkpoint_is_not_gone_on_with_is_reported(c, s, a, tmp_path):
    score = ta.Prequential({"accuracy": metrics.Accuracy()})
    arguments = linear(detector="adwin", scores={"online": score, "late": score})
    async with ta.Trainer(c, **arguments) as trainer:
        path = await trainer.save(tmp_path / "model.tensair")
    arguments = linear(detector="adwin", scores={"late": score})
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        (said,) = notes(trainer, "scores")
        assert "['online']" in said
    with pytest.raises(CheckpointError, match="detector ADWIN, and detector= was not"):
        await ta.Trainer.restore(path, c, **linear(scores={"late": score}))


@one()
async def test_a_run_that_begins_anew_reports_what_else_is_there(c, s, a, tmp_path):
    async with ta.Trainer(c, **linear()) as trainer:
        await trainer.save(tmp_path / "mine" / "run1.tensair")
        await trainer.save(tmp_path / "mine" / "run2")
    (tmp_path / "mine" / "notes.txt").write_text("no checkpoint")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no checkpoint")
    for folder, others in (("none", 0), ("texts", 0), ("mine", 2)):
        arguments = linear(checkpoint_to=tmp_path / folder)
        trainer = ta.Trainer.restore(tmp_path / folder, c, or_begin=True, **arguments)
        async with trainer:
            (said,) = notes(trainer, "begins anew")
            assert f"{folder}: begins anew." in said
            assert ("run2' to go on from" in said) == bool(others)
            assert notes(trainer, "without checkpoint_to=") == []
        trainer = ta.Trainer.restore(tmp_path / folder, c, or_begin=True, **linear())
        async with trainer:
            assert notes(trainer, "begins anew") == []
            assert len(notes(trainer, "without checkpoint_to=")) == 1
    for number in (tmp_path / "mine").glob("checkpoint-*"):
        number.unlink()
    with pytest.raises(CheckpointMissingError, match=r"other names \(2 files\)"):
        await ta.Trainer.restore(tmp_path / "mine", c, **linear())


async def interrupted(trainer: Any, error: Any, path: Any = None) -> None:
    """Learn 8 mini-batches, 5 of which are saved."""
    async with trainer:
        await train_all(trainer, linear_data(5))
        await trainer.save(path)
        await train_all(trainer, linear_data(3))
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.TimeoutError])
@one()
async def test_what_an_interrupted_block_has_not_saved_is_reported(
    c, s, a, tmp_path, error
):
    trainer = ta.Trainer(c, **linear(checkpoint_to=tmp_path / "folder"))
    with pytest.raises(error):
        await interrupted(trainer, error)
    (said,) = notes(trainer, "in no checkpoint")
    assert "Up to 3 of 8 mini-batches" in said
    assert len(Store(tmp_path / "folder").paths()) == 1
    trainer = ta.Trainer(c, **linear())
    with pytest.raises(error):
        await interrupted(trainer, error, tmp_path / "elsewhere")
    assert notes(trainer, "in no checkpoint") == []


@one()
async def test_names_that_a_trainer_numbers_are_its_own(c, s, a, tmp_path):
    folder = tmp_path / "folder"
    async with ta.Trainer(c, **linear(checkpoint_to=folder)) as trainer:
        with pytest.raises(CheckpointError, match="numbers itself"):
            await trainer.save(folder / "checkpoint-000000000005.tensair")
        await trainer.save(folder / "mine.tensair")
        await trainer.save(tmp_path / "checkpoint-000000000005.tensair")
    assert len(Store(folder).paths()) == 1


@one()
async def test_a_detector_is_not_given_the_values_of_a_trainer_that_is_closed(c, s, a):
    detector = make("adwin")
    async with ta.Trainer(c, **linear(detector=detector)) as trainer:
        await train_all(trainer, linear_data(4))
    assert detector.observed == 4
    async with ta.Trainer(c, **linear(detector=detector)) as trainer:
        assert detector.observed == 0
        assert len(notes(trainer, "without the 4 values")) == 1
    async with ta.Trainer(c, **linear(detector=detector)) as trainer:
        assert notes(trainer, "values") == []


@one()
async def test_arguments_that_need_another_are_named(c, s, a):
    with pytest.raises(ConfigurationError, match="'5s' was given without checkpoint_t"):
        ta.Trainer(c, **linear(checkpoint_every="5s"))
    for value in (True, 0, 2.0, "lots"):
        with pytest.raises(ConfigurationError, match=f"max_in_flight={value!r} is not"):
            ta.Trainer(c, **linear(max_in_flight=value))
