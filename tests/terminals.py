"""Programs that are run in a terminal, as a person would, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import re
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def in_terminal(line: list[str]) -> Iterator[tuple[psutil.Popen, int]]:
    """Run a command with a terminal as its output; its process group is its own."""
    screen, terminal = pty.openpty()
    process = psutil.Popen(
        line, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    try:
        yield process, screen
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()
        os.close(screen)


def read_until(screen: int, pattern: str | None) -> str:
    """Read what is shown until it matches, or to the end."""
    shown = ""
    while pattern is None or not re.search(pattern, shown):
        try:
            more = os.read(screen, 65_536)
        except OSError:  # how Linux tells that the other side is closed
            more = b""
        if not more:
            assert pattern is None, f"ended without showing {pattern!r}:\n{shown}"
            break
        shown += more.decode(errors="replace")
    return shown
