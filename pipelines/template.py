"""Learn one column of a CSV file from the others: the pipeline to copy.

Run it with ``tensair run template --csv my.csv --target price``. Then copy this file to
``mine.py``, change `Model`, `to_arrays` and the source, and run ``python mine.py``.
"""

from __future__ import annotations

import functools
from collections import Counter

import click
import numpy as np
import pandas as pd
import torch
from dask.distributed import Client
from streamz import Stream
from torch import nn

import tensair_dask as ta
from tensair_dask.runner.numeric_columns import numeric_columns

EVERY = 100  # mini-batches between two lines that are printed
FILE = click.Path(exists=True, dir_okay=False)
COUNT = click.IntRange(min=1)


class Model(nn.Module):
    """A small network, which first brings its inputs to one scale."""

    scale: torch.Tensor

    def __init__(self, scale: np.ndarray, outputs: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        hidden = nn.Linear(scale.shape[1], 64)
        self.layers = nn.Sequential(hidden, nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One score for each class, or one number: shape (rows, outputs)."""
        mean, spread = self.scale
        return self.layers((x - mean) / spread)


def to_arrays(
    rows: pd.DataFrame, inputs: list[str], target: str, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Make a mini-batch ``(x, y)`` of some rows; y holds class numbers, or numbers."""
    x = rows[inputs].to_numpy(dtype=np.float32)
    if not classes:
        return x, rows[[target]].to_numpy(dtype=np.float32)
    return x, np.array([classes.index(str(label)) for label in rows[target]])


def show(report: ta.Report) -> None:
    """Print some reports: how well a mini-batch was known before it was learned."""
    if report.index % EVERY == 0:
        scores = "".join(f"  {name} {v:.3f}" for name, v in report.metrics.items())
        print(f"mini-batch {report.index:6,}  loss {report.loss:.4f}{scores}")


@click.command()
@click.option("--csv", type=FILE, required=True, help="Its first line: column names.")
@click.option("--target", required=True, help="The column to learn.")
@click.option("--classes", default="", help="Its labels: red,green. Else numbers.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True)
@click.option("--workers", type=COUNT, default=2, show_default=True)
@click.option("--scheduler", metavar="ADDRESS", help="Join its cluster instead.")
@click.option("--checkpoint", metavar="FOLDER", help="Save there, go on from there.")
def main(
    csv: str,
    target: str,
    classes: str,
    batch_size: int,
    workers: int,
    scheduler: str | None,
    checkpoint: str | None,
) -> None:
    """Learn one column of a CSV file from the other columns that hold numbers."""
    labels = classes.split(",") if classes else []
    numbers = numeric_columns(pd.read_csv(csv, nrows=1000), target)
    scale = np.stack([numbers.mean(), numbers.std().fillna(1).replace(0, 1)])
    own = {"n_workers": workers, "threads_per_worker": 1}
    with (
        Client(scheduler) if scheduler else Client(**own) as client,
        ta.Trainer(
            client,
            model=functools.partial(Model, scale, len(labels) or 1),
            loss=nn.functional.cross_entropy if labels else nn.functional.mse_loss,
            optimizer=functools.partial(torch.optim.Adam, lr=0.003),
            metrics={"accuracy": ta.metrics.accuracy} if labels else {},
            checkpoint_to=checkpoint,
            checkpoint_every="10s" if checkpoint else None,
            restore=checkpoint,
            or_begin=checkpoint is not None,
        ) as trainer,
    ):
        source = Stream.from_csv_chunks(csv, batch_size, positions=trainer.positions)
        batches = source.try_map(to_arrays, trainer, [*numbers], target, labels)
        reports = batches.train(trainer)
        reports.sink(show)
        learned = Counter[bool]()
        reports.sink(lambda report: learned.update([report.error is None]))
        source.start()
        source.join()
        trainer.drain()
        if sum(trainer.refused.values()) > learned[True]:
            raise click.ClickException(f"Most of it was refused: {trainer.refused}")


if __name__ == "__main__":
    main()
