from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace

from click.testing import CliRunner
from distributed.utils_test import gen_cluster
from helpers import classes
from streamz import Stream

import tensair_dask.streams  # noqa: F401  gives Stream its train method
from tensair_dask import Trainer
from tensair_dask.runner.run import Run, command


def test_what_fails_because_ctrl_c_has_cut_it_short_is_no_error():
    @command(Run)
    async def main(run):
        try:
            run.interrupts.receive(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("closed while it was connecting")

    result = CliRunner().invoke(main)
    assert result.exit_code == 130
    assert result.output == "Interrupted.\n"


def test_an_expected_failure_is_printed_in_one_line():
    @command(Run)
    async def main(run):
        raise RuntimeError("the disk\nis full")

    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output == (
        "Error: RuntimeError: the disk is full (--debug shows where)\n"
    )


def test_files_are_printed_in_one_column_whatever_their_names():
    @command(Run)
    async def main(run):
        run.files = {"html": "a.html", "drift, html": "b.html"}
        for name, path in run.files.items():
            run.say_file(name, path)
        run.say_file("report", "c.html")

    result = CliRunner().invoke(main)
    lines = result.output.splitlines()
    assert lines == [
        "       html  a.html",
        "drift, html  b.html",
        "     report  c.html",
    ]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_refusals_are_printed_at_the_end_although_nothing_was_learned(c, s, a):
    lines: list[str] = []
    run = Run()
    run.say = lines.append
    async with Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        parsed = source.try_map(int, trainer)
        reports = parsed.map(lambda number: (number, None)).train(trainer)
        view = SimpleNamespace(drawing=str, plain=str)
        with run.watch(trainer, reports, view):
            for item in ("one", "2"):
                await source.emit(item)
            await trainer.drain()
    assert run.tally.refused_records == 1
    assert run.tally.refused.total() == 1
    assert " and 1 record. The first: int raised ValueError on a record: " in lines[-1]
    assert lines[-1].startswith("Refused: 1 mini-batch (1 ")
