"""The live view: where it draws, and when it ends."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import sys
import textwrap

import pytest
from distributed.utils_test import gen_cluster
from helpers import linear, linear_data, train_all
from notebooks import execute
from terminals import in_terminal, read_until

import tensair_dask as ta
from tensair_dask.observe.live_view import Monitor
from tensair_dask.observe.snapshot import Overview

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


class Paper:
    """Keeps what was drawn."""

    def __init__(self) -> None:
        self.drawn: list[Overview] = []
        self.closed = 0

    def show(self, overview: Overview) -> None:
        self.drawn.append(overview)

    def close(self) -> None:
        self.closed += 1


def watch(trainer: ta.Trainer, screen) -> Monitor:
    monitor = Monitor(trainer, lambda stop: screen)
    monitor.start()
    return monitor


async def until(predicate) -> None:
    while not predicate():
        await asyncio.sleep(0.01)


@one()
async def test_it_draws_until_the_trainer_closes(c, s, a):
    paper = Paper()
    async with ta.Trainer(c, **linear()) as trainer:
        monitor = watch(trainer, paper)
        await until(lambda: paper.drawn)
        assert paper.drawn[0].status == "open"
        await train_all(trainer, linear_data(200))
        assert monitor.running
        assert len(paper.drawn) <= 2, "not once for each mini-batch"
    await until(lambda: not monitor.running)
    assert paper.drawn[-1].status == "closed"
    assert paper.drawn[-1].steps == 200
    assert paper.closed == 1
    assert repr(monitor) == "<Monitor: stopped>"


@one()
async def test_it_draws_again_after_a_while(c, s, a):
    paper = Paper()
    async with ta.Trainer(c, **linear()) as trainer:
        watch(trainer, paper)
        await until(lambda: len(paper.drawn) == 3)
        first, *_, last = [each.time for each in paper.drawn]
        assert last - first > 1.9


@one()
async def test_it_draws_once_more_when_it_is_stopped(c, s, a):
    paper = Paper()
    async with ta.Trainer(c, **linear()) as trainer:
        monitor = watch(trainer, paper)
        await until(lambda: paper.drawn)
        await train_all(trainer, linear_data(20))
        monitor.stop()
        monitor.stop()
        await until(lambda: paper.closed)
        assert paper.drawn[-1].steps == 20
        assert not monitor.running
        await train_all(trainer, linear_data(20))
        assert paper.closed == 1


@one()
async def test_it_ends_with_the_client(c, s, a):
    paper = Paper()
    trainer = await ta.Trainer(c, **linear())
    monitor = watch(trainer, paper)
    await until(lambda: paper.drawn)
    await trainer.session.reporter.close({})
    await c.close()
    await until(lambda: not monitor.running)
    assert paper.closed == 1
    await trainer.close()


class Torn(Paper):
    """Cannot be drawn on, nor closed."""

    def show(self, overview: Overview) -> None:
        raise RuntimeError("the notebook is gone")

    def close(self) -> None:
        raise RuntimeError("the same")


@one()
async def test_what_goes_wrong_in_it_ends_it_and_nothing_else(c, s, a, caplog):
    async with ta.Trainer(c, **linear()) as trainer:
        with caplog.at_level(logging.WARNING, "tensair_dask.observe.live_view"):
            monitor = watch(trainer, Torn())
            await until(lambda: not monitor.running)
        reports = await train_all(trainer, linear_data(20))
        assert all(report.error is None for report in reports)
    (reported,) = [
        each.getMessage() for each in caplog.records if "live_view" in each.name
    ]
    assert "the notebook is gone" in reported
    assert "training goes on" in reported


@one()
async def test_where_it_cannot_draw_it_says_what_to_use(c, s, a, caplog):
    async with ta.Trainer(c, **linear()) as trainer:
        with caplog.at_level(logging.WARNING, "tensair_dask.observe.live_view"):
            monitor = trainer.monitor()
        assert not monitor.running
        assert "trainer.plot()" in caplog.text
        monitor.stop()


@one()
async def test_a_second_one_takes_the_place_of_the_first(c, s, a, monkeypatch):
    papers: list[Paper] = []

    def screen(stop) -> Paper:
        papers.append(Paper())
        return papers[-1]

    monkeypatch.setattr("tensair_dask.observe.live_view.screen", screen)
    async with ta.Trainer(c, **linear()) as trainer:
        first, second = trainer.monitor(), trainer.monitor()
        await until(lambda: papers[0].closed)
        assert (first.running, second.running) == (False, True)


SCRIPT = """
    import functools, time, torch
    from distributed import Client
    import tensair_dask as ta

    if __name__ == "__main__":
        client = Client(processes=False, n_workers=1, dashboard_address=None)
        with ta.Trainer(
            client,
            model=functools.partial(torch.nn.Linear, 2, 2),
            loss=torch.nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        ) as trainer:
            monitor = trainer.monitor()
            while monitor.drawn < 2:
                trainer.train(torch.zeros(4, 2), torch.zeros(4, dtype=int))
        print("the end, after", trainer.curves["steps"].iloc[-1])
        client.close()
