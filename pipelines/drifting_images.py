"""Learn images whose labels are swapped now and then, and notice it without help.

A convolutional network learns images from a stream. When its loss has settled it stops
learning and only predicts; a detector watches the loss. Every so often two labels are
swapped: the detector finds that the stream has drifted, the network learns again, and
goes back to predicting. That costs a part of the work of learning all the time.

Run it with ``tensair run drifting-images``, on the digits of scikit-learn, or on images
of your own with ``--data FOLDER``. To start a pipeline of your own, copy this file:
`SwappedLabels` becomes your source, `ImageModel` your model.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from distributed import Client
from rich import box, table
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text
from streamz import Stream
from torch import nn

import tensair_dask as ta
from tensair_dask._common.files import check_folder
from tensair_dask.adaptation import (
    POLICIES,
    TRAINING,
    Convergence,
    RaiseLearningRate,
    Reinitialise,
)
from tensair_dask.drift.run_record import Alarms, Detections, Record
from tensair_dask.observe.figures import drift as drift_figures
from tensair_dask.observe.figures.drift import Course
from tensair_dask.observe.html_report import Table
from tensair_dask.runner import terminal
from tensair_dask.runner.images import NAMES, Images, ImageSet, load
from tensair_dask.runner.modes_run import ON_DRIFT, ModesRun
from tensair_dask.runner.options import (
    FOLDER,
    FROM_ZERO,
    PATH,
    POSITIVE,
    Number,
    option,
)
from tensair_dask.runner.resume import Continuation
from tensair_dask.runner.run import command

# The pairs that TensAIR's demonstration swaps, in its order; what comes after is drawn.
PAIRS = [(3, 7), (2, 8), (5, 1), (0, 9), (4, 2)]

# Answers to drift that need to know the model: its last layer, which swapped labels
# make wrong while the features stay right; and a rate that it can bear (five times its
# own, the default, makes it diverge).
POLICY = {
    "reinitialise": Reinitialise("head"),
    "raise-learning-rate": RaiseLearningRate(factor=2, batches=100),
}
ANSWERS = (*POLICIES, *(POLICY.keys() - POLICIES.keys()))

FIRST, MAJORITY, LAST = "first labels, never updated", "majority", "last label"


# -------------------------------------------------------------------------- the stream


class Swap(NamedTuple):
    """From mini-batch ``place`` on, two labels stand for each other."""

    place: int
    one: int
    other: int

    @property
    def sign(self) -> str:
        """In few letters."""
        return f"{self.one} ↔ {self.other}"


class SwappedLabels:
    """A stream of images without end, whose labels are swapped in pairs.

    Parameters
    ----------
    images
        Drawn from at random, again and again.
    classes
        How many labels there are.
    swaps
        How many there are.
    every
        Mini-batches between two of them, before the first, and after the last.
    batch_size
        Images in a mini-batch.
    seed
        Of the images drawn, and of the pairs beyond the first five.
    limit
        Images after which the stream ends; None for what ``swaps`` and ``every`` ask.

    Attributes
    ----------
    swaps
        What really happens, and when. Those that the limit cuts off are left out.
    emitted
        Mini-batches that somebody has taken.
    """

    def __init__(
        self,
        images: Images,
        classes: int,
        *,
        swaps: int = 4,
        every: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        if classes < 2:
            raise ta.errors.ConfigurationError(
                f"classes={classes} was given; two labels are needed to swap them."
            )
        if not len(images):
            raise ta.errors.ConfigurationError(
                "There are no images to draw from; give a set that has some."
            )
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._records = (swaps + 1) * every * batch_size
        if limit is not None:
            self._records = min(self._records, limit)
        dice = np.random.default_rng([seed, 1])
        listed = [pair for pair in PAIRS if max(pair) < classes]
        drawn = [dice.choice(classes, 2, replace=False) for _ in range(swaps)]
        pairs = [*listed, *((int(one), int(other)) for one, other in drawn)]
        places = range(every, min((swaps + 1) * every, len(self)), every)
        self.swaps = [
            Swap(place, *pair) for place, pair in zip(places, pairs, strict=False)
        ]
        self._meanings = [np.arange(classes)]
        for _, one, other in self.swaps:
            swapped = np.arange(classes)
            swapped[[one, other]] = other, one
            self._meanings.append(swapped[self._meanings[-1]])
        self.emitted = 0
        self._right = dict.fromkeys((FIRST, MAJORITY, LAST), 0)
        self._counts = np.zeros(classes, dtype=np.int64)
        self._last = -1

    def __len__(self) -> int:
        """Count the mini-batches."""
        return -(-self._records // self._batch_size)

    @property
    def records(self) -> int:
        """How many images come."""
        return self._records

    def labels(self, truth: np.ndarray, index: int) -> np.ndarray:
        """Give the labels that images have at a mini-batch.

        Parameters
        ----------
        truth
            What is on the images: the labels before the first swap.
        index
            Number of the mini-batch, from 0.
        """
        done = sum(swap.place <= index for swap in self.swaps)
        return self._meanings[done][truth]

    def batches(self, begin: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mini-batches ``(x, y)`` in order from one on; the last one may be smaller."""
        dice = np.random.default_rng([self._seed, 0])
        for index in range(len(self)):
            size = min(self._batch_size, self._records - index * self._batch_size)
            rows = dice.integers(len(self._images), size=size)
            truth = self._images.labels[rows]
            y = self.labels(truth, index)
            if index >= begin:
                yield self._images.inputs(rows), y
            self._count(truth, y)

    def _count(self, truth: np.ndarray, y: np.ndarray) -> None:
        """Score guesses that need no model, each from what came before."""
        self.emitted += 1
        before = np.concatenate([[self._last], y[:-1]])
        self._right[FIRST] += int((y == truth).sum())
        self._right[LAST] += int((y == before).sum())
        self._right[MAJORITY] += int((y == self._counts.argmax()).sum())
        self._counts += np.bincount(y, minlength=len(self._counts))
        self._last = int(y[-1])

    def baselines(self) -> dict[str, float]:
        """Accuracy, on what was emitted, of guesses that need no model.

        Returns
        -------
        name to accuracy
            ``"first labels, never updated"`` is what a model would reach at best that
            learned everything before the first swap and nothing afterwards;
            ``"majority"`` guesses the label that was most frequent before the
            mini-batch, ``"last label"`` that of the image before.
        """
        total = max(int(self._counts.sum()), 1)
        return {name: right / total for name, right in self._right.items()}

    def changes(self) -> dict[int, str]:
        """Mini-batches at which labels were swapped in what was emitted, and which."""
        return {
            swap.place: swap.sign for swap in self.swaps if swap.place < self.emitted
        }

    def unchanged(self) -> np.ndarray:
        """Share of the images that have their first label, for each mini-batch."""
        truth = self._images.labels
        shares = [float((names[truth] == truth).mean()) for names in self._meanings]
        edges = [0, *(swap.place for swap in self.swaps), len(self)]
        return np.repeat(shares, np.diff(edges))


