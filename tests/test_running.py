from __future__ import annotations

import asyncio
import signal

import click
from click.testing import CliRunner

from tensair_dask import running


def test_what_fails_because_ctrl_c_has_cut_it_short_is_no_error():
    @running.command(running.Run)
    async def main(run):
        try:
            run.interrupts.receive(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("closed while it was connecting")

    result = CliRunner().invoke(main)
    assert result.exit_code == 130
    assert result.output == "Interrupted.\n"


def test_what_fails_by_itself_is_told_in_one_line():
    @running.command(running.Run)
    async def main(run):
        raise RuntimeError("the disk\nis full")

    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output == (
        "Error: RuntimeError: the disk is full (--debug shows where)\n"
    )


def test_a_run_may_get_its_workers_elsewhere():
    class OnTheMoon(running.Run):
        @classmethod
        def cluster_options(cls):
            return [click.option("--rocket")]

    @running.command(OnTheMoon)
    async def main(run): ...

    names = {option.name for option in main.params}
    assert "rocket" in names
    assert "rate" in names
    assert not names & {"scheduler", "workers"}
