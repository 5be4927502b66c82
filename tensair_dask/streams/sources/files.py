"""Sources over files: lines of text, and rows of CSV."""

from __future__ import annotations

import asyncio
import codecs
import copy
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Unpack

import pandas as pd
from fsspec.core import OpenFile
from streamz import Stream

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask._common.files import open_files
from tensair_dask._common.places import Place, Trail
from tensair_dask._wording import bounded, in_words
from tensair_dask.errors import ConfigurationError, RecordError, SourceError
from tensair_dask.streams.sources.csv_dtypes import check_dates, check_dtypes
from tensair_dask.streams.sources.csv_rows import CsvRows
from tensair_dask.streams.sources.packed import check_alone, check_unpacked
from tensair_dask.streams.sources.positions import named
from tensair_dask.streams.sources.unreadable import (
    CarefulOptions,
    CarefulSource,
    PoisonLine,
)

__all__ = ["from_csv_chunks", "from_lines"]


Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class FileOptions(CarefulOptions, total=False):
    """Options that every source over files takes: see `from_lines`."""

    follow: bool
    poll: str | float | None
    compression: str | None
    storage_options: dict[str, Any] | None


class _Files(CarefulSource[PoisonLine]):
    """Emits groups of whole lines, each with its offsets; reads off the event loop."""

    _may_be_empty = False  # an item of the stream, in which nothing is

    def __init__(
        self,
        path: Paths,
        chunk: int | None,
        follow: bool = False,
        poll: str | float | None = None,
        compression: str | None = "infer",
        storage_options: dict[str, Any] | None = None,
        **kwargs: Unpack[CarefulOptions],
    ) -> None:
        self._path = path = _as_paths(path)
        self._chunk = 1 if chunk is None else whole("chunk", chunk, 1, 64)
        self._follow = follow
        self._poll = config.get_seconds("sources.poll", poll)
        self._options = {"compression": compression, **(storage_options or {})}
        start = kwargs.pop("start", False)
        super().__init__(str(path), **kwargs)
        # Where each file goes on that was begun.
        self._offsets = dict(self._positions)
        for partition, offset in self._offsets.items():
            self.tracker.begin(partition, offset)
        if start:
            self.start()

    async def _run(self) -> None:
        with ThreadPoolExecutor(1, f"tensair-{self.name}") as self._thread:
            files = await self._aside(self._found)
            keys = _keys([str(file.path) for file in files])
            self._note_unknown(keys)
            for key, file in zip(keys, files, strict=True):
                if self._stopping:
                    return
                lines = _Lines(file, self._follow, self._header, self._cut)
                try:
                    await self._emit_lines(lines, key)
                finally:
                    await self._aside(lines.close)

    async def _aside(self, work: Callable[..., Any], *given: Any) -> Any:
        """Do what may wait for a disk or a network on the source's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *given)

    def _note_unknown(self, keys: list[str]) -> None:
        """Say which positions are of files that are not read."""
        if unknown := [each for each in self._positions if each not in keys]:
            self._note(
                f"positions= of {self.name} has {named(unknown)}, which are not used: "
                f"it reads {named(keys)}. A file that was moved is known by its new "
                "path; give its position under that."
            )

    async def _emit_lines(self, lines: _Lines, key: str) -> None:
        path = lines.path
        start = await self._aside(lines.open, self._offsets.get(key, 0))
        held: list[bytes] = []
        while not self._stopping:
            read = await self._aside(lines.more)
            held += read
            # Lines wait until a chunk is full, but not beyond the end of the file.
            ready = len(held) - (len(held) % self._chunk if read else 0)
            for first in range(0, ready, self._chunk):
                if self._stopping:
                    return
                group = held[first : first + self._chunk]
                made = self._made(group, path, start)
                made = [each for each in made if len(each) or self._may_be_empty]
                if made and not await self._taken():
                    return
                stop = lines.passed(group, start)
                mark = self.tracker.emitted(key, start, stop)
                self._offsets[key] = start = stop
                if made:
                    await self._pass_on(made[0], [mark])
                else:
                    mark.released()  # done with: all were set aside
            held = held[ready:]
            if read:
                continue
            if not self._follow:
                return
            await self._grown(lines)
            start = await self._aside(lines.open, start)

    async def _grown(self, lines: _Lines) -> None:
        """Wait until the file is longer than what was read of it, or another one."""
        while not self._stopping:
            if await self._aside(lines.changed):
                return
            await self._pause(self._poll)

    def _found(self) -> list[OpenFile]:
        try:
            files = open_files(self._path, **self._options)
        except Exception as error:
            raise SourceError(
                f"{self._path} cannot be read: {in_words(error)}"
            ) from error
        if not files:
            raise SourceError(f"There is no file at {self._path}.")
        if self._follow and (len(files) > 1 or files[0].compression):
            raise SourceError(
                f"follow=True was given for {self._path}: {len(files)} file(s), "
                f"compression {files[0].compression}. One file that is not compressed "
                "can be followed."
            )
        return files

    def _header(self, stream: Any) -> int | None:
        """Read what a file begins with, and what is no record.

        Returns
        -------
        begins
            Where the records begin; None if that is still being written.
        """
        return 0

    def _cut(self) -> _Cut:
        """Begin to cut text into records."""
        return _LineCut()

    def _made(self, lines: list[bytes], path: str, start: int) -> list[Any]:
        """Make what is emitted of lines: one item, or none if all are set aside."""
        try:
            return [self._item(lines)]
        except Exception:
            sound = list(self._sound(lines, path, start))
        try:
            return [self._item(sound)] if sound else []
        except Exception as error:
            raise SourceError(
                f"The {len(lines)} lines behind byte {start} of {path} cannot be read, "
                f"although each alone can: {in_words(error)}"
            ) from error

    def _sound(self, lines: list[bytes], path: str, start: int) -> Iterator[bytes]:
        """Give the lines that can be read; set the others aside, each by itself."""
        for line in lines:
            try:
                self._item([line])
            except Exception as cause:
                error = RecordError(
                    f"The line at byte {start} of {path} cannot be read: "
                    f"{in_words(cause)}{self._advice(cause)}"
                )
                error.__cause__ = cause
                self._meet(PoisonLine(line, path, start, error))
            else:
                yield line
            start += len(line)

    def _why_nothing(self) -> str:
        if not any(self._offsets.values()):
            return "there is no record in what it reads."
        return (
            "all of it was read, here or before its positions=, and nothing was added. "
            "follow=True waits for more. For another pass close it, and make another "
            "source; list a file several times to read it as often."
        )

    def _advice(self, cause: Exception) -> str:
        """Say what to do about a line that cannot be read; added to its error."""
        return ""

    def _item(self, lines: list[bytes]) -> Any:
        """Make what is emitted of lines; raise if one of them cannot be read."""
        raise NotImplementedError


class _Cut(Protocol):
    """Cuts text that comes in pieces into records."""

    def __len__(self) -> int:
        """Bytes that wait for the end of their record."""

    def take(self, piece: bytes) -> list[bytes]:
        """Take the next piece; give the records that end in it."""

    def rest(self) -> list[bytes]:
        """Give what waits, at the end of the text."""


class _LineCut:
    """Cuts text at its newlines, of all kinds, as `open` does."""

    def __init__(self) -> None:
        self._rest = b""

    def __len__(self) -> int:
        return len(self._rest)

    def take(self, piece: bytes) -> list[bytes]:
        lines = (self._rest + piece).splitlines(True)
        # Behind a carriage return the other half of its end may follow.
        is_whole = not lines or lines[-1].endswith(b"\n")
        self._rest = b"" if is_whole else lines.pop()
        return lines

    def rest(self) -> list[bytes]:
        last, self._rest = self._rest, b""
        return [last] if last else []


class _Lines:
    """Whole lines of one file from an offset on; used by one thread at a time.

    Parameters
    ----------
    file
        Of fsspec; not open.
    follow
        Whether a last line without a newline is one that is still being written.
    header
        Reads what comes before the lines, and tells where they begin.
    cut
        Begins to cut text into them.

    Attributes
    ----------
    seen
        Up to which byte the file was read; an unfinished line included.
    """

    def __init__(
        self,
        file: OpenFile,
        follow: bool,
        header: Callable[[Any], int | None],
        cut: Callable[[], _Cut],
    ) -> None:
        self.path = str(file.path)
        self.seen = 0
        self._file = file
        self._follow = follow
        self._header = header
        self._begin = cut
        self._cut = cut()
        self._awaited = False  # the header is still being written
        self._stream: Any = None
        self._trail = Trail()  # of the lines that were passed on
        self._read = Trail()  # of all that was read
        self._state: Any = None  # what the file system told of it when it was opened
        self._block = config.get_bytes("sources.block")
        self._longest = config.get_bytes("sources.line")

    def open(self, offset: int) -> int:
        """Open the file at an offset, or behind its header; returns where that is.

        Raises
        ------
        SourceError
            If it cannot be opened, is shorter, or is not the file that was read up to
            there.
        """
        self.close()
        try:
            if self._follow:
                self._state = self._info()
            check_alone(self._file)
            self._stream = self._file.open()
            check_unpacked(self._file, self._stream)
            found = self._header(self._stream)
            self._awaited = found is None
            if found is None:
                self.seen = int(self._stream.tell())
                return offset
            begins = max(offset, found)
            self._trail = Trail.of(self._stream, begins)
            reached = int(self._stream.tell())
            if begins and not self._file.compression:
                # Files that are not compressed let one seek behind their end.
                reached = min(reached, int(self._file.fs.size(self.path)))
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(
                f"{self.path} cannot be read: {in_words(error)}"
            ) from error
        if reached < begins:
            raise SourceError(
                f"{self.path} was to be read from byte {begins} on, but has only "
                f"{reached}. Give the file that was read before."
            )
        self._compare(offset, begins)
        self._cut = self._begin()
        self._read = copy.copy(self._trail)
        self.seen = begins
        return self._trail.at(begins)

    def passed(self, lines: list[bytes], start: int) -> int:
        """Take note that lines are passed on; gives where the next ones begin."""
        self._trail.add(lines)
        size = len(lines[0]) if len(lines) == 1 else sum(map(len, lines))
        return self._trail.at(start + size)

    def _compare(self, offset: int, begins: int) -> None:
        """See that below an offset the file is the one that was read."""
        if not offset or not isinstance(offset, Place):  # as older programs kept it
            return
        trail = self._trail
        if offset < begins:
            trail = Trail.of(self._stream, offset)
            self._stream.seek(begins)
        if trail.at(offset).seen != offset.seen:
            raise self._another(offset)

    def _compare_again(self) -> None:
        """See that what was just read belongs behind what was read before.

        That is known afterwards only, and from a file that is opened anew: one that was
        opened before shows what it has in its buffer.
        """
        try:
            if (info := self._info()) == self._state:
                return
            self._state = info
            with self._file.fs.open(self.path, "rb") as stream:
                trail = Trail.of(stream, self.seen)
        except Exception as error:
            raise self._gone(error) from error
        if trail.at(self.seen).seen != self._read.at(self.seen).seen:
            raise self._another(self.seen)

    def _another(self, offset: int) -> SourceError:
        return SourceError(
            f"{self.path} was to be read from byte {int(offset)} on, but is not the "
            "file that was read up to there: it was replaced or written anew. Give the "
            "file that was read before; or read this one from its beginning, without a "
            "position, or as a source of another name."
        )

    def more(self) -> list[bytes]:
        """Read the next lines, with their newlines; none at the end of the file."""
        while not self._awaited:
            try:
                read = self._stream.read(self._block)
            except Exception as error:
                raise SourceError(
                    f"{self.path} cannot be read beyond byte {self.seen}: "
                    f"{in_words(error)}"
                ) from error
            if read and self._follow:
                self._compare_again()
            self._read.add([read])
            self.seen += len(read)
            if not read:
                return [] if self._follow else self._cut.rest()
            lines = self._cut.take(read)
            if len(self._cut) > self._longest:
                raise SourceError(
                    f"A line of {self.path} is longer than {self._longest} bytes. If "
                    "it is a file of lines, raise tensair.sources.line; in CSV, look "
                    "for quotes that are not closed."
                )
            if lines:
                return lines
        return []

    def changed(self) -> bool:
        """Whether the file has grown since it was opened, or may be another one.

        Raises
        ------
        SourceError
            If it is gone, or smaller than what was read of it.
        """
        try:
            info = self._info()
            size = int(info["size"])
        except Exception as error:
            raise self._gone(error) from error
        if size < self.seen:
            raise SourceError(
                f"{self.path} has shrunk to {size} bytes, and {self.seen} were read. "
                "Only files that grow can be followed; start a new source for a new "
                "file."
            )
        # One that was put in its place, or written anew, may be as long.
        return size > self.seen or info != self._state

    def _gone(self, error: Exception) -> SourceError:
        return SourceError(f"{self.path} was there and is gone: {in_words(error)}")

    def _info(self) -> Any:
        self._file.fs.invalidate_cache(self.path)
        return self._file.fs.info(self.path)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._stream is not None:
            self._file.close()
            self._stream = None


@Stream.register_api(staticmethod)
class from_lines(_Files):
    r"""Emit the lines of text files, each with its position.

    Parameters
    ----------
    path
        Of fsspec: a local file, ``"s3://bucket/*.jsonl.gz"``, or a list. Several files
        are read one after the other, in the order of their names; one that is listed
        several times, as often: ``[path] * 3`` makes three passes.
    chunk
        Emit lists of so many lines; the last of a file may be shorter. None emits
        single lines. A list is one item of the stream, with one position: ready for
        ``map(parse).train(trainer)``.
    encoding
        Of the text.
    **options
        Those that follow, and those of `Source`.
    follow
        Whether to wait for more at the end of the file, as ``tail -f`` does. Only one
        file, not compressed. By default not.
    poll
        How often to look whether a file that is followed has grown; by default
        ``tensair.sources.poll``.
    compression
        ``"gzip"``, ``"bz2"``, ...; "infer", the default, goes by the name, None is
        none.
    storage_options
        Of the file system, as fsspec takes them.
    on_error
        What becomes of a line that is no text of this encoding: "dead-letter", the
        default, keeps it in `dead_letters`, "skip" only counts it, "raise" ends the
        source. In the first two cases the others of its chunk are emitted, and it
        counts as done with them.
    name
        In checkpoints; by default the path.
    positions
        Where to continue: what a checkpoint keeps, ``{name: {path: offset}}``. Offsets
        count bytes of the text, after decompression: of a compressed file, all before
        is decompressed again. Those of a trainer and of a checkpoint know the bytes
        before them, and another file is refused; plain numbers, as out of JSON, do not.
    start
        Whether to start at once. By default not.

    Attributes
    ----------
    dead_letters
        The newest lines that could not be read, `PoisonLine`; its ``total`` counts all.
        The bound is ``tensair.dead-letters``.
    skipped
        Lines that were left out with ``on_error="skip"``.

    Raises
    ------
    SourceError
        At `ended`: if a file cannot be read, is shorter than its position, is not the
        file that was read up to there, has shrunk or vanished while it is followed, or
        has a line of more than ``tensair.sources.line`` bytes.
    RecordError
        At `ended`: a line could not be read, and ``on_error="raise"``.

    Notes
    -----
    Lines are emitted without their newline: ``\n``, ``\r\n`` or ``\r``. Reads
    ``tensair.sources.block`` bytes at once, on a thread.
    """

    _may_be_empty = True  # an empty line is one

    def __init__(
        self,
        path: Paths,
        chunk: int | None = None,
        encoding: str = "utf-8",
        **options: Unpack[FileOptions],
    ) -> None:
        self._encoding = _checked(encoding)
        self._single = chunk is None
        super().__init__(path, chunk, **options)

    def _header(self, stream: Any) -> int:
        return _mark(stream, self._encoding)

    def _advice(self, cause: Exception) -> str:
        return ". Give encoding= if others are like it."

    def _item(self, lines: list[bytes]) -> Any:
        texts = [line.decode(self._encoding).rstrip("\r\n") for line in lines]
        return texts[0] if self._single else texts


@Stream.register_api(staticmethod)
class from_csv_chunks(_Files):
    """Emit the rows of CSV files as data frames, each with its position.

    Parameters
    ----------
    path
        As of `from_lines`. Each file begins with a row of column names; with
        ``read={"names": [...]}`` or ``{"header": None}`` it does not.
    chunk
        Rows in a data frame; the last of a file may be shorter, and others where rows
        are blank, or comments.
    read
        Further arguments of `pandas.read_csv`, such as ``{"usecols": [...], "dtype":
        {...}}``. Name the dtypes: pandas guesses them for each data frame anew.
    on_error
        What becomes of a row that pandas cannot read, or that has more fields than
        there are names; as of `from_lines`.
    **options
        As of `from_lines`.

    Attributes
    ----------
    dead_letters, skipped
        As of `from_lines`.

    Raises
    ------
    SourceError
        As of `from_lines`; and if pandas cannot read the column names.
    RecordError
        As of `from_lines`.
    ConfigurationError
        If an argument of ``read`` is meant for a file as a whole: ``nrows``,
        ``skipfooter``, ``chunksize``, ...; or if a dtype is, as "category" without
        categories.

    Notes
    -----
    Rows are those that pandas finds in the whole file: a newline within quotes ends
    none. A quote that is never closed takes in all that follows, until another one
    ends it, or until it is longer than ``tensair.sources.line``.

    A row with a field too many would be read wrongly, without a word: pandas takes
    the first column of a data frame that begins with one for its index, and drops
    fields where ``usecols`` are given. So fields are counted here, and ``index_col`` is
    False; unless ``read`` has an ``index_col``, or a separator of more than one
    character: then pandas judges alone. ``on_bad_lines`` may be "error" (it is for
    ``on_error``), "skip" or "warn", as in pandas.

    A row in which a column of ``parse_dates`` holds no date cannot be read.
    """

    def __init__(
        self,
        path: Paths,
        chunk: int = 64,
        read: dict[str, Any] | None = None,
        **options: Unpack[FileOptions],
    ) -> None:
        self._read = dict(read or {})
        check_dtypes(self._read)
        if not isinstance(self._read.get("header"), (list, tuple)):
            self._read.setdefault("index_col", False)
        self._encoding = _checked(self._read.get("encoding") or "utf-8")
        self._rows = CsvRows(read or {})
        self._read.pop("on_bad_lines", None)  # judged here
        self._names = b""
        self._columns = 0
        super().__init__(path, chunk, **options)

    def _cut(self) -> _Cut:
        return self._rows.cut()

    def _advice(self, cause: Exception) -> str:
        if isinstance(cause, UnicodeDecodeError):
            return ". Give read={'encoding': ...} if others are like it."
        if "inside string" in str(cause):
            return (
                ". A quote that is not closed takes in what follows, to the next one. "
                "If quotes are letters as any other, give read={'quoting': 3}."
            )
        return ""

    def _header(self, stream: Any) -> int | None:
        begins = _mark(stream, self._encoding)
        found = self._rows.head(self._first_rows(stream))
        if found is None and self._follow:
            return None
        if found is not None:
            head, self._columns = found
            self._names = b"".join(head)
            if self._rows.header:
                self._item([])  # what raises for the names is no fault of a row
            elif self._rows.names is None and self._rows.counts_fields:
                # Else the first row of each data frame would say how many there are.
                self._read = {**self._read, "names": range(self._columns)}
        return begins + len(self._names)

    def _first_rows(self, stream: Any) -> Iterator[bytes]:
        """Read on row by row; in a file that is followed, only whole ones."""
        cut = self._cut()
        block = config.get_bytes("sources.block")
        while read := stream.read(block):
            yield from cut.take(read)
        if not self._follow:
            yield from cut.rest()

    def _item(self, lines: list[bytes]) -> pd.DataFrame:
        if self._rows.counts_fields:
            kept = [line for line in lines if self._fits(line)]
            if lines and not kept:
                return pd.DataFrame()
            lines = kept
        frame = pd.read_csv(io.BytesIO(self._names + b"".join(lines)), **self._read)
        check_dates(frame, self._read)
        return frame

    def _fits(self, row: bytes) -> bool:
        """Whether a row has no more fields than there are columns."""
        fields = self._rows.too_many(row, self._columns)
        if fields and self._rows.bad == "error":
            raise ValueError(f"{fields} fields, and {self._columns} columns")
        if fields and self._rows.bad == "warn":
            warnings.warn(
                f"Skipping a row of {self.name}: expected {self._columns} fields, saw "
                f"{fields}: {row[:80]!r}",
                pd.errors.ParserWarning,
                stacklevel=2,
            )
        return not fields


def _as_paths(path: Any) -> Any:
    """Take one path, or make a list of several, which are found anew at each start."""
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    paths = list(path) if isinstance(path, Iterable) else [path]
    for each in paths:
        if not isinstance(each, (str, os.PathLike)):
            raise ConfigurationError(
                f"path={bounded(repr(path))} was given; the path of a file "
                "or several, with '*', is needed, or a list of paths."
            )
    return [os.fspath(each) for each in paths]


def _keys(paths: list[str]) -> list[str]:
    """Name files in positions: by their paths, and how often each came before."""
    taken, passes, keys = set(paths), Counter[str](), []
    for path in paths:
        passes[path] += 1
        key = path
        if passes[path] > 1:
            key = f"{path}#{passes[path]}"
            while key in taken:  # a file may be called so
                key += "#"
            taken.add(key)
        keys.append(key)
    return keys


def _checked(encoding: str) -> str:
    try:
        sample = "a\n".encode(encoding)
    except (LookupError, TypeError) as error:
        raise ConfigurationError(
            f"encoding={encoding!r} was given; one that Python knows is needed, "
            "such as 'utf-8' or 'latin-1'."
        ) from error
    if sample.removeprefix(codecs.BOM_UTF8) != b"a\n":
        raise ConfigurationError(
            f"encoding={encoding!r} was given, in which a newline is not one byte: "
            "the ends of lines cannot be found. Convert the file to UTF-8."
        )
    return encoding


def _mark(stream: Any, encoding: str) -> int:
    """Read the mark that some programs write in front of UTF-8; give its length."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            return len(codecs.BOM_UTF8)
        stream.seek(0)
    return 0
