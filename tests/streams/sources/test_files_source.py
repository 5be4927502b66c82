from __future__ import annotations

import asyncio
import gzip

import fsspec
import pandas as pd
import pytest
from distributed.utils_test import gen_test
from streamz import Stream

import tensair_dask.sources  # noqa: F401  gives Stream its sources
from tensair_dask.errors import ConfigurationError, RecordError, SourceError

LINES = [f"line {number} \u00fc" for number in range(1_000)]
TEXT = "\n".join(LINES)


async def read(*args, until=None, **kwargs):
    """Read to the end, or to a line; what came, and what a checkpoint would keep."""
    source = Stream.from_lines(*args, asynchronous=True, **kwargs)
    got = source.sink_to_list()
    if until is not None:
        source.sink(lambda line: source.stop() if line == until else None)
    async with source:
        await source.ended()
    return got, {source.tracker.name: source.tracker.learned()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block", ["10 B", "256 KiB"])
@gen_test()
async def test_a_restart_reads_on_behind_the_last_line(tmp_path, packed, block):
    import dask

    path = tmp_path / ("text.gz" if packed else "text")
    data = TEXT.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    with dask.config.set({"tensair.sources.block": block}):
        first, kept = await read(str(path), until=LINES[334])
        assert first == LINES[:335]
        rest, kept = await read(str(path), positions=kept)
    assert first + rest == LINES
    assert kept == {str(path): {str(path): len(data)}}
    assert await read(str(path), positions=kept) == ([], kept)


@gen_test()
async def test_chunks_are_full_but_for_the_last_of_a_file(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(TEXT)
    got, kept = await read(str(tmp_path / "*"), chunk=300, name="text")
    assert [len(lines) for lines in got] == [300, 300, 300, 100] * 2
    assert [line for lines in got for line in lines] == LINES * 2
    assert list(kept["text"]) == [str(tmp_path / "a"), str(tmp_path / "b")]


@gen_test()
async def test_files_of_any_file_system_are_read():
    with fsspec.open("memory://sources/text", "w", encoding="utf-8") as file:
        file.write(TEXT)
    got, _ = await read("memory://sources/text")
    assert got == LINES


@gen_test()
async def test_a_growing_file_is_followed_line_by_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntw")
    source = Stream.from_lines(str(path), follow=True, poll="1ms", asynchronous=True)
    got = source.sink_to_list()

    async def until(count: int) -> None:
        while len(got) < count:
            await asyncio.sleep(0.001)

    async with source:
        await until(1)
        with path.open("a") as file:
            file.write("o\nthree\nfo")
        await until(3)
        assert source.tracker.released() == {str(path): len("one\ntwo\nthree\n")}
        with path.open("a") as file:
            file.write("ur\n")
        await until(4)
        source.stop()
        await source.ended()
    assert got == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "was there and is gone"),
        (lambda path: path.write_text("o"), "has shrunk to 1 bytes, and 4 were read"),
    ],
)
@gen_test()
async def test_a_followed_file_that_vanishes_or_shrinks_ends_the_source(
    tmp_path, harm, message
):
    path = tmp_path / "log"
    path.write_text("one\n")
    source = Stream.from_lines(str(path), follow=True, poll="1ms", asynchronous=True)
    source.sink(lambda line: harm(path))
    async with source:
        with pytest.raises(SourceError, match=message):
            await source.ended()


@gen_test()
async def test_a_file_that_cannot_be_read_raises_an_error_with_the_reason(tmp_path):
    path = tmp_path / "text"
    with pytest.raises(SourceError, match="cannot be read: FileNotFoundError"):
        await read(str(path))
    with pytest.raises(SourceError, match="There is no file at"):
        await read(str(tmp_path / "*.none"))
    path.write_text("short")
    with pytest.raises(SourceError, match="from byte 500 on, but has only 5"):
        await read(str(path), name="a", positions={"a": {str(path): 500}})
    with pytest.raises(ConfigurationError, match="encoding='utf-88' was given"):
        await read(str(path), encoding="utf-88")
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(TEXT.encode())[:-50])
    with pytest.raises(SourceError, match="EOFError"):
        await read(str(packed))
    with pytest.raises(SourceError, match="EOFError"):
        await read(str(packed), name="a", positions={"a": {str(packed): 10**6}})
    with pytest.raises(SourceError, match="not compressed can be followed"):
        await read(str(packed), follow=True)
    with pytest.raises(ConfigurationError, match="chunk=0"):
        await read(str(path), chunk=0)


