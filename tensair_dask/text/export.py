"""Word vectors as files that other programs read."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tensair_dask._common.files import is_device
from tensair_dask.errors import ConfigurationError

__all__ = ["is_binary", "save_word2vec"]

# As other programs unpack them, by the suffix.
_OPENED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_OTHERS = (".zip", ".zst", ".7z", ".tar", ".tgz", ".rar", ".lz4", ".Z")


def save_word2vec(
    path: str | Path, words: Sequence[str], vectors: np.ndarray, binary: bool
) -> None:
    """Write the format of the original word2vec program.

    ``gensim.models.KeyedVectors.load_word2vec_format(path, binary=...)`` reads it.

    Parameters
    ----------
    path
        Of the file; it is written beside and then moved there, so that nobody reads
        half of it. Packed if its name ends in ``.gz``, ``.bz2`` or ``.xz``.
    words
        Without white space, most frequent first, as readers expect.
    vectors
        One for each word, (words, width); written as float32.
    binary
        Whether the numbers are written as bytes or as text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = _OPENED.get(path.suffix, open)
    if is_device(path):
        with path.open("wb") as file:
            _write(file, words, vectors, binary)
        return
    beside = path.with_name(path.name + ".part")
    try:
        with opened(beside, "wb") as file:
            _write(file, words, vectors, binary)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write(
    file: IO[bytes], words: Sequence[str], vectors: np.ndarray, binary: bool
) -> None:
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    file.write(f"{len(words)} {rows.shape[1]}\n".encode())
    for word, row in zip(words, rows, strict=True):
        numbers = (
            row.tobytes()
            if binary
            else " ".join(f"{x:.6g}" for x in row.tolist()).encode()
        )
        file.write(word.encode() + b" " + numbers + b"\n")


def is_binary(path: str | Path) -> bool:
    """Whether numbers are written as bytes, by the name: ``.bin``, packed or not.

    Raises
    ------
    ConfigurationError
        If it names a way of packing that there is not.
    """
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _OTHERS:
        raise ConfigurationError(
            f"The vectors cannot be written to {path}: files are packed as "
            f"{', '.join(_OPENED)}, and not as {suffixes[-1]}. Give one of these, or "
            "a name without it."
        )
    if suffixes and suffixes[-1] in _OPENED:
        suffixes.pop()
    return suffixes[-1:] == [".bin"]
