from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pytest

from tensair_dask.text.tokens import tokenize

WORD = re.compile(r"[\w']+")


def plain(text: str) -> list[str]:
    """Words as the definition has them, character by character."""
    text = unicodedata.normalize("NFC", text.lower()).replace("\u00ad", "")
    found, current, joiners = [], "", ""
    for at, letter in enumerate(text):
        mark = unicodedata.category(letter)[0] == "M"
        if letter in "\u200c\u200d":
            joiners += letter if current else ""
            continue
        if letter == "\u2019" and current and not joiners:
            before, after = text[at - 1], text[at + 1 : at + 2]
            if before != "\u2019" and re.match(r"[\w']", after):
                letter = "'"
        if re.match(r"[\w']", letter) or (mark and current):
            current += joiners + letter
        elif current:
            found.append(current)
            current = ""
        joiners = ""
    return [*found, current] if current else found


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
    "Hindi": "नमस्ते दुनिया, हिन्दी",
    "Tamil": "தமிழ் மொழி!",
    "Thai": "ภาษาไทยที่ดี น้ำ",
    "vocalised Arabic": "مُحَمَّد، كِتَابٌ",
    "pointed Hebrew": "שָׁלוֹם עוֹלָם",
    "Persian with joiners": "می\u200cخواهم نمی\u200cدانم\u200c.",
    "Sinhala with joiners": "ශ්\u200dරී ලංකා",
    "accents of several kinds": unicodedata.normalize("NFD", "Việt Ǖber ệ résumé"),
    "marks behind nothing": "\u0301a -\u0301b \u0301 c",
    "marks behind emoji": "☀\ufe0fto ❤\ufe0f 1\ufe0f\u20e3",
    "joiners behind nothing": "\u200da b\u200d \u200c \u200cc",
    "hyphens that may show": "co\u00adope\u00adration \u00ad",
    "Hangul of parts": unicodedata.normalize("NFD", "한국어 사람"),
    "marks beyond 16 bits": "𑀓\U00011038𑀓 a\U000e0100b",
    "curly quotes in a row": "’tis ’’ rock’n’roll dogs’ a’’b e\u0301’s",
    "digits that are letters": "x² ½ Ⅷ ①",
    "spaces that are not ASCII": "a\u00a0b\u2003c\u3000d\u2028e\u200bf",
    "lower case is ASCII": "\u212aelvin",  # the sign of the unit
    "lower case is longer": "İstanbul",
    "letters beyond 16 bits": "𝒜𝓫 𐐀𐐨 x",
    "half a character": "a\ud83db \udc4d",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_words_are_those_of_a_plain_expression(text):
    assert words(text) == plain(text)


def test_words_of_ascii_are_those_of_a_plain_expression():
    text = " ".join(f"a{chr(code)}b" for code in range(128))
    assert words(text) == WORD.findall(text.lower()) == plain(text)


def test_every_character_is_part_of_a_word_or_not():
    text = " ".join(f"a{chr(code)}b" for code in range(0x20000))
    assert words(text) == plain(text)


def test_composed_and_decomposed_texts_have_the_same_words():
    text = "Crème brûlée, Ångström, Việt Nam, ЙОД, が"
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text)) == words(text)


def test_words_of_random_texts_are_those_of_a_plain_expression():
    choose = random.Random(0)
    for _ in range(300):
        letters = "aB_'9 \n.-" + choose.choice(
            ["", "éЖ", "’👍", "ß中\u0301", "\u200d\u0301\u00ad", "क्\u200c’"]
        )
        text = "".join(choose.choices(letters, k=choose.randrange(60)))
        assert words(text) == plain(text), ascii(text)


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


@pytest.mark.parametrize("length", [*range(2, 34), *range(60, 70), 200])
def test_each_byte_and_the_length_count(length):
    changed = ["a" * at + "b" + "a" * (length - at - 1) for at in range(length)]
    several = ["a" * length, "a" * (length - 1), *changed]
    assert len(set(fingerprints(*several))) == len(several)


@pytest.mark.parametrize(
    "several",
    [
        ["представительство", "представительница", "представительствa"],
        ["http_get_request_handler_v1", "http_get_request_handler_v2"],
        ["abcdefgh" * 6, "abcdefgh" * 5 + "hgfedcba"],
        ["x" * 24 + one + two for one in "ab" for two in ("c" * 8, "d" * 8, "cd" * 4)],
        ["x" * 32 + "a" * 8 + "b" * 8, "x" * 32 + "b" * 8 + "a" * 8],
    ],
)
def test_long_words_that_begin_alike_are_distinguished(several):
    assert len(set(fingerprints(*several))) == len(several)


def test_many_long_words_have_different_fingerprints():
    choose = random.Random(2)
    ends = {"".join(choose.choices("ab", k=choose.randint(1, 40))) for _ in range(9999)}
    several = [f"shared_beginning_of_all_{end}" for end in ends]
    tokens = tokenize(" ".join(several))
    assert len(np.unique(tokens.fingerprints)) == len(several)


def test_long_words_whose_first_letter_makes_up_for_the_length_are_distinguished():
    rest = "x" * 23
    several = ["a" + rest + "x", "b" + rest, "a" + rest + "xxxx", "d" + rest + "x"]
    assert len(set(fingerprints(*several))) == len(several)


def test_a_very_long_word_is_one_word():
    text = "a " + "xyz" * 100_000 + " b"
    tokens = tokenize(text)
    assert tokens.lengths.tolist() == [1, 300_000, 1]
    assert tokens.word(1) == "xyz" * 100_000
