from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.sketch import CountMin
from tensair_dask.text.vocabulary import NOTHING, Vocabulary


def zipf(words: int, length: int, seed: int = 0) -> list[str]:
    """A text in which few words are frequent."""
    choose = random.Random(seed)
    weights = [1 / rank for rank in range(1, words + 1)]
    return choose.choices([f"w{n}" for n in range(words)], weights, k=length)


def known(text: str, **settings: int) -> Vocabulary:
    """A vocabulary in which each word of the text has a row."""
    vocabulary = Vocabulary(min_count=1, **settings)
    vocabulary.read(text)
    return vocabulary


# --------------------------------------------------------------------------- rows


def test_words_get_rows_in_the_order_of_the_text():
    vocabulary = Vocabulary(size=10, hashed=2, min_count=1)
    read = vocabulary.read("b a c a\nb d")
    assert vocabulary.words == ["b", "a", "c", "d"]
    assert read.rows.tolist() == [1, 2, 3, 2, 1, 4]
    assert read.rows.dtype == np.int32
    assert read.lines.tolist() == [0, 0, 0, 0, 1, 1]
    assert read.line_ends == 1


@pytest.mark.parametrize("min_count", [1, 2, 5])
def test_a_word_gets_its_row_when_it_was_seen_often_enough(min_count):
    vocabulary = Vocabulary(size=10, hashed=3, min_count=min_count)
    for seen in range(1, min_count + 3):
        (row,) = vocabulary.read("word")[0].tolist()
        assert (row == 1) == (seen >= min_count)
        assert ("word" in vocabulary) == (seen >= min_count)


def test_all_sights_of_one_text_count_and_get_the_row():
    vocabulary = Vocabulary(size=10, hashed=3, min_count=3)
    assert vocabulary.read("x y x z x").rows.tolist()[::2] == [1, 1, 1]
    assert vocabulary.words == ["x"]


def test_rows_of_words_seen_in_several_texts_follow_the_text_that_is_enough():
    vocabulary = Vocabulary(size=10, hashed=3, min_count=2)
    vocabulary.read("c b a")
    vocabulary.read("a d b c d")
    assert vocabulary.words == ["a", "d", "b", "c"]


def test_a_word_keeps_its_row():
    vocabulary, rows = Vocabulary(size=30, hashed=3, min_count=3), {}
    text = zipf(200, 4000)
    for start in range(0, len(text), 100):
        part = text[start : start + 100]
        for word, row in zip(part, vocabulary.read(" ".join(part))[0], strict=True):
            if row <= 30:
                assert rows.setdefault(word, row) == row
    assert [rows[word] for word in vocabulary.words] == list(range(1, 31))


def test_no_more_words_get_rows_than_there_are():
    vocabulary = Vocabulary(size=3, hashed=2, min_count=1)
    vocabulary.read("a b")
    read = vocabulary.read("c d e a d")
    vocabulary.read("f f f")
    assert vocabulary.words == ["a", "b", "c"]
    assert len(vocabulary) == 3
    assert vocabulary.rows == 1 + 3 + 2
    assert read.rows[[0, 3]].tolist() == [3, 1]
    assert (read.rows[[1, 2, 4]] > 3).all()
    assert len(vocabulary.counts) == vocabulary.rows


@pytest.mark.parametrize("hashed", [1, 2, 7, 1000])
def test_rare_words_share_the_rows_behind_the_others(hashed):
    vocabulary = Vocabulary(size=4, hashed=hashed, min_count=2)
    text = " ".join(f"rare{n}" for n in range(20 * hashed))
    rows = vocabulary.read(text).rows
    assert set(rows.tolist()) <= set(range(5, 5 + hashed))
    assert len(set(rows.tolist())) > 0.9 * hashed
    assert vocabulary.rows == 5 + hashed


def test_a_rare_word_shares_the_same_row_each_time():
    vocabulary = Vocabulary(size=4, hashed=1000, min_count=9)
    rows = [vocabulary.read(text)[0][-1] for text in ("x", "a b x", "é x", "X")]
    assert len(set(rows)) == 1


def test_without_hashed_rows_rare_words_have_the_row_of_what_is_left_out():
    vocabulary = Vocabulary(size=4, hashed=0, min_count=2)
    assert vocabulary.read("a b a c").rows.tolist() == [1, 5, 1, 5]
    assert vocabulary.left_out == 5
    assert vocabulary.rows == 6
    assert Vocabulary(size=4, hashed=1).left_out is None


def test_no_word_has_the_row_of_nothing():
    vocabulary = Vocabulary(size=5, hashed=5, min_count=2)
    rows = vocabulary.read(" ".join(zipf(100, 2000))).rows
    assert NOTHING not in rows
    assert vocabulary.counts[NOTHING] == 0


def test_a_text_without_words_changes_nothing():
    vocabulary = Vocabulary(size=5, hashed=5, min_count=1)
    read = vocabulary.read("\n -- \n")
    assert len(read.rows) == len(read.lines) == 0
    assert read.line_ends == 2
    assert vocabulary.total == len(vocabulary) == 0


# ------------------------------------------------------------------------- counts


