"""A run whose model may stop learning: modes, detectors, and what they were worth."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import click
import pandas as pd

from tensair_dask.drift.modes import MODES
from tensair_dask.drift.policies import POLICIES
from tensair_dask.drift.run_record import Alarms, Detections, Record
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures import drift as drift_figures
from tensair_dask.observe.figures.chart import Chart
from tensair_dask.observe.figures.drift import Course
from tensair_dask.observe.figures.page import save
from tensair_dask.observe.html_report import Table
from tensair_dask.prequential import MAJORITY, MODEL, Scores
from tensair_dask.runner.batches_run import BatchesRun
from tensair_dask.runner.options import FROM_ZERO, option
from tensair_dask.runner.scored_run import ScoredRun
from tensair_dask.runner.summary import number_or_none

if TYPE_CHECKING:
    from tensair_dask.reports import Report

__all__ = ["DETECTORS", "ON_DRIFT", "AdaptiveRun", "ModesRun", "Side", "watch_for"]

DETECTORS = ("optwin", "adwin", "page-hinkley", "ddm", "kswin")

ON_DRIFT = "What is done when a drift is detected, beside learning again."


@dataclass
class Side:
    """One trainer of a run, and how it did.

    Attributes
    ----------
    mode
        What the user asked for.
    trainer, reports, scores
        Of the pipeline; scores are None where it has none of its own.
    record
        Of its reports.
    alarms
        Gives the mini-batches at which it has detected drift.
    """

    mode: str
    trainer: Any
    reports: Any
    scores: Any
    record: Record
    alarms: Alarms


@dataclass
class ModesRun(BatchesRun):
    """A run whose model may stop learning, and begin again when a drift is detected.

    Attributes
    ----------
    sides
        The trainers that learn the stream; most runs have one.
    """

    # What a warm-up is of.
    warmed: ClassVar[str] = "--mode never"

    mode: str = option(
        "always",
        "When to learn: auto stops when the loss has settled, and begins again when a "
        "drift is detected.",
        type=click.Choice(MODES),
    )
    detector: str | None = option(
        None,
        "What finds drift.",
        type=click.Choice(DETECTORS),
        shown="in mode auto: optwin",
    )
    on_drift: str = option("train", ON_DRIFT, type=click.Choice(POLICIES))

    sides: list[Side] = field(default_factory=list, init=False, repr=False)

    @property
    def modes(self) -> list[str]:
        """The modes to run."""
        return [self.mode]

    @property
    def stops(self) -> int:
        """The mini-batch from which on mode never learns nothing."""
        raise NotImplementedError

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect; see `Run.without_effect`."""
        if "warm_up" in given and "never" not in self.modes:
            return (
                f"--warm-up was given in mode {self.mode}, which has none: give "
                f"{self.warmed}, or leave it out."
            )
        return super().without_effect(given)

    def begins_in(self, mode: str) -> str:
        """Mode to make the trainer in: never begins with something to predict with."""
        if mode == "never" and self.continuation.begins < self.stops:
            return "always"
        return mode

    def follow(self, mode: str, pipeline: Any, records: int) -> None:
        """Record what becomes of a pipeline; call it for each, the first one first.

        Parameters
        ----------
        mode
            What the user asked for.
        pipeline
            Has a trainer, the stream of its reports, and perhaps scores.
        records
            How many come.
        """
        trainer, number = pipeline.trainer, self.continuation.number
        record = Record(self.batches_of(records))
        alarms = Alarms(lambda: map(number, trainer.drifts["index"]))
        self.continuation.keep("record", record)
        self.continuation.keep("alarms", alarms)
        pipeline.reports.sink(record.add)
        scores = getattr(pipeline, "scores", None)
        self.sides.append(Side(mode, trainer, pipeline.reports, scores, record, alarms))

    async def stopping(self, batches: Iterable[Any]) -> AsyncIterator[Any]:
        """Give the mini-batches; let mode never begin when the warm-up is over.

        The first one is that with which the run goes on.
        """
        learning = [side for side in self.sides if side.mode == "never"]
        for index, batch in enumerate(batches, self.continuation.begins):
            # A run may go on from a checkpoint behind the warm-up.
            while learning and index >= self.stops:
                await learning.pop().trainer.set_mode("never")
            yield batch

    async def drain(self) -> None:
        """Drain all trainers."""
        for side in self.sides:
            await side.trainer.drain()


def watch_for(detector: str | None) -> str | Callable[[Report], float]:
    """What a detector watches: DDM takes errors only, the others the loss."""
    return _share_of_errors if detector == "ddm" else "loss"


def _share_of_errors(report: Report) -> float:
    return 1.0 - report.metrics["accuracy"]