# --------------------------------------------------------------------------- the model


class ImageModel(nn.Module):
    """Three convolutions, two of them pooled, and two dense layers: TensAIR's network.

    Parameters
    ----------
    shape
        Channels, height and width of the images.
    classes
        How many labels there are.

    Notes
    -----
    On CIFAR-10 it has TensAIR's 122,570 parameters. Images of less than 18 pixels, as
    the digits of scikit-learn are, would vanish in its convolutions: they get a margin.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        margin = 0 if min(sides) >= 18 else 1
        if min(sides) < 4:
            raise ta.errors.ConfigurationError(
                f"Images of {sides[0]} x {sides[1]} pixels were given; 4 x 4 is the "
                "least that two poolings can halve."
            )
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=margin),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=margin),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=margin),
            nn.ReLU(),
            nn.Flatten(),
        )
        for _ in range(2):
            sides = [(side - 2 + 2 * margin) // 2 for side in sides]
        height, width = (side - 2 + 2 * margin for side in sides)
        self.hidden = nn.Sequential(nn.Linear(64 * height * width, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # PyTorch's own start is so small for ReLU that the loss stands still
                # at first, as if it had settled.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the labels, shape (images, classes)."""
        return self.head(self.hidden(self.features(images)))


# ------------------------------------------------------------------------ the pipeline


