"""Rows of CSV are those that pandas finds in the whole file, however it is read."""

from __future__ import annotations

import asyncio
import csv
import io
import random

import dask
import pandas as pd
import pytest
from distributed.utils_test import gen_test
from helpers import stable
from streamz import Stream

import tensair_dask.sources  # noqa: F401  gives Stream its sources
from tensair_dask.errors import ConfigurationError, SourceError
from tensair_dask.streams.sources.csv_rows import CsvRows

FILES = {
    "a newline in quotes": ('a,b\n1,"two\nlines"\n2,x\n"3\n\n",y\n', {}),
    "quotes at the end": ('a,b\n1,"x"\n2,"y\nz"', {}),
    "carriage returns": ('a,b\r\n1,"two\r\nlines"\r\n2,x\r\n', {}),
    "carriage returns alone": ('a,b\r1,"two\rlines"\r2,x\r', {}),
    "all kinds of ends": ("a,b\n1,x\r\n2,y\r3,z\n\r4,u\n", {}),
    "doubled quotes": ('a,b\n1,"say ""a\nb"", then"\n2,""""\n3,""\n', {}),
    "no doubled quotes": ('a,b\n1,"x""y"\n2,z\n', {"doublequote": False}),
    "a quote within a field": ('a,b\n1,5" wide\n2,6" wide\n', {}),
    "letters behind a quote": ('a,b\n1,"x\ny"z"\n2,"u"v\n', {}),
    "escapes": ('a,b\n1,x\\\ny\n2,"q\\"\nr"\n3,\\"\n', {"escapechar": "\\"}),
    "comments": (
        '# "head\na,b\n1,x # "no quote\n#2,y\n3,"#\nz"\n',
        {"comment": "#"},
    ),
    "blank lines": ('\na,b\n\n1,x\n  \n2,"y\n\nz"\n\n', {}),
    "blank lines that count": ("a,b\n1,x\n\n2,y\n", {"skip_blank_lines": False}),
    "only quotes": ("a,b\n1,'x\ny'\n2,\"\n", {"quotechar": "'"}),
    "no quotes": ('a,b\n1,"x\n2,y"\n', {"quoting": csv.QUOTE_NONE}),
    "tabs": ('a\tb\n1\t"x\ty\nz"\n2\tu\n', {"sep": "\t"}),
    "white space": ('a b\n1   "x y\nz"\n2 \t u\n', {"sep": r"\s+"}),
    "an expression": ('a;;b\n1;;"x\n2;;y"\n', {"sep": ";;", "engine": "python"}),
    "a long separator": ('a§b\n1§"x§\ny"\n2§z\n', {"sep": "§", "engine": "python"}),
    "spaces before quotes": (
        'a, b\n1, "x\ny"\n2,  z\n',
        {"skipinitialspace": True},
    ),
    "spaces that are letters": ('a,b\n1, "x\n2, y"\n', {}),
    "another end of rows": ('a,b;1,"x;y";2,z\nu;', {"lineterminator": ";"}),
    "no names": ('1,"x\ny",z\n2,u\n3,v,w\n', {"header": None}),
    "names of its own": ('1,"x\ny"\n2,z\n', {"names": ["a", "b"]}),
    "other names": ('a,b\n1,"x\ny"\n2,z\n', {"names": ["c", "d"], "header": 0}),
    "names with a newline": ('"a\n1",b\n1,x\n2,"y\nz"\n', {}),
    "two rows of names": ("a,b\nc,d\n1,x\n2,y\n", {"header": [0, 1]}),
    "names in the second row": ('"no\nname"\na,b\n1,x\n2,y\n', {"header": 1}),
    "rows to skip": ('"writ\nten",by\nus\na,b\n1,"x\ny"\n2,z\n', {"skiprows": 2}),
    "a mark at the beginning": ('\ufeff"a,\n1",b\n1,x\n2,y\n', {}),
    "another encoding": (
        'a,b\n1,"ü\nö"\n2,é\n',
        {"encoding": "latin-1"},
    ),
    "a dialect": ("a;b\n1;'x\ny'\n2;z\n", {"dialect": "single"}),
    "a width that is not the first's": ('a,b,c\n1,"x\ny"\n2,z,u\n3\n', {}),
    "only names": ("a,b\n", {}),
    "commas in quotes": ('a,b\n1,"x,y,z,\n,u"\n2,v\n', {}),
}


