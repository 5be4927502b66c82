"""Nothing is refused in silence: not the first of a kind, and not the whole stream."""

from __future__ import annotations

import functools
import json
import logging

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes, until
from streamz import Stream

import tensair_dask as ta
import tensair_dask.sources
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.coordinator.refused import Refused, verdict
from tensair_dask.runner.run import Run, command

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)
WIDE = X.astype("float64")
NAN = np.full_like(X, np.nan)


def said(caplog, name="tensair_dask.coordinator") -> list[str]:
    return [
        each.getMessage()
        for each in caplog.records
        if each.name.startswith(name) and each.levelno == logging.WARNING
    ]


async def feed(trainer, items, **options):
    source = Stream(asynchronous=True)
    source.train(trainer, **options).sink(lambda report: None)
    for item in items:
        await source.emit(item)
    await trainer.drain()


@pytest.mark.parametrize(
    ("bad", "kind", "advice"),
    [
        ((WIDE, Y), "DtypeError", "x.astype('float32')"),
        ((NAN, Y), "NonFiniteError", "NaN or infinite"),
        ((X[:, :2], Y), "ShapeError", "x (4, 2) float32"),
        (("text", Y), "DtypeError", "Encode text"),
    ],
)
def test_the_first_refusal_of_each_kind_is_reported_and_the_others_are_counted(
    bad, kind, advice, caplog
):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            await feed(trainer, [(X, Y)] * 6 + [bad] * 5)
            (warning,) = said(caplog)
            assert warning.startswith("Mini-batch 6 was refused ")
            for words in (kind, advice, "trainer.dead_letters"):
                assert words in warning
            (text,) = trainer.events.query("kind == 'note'")["text"]
            assert text == warning
            assert trainer.refused == {kind: 5}
            assert ", 11 mini-batches, 5 refused, backlog 0>" in repr(trainer)
            history = trainer.history
            assert history["error"].notna().sum() == 5
            assert history.attrs["refused"] == {kind: 5}
        assert said(caplog) == [warning]  # less than half: nothing more at the end

    run()