class Pipeline(NamedTuple):
    """What `build` wires: emit mini-batches into the source."""

    source: Stream
    reports: Stream
    trainer: ta.Trainer


NAME = "drifting images"


def build(
    client: Client,
    images: ImageSet,
    *,
    mode: str = "auto",
    detector: str | None = "optwin",
    on_drift: str = "train",
    convergence: Convergence | None = None,
    learning_rate: float = 0.1,
    replicas: int | None = None,
    seed: int = 0,
    continuation: Continuation | None = None,
) -> Pipeline:
    """Wire source and trainer.

    Parameters
    ----------
    client
        Asynchronous; the source lives on its event loop.
    images
        Tells the model's shape.
    mode
        ``"auto"``, ``"always"`` or ``"never"``; see `Trainer`.
    detector
        Its name. It watches the loss; DDM, which takes errors only, the
        share of wrong answers.
    on_drift
        One of `ANSWERS`.
    convergence
        When the loss has settled; None for that of `Trainer`.
    learning_rate
        Of plain SGD.
    replicas
        How many replicas there are; None for one on each worker.
    seed
        Of the model's first parameters.
    continuation
        Says where checkpoints are saved, and where the stream goes on.
    """
    continuation = continuation or Continuation()
    trainer = ta.Trainer(
        client,
        model=functools.partial(ImageModel, images.shape, images.classes),
        loss=nn.functional.cross_entropy,
        optimizer=functools.partial(torch.optim.SGD, lr=learning_rate),
        metrics={"accuracy": ta.metrics.accuracy},
        replicas=replicas,
        seed=seed,
        mode=mode,
        detector=detector,
        watch=_errors if detector == "ddm" else "loss",
        convergence=convergence if mode == "auto" else None,
        on_drift=POLICY.get(on_drift, on_drift),
        name=NAME,
        **continuation.arguments(),
    )
    source = Stream(asynchronous=True)
    reports = source.counted(continuation).train(trainer).map(continuation.numbered)
    return Pipeline(source, reports, trainer)


def _errors(report: ta.Report) -> float:
    return 1.0 - report.metrics["accuracy"]


# ---------------------------------------------------------------- on the command line


