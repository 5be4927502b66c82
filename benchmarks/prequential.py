"""What scoring costs, per record: river's metrics over horizons, beside two baselines.

Compares `Prequential` with the same metrics updated by hand, which is what river alone
costs, and with `BinaryPrequential`::

    python benchmarks/prequential.py --records 50000
    python benchmarks/prequential.py --profile labels
"""

from __future__ import annotations

import cProfile
import itertools
import json
import pstats
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from measure import Load, Spread, environment
from river import metrics, utils

from tensair_dask.prequential import BinaryPrequential, Prequential

WINDOW, FADING = 1_000, 0.999
HORIZONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, window": {"window": WINDOW},
    "whole, window, fading": {"window": WINDOW, "fading": FADING},
}
SETS: dict[str, tuple[type, ...]] = {
    "labels": (metrics.Accuracy, metrics.F1, metrics.CohenKappa),
    "numbers": (metrics.MAE, metrics.RMSE, metrics.R2),
    "probabilities": (metrics.Accuracy, metrics.LogLoss, metrics.ROCAUC),
}


def stream(kind: str, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that are better than chance."""
    random = np.random.default_rng(0)
    if kind == "numbers":
        target = random.normal(size=records)
        return target, target + random.normal(size=records) * 0.5
    target = random.random(records) < 0.25
    chances = np.clip(random.random(records) * 0.7 + target * 0.3, 0, 1)
    return target, (chances > 0.5) if kind == "labels" else chances


def by_hand(kind: str, target: list[Any], predicted: list[Any]) -> float:
    """Update river's metrics one by one: 3 metrics x 3 horizons, of one contestant."""
    labels = predicted
    if kind == "probabilities":
        labels = [chance > 0.5 for chance in predicted]
    whole = [each() for each in SETS[kind]]
    fading = [each() for each in SETS[kind]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        rolling = [utils.Rolling(each(), WINDOW) for each in SETS[kind]]
    takes = [predicted if each is not metrics.Accuracy else labels for each in whole]
    if kind == "probabilities":
        takes = [labels, predicted, predicted]
    start = time.perf_counter()
    weight = 1.0
    for at, true in enumerate(target):
        for place, values in enumerate(takes):
            value = values[at]
            whole[place].update(true, value)
            rolling[place].update(true, value)
            fading[place].update(true, value, w=weight)
        weight = weight / FADING if weight < 1e100 else 1.0
    return time.perf_counter() - start


def ours(
    kind: str, target: Any, predicted: Any, size: int, horizons: dict[str, Any]
) -> float:
    """Score in mini-batches of ``size``; single records are given as scalars."""
    scores = Prequential([each() for each in SETS[kind]], **horizons)
    if size == 1:
        pairs: Any = list(zip(target.tolist(), predicted.tolist(), strict=True))
    else:
        pairs = [
            (target[at : at + size], predicted[at : at + size])
            for at in range(0, len(target), size)
        ]
    start = time.perf_counter()
    for pair in pairs:
        scores.add(*pair)
    return time.perf_counter() - start


def vectorised(target: np.ndarray, chances: np.ndarray, size: int) -> float:
    """Score with `BinaryPrequential`, and read its scores and baselines once."""
    scores = BinaryPrequential(WINDOW)
    start = time.perf_counter()
    for index, at in enumerate(range(0, len(target), size)):
        scores.expect(target[at : at + size])
        scores.add(index, chances[at : at + size])
    scores.overall(), scores.recent(), scores.baselines()
    return time.perf_counter() - start


def measure(
    function: Callable[[], float], records: int, rounds: int
) -> tuple[Spread, float]:
    """Microseconds for a record, and the cores that others used meanwhile."""
    load = Load()
    values = [function() / records * 1e6 for _ in range(rounds)]
    return Spread.of(values), load.stop()["other_cores"]


@click.command()
@click.option("--records", default=50_000, show_default=True, help="Records to score.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each.")
@click.option("--batches", default="1,64", show_default=True, help="Mini-batch sizes.")
@click.option("--profile", type=click.Choice(list(SETS)), help="Profile one instead.")
def main(records: int, rounds: int, batches: str, profile: str | None) -> None:
    """Measure microseconds per record."""
    sizes = [int(size) for size in batches.split(",")]
    if profile is not None:
        for size in sizes:
            profiler = cProfile.Profile()
            pair = stream(profile, records)
            horizons = HORIZONS["whole, window, fading"]
            profiler.runcall(ours, profile, *pair, size, horizons)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(14)
        return
    print(json.dumps(environment()))
    head = "| metrics | who | horizons | contestants | mini-batch | µs/record | other |"
    print(head + "\n|---|---|---|---|---|---|---|")

    def row(what: str, function: Callable[[], float]) -> None:
        spread, other = measure(function, records, rounds)
        said = f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"
        print(f"| {what} | {said} | {other:.2f} |", flush=True)

    for kind, classes in SETS.items():
        target, predicted = stream(kind, records)
        names = ", ".join(each.__name__ for each in classes)
        listed = target.tolist(), predicted.tolist()
        every = "whole, window, fading"
        row(
            f"{names} | river, by hand | {every} | 1 | 1",
            lambda kind=kind, listed=listed: by_hand(kind, *listed),
        )
        for size, (said, horizons) in itertools.product(sizes, HORIZONS.items()):
            row(
                f"{names} | Prequential | {said} | 3 | {size}",
                lambda kind=kind, pair=(target, predicted), size=size, h=horizons: ours(
                    kind, *pair, size, h
                ),
            )
    target, chances = stream("probabilities", records)
    row(
        f"the same, vectorised | BinaryPrequential | whole, window | 3 | {sizes[-1]}",
        lambda: vectorised(target, chances, sizes[-1]),
    )


if __name__ == "__main__":
    main()