@gen_test()
async def test_a_file_without_lines_is_not_read_into_memory(tmp_path):
    import dask

    path = tmp_path / "binary"
    path.write_bytes(b"x" * 100_000)
    with (
        dask.config.set({"tensair.sources.line": "1 kB"}),
        pytest.raises(SourceError, match="longer than 1000 bytes"),
    ):
        await read(str(path))


@gen_test()
async def test_rows_of_csv_come_as_data_frames(tmp_path):
    table = pd.DataFrame({"a": range(100), "b": [f"row {i}" for i in range(100)]})
    path = tmp_path / "table.csv.gz"
    table.to_csv(path, index=False)
    frames, kept = [], None
    for stop in (True, False):
        source = Stream.from_csv_chunks(
            str(path), chunk=30, positions=kept, asynchronous=True
        )
        source.sink(frames.append)
        if stop:
            source.sink(lambda frame, own=source: own.stop())
        async with source:
            await source.ended()
        kept = {source.tracker.name: source.tracker.learned()}
    assert [len(frame) for frame in frames] == [30, 30, 30, 10]
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), table)


HARMED = b"one\ntwo\n\xff bad\nfour\n\xfe"


@pytest.mark.parametrize("chunk", [None, 2, 10])
@gen_test()
async def test_a_line_that_cannot_be_read_is_set_aside_and_the_others_come(
    tmp_path, chunk
):
    path = tmp_path / "text"
    path.write_bytes(HARMED)
    source = Stream.from_lines(str(path), chunk=chunk, asynchronous=True)
    got = source.sink_to_list()
    async with source:
        await source.ended()
    lines = got if chunk is None else [line for lines in got for line in lines]
    assert lines == ["one", "two", "four"]
    letters = source.dead_letters
    assert letters.total == 2
    assert [each.line for each in letters] == [b"\xff bad\n", b"\xfe"]
    assert [(each.path, each.offset) for each in letters] == [
        (str(path), 8),
        (str(path), 19),
    ]
    assert f"The line at byte 8 of {path} cannot be read" in str(letters[0].error)
    assert source.tracker.released() == {str(path): len(HARMED)}


