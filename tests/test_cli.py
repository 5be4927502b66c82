from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from commands import FLIGHTS, needs_flights
from terminals import in_terminal, read_until

from tensair_dask.cli import tensair


def invoke(*arguments: str):
    return CliRunner().invoke(tensair, arguments)


def test_help_names_the_commands_and_pipelines():
    assert "run" in invoke("--help").output
    listed = invoke("run")
    assert listed.exit_code == 0
    assert re.search(r"flights +Learn which flights arrive late", listed.output)
    assert invoke("run", "--help").output == listed.output


def test_version():
    assert "0.1.0" in invoke("--version").output


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (
            ["run", "nothing"],
            "There is no pipeline 'nothing'; there is: drifting-images",
        ),
        (["run", "flights", "--rate", "fast"], "'fast' is not allowed"),
        (["run", "flights", "--rate", "0"], "for example 5000, or max"),
        (["run", "flights", "--workers", "0"], "'--workers'"),
        (["run", "flights", "--speed", "9"], "--speed"),
        (["walk"], "walk"),
    ],
)
def test_wrong_usage_exits_2(arguments, reported):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert reported in result.output


@pytest.mark.processes
@pytest.mark.parametrize(
    "line",
    [["-m", "tensair_dask", "run"], ["-m", "dask", "tensair", "run"]],
    ids=["tensair", "dask tensair"],
)
def test_listing_imports_nothing_heavy(line):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *line],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "flights" in done.stdout
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "click" in imported
    assert not imported & {"torch", "pandas", "distributed", "bokeh", "rich"}


@pytest.mark.processes
@needs_flights
def test_dead_scheduler_exits_1_with_one_line():
    done = subprocess.run(
        [*FLIGHTS, "--limit", "64", "--scheduler", "tcp://127.0.0.1:1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No scheduler answers at tcp://127.0.0.1:1.")
    assert done.stderr.count("\n") == 1


@pytest.mark.processes
@needs_flights
def test_a_run(tmp_path):
    options = ["--limit", "3000", "--workers", "2", "--rate", "max", "--json"]
    options += ["--output", str(tmp_path / "plots"), "--save", str(tmp_path / "saved")]
    options += ["--report", str(tmp_path / "report.html")]
    done = subprocess.run([*FLIGHTS, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Dashboard: http://127.0.0.1:" in done.stderr
    assert re.search(r"Watch it learn: http://127.0.0.1:\d+/training\n", done.stderr)
    assert "last label" in done.stderr
    assert "Traceback" not in done.stderr

    result = json.loads(done.stdout)
    assert result["overall"]["records"] == 3000
    assert 0.4 < result["overall"]["auc"] < 0.9
    assert result["baselines"]["majority"]["accuracy"] > 0.5
    assert sum(each["records"] for each in result["replicas"]) == 3000
    assert result["refused"] == {}
    assert not result["interrupted"]
    assert set(result["files"]) == {"html", "png", "model", "scores"}
    for path in result["files"].values():
        assert Path(path).stat().st_size > 0

    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Arrives 15 minutes late or more" in report
    assert "last label" in report
    assert "Scores over the last 10,000 flights" in report

    from tensair_dask.pipelines.flights import FlightModel

    saved = _load(tmp_path / "saved" / "model.pt")
    FlightModel().load_state_dict(saved)
    scores = json.loads((tmp_path / "saved" / "scores.json").read_text())
    assert scores["overall"] == result["overall"]


def flights_file() -> str:
    spec = importlib.util.find_spec("tensair_dask.pipelines.flights")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


def _load(path: Path):
    import torch

    return torch.load(path, weights_only=True)


@pytest.mark.processes
@needs_flights
def test_ctrl_c_shows_what_was_learned_and_leaves_no_process(tmp_path):
    # A copy, because that is how users start a pipeline of their own.
    copy = tmp_path / "mine.py"
    shutil.copy(flights_file(), copy)
    options = ["--rate", "2000", "--workers", "2", "--output", str(tmp_path)]
    with in_terminal([sys.executable, str(copy), *options]) as (process, screen):
        read_until(screen, r"/s  loss 0\.\d+")
        children = process.children(recursive=True)
        assert len(children) >= 2
        # A terminal signals every process of the group, not the first only.
        os.killpg(process.pid, signal.SIGINT)
        rest = read_until(screen, None)
        assert process.wait() == 130
    assert "Traceback" not in rest
    assert "last label" in rest
    assert "curves.png" in rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (["flights", "--topic", "mine"], "--topic given without --kafka"),
        (["flights", "--group", "a", "--topic", "b"], "--topic and --group given"),
        (["flights", "--warm-up", "100"], "--warm-up was given in mode always"),
        (["flights", "--warm-up", "100", "--mode", "auto"], "given in mode auto"),
        (["flights", "--compare", "--mode", "never"], "leave one of the two out"),
        (["flights", "--compare", "--mode", "always"], "leave one of the two out"),
        (["drifting-images", "--mode", "always", "--warm-up", "5"], "in mode always"),
    ],
)
def test_options_without_effect_are_refused(options, reported):
    done = CliRunner().invoke(tensair, ["run", *options])
    assert done.exit_code == 2
    assert reported in " ".join(done.output.split())