class Single(csv.excel):
    delimiter = ";"
    quotechar = "'"


csv.register_dialect("single", Single)


def plain(frames: list[pd.DataFrame]) -> list[list[str]]:
    return [row for frame in frames for row in frame.fillna("").to_numpy().tolist()]


def options(read: dict) -> dict:
    return {"dtype": str, "keep_default_na": False, **read}


async def rows_of(path, **kwargs):
    source = Stream.from_csv_chunks(str(path), asynchronous=True, **kwargs)
    frames = source.sink_to_list()
    async with source:
        await source.ended()
    return frames, source


@pytest.mark.parametrize("name", FILES)
@gen_test()
async def test_rows_are_those_of_pandas_whatever_the_chunk_and_the_block(
    tmp_path, name
):
    text, read = FILES[name]
    data = text.encode(read.get("encoding", "utf-8"))
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    index = {} if name == "two rows of names" else {"index_col": False}
    expected = pd.read_csv(io.BytesIO(data), **options({**index, **read}))
    # A block of n bytes ends at each n-th byte: together, at every byte of the file.
    cases = [(block, 2) for block in range(1, len(data) + 1)]
    for block, chunk in [*cases, (1 << 18, 1), (1 << 18, 2), (1 << 18, 100)]:
        with dask.config.set({"tensair.sources.block": f"{block} B"}):
            frames, source = await rows_of(path, chunk=chunk, read=options(read))
        assert plain(frames) == plain([expected]), (block, chunk)
        assert all(1 <= len(frame) <= chunk for frame in frames)
        names = expected.columns.tolist()
        assert all(frame.columns.tolist() == names for frame in frames)
        assert source.dead_letters.total == 0


@pytest.mark.parametrize("name", ["a newline in quotes", "escapes", "no names"])
@gen_test()
async def test_a_restart_goes_on_behind_the_last_row(tmp_path, name):
    text, read = FILES[name]
    path = tmp_path / "table.csv"
    path.write_text(text)
    expected = pd.read_csv(io.StringIO(text), **options({"index_col": False, **read}))
    kept, frames = None, []
    for _ in range(len(expected)):
        source = Stream.from_csv_chunks(
            str(path), chunk=1, read=options(read), positions=kept, asynchronous=True
        )
        source.sink(frames.append)
        source.sink(lambda frame, own=source: own.stop())
        async with source:
            await source.ended()
        kept = {source.tracker.name: source.tracker.learned()}
    assert plain(frames) == plain([expected])


