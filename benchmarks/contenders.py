"""Run one contender in this process and print what it measured as JSON.

`training.py` starts this file; by hand, for a look at one contender alone::

    python benchmarks/contenders.py plain --workload 85k --seconds 5
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["CONTENDERS"]

# Name -> what it is.
CONTENDERS = {
    "plain": "plain PyTorch loop, 1 process",
    "plain-kept": "plain loop with mallopt, 1 process",
    "plain-2": "two free-running plain loops",
    "plain-2-kept": "two plain loops with mallopt",
    "hogwild": "torch Hogwild, 2 processes",
    "ddp": "DDP over gloo, 2 processes",
    "replicas-1": "tensair_dask, 1 replica",
    "replicas-2": "tensair_dask, 2 replicas",
}

# Name -> "module.function", imported on use: a plain loop must not run beside Dask's
# threads, and a worker process, which imports this file again as its main module, must
# not pay for what it does not need.
_THROUGHPUT = {
    "plain": "baselines.plain",
    "plain-kept": "baselines.plain_kept",
    "plain-2": "baselines.plain_twice",
    "plain-2-kept": "baselines.plain_twice_kept",
    "hogwild": "baselines.hogwild",
    "ddp": "baselines.ddp",
    "replicas-1": "replicas.one",
    "replicas-2": "replicas.two",
}
_ACCURACY = {
    "plain": "baselines.plain_accuracy",
    "replicas-1": "replicas.one_accuracy",
    "replicas-2": "replicas.two_accuracy",
}


def _load(where: str) -> Callable[..., dict[str, Any]]:
    module, function = where.split(".")
    return getattr(importlib.import_module(module), function)


@click.command(help=__doc__)
@click.argument("contender", type=click.Choice(list(CONTENDERS)))
@click.option("--workload", default="85k", show_default=True)
@click.option("--pool", type=Path, help="Mini-batches; generated if not given.")
@click.option("--warmup", default=2.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=5.0, show_default=True, help="Measured window.")
@click.option(
    "--prequential",
    type=int,
    help="Do not measure time: score and learn this many mini-batches.",
)
def main(
    contender: str,
    workload: str,
    pool: Path | None,
    warmup: float,
    seconds: float,
    prequential: int | None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if pool is None:
            from workloads import WORKLOADS

            pool = Path(folder) / "pool.npz"
            WORKLOADS[workload].write_pool(pool)
        if prequential is None:
            measure = _load(_THROUGHPUT[contender])
            result = measure(workload, pool, warmup, seconds)
        elif contender in _ACCURACY:
            result = _load(_ACCURACY[contender])(workload, pool, prequential)
        else:
            raise click.UsageError(
                f"--prequential is for {', '.join(_ACCURACY)}, not for {contender}."
            )
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
