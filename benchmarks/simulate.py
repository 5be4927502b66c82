"""Simulate the exchange of up to 1,024 replicas, with costs that `scaling.py` measured.

Without ``--costs FILE``, which `scaling.py --json` writes, costs are those of
`scale_out/defaults.py`. With it, the simulation is compared with what was measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from report import table
from scale_out.costs import Costs, fitted
from scale_out.defaults import MEASURED, SAYS
from scale_out.figures import Figures, figures
from scale_out.simulation import Outcome, Scenario, Simulation
from scale_out.topologies import Topology, mesh, tree

MB = {"85k": 0.34, "1.1m": 4.53}
LARGEST_MESH = 128  # beyond it there are more edges than are worth waiting for

HEADER = [
    "topology",
    "replicas",
    "MB",
    "wave, ms",
    "efficiency",
    "slowest",
    "loop, of a core: mean / most",
    "messages/s sent: mean / most",
    "MB/s sent: mean / most",
    "age mean / p95, ms",
    "staleness mean / p95",
]


def topologies(nodes: int, per_host: int) -> Iterator[Topology]:
    """Give those that are compared."""
    if nodes <= LARGEST_MESH:
        yield mesh(nodes)
    yield tree(nodes)
    if nodes > per_host:
        yield tree(nodes, per_host=per_host)


def _two(mean: float, most: float, form: str = ",.0f") -> str:
    return f"{mean:{form}} / {most:{form}}"


def _spread(values: np.ndarray, scale: float = 1.0) -> str:
    if not len(values):
        return ""
    return _two(scale * values.mean(), scale * np.quantile(values, 0.95))


def row(topology: Topology, scenario: Scenario, outcome: Outcome) -> list[str]:
    """Lay out one run."""
    wave = f"{1e3 * scenario.interval:.0f}" if topology.parents is not None else ""
    return [
        topology.name,
        f"{topology.nodes:,}",
        f"{scenario.gradient_mb:g}",
        wave,
        f"{outcome.efficiency:.3f}",
        f"{outcome.slowest:.2f}",
        _two(outcome.loop, outcome.busiest_loop, ".2f"),
        _two(outcome.messages, outcome.most_messages),
        _two(outcome.mb, outcome.most_mb),
        _spread(outcome.ages, 1e3),
        _spread(outcome.stalenesses),
    ]


def compared(figure: Figures, learning: dict[str, Any], costs: Costs) -> list[str]:
    """Simulate what was measured, and lay out both: measured, then simulated."""
    own = figure.replica_cpu - figure.exchange_cpu
    scenario = Scenario(
        costs,
        costs,
        figure.gradient_bytes / 1e6,
        step=figure.step + own,
        jitter=0.02,
        seconds=max(3.0, 10 * figure.step),
    )
    outcome = Simulation(mesh(figure.replicas), scenario).run()
    ages, stalenesses = outcome.ages, outcome.stalenesses
    return [
        figure.model,
        figure.transport,
        str(figure.replicas),
        f"{1e3 * figure.step:.0f}",
        _two(figure.delivered, outcome.delivered, ".2f"),
        _two(100 * figure.share, 100 * (1 - outcome.efficiency), ".1f"),
        _two(1e3 * learning["age_mean"], 1e3 * ages.mean()),
        _two(1e3 * learning["age_p95"], 1e3 * np.quantile(ages, 0.95)),
        _two(learning["staleness_mean"], stalenesses.mean(), ".1f"),
    ]


COMPARED_HEADER = [
    "model",
    "transport",
    "replicas",
    "step, ms",
    "delivered a mini-batch",
    "exchange, % of a replica's time",
    "age mean, ms",
    "age p95, ms",
    "staleness mean",
]


def checked(data: dict[str, Any], costs: dict[str, Costs]) -> list[list[str]]:
    """Compare with all measurements where the machine had room."""
    cores = data["environment"]["cores"]
    computed = figures(data["measured"], cores)
    return [
        compared(figure, measured["learning"], costs[figure.transport])
        for figure, measured in zip(computed, data["measured"], strict=True)
        if figure.transport in costs and not figure.full
    ]


def costs_of(data: dict[str, Any]) -> dict[str, Costs]:
    """Take the costs of all transports from a file of `scaling.py`."""
    computed = figures(data["measured"], data["environment"]["cores"])
    return {name: fitted(computed, name) for name in MEASURED}


@click.command(help=__doc__)
@click.option("--costs", "costs_path", type=Path, help="What scaling.py wrote.")
@click.option("--replicas", default="2,4,16,64,256,1024", show_default=True)
@click.option("--models", default="85k,1.1m", show_default=True)
@click.option("--step", default=100.0, show_default=True, help="Milliseconds.")
@click.option("--waves", default="100,200,400", show_default=True, help="Milliseconds.")
@click.option("--per-host", default=8, show_default=True)
@click.option("--gigabits", default=10.0, show_default=True, help="Network cards.")
@click.option("--seconds", default=3.0, show_default=True, help="Simulated window.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write all outcomes.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(
    costs_path: Path | None,
    replicas: str,
    models: str,
    step: float,
    waves: str,
    per_host: int,
    gigabits: float,
    seconds: float,
    seed: int,
    json_path: Path | None,
    markdown: bool,
) -> None:
    costs, says = MEASURED, SAYS
    if costs_path is not None:
        data = json.loads(costs_path.read_text(encoding="utf-8"))
        costs, says = costs_of(data), f"Costs of {costs_path}."
        rows = checked(data, costs)
        title = "Emulated / simulated, where the machine was not full"
        click.echo(table(title, COMPARED_HEADER, rows, markdown))
    click.echo(says)
    for name, each in costs.items():
        click.echo(f"{name}: {each}")
    scenario = Scenario(
        between_hosts=costs["tcp"],
        within_host=costs["shm"],
        gradient_mb=0.0,
        step=1e-3 * step,
        bandwidth=gigabits * 125,
        seconds=seconds,
        seed=seed,
    )
    rows, outcomes = [], []
    for model in models.split(","):
        for nodes in map(int, replicas.split(",")):
            for topology in topologies(nodes, per_host):
                of_waves = waves.split(",") if topology.parents else ["0"]
                for wave in of_waves:
                    run = replace(
                        scenario, gradient_mb=MB[model], interval=1e-3 * float(wave)
                    )
                    begun = time.monotonic()
                    outcome = Simulation(topology, run).run()
                    rows.append(row(topology, run, outcome))
                    took = time.monotonic() - begun
                    click.echo(f"{took:4.0f} s: {' | '.join(rows[-1])}", err=True)
                    outcomes.append(dict(zip(HEADER, rows[-1], strict=True)))
    if json_path is not None:
        json_path.write_text(json.dumps(outcomes), encoding="utf-8")
    click.echo(table("Simulated", HEADER, rows, markdown))


if __name__ == "__main__":
    main()