@one()
async def test_each_kind_of_refusal_is_reported_by_itself(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        await feed(trainer, [(WIDE, Y), (NAN, Y), (WIDE, Y), *class_data(9)])
        texts = trainer.events.query("kind == 'note'")["text"]
        assert [text.partition(")")[0].partition("(")[2] for text in texts] == [
            "DtypeError",
            "NonFiniteError",
        ]


@pytest.mark.parametrize("bad", [(WIDE, Y), (X, Y[:2]), "text"])
def test_a_stream_of_which_nothing_was_learned_is_reported_once_at_drain(bad, caplog):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            await feed(trainer, [bad] * 4)
            first, all_of_it = said(caplog)
            assert first.startswith("Mini-batch 0 was refused")
            assert all_of_it.startswith("Nothing was learned: 4 of 4 mini-batches ")
            assert all_of_it in list(trainer.events["text"])
            await trainer.drain()
        assert len(said(caplog)) == 2

    run()


@one()
async def test_that_more_than_half_was_refused_is_reported_again_at_the_end(c, s, a):
    trainer = await ta.Trainer(c, **classes())
    await feed(trainer, [*class_data(2), *[(WIDE, Y)] * 3])
    await feed(trainer, [(WIDE, Y)])  # not at every drain
    reported = [text for text in trainer.events["text"] if text.startswith("Less than")]
    assert [text.partition(" mini")[0] for text in reported] == [
        "Less than half was learned: 3 of 5"
    ]
    await trainer.close()
    reported = [text for text in trainer.events["text"] if text.startswith("Less than")]
    assert [text.partition(" mini")[0] for text in reported] == [
        "Less than half was learned: 3 of 5",
        "Less than half was learned: 4 of 6",
    ]


@one()
async def test_a_refused_mini_batch_that_was_given_by_hand_is_reported_as_well(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.train(WIDE, Y)
        (text,) = trainer.events.query("kind == 'note'")["text"]
        assert "DtypeError" in text


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_what_is_skipped_or_raised_by_choice_is_only_counted(policy, caplog):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes())
        source = Stream(asynchronous=True)
        source.train(trainer, on_error=policy).sink(lambda report: None)
        for _ in range(3):
            try:
                await source.emit((X, Y[:2]))
            except errors.ShapeError:
                assert policy == "raise"
        await trainer.drain()
        await trainer.close()
        assert said(caplog) == []
        assert trainer.refused == {"ShapeError": 3}
        assert "3 refused" in repr(trainer)

    run()


@one()
async def test_records_that_were_refused_before_count_as_such(c, s, a):
    def parse(record):
        raise KeyError(record) if record < 3 else ValueError(record)

    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.try_map(parse, trainer).train(trainer).sink(lambda report: None)
        for record in range(6):
            await source.emit(record)
        await trainer.drain()
        by_key, by_value, whole = trainer.events.query("kind == 'note'")["text"]
        assert by_key.startswith("A record was refused (RecordError)")
        assert "KeyError" in by_key
        assert "ValueError" in by_value
        assert whole.startswith("Nothing was learned: 6 of 6 records were refused")


@one()
async def test_the_trainer_reports_what_its_source_refuses(c, s, a, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "one,two,three,four\n" * 4)
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream.from_csv_chunks(str(path), chunk=2, asynchronous=True)
        rows = source.map(lambda rows: (rows.to_numpy("float32"), rows["a"]))
        rows.filter(lambda pair: True).train(trainer).sink(lambda report: None)
        # Of the same source, and counted once.
        rows.filter(lambda pair: False).train(trainer).sink(lambda report: None)
        async with source:
            await source.ended()
        await until(lambda: trainer.refused)
        await trainer.drain()
        assert trainer.refused == {"RecordError": source.dead_letters.total}
        texts = list(trainer.events["text"])
        assert any("the dead_letters of the source" in text for text in texts)
        assert any(text.startswith("Nothing was learned") for text in texts)
    assert not source.dead_letters._listeners  # a closed trainer hears nothing


def test_half_is_not_more_than_half():
    assert verdict(0, 0, 0, 0) == ""
    assert verdict(2, 2, 0, 8) == ""
    assert verdict(3, 2, 0, 8).startswith("Less than half was learned: 3 of 5 mini")
    assert verdict(0, 2, 9, 8).startswith("Less than half was learned: 9 of 17 rec")
    assert verdict(1, 0, 2, 0).startswith(
        "Nothing was learned: 1 of 1 mini-batches and 2 of 2 records were refused."
    )


def test_the_same_is_not_said_at_every_drain():
    refused = Refused()
    reported = []
    for count in range(1, 65):
        error = errors.ShapeError("why")
        refused.refuse(error, is_batch=True, is_kept=True)
        if refused.news():
            reported.append(count)
    assert reported == [1, 2, 4, 8, 16, 32, 64]
    assert refused.news(at_the_end=True) == ""


@one()
async def test_a_trainer_that_only_predicts_has_refused_nothing(c, s, a):
    async with ta.Trainer(c, **classes(mode="never")) as trainer:
        await feed(trainer, class_data(3))
        assert trainer.refused == {}
    assert trainer.events.query("kind == 'note'").empty
    assert "refused" not in repr(trainer)


@one()
async def test_the_history_has_its_metrics_before_and_without_any_score(c, s, a):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, **classes(metrics=metrics)) as trainer:
        assert list(trainer.history.columns)[2:5] == ["loss", "accuracy", "samples"]
        await feed(trainer, [(WIDE, Y)])
        assert trainer.history["accuracy"].isna().all()


@pytest.mark.parametrize(
    ("bad", "sound", "code"), [(4, 0, 1), (3, 2, 1), (2, 2, 0), (1, 5, 0)]
)
def test_a_run_that_learned_less_than_half_has_failed(bad, sound, code):
    @command(Run)
    async def main(run):
        async with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                processes=False,
                dashboard_address=None,
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
            ta.Trainer(client, **classes()) as trainer,
        ):
            source = Stream(asynchronous=True)
            reports = source.train(trainer)
            view = type("View", (), {"drawing": lambda _: "", "plain": lambda _: ""})
            with run.watch(trainer, reports, view()):
                for item in [(WIDE, Y)] * bad + [(X, Y)] * sound:
                    await source.emit(item)
                await trainer.drain()
        print(json.dumps({"the result": "is printed all the same"}))

    result = CliRunner().invoke(main, [])
    assert result.exit_code == code
    assert "is printed all the same" in result.output
    assert ("\nError: " in result.output) == bool(code)
    if code:
        assert f"{bad} of {bad + sound} mini-batches were refused" in result.output