@gen_test()
async def test_a_line_that_cannot_be_read_can_be_skipped_or_end_the_source(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(HARMED)
    source = Stream.from_lines(str(path), on_error="skip", asynchronous=True)
    source.sink(len)
    async with source:
        await source.ended()
    assert (source.skipped, source.dead_letters.total) == (2, 0)
    with pytest.raises(RecordError, match=r"at byte 8 of .* Give encoding="):
        await read(str(path), on_error="raise")
    with pytest.raises(ConfigurationError, match="on_error='cry' was given"):
        await read(str(path), on_error="cry")


async def rows(text, path, **kwargs):
    """Rows that are read of a CSV file, and its source."""
    path.write_text(text)
    source = Stream.from_csv_chunks(str(path), asynchronous=True, **kwargs)
    frames = source.sink_to_list()
    async with source:
        await source.ended()
    return [row for frame in frames for row in frame.to_numpy().tolist()], source


@pytest.mark.parametrize("first", ["", "1,2\n"])
@pytest.mark.parametrize("read", [{}, {"usecols": ["a", "b"]}, {"engine": "python"}])
@gen_test()
async def test_a_row_with_a_field_too_many_is_set_aside(tmp_path, first, read):
    text = f'a,b\n{first}5,6,7\n"8",9\n'
    got, source = await rows(text, tmp_path / "table.csv", read=read)
    assert got == ([[1, 2]] if first else []) + [[8, 9]]
    (letter,) = source.dead_letters
    assert (letter.line, letter.offset) == (b"5,6,7\n", 4 + len(first))
    assert "ValueError: 3 fields, and 2 columns" in str(letter.error)
    assert source.tracker.released() == {str(tmp_path / "table.csv"): len(text)}


@gen_test()
async def test_separators_within_quotes_are_no_fields(tmp_path):
    text = '"a,a";b\n"1;2;3";4\n5;"6";7\n"8";9\n'
    got, source = await rows(text, tmp_path / "t.csv", read={"sep": ";"})
    assert got == [["1;2;3", 4], ["8", 9]]
    assert [each.line for each in source.dead_letters] == [b'5;"6";7\n']


@gen_test()
async def test_an_index_that_the_user_names_may_stand_before_the_columns(tmp_path):
    text = "a,b\nx,1,2\ny,3,4\n"
    got, source = await rows(text, tmp_path / "t.csv", read={"index_col": 0})
    assert got == [[1, 2], [3, 4]]
    assert source.dead_letters.total == 0


@gen_test()
async def test_rows_that_pandas_cannot_read_are_set_aside(tmp_path):
    text = "a,b\n1,2\nx,3\n4,5\n"
    read = {"dtype": {"a": int}}
    got, source = await rows(text, tmp_path / "t.csv", read=read, chunk=2)
    assert got == [[1, 2], [4, 5]]
    assert [each.line for each in source.dead_letters] == [b"x,3\n"]
    with pytest.raises(RecordError, match="The line at byte 8 of"):
        await rows(text, tmp_path / "t.csv", read=read, on_error="raise")


@gen_test()
async def test_column_names_that_are_not_there_end_the_source(tmp_path):
    with pytest.raises(SourceError, match="Usecols do not match columns"):
        await rows("a,b\n1,2\n", tmp_path / "t.csv", read={"usecols": ["c"]})


@gen_test()
async def test_two_colons_in_the_name_of_a_file_are_part_of_it(tmp_path):
    path = tmp_path / "log::1.txt"
    path.write_text(TEXT)
    got, kept = await read(str(path), positions={})
    assert got == LINES
    assert list(kept) == [str(path)]


async def replaced(make, path, data, **kwargs):
    """Read a file, replace it by other content, and read on from the positions."""
    source = make(str(path), asynchronous=True, **kwargs)
    source.sink(len)
    async with source:
        await source.ended()
    kept = {source.tracker.name: source.tracker.learned()}
    path.write_bytes(data)
    source = make(str(path), positions=kept, asynchronous=True, **kwargs)
    got = source.sink_to_list()
    async with source:
        await source.ended()
    return got


ROTATED = {
    "other lines": (b"one\ntwo\n", b"three\nfour\nfive\n"),
    "another beginning": (b"x" * 500 + b"\none\n", b"y" * 500 + b"\none\ntwo\n"),
    "another end": (b"a" * 999 + b"\n", b"a" * 998 + b"b\nnew\n"),
    "a line put in": (b"1\n" * 50 + b"2\n", b"1\n" * 60 + b"2\n"),
    "as long": (b"one\n", b"two\n"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ROTATED)
@gen_test()
async def test_a_file_that_was_replaced_is_not_read_from_its_middle(
    tmp_path, name, packed
):
    before, after = map(gzip.compress if packed else bytes, ROTATED[name])
    path = tmp_path / ("log.gz" if packed else "log")
    path.write_bytes(before)
    with pytest.raises(SourceError, match="not the file that was read up to there"):
        await replaced(Stream.from_lines, path, after, chunk=3)


@gen_test()
async def test_a_table_that_was_replaced_is_not_read_on(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="not the file that was read up to there"):
        await replaced(Stream.from_csv_chunks, path, b"b,a\n1,2\n3,4\n")
    path.write_text("a,b\n1,2\n")
    (got,) = await replaced(Stream.from_csv_chunks, path, b"a,b\n1,2\n3,4\n")
    assert got.to_numpy().tolist() == [[3, 4]]


@pytest.mark.parametrize("block", ["1 B", "7 B", "256 KiB"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
@gen_test()
async def test_the_same_file_is_known_however_it_was_read(tmp_path, block, chunk):
    import dask

    path = tmp_path / "text"
    path.write_text(TEXT[:600])
    with dask.config.set({"tensair.sources.block": block}):
        _, kept = await read(str(path), chunk=chunk)
    copied = tmp_path / "copy"
    copied.write_text(TEXT[:600] + "\nmore")
    copied.replace(path)
    assert (await read(str(path), positions=kept))[0] == ["", "more"]


@gen_test()
async def test_positions_that_know_only_the_offset_are_read_as_before(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\ntwo\nthree\n")
    got, _ = await read(str(path), name="n", positions={"n": {str(path): 4}})
    assert got == ["two", "three"]


@pytest.mark.parametrize("length", [4, 50])
@pytest.mark.parametrize("how", ["renamed", "written anew"])
@gen_test()
async def test_replacing_a_followed_file_ends_the_source(tmp_path, how, length):
    path = tmp_path / "log"
    path.write_text("one\n")
    source = Stream.from_lines(str(path), follow=True, poll="1ms", asynchronous=True)
    got = source.sink_to_list()

    def replace(line):
        other = tmp_path / "other" if how == "renamed" else path
        other.write_text("two" + "!" * (length - 4) + "\n")
        other.replace(path)

    source.sink(replace)
    async with source:
        with pytest.raises(SourceError, match="not the file that was read up to there"):
            await source.ended()
    assert got == ["one"]


async def notes_of(source) -> list[str]:
    """What a source says, to one that hears of it before it runs."""

    class Hearer:
        def __init__(self):
            self.texts = []

        def note_soon(self, text):
            self.texts.append(text)

    hearer = Hearer()
    source.tracker.add_hearer(hearer)
    source.sink(len)
    async with source:
        await source.ended()
    source.tracker.add_hearer(hearer)  # is told nothing twice
    return hearer.texts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "n", "positions": {"n": {"{path}": 4}}}, None),
        ({"name": "n", "positions": {}}, None),
        ({"name": "n", "positions": {"n": {}}}, None),
        ({"name": "N", "positions": {"n": {"{path}": 4}}}, "none for 'N'"),
        ({"positions": {"n": {"{path}": 4}, "m": {}}}, "has some for 'n', 'm'"),
        ({"name": "n", "positions": {"n": {"/old/log": 4}}}, "has '/old/log', which"),
        (
            {"name": "n", "positions": {"n": {"{path}": 4, "{path}#2": 2}}},
            "#2', which are not used",
        ),
    ],
)
@gen_test()
async def test_positions_that_fit_nothing_are_said(tmp_path, caplog, options, said):
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    positions = {
        name: {key.format(path=path): at for key, at in each.items()}
        for name, each in options["positions"].items()
    }
    options = {**options, "positions": positions}
    source = Stream.from_lines(str(path), asynchronous=True, **options)
    notes = await notes_of(source)
    assert len(notes) == (said is not None)
    assert all(said in each and each in caplog.text for each in notes)


@gen_test()
async def test_a_file_is_read_as_often_as_it_is_listed(tmp_path):
    a, b, odd = tmp_path / "a", tmp_path / "b", tmp_path / "a#2"
    for path in (a, b, odd):
        path.write_text(f"{path.name}\nend\n")
    once = ["a", "end"]
    for paths in ([str(a)] * 3, [str(a), str(a), a], (str(a) for _ in range(3))):
        assert (await read(paths, name="n"))[0] == once * 3
    got, _ = await read([str(a), str(tmp_path / "[ab]")], name="n")
    assert got == ["a", "end", "a", "end", "b", "end"]
    got, kept = await read([str(a), str(odd), str(a)], name="n")
    assert got == ["a", "end", "a#2", "end", "a", "end"]
    assert len(kept["n"]) == 3


@gen_test()
async def test_passes_go_on_where_they_were(tmp_path):
    path = tmp_path / "a"
    path.write_text("".join(f"{number}\n" for number in range(4)))
    paths, kept, got = [str(path)] * 3, None, []
    for _ in range(12):
        source = Stream.from_lines(
            paths, name="n", positions=kept, asynchronous=True, chunk=1
        )
        source.sink(got.extend)
        source.sink(lambda lines, own=source: own.stop())
        async with source:
            await source.ended()
        kept = {"n": source.tracker.learned()}
    assert got == ["0", "1", "2", "3"] * 3
    assert await read(paths, name="n", positions=kept) == ([], kept)


def packed(path, kind, members):
    import tarfile
    import zipfile

    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in members:
                archive.writestr(name, "a,b\n1,2\n")
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            for name in members:
                (path.parent / name).write_text("a,b\n1,2\n")
                archive.add(path.parent / name, name)


@pytest.mark.parametrize("make", [Stream.from_lines, Stream.from_csv_chunks])
@pytest.mark.parametrize(
    ("kind", "name"), [("zip", "t.zip"), ("tar", "t.tar"), ("tgz", "t.tar.gz")]
)
@gen_test()
async def test_an_archive_of_several_files_is_refused_with_their_names(
    tmp_path, kind, name, make
):
    packed(tmp_path / name, kind, ["one.csv", "two.csv"])
    with pytest.raises(SourceError, match=r"an archive of 'one.csv', 'two.csv'"):
        async with make(str(tmp_path / name), asynchronous=True) as source:
            await source.ended()


@gen_test()
async def test_members_of_archives_are_read_as_the_refusal_says(tmp_path):
    packed(tmp_path / "one.zip", "zip", ["one.csv"])
    assert (await read(str(tmp_path / "one.zip")))[0] == ["a,b", "1,2"]
    packed(tmp_path / "two.zip", "zip", ["one.csv", "two.csv"])
    packed(tmp_path / "two.tar", "tar", ["one.csv", "two.csv"])
    for kind in ("zip", "tar"):
        got, _ = await read(f"{kind}://*::{tmp_path}/two.{kind}")
        assert got == ["a,b", "1,2"] * 2


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz"])
@gen_test()
async def test_the_error_for_a_compressed_file_without_its_ending_says_how_to_read_it(
    tmp_path, kind
):
    path = tmp_path / "text"
    with fsspec.open(str(path), "wb", compression=kind) as file:
        file.write(b"one\ntwo\n")
    with pytest.raises(SourceError, match=f"Give compression='{kind}'"):
        await read(str(path))
    assert (await read(str(path), compression=kind))[0] == ["one", "two"]


@pytest.mark.parametrize("block", ["1 B", "2 B", "5 B", "256 KiB"])
@gen_test()
async def test_lines_end_as_those_of_open(tmp_path, block):
    import dask

    path = tmp_path / "text"
    path.write_bytes(b"a\rb\r\rc\r\nd\n\re\r\r\nf\r")
    expected = [line.rstrip("\n") for line in path.open()]
    with dask.config.set({"tensair.sources.block": block}):
        got, kept = await read(str(path), until="c")
        rest, _ = await read(str(path), positions=kept)
    assert got + rest == expected


@gen_test()
async def test_local_patterns_are_those_of_glob(tmp_path):
    for name in ("q1.csv", "q2.csv", "q3.csv"):
        (tmp_path / name).write_text("a\n1\n")
    for pattern, count in (("q[12].csv", 2), ("q?.csv", 3), ("q[!1].csv", 2)):
        async with Stream.from_csv_chunks(
            str(tmp_path / pattern), asynchronous=True
        ) as source:
            frames = source.sink_to_list()
            await source.ended()
        assert len(frames) == count
    (tmp_path / "q[1].csv").write_text("literal\n")
    assert (await read(str(tmp_path / "q[1].csv")))[0] == ["literal"]


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "8"])
def test_a_chunk_is_a_whole_number(tmp_path, chunk):
    for make in (Stream.from_lines, Stream.from_csv_chunks):
        with pytest.raises(ConfigurationError, match="a whole number from 1, "):
            make(str(tmp_path / "text"), chunk=chunk)


