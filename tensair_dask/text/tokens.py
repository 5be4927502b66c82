"""Finding the words of a text, all at once."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

__all__ = ["Tokens", "tokenize"]

# Letters of other alphabets are told from punctuation where there are any.
NOT_WORDS = re.compile(r"[^\w'\n]+")
# In ASCII all but letters, digits, underscores, apostrophes and line ends separates
# words. Bytes above are of letters that the expression has let through.
SEPARATED = bytes(
    code if chr(code).isalnum() or chr(code) in "'_\n" or code >= 128 else ord(" ")
    for code in range(256)
)
SPACE = ord(" ")
LINE_END = ord("\n")

# A fingerprint is made of a word's first 24 bytes and its length.
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
        The bytes (UTF-8, lower case) in which they lie.
    starts, lengths
        Where each begins, and its bytes; int64, (words,).
    lines
        How many line ends come before each; int64, (words,).
    line_ends
        In the whole text.
    fingerprints
        64 bits for each word, never 0; uint64, (words,). Two words have the same one
        with a chance of 1 in 10**19, or if they differ only after their 24th byte.
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

    Takes about 50 ns a word. Splitting and looking every word up in a dict takes 125,
    and twice that beside busy processes, because each look-up touches memory in four
    places.
    """
    text = text.lower()
    if not text.isascii():
        text = NOT_WORDS.sub(" ", text)
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
    return np.maximum(mixed, np.uint64(1))