@dataclass
class ImagesRun(ModesRun):
    """A run over images whose labels are swapped."""

    records: str = "images"
    rate: float | None = 3_000
    data: Path | None = option(
        None,
        "Images of your own: the files of MNIST or Fashion-MNIST, or the binary "
        "version of CIFAR-10.",
        type=PATH,
        metavar="FOLDER",
        shown="the digits of scikit-learn",
    )
    dataset: str | None = option(
        None, "Which of them, where the files do not tell.", type=click.Choice(NAMES)
    )
    mode: str = "auto"
    detector: str | None = "optwin"
    on_drift: str = option("train", ON_DRIFT, type=click.Choice(ANSWERS))
    swaps: int = option(4, "How often two labels are swapped.", type=FROM_ZERO)
    every: int = option(1000, "Mini-batches between two swaps.", type=POSITIVE)
    batch_size: int = option(32, "Images in a mini-batch.", type=POSITIVE)
    learning_rate: float = option(
        0.1, "Of plain SGD.", type=Number(min=0, min_open=True)
    )
    warm_up: int | None = option(
        None,
        "Mini-batches to learn in mode never, before it stops for ever.",
        type=FROM_ZERO,
        shown="half of --every",
    )
    seed: int = option(0, "Of the stream and of the model.", type=FROM_ZERO)
    output: Path = option(Path("tensair-output"), "Folder for the plots.", type=FOLDER)

    images: ImageSet | None = field(default=None, init=False, repr=False)
    stream: SwappedLabels | None = field(default=None, init=False, repr=False)
    record: Record = field(default_factory=lambda: Record(0), init=False, repr=False)
    alarms: Alarms = field(default_factory=lambda: Alarms(list), init=False, repr=False)
    held_out: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def stops_after(self) -> int | None:
        """Mini-batch at which mode never begins; None in the other modes."""
        if self.mode != "never":
            return None
        return self.every // 2 if self.warm_up is None else self.warm_up

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect; see `Run.without_effect`."""
        if "warm_up" in given and self.mode != "never":
            return (
                f"--warm-up was given in mode {self.mode}; it is of --mode never: give "
                "that, or leave it out."
            )
        return super().without_effect(given)

    def check_files(self) -> None:
        """See that the plots can be written, before the run."""
        super().check_files()
        check_folder(self.output, "--output")

    def begins_in(self, index: int) -> str:
        """Mode from this mini-batch on: never begins with something to predict with."""
        stops = self.stops_after
        return "always" if stops is not None and index < stops else self.mode

    @property
    def detections(self) -> Detections:
        """What was detected of what came."""
        if self.stream is None or self.trainer is None:
            return Detections({}, [])
        return Detections(self.stream.changes(), self.alarms())

    def course(self) -> Course:
        """What is drawn."""
        assert self.stream is not None
        rows = self.record.frame()
        seen = 1 + int(rows["index"].max()) if len(rows) else 0
        detections = self.detections
        return Course(
            rows,
            changes=detections.changes,
            alarms=detections.alarms,
            references={"accuracy": (FIRST, self.stream.unchanged()[:seen])},
        )

    def headline(self) -> str:
        """Say in one line what came of it."""
        detections = self.detections
        text = f"mode {self.mode}, {self.record.share:.0%} of the mini-batches learned"
        if detections.changes:
            found = len(detections.changes) - detections.missed
            text += f"; {found} of {len(detections.changes)} swaps detected"
        if detections.delay is not None:
            text += f", after {detections.delay:.1f} mini-batches on average"
        false = len(detections.false)
        return f"{text}; {false or 'no'} false alarm{'' if false == 1 else 's'}"

    def accuracies(self) -> dict[str, float]:
        """Scores of the model beside those of what needs no model."""
        assert self.stream is not None
        return {
            "model, each answer before learning": self.record.mean,
            "model, held-out images at the end": self.held_out.get(
                "accuracy", math.nan
            ),
            **self.stream.baselines(),
        }

    def tables(self) -> list[Table]:
        """Swaps with their detections, and scores, for the page of the run."""
        if self.stream is None or not self.record.records:
            return []
        return [
            Table(
                "Swaps",
                ["labels", "at mini-batch", "detected at", "after mini-batches"],
                self.detections.rows(),
                f"{self.headline()}.",
            ),
            Table(
                "Accuracy",
                ["who", "accuracy"],
                list(self.accuracies().items()),
                "Held-out images have the labels of the end of the stream; the model "
                "has never learned them.",
            ),
        ]

    def figures(self) -> list[tuple[str, Any]]:
        """Loss and accuracy along the stream."""
        if self.stream is None or not self.record.records:
            return []
        return [("Loss and accuracy", drift_figures.panels(self.course()))]


class ImagesView:
    """The live line: how far, phase, loss, accuracy, drifts."""

    def __init__(self, run: ImagesRun, total: int, trainer: Any) -> None:
        self._run = run
        self._total = total
        self._trainer = trainer

    def drawing(self) -> RenderableType:
        """Draw a bar with the phase before it, and the numbers below it."""
        done = self._run.tally.reached
        bar = table.Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        phase = self._trainer.phase
        bar.add_row(
            Text(
                f"{phase:<10}", style="bold yellow" if phase == "training" else "bold"
            ),
            ProgressBar(total=max(self._total, 1), completed=done),
            f"{done:,} of {self._total:,} {self._run.records}",
        )
        return Group(bar, Text(self._numbers(), no_wrap=True, overflow="ellipsis"))

    def plain(self) -> str:
        """Draw the same as one line without a bar."""
        done = f"{self._run.tally.reached:,}/{self._total:,} {self._run.records}"
        return f"{self._trainer.phase}  {done}  {self._numbers()}"

    def _numbers(self) -> str:
        tally, record = self._run.tally, self._run.record
        parts = [
            f"{tally.current_rate():,.0f}/s",
            f"loss {_score(tally.loss())}",
            f"accuracy {_score(record.recent())}",
            f"learned {record.share:.0%}",
            f"drifts {len(self._run.alarms())}",
            f"staleness {tally.staleness():.1f}",
            f"backlog {self._trainer.backlog}",
        ]
        if tally.refused:
            parts.append(f"refused {tally.refused.total()}")
        return "  ".join(parts)


class _Teller:
    """Says when the phase changes, and why."""

    def __init__(self, run: ImagesRun, trainer: Any) -> None:
        self._run = run
        self._trainer = trainer
        self._phase = trainer.phase

    def look(self, report: ta.Report) -> None:
        if (phase := self._trainer.phase) == self._phase:
            return
        self._phase = phase
        why = "drift detected, training again"
        if phase != TRAINING:
            why = "the loss has settled, predicting only"
        if self._run.mode == "never":
            why = "predicting only, from here on"
        self._run.say(f"{report.index:>9,}  {why}")


async def emitted(
    run: ImagesRun, stream: SwappedLabels, trainer: ta.Trainer
) -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
    """Give the mini-batches, and mark on the dashboard what truly happens."""
    swaps = {swap.place: swap for swap in stream.swaps}
    begin = run.continuation.begins
    for index, batch in enumerate(stream.batches(begin), begin):
        if (swap := swaps.get(index)) is not None:
            run.say(f"{index:>9,}  labels {swap.one} and {swap.other} are swapped")
            await trainer.mark(
                f"labels {swap.one} and {swap.other} are swapped from mini-batch "
                f"{index:,} on"
            )
        # A run may go on from a checkpoint behind the warm-up.
        if run.begins_in(index) == "never" and trainer.mode != "never":
            await trainer.set_mode("never")
        yield batch


@command(ImagesRun)
async def main(run: ImagesRun) -> None:
    """Learn images whose labels are swapped, and notice it without help."""
    run.images = images = load(run.data, run.dataset)
    run.title = f"Images of {images.name} whose labels are swapped"
    run.stream = stream = SwappedLabels(
        images.learn,
        images.classes,
        swaps=run.swaps,
        every=run.every,
        batch_size=run.batch_size,
        seed=run.seed,
        limit=run.limit,
    )
    run.record = Record(len(stream))
    await run.go_on(
        NAME,
        images=images.name,
        every=run.every,
        batch_size=run.batch_size,
        seed=run.seed,
    )
    run.continuation.keep("record", run.record)
    run.tally.before = run.record.records
    run.say(
        f"{len(images.learn):,} images of {images.name} to draw from, "
        f"{len(images.held_out):,} held out; {len(stream):,} mini-batches, labels "
        f"swapped {len(stream.swaps)} times"
    )
    async with run.client() as client:
        source, reports, trainer = build(
            client,
            images,
            mode=run.begins_in(run.continuation.begins),
            detector=run.detector,
            on_drift=run.on_drift,
            learning_rate=run.learning_rate,
            replicas=run.workers,
            seed=run.seed,
            continuation=run.continuation,
        )
        number = run.continuation.number
        run.alarms = Alarms(lambda: map(number, trainer.drifts["index"]))
        run.continuation.keep("alarms", run.alarms)
        async with run.training(trainer):
            reports.sink(run.record.add)
            reports.sink(_Teller(run, trainer).look)
            view = ImagesView(run, stream.records, trainer)
            with run.watch(trainer, reports, view):
                batches = emitted(run, stream, trainer)
                await run.feed(source, batches, lambda batch: len(batch[1]))
                await trainer.drain()
            if run.record.records:
                run.held_out = await trainer.evaluate(judged(images, stream))
        finish(run)


def judged(
    images: ImageSet, stream: SwappedLabels, size: int = 500
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mini-batches of the held-out images, with the labels of the newest mini-batch."""
    held_out = images.held_out
    labels = stream.labels(held_out.labels, stream.emitted - 1)
    for start in range(0, len(held_out), size):
        rows = slice(start, start + size)
        yield held_out.inputs(rows), labels[rows]


