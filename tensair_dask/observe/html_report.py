"""A page that tells of a whole run: one file that opens without a network."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask

from tensair_dask._common.files import check_writable, write_atomically
from tensair_dask.errors import TensairError
from tensair_dask.observe import templates
from tensair_dask.observe.figures import run as run_figures
from tensair_dask.observe.figures.page import embed
from tensair_dask.observe.snapshot import replica_rows
from tensair_dask.observe.telemetry.events import KINDS
from tensair_dask.observe.wording import number

__all__ = ["Ending", "Page", "Table", "written"]

# What a reader needs to know to run it again.
PACKAGES = (
    *("tensair-dask", "torch", "dask", "distributed", "streamz"),
    *("bokeh", "numpy", "pandas"),
)

# Rows of a table, and characters of a value.
ROWS = 500
CHARACTERS = 300


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes
    ----------
    title
        Above it.
    columns
        Their names.
    rows
        Numbers are set to the right; None is a dash.
    note
        Below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    @property
    def headings(self) -> list[tuple[str, bool]]:
        """Name of each column, and whether there are numbers in it."""
        numeric = [
            any(isinstance(row[place], (int, float)) for row in self.rows)
            for place in range(len(self.columns))
        ]
        return list(zip(self.columns, numeric, strict=True))


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes
    ----------
    kind
        ``"finished"``, ``"interrupted"`` or ``"failed"``.
    text
        For people.
    """

    kind: str
    text: str

    @classmethod
    def of(cls, run: Any, error: BaseException | None) -> Ending:
        """Find it from a run and what it raised."""
        received = run.interrupts.received
        if error is None and received is None:
            return cls("finished", "Finished.")
        if error is None:
            return cls(
                "interrupted",
                f"Stopped with {_named_signal(received)}; everything that had been "
                "emitted by then was learned.",
            )
        if received is not None or not isinstance(error, Exception):
            return cls(
                "interrupted",
                f"Interrupted ({_named_signal(received)}); what had been emitted and "
                "not learned was given up.",
            )
        return cls("failed", f"Failed with {type(error).__name__}: {_short(error)}")


def _named_signal(received: Any) -> str:
    name = "SIGINT" if received is None else received.name
    return "Ctrl-C" if name == "SIGINT" else name


@contextlib.contextmanager
def written(run: Any) -> Iterator[None]:
    """Write the page of a run when this block ends, however it ends.

    Parameters
    ----------
    run
        A `Run`; nothing is written if its ``report`` is None.

    Raises
    ------
    ConfigurationError
        Before the block, if the file cannot be written.
    TensairError
        After it, for the same reason.
    """
    if run.report is None:
        yield
        return
    check_writable(run.report, "--report")
    began = time.time()
    try:
        yield
    except BaseException as error:
        try:
            _write(run, Ending.of(run, error), began)
        except TensairError as other:
            run.say(str(other))  # it is the error of the run that ends the program
        raise
    _write(run, Ending.of(run, None), began)


def _write(run: Any, ending: Ending, began: float) -> None:
    try:
        page = Page(run, ending, began, time.time())
        write_atomically(Path(run.report), page.html())
    except Exception as error:
        raise TensairError(
            f"The report could not be written to {run.report}: {type(error).__name__}: "
            f"{_short(error)}"
        ) from error
    run.say_file("report", run.report)


