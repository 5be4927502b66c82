"""Programs that are run in a terminal, as a person would, and Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator

import psutil


@contextlib.contextmanager
def in_terminal(
    line: list[str], columns: int = 0, lines: int = 0
) -> Iterator[tuple[psutil.Popen, int]]:
    """Run a command in a terminal, of a size; its process group is its own."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = psutil.Popen(
        line,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
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
