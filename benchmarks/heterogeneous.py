"""What one slow worker costs all: replicas that wait for nobody, beside DDP.

One of two workers takes three times as long for a step (``slowed.py`` says how). What
both learn together is compared with the sum of what each learns alone; DDP, whose
processes wait for each other at every step, is slowed in the same way and measured
beside it. Nothing is asserted.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import Load, Spread, environment, run_contender
from report import QUIET_CORES, table
from slow_contenders import CONTENDERS
from workloads import WORKLOADS

KEPT_AT_LEAST = 0.9

# What is divided by the sum of what; the ratio of a round is taken within it.
RATIOS = (
    ("replicas-uneven", ("replicas-fast", "replicas-slow"), KEPT_AT_LEAST),
    ("replicas-even", ("replicas-fast", "replicas-fast"), None),
    ("ddp-uneven", ("plain-fast", "plain-slow"), None),
    ("ddp-even", ("plain-fast", "plain-fast"), None),
    ("ddp-uneven", ("ddp-even",), None),
    ("replicas-uneven", ("ddp-uneven",), None),
)

Round = dict[str, dict[str, Any]]


def _spread(values: list[float], digits: int) -> list[str]:
    spread = Spread.of(values)
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    return [f"{spread.median:.{digits}f}", f"{low} to {high}"]


def _rates(rounds: list[Round]) -> list[list[str]]:
    rows = []
    for name, says in CONTENDERS.items():
        others = [each[name]["load"]["other_cores"] for each in rounds]
        disturbed = sum(other > QUIET_CORES for other in others)
        rates = [each[name]["rate"] for each in rounds]
        rows.append(
            [
                says,
                *_spread(rates, 1),
                *_spread(others, 2),
                f"{disturbed} of {len(rounds)}",
            ]
        )
    return rows


def _ratios(rounds: list[Round]) -> list[list[str]]:
    rows = []
    for name, parts, at_least in RATIOS:
        values = [
            each[name]["rate"] / sum(each[part]["rate"] for part in parts)
            for each in rounds
        ]
        met = Spread.of(values).median >= (at_least or 0.0)
        rows.append(
            [
                f"{name} / {' + '.join(parts)}",
                *_spread(values, 3),
                "" if at_least is None else f">= {at_least}",
                "" if at_least is None else ("yes" if met else "NO"),
            ]
        )
    return rows


def _replicas(rounds: list[Round]) -> list[list[str]]:
    """What each replica did; the medians of the rounds."""
    rows = []
    for name in ("replicas-uneven", "replicas-even"):
        for which in sorted(rounds[0][name]["replicas"]):
            found = [each[name]["replicas"][which] for each in rounds]
            rows.append(
                [
                    CONTENDERS[name],
                    which,
                    *(
                        _spread([float(one[key]) for one in found], digits)[0]
                        for key, digits in (
                            ("learned", 0),
                            ("rate", 1),
                            ("step_ms", 1),
                            ("busy", 2),
                            ("staleness", 2),
                            ("stalest", 0),
                        )
                    ),
                ]
            )
    return rows


def render(rounds: list[Round], markdown: bool) -> str:
    """Lay out all tables."""
    tables = (
        (
            "Mini-batches per second",
            [
                "contender",
                "mini-batches/s",
                "range",
                "other load",
                "range",
                "rounds disturbed",
            ],
            _rates(rounds),
        ),
        ("Ratios", ["ratio", "median", "range", "target", "met"], _ratios(rounds)),
        (
            "Replicas side by side (medians)",
            [
                "contender",
                "replica",
                "mini-batches learned",
                "a second",
                "ms a step",
                "busy",
                "mean staleness",
                "largest",
            ],
            _replicas(rounds),
        ),
    )
    return "\n".join(table(*one, markdown) for one in tables)


def _write_pool(path: Path, workload: str, minibatches: int, rows: int) -> None:
    x, y = WORKLOADS[workload].stream(minibatches, rows)
    np.savez(path, x=x, y=y)


@click.command(help=__doc__)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="cnn")
@click.option("--rows", default=32, show_default=True, help="In a mini-batch.")
@click.option("--slowdown", default=3.0, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=8.0, show_default=True, help="Measured window.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
@click.option("--output", type=Path, help="Everything that was measured, as JSON.")
def main(
    workload: str,
    rows: int,
    slowdown: float,
    rounds: int,
    warmup: float,
    seconds: float,
    markdown: bool,
    output: Path | None,
) -> None:
    machine, load = environment(), Load()
    click.echo(
        f"{machine}\n{WORKLOADS[workload].says}; {rows} records a mini-batch;"
        f" slowed {slowdown:g} times; {seconds:g} s after {warmup:g} s\n"
    )
    found: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.npz"
        _write_pool(pool, workload, 256, rows)
        options = [f"--workload={workload}", f"--pool={pool}", f"--warmup={warmup}"]
        options += [f"--seconds={seconds}", f"--slowdown={slowdown}"]
        for number in range(rounds):
            this: Round = {}
            for name in CONTENDERS:
                this[name] = run_contender(
                    name,
                    *options,
                    timeout=10 * (warmup + seconds) + 120,
                    script="slow_contenders.py",
                )
                click.echo(
                    f"round {number + 1}, {name}: {this[name]['rate']:.1f}", err=True
                )
            found.append(this)
    click.echo(render(found, markdown))
    click.echo(f"other load (cores): {load.stop()['other_cores']:.2f}")
    if output is not None:
        output.write_text(json.dumps({"environment": machine, "rounds": found}))


if __name__ == "__main__":
    main()