class Page:
    """The page of one run.

    Parameters
    ----------
    run
        A `Run` that is over.
    ending
        How.
    began, ended
        Seconds since the epoch.
    """

    def __init__(self, run: Any, ending: Ending, began: float, ended: float) -> None:
        self._run = run
        self._trainer = run.trainer
        self._ending = ending
        self._began = began
        self._ended = ended

    def html(self) -> str:
        """The whole page."""
        run, trainer = self._run, self._trainer
        charts = []
        if trainer is not None:
            metrics = trainer.session.recording.curves.metrics
            charts.append(run_figures.chart(trainer.curves, trainer.events, metrics))
        figures = run.figures()
        library, embedded, script = embed([*charts, *(chart for _, chart in figures)])
        shown = embedded[len(charts) :]
        return templates.render(
            "tensair_run.html.j2",
            title=run.title or run.command,
            command=run.command,
            ending=self._ending,
            began=_utc(self._began),
            seconds=number(self._ended - self._began),
            facts=self._facts(),
            results=run.tables(),
            figures=[
                (name, each) for (name, _), each in zip(figures, shown, strict=True)
            ],
            training=embedded[0] if charts else None,
            library=library,
            script=script,
            tables=[table for table in self._tables() if table.rows],
            configuration=self._configuration(),
            number=number,
            most=ROWS,
        )

    def _facts(self) -> list[tuple[str, str]]:
        """What is worth knowing first: name and value."""
        tally, records = self._run.tally, self._run.records
        if not tally.records:
            return [("learned", "nothing")]
        predicted = tally.batches - tally.learned
        dropped = self._trainer.dropped if self._trainer is not None else 0
        return [
            (records, number(tally.records)),
            (f"{records} per second", number(tally.rate, 0)),
            ("mini-batches learned", number(tally.learned)),
            *(
                [("mini-batches only predicted", number(predicted))]
                if predicted
                else []
            ),
            ("mini-batches refused", number(tally.refused.total())),
            *(
                [("records refused", number(tally.refused_records))]
                if tally.refused_records
                else []
            ),
            *([("mini-batches dropped", number(dropped))] if dropped else []),
            ("seconds of streaming", number(tally.seconds)),
        ]

    # ---- tables ---------------------------------------------------------------------

    def _tables(self) -> Iterable[Table]:
        trainer = self._trainer
        if trainer is None:
            return
        yield self._replicas()
        yield self._dead_letters()
        yield Table(
            "Events",
            ["time (UTC)", "kind", "what happened"],
            [
                (_utc(each.time, "milliseconds"), KINDS[each.kind], each.text)
                for each in trainer.session.events.log
            ],
        )

    def _replicas(self) -> Table:
        rows = replica_rows(self._trainer)
        return Table(
            "Replicas",
            [
                *("replica", "worker", "device", "at the end", "mini-batches"),
                *("samples", "staleness", "MB sent", "MB received"),
            ],
            [
                (
                    *(row.name, row.address, row.device, row.state),
                    *(row.steps, row.samples, row.staleness),
                    *(_megabytes(row.sent), _megabytes(row.received)),
                )
                for row in rows
            ],
            "Staleness: gradients, mean over the newest messages. What a lost replica "
            "has sent is not known.",
        )

    def _dead_letters(self) -> Table:
        letters = self._trainer.dead_letters
        newest: dict[str, Any] = {}
        kept: Counter[str] = Counter()
        for letter in letters:
            name = type(letter.error).__name__
            newest[name] = letter
            kept[name] += 1
        # The run has counted all, if they came through its stream.
        counts = kept | self._run.tally.refused
        note = ""
        if letters.total > len(letters):
            note = f"Of {letters.total:,}, the newest {len(letters):,} were kept."
        return Table(
            "Dead letters",
            ["error", "mini-batches", "the newest", "why"],
            [
                (name, counts[name], f"number {letter.index:,}", _short(letter.error))
                for name, letter in newest.items()
            ],
            note,
        )

    # ---- configuration --------------------------------------------------------------

    def _configuration(self) -> list[Table]:
        columns = ["name", "value"]
        found = [Table("Options of the command", columns, self._options())]
        if self._trainer is not None:
            arguments = _arguments(self._trainer)
            found.append(Table("Arguments of the trainer", columns, arguments))
        settings = list(_flat("tensair", dask.config.get("tensair", {})))
        found.append(Table("Configuration of Dask, tensair", columns, settings))
        found.append(Table("Versions", columns, _versions()))
        return found

    def _options(self) -> list[tuple[str, str]]:
        run = self._run
        return [
            (field.name, _value(getattr(run, field.name)))
            for field in dataclasses.fields(run)
            if field.init
        ]


def _arguments(trainer: Any) -> list[tuple[str, str]]:
    session = trainer.session
    recipe, settings = session.options.recipe, session.options.exchange
    optimizer = recipe.optimizer
    given = {
        "name": trainer.name,
        "run id": trainer.run_id,
        "model": recipe.model,
        "loss": recipe.loss,
        **(
            {f"optimizer, {name}": each for name, each in optimizer.items()}
            if isinstance(optimizer, Mapping)
            else {"optimizer": optimizer}
        ),
        "schedule": recipe.schedule,
        "clip_gradients": recipe.clipping
        and f"{recipe.clipping.kind} {recipe.clipping.limit:g}",
        "metrics": ", ".join(recipe.metrics) or "none",
        "replicas": session.membership.wanted,
        "share": trainer.share or settings.share,
        "compression": settings.compression,
        "staleness": f"{settings.staleness:g} s",
        "share of time": settings.share_of_time,
        "device": session.options.replicas.device,
        "seed": recipe.seed,
        "keep_predictions": recipe.keep_predictions,
    }
    return [(name, _value(value)) for name, value in given.items()]


def _value(value: Any) -> str:
    if value is None:
        return "not given"
    if callable(value):
        return _short(_called(value))
    return _short(value)


def _called(function: Callable[..., Any]) -> str:
    """Name of what builds something, with the arguments that it was given."""
    if isinstance(function, functools.partial):
        arguments = [repr(each) for each in function.args]
        arguments += [f"{name}={each!r}" for name, each in function.keywords.items()]
        return f"{_called(function.func)}({', '.join(arguments)})"
    return getattr(function, "__qualname__", None) or repr(function)


def _flat(prefix: str, tree: Any) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(f"{prefix}.{name}", value)
    else:
        yield prefix, _value(tree)


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    found.append(("platform", platform.platform()))
    found.append(("CPUs", str(os.cpu_count())))
    return found


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _utc(moment: float, precision: str = "seconds") -> str:
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return when.replace(tzinfo=None).isoformat(" ", precision)
