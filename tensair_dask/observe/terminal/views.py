"""Where the monitor's page goes: a screen, a file of pages, or lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.live import Live

from tensair_dask.observe.sparkline import BLOCKS, PLAIN
from tensair_dask.observe.terminal.drawing import RECENT, drawing

__all__ = ["Lines", "Pages", "Screen", "View", "nobody_reads", "view"]

Snapshot = dict[str, Any]


class View:
    """Shows what a scheduler has reported; a context manager.

    Attributes
    ----------
    recent
        Columns of the series that it needs.
    """

    recent: tuple[str, ...] = RECENT

    def __enter__(self) -> View:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, snapshot: Snapshot) -> None:
        """Show it.

        Raises
        ------
        BrokenPipeError
            If nobody reads any more.
        """
        raise NotImplementedError


class Lines(View):
    """A JSON object a line, for pipes."""

    recent = ()

    def show(self, snapshot: Snapshot) -> None:
        """Print a line."""
        print(json.dumps(snapshot, allow_nan=False, default=str), flush=True)


class Pages(View):
    """One page below the other, where the output is no terminal.

    Parameters
    ----------
    console
        Where to draw.
    blocks
        What curves are made of.
    """

    def __init__(self, console: Console, blocks: str = BLOCKS) -> None:
        self._console = console
        self._blocks = blocks

    def show(self, snapshot: Snapshot) -> None:
        """Print a page and an empty line."""
        page = drawing(snapshot, self._console.width, None, self._blocks)
        self._console.print(page)
        self._console.print()
        self._console.file.flush()


class Screen(View):
    """A page that fills the terminal and is redrawn; the last one stays behind.

    Parameters
    ----------
    console
        Where to draw.
    blocks
        What curves are made of.
    """

    def __init__(self, console: Console, blocks: str = BLOCKS) -> None:
        self._console = console
        self._blocks = blocks
        self._snapshot: Snapshot | None = None
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        if self._snapshot is not None:
            self._console.print(self._page())

    def show(self, snapshot: Snapshot) -> None:
        """Draw over what was there."""
        self._snapshot = snapshot
        self._live.update(self._page(), refresh=True)

    def _page(self) -> Any:
        assert self._snapshot is not None
        width, height = self._console.size
        return drawing(self._snapshot, width, height, self._blocks)


class _Console(Console):
    """A console that leaves it to others what to do when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Raise what Python does; rich would end the program."""
        raise BrokenPipeError


def view(as_json: bool) -> View:
    """Return the one that suits standard output."""
    if as_json:
        return Lines()
    console = _Console(highlight=False)
    is_plain = not console.encoding.lower().startswith("utf")
    if is_plain and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    blocks = PLAIN if is_plain else BLOCKS
    if console.is_terminal and not console.is_dumb_terminal:
        return Screen(console, blocks)
    return Pages(console, blocks)


def nobody_reads() -> None:
    """Take standard output away, so that Python does not fail to flush it later."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
