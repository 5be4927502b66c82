"""One item in, one report out: what comes to a trainer, and what is refused."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from tensair_dask import config
from tensair_dask._common.loops import is_running_here
from tensair_dask.batches.batch import as_refusal, made_of
from tensair_dask.batches.column_names import ColumnNames
from tensair_dask.batches.copies import as_values
from tensair_dask.coordinator.dead_letters import DeadLetter, DeadLetters, Letters
from tensair_dask.coordinator.dispatcher import Dispatcher
from tensair_dask.coordinator.ledger import Entry, Ledger, marks_of
from tensair_dask.coordinator.lifecycle import Lifecycle
from tensair_dask.coordinator.on_error import is_raised, policy_for
from tensair_dask.coordinator.pending import Pending, Receiver
from tensair_dask.coordinator.refused import Refused, kind_of, refusal_text
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.drift.modes import Modes
from tensair_dask.errors import BatchError, RaisedError, RecordError, TensairError
from tensair_dask.reports import Report

if TYPE_CHECKING:
    from tensair_dask._common.held import Held

__all__ = ["Intake"]

logger = logging.getLogger(__name__)


class Intake(Subscriber):
    """Makes mini-batches of what comes, and keeps account of each.

    The nodes of streams talk to this, and to nothing else of a trainer. Belongs to the
    client's event loop, but for what says otherwise.

    Parameters
    ----------
    lifecycle
        Whether mini-batches are taken.
    dispatcher
        Sends them to the replicas.
    events
        Gets an event for what was refused.
    modes
        Whether they are learned.
    keeps
        Whether checkpoints are written, which records wait for.

    Attributes
    ----------
    ledger
        Which records are learned.
    refused
        Counts of what was refused, and what was not.
    dead_letters
        The newest of what was refused.
    column_names
        The names of the columns of frames, as the first ones had them.
    structures
        How the arrays of x hang together in what was learned.
    nodes
        Of the streams that are learned from or predicted, until the trainer closes.
    holders
        By which nodes of streams hold the trainer, until it closes.
    dropped
        Mini-batches that streams dropped, since too many waited.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        dispatcher: Dispatcher,
        events: RunEvents,
        modes: Modes,
        keeps: bool,
    ) -> None:
        self.keeps = keeps
        self.ledger = Ledger(keeps, int(config.get("checkpoints.unsaved")))
        self.refused = Refused()
        self.dead_letters = DeadLetters(int(config.get("dead-letters")))
        self.column_names = ColumnNames()
        self.structures: set[Any] = set()
        self.nodes: set[Any] = set()
        self.holders: weakref.WeakSet[Held[Any]] = weakref.WeakSet()
        self.dropped = 0
        self._lifecycle = lifecycle
        self._dispatcher = dispatcher
        self._events = events
        self._modes = modes
        # Of the sources that it learns from: how to hear no more of them.
        self._heard: dict[Letters[Any], Callable[[], None]] = {}
        # Mini-batches with a place in a source that are not learned everywhere, by
        # index, in order; an ordered dict finds its first one at once.
        self._under_way: OrderedDict[int, None] = OrderedDict()

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._lifecycle.state == "closed"

    # ---- one item --------------------------------------------------------------------

    def feed(
        self,
        item: Any,
        collate: Callable[[Any], tuple[Any, Any]],
        receiver: Receiver,
        metadata: Sequence[Any] = (),
        on_error: str = "dead-letter",
        is_value: bool = False,
    ) -> Awaitable[None] | None:
        """Take one item of a stream.

        Parameters
        ----------
        item
            What the stream gave; kept in the dead letters if it is refused.
        collate
            Makes ``(x, y)`` of it, or a `MiniBatch`.
        receiver
            Gets the report, once; what it returns is awaited before the mini-batch's
            place is given to another. A node of a stream lets go of the item, once:
            when its report has passed, all replicas hold its gradient and, where there
            are checkpoints, one that is written does. Never, if all replicas were lost,
            or its error is to be raised.
        metadata
            Of streamz: holds where its records were in their sources.
        on_error
            What is done if it is refused; see `tensair_dask.coordinator.on_error`.
        is_value
            Whether its arrays are no one else's; else they are copied, since who has
            given them may change them, or use them again for the next one.

        Returns
        -------
        rest
            None if a replica had room at once, else an awaitable that ends when one
            has: awaiting it is the back-pressure.
        """
        settle = None
        if receiver.is_stream:
            self.ledger.emitted(metadata)
            settle = self._settle
        index = self._events.index
        self._events.index = index + 1
        if settle is not None:
            self._under_way[index] = None
        try:
            if not is_value:
                item = as_values(item)
            batch = made_of(item, collate, not is_value, self.column_names.batch)
        except BaseException as failure:
            error = RaisedError.caught(failure)
            nothing: Any = None
            refused = Pending(
                index, nothing, item, receiver, metadata, settle, on_error
            )
            return self._refuse(refused, error)
        self.structures.add(batch.kind[0])
        batch.learn = self._modes.learns
        pending = Pending(index, batch, item, receiver, metadata, settle, on_error)
        if self._lifecycle.state == "open" and self._dispatcher.offer(pending):
            return None
        return self._feed_when_ready(pending)

    def _settle(self, pending: Pending) -> None:
        del self._under_way[pending.index]
        metadata = pending.metadata
        release = functools.partial(pending.receiver.let_go, metadata)
        self.ledger.settled(Entry(metadata, release))

    async def _feed_when_ready(self, pending: Pending) -> None:
        await self._lifecycle.ready()
        await self._dispatcher.submit(pending)

    def _refuse(self, refused: Pending, error: Exception) -> Awaitable[None] | None:
        """Report an item that is no mini-batch, without asking a replica."""
        report = Report.refused(refused.index, 0, as_refusal(error))
        report.time = time.time()
        self._events.reported(refused, report)
        rest = refused.hand_over(report)
        if rest is not None:
            return _let_go_after(refused, rest)
        refused.let_go()
        return None

    # ---- what becomes of it ----------------------------------------------------------

    def reported(self, pending: Pending, report: Report) -> None:
        """Count a report; keep what was refused."""
        if report.error is None:
            self.refused.learned(report.samples)
            return
        # What was refused here was at no replica, where the first may still be.
        self._misfit(report.error, 0 if pending.batch is None else 1)
        if is_raised(report.error, pending.on_error):
            pending.settle = None  # its source is to read it again
        letter = DeadLetter(
            report.index,
            pending.item,
            report.error,
            report.replica,
            report.time,
            tuple(marks_of(pending.metadata)),
        )
        self._bury(letter, pending.on_error)

    def prediction_refused(self, error: TensairError) -> None:
        """Take note of inputs that the model cannot take."""
        self._misfit(error)

    def _misfit(self, error: TensairError, itself: int = 0) -> None:
        """Let other frames decide on the columns, if the first do not fit the model.

        Parameters
        ----------
        error
            Of what was refused.
        itself
            How many of those that are under way are that one.
        """
        if not self.refused.sound and self._dispatcher.backlog <= itself:
            self.column_names.refused(error)
            self.structures.clear()

    def _bury(
        self, letter: DeadLetter, on_error: str, *, is_question: bool = False
    ) -> None:
        error = letter.error
        is_kept = policy_for(error, on_error) == "dead-letter"
        is_batch = letter.index >= 0
        what = f"Mini-batch {letter.index}" if is_batch else "A record"
        if is_question:  # it was not to be learned
            what = "What was to be predicted"
        else:
            self.refused.refuse(error, is_batch=is_batch, is_kept=is_kept)
        if is_kept:
            self.say_once(f"refused: {kind_of(error)}", refusal_text(what, error))
            self.dead_letters.append(letter)
        else:
            self.dead_letters.pass_over()

    def warn_of_refused(self, at_the_end: bool = False) -> None:
        """Warn where nothing was learned, or less than half."""
        if text := self.refused.news(at_the_end):
            logger.warning("%s", text)
            self._events.note("note", text)

    # ---- what is no mini-batch -------------------------------------------------------

    def refuse_record(
        self,
        record: Any,
        error: RecordError,
        settle: Callable[[], Any],
        metadata: Sequence[Any],
        on_error: str,
    ) -> None:
        """Take in a record that is no part of any mini-batch.

        Parameters
        ----------
        record, error
            What was refused, and why.
        settle, metadata, on_error
            As in `feed`.
        """
        marks = tuple(marks_of(metadata))
        self._bury(DeadLetter(-1, record, error, "", time.time(), marks), on_error)
        if not is_raised(error, on_error):
            self.pass_over(settle, metadata)

    def refuse_question(
        self,
        item: Any,
        error: BatchError | RecordError,
        metadata: Sequence[Any],
        on_error: str,
    ) -> None:
        """Take in what cannot be predicted, and was not to be learned.

        Parameters
        ----------
        item, error
            What was refused, and why.
        metadata, on_error
            As in `feed`.
        """
        marks = tuple(marks_of(metadata))
        letter = DeadLetter(-1, item, error, "", time.time(), marks)
        self._bury(letter, on_error, is_question=True)

    def pass_over(self, settle: Callable[[], Any], metadata: Sequence[Any]) -> None:
        """Be done with records that will not be learned.

        Parameters
        ----------
        settle, metadata
            As in `feed`.
        """
        self.ledger.emitted(metadata)
        self.ledger.settled(Entry(metadata, settle))

    # ---- sources ---------------------------------------------------------------------

    def reads(self, tracker: Any) -> None:
        """Take note of a source that a stream is learned from; from any thread.

        Parameters
        ----------
        tracker
            Tells its positions.

        Raises
        ------
        ConfigurationError
            If another source of the same name is open.
        """
        self._lifecycle.look(functools.partial(self.ledger.reads, tracker))
        tracker.add_hearer(self)

    def note_soon(self, text: str) -> None:
        """Note as an event what a source says; from any thread."""
        self._lifecycle.soon(self._events.note, "note", text)

    def hears(self, letters: Letters[Any]) -> None:
        """Count what a source refuses of a stream that is learned.

        Parameters
        ----------
        letters
            Its dead letters.
        """

        def refuse(letter: Any) -> None:
            self._lifecycle.soon(self._hear, letter.error)

        if letters not in self._heard:
            self._heard[letters] = letters.subscribe(refuse)

    def _hear(self, error: TensairError) -> None:
        self.refused.refuse(error, is_batch=False, is_kept=True)
        text = refusal_text("A record", error, "the dead_letters of the source")
        self.say_once(f"refused: {kind_of(error)}", text)

    # ---- what users read -------------------------------------------------------------

    def note(self, text: str) -> None:
        """Note an event."""
        self._events.note("note", text)

    def say_once(self, key: str, text: str) -> None:
        """Warn, and note it, once; see `RunEvents.say_once`."""
        self._events.say_once(key, text)

    def say_once_soon(self, key: str, text: str) -> None:
        """As `say_once`, from any thread."""
        self._lifecycle.soon(self.say_once, key, text)

    # ---- how much waits --------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """Mini-batches that were given and have been neither reported nor dropped."""
        return self._dispatcher.backlog + self._queued

    @property
    def _queued(self) -> int:
        return sum(node.queued for node in list(self.nodes))

    @property
    def emitted(self) -> int:
        """Mini-batches that were given, also those that were dropped or refused."""
        return self._events.index + self.dropped + self._queued

    def lag(self) -> float:
        """Seconds that the oldest of the backlog has waited."""
        in_streams = (node.lag() for node in list(self.nodes))
        return max(self._dispatcher.lag(), *in_streams, 0.0)

    def counters(self) -> dict[str, float]:
        """Count, for a checkpoint, what has come and what may be read again."""
        index = self._events.index
        oldest = next(iter(self._under_way), index)
        return {
            "emitted": index,
            "dead_letters": self.dead_letters.total,
            "again": index - oldest,
        }

    # ---- what waits in the nodes of streams ------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether something waits in nodes before the trainer's own."""
        return any(node.holds for node in list(self.nodes))

    @property
    def would_hold_up_a_stream(self) -> bool:
        """Whether a call that blocks this thread would hold up a stream's loop."""
        return any(is_running_here(node.loop.asyncio_loop) for node in list(self.nodes))

    async def pass_on_held(self, timeout: float) -> None:
        """Take in what waits in the nodes of streams before the trainer's own."""
        end = time.monotonic() + timeout
        for node in list(self.nodes):
            await node.pass_on_held(max(0.01, end - time.monotonic()))

    async def emptied(self, left: Callable[[], float]) -> None:
        """Wait until nothing waits in the trainer's own nodes."""
        for node in list(self.nodes):
            await node.emptied(left())

    def rested(self) -> None:
        """Let the nodes know that all has been learned."""
        for node in list(self.nodes):
            node.rested()

    def check(self) -> None:
        """Raise what could not be raised to an emit yet, or what ended a stream."""
        for node in list(self.nodes):
            node.check()

    def report_waiting(self, at_the_end: bool) -> None:
        """Say what waits in streams for something else than a replica."""
        for node in list(self.nodes):
            node.report_waiting(at_the_end=at_the_end)

    def take_no_more(self) -> None:
        """Say what was refused and what still waits; end the nodes of streams."""
        self.warn_of_refused(at_the_end=True)
        while self._heard:
            self._heard.popitem()[1]()
        self.report_waiting(at_the_end=True)
        for node in list(self.nodes):
            node.closed()

    def let_go(self) -> None:
        """Hold the nodes of streams no longer, nor the trainer by them."""
        self.nodes.clear()
        for holder in self.holders:
            holder.let_go()


async def _let_go_after(refused: Pending, rest: Awaitable[None]) -> None:
    await rest
    refused.let_go()
