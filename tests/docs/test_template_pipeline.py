"""pipelines/template.py: what users copy, run over a CSV of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from tensair_dask.cli import tensair
from tensair_dask.pipelines import template
from tensair_dask.runner.numeric_columns import numeric_columns

pytestmark = pytest.mark.xdist_group("template")  # one cluster for all of them


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """A file with two numbers of very different scales, and what they tell."""
    dice = np.random.default_rng(0)
    a, b = dice.normal(size=(2, 6_400))
    frame = pd.DataFrame({"length": 1_000 + 100 * a, "width": b / 10, "note": "none"})
    frame["price"] = 3 * a + b
    frame["colour"] = np.where(frame["price"] > 0, "red", "green")
    frame.to_csv(tmp_path / "my.csv", index=False)
    return tmp_path / "my.csv"


def run(*options: object) -> Result:
    return CliRunner().invoke(tensair, ["run", "template", *map(str, options)])


def losses(result: Result) -> list[float]:
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if "loss" in line]
    return [float(line[line.index("loss") + 1]) for line in lines]


@pytest.mark.processes
def test_it_learns_a_column_of_numbers(scheduler, csv, monkeypatch):
    monkeypatch.setattr(template, "EVERY", 10)
    first, *_, last = losses(
        run("--csv", csv, "--target", "price", "--scheduler", scheduler)
    )
    assert last < first / 4


@pytest.mark.processes
def test_it_learns_labels_and_goes_on_from_its_checkpoint(scheduler, csv, tmp_path):
    options = ["--csv", csv, "--target", "colour", "--classes", "red,green"]
    options += ["--scheduler", scheduler, "--checkpoint", tmp_path / "kept"]
    once = run(*options)
    assert losses(once)
    assert "accuracy" in once.output
    with csv.open("a") as file:
        file.write("1100.0,0.1,none,4.0,red\n" * 128)
    again = run(*options)
    assert again.exit_code == 0, again.output
    assert "mini-batch    100" in again.output  # the first of those that were added


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (["--target", "price"], "Missing option '--csv'"),
        (["--csv", "missing.csv", "--target", "price"], "does not exist"),
    ],
)
def test_what_is_missing_is_named(options, reported):
    result = run(*options)
    assert result.exit_code == 2
    assert reported in " ".join(result.output.split())


def test_the_error_for_an_unknown_column_names_the_known_ones(csv):
    result = run("--csv", csv, "--target", "cost")
    assert result.exit_code == 2
    reported = " ".join(result.output.split())
    assert "no column 'cost'" in reported
    assert "'price'" in reported


def frame_of(csv, **columns):
    pd.read_csv(csv).assign(**columns).to_csv(csv, index=False)


def test_a_column_with_a_text_among_its_numbers_is_named(csv, capsys):
    head = pd.read_csv(csv).assign(odd="7", wet=True)
    head.loc[5, "odd"] = "?"
    numbers = numeric_columns(head, "price")
    assert [*numbers] == ["length", "width", "wet"]
    reported = capsys.readouterr().out
    assert "Inputs: length, width, wet" in reported
    assert "Left out: odd, which holds ['?'] (1 such)" in reported
    assert "Left out: note, which holds ['none'] (6400 such)" in reported


@pytest.mark.parametrize("others", [{"length": "u", "width": "2024-01-01"}])
def test_a_file_without_numbers_to_learn_from_is_refused(csv, others):
    frame_of(csv, **others)
    result = run("--csv", csv, "--target", "price")
    assert result.exit_code == 2
    assert "No column but the target holds numbers" in " ".join(result.output.split())


@pytest.mark.processes
@pytest.mark.parametrize("lacking", ["width", "price"])
def test_a_run_of_which_most_is_refused_fails(scheduler, csv, lacking):
    frame_of(csv, **{lacking: np.nan})
    result = run("--csv", csv, "--target", "price", "--scheduler", scheduler)
    assert result.exit_code == 1, result.output
    assert "Most of it was refused" in result.output
