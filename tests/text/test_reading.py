from __future__ import annotations

import asyncio
import gzip
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.text.reading import CHUNK, read_lines, size_of

# Longer than two chunks, with characters of 1 to 4 bytes at all places.
LONG = "".join(f"{n} été 北京 👍{'x' * (n % 7)}\n" for n in range(9000))


def read(source: str) -> list[str]:
    async def main() -> list[str]:
        async with aclosing(read_lines(source)) as texts:
            return [text async for text in texts]

    return asyncio.run(main())


# --------------------------------------------------------------------------- files


def packed(path: Path, content: bytes) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(content)
    return str(path)


NAMES = pytest.mark.parametrize("name", ["text.txt", "text.gz"])


@NAMES
@pytest.mark.parametrize(
    "text",
    [LONG, LONG + "no end", "a\nb\n", "a", "", "\n\n", "x" * 3 * CHUNK],
    ids=["long", "long, no end", "short", "no end", "empty", "no words", "one line"],
)
def test_a_file_is_read_as_it_is(tmp_path, name, text):
    source = packed(tmp_path / name, text.encode())
    assert "".join(read(source)) == text


def test_a_long_file_comes_in_parts_of_whole_lines(tmp_path):
    parts = read(packed(tmp_path / "text.txt", LONG.encode()))
    assert len(parts) > 1
    assert all(part.endswith("\n") for part in parts)
    assert max(len(part) for part in parts) < CHUNK + 100


@NAMES
def test_bytes_that_are_no_text_are_replaced(tmp_path, name):
    source = packed(tmp_path / name, b"caf\xe9 \xff\xfe ok\nnext\xc3")
    assert "".join(read(source)) == "caf\ufffd \ufffd\ufffd ok\nnext\ufffd"


def test_an_address_may_say_how_to_read_it(tmp_path):
    source = packed(tmp_path / "text.gz", b"one\n")
    assert read(f"file://{source}") == ["one\n"]


def test_a_file_that_is_left_early_is_closed(tmp_path):
    source = packed(tmp_path / "text.txt", LONG.encode())

    async def main() -> str:
        async with aclosing(read_lines(source)) as texts:
            return await anext(texts)

    assert LONG.startswith(asyncio.run(main()))  # open files fail the test