@gen_test()
async def test_rows_that_are_still_being_written_are_waited_for(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,"b')
    source = Stream.from_csv_chunks(
        str(path), chunk=1, follow=True, poll="10ms", asynchronous=True
    )
    frames = source.sink_to_list()
    async with source:
        for part, rows in (
            ('"', 0),
            ("\n", 0),
            ('1,"x', 0),
            ("\n", 0),
            ("2,y\n", 0),
            ('"\n', 1),
            ("3,z\r", 1),
            ("\n4", 2),
        ):
            with path.open("a", newline="") as file:
                file.write(part)
            while len(frames) < rows:
                await asyncio.sleep(0.005)
            for _ in range(4):  # it is looked at, and nothing more comes
                await asyncio.sleep(0.01)
            assert len(frames) == rows
        source.stop()
    assert plain(frames) == [[1, "x\n2,y\n"], [3, "z"]]
    assert frames[0].columns.tolist() == ["a", "b"]


# No carriage return alone: behind one that ends a blank line pandas drops a separator.
SIGNS = ["a", "b", '"', '"', ",", ";", "\n", "\n", "\r\n", "\\", "#", " "]


def read_whole(data: bytes, read: dict) -> list[list[str]] | None:
    try:
        return plain([pd.read_csv(io.BytesIO(data), **options(read))])
    except pd.errors.EmptyDataError:
        return []
    except Exception:  # a quote that is not closed, a field too many
        return None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"escapechar": "\\"},
        {"comment": "#"},
        {"doublequote": False},
        {"skipinitialspace": True},
        {"sep": r"\s+"},
        {"quoting": csv.QUOTE_NONE},
        {"comment": "#", "escapechar": "\\", "sep": ";"},
    ],
    ids=stable,
)
def test_rows_of_random_texts_are_those_of_pandas(given):
    dice = random.Random(repr(given))
    read = {"header": None, "names": range(8), "index_col": False}
    read.update(given)
    rows = CsvRows({**read, "skip_blank_lines": False})
    # Older versions of pandas also take commas for white space.
    signs = [each for each in SIGNS if each != "," or given.get("sep") != r"\s+"]
    compared = 0
    for _ in range(200):
        text = "".join(dice.choices(signs, k=dice.randrange(1, 16)))
        data = text.encode()
        whole = read_whole(data, read)
        if whole is None:
            continue
        cut, found, at = rows.cut(), [], 0
        while at < len(data):
            piece = data[at : at + dice.randint(1, 6)]
            found += cut.take(piece)
            at += len(piece)
        found += cut.rest()
        assert b"".join(found) == data
        joined = [row for part in found for row in read_whole(part, read) or []]
        assert joined == whole, text
        compared += 1
    assert compared > 50


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ("", 1),
        ("a,b", 2),
        ("a,b,\n", 3),
        ('"a,b",c\n', 2),
        ('"a\n,b",c\n', 2),
        ('a",b"\n', 2),
        ('"a"",",b\n', 2),
        (f'"{"x," * 100_000}",b\n', 2),  # longer than what csv.reader reads
    ],
)
def test_fields_are_counted(row, fields):
    assert CsvRows({}).fields(row.encode()) == fields


@gen_test()
async def test_the_error_for_a_quote_that_is_not_closed_says_what_to_do(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b\n1,x\n2,"y\n3,z\n')
    frames, source = await rows_of(path, chunk=10)
    assert plain(frames) == [[1, "x"]]
    (letter,) = source.dead_letters
    assert letter.line == b'2,"y\n3,z\n'
    assert "A quote that is not closed" in str(letter.error)
    assert "'quoting': 3" in str(letter.error)


@gen_test()
async def test_a_row_longer_than_allowed_ends_the_source(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b\n1,"' + "y\n" * 2000)
    config = {"tensair.sources.line": "1 kB", "tensair.sources.block": "100 B"}
    with (
        dask.config.set(config),
        pytest.raises(SourceError, match="quotes that are not closed"),
    ):
        await rows_of(path, chunk=10)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ({"nrows": 5}, "each data frame anew"),
        ({"chunksize": 5}, "each data frame anew"),
        ({"skipfooter": 1}, "each data frame anew"),
        ({"skiprows": [1, 3]}, "a number of rows to skip"),
        ({"skiprows": lambda at: at % 2}, "a number of rows to skip"),
        ({"sep": None}, "guess the separator"),
        ({"encoding": "utf-16"}, "a newline is not one byte"),
        ({"encoding": "klingon"}, "one that Python knows"),
    ],
    ids=stable,
)
def test_what_cannot_be_done_in_chunks_is_refused(tmp_path, read, said):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=said):
        Stream.from_csv_chunks(str(path), read=read)


@gen_test()
async def test_a_mark_at_the_beginning_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "text"
    path.write_text("\ufeffone\n\ufefftwo\n", encoding="utf-8")
    source = Stream.from_lines(str(path), asynchronous=True)
    got = source.sink_to_list()
    async with source:
        await source.ended()
    assert got == ["one", "\ufefftwo"]


def test_lines_whose_newline_is_not_one_byte_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="a newline is not one byte"):
        Stream.from_lines(str(tmp_path / "text"), encoding="utf-16-le")


BAD = [
    "a,b\n1,2\n3,4\n5,6,7\n8,9\n",
    'a,b\n1,2\n3,4\n"x,y",6\n5,6,7,8\n',
    "a,b\n1,2\n5,6,7\n5,6,7\n8,9\n",
]


