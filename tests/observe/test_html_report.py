"""The HTML report of a whole run."""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from run_curves import loaded_from_elsewhere
from shown import Checked
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams  # gives Stream its train method
from tensair_dask.observe import html_report
from tensair_dask.observe.html_report import Ending, Page, Table
from tensair_dask.prequential import BinaryPrequential
from tensair_dask.runner.run import Run, command
from tensair_dask.runner.scored_run import ScoredRun

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


def page_of(run: Run, ending: Ending | None = None) -> str:
    return Page(run, ending or Ending("finished", "Finished."), 0.0, 12.5).html()


def text_of(page: str) -> str:
    """What people read: without what bokeh needs."""
    for kind in ("script", "style"):
        page = re.sub(rf"(?s)<{kind}\b.*?</{kind}>", "", page)
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


class NoView:
    """A live line that shows nothing."""

    def plain(self) -> str:
        return ""

    drawing = plain


async def learn(run: Run, trainer: ta.Trainer, data: list) -> None:
    """Learn as a pipeline does."""
    source = Stream(asynchronous=True)
    reports = source.train(trainer)
    with run.watch(trainer, reports, NoView()):
        for pair in data:
            await source.emit(pair)
        await trainer.drain()


@two()
async def test_a_page_shows_everything(c, s, a, b):
    run = Run(records="things", rate=5000.0, report=Path("out.html"))
    run.command = "tensair run things"
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(
        c,
        **classes(metrics=metrics),
        name="digits",
        compression="int8",
        staleness="50ms",
    ) as trainer:
        wrong = (np.zeros((2, FEATURES + 1), "float32"), np.zeros(2, int))
        await learn(run, trainer, [*class_data(60), wrong])
        await trainer.mark("the label means something else", kind="drift")
    page = page_of(run)
    text = text_of(page)
    for part in (
        "tensair run things , begun 1970-01-01 00:00:00 UTC, 12.5 s",
        "Finished.",
        "things 962",
        "mini-batches learned 60",
        "mini-batches refused 1",
        "Loss before learning",
        "accuracy before learning",
        f"{a.address} cpu closed",
        f"{b.address} cpu closed",
        "ShapeError 1 number 60",
        "drift the label means something else",
        "rate 5000.0",
        "limit not given",
        "optimizer SGD(lr=0.1)",
        "loss cross_entropy",
        "compression int8",
        "staleness 0.05 s",
        "tensair.exchange.share-of-time 0.1",
        f"dask {dask.__version__}",
        "torch 2.",
        "CPUs",
    ):
        assert part in text, part
    for package in html_report.PACKAGES:
        assert f"{package} " in text
    assert not loaded_from_elsewhere(page)


@two()
async def test_texts_of_users_are_escaped(c, s, a, b):
    run = Run(records="<i>things</i>")
    run.title = "<u>run</u>"
    async with ta.Trainer(c, **classes(), name="<script>1</script>") as trainer:
        await learn(run, trainer, class_data(5))
        await trainer.mark("</script><b>bold</b>")
    page = page_of(run, Ending("failed", "Failed with <b>bold</b>"))
    text = text_of(page)
    assert "<script>1</script>" in text
    assert "<u>run</u>" in text
    for part in ("<i>things", "<u>run", "<b>bold", "<script>1"):
        assert part not in page.replace("\\u003c", "<")


@two()
async def test_a_scored_run_shows_scores_beside_the_baselines(c, s, a, b):
    run = ScoredRun(records="flights", window=100)
    run.title, run.axis = "Arrives late", "departure"
    scores = BinaryPrequential(window=100)
    random = np.random.default_rng(0)
    scores.expect(random.random(500) < 0.3)
    scores.add(0, random.random(500))
    run.scores = scores
    run.times = np.datetime64("2013-01-01") + np.arange(500)
    async with ta.Trainer(c, **classes()) as trainer:
        await learn(run, trainer, class_data(5))
    page = page_of(run)
    text = text_of(page)
    assert "Arrives late" in text
    overall = scores.overall()
    assert f"model 500 {overall.accuracy:.3f} {overall.log_loss:.3f}" in text
    assert "majority 500" in text
    assert re.search(r"last label 500 0\.\d+ - 0\.\d+", text)
    assert "Scores over the last 100 flights" in text
    assert "departure" in page


def test_a_run_that_ended_before_training_has_a_page():
    page = page_of(Run(), Ending("failed", "Failed with OSError: no"))
    text = text_of(page)
    assert "Failed with OSError: no" in text
    assert "The run ended before training began." in text
    assert "learned nothing" in text
    assert "tensair.timeouts.start 60s" in text
    assert not loaded_from_elsewhere(page)


