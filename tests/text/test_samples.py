from __future__ import annotations

import random

import numpy as np
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.samples import LENGTH, Sampler, Samples, reach_code, reach_of
from tensair_dask.text.vocabulary import Vocabulary

BLOCKS = 4  # of a step, unless a test says otherwise


def sampler(vocabulary: Vocabulary | None = None, **settings: float) -> Sampler:
    """One that keeps all words, unless a test says otherwise."""
    if vocabulary is None:
        vocabulary = Vocabulary(size=2000, hashed=10, min_count=1)
    return Sampler(vocabulary, **{"blocks": BLOCKS, "subsample": 0, **settings})


def joined(several: list[Samples]) -> Samples:
    fields = ("words", "reach", "negatives", "read")
    return Samples(
        *(np.concatenate([getattr(one, name) for one in several]) for name in fields)
    )


def samples_of(ours: Sampler, *texts: str) -> Samples:
    """Of all words, the last ones included."""
    made = [ours.add(ours.vocabulary.read(text)) for text in texts]
    return joined([*made, ours.flush()])


def lines_of_text(lines: int, longest: int, seed: int = 0) -> list[str]:
    """Lines of different lengths, each with an end; some of them are empty."""
    choose = random.Random(seed)
    return [
        " ".join(f"w{choose.randrange(300)}" for _ in range(choose.randrange(longest)))
        + "\n"
        for _ in range(lines)
    ]


# ------------------------------------------------------------------------- blocks


