from __future__ import annotations

import random
import re

import numpy as np
import pytest

from tensair_dask.text.tokens import tokenize

WORD = re.compile(r"[\w']+")


def words(text: str) -> list[str]:
    tokens = tokenize(text)
    return [tokens.word(number) for number in range(len(tokens.starts))]


def fingerprints(*texts: str) -> list[int]:
    """Of words, each the only one of its text."""
    found = [tokenize(text).fingerprints for text in texts]
    assert all(len(one) == 1 for one in found)
    return [int(one[0]) for one in found]


TEXTS = {
    "plain": "the cat sat on the mat",
    "upper case": "The CAT Sat oN",
    "punctuation": "Well, (this) -- is it? [it] is; a.b/c:d=e!",
    "hyphens and underscores": "mother-in-law snake_case __init__ _",
    "apostrophes": "don't 'quoted' dogs' ' '' rock'n'roll",
    "digits": "in 1984, 3.14 or 1,000 or 2nd x2",
    "white space": "a\tb\rc\x0bd\x0ce  f\r\ng\x1ch\x85i",
    "control characters": "a\x00b\x7fc\x1bd",
    "edges": " a ",
    "only a word": "a",
    "nothing": "",
    "only spaces": "   ",
    "only line ends": "\n\n\n",
    "only punctuation": "?! ... -- ()",
    "only punctuation of other alphabets": "… — «» 。",
    "Greek": "Ο ΟΔΥΣΣΕΥΣ και η Ιθάκη·",
    "Cyrillic": "«Война и мир», Том 1",
    "accents": "Crème brûlée, Ångström naïve ÉCOLE",
    "accents that are characters of their own": "cafe\u0301 au lait",
    "curly quotes": "“don’t” ‘won't’ it’s",
    "emoji": "good 👍🏽 morning☀️to👨‍👩‍👧you",
    "Chinese": "我爱北京。天安门!",
    "Arabic": "السلام عليكم، 123 ٤٥٦",
    "Hindi": "नमस्ते दुनिया",
    "digits that are letters": "x² ½ Ⅷ ①",
    "spaces that are not ASCII": "a\u00a0b\u2003c\u3000d\u2028e\u200bf",
    "lower case is ASCII": "\u212aelvin",  # the sign of the unit
    "lower case is longer": "İstanbul",
    "letters beyond 16 bits": "𝒜𝓫 𐐀𐐨 x",
    "half a character": "a\ud83db \udc4d",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_words_are_those_of_a_plain_expression(text):
    assert words(text) == WORD.findall(text.lower())


def test_every_character_of_16_bits_is_part_of_a_word_or_not():
    text = " ".join(f"a{chr(code)}b" for code in range(1 << 16))
    assert words(text) == WORD.findall(text.lower())


def test_words_of_random_texts_are_those_of_a_plain_expression():
    choose = random.Random(0)
    for _ in range(300):
        letters = "aB_'9 \n.-" + choose.choice(["", "éЖ", "’👍", "ß中\u0301"])
        text = "".join(choose.choices(letters, k=choose.randrange(60)))
        assert words(text) == WORD.findall(text.lower()), text


@pytest.mark.parametrize("text", ["", "   ", "\n", "?!"])
def test_a_text_without_words_has_none(text):
    tokens = tokenize(text)
    assert {len(part) for part in tokens[1:4]} == {0}
    assert tokens.fingerprints.dtype == np.uint64
    assert len(tokens.fingerprints) == 0


@pytest.mark.parametrize(
    "text",
    [
        "one\ntwo three\n\nfour",
        "\n\none\n",
        "one",
        "",
        "\n",
        "a\r\nb\rc\u2028d\x0be\n",  # only one of them ends lines
        "été\n“Ж”\n\n👍\nend",
    ],
)
def test_lines_are_counted(text):
    tokens = tokenize(text)
    before = [
        text[: match.start()].count("\n") for match in WORD.finditer(text.lower())
    ]
    assert tokens.lines.tolist() == before
    assert tokens.line_ends == text.count("\n")


def test_a_word_has_the_same_fingerprint_wherever_it_stands():
    alone = fingerprints("word")[0]
    texts = ["word", "Word!", "a word b", "words word wordy", "é word", "x" * 50, "\n"]
    tokens = tokenize("\n".join(texts))
    at = [n for n in range(len(tokens.starts)) if tokens.word(n) == "word"]
    assert len(at) == 5
    assert set(tokens.fingerprints[at].tolist()) == {alone}


def test_a_word_of_other_letters_has_the_same_fingerprint_wherever_it_stands():
    alone = fingerprints("человеконенавистничество")[0]
    tokens = tokenize("«Человеконенавистничество», ЧЕЛОВЕКОНЕНАВИСТНИЧЕСТВО x")
    assert tokens.fingerprints[:2].tolist() == [alone, alone]


def test_different_words_have_different_fingerprints():
    choose = random.Random(1)
    several = {
        "".join(choose.choices("ab_'z9", k=choose.randint(1, 24)))
        for _ in range(100_000)
    }
    tokens = tokenize(" ".join(several))
    assert len(tokens.starts) == len(several)
    assert len(np.unique(tokens.fingerprints)) == len(several)
    assert tokens.fingerprints.min() > 0


@pytest.mark.parametrize("length", range(2, 25))
def test_each_of_the_first_24_bytes_and_the_length_count(length):
    changed = ["a" * at + "b" + "a" * (length - at - 1) for at in range(length)]
    several = ["a" * length, "a" * (length - 1), *changed]
    assert len(set(fingerprints(*several))) == len(several)


def test_longer_words_are_told_apart_by_their_first_24_bytes_and_their_length():
    start = "abcdefghijklmnopqrstuvwx"
    one, same, longer, other, shorter = fingerprints(
        start + "yz", start + "12", start + "yzz", "z" + start[1:] + "yz", start
    )
    assert one == same
    assert len({one, longer, other, shorter}) == 4


def test_long_words_whose_first_letter_makes_up_for_the_length_are_told_apart():
    rest = "x" * 23
    several = ["a" + rest + "x", "b" + rest, "a" + rest + "xxxx", "d" + rest + "x"]
    assert len(set(fingerprints(*several))) == len(several)


def test_a_very_long_word_is_one_word():
    text = "a " + "xyz" * 100_000 + " b"
    tokens = tokenize(text)
    assert tokens.lengths.tolist() == [1, 300_000, 1]
    assert tokens.word(1) == "xyz" * 100_000
