"""Membership: which replicas a trainer has, as workers come, go, and are lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
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
        self._watching: asyncio.Task[None] | None = None
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
        self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Stop watching; what is under way is given up."""
        self._closed = True
        with contextlib.suppress(Exception):  # not begun, or the client is closed
            self._client.unsubscribe_topic(leaving_topic(self._starter.run_id))
        tasks = [task for task in (self._watching, self._recovering) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _admit(self, handle: ReplicaHandle) -> None:
        self._handles.append(handle)
        self._dispatcher.admit(handle.lane)
        self._admitted()

    async def _watch(self) -> None:
        interval = config.get_seconds("replicas.watch")
        # Dask makes a broken connection of a cancelled call, so a flag is needed.
        while not self._closed and self._client.status not in ("closed", "closing"):
            try:
                self._give_up_the_lost()
                await self._confirm_the_idle()
                await self.complete()
                await self.fit()
            except TrainerClosedError:
                return
            except Exception as error:
                if not self._closed:
                    logger.warning("Watching the replicas failed: %s", error)
            await asyncio.sleep(interval)

    def _give_up_the_lost(self) -> None:
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
        """Ask those that report nothing what their peers have applied meanwhile."""
        for handle in self._calls.alive():
            lane = handle.lane
            if lane.unconfirmed and not lane.sent:
                try:
                    lane.status = await self._calls.ask(handle, "status")
                except (ReplicaLostError, TensairTimeoutError):
                    continue
                self._dispatcher.confirm(lane)

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
        copied = await self._interventions.copy(
            source, [each for each in behind if each is not source]
        )
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
            self._recovering = asyncio.ensure_future(self._recover())

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
        while not self._closed and (unjudged := self._unjudged()):
            try:
                async with self._interventions.alone:
                    await self._judge(unjudged)
            except TrainerClosedError:
                return
            except TensairError as error:
                logger.warning("A replica's loss is not made good yet: %s", error)
                await asyncio.sleep(config.get_seconds("replicas.watch"))
        self._forget()

    def _unjudged(self) -> list[ReplicaHandle]:
        return [
            each for each in self._handles if not (each.lane.alive or each.lane.judged)
        ]

    async def _judge(self, gone: list[ReplicaHandle]) -> None:
        """Find out what lives on of replicas that are gone."""
        leaving = [each for each in gone if each.lane.leaving]
        seeing = asyncio.gather(*(self._see_off(each) for each in leaving))
        if leaving and not self._alive:
            await self._hand_over(leaving)
        await seeing
        names = [handle.name for handle in gone]
        holdings = await self._calls.ask_all("seal", names)
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
            await within(handle.call("leave", seconds), seconds)
        except (OSError, TensairError, asyncio.TimeoutError) as error:
            logger.info(
                "The replica on %s left at once: %s", handle.lane.address, error
            )

    async def _hand_over(self, leaving: list[ReplicaHandle]) -> None:
        """Start a replica that takes over the model of the last one, before it goes."""
        addresses = {each.place.address for each in leaving}
        heirs: list[ReplicaHandle] = []
        try:
            free = [each for each in await self._workers() if each not in addresses]
            if not free:
                raise NoReplicasError("There is no other worker for it.")
            await leaving[0].call("status")  # it may be gone by now
            facts = [
                each for each in await self._starter.look() if each.address in free
            ]
            places = self._starter.place(facts, [], 1)
            heirs = await self._starter.build(places)
            for heir in heirs:
                await leaving[0].call("keep")
                await heir.call("join", True)
                await heir.call("adopt", leaving[0].peer, True)
        except (OSError, TensairError) as error:
            logger.warning("The model could not be handed over: %s", error)
            for heir in heirs:
                self._starter.release(heir)
            heirs = []
        for each in leaving:  # nobody waits for it any more
            with contextlib.suppress(OSError, TensairError):
                await each.call("let_go")
        for heir in heirs:
            self._admit(heir)
            text = f"the replica on {heir.place.address}, from the last one that leaves"
            self._note("joined", text, heir.name)

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
        facts = [each for each in await self._starter.look() if each.address in workers]
        places = self._starter.place(facts, [each.place for each in present], count)
        return await self._join(places)

    async def _join(self, places: list[Place]) -> int:
        """Let replicas take part, on workers that are there; give how many do."""
        addresses = ", ".join(sorted({place.address for place in places}))
        joining: list[ReplicaHandle] = []
        start = time.perf_counter()
        try:
            joining = await self._starter.build(places)
            held = await self._introduce(joining)
        except BaseException as error:
            for handle in joining:
                self._starter.release(handle)
            if not isinstance(error, (OSError, TensairError)):
                raise
            if isinstance(error, TrainerClosedError):
                raise
            # Not for ever: it may only be starting, or be short of memory.
            now = time.monotonic()
            self._unfit.update({place.address: now for place in places})
            logger.warning("No replica could be started on %s: %s", addresses, error)
            return 0
        seconds = time.perf_counter() - start
        for handle in joining:
            self._admit(handle)
            self._note(
                "joined",
                f"the replica on {handle.place.address}, after {seconds:.2f} s "
                f"(the stream was held for {held:.3f} s)",
                handle.name,
            )
        return len(joining)

    async def _introduce(self, joining: list[ReplicaHandle]) -> float:
        """Let built replicas subscribe, and take over the model of that moment.

        Returns
        -------
        held
            For how long the stream was held, in seconds.
        """
        async with self._interventions.alone:
            # Most of the way without holding anything.
            seconds = config.get_seconds("timeouts.drain")
            await self._calls.ask_all("flush", seconds, timeout=seconds)
            start = time.perf_counter()
            async with self._interventions.rest():
                source = self._source()
                await asyncio.gather(
                    self._calls.ask(source, "keep"),
                    *(handle.call("join", True) for handle in joining),
                )
            held = time.perf_counter() - start
            try:
                await asyncio.gather(
                    *(handle.call("adopt", source.peer, True) for handle in joining)
                )
            finally:
                if source.lane.alive:
                    await asyncio.gather(
                        self._calls.ask(source, "let_go"), return_exceptions=True
                    )
        return held

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
            await self.fit(patience=0)
            open_now = sum(handle.lane.open for handle in self._handles)
            ended = not any(
                each.lane.alive and each.lane.leaving for each in self._handles
            )
            workers = len(await self._workers())
            if ended and open_now == min(
                max(self.wish.count(workers), 1), self.wish.most
            ):
                break
            if not open_now:
                raise nobody_alive(len(self._handles), "no more can be started")
            if time.monotonic() > deadline:
                raise TensairTimeoutError(
                    f"{open_now} replicas are there after {timeout:g} s, not "
                    f"{self.wish.count(workers)}: {workers} workers can hold them. "
                    "Start workers, or raise tensair.timeouts.start."
                )
            await asyncio.sleep(0.05)
        await self.recovered(max(0.0, deadline - time.monotonic()))


def _agree(holdings: Iterable[Holding], names: list[str]) -> bool:
    """Whether all hold the same of these."""
    counts = {tuple(each.clock.get(name, 0) for name in names) for each in holdings}
    return len(counts) <= 1
