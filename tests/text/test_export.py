from __future__ import annotations

import bz2
import gzip
import lzma
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.export import is_binary, save_word2vec

WORDS = [
    "the",
    "don't",
    "été",
    "ελλάδα",
    "слово",
    "北京",
    "𐐨",
    "snake_case",
    "42",
]
FORMATS = pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])


def vectors(words: int = len(WORDS), width: int = 5) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(words, width)).astype(np.float32)


def load(path: Path, binary: bool) -> tuple[list[str], np.ndarray]:
    models = pytest.importorskip("gensim.models")
    found = models.KeyedVectors.load_word2vec_format(str(path), binary=binary)
    return found.index_to_key, found.vectors


@FORMATS
def test_gensim_loads_the_same_words_and_vectors(tmp_path, binary):
    save_word2vec(tmp_path / "v", WORDS, vectors(), binary)
    words, found = load(tmp_path / "v", binary)
    assert words == WORDS
    assert np.allclose(found, vectors(), rtol=1e-5, atol=0)


def test_binary_vectors_are_exact(tmp_path):
    save_word2vec(tmp_path / "v", WORDS, vectors(), binary=True)
    assert np.array_equal(load(tmp_path / "v", True)[1], vectors())


@FORMATS
def test_numbers_of_all_sizes_are_kept(tmp_path, binary):
    rows = np.array([[1e-30, -1e30, 0.0], [-0.5, 123456.0, 1e-5]], np.float32)
    save_word2vec(tmp_path / "v", ["a", "b"], rows, binary)
    assert np.allclose(load(tmp_path / "v", binary)[1], rows, rtol=1e-5, atol=0)


@FORMATS
@pytest.mark.parametrize(
    "rows",
    [
        vectors().astype(np.float64),
        vectors(18)[::2],
        np.asfortranarray(vectors()),
    ],
    ids=["double", "every other", "by columns"],
)
def test_vectors_may_lie_in_memory_in_any_way(tmp_path, binary, rows):
    save_word2vec(tmp_path / "v", WORDS, rows, binary)
    assert np.allclose(load(tmp_path / "v", binary)[1], rows, rtol=1e-5)


def test_the_text_format_is_that_of_the_original_program(tmp_path):
    rows = np.array([[0.5, -2], [1e-5, 3]], np.float32)
    save_word2vec(tmp_path / "v.txt", ["a", "é"], rows, binary=False)
    expected = "2 2\na 0.5 -2\né 1e-05 3\n"
    assert (tmp_path / "v.txt").read_bytes() == expected.encode()


def test_the_binary_format_is_that_of_the_original_program(tmp_path):
    rows = np.array([[0.5, -2]], np.float32)
    save_word2vec(tmp_path / "v.bin", ["é"], rows, binary=True)
    expected = "1 2\né ".encode() + rows.tobytes() + b"\n"
    assert (tmp_path / "v.bin").read_bytes() == expected


@FORMATS
def test_a_file_is_replaced_and_its_folder_made(tmp_path, binary):
    path = tmp_path / "new" / "folder" / "vectors"
    for words in (9, 4):
        save_word2vec(str(path), WORDS[:words], vectors(words), binary)
    assert load(path, binary)[0] == WORDS[:4]
    assert [one.name for one in path.parent.iterdir()] == ["vectors"]


@FORMATS
def test_an_export_that_fails_leaves_the_old_file_and_no_other(tmp_path, binary):
    path = tmp_path / "vectors"
    save_word2vec(path, ["a"], vectors(1), binary)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="zip"):
        save_word2vec(path, WORDS, vectors(3), binary)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_words_are_a_file_without_words(tmp_path):
    save_word2vec(tmp_path / "v", [], np.zeros((0, 5)), binary=False)
    assert (tmp_path / "v").read_text() == "0 5\n"


@pytest.mark.parametrize("name", ["v.txt.gz", "v.bin.gz", "v.gz", "v.bz2", "v.xz"])
def test_the_ending_of_a_file_name_decides_its_compression(tmp_path, name):
    path = tmp_path / name
    binary = is_binary(path)
    assert binary == (".bin" in name)
    save_word2vec(path, WORDS, vectors(), binary)
    opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix]
    with opened(path) as file:
        assert file.readline() == b"9 5\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["v.zip", "v.bin.zst", "v.tgz"])
def test_a_way_of_packing_that_there_is_not_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match=r"\.gz, \.bz2, \.xz"):
        is_binary(tmp_path / name)


def test_gensim_loads_what_is_packed(tmp_path):
    save_word2vec(tmp_path / "v.gz", WORDS, vectors(), binary=False)
    assert load(tmp_path / "v.gz", binary=False)[0] == WORDS


def test_a_pipe_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    save_word2vec(path, WORDS, vectors(), binary=False)
    reader.join()
    assert read[0].startswith(b"9 5\n")
    assert path.is_fifo()