def test_a_table_that_is_too_long_is_cut():
    class Long(Run):
        def tables(self) -> list[Table]:
            return [
                Table("Many", ["number"], [(n,) for n in range(html_report.ROWS + 7)])
            ]

    assert "and 7 more rows" in text_of(page_of(Long()))


def interrupted_by(received: signal.Signals | None) -> SimpleNamespace:
    return SimpleNamespace(interrupts=SimpleNamespace(received=received))


@pytest.mark.parametrize(
    ("received", "error", "kind", "text"),
    [
        (None, None, "finished", "Finished."),
        (signal.SIGINT, None, "interrupted", "Stopped with Ctrl-C; everything"),
        (signal.SIGTERM, None, "interrupted", "Stopped with SIGTERM"),
        (
            signal.SIGINT,
            asyncio.CancelledError(),
            "interrupted",
            "Interrupted (Ctrl-C); what",
        ),
        (None, KeyboardInterrupt(), "interrupted", "Interrupted (Ctrl-C)"),
        (None, ValueError("a\n  b"), "failed", "Failed with ValueError: a b"),
    ],
)
def test_how_a_run_ended(received, error, kind, text):
    ending = Ending.of(interrupted_by(received), error)
    assert ending.kind == kind
    assert ending.text.startswith(text)


# ---- on the command line -------------------------------------------------------------


def pipeline(error: BaseException | None = None, seen: list | None = None):
    """A command that runs without a cluster."""

    @command(Run)
    async def main(run: Run) -> None:
        """Do something."""
        if seen is not None:
            seen.append(run)
        if error is not None:
            raise error

    return main


def test_the_page_is_written_when_the_run_ends(tmp_path):
    path = tmp_path / "made" / "out.html"
    result = CliRunner().invoke(pipeline(), ["--report", str(path), "--limit", "7"])
    assert result.exit_code == 0
    assert result.output.split() == ["report", str(path)]
    text = text_of(path.read_text(encoding="utf-8"))
    assert "Finished." in text
    assert "limit 7" in text
    assert list(path.parent.iterdir()) == [path]


def test_a_run_that_fails_has_its_page_too(tmp_path):
    path = tmp_path / "out.html"
    result = CliRunner().invoke(
        pipeline(RuntimeError("it broke")), ["--report", str(path)]
    )
    assert result.exit_code == 1
    assert "Error: RuntimeError: it broke" in result.output
    assert "Failed with RuntimeError: it broke" in text_of(path.read_text())


def test_without_the_option_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(pipeline(), []).exit_code == 0
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_fails_before_the_run_in_one_line(tmp_path):
    seen: list[Run] = []
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.html"
    result = CliRunner().invoke(pipeline(seen=seen), ["--report", str(path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: --report {path} cannot be written: ")
    assert result.output.count("\n") == 1
    assert not seen


def test_a_page_that_cannot_be_written_after_all_is_reported(tmp_path, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html_report, "write_atomically", full)
    path = str(tmp_path / "out.html")
    ended = CliRunner().invoke(pipeline(), ["--report", path])
    assert ended.exit_code == 1
    assert "No space left on device" in ended.output
    failed = CliRunner().invoke(pipeline(RuntimeError("broke")), ["--report", path])
    assert "No space left on device" in failed.output
    assert "Error: RuntimeError: broke" in failed.output, "that is what ended it"


SCRIPT = """
    import functools, numpy as np, torch
    from streamz import Stream
    import tensair_dask as ta, tensair_dask.streams
    from tensair_dask.runner.run import Run, command

    class View:
        def plain(self): return "plain"
        def drawing(self): return "drawn"

    @command(Run)
    async def main(run):
        async with run.client() as client:
            async with ta.Trainer(
                client,
                model=functools.partial(torch.nn.Linear, 2, 2),
                loss=torch.nn.functional.cross_entropy,
                optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            ) as trainer:
                source = Stream(asynchronous=True)
                reports = source.train(trainer)
                reports.sink(lambda each: each.index or print("learning", flush=True))
                pairs = iter(lambda: (np.zeros((4, 2), "float32"), np.zeros(4, int)), 0)
                with run.watch(trainer, reports, View()):
                    await run.feed(source, pairs, lambda pair: 4)
                    await trainer.drain()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.processes
def test_after_ctrl_c_the_page_shows_what_was_learned(tmp_path):
    script, path = tmp_path / "mine.py", tmp_path / "out.html"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), "--report", str(path), "--workers", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        while "learning" not in process.stdout.readline():
            assert process.poll() is None
        assert not path.exists()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert f"report  {path}" in rest
    text = text_of(path.read_text(encoding="utf-8"))
    assert "mine.py" in text
    assert "Stopped with Ctrl-C" in text
    assert int(re.search(r"mini-batches learned ([\d,]+)", text)[1].replace(",", ""))
    assert re.search(r"replica-0 tcp://\S+ cpu closed", text)
