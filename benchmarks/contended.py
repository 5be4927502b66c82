"""Train beside busy processes: what a mini-batch costs, and how many are learned.

So many endless loops run beside the contender. Linux divides the cores among groups of
processes (its autogroup), and each loop, and each contender with all its processes, is
such a group here: all get the same share, however many processes they have. What costs
more CPU where the CPU is scarce shows as a rate below that of a plain loop.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from measure import environment, run_contender
from report import table
from workloads import WORKLOADS

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
CONTENDERS = ("plain-kept", "replicas-2")


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Run so many endless loops, each in a session, and so in a group, of its own."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "while True: pass"], start_new_session=True
        )
        for _ in range(loops)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measured(
    model: str, pool: Path, loops: int, turn: int, warmup: float, seconds: float
) -> dict[str, dict[str, Any]]:
    """Run each contender once beside so many loops, in an order that alternates."""
    answers = {}
    for contender in CONTENDERS[:: -1 if turn % 2 else 1]:
        with busy(loops):
            answers[contender] = run_contender(
                contender,
                f"--workload={model}",
                f"--pool={pool}",
                f"--warmup={warmup}",
                f"--seconds={seconds}",
                timeout=240 + 3 * (warmup + seconds),
                own_group=True,
            )
    return answers


def row(model: str, loops: int, rounds: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Take the ratios within the rounds, and give their medians."""
    plain, ours = ([each[name] for each in rounds] for name in CONTENDERS)

    def ratio(key: str) -> str:
        ratios = [b[key] / a[key] for a, b in zip(plain, ours, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        return f"{statistics.median(ratios):.2f} ({spread})"

    def median(answers: list[dict[str, Any]], key: str) -> str:
        return f"{statistics.median(each[key] for each in answers):,.0f}"

    return [
        model,
        str(loops),
        median(plain, "rate"),
        median(ours, "rate"),
        ratio("rate"),
        median(plain, "cpu_us"),
        median(ours, "cpu_us"),
        ratio("cpu_us"),
        f"{statistics.median(each['staleness'] for each in ours):.0f}",
    ]


@click.command(help=__doc__)
@click.option("--models", default="85k", show_default=True)
@click.option("--busy", "beside", default="0,2,4,8", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=6.0, show_default=True, help="Measured window.")
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--markdown", is_flag=True, help="A table in Markdown.")
def main(
    models: str,
    beside: str,
    rounds: int,
    warmup: float,
    seconds: float,
    json_path: Path | None,
    markdown: bool,
) -> None:
    if not AUTOGROUP.exists() or AUTOGROUP.read_text().strip() != "1":
        click.echo(
            "This kernel has no autogroup: processes get a share each, and the "
            "contender with more processes gets more of the machine.",
            err=True,
        )
    data: dict[str, Any] = {"environment": environment(), "rounds": []}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models.split(","):
            pool = Path(folder) / f"{model}.npz"
            WORKLOADS[model].write_pool(pool)
            for loops in map(int, beside.split(",")):
                answers = []
                for turn in range(rounds):
                    click.echo(f"{model}, {loops} loops, round {turn + 1}", err=True)
                    answers.append(measured(model, pool, loops, turn, warmup, seconds))
                data["rounds"].append([model, loops, answers])
                rows.append(row(model, loops, answers))
    if json_path is not None:
        json_path.write_text(json.dumps(data), encoding="utf-8")
    header = [
        "model",
        "busy loops",
        "plain loop, mini-batches/s",
        "2 replicas",
        "ratio",
        "plain loop, CPU us a mini-batch",
        "2 replicas",
        "ratio",
        "staleness",
    ]
    click.echo(table("Beside busy loops", header, rows, markdown))


if __name__ == "__main__":
    main()
