"""Finding the words of a text, all at once."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Tokens", "fingerprints_of", "tokenize"]

# Shows only where a line ends.
SOFT_HYPHEN = "\u00ad"
# Of typesetters; between letters no quotation mark.
APOSTROPHE = ord("\u2019")
# Join letters, or keep them apart, within a word (Persian, Hindi).
JOINERS = "\u200c\u200d"
# Kinds of characters.
BETWEEN, LETTER, MARK, JOINER, END = range(5)
UTF_32 = "utf-32-le"
# In ASCII all but letters, digits, underscores, apostrophes and line ends separates
# words. Bytes above are of letters that the expression has let through.
SEPARATED = bytes(
    code if chr(code).isalnum() or chr(code) in "'_\n" or code >= 128 else ord(" ")
    for code in range(256)
)
SPACE = ord(" ")
LINE_END = ord("\n")

# A fingerprint is made of all bytes of a word, 8 at once, and of their number. Longer
# words are few, and hashed one by one.
WIDTH = 8
LOADS = 3
PADDING = b" " * WIDTH * (LOADS + 1)
# Which bytes of a load belong to a word of which so many are left.
MASKS = np.array(
    [(1 << 8 * length) - 1 for length in range(WIDTH + 1)], dtype=np.uint64
)
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64
)
FINAL = np.uint64(0xFF51AFD7ED558CCD)
HALF = np.uint64(32)


class Tokens(NamedTuple):
    """Words of a text, in order.

    Attributes
    ----------
    text
        The bytes (UTF-8, lower case, NFC) in which they lie.
    starts, lengths
        Where each begins, and its bytes; int64, (words,).
    lines
        How many line ends come before each; int64, (words,).
    line_ends
        In the whole text.
    fingerprints
        64 bits for each word, never 0; uint64, (words,). Two words have the same one
        with a chance of 1 in 10**19.
    """

    text: bytes
    starts: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray
    line_ends: int
    fingerprints: np.ndarray

    def word(self, number: int) -> str:
        """Give one of the words."""
        start = int(self.starts[number])
        return self.text[start : start + int(self.lengths[number])].decode()


def tokenize(text: str) -> Tokens:
    """Find the words: runs of letters, digits, underscores and apostrophes.

    The marks of a letter belong to it (accents, vowel signs, tones), as UAX #29 has it,
    and so do joiners between letters. Texts are compared in NFC. Thai and Chinese are
    not cut between words: a run of letters is one.

    Takes about 50 ns a word. Splitting and looking every word up in a dict takes 125,
    and twice that beside busy processes, because each look-up touches memory in four
    places.
    """
    text = text.lower()
    if not text.isascii():
        text = _plain(text)
    encoded = b" " + text.encode().translate(SEPARATED) + PADDING
    letters = np.frombuffer(encoded, np.uint8)
    inside = letters > SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    line_ends = np.flatnonzero(letters == LINE_END)
    lines = np.searchsorted(line_ends, starts)
    return Tokens(
        encoded,
        starts,
        lengths,
        lines,
        len(line_ends),
        _fingerprints(letters, starts, lengths),
    )


def fingerprints_of(words: Sequence[str]) -> np.ndarray:
    """Give the fingerprints of words of a `Tokens`, whatever is in them."""
    encoded = [word.encode() for word in words]
    lengths = np.array([len(word) for word in encoded], np.int64)
    letters = np.frombuffer(b"".join([*encoded, PADDING]), np.uint8)
    return _fingerprints(letters, np.cumsum(lengths) - lengths, lengths)


def _plain(text: str) -> str:
    """Leave only words, and spaces and line ends between them."""
    text = unicodedata.normalize("NFC", text)
    if SOFT_HYPHEN in text:
        text = text.replace(SOFT_HYPHEN, "")
    # Halves of characters are no letters; they are gone before this is decoded.
    codes = np.frombuffer(bytearray(text.encode(UTF_32, "surrogatepass")), np.uint32)
    kinds = _kinds()[codes]
    keep = (kinds == LETTER) | (kinds == END)
    if ((kinds == MARK) | (kinds == JOINER)).any():
        _attach(kinds, keep)
    _straighten(codes, kinds, keep)
    codes[~keep] = SPACE
    return codes.tobytes().decode(UTF_32)


def _straighten(codes: np.ndarray, kinds: np.ndarray, keep: np.ndarray) -> None:
    """Let apostrophes between letters be those of ASCII."""
    at = np.flatnonzero(codes[1:-1] == APOSTROPHE) + 1
    before, after = kinds[at - 1], kinds[at + 1]
    begun = keep[at - 1] & ((before == LETTER) | (before == MARK))
    at = at[begun & (after == LETTER)]
    codes[at] = ord("'")
    keep[at] = True


def _attach(kinds: np.ndarray, keep: np.ndarray) -> None:
    """Keep marks behind a letter, and joiners between letters."""
    added = (kinds == MARK) | (kinds == JOINER)
    places = np.arange(len(kinds))
    base = np.maximum.accumulate(np.where(added, 0, places))
    joined = kinds == JOINER
    after = np.where(joined, len(kinds) - 1, places)
    after = np.minimum.accumulate(after[::-1])[::-1]
    leads_on = (kinds[after] == LETTER) | (kinds[after] == MARK)
    keep |= added & (kinds[base] == LETTER) & (leads_on | ~joined)


@functools.cache
def _kinds() -> np.ndarray:
    """Give the kind of each character there is; made when a text is not ASCII."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.zeros(len(everything), np.uint8)
    for run in re.finditer(r"[\w']+", everything):
        kinds[run.start() : run.end()] = LETTER
    kinds[ord("\n")] = END
    # Marks lie in planes 0 and 1, and in the selectors of plane 14.
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(everything[code])[0] == "M":
            kinds[code] = MARK
    kinds[[ord(joiner) for joiner in JOINERS]] = JOINER
    return kinds


def _fingerprints(
    letters: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    # 8 bytes from any place on, as one number.
    loads = np.ndarray((len(letters) - WIDTH + 1,), np.uint64, letters, strides=(1,))
    mixed = lengths.astype(np.uint64) * FINAL
    mixed += loads[starts] & MASKS[np.minimum(lengths, WIDTH)]
    mixed *= MULTIPLIERS[0]
    for number in range(1, LOADS):
        longer = np.flatnonzero(lengths > WIDTH * number)
        rest = np.minimum(lengths[longer] - WIDTH * number, WIDTH)
        part = loads[starts[longer] + WIDTH * number] & MASKS[rest]
        part *= MULTIPLIERS[number]
        part ^= part >> HALF
        mixed[longer] += part * MULTIPLIERS[0]
    mixed ^= mixed >> HALF
    mixed *= FINAL
    mixed ^= mixed >> HALF
    longer = np.flatnonzero(lengths > WIDTH * LOADS)
    if len(longer):
        mixed[longer] = _hashed(letters, starts[longer], lengths[longer])
    return np.maximum(mixed, np.uint64(1))


def _hashed(letters: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    data = letters.data
    digests = [
        hashlib.blake2b(data[start:stop], digest_size=WIDTH).digest()
        for start, stop in zip(
            starts.tolist(), (starts + lengths).tolist(), strict=True
        )
    ]
    return np.frombuffer(b"".join(digests), np.uint64)
