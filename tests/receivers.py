"""Who receives the reports of mini-batches that a test gives without a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensair_dask.reports import Report

__all__ = ["Hearer"]


class Hearer:
    """Receives reports by a function; with a second one it is told to let go, too."""

    def __init__(
        self,
        deliver: Callable[[Report], Any] = lambda report: None,
        release: Callable[[], Any] | None = None,
    ) -> None:
        self._deliver = deliver
        self._release = release
        self.is_stream = release is not None

    def deliver(self, report: Report, metadata: Sequence[Any]) -> Any:
        return self._deliver(report)

    def let_go(self, metadata: Sequence[Any]) -> None:
        assert self._release is not None
        self._release()
