"""Where the rows of CSV end: as pandas sees it, without reading them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tensair_dask.errors import ConfigurationError

__all__ = ["CsvCut", "CsvRows"]

# Arguments of pandas that count rows of a file: each data frame is a file of its own.
_OF_A_WHOLE_FILE = ("nrows", "skipfooter", "chunksize", "iterator", "compression")
_DIALECT = (
    "delimiter",
    "quotechar",
    "quoting",
    "escapechar",
    "doublequote",
    "skipinitialspace",
)


class _In(Enum):
    """What of a row comes next."""

    NEW_FIELD = 0
    FIELD = 1  # a quote is a character as any other
    QUOTES = 2  # so is a newline


@dataclass(frozen=True)
class _Signs:
    """Bytes that mean something; empty ones mean nothing.

    A tab as `separator` stands for white space where `blanks` is set.
    """

    separator: bytes = b","
    quote: bytes = b'"'
    escape: bytes = b""
    comment: bytes = b""
    ends: bytes = b"\r\n"
    doubled: bool = True
    spaces: bool = False  # are left out at the beginning of a field
    blanks: bool = False


class CsvRows:
    r"""Finds the ends of rows, and counts fields, by the rules of pandas.

    A newline within quotes, or one that is escaped, ends no row. A quote opens only at
    the beginning of a field. ``\n``, ``\r\n`` and ``\r`` end rows, or what
    ``lineterminator`` says.

    Parameters
    ----------
    read
        Arguments of `pandas.read_csv`.

    Attributes
    ----------
    header
        How many rows that are neither blank nor a comment come before those of data,
        and after ``skip`` rows of any kind.
    skip
        The same.
    names
        Of the columns, if ``read`` gives them.
    counts_fields
        Whether a row may have no more fields than there are columns. Where ``read`` has
        an ``index_col``, or an expression for a separator, pandas judges alone.
    bad
        What becomes of a row with more: "error", "skip" or "warn". Pandas would be
        asked for each data frame anew, and takes what the first row has for the rule.

    Raises
    ------
    ConfigurationError
        If an argument would mean something else for each data frame.
    """

    def __init__(self, read: Mapping[str, Any]) -> None:
        _check(read)
        self.names = read.get("names")
        self.header, self.skip = _header(read), int(read.get("skiprows") or 0)
        self._skip_blank = bool(read.get("skip_blank_lines", True))
        self._signs = signs = _signs(read)
        self.counts_fields = not (
            signs.blanks
            or not signs.separator
            or read.get("index_col", False) is not False
        )
        self.bad = _bad(read, self.counts_fields)
        self._special = [each for each in (signs.quote, signs.escape) if each]
        self._separator, self._field, self._quoted, self._usual = _patterns(signs)

    def head(self, rows: Iterable[bytes]) -> tuple[list[bytes], int] | None:
        """Find what a file begins with.

        Parameters
        ----------
        rows
            Of the whole file.

        Returns
        -------
        head, columns
            Its first rows, which are no data, and how many columns there are. None if
            there are fewer rows than that needs.
        """
        head: list[bytes] = []
        wanted = self.header
        for row in rows:
            if len(head) < self.skip or (wanted and self.is_blank(row)):
                head.append(row)
            elif wanted > 1:
                head.append(row)
                wanted -= 1
            elif wanted or not self.is_blank(row):
                # The last of the names; without, the first row of data tells.
                columns = self.fields(row) if self.names is None else len(self.names)
                return head + [row] * wanted, columns
        return None

    def too_many(self, row: bytes, columns: int) -> int:
        """Count the fields of a row if it has more than there are columns, else 0.

        The quick way counts separators within quotes as well.
        """
        if row.count(self._signs.separator) < columns:
            return 0
        fields = self.fields(row)
        return fields if fields > columns else 0

    def cut(self) -> CsvCut:
        """Begin to cut text into rows."""
        return CsvCut(self)

    def lines(self, text: bytes) -> list[bytes]:
        """Cut where rows may end; the last part may have no end."""
        if self._signs.ends == b"\r\n":
            lines = text.splitlines(True)
            if lines and not lines[-1].endswith((b"\r", b"\n")):
                return lines
            return [*lines, b""]
        end = self._signs.ends
        *lines, rest = text.split(end)
        return [*(line + end for line in lines), rest]

    def is_blank(self, row: bytes) -> bool:
        """Whether pandas passes it over: it is empty, or a comment."""
        comment = self._signs.comment
        if comment and row.lstrip(b" \t").startswith(comment):
            return True
        return self._skip_blank and not row.strip(b" \t" + self._signs.ends)

    def may_go_on(self, text: bytes) -> bool:
        """Whether a row may go on behind the end of a line in this text."""
        return any(each in text for each in self._special)

    def fields(self, row: bytes) -> int:
        """Count the fields of a row."""
        return self._scan(row, _In.NEW_FIELD)[1]

    def after(self, line: bytes, state: _In = _In.NEW_FIELD) -> _In | None:
        """Find where in a row the end of a line is; None where the row ends, too."""
        if state is _In.QUOTES and not self.may_go_on(line):
            return state
        if state is _In.NEW_FIELD and (
            not self.may_go_on(line) or self._usual.fullmatch(line)
        ):
            return None
        return self._scan(line, state)[0]

    def _scan(self, line: bytes, state: _In) -> tuple[_In | None, int]:
        """Go through the fields; where the line ends in the row, and their number."""
        at, fields, length, signs = 0, 1, len(line), self._signs
        while True:
            if state is _In.NEW_FIELD:
                while signs.spaces and line.startswith(b" ", at):
                    at += 1
                state = _In.FIELD
                if signs.quote and line.startswith(signs.quote, at):
                    at += 1
                    state = _In.QUOTES
            if state is _In.QUOTES:
                at = _end(self._quoted, line, at)
                if at >= length:
                    return _In.QUOTES, fields
                at += 1
                state = _In.FIELD
            at = _end(self._field, line, at)
            if at >= length:  # an escaped newline, or the end of the file
                return _In.FIELD, fields
            separator = self._separator.match(line, at)
            if separator is None:
                return None, fields
            at = separator.end()
            fields += 1
            state = _In.NEW_FIELD


def _patterns(signs: _Signs) -> Iterator[re.Pattern[bytes]]:
    """Give those of a separator, a field, what is in quotes, and the usual row."""
    quote, escape, end = map(re.escape, (signs.quote, signs.escape, signs.ends))
    stop = re.escape(signs.comment) + end
    if signs.blanks:
        separator, other = b"[ \t]", b""
        stop += b" \t"
    elif len(signs.separator) == 1:
        separator, other = re.escape(signs.separator), b""
        stop += separator
    else:  # a letter of several bytes, or none
        separator = re.escape(signs.separator) or b"(?!)"
        other = b"(?!" + separator + b")"
    escaped = b"|" + escape + b"." if escape else b""
    doubled = b"|" + quote + quote if quote and signs.doubled else b""
    content = b"[^" + quote + escape + b"]" if quote or escape else b"."
    yield re.compile(separator)
    yield re.compile(
        b"(?s)(?:" + other + b"[^" + stop + escape + b"]" + escaped + b")*"
    )
    yield re.compile(b"(?s)(?:" + content + escaped + doubled + b")*")
    # Most rows have their quotes as they should be: seen at once.
    field = b"(?:(?:" + other + b"[^" + stop + quote + escape + b"])*"
    field += b"|" + quote + content + b"*" + quote + b")" if quote else b")"
    yield re.compile(field + b"(?:" + separator + field + b")*[" + end + b"]+")


def _end(pattern: re.Pattern[bytes], line: bytes, at: int) -> int:
    found = pattern.match(line, at)
    assert found is not None  # it matches nothing, too
    return found.end()


class CsvCut:
    """Cuts a text that comes in pieces into whole rows."""

    def __init__(self, rows: CsvRows) -> None:
        self._rows = rows
        self._row: list[bytes] = []  # lines of a row that has no end yet
        self._state: _In = _In.NEW_FIELD
        self._rest = b""  # a line that has no end yet
        self._size = 0

    def __len__(self) -> int:
        """Bytes that wait for the end of their row."""
        return self._size + len(self._rest)

    def take(self, piece: bytes) -> list[bytes]:
        """Take the next piece; give the rows that end in it, each with its end."""
        text = self._rest + piece
        *lines, self._rest = self._rows.lines(text)
        if lines and not self._rest and lines[-1].endswith(b"\r"):
            self._rest = lines.pop()  # the other half of its end may follow
        if not self._row and not self._rows.may_go_on(text):
            return lines
        return [row for line in lines if (row := self._add(line)) is not None]

    def rest(self) -> list[bytes]:
        """Give what waits, at the end of the text: one row, whole or not."""
        lines, self._rest = self._rows.lines(self._rest), b""
        rows = [row for line in lines if line and (row := self._add(line)) is not None]
        last = b"".join(self._row)
        self._row, self._size, self._state = [], 0, _In.NEW_FIELD
        return [*rows, last] if last else rows

    def _add(self, line: bytes) -> bytes | None:
        state = self._rows.after(line, self._state)
        if state is None and not self._row:
            return line
        self._row.append(line)
        self._size += len(line)
        if state is not None:
            self._state = state
            return None
        whole = b"".join(self._row)
        self._row, self._size, self._state = [], 0, _In.NEW_FIELD
        return whole


def _check(read: Mapping[str, Any]) -> None:
    for name in _OF_A_WHOLE_FILE:
        if read.get(name):
            raise ConfigurationError(
                f"read={{{name!r}: {read[name]!r}}} was given: it would be done to "
                "each data frame anew. Leave it out; chunk= says how many rows a "
                "data frame has, and compression= is an argument of the source."
            )
    if not isinstance(read.get("skiprows") or 0, int):
        raise ConfigurationError(
            f"read={{'skiprows': {read['skiprows']!r}}} was given: a number of rows to "
            "skip at the beginning of each file is allowed; drop others from the data "
            "frames."
        )
    if "sep" in read and read["sep"] is None and read.get("delimiter") is None:
        raise ConfigurationError(
            "read={'sep': None} was given: pandas would guess the separator for each "
            "data frame anew. Give it, such as ';'."
        )


def _bad(read: Mapping[str, Any], counts_fields: bool) -> str:
    """Say what becomes of rows with too many fields."""
    bad = read.get("on_bad_lines") or "error"
    if bad not in ("error", "skip", "warn"):
        raise ConfigurationError(
            f"read={{'on_bad_lines': {bad!r}}} was given: 'error', 'skip' and 'warn' "
            "are allowed. Rows that cannot be read are in source.dead_letters, each "
            "with its bytes: subscribe there to look at them."
        )
    if bad != "error" and not counts_fields:
        raise ConfigurationError(
            f"read={{'on_bad_lines': {bad!r}}} was given with index_col, or a "
            "separator of several characters: pandas would take such a row for a good "
            "one where a data frame begins with it. Leave one of them out; on_error= "
            "says what becomes of rows that cannot be read."
        )
    return str(bad)


def _header(read: Mapping[str, Any]) -> int:
    """Count the rows of a file that are its header."""
    header = read.get("header", "infer")
    if header == "infer":
        header = 0 if read.get("names") is None else None
    if header is None:
        return 0
    return 1 + (int(header) if isinstance(header, int) else max(header))


def _signs(read: Mapping[str, Any]) -> _Signs:
    given = dict(read)
    if dialect := given.get("dialect"):
        dialect = csv.get_dialect(dialect) if isinstance(dialect, str) else dialect
        given.update({name: getattr(dialect, name) for name in _DIALECT})
        given.pop("sep", None)
    separator = given.get("sep") or given.get("delimiter") or ","
    end = given.get("lineterminator")
    ends = b"\r\n" if end is None else end.encode()
    blanks = bool(given.get("delim_whitespace")) or separator == r"\s+"
    if len(separator) > 1 and not blanks:
        # An expression: pandas then takes each line for a row.
        return _Signs(b"", quote=b"", ends=ends)
    quote = given.get("quotechar", '"') or ""
    return _Signs(
        b"\t" if blanks else separator.encode(given.get("encoding") or "utf-8"),
        b"" if given.get("quoting") == csv.QUOTE_NONE else quote.encode(),
        (given.get("escapechar") or "").encode(),
        (given.get("comment") or "").encode(),
        ends,
        given.get("doublequote", True) in (True, 1),
        bool(given.get("skipinitialspace")),
        blanks,
    )
