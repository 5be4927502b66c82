"""streamz nodes: `Stream.train` and `Stream.predict`.

Importing this module adds the methods to `streamz.Stream`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from streamz import Stream

from tensair_dask.batches import as_pair, stack
from tensair_dask.errors import BatchError, ClusterError
from tensair_dask.reports import Report
from tensair_dask.trainer import Trainer

__all__ = ["predict", "train"]


class _TrainerNode(Stream):
    """What both nodes share: two event loops, and references held to the end.

    The trainer lives on its client's event loop, the stream on its own; most often
    they are one and the same, and nothing is handed over.
    """

    def __init__(self, upstream: Stream, trainer: Trainer, **kwargs: Any) -> None:
        client = trainer.client
        if kwargs.get("loop") is None and upstream.loop is None:
            kwargs["loop"] = client.loop
        if kwargs.get("asynchronous") is None and upstream.asynchronous is None:
            kwargs["asynchronous"] = client.asynchronous or None
        super().__init__(upstream, **kwargs)
        self.trainer = trainer
        # Streams hold what is downstream of them only weakly: without this, a node
        # whose reports nobody reads would vanish, and nothing be learned.
        trainer.nodes.add(self)
        self._client_loop = client.loop.asyncio_loop

    def destroy(self, streams: Any = None) -> None:
        """Take the node out of its stream."""
        super().destroy(streams)
        self.trainer.nodes.discard(self)

    @property
    def _on_client_loop(self) -> bool:
        return self.loop.asyncio_loop is self._client_loop

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Take an item; the result is awaited where no replica has room."""
        metadata = metadata or []
        self._retain_refs(metadata)
        if self._on_client_loop:
            return self._take(x, metadata)
        work = asyncio.run_coroutine_threadsafe(
            self._take_from_elsewhere(x, metadata), self._client_loop
        )
        return asyncio.wrap_future(work, loop=self.loop.asyncio_loop)

    async def _take_from_elsewhere(self, x: Any, metadata: list[Any]) -> None:
        rest = self._take(x, metadata)
        if rest is not None:
            await rest

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        raise NotImplementedError

    def _pass_on(self, result: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        """Emit downstream, on the stream's loop, then let go of the references."""
        if not self._on_client_loop:
            work = asyncio.run_coroutine_threadsafe(
                self._emit_all(result, metadata), self.loop.asyncio_loop
            )
            return asyncio.wrap_future(work, loop=self._client_loop)
        try:
            rest = self._emit(result, metadata=metadata)
        except BaseException:
            self._release_refs(metadata)
            raise
        if rest:
            return self._finish(rest, metadata)
        self._release_refs(metadata)
        return None

    async def _emit_all(self, result: Any, metadata: list[Any]) -> None:
        try:
            await _all(self._emit(result, metadata=metadata))
        finally:
            self._release_refs(metadata)

    async def _finish(self, rest: list[Any], metadata: list[Any]) -> None:
        try:
            await _all(rest)
        finally:
            self._release_refs(metadata)


async def _all(awaitables: list[Any]) -> None:
    for awaitable in awaitables:
        await awaitable


@Stream.register_api()
class train(_TrainerNode):
    """Learn every item of a stream; emit one report for each.

    Parameters
    ----------
    upstream
        Gives ready arrays ``(x, y)``, or tuples of records ``(x, y)`` as
        ``Stream.partition(n)`` makes them.
    trainer
        An open `Trainer`.
    collate
        ``collate(item) -> (x, y)``, in place of telling the two forms apart.

    Notes
    -----
    Emits a `Report` for each mini-batch in the order of completion, which differs
    between replicas; ``report.index`` is the order of submission.

    Back-pressure: the awaited ``emit`` returns when a replica has room. References in
    streamz ``metadata`` are held until the report has passed through the stream, so
    that a source commits its position only for what has been learned. They stay held
    where all replicas were lost.

    A mini-batch that the model cannot take gives a report with its ``error``, and
    goes to ``trainer.dead_letters``; the stream goes on.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], tuple[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(upstream, trainer, **kwargs)
        self._collate = collate or as_pair

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        def deliver(report: Report) -> Awaitable[Any] | None:
            # What no replica was there to learn keeps its references.
            kept = isinstance(report.error, ClusterError)
            return self._pass_on(report, [] if kept else metadata)

        return self.trainer.feed(x, self._collate, deliver)


@Stream.register_api()
class predict(_TrainerNode):
    """Predict for every item of a stream with the model as it is at that time.

    Parameters
    ----------
    upstream
        Gives ready inputs ``x`` (an array, or a tuple or dict of arrays), or tuples of
        single samples as ``Stream.partition(n)`` makes them.
    trainer
        An open `Trainer`.
    collate
        ``collate(item) -> x``, in place of telling the two forms apart.
    details
        Whether to emit `Prediction` objects: besides the value, which version of the
        model it is from, how old that was, and which replica answered.

    Notes
    -----
    Emits what ``trainer.predict`` returns, in the order of the items. An item that the
    model cannot take raises its typed error at the awaited ``emit``; those before and
    behind it are emitted in their order.

    Back-pressure: the awaited ``emit`` returns when the prediction has passed through
    the stream. Items that are emitted side by side are predicted side by side:
    ``tensair.predictions.max-in-flight`` for each replica, the others wait. A source
    that awaits each ``emit`` has one item under way: put ``partition`` before to
    predict many records at once.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], Any] | None = None,
        details: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(upstream, trainer, **kwargs)
        self._collate = collate or _as_inputs
        self._details = details
        # One for each item under way, in their order; resolved when it has passed.
        self._passing: deque[asyncio.Future[None]] = deque()

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        return self._predict(x, metadata)

    async def _predict(self, item: Any, metadata: list[Any]) -> None:
        before, room = self._queue_up()
        passed = self._passing[-1]
        try:
            try:
                if room is not None:
                    await asyncio.wait([room])
                x = self._collate(item)
                prediction = await self.trainer._predict(x, self._details)
                if before is not None:  # replicas answer in any order
                    await asyncio.wait([before])
            except BaseException:
                self._release_refs(metadata)
                raise
            rest = self._pass_on(prediction, metadata)
            if rest is not None:
                await rest
        finally:
            _resolve_after(before, passed)

    def _queue_up(
        self,
    ) -> tuple[asyncio.Future[None] | None, asyncio.Future[None] | None]:
        """Take a place behind all items under way.

        Returns
        -------
        before, room
            What resolves when the item before has passed, and when there is room for
            this one; None where there is nothing to wait for.
        """
        passing = self._passing
        while passing and passing[0].done():
            passing.popleft()
        before = passing[-1] if passing else None
        most = self.trainer._most_predictions
        room = passing[-most] if len(passing) >= most else None
        passing.append(asyncio.get_running_loop().create_future())
        return before, room


def _resolve_after(
    before: asyncio.Future[None] | None, passed: asyncio.Future[None]
) -> None:
    """Let the next item pass, but not before those in front of one that failed."""

    def resolve(_: object) -> None:
        if not passed.done():
            passed.set_result(None)

    if before is None:
        resolve(None)
    else:
        before.add_done_callback(resolve)


def _as_inputs(item: Any) -> Any:
    """Tell a tuple of samples from ready inputs; see `predict`."""
    if isinstance(item, tuple) and item:
        first = item[0]
        ready = hasattr(first, "shape") and len(first.shape) > 1
        if not ready:
            return stack(item)
    if item is None or isinstance(item, (str, bytes)):
        raise BatchError(
            f"The stream gave a {type(item).__name__}; an array, or a tuple or dict of "
            "arrays, is needed. Put .map(parse) before, or give collate=."
        )
    return item