def test_blocks_of_32_words_hold_the_text_in_order():
    vocabulary = Vocabulary(size=2000, hashed=10, min_count=1)
    text = "".join(lines_of_text(100, 40))
    rows = vocabulary.read(text).rows
    made = samples_of(sampler(vocabulary), text)
    assert made.words.shape == (-(-len(rows) // 32), 32)
    assert made.words.ravel()[: len(rows)].tolist() == rows.tolist()
    assert len(made) == len(made.words)


def test_words_wait_until_a_step_is_full():
    ours = sampler(blocks=2)
    vocabulary = ours.vocabulary
    given = [len(ours.add(vocabulary.read("w " * 30))) for _ in range(5)]
    assert given == [0, 0, 2, 0, 2]
    assert len(ours) == 150 - 4 * 32
    ours.flush()
    assert len(ours) == 0


@pytest.mark.parametrize("words", [1, 31, 32, 33, 127])
def test_the_last_block_is_padded(words):
    ours = sampler()
    made = samples_of(ours, " ".join(f"w{n}" for n in range(words)))
    assert made.words.shape == (-(-words // 32), 32)
    assert made.words.ravel()[:words].tolist() == list(range(1, words + 1))
    assert not made.words.ravel()[words:].any()


@pytest.mark.parametrize(
    "text", ["", "a", "w " * 31, "a b\nc\n\n", "w " * 40 + "\n" + "v " * 41]
)
def test_padding_has_no_context_and_is_none(text):
    made = samples_of(sampler(window=9), text)
    _, left, right = decoded(made, 9)
    places = np.arange(made.words.size).reshape(made.words.shape)
    used = len(text.split())
    assert not left[places >= used].any()
    assert not right[places >= used].any()
    assert (places + right)[places < used].max(initial=0) < max(used, 1)


def test_samples_have_the_shapes_and_types_that_steps_take():
    made = samples_of(sampler(negatives=7), *lines_of_text(30, 40))
    blocks = len(made)
    assert made.words.shape == made.reach.shape == (blocks, 32)
    assert made.negatives.shape == (blocks, 7)
    assert made.read.shape == (blocks,)
    assert made.reach.dtype == np.int16
    assert {made.words.dtype, made.negatives.dtype, made.read.dtype} == {
        np.dtype(np.int32)
    }


def test_steps_are_cuts_of_the_samples():
    made = samples_of(sampler(), *lines_of_text(40, 20))
    steps = list(made.steps(5))
    assert len(made) % 5
    assert {len(step) for step in steps[:-1]} == {5}
    assert 0 < len(steps[-1]) < 5
    again = joined(steps)
    for name in ("words", "reach", "negatives", "read"):
        assert np.array_equal(getattr(again, name), getattr(made, name))


def test_nothing_at_all_gives_no_steps():
    ours = sampler()
    assert len(ours.flush()) == 0
    assert list(ours.add(ours.vocabulary.read("")).steps(4)) == []


# -------------------------------------------------------------------------- reach


def decoded(made: Samples, window: int) -> tuple[np.ndarray, ...]:
    place, left, right = reach_of(window)
    return place[made.reach], left[made.reach], right[made.reach]


@pytest.mark.parametrize("window", [1, 5, LENGTH - 1])
def test_a_code_says_place_left_and_right(window):
    place, left, right = reach_of(window)
    codes = reach_code(place, left, right, window)
    assert codes.dtype == np.int16
    assert codes.tolist() == list(range(LENGTH * (window + 1) ** 2))
    assert (place.max(), left.max(), right.max()) == (LENGTH - 1, window, window)


@pytest.mark.parametrize("window", [1, 5, 31])
@pytest.mark.parametrize("longest", [4, 100])
def test_context_ends_with_the_window_the_line_and_the_block(window, longest):
    texts = lines_of_text(60, longest)
    made = samples_of(sampler(window=window), *texts)
    place, left, right = (part.ravel() for part in decoded(made, window))
    lines = [number for number, line in enumerate(texts) for _ in line.split()]
    for at, line in enumerate(lines):
        block = at - at % LENGTH
        same = [n for n in range(block, block + LENGTH) if lines[n : n + 1] == [line]]
        reach = max(left[at], right[at])  # what was drawn, if it is not cut
        assert place[at] == at % LENGTH
        assert reach <= window
        assert left[at] == min(reach, at - same[0])
        assert right[at] == min(reach, same[-1] - at)


def test_each_reach_up_to_the_window_is_drawn_as_often():
    made = samples_of(sampler(window=5), "w " * 32 * 500)
    _, left, right = decoded(made, 5)
    inner = slice(5, -5)  # away from the ends of a block
    assert np.array_equal(left[:, inner], right[:, inner])
    shares = np.bincount(left[:, inner].ravel(), minlength=6) / left[:, inner].size
    assert shares[0] == 0
    assert np.allclose(shares[1:], 0.2, atol=0.02)


def test_a_line_that_comes_in_two_texts_is_one_line():
    made = samples_of(sampler(window=1), "a b", "c d\ne", "f")
    _, left, right = decoded(made, 1)
    assert left[0, :6].tolist() == [0, 1, 1, 1, 0, 1]
    assert right[0, :6].tolist() == [1, 1, 1, 0, 1, 0]


def test_lines_of_two_texts_are_two_lines_though_one_of_them_was_waiting():
    made = samples_of(sampler(window=1), "a\n", "b\n", "\n\n", "c\n")
    _, left, right = decoded(made, 1)
    assert not left.any()
    assert not right.any()


def test_a_line_does_not_go_on_after_a_flush():
    ours = sampler(window=1)
    first = samples_of(ours, "a b c")
    second = samples_of(ours, "d e")
    _, left, right = decoded(second, 1)
    assert first.words[0, :3].tolist() == [1, 2, 3]
    assert second.words[0, :3].tolist() == [4, 5, 0]
    assert left[0, :3].tolist() == [0, 1, 0]
    assert right[0, :3].tolist() == [1, 0, 0]


def test_words_that_are_left_out_do_not_stand_between_others():
    vocabulary = Vocabulary(size=5, hashed=0, min_count=2)
    made = samples_of(sampler(vocabulary, window=1), "a x y b z\na b")
    _, left, right = decoded(made, 1)
    assert made.words[0, :5].tolist() == [1, 2, 1, 2, 0]
    assert left[0, :4].tolist() == [0, 1, 0, 1]
    assert right[0, :4].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("window", [0, -1, 32])
def test_a_window_that_a_block_cannot_hold_is_refused(window):
    with pytest.raises(ConfigurationError, match="1 to 31"):
        sampler(window=window)


# -------------------------------------------------------------------- subsampling


def frequent_and_rare() -> tuple[Vocabulary, str]:
    """A text of 20,000 words, half of them one word, the others seen 5 times each."""
    words = ["the"] * 10_000 + [f"w{n}" for n in range(2000) for _ in range(5)]
    random.Random(0).shuffle(words)
    return Vocabulary(size=3000, hashed=10, min_count=1), " ".join(words)


@pytest.mark.parametrize("subsample", [1e-3, 1e-2])
def test_subsampling_keeps_the_share_of_the_original_program(subsample):
    vocabulary, text = frequent_and_rare()
    made = samples_of(sampler(vocabulary, subsample=subsample, seed=3), text)
    (the,) = vocabulary.find(["the"])
    kept = (made.words == the).sum() / 10_000
    ratio = subsample / 0.5
    assert kept == pytest.approx(ratio**0.5 + ratio, rel=0.15)


def test_rare_words_are_all_kept():
    vocabulary, text = frequent_and_rare()
    made = samples_of(sampler(vocabulary, subsample=1e-3), text)
    times = np.bincount(made.words.ravel(), minlength=vocabulary.rows)
    rare = vocabulary.find([f"w{n}" for n in range(2000)])
    assert (times[rare] == 5).all()


def test_without_subsampling_all_words_are_kept():
    vocabulary, text = frequent_and_rare()
    assert (samples_of(sampler(vocabulary), text).words > 0).sum() == 20_000


# ---------------------------------------------------------------------- negatives


def shares_of(made: Samples, rows: int) -> np.ndarray:
    drawn = np.bincount(made.negatives.ravel(), minlength=rows)
    return drawn / made.negatives.size


@pytest.mark.parametrize("hashed", [0, 3])
def test_negatives_follow_the_counts_to_the_power_of_three_quarters(hashed):
    vocabulary = Vocabulary(size=6, hashed=hashed, min_count=1)
    words = [word for n, word in enumerate("abcdefghi") for _ in range(3**n)]
    random.Random(1).shuffle(words)
    text = " ".join(words)
    made = samples_of(sampler(vocabulary, negatives=64), text)
    counts = vocabulary.counts.astype(float)
    if not hashed:
        counts[vocabulary.left_out] = 0
    expected = counts**0.75 / (counts**0.75).sum()
    found = shares_of(made, vocabulary.rows)
    assert made.negatives.size > 10_000
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(found - counts / counts.sum()).max() > 0.05


def test_nothing_and_what_is_left_out_are_never_negatives():
    vocabulary = Vocabulary(size=5, hashed=0, min_count=2)
    made = samples_of(
        sampler(vocabulary, negatives=100), "a b a b a\n" * 100, "x y z\n" * 1000
    )
    assert set(np.unique(made.negatives)) == {1, 2, 3, 4, 5}
    rare = " ".join(f"rare{n}" for n in range(5000))
    made = samples_of(sampler(vocabulary, negatives=100), rare, "a b a b a\n" * 100)
    assert set(np.unique(made.negatives)) == {1, 2, 3, 4, 5}


def test_what_is_left_out_is_no_negative_of_the_first_words_that_have_rows():
    vocabulary = Vocabulary(size=5, hashed=0, min_count=2)
    ours = sampler(vocabulary, negatives=100)
    rare = " ".join(f"rare{n}" for n in range(1000))
    made = samples_of(ours, rare, "a " * 40)
    assert made.words.any()
    assert vocabulary.left_out not in made.negatives


def test_words_become_negatives_when_they_become_frequent():
    vocabulary = Vocabulary(size=50, hashed=10, min_count=1)
    ours = sampler(vocabulary, negatives=50)
    ours.add(vocabulary.read("a " * 1000))
    made = samples_of(ours, "b " * 3000)
    shares = shares_of(made, vocabulary.rows)
    assert shares[2] == pytest.approx(3**0.75 / (1 + 3**0.75), abs=0.05)


def test_a_vocabulary_that_has_counted_nothing_gives_negatives_of_all_words():
    vocabulary = Vocabulary(size=5, hashed=4, min_count=1)
    vocabulary.frozen = True
    made = samples_of(sampler(vocabulary, negatives=500), "a b c")
    assert set(np.unique(made.negatives)) == set(range(1, 10))


# ------------------------------------------------------- words read, seeds, pieces


@pytest.mark.parametrize("subsample", [0, 1e-3])
@pytest.mark.parametrize("hashed", [0, 10])
def test_words_that_were_read_add_up_after_a_flush(subsample, hashed):
    vocabulary = Vocabulary(size=100, hashed=hashed, min_count=3)
    ours = sampler(vocabulary, subsample=subsample)
    texts = lines_of_text(300, 60)
    made = samples_of(ours, *texts)
    assert made.read.sum() == sum(len(text.split()) for text in texts)
    assert made.read.min() >= 0
    again = samples_of(ours, *texts[:50])
    assert again.read.sum() == sum(len(text.split()) for text in texts[:50])


def test_a_block_stands_for_its_words_and_those_left_out_between_them():
    ours = sampler(Vocabulary(size=5, hashed=0, min_count=2))
    every = ours.add(ours.vocabulary.read("a b " * 16 * BLOCKS))
    second = ours.add(ours.vocabulary.read("".join(f"a x{n} " for n in range(128))))
    assert (every.read == LENGTH).all()
    assert (second.read == 2 * LENGTH).all()
    assert len(every) == len(second) == BLOCKS


def test_words_that_were_all_left_out_before_a_flush_are_counted_with_the_next():
    vocabulary = Vocabulary(size=5, hashed=0, min_count=2)
    ours = sampler(vocabulary)
    first = samples_of(ours, "x y z")
    second = samples_of(ours, "a a a a")
    assert len(first) == 0
    assert second.read.sum() == 7


def test_the_same_seed_gives_the_same_samples_and_another_does_not():
    texts = lines_of_text(200, 30)

    def made(seed: int) -> Samples:
        return samples_of(sampler(subsample=1e-2, seed=seed), *texts)

    one, two, other = made(5), made(5), made(6)
    for name in ("words", "reach", "negatives", "read"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.words[0], other.words[0])
    assert not np.array_equal(one.negatives[0], other.negatives[0])


@pytest.mark.parametrize("lines", [1, 7, 50])
def test_a_text_in_pieces_gives_the_words_of_the_whole(lines):
    texts = lines_of_text(200, 30)
    whole = samples_of(sampler(), "".join(texts))
    pieces = ["".join(texts[n : n + lines]) for n in range(0, 200, lines)]
    made = samples_of(sampler(), *pieces)
    assert np.array_equal(made.words, whole.words)
    assert np.array_equal(made.read, whole.read)
    # No window of one crosses a line that ends one of the other.
    for one in (made, whole):
        _, left, _ = decoded(one, 5)
        starts = np.cumsum([0, *(len(text.split()) for text in texts)])[:-1]
        assert not left.ravel()[starts[starts < left.size]].any()
