"""A live view of a trainer, in a notebook or in a terminal, until it closes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tensair_dask.observe.snapshot import Overview, look_at
from tensair_dask.observe.wording import number

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Monitor", "Screen", "screen"]

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two drawings
LOOK = 0.1  # seconds between two looks whether the trainer is closed

_NOWHERE = (
    "There is no notebook and no terminal to draw in that nothing else is typed into: "
    "use print(trainer), trainer.curves, or trainer.plot().save('plot.html')."
)


Stop = Callable[[], None]


class Screen(Protocol):
    """Where a monitor draws."""

    def show(self, overview: Overview) -> None:
        """Draw in place of what was drawn before."""

    def close(self) -> None:
        """Leave what was drawn last."""


class Monitor:
    """Draws a trainer once a second until it is closed; see `Trainer.monitor`.

    It lives on the client's event loop. What goes wrong in it ends it and nothing
    else.

    Parameters
    ----------
    trainer
        To look at.
    find
        Finds where to draw; see `screen`.
    """

    def __init__(
        self, trainer: Any, find: Callable[[Stop], Screen | None] | None = None
    ) -> None:
        self._trainer = trainer
        self._screen = (find or screen)(self.stop)
        self._stopped = False
        self._drawing: asyncio.Task[None] | None = None
        self.drawn = 0

    @property
    def running(self) -> bool:
        """Whether it goes on drawing."""
        return self._screen is not None

    def start(self) -> None:
        """Begin to draw, on the client's event loop."""
        if self._screen is None:
            logger.warning(_NOWHERE)
            return
        # Not in the context of the cell that called: whatever cell runs then, what is
        # drawn is to be saved with the notebook.
        context = contextvars.Context()
        self._drawing = context.run(asyncio.ensure_future, self._draw_on())
        atexit.register(self._leave)

    def stop(self) -> None:
        """Stop drawing; what was drawn last stays. Idempotent, from any thread."""
        self._stopped = True

    async def ended(self) -> None:
        """Wait for the last drawing, for a second at most."""
        if self._drawing is not None:
            await asyncio.wait({self._drawing}, timeout=INTERVAL)

    async def _draw_on(self) -> None:
        try:
            # The last drawing is of the trainer closed, or of the moment of stop().
            while self._draw() and not self._stopped:
                await self._pause()
        except Exception as error:
            logger.warning(
                "The live view has ended (%s: %s); training goes on",
                type(error).__name__,
                error,
            )
            logger.debug("Where it ended", exc_info=True)
        finally:
            self._leave()

    def _draw(self) -> bool:
        assert self._screen is not None
        self._screen.show(look_at(self._trainer))
        self.drawn += 1
        return not self._is_over

    async def _pause(self) -> None:
        end = time.monotonic() + INTERVAL
        while not self._stopped and not self._is_over and time.monotonic() < end:
            await asyncio.sleep(LOOK)

    @property
    def _is_over(self) -> bool:
        client = self._trainer.client.status
        return self._trainer.status == "closed" or client in ("closed", "closing")

    def _leave(self) -> None:
        self._stopped = True
        atexit.unregister(self._leave)
        screen, self._screen = self._screen, None
        if screen is not None:
            with contextlib.suppress(Exception):
                screen.close()

    def __repr__(self) -> str:
        return f"<Monitor: {'running' if self.running else 'stopped'}>"


def screen(stop: Stop) -> Screen | None:
    """Where this program can draw; None if nowhere.

    Parameters
    ----------
    stop
        Called when the notebook's kernel is interrupted.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return _Notebook(shell, stop)
    # Redrawing would tear the line at the prompt of an interactive Python.
    interactive = shell is not None or hasattr(sys, "ps1") or sys.flags.interactive
    if not interactive and sys.stdout is not None and sys.stdout.isatty():
        return _Terminal()
    return None


class _Notebook:
    """An output below the cell, replaced with each drawing."""

    def __init__(self, shell: Any, stop: Stop) -> None:
        from IPython.display import display

        self._events = shell.events
        self._stop = stop
        # Here, in the thread that runs the cell: its output belongs to the cell.
        self._handle = display({"text/plain": "starting"}, raw=True, display_id=True)
        self._events.register("post_run_cell", self._after_cell)

    def show(self, overview: Overview) -> None:
        from tensair_dask.observe import notebook

        text = f"{_state(overview)}, {overview.steps} mini-batches"
        self._handle.update(
            {"text/html": notebook.draw(overview, live=True), "text/plain": text},
            raw=True,
        )

    def close(self) -> None:
        self._events.unregister("post_run_cell", self._after_cell)

    def _after_cell(self, result: Any) -> None:
        if isinstance(getattr(result, "error_in_exec", None), KeyboardInterrupt):
            self._stop()


class _Terminal:
    """Some lines at the bottom of the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # Drawn on the event loop, where what is drawn does not change meanwhile.
        self._live = Live(console=Console(highlight=False), auto_refresh=False)
        self._live.start()

    def show(self, overview: Overview) -> None:
        self._live.update(_table(overview), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _table(overview: Overview) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("replica", "worker", "state"):
        table.add_column(name)
    for name in ("mini-batches", "samples", "staleness"):
        table.add_column(name, justify="right")
    for row in overview.replicas[:20]:
        table.add_row(
            *(row.name, row.address, row.state),
            *(number(row.steps), number(row.samples), number(row.staleness)),
        )
    now = overview.now
    parts = [
        f"{number(now['samples_per_second'], 0)} samples/s",
        f"loss {number(now['loss'], 4)}",
        *(f"{name} {number(now[name], 4)}" for name in overview.metrics),
        f"backlog {number(overview.backlog)}",
        f"lag {number(overview.lag, 2)} s",
    ]
    if overview.dead_letters:
        parts.append(f"dead letters {number(overview.dead_letters)}")
    if overview.dropped:
        parts.append(f"dropped {number(overview.dropped)}")
    title = (
        f"{overview.name}: {_state(overview)}, {number(overview.steps)} mini-batches"
    )
    happened = [f"  {each.kind}: {each.text}" for each in overview.events[-3:]]
    lines = [Text(line) for line in ("  ".join(parts), *happened)]
    return Group(Text(title, style="bold"), *lines, table)


def _state(overview: Overview) -> str:
    """Say in words what it does."""
    return ", ".join(filter(None, [overview.status, overview.doing]))
