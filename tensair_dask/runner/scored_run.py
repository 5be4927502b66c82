"""A run of a pipeline that predicts before it learns: scores, curves, results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensair_dask._common.files import check_writable
from tensair_dask.observe.figures import scores as score_figures
from tensair_dask.observe.figures.chart import Chart
from tensair_dask.observe.figures.page import save
from tensair_dask.observe.html_report import Table
from tensair_dask.prequential import MODEL, BinaryPrequential, Scores
from tensair_dask.runner import terminal
from tensair_dask.runner.batches_run import BatchesRun
from tensair_dask.runner.options import PATH, POSITIVE, option
from tensair_dask.runner.summary import number_or_none

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["ScoredRun"]


@dataclass
class ScoredRun(BatchesRun):
    """A run whose predictions are scored."""

    window: int = option(
        10_000, "How many {records} the sliding scores look back.", type=POSITIVE
    )
    save_to: Path | None = option(
        None,
        "Save the model and the scores: a folder, or a file ending in .pt.",
        "--save",
        type=PATH,
    )

    scores: BinaryPrequential | None = field(default=None, init=False, repr=False)
    times: Any = field(default=None, init=False, repr=False)
    axis: str = field(default="time", init=False, repr=False)

    def watch_scores(
        self, trainer: Any, reports: Any, scores: BinaryPrequential, times: np.ndarray
    ) -> contextlib.AbstractContextManager[None]:
        """Show a live line with the scores while the stream goes by; see `Run.watch`.

        Parameters
        ----------
        trainer, reports
            As in `Run.watch`.
        scores
            Where the predictions are scored.
        times
            When each record of the stream was made; the length says how many come.
        """
        self.scores, self.times = scores, times
        view = terminal.ScoresView(self, trainer, scores, times)
        return self.watch(trainer, reports, view)

    def check_files(self) -> None:
        """See that model and scores can be written as well, before the run."""
        super().check_files()
        if self.save_to is not None:
            for path in self._saved_as(self.save_to):
                check_writable(path, "--save")

    def _saved_as(self, path: Path) -> tuple[Path, Path]:
        """Give the file of the model, and that of the scores."""
        if path.suffix in (".pt", ".pth"):
            return path, path.with_suffix(".json")
        return path / "model.pt", path / "scores.json"

    async def save(self, trainer: Any, scores: BinaryPrequential) -> None:
        """Save the model's state and the scores, if the user has asked for it."""
        if self.save_to is None:
            return
        import torch

        self.scores = scores
        model, results = self._saved_as(self.save_to)
        model.parent.mkdir(parents=True, exist_ok=True)
        torch.save(await trainer.state_dict(), model)
        self.files |= {"model": str(model), "scores": str(results)}
        results.write_text(json.dumps(self.result(), indent=2) + "\n", "utf-8")

    def finish(
        self,
        scores: BinaryPrequential,
        times: np.ndarray,
        title: str,
        axis: str = "time",
    ) -> None:
        """Show the results; see `Run.show`.

        Parameters
        ----------
        scores
            Of all predictions of the run.
        times
            When each record of the stream was made: the time axis of the curves.
        title
            What is predicted.
        axis
            What ``times`` are.
        """
        self.scores, self.times = scores, times
        self.title, self.axis = title, axis
        self.show()

    @property
    def has_results(self) -> bool:
        """Whether anything was scored."""
        return self.scores is not None and self.scores.records > 0

    def draw(self) -> dict[str, str]:
        """Draw the curves; the files, by what they are."""
        assert self.scores is not None
        return save(self.scores_chart(self.scores.curves()), self.output, "curves")

    def scores_chart(self, curves: pd.DataFrame) -> Chart:
        """Describe scores over the time of the records."""
        assert self.scores is not None
        return score_figures.chart(
            curves,
            self.times[curves.index.to_numpy() - 1],
            self.title,
            f"scores over the last {self.scores.window:,} {self.records}",
            self.axis,
        )

    def result(self) -> dict[str, Any]:
        """Add the scores to what a script wants to know."""
        scores = self.scores
        assert scores is not None
        return super().result() | {
            "overall": _plain(scores.overall()),
            "recent": _plain(scores.recent()),
            "baselines": {
                name: _plain(each) for name, each in scores.baselines().items()
            },
            "batches": self.tally.batches,
        }

    def tables(self) -> list[Table]:
        """Scores of the model beside those of the baselines."""
        scores = self.scores
        if scores is None or not scores.records:
            return []
        rows = {MODEL: scores.overall(), f"{MODEL}, the newest": scores.recent()}
        rows |= scores.baselines()
        columns = [self.records, "accuracy", "log loss", "AUC"]
        note = (
            "Every prediction was scored before its record was learned. The newest: "
            f"the last {scores.window:,} {self.records}."
        )
        return [
            Table(
                "Scores",
                ["who", *columns],
                [
                    (name, one.records, one.accuracy, one.log_loss, one.auc)
                    for name, one in rows.items()
                ],
                note,
            )
        ]

    def figures(self) -> list[tuple[str, Chart]]:
        """Scores along the stream."""
        scores = self.scores
        if scores is None or not scores.records:
            return []
        title = f"Scores over the last {scores.window:,} {self.records}"
        return [(title, self.scores_chart(scores.curves()))]


def _plain(scores: Scores) -> dict[str, float | None]:
    """Scores as JSON has them: no NaN."""
    fields = dataclasses.asdict(scores)
    return {name: number_or_none(value) for name, value in fields.items()}