@dataclass
class AdaptiveRun(ModesRun, ScoredRun):
    """A run that is scored, in one of the modes, or in all of them side by side."""

    warmed: ClassVar[str] = "--mode never or --compare"

    warm_up: int = option(
        27_000,
        "How many {records} mode never learns before it stops for ever.",
        type=FROM_ZERO,
    )
    compare: bool = option(
        False, "Learn the same stream in all three modes, side by side."
    )

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect; see `Run.without_effect`."""
        if self.compare and "mode" in given:
            return (
                f"--compare and --mode {self.mode} were given; --compare learns in all "
                "modes: leave one of the two out."
            )
        return super().without_effect(given)

    async def go_on(self, name: str, **options: Any) -> None:
        """Look where the stream goes on; see `Run.go_on`."""
        if self.compare and self.checkpoint is not None:
            raise ConfigurationError(
                "--checkpoint and --compare were given; checkpoints are of one "
                "trainer: leave one of the two out, and choose a --mode."
            )
        await super().go_on(name, **options)

    @property
    def modes(self) -> list[str]:
        """The modes to run: one, or all."""
        return list(MODES_COMPARED) if self.compare else super().modes

    @property
    def stops(self) -> int:
        """The mini-batch from which on mode never learns nothing."""
        return self.batches_of(self.warm_up)

    def detector_in(self, mode: str) -> str | None:
        """Give the detector of a trainer; modes are compared, so only auto has one."""
        return None if self.compare and mode != "auto" else self.detector

    def on_drift_in(self, mode: str) -> str:
        """Say what a trainer does on drift; nothing where it has no detector."""
        return "train" if self.compare and mode != "auto" else self.on_drift

    # ---- results --------------------------------------------------------------------

    @property
    def _adapting(self) -> list[Side]:
        return [
            side
            for side in self.sides
            if side.mode == "auto" or side.alarms() or self.detector_in(side.mode)
        ]

    def after_warm_up(self, side: Side) -> Scores:
        """Score what came after the warm-up, where the modes differ."""
        return side.scores.overall(self.warm_up if self.compare else 0)

    def worth(self) -> Table:
        """What each mode was worth."""
        rows = []
        for side in self.sides:
            one = self.after_warm_up(side)
            share = f"{side.record.share:.0%}"
            drifts: Any = len(side.alarms()) if side in self._adapting else None
            values = (one.accuracy, one.log_loss, one.auc)
            rows.append((side.mode, *values, share, drifts))
        note = ""
        if self.compare:
            note = (
                f"Scores of what came after the first {self.warm_up:,} {self.records}, "
                "which all modes learned."
            )
        names = ["mode", "accuracy", "log loss", "AUC", "learned", "drifts"]
        return Table("What adaptation was worth", names, rows, note)

    def draw(self) -> dict[str, str]:
        """Add when each model learned, and how the modes compare."""
        files = super().draw()
        for side in self._adapting:
            chart = drift_figures.chart(
                self.course(side), self.title, self.outcome(side)
            )
            made = save(chart, self.output, f"drift-{side.mode}")
            files |= {f"drift, {kind}": path for kind, path in made.items()}
        if self.compare:
            made = save(self.scores_chart(self.curves()), self.output, "modes")
            files |= {f"modes, {kind}": path for kind, path in made.items()}
        return files

    def course(self, side: Side) -> Course:
        """What is drawn of one trainer: nobody knows where this stream truly drifts."""
        return Course(side.record.frame(), alarms=side.alarms())

    def outcome(self, side: Side) -> str:
        """Say in one line what came of it."""
        found = len(Detections({}, side.alarms()).false)
        return (
            f"mode {side.mode}, {side.record.share:.0%} of the mini-batches learned; "
            f"{found:,} drift{'' if found == 1 else 's'} detected"
        )

    def curves(self) -> pd.DataFrame:
        """Windowed scores of each mode, and of the majority."""
        made = {side.mode: side.scores.curves() for side in self.sides}
        first = next(iter(made.values()))
        columns = {}
        for score in ("accuracy", "AUC", "log loss"):
            for mode, curves in made.items():
                columns[score, mode] = curves[score, MODEL]
            if (score, MAJORITY) in first:
                columns[score, MAJORITY] = first[score, MAJORITY]
        return pd.DataFrame(columns)

    def result(self) -> dict[str, Any]:
        """Add the modes to what a script wants to know."""
        return super().result() | {
            "modes": {side.mode: self._result_of(side) for side in self.sides}
        }

    def _result_of(self, side: Side) -> dict[str, Any]:
        scores, record = self.after_warm_up(side), side.record
        return {
            "accuracy": number_or_none(scores.accuracy),
            "log_loss": number_or_none(scores.log_loss),
            "auc": number_or_none(scores.auc),
            "learned": record.learned,
            "predicted": record.predicted,
            "share_learned": record.share,
            "drifts": side.alarms(),
        }

    def tables(self) -> list[Table]:
        """Add what the modes were worth."""
        tables = super().tables()
        if tables and (self.compare or self._adapting):
            tables.append(self.worth())
        return tables

    def figures(self) -> list[tuple[str, Chart]]:
        """Add when each model learned to the page of the run."""
        figures = super().figures()
        if not figures:
            return figures
        for side in self._adapting:
            chart = drift_figures.chart(self.course(side))
            figures.append((f"Mode {side.mode}: {self.outcome(side)}", chart))
        if self.compare:
            figures.append(("The modes side by side", self.scores_chart(self.curves())))
        return figures


# In the order of the table: what all else is measured by comes first.
MODES_COMPARED = ("always", "auto", "never")