@pytest.mark.parametrize("path", [5, [1, 2], [None], b"text"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigurationError, match="path of a file"):
        Stream.from_lines(path)


@pytest.mark.parametrize("make", [Stream.from_lines, Stream.from_csv_chunks])
@gen_test()
async def test_a_second_start_reads_what_was_added_or_says_that_nothing_was(
    tmp_path, make
):
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n2\n")
    source = make(str(path), asynchronous=True)
    got, reported = source.sink_to_list(), []
    methods = {"note_soon": lambda self, text: reported.append(text)}
    hearer = type("Hearer", (), methods)()
    source.tracker.add_hearer(hearer)

    async def run():
        source.start()
        await source.ended()
        return len(got)

    first = await run()
    assert (reported, first > 0) == ([], True)
    with path.open("a") as file:
        file.write("3\n")
    assert await run() > first
    assert reported == []
    for _ in range(2):
        assert await run() == len(got)
    assert len(reported) == 1
    assert "all of it was read, here or before" in reported[0]
    await source.close()


@gen_test()
async def test_an_empty_file_is_said_to_hold_no_record(tmp_path, caplog):
    (tmp_path / "empty").write_text("")
    assert (await read(str(tmp_path / "empty")))[0] == []
    assert "there is no record in what it reads" in caplog.text
