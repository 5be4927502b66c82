"""How one replica leaves its run: nothing is lost, and nothing learned twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tensair_dask.errors import ReplicaLeavingError, TensairTimeoutError
from tensair_dask.exchange.exchange import Exchange
from tensair_dask.replica.thread import TrainingThread

__all__ = ["Departure"]

logger = logging.getLogger(__name__)

# Share of the time for the mini-batches that are there. Blocks not begun by then are
# refused, so that there is time left for handing over what was learned.
LEARNING = 0.5


class Departure:
    """Lets a replica finish what it has, hand it over, and go; on the event loop.

    Parameters
    ----------
    name, address
        Of the replica and its worker, for messages.
    thread
        Of the replica.

    Attributes
    ----------
    begun
        Whether the replica takes no more work.
    alone
        Whether it had no peers when it left: its model leaves with it, unless it has
        an heir.
    under_way
        Blocks and questions that it answers.
    free
        Set when nobody waits for its model any more.
    """

    def __init__(self, name: str, address: str, thread: TrainingThread) -> None:
        self.begun = False
        self.alone = False
        self._name = name
        self._address = address
        self._thread = thread
        self.under_way = 0
        self._answered: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether it is known that it is alone.
        self._decided = asyncio.Event()
        self.free = asyncio.Event()

    # ---- work that comes ---------------------------------------------------------

    def check(self) -> None:
        """Refuse new work.

        Raises
        ------
        ReplicaLeavingError
            If the replica leaves.
        """
        if self.begun:
            raise self._refusal()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around work that was taken: the replica stays until it is answered."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way and self._answered is not None:
                if not self._answered.done():
                    self._answered.set_result(None)
                self._answered = None

    async def copying(self, last: bool = False) -> None:
        """Wait until the model may be copied by a newcomer.

        Parameters
        ----------
        last
            Whether it may be in any case: the peers that there were are lost.

        Raises
        ------
        ReplicaLeavingError
            If there are peers, who know more than a replica that leaves.
        """
        if self.begun:
            await self._decided.wait()
            if not (self.alone or last):
                raise self._refusal()

    def set_free(self) -> None:
        """Take note that nobody waits for the model any more."""
        self.free.set()

    def _refusal(self) -> ReplicaLeavingError:
        return ReplicaLeavingError(
            f"{self._name} leaves: its worker {self._address} is retired or closes. "
            "Nothing was taken of this work; give it to another replica."
        )

    # ---- leaving -----------------------------------------------------------------

    async def leave(self, exchange: Exchange, timeout: float) -> None:
        """Take no more work, learn and answer what is there, hand over, unsubscribe.

        Several may ask; it is done once. After a failure it can be tried again.

        Parameters
        ----------
        exchange
            Of the replica.
        timeout
            Seconds.

        Raises
        ------
        TensairTimeoutError
            If it takes longer: peers may lack some of what this replica learned.
        """
        if self._thread.has_ended:  # there is nothing that it could hand over
            self.begun = True
            return
        failed = (
            self._task is not None
            and self._task.done()
            and (self._task.cancelled() or self._task.exception() is not None)
        )
        if self._task is None or failed:
            self.begun = self._thread.leaving = True
            self._thread.refuse_early(self._refusal())  # the one before is refused
            self._task = asyncio.create_task(self._leave(exchange, timeout))
        done, _ = await asyncio.wait([self._task], timeout=timeout)
        if not done:
            raise self._late(timeout)
        self._task.result()
        # Its own steps, and those of others whose model it has taken over.
        steps = exchange.clock.version
        if self.alone and steps and not self.free.is_set():
            # The client may start another one that takes over the model, and says when
            # it has, or that there is nowhere to.
            try:
                async with asyncio.timeout(timeout):
                    await self.free.wait()
            except TimeoutError:
                logger.warning(
                    "%s leaves with its worker %s, and has no peers: what it learned "
                    "in %d steps goes with it",
                    self._name,
                    self._address,
                    steps,
                )

    async def _leave(self, exchange: Exchange, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout

        def left() -> float:
            return max(0.0, end - loop.time())

        try:
            if not await self._all_answered(LEARNING * timeout):
                refusal = self._refusal()
                async with asyncio.timeout(left()):
                    await self._thread.call(
                        lambda: self._thread.refuse_waiting(refusal)
                    )
                if not await self._all_answered(left()):
                    raise TimeoutError
            self.alone = not exchange.peers
            self._decided.set()
            async with asyncio.timeout(left()):
                await self._thread.call(exchange.publish_all)
            await exchange.flushed(left())
            async with asyncio.timeout(left()):
                await exchange.leave()
        except (TimeoutError, TensairTimeoutError) as error:
            raise self._late(timeout) from error
        finally:
            self._decided.set()  # after a failure, too: somebody may wait to copy

    async def _all_answered(self, timeout: float) -> bool:
        if not self.under_way:
            return True
        if self._answered is None:
            self._answered = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._answered], timeout=timeout)
        return bool(done)

    def _late(self, timeout: float) -> TensairTimeoutError:
        return TensairTimeoutError(
            f"{self._name} on {self._address} has not left within {timeout:g} s: its "
            "peers may lack some of what it learned. Raise tensair.timeouts.leave if a "
            "step, or bringing a gradient to the peers, takes that long."
        )
