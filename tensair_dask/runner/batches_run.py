"""A run over mini-batches of one size, whose course is drawn."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensair_dask._common.files import check_folder
from tensair_dask.runner.options import FOLDER, POSITIVE, option
from tensair_dask.runner.run import Run

__all__ = ["BatchesRun"]


@dataclass
class BatchesRun(Run):
    """A run over mini-batches ``(x, y)`` of one size, whose course is drawn."""

    batch_size: int = option(64, "How many {records} a mini-batch has.", type=POSITIVE)
    output: Path = option(Path("tensair-output"), "Folder for the plots.", type=FOLDER)

    async def feed_batches(
        self,
        source: Any,
        batches: Iterable[tuple[Any, Any]] | AsyncIterable[tuple[Any, Any]],
    ) -> None:
        """Emit mini-batches ``(x, y)``; the length of ``y`` counts the records."""
        await self.feed(source, batches, lambda batch: len(batch[1]))

    def batches_of(self, records: int) -> int:
        """How many mini-batches so many records make."""
        return -(-records // self.batch_size)

    def check_files(self) -> None:
        """See that the plots can be written, before the run."""
        super().check_files()
        check_folder(self.output, "--output")
