"""Reading text as it comes: from files, however they are packed, and from pipes."""

from __future__ import annotations

import asyncio
import codecs
import os
import stat
import sys
from collections.abc import AsyncIterator
from typing import IO, Any

from tensair_dask._common.files import open_files
from tensair_dask.errors import ConfigurationError

__all__ = ["STANDARD_INPUT", "check_readable", "read_lines", "size_of"]

CHUNK = 1 << 16  # characters
STANDARD_INPUT = "-"


async def read_lines(source: str) -> AsyncIterator[str]:
    """Read whole lines, many at a time; never blocks the event loop.

    Parameters
    ----------
    source
        A path or an address that fsspec understands, unpacked by its suffix; or
        ``"-"`` for standard input, whose lines are given out as soon as they come.

    Raises
    ------
    ConfigurationError
        If it cannot be opened, or is standard input that was read already.
    """
    if source == STANDARD_INPUT:
        check_readable(source)
        if _can_wait(sys.stdin):
            async for text in _read_pipe(sys.stdin):
                yield text
            return
        number = sys.stdin.fileno()
        opened: Any = os.fdopen(
            number, encoding="utf-8", errors="replace", closefd=False
        )
    else:
        opened = await asyncio.to_thread(_open, source)
    try:
        while text := await asyncio.to_thread(_read_some, opened):
            yield text
    finally:
        opened.close()


def check_readable(source: str) -> None:
    """Open a text and close it again.

    Raises
    ------
    ConfigurationError
        If it cannot be opened.
    """
    if source != STANDARD_INPUT:
        _open(source).close()
    elif sys.stdin is None or sys.stdin.closed:
        raise ConfigurationError(
            "Standard input is closed, or was read already: it can be read once. Give "
            "a file to read a text again."
        )


def _open(source: str) -> IO[str]:
    try:
        (file,) = open_files(
            source,
            "rt",
            expand=False,
            compression="infer",
            encoding="utf-8",
            errors="replace",
        )
        opened: IO[str] = file.open()
        return opened
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"The text {source!r} cannot be opened: {error}. Give a file, or - for "
            "standard input."
        ) from error


def _read_some(file: IO[str]) -> str:
    return file.read(CHUNK) + file.readline()


def _can_wait(file: IO[str]) -> bool:
    """Whether it is a pipe, a socket or a terminal: a read may take for ever."""
    mode = os.fstat(file.fileno()).st_mode
    # Other devices, such as /dev/null, can neither be waited for nor keep us waiting.
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()


async def _read_pipe(file: IO[str]) -> AsyncIterator[str]:
    # Not on a thread: one that waits for a silent pipe could not be ended.
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    try:
        while data := await reader.read(CHUNK):
            lines, end, rest = (rest + decoder.decode(data)).rpartition("\n")
            if end:
                yield lines + end
            elif len(rest) >= CHUNK:  # a line without an end is cut
                yield rest
                rest = ""
        rest += decoder.decode(b"", final=True)
        if rest:
            yield rest
    finally:
        transport.close()


def size_of(source: str) -> int | None:
    """Characters in a text, roughly; None where that is not known beforehand."""
    if source == STANDARD_INPUT:
        return None
    try:
        (found,) = open_files(source, expand=False, compression="infer")
        with found as file:
            return int(file.seek(0, os.SEEK_END))
    except (OSError, ValueError, ImportError):
        return None
