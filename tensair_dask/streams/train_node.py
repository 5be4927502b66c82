"""`Stream.train`: every item is learned, and its report passed on."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streamz import Stream

from tensair_dask import config
from tensair_dask.streams.node import TrainerNode, form_of
from tensair_dask.streams.overload import Overload, WaitingRoom, check_overload
from tensair_dask.streams.record_form import Pairs
from tensair_dask.trainer import Trainer

__all__ = ["train"]


@Stream.register_api()
class train(TrainerNode):
    """Learn every item of a stream; emit one report for each.

    Parameters
    ----------
    upstream
        Gives ready arrays ``(x, y)``, or tuples of records ``(x, y)`` as
        ``Stream.partition(n)`` makes them: one of the two, which is decided once, by
        the node before, or by the first item that fits one of them only. What fits
        both until then is refused. Where there is no row in an item, such as in a
        window in which nothing came, it is passed over.
    trainer
        An open `Trainer`, which gets the items of the stream by this node only: a
        second one beside it is refused, and one that gets them by another route is
        said. Nodes of trainers that are closed are taken out of the stream.
    collate
        ``collate(item) -> (x, y)``, in place of telling the two forms apart.
    on_error
        What is done with a mini-batch that the model cannot take, besides the report
        with its ``error``. ``"dead-letter"``: it is kept in ``trainer.dead_letters``.
        ``"skip"``: it is only counted there. ``"raise"``: its error is raised to who
        feeds the stream.
    overload
        What is done when no replica has room. ``"block"``: the awaited ``emit`` waits,
        which slows the source down. For a source that cannot be slowed down, such as a
        live socket, ``emit`` waits for nothing, and mini-batches wait in the node.
        When they are too many, ``"drop-oldest"`` drops the one that has waited longest,
        and ``"sample"`` any of them: what is learned is a uniform sample of what came.
    waiting
        Mini-batches that may wait in the node, by default ``tensair.overload.waiting``;
        not with ``"block"``, where none do.

    Attributes
    ----------
    queued, dropped
        Mini-batches that wait in the node, and that were dropped there. All are
        counted in ``trainer.dropped``.

    Notes
    -----
    Emits a `Report` for each mini-batch in the order of completion, which differs
    between replicas; ``report.index`` is the order of submission.

    Back-pressure: the awaited ``emit`` returns when a replica has room. References in
    streamz ``metadata`` are held until the report has passed through the stream and all
    replicas have applied the gradient, so that a source commits its position only for
    what has been learned. They stay held where all replicas were lost. Those of what is
    dropped, or refused and not raised, are released: it is done with.

    An error is raised at an awaited ``emit``, or by ``trainer.drain``, once. A replica
    may refuse a mini-batch after its ``emit`` has returned; then the next one raises
    the error, and its own item is not taken. So is what a replica answers to one that
    waited in the node. References of what was refused, and of the item that was not
    taken, stay held: a source that commits by them reads both again.

    What is dropped gives no report and has no index. An overload is one of the
    ``trainer.events`` where it begins and where it ends. See `WaitingRoom` for how it
    is sampled.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], tuple[Any, Any]] | None = None,
        on_error: str = "dead-letter",
        overload: str = "block",
        waiting: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_overload(overload, waiting)
        if overload != "block":
            waiting = config.get("overload.waiting", waiting)
            check_overload(overload, waiting)
        self.read_by = collate
        super().__init__(upstream, trainer, on_error, **kwargs)
        self._collate = collate or Pairs(form_of(upstream))
        if overload != "block":
            self._overload = Overload(
                WaitingRoom(overload, int(waiting or 0)),
                self._feed_one,
                self._drop,
                self._fail,
                lambda text: self.intake.note(text),
                config.get_seconds("overload.calm"),
            )

    def _take(self, x: Any, metadata: Sequence[Any]) -> Awaitable[Any] | None:
        if self._overload is None:
            return self._feed(x, self._collate, metadata)
        self._overload.offer((self._value(x), metadata))
        return None

    def _feed_one(self, held: tuple[Any, Sequence[Any]]) -> Awaitable[Any] | None:
        item, metadata = held
        return self._feed(item, self._collate, metadata, is_value=True)

    def _drop(self, held: tuple[Any, Sequence[Any]]) -> None:
        _, metadata = held
        self.intake.dropped += 1
        settle = functools.partial(self.let_go, metadata)
        self.intake.pass_over(settle, metadata)