@pytest.mark.parametrize(
    "source", ["{}/none.txt", "{}/none.gz", "{}", "nonsense://none"]
)
def test_what_cannot_be_opened_is_refused(tmp_path, source):
    source = source.format(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be opened") as raised:
        read(source)
    assert source in str(raised.value)
    assert "standard input" in str(raised.value)


@NAMES
def test_the_size_is_that_of_the_text(tmp_path, name):
    assert size_of(packed(tmp_path / name, b"0123456789" * 5000)) == 50_000


@pytest.mark.parametrize("source", ["-", "{}/none.txt", "{}", "nonsense://none"])
def test_the_size_of_what_cannot_be_measured_is_not_known(tmp_path, source):
    assert size_of(source.format(tmp_path)) is None


# -------------------------------------------------------------------- standard input


@pytest.fixture
def pipe(monkeypatch) -> Iterator[Callable[[bytes], None]]:
    """Writes to standard input; without bytes, it ends it."""
    source, target = os.pipe()
    writing = os.fdopen(target, "wb", buffering=0)

    def write(content: bytes) -> None:
        if content:
            writing.write(content)
        else:
            writing.close()

    with writing, os.fdopen(source, encoding="utf-8") as reading:
        monkeypatch.setattr(sys, "stdin", reading)
        yield write


def exchange(write: Callable[[bytes], None], *turns: tuple[bytes, str | None]) -> None:
    """Write, and compare with what is then given out before more is written."""

    async def main() -> None:
        async with aclosing(read_lines("-")) as texts:
            for content, expected in turns:
                write(content)
                if expected is not None:
                    assert await _next(texts) == expected
            write(b"")
            assert [text async for text in texts] == []

    asyncio.run(main())


async def _all(texts: AsyncIterator[str]) -> list[str]:
    return [text async for text in texts]


async def _next(texts: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(texts), 10)


def test_lines_of_a_pipe_are_given_out_as_soon_as_they_come(pipe):
    exchange(pipe, (b"one\n", "one\n"), (b"two\nthree\n", "two\nthree\n"))


def test_a_line_of_a_pipe_may_come_in_two_writes(pipe):
    exchange(pipe, (b"one\ntw", "one\n"), (b"o\nthr", "two\n"), (b"ee\n", "three\n"))


def test_the_last_line_of_a_pipe_needs_no_end(pipe):
    exchange(pipe, (b"one\ntwo", "one\n"), (b"", "two"))


def test_an_empty_pipe_has_no_lines(pipe):
    exchange(pipe, (b"", None))


def test_a_character_may_come_in_two_writes(pipe):
    face = "👍".encode()
    exchange(
        pipe,
        (b"one\ncaf\xc3", "one\n"),
        (b"\xa9\n" + face[:3], "café\n"),
        (face[3:] + b"\n", "👍\n"),
    )


def test_bytes_of_a_pipe_that_are_no_text_are_replaced(pipe):
    exchange(
        pipe,
        (b"caf\xe9 ok\n\xc3", "caf\ufffd ok\n"),
        (b"x\n\xf0\x9f", "\ufffdx\n"),  # it ends within a character
        (b"", "\ufffd"),
    )


@pytest.mark.parametrize(
    "text", [LONG, LONG + "no end", "é" * 3 * CHUNK, "a\n" + "é" * 2 * CHUNK + "\nb"]
)
def test_a_long_text_of_a_pipe_is_read_as_it_is(pipe, text):
    async def main() -> str:
        writing = asyncio.create_task(asyncio.to_thread(pipe, text.encode()))
        writing.add_done_callback(lambda _: pipe(b""))
        async with aclosing(read_lines("-")) as texts:
            parts = [part async for part in texts]
        await writing
        assert max(len(part) for part in parts) <= 2 * CHUNK  # a line is cut, too
        return "".join(parts)

    assert asyncio.run(main()) == text


def test_a_pipe_that_is_silent_can_be_left(pipe):
    async def main() -> None:
        texts = read_lines("-")
        waiting = asyncio.ensure_future(anext(texts))
        for _ in range(5):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_a_terminal_is_read_line_by_line(monkeypatch):
    keyboard, screen = os.openpty()
    with os.fdopen(keyboard, "wb", buffering=0) as keys, os.fdopen(screen) as reading:
        monkeypatch.setattr(sys, "stdin", reading)

        async def main() -> None:
            async with aclosing(read_lines("-")) as texts:
                keys.write(b"one\ntw")
                assert await _next(texts) == "one\n"
                keys.write(b"o\n")
                assert await _next(texts) == "two\n"
                keys.write(b"\x04")  # Ctrl-D
                assert [text async for text in texts] == []

        asyncio.run(main())


def test_a_socket_is_read_line_by_line(monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, os.fdopen(theirs.detach(), encoding="utf-8") as reading:
        monkeypatch.setattr(sys, "stdin", reading)

        async def main() -> None:
            async with aclosing(read_lines("-")) as texts:
                ours.sendall(b"one\ntw")
                assert await _next(texts) == "one\n"
                ours.close()
                assert [text async for text in texts] == ["tw"]

        asyncio.run(main())


def from_file(monkeypatch, path: Path, content: bytes) -> list[str]:
    """What is read where a shell was told ``< path``."""
    path.write_bytes(content)
    with path.open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        parts = read("-")
        assert not file.closed  # it is not ours
    return parts


@pytest.mark.parametrize("text", [LONG, LONG + "no end", "a\nb", "", "\n"])
def test_a_file_as_standard_input_is_read_as_it_is(monkeypatch, tmp_path, text):
    parts = from_file(monkeypatch, tmp_path / "text", text.encode())
    assert "".join(parts) == text


def test_bytes_of_a_file_as_standard_input_that_are_no_text_are_replaced(
    monkeypatch, tmp_path
):
    parts = from_file(monkeypatch, tmp_path / "text", b"caf\xe9 ok\nnext")
    assert "".join(parts) == "caf\ufffd ok\nnext"


def test_no_standard_input_is_an_empty_text(monkeypatch):
    async def main() -> list[str]:
        texts = read_lines("-")
        return await asyncio.wait_for(_all(texts), 1)

    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert asyncio.run(main()) == []


@pytest.mark.parametrize("stdin", [None, "closed"])
def test_standard_input_that_is_closed_is_refused(monkeypatch, tmp_path, stdin):
    if stdin is not None:
        stdin = (tmp_path / "empty").open("w+")
        stdin.close()
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(ConfigurationError, match="can be read once"):
        read("-")


def test_a_pipe_is_not_read_a_second_time(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    assert read("-") == ["one\n"]
    with pytest.raises(ConfigurationError, match="was read already"):
        read("-")
