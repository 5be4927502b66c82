from __future__ import annotations

import math

import numpy as np
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.similarity import bundled, load_judged, spearman


@pytest.mark.parametrize("values", [3, 10, 1000], ids=["ties", "some ties", "few ties"])
@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_is_that_of_scipy(values, seed):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(seed)
    one = random.integers(0, values, 40).astype(float)
    two = one + random.integers(0, 2 * values, 40)
    expected = stats.spearmanr(one, two).statistic
    assert spearman(one, two) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("two", "expected"),
    [([1, 10, 100], 1), ([3, 2, 1], -1), ([5, 9, 5], 0), ([1, 3, 2], 0.5)],
)
def test_only_the_order_counts(two, expected):
    assert spearman(np.array([0.1, 0.2, 0.3]), np.array(two)) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]], ids=repr)
def test_what_has_no_order_has_no_correlation(values):
    two = np.arange(len(values), dtype=float)
    assert math.isnan(spearman(np.array(values), two))


@pytest.mark.parametrize(
    ("name", "pairs", "some"),
    [
        ("wordsim353", 353, {("tiger", "cat"): 7.35, ("fbi", "fingerprint"): 6.94}),
        ("simlex999", 999, {("old", "new"): 1.58}),
    ],
)
def test_known_sets_are_loaded_by_name(name, pairs, some):
    pytest.importorskip("gensim")
    judged = load_judged(name)
    assert judged.name == name
    assert len(judged.pairs) == len(judged.scores) == pairs
    scores = dict(zip(judged.pairs, judged.scores, strict=True))
    assert {pair: scores[pair] for pair in some} == some


def test_a_set_is_loaded_from_a_file(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text(
        "# a comment\nWord 1\tWord 2\tScore\nCafé\tBAR\t7.5\nold\tnew\t-1\textra\n"
        "only\ttwo\n\nnot\ta\tnumber\nκαι\tили\t0\n",
        encoding="utf-8",
    )
    judged = load_judged(str(path))
    assert judged.name == "mine"
    assert judged.pairs == [("café", "bar"), ("old", "new"), ("και", "или")]
    assert judged.scores == [7.5, -1, 0]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be read.*wordsim353"):
        load_judged(str(tmp_path / "none.tsv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no line"),
        (b"one two 3\n", "has no line"),
        (b"a\tb\t1\n\xff\xfe\n", "cannot be read"),
    ],
    ids=["empty", "no tabs", "no text"],
)
def test_a_file_without_pairs_is_refused(tmp_path, content, message):
    path = tmp_path / "some.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as raised:
        load_judged(str(path))
    assert str(path) in str(raised.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_judged(str(tmp_path))


def test_a_known_set_needs_gensim(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install"):
        load_judged("wordsim353")


def test_bundled_files_are_there():
    pytest.importorskip("gensim")
    assert bundled("wordsim353.tsv").is_file()