@pytest.mark.parametrize("hashed", [0, 1, 50])
@pytest.mark.parametrize("size", [5, 1000])
def test_counts_add_up_to_the_words_that_were_read(size, hashed):
    vocabulary = Vocabulary(size, hashed, min_count=3)
    text = zipf(500, 5000)
    for end in range(50, 5001, 50):
        vocabulary.read(" ".join(text[end - 50 : end]))
        assert vocabulary.total == vocabulary.counts.sum() == end
        assert vocabulary.counts.min() >= 0


def test_counts_of_words_with_a_row_include_the_times_before_they_had_one():
    vocabulary = Vocabulary(size=1000, hashed=7, min_count=4)
    text = zipf(500, 5000)
    for start in range(0, 5000, 50):
        vocabulary.read(" ".join(text[start : start + 50]))
    truth = Counter(text)
    assert set(vocabulary.words) == {word for word in truth if truth[word] >= 4}
    found = vocabulary.counts[1 : 1 + len(vocabulary)].tolist()
    assert found == [truth[word] for word in vocabulary.words]


def test_counts_are_never_negative_when_the_sketch_counts_too_many():
    vocabulary = Vocabulary(size=1000, hashed=5, min_count=3)
    vocabulary._seen = CountMin(bits=6)  # a long stream in small
    for start in range(0, 800, 20):
        vocabulary.read(" ".join(f"w{n}" for n in range(start, start + 40)))
        assert vocabulary.counts.sum() == vocabulary.total
        assert vocabulary.counts.min() >= 0


def test_a_frozen_vocabulary_knows_its_words_and_counts_nothing():
    vocabulary = Vocabulary(size=10, hashed=3, min_count=2)
    rows = vocabulary.read("a a b").rows
    counts = vocabulary.counts.copy()
    vocabulary.frozen = True
    again = vocabulary.read("a a b")
    assert again.rows.tolist() == rows.tolist()
    assert vocabulary.read("b b b new new\n").rows.min() > 10
    assert vocabulary.words == ["a"]
    assert vocabulary.total == 3
    assert np.array_equal(vocabulary.counts, counts)


def test_what_was_seen_while_it_was_frozen_is_not_counted_later():
    vocabulary = Vocabulary(size=10, hashed=3, min_count=3)
    vocabulary.frozen = True
    vocabulary.read("a a a a")
    vocabulary.frozen = False
    vocabulary.read("a a")
    assert "a" not in vocabulary
    vocabulary.read("a")
    assert vocabulary.counts[1] == vocabulary.total == 3


# ------------------------------------------------------------------------ look-ups


def test_words_are_found_whatever_their_case():
    vocabulary = known("don't été Ω snake_case 42")
    assert vocabulary.find(["42", "Été", "Don't", "ω", "SNAKE_CASE"]).tolist() == [
        5,
        2,
        1,
        3,
        4,
    ]
    assert "ÉTÉ" in vocabulary


def test_the_last_letter_of_a_greek_word_is_found_as_it_was_read():
    vocabulary = known("ΟΔΟΣ, ΚΑΙ")
    final, other = "οδο\u03c2", "οδο\u03c3"
    assert vocabulary.find(["ΚΑΙ", "ΟΔΟΣ", final, other]).tolist() == [2, 1, 1, 0]


def test_words_without_a_row_are_not_found():
    vocabulary = Vocabulary(size=1, hashed=3, min_count=2)
    vocabulary.read("a a b b c")
    assert vocabulary.find(["b", "a", "c", "d"]).tolist() == [0, 1, 0, 0]
    assert "b" not in vocabulary


def test_no_words_are_found_at_once():
    vocabulary = known("a")
    assert vocabulary.find([]).tolist() == []
    assert vocabulary.rows_of([]).tolist() == []


@pytest.mark.parametrize(
    "words",
    [
        ["new york", "a"],
        ["a", "new york"],
        ["new york", "!"],
        ["new\nyork", ""],
        ["\na"],
        ["a\n", "a", "new york"],
        ["", "a"],
        ["a", "--", "york"],
        ["mother-in-law"],
    ],
    ids=repr,
)
def test_what_is_no_word_or_several_has_no_row(words):
    vocabulary = known("a new york mother in law")
    alone = [int(vocabulary.find([word])[0]) for word in words]
    rows = {word: row for row, word in enumerate(vocabulary.words, start=1)}
    assert alone == [rows.get(word.strip(), 0) for word in words]
    assert vocabulary.find(words).tolist() == alone
    assert [word in vocabulary for word in words] == [row > 0 for row in alone]


def test_rows_of_known_words_are_given():
    assert known("a b c").rows_of(["c", "A", "c"]).tolist() == [3, 1, 3]


@pytest.mark.parametrize("word", ["Rare", "never", "a b", "!", ""])
def test_rows_of_unknown_words_are_refused(word):
    vocabulary = Vocabulary(size=20_000, hashed=3, min_count=2)
    vocabulary.read("a b a b rare")
    with pytest.raises(KeyError) as raised:
        vocabulary.rows_of(["a", word, "b"])
    message = raised.value.args[0]
    assert message.startswith(f"{word!r} has no row")
    assert "fewer than 2 times" in message
    assert "20,000 words" in message


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": -1},
        {"hashed": -1},
        {"min_count": 0},
    ],
    ids=repr,
)
def test_sizes_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigurationError, match=r"size=.*hashed=.*min_count="):
        Vocabulary(**settings)
