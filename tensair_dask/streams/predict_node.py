"""`Stream.predict`: every item is answered by the model as it is now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streamz import Stream

from tensair_dask.batches.batch import refusing
from tensair_dask.batches.predictions import why_no_inputs
from tensair_dask.errors import (
    BatchError,
)
from tensair_dask.streams.node import (
    REFUSALS,
    OrderedNode,
    form_of,
    has_array,
    is_nothing,
    resolve_after,
)
from tensair_dask.streams.record_form import Inputs
from tensair_dask.trainer import Trainer

__all__ = ["predict"]


@Stream.register_api()
class predict(OrderedNode):
    """Predict for every item of a stream with the model as it is at that time.

    Parameters
    ----------
    upstream
        Gives ready inputs ``x`` (an array, or a tuple or dict of arrays), or tuples of
        single samples as ``Stream.partition(n)`` makes them: one of the two, as in
        `train`.
    trainer
        An open `Trainer`.
    collate
        ``collate(item) -> x``, in place of telling the two forms apart.
    details
        Whether to emit `Prediction` objects: besides the value, which version of the
        model it is from, how old that was, and which replica answered.
    on_error
        What is done with an item that the model cannot take. ``"raise"``: its typed
        error is raised at the awaited ``emit``, which ends most sources.
        ``"dead-letter"``: it is kept in ``trainer.dead_letters``. ``"skip"``: it is
        only counted there.

    Notes
    -----
    Emits what ``trainer.predict`` returns, in the order of the items. An item that the
    model cannot take is left out, whatever becomes of its error; those before and
    behind it are emitted in their order. An array without rows is answered by one, if
    the model can take it; a window in which nothing came (an empty tuple or list) is
    passed over. What the cluster cannot answer is raised in
    any case.

    Back-pressure: the awaited ``emit`` returns when the prediction has passed through
    the stream. Items that are emitted side by side are predicted side by side:
    ``tensair.predictions.max-in-flight`` for each replica, the others wait. A source
    that awaits each ``emit`` has one item under way: put ``partition`` before to
    predict many records at once.
    """

    learns = False

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], Any] | None = None,
        details: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(upstream, trainer, on_error=on_error, **kwargs)
        self._collate = collate or Inputs(form_of(upstream))
        self._details = details
        # Which zip puts what it gives beside what it gets.
        self._pairs: Stream | None = None

    def paired(self, pairs: Stream) -> None:
        """Say it where an item may have no prediction; else when one has none."""
        self._pairs = pairs
        if self._on_error != "raise" and not self._is_dead:
            self._say_of_pairs(f"with on_error={self._on_error!r} it leaves out")

    def _say_of_pairs(self, what: str) -> None:
        self.intake.say_once_soon(
            f"paired {id(self)}",
            f"{self._pairs} pairs the predictions of {self} with items of the same "
            f"stream, one after the other; {what} items that the model cannot take, "
            "and all predictions behind one stand beside another item. Let such items "
            "out before the stream parts, for example with .try_map(check, trainer); "
            "or predict in one place, .map_async(ask) with a coroutine ask(x) that "
            "returns (x, await trainer.predict(x)).",
        )

    def _passes_over(self, item: Any) -> bool:
        # An array without rows has an answer without rows; a window in which nothing
        # came holds no array.
        return is_nothing(item) and not has_array(item)

    def _take(self, x: Any, metadata: Sequence[Any]) -> Awaitable[Any] | None:
        return self._predict(self._value(x), metadata)

    async def _predict(self, item: Any, metadata: Sequence[Any]) -> None:
        before, room = self._queue_up()
        passed = self._passing[-1]
        try:
            try:
                if room is not None:
                    await asyncio.wait([room])
                prediction = await self._answer(item)
                if before is not None:  # replicas answer in any order
                    await asyncio.wait([before])
            except BaseException as error:
                self.let_go(metadata)
                if self._pairs is not None and isinstance(error, REFUSALS):
                    self._say_of_pairs("it has just left out one of the")
                if self._on_error == "raise" or not isinstance(error, REFUSALS):
                    raise
                self.intake.refuse_question(item, error, metadata, self._on_error)
                return
            rest = self._pass_on(prediction, metadata)
            if rest is not None:
                await rest
        finally:
            resolve_after(before, passed)

    async def _answer(self, item: Any) -> Any:
        with refusing():
            x = self._collate(item)
        if isinstance(self._collate, Inputs):
            self._check_inputs(x)
        return await self.trainer.session.inference.predict(x, self._details)

    def _check_inputs(self, x: Any) -> None:
        """Refuse pairs (x, y), of which y would be taken for an input of the model."""
        learned = self.intake.structures
        advice = (
            "If the items are pairs (x, y), put .pluck(0) before predict, and "
            ".map(lambda pair: pair[0]) before partition(n); if all of it is for the "
            "model, such as a mask, say so: predict(trainer, collate=lambda item: "
            "item), or collate=tensair_dask.batches.stack behind partition(n)"
        )
        if why := why_no_inputs(x, learned):
            raise BatchError(f"The item cannot be predicted: {why}. {advice}.")
        if isinstance(x, tuple) and not learned:
            self.intake.say_once(
                f"inputs {id(self)}",
                f"{self} takes the {len(x)} arrays of an item for arguments of the "
                f"model, in their order. {advice}.",
            )
