"""Training samples of word2vec, made from rows of a vocabulary, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.vocabulary import NOTHING, Read, Vocabulary

__all__ = ["LENGTH", "Sampler", "Samples", "reach_code", "reach_of"]

# Words in a block. All pairs of a block are one matrix product, of which the window
# needs a band: 32 is where the products are fast and few pairs cross the ends.
LENGTH = 32

# Of how much the counts may have grown before the distributions are made anew.
GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class Samples:
    """Blocks of consecutive words, with all that a step needs to know of them.

    Attributes
    ----------
    words
        Rows of the table, int32, (blocks, 32); 0 where a block is not full.
    reach
        How many words to the left and to the right of each are its context, as one
        number (see `reach_code`), int16, (blocks, 32).
    negatives
        Rows drawn from the noise distribution, int32, (blocks, negatives).
    read
        Words of the text that each block stands for, those included that subsampling
        has left out, int32, (blocks,).
    """

    words: np.ndarray
    reach: np.ndarray
    negatives: np.ndarray
    read: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    def steps(self, blocks: int) -> Iterator[Samples]:
        """Cut them into what single steps are made with."""
        for start in range(0, len(self), blocks):
            rows = slice(start, start + blocks)
            yield Samples(
                self.words[rows],
                self.reach[rows],
                self.negatives[rows],
                self.read[rows],
            )


class Sampler:
    """Turns rows of words into blocks: subsampling, dynamic windows, negatives.

    Everything is done for thousands of words at a time and costs about 40 ns a word.

    Parameters
    ----------
    vocabulary
        Whose counts decide what is frequent.
    window
        Words to each side that may be context; each word draws its own reach from 1
        to that.
    negatives
        Rows to draw for each block.
    blocks
        To gather before they are given out; a step is made with so many.
    subsample
        Words that are more than this share of the text are left out at random; 0
        keeps all.
    seed
        Of all that is drawn.

    References
    ----------
    Mikolov et al., "Distributed representations of words and phrases and their
    compositionality", NIPS 2013: subsampling, and the 3/4 power of the noise
    distribution. The formula of subsampling is that of their program.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        window: int = 5,
        negatives: int = 4,
        blocks: int = 48,
        subsample: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not 1 <= window < LENGTH:
            raise ConfigurationError(
                f"window={window} was given; 1 to {LENGTH - 1} is allowed."
            )
        self.vocabulary = vocabulary
        self._window = window
        self._negatives = negatives
        self._step = blocks * LENGTH
        self._subsample = subsample
        self._random = np.random.default_rng(seed)
        self._known_total = 0
        left_out = vocabulary.left_out
        self._never = [NOTHING] if left_out is None else [NOTHING, left_out]
        self._keep = np.ones(vocabulary.rows, np.float32)
        self._noise = np.zeros(vocabulary.rows)
        # Words, their lines, and how many were read, that do not fill a block yet.
        self._rest = np.zeros(0, np.int32), np.zeros(0, np.int64), 0
        self._lines = 0

    def __len__(self) -> int:
        """Words that wait for a step to be full."""
        return len(self._rest[0])

    def add(self, text: Read) -> Samples:
        """Take what `Vocabulary.read` gives; returns blocks for whole steps."""
        self._refresh()
        kept = self._random.random(len(text.rows), np.float32) < self._keep[text.rows]
        words, of_lines, read = self._rest
        words = np.concatenate([words, text.rows[kept]])
        of_lines = np.concatenate([of_lines, text.lines[kept] + self._lines])
        read += len(text.rows)
        self._lines += text.line_ends
        cut = len(words) // self._step * self._step
        taken = round(read * cut / max(len(words), 1))
        self._rest = words[cut:], of_lines[cut:], read - taken
        return self._blocks(words[:cut], of_lines[:cut], taken)

    def flush(self) -> Samples:
        """Give the last words, fewer than a step has; the last block is padded."""
        words, of_lines, read = self._rest
        if not len(words):  # what was read may have been left out, all of it
            return self._blocks(words, of_lines, 0)
        self._rest = words[:0], of_lines[:0], 0
        missing = -len(words) % LENGTH
        # A line of its own for each word that is missing: they have no context.
        self._lines += missing
        of_lines = np.append(of_lines, self._lines - np.arange(missing)[::-1])
        return self._blocks(np.pad(words, (0, missing)), of_lines, read)

    def _blocks(self, words: np.ndarray, lines: np.ndarray, read: int) -> Samples:
        blocks = len(words) // LENGTH
        shares = np.full(blocks, read // max(blocks, 1), np.int32)
        shares[: read - int(shares.sum())] += 1
        return Samples(
            words.reshape(blocks, LENGTH),
            self._reach(lines).reshape(blocks, LENGTH),
            self._draw(blocks * self._negatives).reshape(blocks, self._negatives),
            shares,
        )

    def _reach(self, lines: np.ndarray) -> np.ndarray:
        """Draw windows, and end them where a line or a block ends."""
        places = np.arange(len(lines), dtype=np.int32)
        new = places % LENGTH == 0
        new[1:] |= lines[1:] != lines[:-1]
        starts = np.flatnonzero(new)
        lengths: np.ndarray = np.diff(starts, append=len(lines))
        before = places - np.repeat(starts, lengths)
        after = np.repeat(lengths, lengths) - 1 - before
        window = self._random.integers(1, self._window + 1, len(lines), np.int32)
        return reach_code(
            places % LENGTH,
            np.minimum(before, window),
            np.minimum(after, window),
            self._window,
        )

    def _draw(self, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, np.int32)
        drawn = self._random.random(count) * self._noise[-1]
        return np.searchsorted(self._noise, drawn, side="right").astype(np.int32)

    def _refresh(self) -> None:
        """Make the distributions anew if the counts have grown."""
        total = self.vocabulary.total
        if total <= self._known_total * GROWTH and self._known_total:
            return
        self._known_total = total
        counts = self.vocabulary.counts
        weights = counts**0.75
        weights[self._never] = 0
        if not weights.any():  # nothing was counted yet that could be drawn
            weights[:] = 1
            weights[self._never] = 0
        self._noise = np.cumsum(weights)
        if self._subsample > 0:
            frequent = self._subsample * max(total, 1) / np.maximum(counts, 1)
            self._keep = np.minimum(np.sqrt(frequent) + frequent, 1).astype(np.float32)
        self._keep[self._never] = 0


def reach_code(
    place: np.ndarray, left: np.ndarray, right: np.ndarray, window: int
) -> np.ndarray:
    """Write place in the block and words of context on both sides as one number."""
    size = window + 1
    return ((place * size + left) * size + right).astype(np.int16)


def reach_of(window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read all codes: place, left and right of code ``i`` lie at ``i``."""
    size = window + 1
    codes = np.arange(LENGTH * size * size)
    return codes // size // size, codes // size % size, codes % size
