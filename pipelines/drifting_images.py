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
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from distributed import Client
from rich.text import Text
from streamz import Stream
from torch import nn

import tensair_dask as ta
from tensair_dask.adaptation import (
    POLICIES,
    TRAINING,
    Convergence,
    RaiseLearningRate,
    Reinitialise,
)
from tensair_dask.drift.run_record import Detections, Record
from tensair_dask.observe.figures import drift as drift_figures
from tensair_dask.observe.figures.chart import Chart
from tensair_dask.observe.figures.drift import Course
from tensair_dask.observe.figures.page import save
from tensair_dask.observe.html_report import Table
from tensair_dask.runner import terminal
from tensair_dask.runner.images import NAMES, Images, ImageSet, load
from tensair_dask.runner.modes_run import ON_DRIFT, ModesRun, watch_for
from tensair_dask.runner.options import (
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
        watch=watch_for(detector),
        convergence=convergence if mode == "auto" else None,
        on_drift=POLICY.get(on_drift, on_drift),
        name=NAME,
        **continuation.arguments(),
    )
    source = Stream(asynchronous=True)
    reports = source.counted(continuation).train(trainer).map(continuation.numbered)
    return Pipeline(source, reports, trainer)


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
    batch_size: int = 32
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

    images: ImageSet | None = field(default=None, init=False, repr=False)
    stream: SwappedLabels | None = field(default=None, init=False, repr=False)
    held_out: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def stops(self) -> int:
        """The mini-batch from which on mode never learns nothing."""
        return self.every // 2 if self.warm_up is None else self.warm_up

    @property
    def has_results(self) -> bool:
        """Whether there was an image to score."""
        return bool(self.sides) and self.record.records > 0

    @property
    def record(self) -> Record:
        """What was reported."""
        return self.sides[0].record

    @property
    def detections(self) -> Detections:
        """What was detected of what came."""
        assert self.stream is not None
        return Detections(self.stream.changes(), self.sides[0].alarms())

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
        """Swaps with their detections, work, and scores."""
        if not self.has_results:
            return []
        record = self.record
        return [
            Table(
                "Swaps",
                ["labels", "at mini-batch", "detected at", "after mini-batches"],
                self.detections.rows(),
                f"{self.headline()}.",
            ),
            Table(
                "Work",
                ["mini-batches", "number", "share"],
                [
                    ("learned", record.learned, f"{record.share:.0%}"),
                    ("predicted only", record.predicted, f"{1 - record.share:.0%}"),
                ],
            ),
            Table(
                "Accuracy",
                ["who", "accuracy"],
                list(self.accuracies().items()),
                "Held-out images have the labels of the end of the stream; the model "
                "has never learned them.",
            ),
        ]

    def figures(self) -> list[tuple[str, Chart]]:
        """Loss and accuracy along the stream."""
        if not self.has_results:
            return []
        return [("Loss and accuracy", drift_figures.chart(self.course()))]

    def draw(self) -> dict[str, str]:
        """Draw the same into files."""
        chart = drift_figures.chart(self.course(), self.title, self.headline())
        return save(chart, self.output, "drift")

    def result(self) -> dict[str, Any]:
        """Add swaps, work and scores to what a script wants to know."""
        assert self.images is not None
        assert self.stream is not None
        detections, record = self.detections, self.record
        return super().result() | {
            "dataset": self.images.name,
            "mode": self.mode,
            "detector": self.detector,
            "on_drift": self.on_drift,
            "seed": self.seed,
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
                "held_out": self.held_out["accuracy"],
                "baselines": self.stream.baselines(),
            },
            "loss": {"held_out": self.held_out["loss"]},
        }


class ImagesView(terminal.RunView):
    """The live line: how far, phase, loss, accuracy, drifts."""

    run: ImagesRun

    def state(self) -> Text:
        """Whether it learns."""
        phase = self.trainer.phase
        style = "bold yellow" if phase == TRAINING else "bold"
        return Text(f"{phase:<10}", style=style)

    def measured(self) -> Iterator[str]:
        """Accuracy, work, drifts and staleness."""
        record = self.run.record
        yield f"accuracy {terminal.score(record.recent())}"
        yield f"learned {record.share:.0%}"
        yield f"drifts {len(self.run.sides[0].alarms())}"
        yield f"staleness {self.run.tally.staleness():.1f}"


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
    places = itertools.count(run.continuation.begins)
    async for batch in run.stopping(stream.batches(run.continuation.begins)):
        if (swap := swaps.get(index := next(places))) is not None:
            text = f"labels {swap.one} and {swap.other} are swapped"
            run.say(f"{index:>9,}  {text}")
            await trainer.mark(f"{text} from mini-batch {index:,} on")
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
    await run.go_on(
        NAME,
        images=images.name,
        every=run.every,
        batch_size=run.batch_size,
        seed=run.seed,
    )
    run.say(
        f"{len(images.learn):,} images of {images.name} to draw from, "
        f"{len(images.held_out):,} held out; {len(stream):,} mini-batches, labels "
        f"swapped {len(stream.swaps)} times"
    )
    async with run.client() as client:
        pipeline = build(
            client,
            images,
            mode=run.begins_in(run.mode),
            detector=run.detector,
            on_drift=run.on_drift,
            learning_rate=run.learning_rate,
            replicas=run.workers,
            seed=run.seed,
            continuation=run.continuation,
        )
        source, reports, trainer = pipeline
        run.follow(run.mode, pipeline, stream.records)
        run.tally.before = run.record.records
        async with run.training(trainer):
            reports.sink(_Teller(run, trainer).look)
            with run.watch(trainer, reports, ImagesView(run, trainer, stream.records)):
                await run.feed_batches(source, emitted(run, stream, trainer))
                await run.drain()
            if run.has_results:
                run.held_out = await trainer.evaluate(judged(images, stream))
        run.show()


def judged(
    images: ImageSet, stream: SwappedLabels, size: int = 500
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mini-batches of the held-out images, with the labels of the newest mini-batch."""
    held_out = images.held_out
    labels = stream.labels(held_out.labels, stream.emitted - 1)
    for start in range(0, len(held_out), size):
        rows = slice(start, start + size)
        yield held_out.inputs(rows), labels[rows]


if __name__ == "__main__":
    main()
