from __future__ import annotations

import asyncio
import gzip

import fsspec
import pandas as pd
import pytest
from distributed.utils_test import gen_test
from streamz import Stream

import tensair_dask.sources  # noqa: F401  gives Stream its sources
from tensair_dask.errors import ConfigurationError, SourceError

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
async def test_what_cannot_be_read_is_told(tmp_path):
    path = tmp_path / "text"
    with pytest.raises(SourceError, match="cannot be read: FileNotFoundError"):
        await read(str(path))
    with pytest.raises(SourceError, match="There is no file at"):
        await read(str(tmp_path / "*.none"))
    path.write_text("short")
    with pytest.raises(SourceError, match="from byte 500 on, but has only 5"):
        await read(str(path), name="a", positions={"a": {str(path): 500}})
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SourceError, match="is not utf-8 behind byte 0"):
        await read(str(path))
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


@gen_test()
async def test_rows_that_pandas_cannot_read_are_told_with_their_place(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    source = Stream.from_csv_chunks(str(path), asynchronous=True)
    async with source:
        with pytest.raises(SourceError, match="The 2 rows behind byte 4 of"):
            await source.ended()
