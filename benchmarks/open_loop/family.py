"""All processes of a contender: what they use of the CPU, and how they are ended."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

__all__ = ["Family"]


class Family:
    """A process, what descends from it, and what shares its session."""

    def __init__(self, pid: int) -> None:
        self._first = psutil.Process(pid)
        self._known: dict[int, psutil.Process] = {pid: self._first}
        self._used: dict[int, float] = {}

    def _session(self) -> list[psutil.Process]:
        """Find daemons as well, whose parents have ended."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _session_of(process) == self._first.pid
        ]

    def members(self) -> list[psutil.Process]:
        """Return those that run."""
        for parent in [*self._known.values(), *self._session()]:
            if parent.is_running():
                self._known[parent.pid] = parent
                self._add_children(parent)
        return [each for each in self._known.values() if each.is_running()]

    def _add_children(self, parent: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in parent.children(recursive=True):
                self._known.setdefault(child.pid, child)

    def cpu_seconds(self) -> float:
        """Sum up the CPU of all, those that have ended too as they were last seen."""
        for process in self.members():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._used[process.pid] = times.user + times.system
        return sum(self._used.values())

    def groups(self) -> int:
        """Count the scheduling groups; 0 where the kernel has none."""
        names = set()
        for process in self.members():
            try:
                text = Path(f"/proc/{process.pid}/autogroup").read_text("ascii")
            except OSError:
                continue
            names.add(text.split()[0])
        return len(names)

    def kill(self) -> None:
        """End all."""
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._known.values()), timeout=10)


def _session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None