def finish(run: ImagesRun) -> None:
    """Print the tables, draw the curves, print the JSON if asked for."""
    if not run.record.records:
        run.say("Nothing was learned.")
        return
    run.console.print(result_tables(run), soft_wrap=True)
    run.console.print(terminal.run_table(run.tally, run.records), soft_wrap=True)
    run.files |= drift_figures.draw(
        run.course(),
        folder=run.output,
        title=run.title,
        subtitle=run.headline(),
    )
    for name, path in run.files.items():
        run.say_file(name, path)
    if run.as_json:
        click.echo(json.dumps(result(run)))


def result_tables(run: ImagesRun) -> RenderableType:
    """Swaps and their detections, work and accuracy."""
    detections, record = run.detections, run.record
    swaps = table.Table(box=box.SIMPLE_HEAD)
    for name in ("labels swapped", "at mini-batch", "detected at", "after"):
        swaps.add_column(name, justify="left" if name == "labels swapped" else "right")
    for text, place, alarm, delay in detections.rows():
        at, after = ("missed", "-") if alarm is None else (f"{alarm:,}", f"{delay:,}")
        swaps.add_row(text, f"{place:,}", at, after)
    work = table.Table(box=box.SIMPLE_HEAD)
    work.add_column("mini-batches")
    work.add_column("", justify="right")
    work.add_column("share", justify="right")
    for name, count, share in (
        ("learned", record.learned, record.share),
        ("predicted only", record.predicted, 1 - record.share),
    ):
        work.add_row(name, f"{count:,}", f"{share:.0%}")
    scores = table.Table(box=box.SIMPLE_HEAD)
    scores.add_column(f"{record.records:,} {run.records}")
    scores.add_column("accuracy", justify="right")
    for name, accuracy in run.accuracies().items():
        style = "bold" if name.startswith("model") else "dim"
        scores.add_row(name, _score(accuracy), style=style)
    headline = Text(f"  {run.headline()}", style="bold")
    drawn = [swaps] if detections.changes else []
    return Group("", headline, *drawn, work, scores)


