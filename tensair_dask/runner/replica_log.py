"""Print a line for each replica that joins, leaves or is lost during a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tensair_dask.observe.telemetry.events import KINDS

if TYPE_CHECKING:
    from tensair_dask.observe.telemetry.events import Event
    from tensair_dask.runner.resume import Continuation

__all__ = ["LOGGED", "ReplicaLog"]

# Kinds of events that are printed; pipelines print the others themselves.
LOGGED = ("joined", "left", "lost")


class ReplicaLog:
    """Say what happens to the replicas of a trainer; a context manager.

    Each line begins with the number of the mini-batch.

    Parameters
    ----------
    trainer
        Whose events are printed: those that come within the block.
    say
        Called with each line.
    continuation
        Numbers the mini-batches.
    processes
        Process of each worker that the program has started, by address. Those of
        workers that come later are added; if there are none, none is asked for.
    """

    interval = 0.25  # seconds

    def __init__(
        self,
        trainer: Any,
        say: Callable[[str], Any],
        continuation: Continuation,
        processes: dict[str, int],
    ) -> None:
        self._trainer = trainer
        self._say = say
        self._continuation = continuation
        self._processes = processes
        self._seen = trainer.session.events.log.added
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> ReplicaLog:
        self._looking = asyncio.ensure_future(self._look())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._say_new()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            if self._trainer.session.events.log.added > self._seen:
                await self._meet()
                self._say_new()

    def _say_new(self) -> None:
        events = self._trainer.session.events.log
        count, self._seen = events.added - self._seen, events.added
        for event in list(events)[-count:] if count else []:
            if event.kind in LOGGED:
                self._say(self._line(event))

    async def _meet(self) -> None:
        """Ask workers that have come for their process."""
        alive = {each.address for each in self._trainer.replicas if each.alive}
        new = sorted(alive - self._processes.keys())
        if self._processes and new:
            # One may be gone again; its address has to do, then.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1):
                    self._processes |= await self._trainer.client.run(
                        os.getpid, workers=new
                    )

    def _line(self, event: Event) -> str:
        text = event.text
        for address, process in self._processes.items():
            text = text.replace(address, f"{address} (process {process})")
        number = self._continuation.number(event.index)
        return f"{number:>9,}  {KINDS[event.kind]}: {text}"
