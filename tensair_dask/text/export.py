"""Word vectors as files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["save_word2vec"]


def save_word2vec(
    path: str | Path, words: Sequence[str], vectors: np.ndarray, binary: bool
) -> None:
    """Write the format of the original word2vec program.

    ``gensim.models.KeyedVectors.load_word2vec_format(path, binary=...)`` reads it.

    Parameters
    ----------
    path
        Of the file; it is written beside and then moved there, so that nobody reads
        half of it.
    words
        Without white space, most frequent first, as readers expect.
    vectors
        One for each word, (words, width); written as float32.
    binary
        Whether the numbers are written as bytes or as text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    try:
        with beside.open("wb") as file:
            file.write(f"{len(words)} {rows.shape[1]}\n".encode())
            for word, row in zip(words, rows, strict=True):
                numbers = (
                    row.tobytes()
                    if binary
                    else " ".join(f"{x:.6g}" for x in row.tolist()).encode()
                )
                file.write(word.encode() + b" " + numbers + b"\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