@pytest.mark.parametrize("how", ["skip", "warn"])
@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize(
    "read",
    [{}, {"engine": "python"}, {"comment": "#"}, {"index_col": False}],
    ids=stable,
)
@pytest.mark.filterwarnings("ignore::pandas.errors.ParserWarning")
@gen_test()
async def test_bad_lines_are_those_of_the_whole_file(tmp_path, how, text, read):
    path = tmp_path / "table.csv"
    path.write_text(text)
    read = options({**read, "on_bad_lines": how})
    expected = pd.read_csv(path, **read)
    for chunk in (1, 2, 3, 100):
        frames, source = await rows_of(path, chunk=chunk, read=read)
        assert plain(frames) == plain([expected])
        assert source.dead_letters.total == 0


@gen_test()
async def test_bad_lines_can_be_warned_of_or_be_errors(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("1,2\n3,4,5\n")
    read = {"header": None, "on_bad_lines": "warn"}
    with pytest.warns(pd.errors.ParserWarning, match="expected 2 fields, saw 3: b'3,4"):
        frames, _ = await rows_of(path, chunk=1, read=read)
    assert plain(frames) == [[1, 2]]
    read = {"header": None, "on_bad_lines": "error", "comment": "#"}
    frames, source = await rows_of(path, chunk=1, read=read)
    assert plain(frames) == [[1, 2]]
    assert [each.line for each in source.dead_letters] == [b"3,4,5\n"]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ({"on_bad_lines": lambda fields: None}, "'skip' and 'warn' are allowed"),
        ({"on_bad_lines": "drop"}, "'skip' and 'warn' are allowed"),
        ({"on_bad_lines": "skip", "index_col": 0}, "with index_col"),
        ({"on_bad_lines": "warn", "sep": ";;"}, "with index_col, or a separator"),
        ({"dtype": "category"}, "without categories: each"),
        ({"dtype": {"c": float, "a": "category"}}, "for 'a'"),
        ({"dtype": {"a": pd.CategoricalDtype(ordered=True)}}, "for 'a'"),
        ({"dtype": {0: pd.CategoricalDtype}}, "for 0"),
    ],
    ids=stable,
)
def test_what_would_mean_something_else_in_each_data_frame_is_refused(
    tmp_path, read, said
):
    with pytest.raises(ConfigurationError, match=said):
        Stream.from_csv_chunks(str(tmp_path / "table.csv"), read=read)


@gen_test()
async def test_categories_that_are_named_have_the_same_codes_everywhere(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("c,y\nred,1\nblue,0\ngreen,2\nblue,0\n")
    read = {"dtype": {"c": pd.CategoricalDtype(["red", "green", "blue"])}}
    frames, _ = await rows_of(path, chunk=2, read=read)
    assert [code for frame in frames for code in frame.c.cat.codes] == [0, 2, 1, 2]


@pytest.mark.parametrize("dates", [["t"], [1]])
@pytest.mark.parametrize("chunk", [1, 2, 3, 10])
@gen_test()
async def test_a_row_without_the_date_that_is_named_cannot_be_read(
    tmp_path, dates, chunk
):
    path = tmp_path / "table.csv"
    path.write_text("y,t\n1,2020-01-01\n2,2020-01-02\n3,soon\n4,\n5,2020-01-05\n")
    frames, source = await rows_of(path, chunk=chunk, read={"parse_dates": dates})
    assert [each.line for each in source.dead_letters] == [b"3,soon\n"]
    assert all(frame.t.dtype.kind == "M" for frame in frames)
    assert [y for frame in frames for y in frame.y] == [1, 2, 4, 5]


@pytest.mark.filterwarnings("ignore:Could not infer format")
@pytest.mark.filterwarnings("ignore:Parsing dates")
@gen_test()
async def test_dates_of_several_forms_in_one_data_frame_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("y,t\n1,2020-01-01\n2,03/02/2020\n")
    with pytest.raises(SourceError, match="'date_format'"):
        await rows_of(path, chunk=2, read={"parse_dates": ["t"]})
