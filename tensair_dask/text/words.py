"""Word vectors of a trainer, as they are now: questions, scores, export."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensair_dask.text.export import is_binary, save_word2vec
from tensair_dask.text.similarity import Judged, spearman
from tensair_dask.text.vocabulary import Vocabulary

__all__ = ["Words"]


class Words:
    """Asks a replica about words while it trains, and exports what it knows.

    With an ordinary client every method blocks; with an asynchronous one it returns
    an awaitable.

    Parameters
    ----------
    trainer
        Of a `SkipGram` or `CBOW` model.
    vocabulary
        That its stream has grown.
    """

    def __init__(self, trainer: Any, vocabulary: Vocabulary) -> None:
        self._trainer = trainer
        self._vocabulary = vocabulary

    def most_similar(self, word: str, topn: int = 10) -> Any:
        """Find the nearest words by cosine, answered by a replica while it trains.

        Returns
        -------
        neighbours
            Pairs of a word and its cosine, nearest first.

        Raises
        ------
        KeyError
            If the word has no vector of its own (yet).
        """
        return self._sync(self._most_similar, word, topn)

    def vectors(self, words: Sequence[str]) -> Any:
        """Vectors of some words, float32, (words, width)."""
        return self._sync(self._vectors, words)

    def agreement(self, judged: Judged) -> Any:
        """Rank correlation (Spearman) with what people say of pairs of words.

        Pairs of which a word is unknown are left out.
        """
        return self._sync(self._agreement, judged)

    def save(self, path: str | Path, binary: bool | None = None) -> Any:
        """Export all words in the format of word2vec, most frequent first.

        Parameters
        ----------
        path
            Of the file. It is packed if it ends in ``.gz``, ``.bz2`` or ``.xz``.
        binary
            None for what the suffix says: ``.bin`` is binary, also before one of these.

        Raises
        ------
        ConfigurationError
            If it names another way of packing.
        """
        by_name = is_binary(path)
        binary = by_name if binary is None else binary
        return self._sync(self._save, path, binary)

    def _sync(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._trainer.client.sync(function, *args)

    async def _most_similar(self, word: str, topn: int) -> list[tuple[str, float]]:
        words = self._vocabulary.words
        (row,) = self._vocabulary.rows_of([word])
        known = 1 + len(words)
        answer = await self._trainer.predict({"similar_to": np.array([row])})
        cosines = answer[0, :known]
        cosines[[0, row]] = -np.inf
        best = np.argsort(-cosines)[: max(0, min(topn, known - 2))]
        return [(words[at - 1], float(cosines[at])) for at in best]

    async def _vectors(self, words: Sequence[str]) -> np.ndarray:
        rows = self._vocabulary.rows_of(words)
        return await self._trainer.predict({"vectors_of": rows})

    async def _agreement(self, judged: Judged) -> float:
        rows = self._vocabulary.find([word for pair in judged.pairs for word in pair])
        pairs = rows.reshape(-1, 2)
        known = pairs.all(1)
        ones, twos = pairs[known].T
        if len(ones) < 2:
            return math.nan
        rows = np.concatenate([ones, twos])
        found = await self._trainer.predict({"vectors_of": rows})
        found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-12
        cosines = (found[: len(ones)] * found[len(ones) :]).sum(1)
        return spearman(cosines, np.array(judged.scores)[known])

    async def _save(self, path: str | Path, binary: bool) -> None:
        words = list(self._vocabulary.words)
        order = np.argsort(-self._vocabulary.counts[1 : 1 + len(words)], kind="stable")
        state = await self._trainer.state_dict()
        table = state["words.weight"].numpy()
        await asyncio.to_thread(
            save_word2vec, path, [words[at] for at in order], table[1 + order], binary
        )
