"""Train the same models from the same streams in PyTorch's ways and in this project's.

Prints mini-batches per second of each contender and the ratios between them. Nothing is
asserted: figures depend on the machine and on what else it does, which is printed too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from contenders import CONTENDERS
from measure import environment, run_contender
from report import render
from workloads import WORKLOADS

ACCURACY_CONTENDERS = ("plain", "replicas-1", "replicas-2")


class Names(click.ParamType):
    """A comma-separated list of some of the allowed names."""

    name = "names"

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """Split, and refuse what is not there."""
        names = value if isinstance(value, list) else value.split(",")
        for name in names:
            if name not in self.allowed:
                self.fail(f"{name!r} is none of {', '.join(self.allowed)}", param, ctx)
        return names


class Rounds:
    """Runs the contenders in turn, again and again, and keeps what they answer."""

    def __init__(
        self,
        models: list[str],
        contenders: list[str],
        warmup: float,
        seconds: float,
        json_path: Path | None,
    ) -> None:
        self.contenders = contenders
        self.json_path = json_path
        self.data: dict[str, Any] = {
            "environment": environment(),
            "warmup": warmup,
            "seconds": seconds,
            "workloads": {name: WORKLOADS[name].says for name in models},
            "rounds": {name: {"throughput": [], "accuracy": []} for name in models},
            "failures": [],
        }

    def _one(
        self, model: str, contender: str, *options: str, timeout: float
    ) -> dict[str, Any] | None:
        try:
            return run_contender(
                contender, "--workload", model, *options, timeout=timeout
            )
        except Exception as error:
            # One lost round must not lose the half hour of the others.
            self.data["failures"].append(f"{model} {contender}: {error}")
            click.echo(f"  {contender} FAILED: {error}", err=True)
            return None

    def _round(
        self, model: str, part: str, turn: int, *options: str, timeout: float
    ) -> None:
        contenders = [
            name
            for name in self.contenders
            if part == "throughput" or name in ACCURACY_CONTENDERS
        ]
        # Start with another one each time, so that none always follows the same.
        turn %= max(1, len(contenders))
        answers: dict[str, Any] = {}
        for contender in contenders[turn:] + contenders[:turn]:
            answer = self._one(model, contender, *options, timeout=timeout)
            if answer is None:
                continue
            answers[contender] = answer
            key = "rate" if part == "throughput" else "accuracy"
            click.echo(
                f"  {contender:<13} {key} {answer[key]:9.4f}"
                f"  other load {answer['load']['other_cores']:.2f}",
                err=True,
            )
        self.data["rounds"][model][part].append(answers)
        if self.json_path is not None:
            self.json_path.write_text(json.dumps(self.data), encoding="utf-8")

    def throughput(self, model: str, pool: Path, turn: int) -> None:
        """Measure the rate of every contender once."""
        warmup, seconds = self.data["warmup"], self.data["seconds"]
        self._round(
            model,
            "throughput",
            turn,
            f"--pool={pool}",
            f"--warmup={warmup}",
            f"--seconds={seconds}",
            timeout=120 + 3 * (warmup + seconds),
        )

    def accuracy(self, model: str, pool: Path, turn: int) -> None:
        """Learn the same mini-batches with the plain loop and with this project."""
        minibatches = WORKLOADS[model].prequential
        self._round(
            model,
            "accuracy",
            turn,
            f"--pool={pool}",
            f"--prequential={minibatches}",
            timeout=600,
        )


@click.command(help=__doc__)
@click.option(
    "--models",
    type=Names(list(WORKLOADS)),
    default=",".join(WORKLOADS),
    show_default=True,
)
@click.option(
    "--contenders",
    type=Names(list(CONTENDERS)),
    default=",".join(CONTENDERS),
    show_default=True,
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=5.0, show_default=True, help="Measured window.")
@click.option("--throughput/--no-throughput", default=True, show_default=True)
@click.option("--accuracy/--no-accuracy", default=True, show_default=True)
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(
    models: list[str],
    contenders: list[str],
    rounds: int,
    warmup: float,
    seconds: float,
    throughput: bool,
    accuracy: bool,
    json_path: Path | None,
    markdown: bool,
) -> None:
    run = Rounds(models, contenders, warmup, seconds, json_path)
    with tempfile.TemporaryDirectory() as folder:
        pools = {model: Path(folder) / f"{model}.npz" for model in models}
        for model, pool in pools.items():
            WORKLOADS[model].write_pool(pool)
        for turn in range(rounds):
            for model, pool in pools.items():
                click.echo(f"round {turn + 1} of {rounds}, {model}", err=True)
                if throughput:
                    run.throughput(model, pool, turn)
                if accuracy:
                    run.accuracy(model, pool, turn)
    click.echo(render(run.data, markdown))
    if run.data["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