"""


@pytest.mark.processes
def test_in_a_terminal_it_draws_at_the_bottom(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with in_terminal([sys.executable, str(script)]) as (process, screen):
        shown = read_until(screen, None)
        assert process.wait() == 0
    assert "Linear: open, " in shown
    assert re.search(r"replica-0 .*(learning|waiting)", shown)
    before, _, after = shown.partition("the end, after")
    assert "Linear: closed, " in before
    assert "Linear" not in after
    assert shown.count("\x1b[?25h") == shown.count("\x1b[?25l") >= 1, "no cursor"


CELLS = [
    """
    import functools, os, signal, threading, time, torch
    from distributed import Client
    import tensair_dask as ta
    client = Client(processes=False, n_workers=1, dashboard_address=None)
    def build(): return torch.nn.Linear(2, 2)
    trainer = ta.Trainer(client, model=build, loss=torch.nn.functional.cross_entropy,
                         optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    """,
    "first = trainer.monitor()",
    """
    while first.drawn < 2:
        trainer.train(torch.zeros(4, 2), torch.zeros(4, dtype=int))
    assert first.running
    """,
    """
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(30)
    """,
    """
    while first.running:
        time.sleep(0.01)
    second = trainer.monitor()
    """,
    """
    trainer.train(torch.zeros(4, 2), torch.zeros(4, dtype=int))
    trainer.close()
    assert not second.running
    client.close()
    """,
    """
    client = await Client(processes=False, n_workers=1, dashboard_address=None,
                          asynchronous=True)
    trainer = await ta.Trainer(client, model=build,
                               loss=torch.nn.functional.cross_entropy,
                               optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    third = trainer.monitor()
    await trainer.train(torch.zeros(4, 2), torch.zeros(4, dtype=int))
    await trainer.close()
    assert not third.running
    await client.close()
    """,
]


@pytest.mark.processes
def test_in_a_notebook_it_draws_below_its_cell_until_the_kernel_is_interrupted(
    tmp_path,
):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(each)) for each in CELLS]
    book = execute(nbformat.v4.new_notebook(cells=cells), tmp_path, errors=True)

    def shown(cell) -> list[str]:
        return [
            output.data["text/html"]
            for output in cell.outputs
            if "text/html" in output.get("data", {})
        ]

    errors = [
        output.ename
        for cell in book.cells
        for output in cell.outputs
        if output.output_type == "error"
    ]
    assert errors == ["KeyboardInterrupt"]
    (first,), (second,), (third,) = (shown(book.cells[at]) for at in (1, 4, 6))
    assert "open, run" in first
    assert "<svg" in first
    assert "closed, run" in second
    assert "closed, run" in third
