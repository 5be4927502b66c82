"""Membership: which replicas a trainer has, as workers come, go, and are lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from distributed import Client

from tensair_dask import config
from tensair_dask.calls import Calls
from tensair_dask.cluster import ReplicaHandle, Starter
from tensair_dask.dispatch import Dispatcher, Lane, nobody_alive
from tensair_dask.errors import (
    NoReplicasError,
    ReplicaLostError,
    TensairError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.exchange.exchange import Holding
from tensair_dask.faults import Moment, reach
from tensair_dask.guard.worker import leaving_topic
from tensair_dask.interventions import Interventions
from tensair_dask.placement import Place, Wish
from tensair_dask.waiting import within

__all__ = ["Membership"]

logger = logging.getLogger(__name__)

# Replicas that are gone, and that are still told of.
REMEMBERED = 50


class Membership:
    """Sees to it that there are as many replicas as are wished for.

    *A replica is lost*: Dask says so, no timeout of ours. The others go on at once.
    They are asked how much they have of it; if they differ, the stream is held for a
    moment while all take over the model of the one that has most. Then it is known of
    each mini-batch that the lost one had whether its gradient lives on, and those are
    learned again whose gradient does not.

    *A replica joins*: it is built while the others learn. Then the stream is held for a
    moment, until no gradient is under way: the newcomer subscribes, and one of the
    others keeps a copy of its model. The stream goes on while the newcomer takes the
    copy over; what is published meanwhile waits for it.

    *A replica leaves*: it gets nothing more, learns what it has, and publishes it. What
    follows is as if it were lost, but that nothing is. If it is the last one, another
    is started first, if there is a worker for it; the stream waits meanwhile.

    Belongs to the client's event loop.

    Parameters
    ----------
    client
        Of the trainer.
    starter
        Starts replicas.
    wish
        How many there shall be.
    handles
        All replicas, in order of their start; kept up to date here.
    calls
        To them.
    interventions
        Hold the stream.
    dispatcher
        Sends mini-batches to them.
    note
        Called with kind and text of each event, and the name of the replica.
    admitted
        Called when a replica takes part.
    """

    def __init__(
        self,
        client: Client,
        starter: Starter,
        wish: Wish,
        handles: list[ReplicaHandle],
        calls: Calls,
        interventions: Interventions,
        dispatcher: Dispatcher,
        note: Callable[..., Any],
        admitted: Callable[[], Any] = lambda: None,
    ) -> None:
        self.wish = wish
        self._client = client
        self._starter = starter
        self._handles = handles
        self._calls = calls
        self._interventions = interventions
        self._dispatcher = dispatcher
        self._note = note
        self._admitted = admitted
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovering: asyncio.Task[None] | None = None
        self._fitting = asyncio.Lock()
        # Replicas that leave because there are too many: their workers stay.
        self._unwanted: set[str] = set()
        # Workers on which no replica could be started, or that go; and since when.
        self._unfit: dict[str, float] = {}
        # When there were first too few workers for as many replicas as are wished for.
        self._short_since: float | None = None
        self._wished = 0
        self._closed = False

    @property
    def target(self) -> int:
        """How many are wished for, by the workers that there are; as pages show it."""
        return self._wished

    @property
    def count(self) -> int:
        """How many there are that learn."""
        return sum(handle.lane.open for handle in self._handles)

    # ---- the start, and the end -----------------------------------------------------

    async def start(self) -> None:
        """Start the first replicas; see `Starter.start`."""
        for handle in await self._starter.start(self.wish):
            self._admit(handle)
        topic = leaving_topic(self._starter.run_id)
        self._client.subscribe_topic(topic, self._told_of_leaving)
        self._wished = len(self._handles)

    def watch(self) -> None:
        """Begin to keep as many replicas as are wished for."""
        # Apart, since a replica that is silent must not keep any from being given up.
        for care in (self._give_up_the_lost, self._confirm_the_idle, self._provide):
            self._go_on_with(self._watch(care))

    def _go_on_with(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("Nobody waits for it any more: %s", error)

    async def close(self) -> None:
        """Stop watching; what is under way is given up."""
        self._closed = True
        with contextlib.suppress(Exception):  # not begun, or the client is closed
            self._client.unsubscribe_topic(leaving_topic(self._starter.run_id))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _admit(self, handle: ReplicaHandle) -> None:
        self._handles.append(handle)
        self._dispatcher.admit(handle.lane)
        self._admitted()

    async def _watch(self, care: Callable[[], Awaitable[None]]) -> None:
        interval = config.get_seconds("replicas.watch")
        # Dask makes a broken connection of a cancelled call, so a flag is needed.
        while not self._closed and self._client.status not in ("closed", "closing"):
            try:
                await care()
            except TrainerClosedError:
                return
            except Exception as error:
                if not self._closed:
                    logger.warning("Watching the replicas failed: %s", error)
            await asyncio.sleep(interval)

    async def _provide(self) -> None:
        """See to it that those that there are have all, and that there are enough."""
        await self.complete()
        await self.fit()

    async def _give_up_the_lost(self) -> None:
        """Give up those that Dask has declared lost, whatever their comms say."""
        for handle in self._handles:
            if handle.lane.alive and handle.is_lost:
                gone = OSError("its worker left the cluster")
                self._dispatcher.lose(handle.lane, gone)

    def _told_of_leaving(self, event: Any) -> None:
        """Send nothing more to a replica that says that it leaves."""
        _, name = event
        for handle in self._handles:
            if handle.name == name:
                self._dispatcher.dismiss(handle.lane)

    async def _confirm_the_idle(self) -> None:
        """Ask those that report nothing what their peers have applied meanwhile.

        And what they have missed themselves.
        """
        alive = self._calls.alive()
        if not (self._unjudged() or any(each.lane.unconfirmed for each in alive)):
            return
        await asyncio.gather(
            *(self._confirm(each) for each in alive if not each.lane.sent)
        )

    async def _confirm(self, handle: ReplicaHandle) -> None:
        # One that is silent is asked again; till then it keeps the others waiting.
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(ReplicaLostError, TensairTimeoutError):
            status = await self._calls.ask(handle, "status", timeout=seconds)
            handle.lane.status = status
            self._dispatcher.confirm(handle.lane)

    async def look(self) -> None:
        """Ask all how they stand, and `complete` them."""
        for handle, status in (await self._calls.ask_all("status")).items():
            handle.lane.status = status
            self._dispatcher.confirm(handle.lane)
        await self.complete()

    async def complete(self) -> None:
        """Let replicas that have missed gradients take over a model that holds them.

        Whatever the reason: a replica whose peers go on without it would else drift
        away from them unnoticed.
        """
        statuses = [each.lane.status for each in self._calls.alive()]
        if not any(status is not None and status.missed for status in statuses):
            return
        await self._flush()  # most of the way without holding anything
        await self._interventions.undisturbed(self._catch_up)
        for handle, status in (await self._calls.ask_all("status")).items():
            handle.lane.status = status

    async def _catch_up(self) -> None:
        answers = await self._calls.ask_all("status")
        behind = [each for each, status in answers.items() if status.missed]
        if not behind:
            return
        source = max(
            answers, key=lambda each: (each not in behind, answers[each].version)
        )
        others = [each for each in behind if each is not source]
        copied = await self._interventions.copy(source, others) if others else []
        if others and not copied:
            return  # one of both ends is gone: the next round knows
        told = f"{len(copied)} replicas had missed gradients: took over a peer's model"
        if source in behind:
            # None holds all: what the source has missed is lost.
            clock = {each.name: status.steps for each, status in answers.items()}
            await self._calls.ask(source, "overlook", clock)
            told += ", which had missed some, too"
            logger.warning("Gradients were lost: %s", told)
        self._note("note", told)

    # ---- replicas that are lost, or have left ----------------------------------------

    def lost(self, lane: Lane) -> None:
        """Take note of a replica that is lost, or has left; `recovered` tells when."""
        name = next(each.name for each in self._handles if each.lane is lane)
        kind = "left" if lane.leaving else "lost"
        if lane.leaving and name not in self._unwanted:
            # Its worker is about to go, and may still be there for a while.
            self._unfit[lane.address] = time.monotonic()
        self._note(kind, f"the replica on {lane.address}", name)
        if self._recovering is None or self._recovering.done():
            self._recovering = self._go_on_with(self._recover())

    @property
    def settled(self) -> bool:
        """Whether it is known of all that was lost what lives on."""
        return self._recovering is None or self._recovering.done()

    async def recovered(self, timeout: float) -> None:
        """Wait until what was lost is known.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        if self._recovering is None:
            return
        done, _ = await asyncio.wait({self._recovering}, timeout=timeout)
        if not done:
            raise TensairTimeoutError(
                f"The other replicas did not tell within {timeout:g} s what they have "
                "of one that was lost. Raise tensair.timeouts.drain if the steps are "
                "slow; look at the workers if they are not."
            )

    async def _recover(self) -> None:
        while not self._closed and self._unjudged():
            try:
                await self._last_reports()
                async with self._interventions.alone:
                    await self._judge(self._unjudged())
            except TrainerClosedError:
                return
            except Exception as error:
                known = isinstance(error, (OSError, TensairError))
                logger.warning(
                    "A replica's loss is not made good yet: %s",
                    error or repr(error),
                    exc_info=None if known else error,
                )
                await asyncio.sleep(config.get_seconds("replicas.watch"))
        self._forget()

    async def _last_reports(self) -> None:
        """Where all that are left leave: wait for what these still learn.

        They have the model, and are asked what they have of those that are lost.
        """
        while not self._alive:
            ending = [each.lane.lost for each in self._handles if each.lane.alive]
            if not ending:
                return
            await asyncio.wait(ending)

    def _unjudged(self) -> list[ReplicaHandle]:
        return [
            each for each in self._handles if not (each.lane.alive or each.lane.judged)
        ]

    async def _judge(self, gone: list[ReplicaHandle]) -> None:
        """Find out what lives on of replicas that are gone."""
        leaving = [each for each in gone if each.lane.leaving]
        seeing = {each: asyncio.ensure_future(self._see_off(each)) for each in leaving}
        try:
            # The last one waits for its heir before it goes.
            orphaned = not self._alive and not await self._hand_over(seeing)
            await asyncio.gather(*seeing.values())
        finally:
            for task in seeing.values():
                task.cancel()
        if not self._alive and not orphaned:  # who stayed was lost meanwhile
            await self._hand_over(seeing)
        names = [handle.name for handle in gone]
        holdings = await self._calls.ask_all("seal", names)
        for handle in holdings:
            reach(Moment.SEALED, handle)
        if _agree(holdings.values(), names):
            holding = next(iter(holdings.values()), None)
        else:
            holding = await self._reconcile(names)
        if len(self._unjudged()) > len(gone) or (holding is None and self._alive):
            return  # more were lost meanwhile: ask again
        for handle in gone:
            taken = None if holding is None else holding.taken.get(handle.name, 0)
            self._dispatcher.resolve(handle.lane, taken)
            handle.release()

    async def _see_off(self, handle: ReplicaHandle) -> None:
        """Let a replica publish what it has learned, and end."""
        seconds = config.get_seconds("timeouts.leave")
        try:
            await handle.call_within(seconds, "leave", seconds)
        except (OSError, TensairError) as error:
            logger.info(
                "The replica on %s left at once: %s", handle.lane.address, error
            )
        reach(Moment.SEEN_OFF, handle)

    async def _hand_over(self, seeing: dict[ReplicaHandle, asyncio.Task[None]]) -> bool:
        """Start a replica that takes over the model of those that leave; tell if so.

        Parameters
        ----------
        seeing
            Those that leave, and what sees them off.
        """
        heir = None
        source = await self._keeper(seeing)
        if source is not None:
            for address in await self._refuges(list(seeing)):
                heir = await self._bequeath(source, address)
                if heir is not None or source.is_lost:
                    break
        if heir is not None:
            self._admit(heir)
            text = f"the replica on {heir.place.address}, from the last one that leaves"
            self._note("joined", text, heir.name)
        elif seeing:
            logger.warning("The model could not be handed over to another worker")
        await asyncio.gather(*(self._let_go(each) for each in seeing))
        return heir is not None

    async def _keeper(
        self, seeing: dict[ReplicaHandle, asyncio.Task[None]]
    ) -> ReplicaHandle | None:
        """Let the one that has most of the model keep it; None if all are lost."""
        # Those with peers tell them what they learned; the last one has all of it.
        under_way = set(seeing.values())
        while len(under_way) > 1:
            _, under_way = await asyncio.wait(
                under_way, return_when=asyncio.FIRST_COMPLETED
            )
        seconds = config.get_seconds("timeouts.leave")
        versions: dict[ReplicaHandle, int] = {}

        async def keep(handle: ReplicaHandle) -> None:
            with contextlib.suppress(OSError, TensairError):
                await handle.call_within(seconds, "keep", True)
                status = await handle.call_within(seconds, "status")
                versions[handle] = status.version

        await asyncio.gather(*map(keep, seeing))
        return max(versions, key=lambda each: versions[each], default=None)

    async def _refuges(self, leaving: list[ReplicaHandle]) -> list[str]:
        """Where an heir may be started: at best on a worker that is free, and fit."""
        going = {each.place.address for each in leaving}
        staying = {each.place.address for each in leaving if self._is_unwanted(each)}
        fit = await self._workers()
        there = await self._client.scheduler.ncores()
        return sorted(
            (each for each in there if each not in going or each in staying),
            key=lambda each: (each not in fit, each in staying),
        )

    def _is_unwanted(self, handle: ReplicaHandle) -> bool:
        """Whether it leaves because there are too many: its worker stays."""
        return handle.name in self._unwanted

    async def _bequeath(
        self, source: ReplicaHandle, address: str
    ) -> ReplicaHandle | None:
        """Start a replica on this worker that takes over what another has kept."""
        seconds = config.get_seconds("timeouts.start")
        heirs: list[ReplicaHandle | Exception] = []
        try:
            facts = await within(self._starter.look([address]), seconds)
            heirs = await self._starter.build(self._starter.place(facts, [], 1))
            (heir,) = heirs
            if isinstance(heir, Exception):
                raise heir
            await heir.call_within(seconds, "join", True)
            reach(Moment.INHERITING, heir)
            await heir.call_within(seconds, "adopt", source.peer, True)
        except Exception as error:
            self._unfit[address] = time.monotonic()
            logger.warning(
                "The model could not be handed over to %s: %s",
                address,
                error or repr(error),
            )
            for each in heirs:
                if isinstance(each, ReplicaHandle):
                    self._starter.release(each)
            return None
        return heir

    async def _let_go(self, handle: ReplicaHandle) -> None:
        """Tell one that leaves that nobody waits for it any more."""
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(OSError, TensairError):
            await handle.call_within(seconds, "let_go")

    async def _reconcile(self, names: list[str]) -> Holding | None:
        """Let all take over the model of the one that has most of those that are gone.

        Returns
        -------
        holding
            Of all; None if one was lost meanwhile.
        """
        async with self._interventions.rest():
            holdings = await self._calls.ask_all("seal", names)
            if not holdings:
                return None

            def held(handle: ReplicaHandle) -> int:
                return sum(holdings[handle].clock.get(name, 0) for name in names)

            source = max(holdings, key=held)
            behind = [
                each
                for each in holdings
                if not _agree((holdings[source], holdings[each]), names)
            ]
            copied = await self._interventions.copy(source, behind) if behind else []
            settled = {source, *copied, *(set(holdings) - set(behind))}
            if any(handle not in settled for handle in self._calls.alive()):
                return None
        self._note("note", f"{len(behind)} replicas took over a model that holds more")
        return holdings[source]

    @property
    def _alive(self) -> bool:
        return bool(self._calls.alive())

    def _forget(self) -> None:
        """Forget those that are gone for the longest time."""
        gone = [handle for handle in self._handles if not handle.lane.alive]
        for handle in gone[: max(0, len(gone) - REMEMBERED)]:
            self._handles.remove(handle)
            self._dispatcher.lanes.remove(handle.lane)

    # ---- as many as are wished for ---------------------------------------------------

    async def fit(self, patience: float | None = None) -> None:
        """Start or end replicas until there are as many as are wished for.

        Parameters
        ----------
        patience
            Seconds that a replica waits for a worker of its own, before it shares
            one; None for ``tensair.replicas.patience``.
        """
        async with self._fitting:
            workers = await self._workers()
            present = [each for each in self._handles if each.lane.open]
            wished = self._wished = self.wish.count(len(workers))
            if len(present) > wished and self.wish.most < len(present):
                # One on each worker that is left would be too few: no reason to end.
                self._dismiss(present[int(self.wish.most) :])
            elif len(present) < wished and present:
                await self._grow(workers, present, wished, patience)
            else:
                self._short_since = None
                await self._spread(workers, present)

    def _dismiss(self, handles: list[ReplicaHandle]) -> None:
        """Let replicas leave that are too many."""
        for handle in handles:
            self._unwanted.add(handle.name)
            self._dispatcher.dismiss(handle.lane)

    async def _workers(self) -> list[str]:
        """Workers on which a replica may be started."""
        addresses = await self._client.scheduler.ncores()
        now = time.monotonic()
        pause = config.get_seconds("replicas.retry")
        self._unfit = {k: t for k, t in self._unfit.items() if now - t < pause}
        return [address for address in addresses if address not in self._unfit]

    async def _grow(
        self,
        workers: list[str],
        present: list[ReplicaHandle],
        wished: int,
        patience: float | None,
    ) -> None:
        load = Counter(handle.place.address for handle in present)
        free = [address for address in workers if not load[address]]
        count = min(wished - len(present), len(free))
        if not count:
            # Rather one worker of its own, even if it comes a little later.
            now = time.monotonic()
            if self._short_since is None:
                self._short_since = now
            limit = config.get_seconds("replicas.patience", patience)
            if now - self._short_since < limit:
                return
            count = wished - len(present)
        self._short_since = None
        await self._start(workers, present, count)

    async def _spread(self, workers: list[str], present: list[ReplicaHandle]) -> None:
        """Let replicas that share a worker have those that have come since.

        A new one joins first, and then one that shares leaves: so there are never
        fewer, and nothing is lost.
        """
        load = Counter(handle.place.address for handle in present)
        free = [address for address in workers if not load[address]]
        sharing: list[ReplicaHandle] = []
        for handle in reversed(present):
            if len(sharing) < len(free) and load[handle.place.address] > 1:
                load[handle.place.address] -= 1
                sharing.append(handle)
        if sharing:
            joined = await self._start(free, present, len(sharing))
            self._dismiss(sharing[:joined])

    async def _start(
        self, workers: list[str], present: list[ReplicaHandle], count: int
    ) -> int:
        """Start replicas on some of these workers; give how many take part."""
        seconds = config.get_seconds("timeouts.start")
        facts = await within(self._starter.look(workers), seconds)
        places = self._starter.place(facts, [each.place for each in present], count)
        return await self._join(places)

    async def _join(self, places: list[Place]) -> int:
        """Let replicas take part, on workers that are there; give how many do."""
        start = time.perf_counter()
        joining: list[ReplicaHandle] = []
        try:
            for place, built in zip(
                places, await self._starter.build(places), strict=True
            ):
                if isinstance(built, Exception):
                    self._avoid(place, built)
                else:
                    joining.append(built)
        except Exception as error:
            for place in places:
                self._avoid(place, error)
        if not joining:
            return 0
        joined: list[ReplicaHandle] = []
        held = 0.0
        try:
            joined, held = await self._introduce(joining)
        except TrainerClosedError:
            raise
        except (OSError, TensairError) as error:
            logger.warning("No replica can join now: %s", error)
        finally:
            rest = [each for each in joining if each not in joined]
            for handle in rest:
                self._starter.release(handle)
        if rest:
            await self._disown(rest)
        seconds = time.perf_counter() - start
        for handle in joined:
            self._note(
                "joined",
                f"the replica on {handle.place.address}, after {seconds:.2f} s "
                f"(the stream was held for {held:.3f} s)",
                handle.name,
            )
        return len(joined)

    def _avoid(self, place: Place, error: BaseException) -> None:
        """Start none on a worker for a while: it may lack memory just now."""
        self._unfit[place.address] = time.monotonic()
        logger.warning(
            "No replica could be started on %s: %s",
            place.address,
            error or repr(error),
        )

    async def _introduce(
        self, joining: list[ReplicaHandle]
    ) -> tuple[list[ReplicaHandle], float]:
        """Let built replicas subscribe, and take over the model of that moment.

        Returns
        -------
        joined
            Those that take part from now on.
        held
            For how long the stream was held, in seconds.
        """
        joined: list[ReplicaHandle] = []
        async with self._interventions.alone:
            await self._flush()  # most of the way without holding anything
            start = time.perf_counter()
            async with self._interventions.rest():
                source = self._source()
                keeping = asyncio.ensure_future(self._calls.ask(source, "keep"))
                failed = await _each(joining, "timeouts.join", "join", True)
                await keeping
                for handle in joining:
                    reach(Moment.SUBSCRIBED, handle)
            held = time.perf_counter() - start
            reach(Moment.KEPT, source)
            for handle, error in failed.items():
                self._avoid(handle.place, error)
            subscribed = [each for each in joining if each not in failed]
            joined = await self._take_over(source, subscribed)
        return joined, held

    async def _take_over(
        self, source: ReplicaHandle, joining: list[ReplicaHandle]
    ) -> list[ReplicaHandle]:
        """Let newcomers take over what the source has kept; give those that have."""
        failed = await _each(joining, "timeouts.start", "adopt", source.peer, True)
        joined = [each for each in joining if each not in failed]
        for handle in joined:
            self._admit(handle)
        seconds = config.get_seconds("timeouts.join")
        try:
            await self._calls.ask(source, "let_go", timeout=seconds)
        except TensairError as error:
            # No fault of the newcomers: the next ones have another source.
            logger.warning("A replica was lost from which others joined: %s", error)
        else:
            for handle, reason in failed.items():
                self._avoid(handle.place, reason)
        return joined

    async def _disown(self, handles: list[ReplicaHandle]) -> None:
        """Let nobody wait for newcomers that do not take part, be they only silent."""
        names = [handle.name for handle in handles]
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(OSError, TensairError):
            await self._calls.ask_all("seal", names, timeout=seconds)

    async def _flush(self) -> None:
        seconds = config.get_seconds("timeouts.drain")
        await self._calls.ask_all("flush", seconds, timeout=seconds)

    def _source(self) -> ReplicaHandle:
        """Choose whose model a newcomer takes over: one that stays, if there is one."""
        alive = [handle for handle in self._handles if handle.lane.alive]
        if not alive:
            raise NoReplicasError(
                "No replica is alive whose model a new one could take over."
            )
        return min(alive, key=lambda each: (each.lane.leaving, each.lane.load))

    async def shrink(self, count: int, timeout: float) -> list[str]:
        """Let replicas leave until so many are left; the wish stays as it is.

        Returns
        -------
        addresses
            Of the workers on which there is no replica any more. None is started there
            for ``tensair.replicas.retry``.
        """
        async with self._fitting:
            present = [each for each in self._handles if each.lane.open]
            leaving = present[count:]
            self._dismiss(leaving)
            now = time.monotonic()
            self._unfit.update({each.place.address: now for each in leaving})
        deadline = time.monotonic() + timeout
        while any(handle.lane.alive for handle in leaving):
            if time.monotonic() > deadline:
                raise TensairTimeoutError(
                    f"Replicas had not learned what they had within {timeout:g} s. "
                    "Raise tensair.timeouts.start if the steps are that long."
                )
            await asyncio.sleep(0.02)
        await self.recovered(max(0.0, deadline - time.monotonic()))
        used = {each.place.address for each in self._handles if each.lane.alive}
        return sorted({each.place.address for each in leaving} - used)

    async def scale(self, wish: Wish, timeout: float) -> None:
        """Change the wish, and wait until it is fulfilled.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        ClusterError
            If the cluster has no workers for it.
        """
        self.wish = wish
        deadline = time.monotonic() + timeout
        while True:
            fitting = self._go_on_with(self.fit(patience=0))  # what it began goes on
            left = max(0.0, deadline - time.monotonic())
            await asyncio.wait({fitting}, timeout=left)
            if fitting.done():
                fitting.result()
            open_now = sum(handle.lane.open for handle in self._handles)
            ended = not any(
                each.lane.alive and each.lane.leaving for each in self._handles
            )
            workers = len(await self._workers())
            if ended and open_now == min(
                max(self.wish.count(workers), 1), self.wish.most
            ):
                break
            if not (open_now or self._dispatcher.expecting):
                raise nobody_alive(len(self._handles), "no more can be started")
            if time.monotonic() > deadline:
                raise TensairTimeoutError(
                    f"{open_now} replicas are there after {timeout:g} s, not "
                    f"{self.wish.count(workers)}: {workers} workers can hold them. "
                    "Start workers, or raise tensair.timeouts.start."
                )
            await asyncio.sleep(0.05)
        await self.recovered(max(0.0, deadline - time.monotonic()))


async def _each(
    handles: Iterable[ReplicaHandle], setting: str, function: str, *args: Any
) -> dict[ReplicaHandle, Exception]:
    """Call a method of replicas that are no lanes yet; give what failed, and why."""
    seconds = config.get_seconds(setting)
    failed: dict[ReplicaHandle, Exception] = {}

    async def call(handle: ReplicaHandle) -> None:
        try:
            await handle.call_within(seconds, function, *args)
        except Exception as error:
            failed[handle] = error

    await asyncio.gather(*map(call, handles))
    return failed


def _agree(holdings: Iterable[Holding], names: list[str]) -> bool:
    """Whether all hold the same of these."""
    counts = {tuple(each.clock.get(name, 0) for name in names) for each in holdings}
    return len(counts) <= 1
