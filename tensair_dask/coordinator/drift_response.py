"""What a trainer does when its mode switches or its stream drifts."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tensair_dask._common.serial_queue import OneByOne
from tensair_dask._wording import in_words
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.drift.modes import (
    COLUMNS,
    Drift,
    Modes,
    PolicyEnded,
    Settled,
    Switch,
    Unwatched,
)
from tensair_dask.errors import RaisedError, TrainerClosedError
from tensair_dask.reports import Report

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DriftResponse"]

logger = logging.getLogger(__name__)

# Drifts that are kept, the newest ones.
REMEMBERED = 10_000

# Snapshots of a good model: the newest may be of after a drift that is not seen yet.
SNAPSHOTS = 2


class DriftResponse(Subscriber):
    """Carries out what `Modes` decides, and writes it into the events.

    Belongs to the client's event loop.

    Parameters
    ----------
    modes
        Decides.
    barrier
        Changes the replicas.
    events
        Gets an event for whatever happens.
    """

    def __init__(
        self,
        modes: Modes,
        barrier: Barrier,
        events: RunEvents,
    ) -> None:
        self.modes = modes
        self.drifts: deque[Drift] = deque(maxlen=REMEMBERED)
        self._barrier = barrier
        self._events = events
        self._acting = OneByOne("What follows from drift")
        self._snapshots: deque[tuple[int, Any]] = deque(maxlen=SNAPSHOTS)

    async def start(self) -> None:
        """See that the policy can be carried out; raise if it cannot."""
        if self.modes.policy.acts:  # the mode may be set to one that looks for drift
            await self._barrier.check(self.modes.policy.check)

    def reported(self, pending: Pending, report: Report) -> None:
        """Let the modes look at a report; do what they decide."""
        if not self.modes.watches:
            return
        sound = report if report.error is None else None
        for each in self.modes.observe(report.index, sound, self._events.index):
            if isinstance(each, Drift):
                self._drifted(each)
            elif isinstance(each, Switch):
                self._switched(each)
            elif isinstance(each, PolicyEnded):
                self._acting.do(functools.partial(self._undo, each))
            elif isinstance(each, Settled) and self.modes.policy.every is not None:
                self._acting.do(functools.partial(self._keep, each.index))
            elif isinstance(each, Unwatched):
                self._note("note", each.describe(), each.index)

    def set_mode(self, mode: str) -> None:
        """Change the mode, from the next mini-batch on."""
        for switch in self.modes.set_mode(mode, self._events.index):
            self._switched(switch)

    def _switched(self, switch: Switch) -> None:
        """Note a switch, which holds already."""
        text = f"{switch.phase} from mini-batch {switch.index:,} on: {switch.why}"
        self._note("mode", text, switch.index)

    def _drifted(self, drift: Drift) -> None:
        self.drifts.append(drift)
        self._note("drift", drift.describe(), drift.index)
        if self.modes.answers:
            self._acting.do(functools.partial(self._answer, drift))

    async def settled(self, timeout: float) -> None:
        """Wait until everything that was decided is done and told.

        Raises
        ------
        TensairTimeoutError
            If either takes longer than ``timeout`` seconds.
        """
        await self._acting.settled(timeout)
        await self._events.sent(timeout)

    async def close(self) -> None:
        """Give up what is not done."""
        await self._acting.close()

    def _note(self, kind: str, text: str, index: int) -> None:
        self._events.note(kind, text, index=index)

    # ---- policies -------------------------------------------------------------------

    async def _answer(self, drift: Drift) -> None:
        policy = self.modes.policy
        with self._noting(drift) as said:
            said.append(_described(policy, drift))
            if not policy.acts:
                return
            if policy.every is not None and not await self._restore(drift):
                said.append(": there is none from before the drift")
                return
            begin = functools.partial(self.modes.begin, drift)
            said.append(await self._change("on_drift", drift, begin))

    async def _undo(self, ended: PolicyEnded) -> None:
        drift, begun = ended.drift, self.modes.begun
        if begun is None or begun.drift != drift:  # it has failed
            return
        with self._noting(drift) as said:
            said.append(_described(self.modes.policy, drift))
            said.append(f": ended after {ended.index - drift.index:,} mini-batches")
            said.append(await self._change("undo", drift, self.modes.end))

    async def _change(self, method: str, drift: Drift, done: Callable[[], Any]) -> str:
        """Let the policy change all replicas; say how long it took."""
        start = time.perf_counter()
        change = functools.partial(_change, self.modes.policy, method, drift)
        await self._barrier.change(change, drift.index, done)
        return f" ({time.perf_counter() - start:.2f} s)"

    @contextmanager
    def _noting(self, drift: Drift) -> Iterator[list[str]]:
        """Note at the end what was said, and the failure if there was one."""
        said: list[str] = []
        try:
            yield said
        except TrainerClosedError:
            raise
        except Exception as error:
            self._failed("".join(said) or self._name, error, drift.index)
        else:
            self._note("policy", "".join(said), drift.index)

    async def _keep(self, index: int) -> None:
        try:
            snapshot = await self._barrier.snapshot()
        except TrainerClosedError:
            raise
        except Exception as error:
            self._failed(f"{self._name}: a snapshot", error, index)
        else:
            self._snapshots.append((index, snapshot))

    @property
    def _name(self) -> str:
        return type(self.modes.policy).__name__

    def _failed(self, text: str, error: Exception, index: int) -> None:
        text = f"{text}: FAILED, {in_words(error)}"
        logger.warning("The answer to drift failed: %s", text)
        self._note("policy", text, index)

    async def _restore(self, drift: Drift) -> bool:
        """Go back to the newest snapshot that is old enough to be from before."""
        least = drift.index - (self.modes.policy.every or 0)
        old = [each for each in self._snapshots if each[0] <= least]
        if not old:
            return False
        index, snapshot = old[-1]
        await self._barrier.restore(snapshot)
        self._snapshots.clear()
        self._snapshots.append((index, snapshot))
        return True

    # ---- what is shown --------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """One row a drift, in order; ``time`` is in UTC."""
        import pandas as pd

        rows = [[getattr(each, name) for name in COLUMNS] for each in self.drifts]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
        return frame


def _described(policy: Any, drift: Drift) -> str:
    try:
        text: str = policy.describe(drift)
    except BaseException as error:
        raise RaisedError.caught(error) from error.__cause__
    return text


def _change(policy: Any, method: str, drift: Drift, model: Any, optimizers: Any) -> Any:
    return getattr(policy, method)(model, optimizers, drift)