def result(run: ImagesRun) -> dict[str, Any]:
    """Everything that a script wants to know of the run, fit for JSON."""
    assert run.images is not None
    assert run.stream is not None
    detections, record, tally = run.detections, run.record, run.tally
    return {
        "interrupted": run.interrupts.received is not None,
        "dataset": run.images.name,
        "mode": run.mode,
        "detector": run.detector,
        "on_drift": run.on_drift,
        "seed": run.seed,
        "swaps": [
            {"labels": text, "index": place, "detected": alarm, "delay": delay}
            for text, place, alarm, delay in detections.rows()
        ],
        "detected": len(detections.changes) - detections.missed,
        "missed": detections.missed,
        "delay": detections.delay,
        "false_alarms": detections.false,
        "mini_batches": {
            "learned": record.learned,
            "predicted": record.predicted,
            "share_learned": record.share,
        },
        "accuracy": {
            "prequential": record.mean,
            "held_out": run.held_out["accuracy"],
            "baselines": run.stream.baselines(),
        },
        "loss": {"held_out": run.held_out["loss"]},
        **tally.refusals(),
        "seconds": tally.seconds,
        "rate": tally.rate,
        "staleness": {"mean": tally.staleness_mean, "most": tally.staleness_most},
        "replicas": tally.replicas(),
        "files": run.files,
    } | run.went_on()


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    main()
