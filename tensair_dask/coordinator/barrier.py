"""Barrier: the model of all replicas is changed, at one place of the stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from tensair_dask import config
from tensair_dask.coordinator.lane import Lane
from tensair_dask.coordinator.replica_group import ReplicaGroup, may_be_a_crash
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.coordinator.start import Starter
from tensair_dask.errors import (
    ClusterError,
    KilledReplicasError,
    ModelError,
    ReplicaLostError,
    TensairError,
    TensairTimeoutError,
)
from tensair_dask.pubsub.moments import Moment, reach
from tensair_dask.replica.actor import Change, Changed

__all__ = ["Barrier"]

logger = logging.getLogger(__name__)


class Barrier:
    """Holds the stream, lets all gradients arrive, changes one replica, copies it.

    So all replicas hold the same parameters afterwards, whatever the change does, and
    whether or not somebody waits for it.

    Belongs to the client's event loop.

    Parameters
    ----------
    replicas
        Those that are changed.
    starter
        Starts the replicas that join, which repeat the changes of the structure.
    """

    def __init__(self, replicas: ReplicaGroup, starter: Starter) -> None:
        self._replicas = replicas
        self._dispatcher = replicas.dispatcher
        # Held by whoever changes models, or who takes part.
        self.alone = asyncio.Lock()
        self._modules = starter.modules
        self._changes = starter.changes
        self._doing: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """Wait for the end of what is being done: the dispatcher is closed."""
        if self._doing:
            limit = config.get_seconds("timeouts.close")
            await asyncio.wait(self._doing, timeout=limit)

    async def change(
        self,
        function: Callable[[Any, Any], Any],
        seed: int,
        done: Callable[[], Any] | None = None,
    ) -> Changed:
        """Let ``function(model, optimizers)`` change all replicas in the same way.

        Parameters
        ----------
        function
            Called on the workers.
        seed
            Set before it is called.
        done
            Called here when all are changed, and before anything else is done to them.

        Returns
        -------
        changed
            Its layout is None if the structure is as it was; the answer is that of
            the first replica that was changed, and that the others have followed.

        Raises
        ------
        Exception
            What the function raises, if it cannot be sent, or if no replica is
            alive. The models are then as they were.
        """
        payload = self._modules.dumps(function, "The function")

        changed = Changed()

        async def work() -> None:
            nonlocal changed
            changed = await self._change_alone(Change(payload, seed))
            if done is not None:
                done()

        await self.undisturbed(work)
        return changed

    async def _change_alone(self, change: Change) -> Changed:
        """Change one; if it has another structure then, all make the same change.

        All of them, or none: what fails at one is undone everywhere.
        """
        arguments = "change", change.function, change.seed
        source, first = await self._change_one(*arguments)
        if first.layout is None:  # values only
            return await self._copy_to_all({source}, *arguments) or first
        change = replace(change, layout=first.layout)
        changed = {source}
        try:
            self._check_room()
            while others := self._alive_but(changed):
                await self._change_alike(others, change, changed)
            await self._agree(changed)
        except BaseException:
            await self._end_change(changed, kept=False)
            raise
        self._changes.append(change)
        await self._end_change(changed, kept=True)
        return first

    def _check_room(self) -> None:
        most = int(config.get("replicas.changes"))
        if len(self._changes) >= most:
            raise ModelError(
                f"The structure of the model has been changed {len(self._changes)} "
                "times, which every replica that joins has to repeat; allowed are "
                f"{most} (tensair.replicas.changes). Let model= build the changed "
                "model, and go on from a checkpoint."
            )

    def _alive_but(self, those: set[ReplicaHandle]) -> list[ReplicaHandle]:
        return [each for each in self._replicas.alive() if each not in those]

    async def _change_alike(
        self,
        others: list[ReplicaHandle],
        change: Change,
        changed: set[ReplicaHandle],
    ) -> None:
        """Let others make a change of the structure; add those that have made it."""
        answers = await asyncio.gather(
            *(
                self._ask(each, "change", change.function, change.seed, change.layout)
                for each in others
            ),
            return_exceptions=True,
        )
        pairs = list(zip(others, answers, strict=True))
        changed.update(
            each for each, answer in pairs if not isinstance(answer, BaseException)
        )
        for _, answer in pairs:
            lost = (ReplicaLostError, TensairTimeoutError)
            if isinstance(answer, BaseException) and not isinstance(answer, lost):
                raise answer

    async def _agree(self, changed: set[ReplicaHandle]) -> None:
        """Let all that were changed alike take over the values of one."""
        copied: set[ReplicaHandle] = set()
        risk = _Risk(self._dispatcher.allowed_losses)
        while True:
            alive = [each for each in self._replicas.alive() if each in changed]
            if not alive:
                raise ReplicaLostError(
                    "The replicas were lost while their structure was changed."
                )
            source = next((each for each in alive if each in copied), alive[0])
            copied.add(source)
            others = [each for each in alive if each not in copied]
            if not others:
                return
            risk.judge(others)
            asked = risk.chosen(others)
            copied.update(await self.copy(source, asked))
            risk.saw(asked, copied)

    async def _end_change(self, changed: set[ReplicaHandle], kept: bool) -> None:
        alive = [each for each in self._replicas.alive() if each in changed]
        answers = await asyncio.gather(
            *(self._ask(each, "end_change", kept) for each in alive),
            return_exceptions=True,
        )
        for each, answer in zip(alive, answers, strict=True):
            if isinstance(answer, BaseException):
                logger.warning("A change did not end at %s: %s", each.name, answer)

    async def restore(self, snapshot: Any) -> None:
        """Put a `snapshot` of before into all replicas."""
        await self._everywhere("restore", snapshot)

    async def go_on_from(self, snapshot: Any) -> None:
        """Put a `snapshot` of an earlier run into all replicas, with its clock."""
        await self._everywhere("go_on_from", snapshot)

    async def share_updates(self) -> None:
        """Let all replicas share updates, and begin with the same model."""
        await self._everywhere("share_updates")

    async def snapshot(self) -> Any:
        """Take the model and the optimizer state of one replica."""
        return await self._replicas.ask_any("snapshot")

    async def checkpoint(self) -> Any:
        """Take the same for a file; None if that replica has missed gradients."""
        return await self._replicas.ask_any("checkpoint")

    async def check(self, function: Callable[[Any], Any]) -> None:
        """Call ``function(model)`` at one replica, to see whether it raises."""
        payload = self._modules.dumps(function, "The policy")
        await self._replicas.ask_any("check", payload)

    async def undisturbed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this while nothing is learned, to its end once it has begun.

        Who waits for it may be cancelled, by Ctrl-C say: a change that is broken off
        would leave replicas that differ for ever.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.alone)
            await stack.enter_async_context(self.rest())
            held = stack.pop_all()

        async def do() -> None:
            async with held:
                await work()

        doing = asyncio.ensure_future(do())
        self._doing.add(doing)
        doing.add_done_callback(self._doing.discard)
        await asyncio.shield(doing)

    async def _everywhere(
        self, method: str, *args: Any, done: Callable[[], Any] | None = None
    ) -> None:
        async def work() -> None:
            await self._change_each(method, *args)
            if done is not None:
                done()

        await self.undisturbed(work)

    async def _change_each(self, method: str, *args: Any) -> None:
        source, _ = await self._change_one(method, *args)
        await self._copy_to_all({source}, method, *args)

    async def _copy_to_all(
        self, changed: set[ReplicaHandle], method: str, *args: Any
    ) -> Any:
        """Let all have what some have; if these are lost, change one anew.

        Gives what that one has answered; None if there was no need.
        """
        answer = None
        risk = _Risk(self._dispatcher.allowed_losses)
        while True:
            alive = self._replicas.alive()
            source = next((each for each in alive if each in changed), None)
            if source is None:
                source, answer = await self._change_one(method, *args)
                changed.add(source)
            others = [each for each in alive if each not in changed]
            if not others:
                return answer
            try:
                risk.judge(others)
            except KilledReplicasError as error:
                # All others are as they were: without these, nothing was changed.
                for each in changed.intersection(alive):
                    self._dispatcher.lose(each.lane, error)
                raise
            asked = risk.chosen(others)
            changed.update(await self.copy(source, asked))
            risk.saw(asked, changed)

    async def _change_one(self, method: str, *args: Any) -> tuple[ReplicaHandle, Any]:
        async def change(handle: ReplicaHandle) -> tuple[ReplicaHandle, Any]:
            return handle, await self._ask(handle, method, *args)

        return await self._replicas.put(method, change)

    async def _ask(self, handle: ReplicaHandle, method: str, *args: Any) -> Any:
        """Ask for a change; give up a replica that may make it at any later moment."""
        try:
            return await self._replicas.ask(handle, method, *args)
        except TensairTimeoutError as error:
            if any(each is not handle for each in self._replicas.alive()):
                self._dispatcher.lose(handle.lane, error)
            raise

    async def copy(
        self, source: ReplicaHandle, others: list[ReplicaHandle]
    ) -> list[ReplicaHandle]:
        """Let others take over the source's model; give those that have.

        The rest were lost, or the source is, or leaves: `_replicas` knows in the next
        round.
        """
        reach(Moment.COPYING, source)
        answers = await asyncio.gather(
            *(self._ask(each, "adopt", source.peer) for each in others),
            return_exceptions=True,
        )
        copied = []
        for handle, answer in zip(others, answers, strict=True):
            if answer is None:
                copied.append(handle)
            elif not isinstance(answer, (ClusterError, TensairTimeoutError)):
                raise answer
        if not copied:
            # One of both ends is gone, and perhaps not noticed yet: ask the source.
            with contextlib.suppress(TensairError):
                if (await self._replicas.ask(source, "status")).leaving:
                    self._dispatcher.dismiss(source.lane)
        return copied

    @asynccontextmanager
    async def rest(self) -> AsyncIterator[None]:
        """Hold the stream while nothing is being learned and no gradient travels."""
        seconds = config.get_seconds("timeouts.drain")
        try:
            await self._dispatcher.hold(seconds)
            reach(Moment.FLUSHING)
            await self.flush()
            yield
        finally:
            self._dispatcher.go_on()

    async def flush(self) -> None:
        """Let all gradients arrive that have been computed; the stream may go on."""
        seconds = config.get_seconds("timeouts.drain")
        await self._replicas.ask_all("flush", seconds, timeout=seconds)


class _Risk:
    """Bounds how many replicas are lost while they take over a changed model.

    That runs the user's code, and takes memory: it may end every process that does it.
    So one takes it over before the others do, and where it is lost with that, another
    one alone, as it is with calls (see `ReplicaGroup`).
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._losses = 0
        self._is_harmless = False

    def chosen(self, others: list[ReplicaHandle]) -> list[ReplicaHandle]:
        """Choose who may take it over now."""
        return others if self._is_harmless else others[:1]

    def saw(self, asked: list[ReplicaHandle], copied: set[ReplicaHandle]) -> None:
        """Take note of what has become of those that were asked."""
        self._is_harmless = self._is_harmless or not copied.isdisjoint(asked)
        self._losses += sum(_has_crashed(each.lane) for each in asked)

    def judge(self, others: list[ReplicaHandle]) -> None:
        """Refuse to go on if it seems to end whoever takes it over.

        Raises
        ------
        KilledReplicasError
            If so many were lost with it, or only one is left that is as it was.
        """
        if not self._losses or self._is_harmless:
            return
        if self._losses <= self._allowed and len(others) > 1:
            return
        raise KilledReplicasError(
            f"{self._losses} replicas were lost while they took over the changed model "
            "from the one that had changed it. The change is undone: the others are as "
            "they were. See the logs of their workers (out of memory, or a crash in "
            "load_state_dict or set_extra_state of the model?). If they were ended for "
            "other reasons, call again when others have joined, or raise "
            "tensair.dispatch.allowed-losses."
        )


def _has_crashed(lane: Lane) -> bool:
    """Whether its process may have ended of what it was asked."""
    failure = lane.failure
    if lane.alive or lane.leaving or isinstance(failure, TensairTimeoutError):
        return False
    return not isinstance(failure, ReplicaLostError) or may_be_a_crash(failure)
