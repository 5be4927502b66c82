"""`Stream.try_map`: a map that never lets a poison record through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from streamz import Stream

from tensair_dask._common.checks import allow, shown
from tensair_dask._common.held import Held
from tensair_dask._wording import in_words
from tensair_dask.coordinator.on_error import check_on_error
from tensair_dask.errors import RaisedError, RecordError
from tensair_dask.trainer import Trainer

__all__ = ["try_map"]

logger = logging.getLogger(__name__)


@Stream.register_api()
class try_map(Stream):
    """Apply a function to every record; refuse those for which it raises.

    Parameters
    ----------
    upstream
        Gives the records.
    function
        ``function(record, *args, **kwargs)``.
    trainer
        Its ``dead_letters`` take the records for which the function raises.
    on_error
        What is done with such a record. ``"dead-letter"``: it is kept in
        ``trainer.dead_letters``, with a `RecordError` whose cause is what the function
        raised. ``"skip"``: it is only counted there. ``"raise"``: the `RecordError` is
        raised at the ``emit``.

    Attributes
    ----------
    refused
        Records for which the function raised.

    Notes
    -----
    Unlike ``map``, nothing is raised into the nodes before it, such as a ``buffer``,
    which that would end. Use ``map`` where an error is a fault of the program.

    References of a refused record are released (not with ``"raise"``), so its source
    does not read it again. Behind ``flatten`` each record holds those of its whole
    chunk: that is done with when all its records are learned or refused.
    """

    str_list = ("function",)

    def __init__(
        self,
        upstream: Stream,
        function: Callable[..., Any],
        trainer: Trainer,
        *args: Any,
        on_error: str = "dead-letter",
        stream_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        allow(
            callable(function) and not isinstance(function, Trainer),
            f"function={shown(function)}",
            "give a function of a record first, and then the trainer: "
            "stream.try_map(function, trainer)",
        )
        allow(
            isinstance(trainer, Trainer),
            f"trainer={shown(trainer)}",
            "give an open tensair_dask.Trainer, which keeps the records for which the "
            "function raises: stream.try_map(function, trainer)",
        )
        self.function = function
        self.refused = 0
        self._trainer = Held(trainer)
        trainer.session.intake.holders.add(self._trainer)
        self._client_loop = trainer.client.loop.asyncio_loop
        self._on_error = check_on_error(on_error)
        self._args = args
        self._kwargs = kwargs
        super().__init__(upstream, stream_name=stream_name)

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Pass on what the function makes of a record, or refuse the record."""
        try:
            result = self.function(x, *self._args, **self._kwargs)
        except BaseException as error:
            return self._refuse(x, RaisedError.caught(error), metadata or [])
        return self._emit(result, metadata=metadata)

    def _refuse(self, record: Any, error: Exception, metadata: list[Any]) -> None:
        self.refused += 1
        name = getattr(self.function, "__name__", repr(self.function))
        kind, _, text = in_words(error).partition(": ")
        refusal = RecordError(f"{name} raised {kind} on a record: {text}")
        refusal.__cause__ = RaisedError.unless_fit(error)
        self._retain_refs(metadata)

        def refuse() -> None:
            trainer = self._trainer()
            if trainer is None:  # it was closed, and nobody reads its dead letters
                return
            trainer.session.intake.refuse_record(
                record,
                refusal,
                lambda: self._let_go(metadata),
                metadata,
                self._on_error,
            )

        if _is_running(self._client_loop):
            refuse()
        else:
            self._client_loop.call_soon_threadsafe(refuse)
        if self._on_error == "raise":
            raise refusal

    def _let_go(self, metadata: list[Any]) -> None:
        if self.loop is None or _is_running(self.loop.asyncio_loop):
            self._release_refs(metadata)
        else:
            self.loop.add_callback(self._release_refs, metadata)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
