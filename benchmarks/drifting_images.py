"""What learning only when the stream has drifted saves, and what it costs in accuracy.

Runs ``tensair run drifting-images`` as a user does, for each seed in each mode, one
after the other, and prints what was detected, how much was learned, and how good the
model was: on each image before it was learned (prequential), and on held-out images
at the end. Nothing is asserted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from measure import Load, Spread, child_environment, environment
from report import table

MODES = ("auto", "always", "never")

# What is asked on the digits, over all seeds.
LEARNED_AT_MOST = 0.6  # of what mode always learns
ACCURACY_WITHIN = 0.01
FALSE_ALARMS_AT_MOST = 1  # in any run


def run(mode: str, seed: int, options: list[str]) -> dict[str, Any]:
    """One run in processes of its own; what it prints with ``--json``."""
    line = [sys.executable, "-m", "tensair_dask", "run", "drifting-images", "--json"]
    line += [f"--mode={mode}", f"--seed={seed}", *options]
    load = Load()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*line, f"--output={folder}"],
            capture_output=True,
            text=True,
            env=child_environment(),
        )
    if done.returncode:
        raise click.ClickException(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout), "load": load.stop()}


def _spread(values: list[float], digits: int) -> str:
    spread = Spread.of(values)
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    return f"{spread.median:.{digits}f} ({low} to {high})"


def _rows(rounds: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for mode in MODES:
        if not (runs := [each[mode] for each in rounds if mode in each]):
            continue
        delays = [swap["delay"] for each in runs for swap in each["swaps"]]
        known = [delay for delay in delays if delay is not None]
        others = [each["load"]["other_cores"] for each in runs]
        rows.append(
            [
                mode,
                f"{len(known)} of {len(delays)}",
                f"{statistics.median(known):g}, {max(known)}" if known else "-",
                ", ".join(str(len(each["false_alarms"])) for each in runs),
                _spread([each["mini_batches"]["learned"] for each in runs], 0),
                _spread([each["mini_batches"]["share_learned"] for each in runs], 2),
                _spread([each["accuracy"]["prequential"] for each in runs], 4),
                _spread([each["accuracy"]["held_out"] for each in runs], 4),
                _spread(others, 2),
            ]
        )
    return rows


def _verdicts(rounds: list[dict[str, Any]]) -> list[list[str]]:
    both = [each for each in rounds if "auto" in each and "always" in each]
    if not both:
        return []

    def pairs(*keys: str) -> list[tuple[float, float]]:
        found = []
        for each in both:
            one, other = each["auto"], each["always"]
            for key in keys:
                one, other = one[key], other[key]
            found.append((one, other))
        return found

    def row(says: str, values: list[float], target: str, met: bool) -> list[str]:
        return [says, _spread(values, 4), target, "yes" if met else "NO"]

    autos = [each["auto"] for each in both]
    false = [float(len(each["false_alarms"])) for each in autos]
    missed = [float(each["missed"]) for each in autos]
    ratios = [one / other for one, other in pairs("mini_batches", "learned")]
    final = [one - other for one, other in pairs("accuracy", "held_out")]
    prequential = [one - other for one, other in pairs("accuracy", "prequential")]
    within = ACCURACY_WITHIN
    return [
        row("swaps missed, a run", missed, "0", max(missed) == 0),
        row(
            "false alarms, a run",
            false,
            f"<= {FALSE_ALARMS_AT_MOST} in each",
            max(false) <= FALSE_ALARMS_AT_MOST,
        ),
        row(
            "mini-batches learned, auto / always",
            ratios,
            f"<= {LEARNED_AT_MOST}",
            max(ratios) <= LEARNED_AT_MOST,
        ),
        row(
            "held-out accuracy at the end, auto - always",
            final,
            f"median >= -{within}",
            statistics.median(final) >= -within,
        ),
        row(
            "prequential accuracy, auto - always",
            prequential,
            f"median >= -{within}",
            statistics.median(prequential) >= -within,
        ),
    ]


def render(data: dict[str, Any], markdown: bool) -> str:
    """Make tables of all runs."""
    rounds = data["rounds"]
    first = next(iter(rounds[0].values()))
    baselines = ", ".join(
        f"{name} {value:.3f}" for name, value in first["accuracy"]["baselines"].items()
    )
    header = ["mode", "swaps detected", "delay: median, most", "false alarms, each run"]
    header += ["mini-batches learned", "share", "prequential accuracy"]
    header += ["held-out accuracy", "other load"]
    return "\n".join(
        [
            json.dumps(data["environment"]),
            f"{first['dataset']}, {len(rounds)} seeds; options: "
            f"{' '.join(data['options'])}. Median (smallest to largest). Delays are in "
            "mini-batches. Other load is the CPU that foreign processes used, in "
            "cores: nothing here is a timing, but replicas that wait are staler.",
            f"Accuracy of guesses without a model: {baselines}.",
            table("Modes", header, _rows(rounds), markdown),
            table(
                "Auto beside always, by seed",
                ["", "median (range)", "target", "met"],
                _verdicts(rounds),
                markdown,
            ),
        ]
    )


@click.command(help=__doc__)
@click.option("--seeds", default=5, show_default=True)
@click.option("--modes", default=",".join(MODES), show_default=True)
@click.option("--rate", default="max", show_default=True, help="Images a second.")
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
@click.argument("more", nargs=-1)
def main(
    seeds: int,
    modes: str,
    rate: str,
    json_path: Path | None,
    markdown: bool,
    more: tuple[str, ...],
) -> None:
    """Run all; MORE are options of the pipeline, after ``--``."""
    options = [f"--rate={rate}", *more]
    rounds: list[dict[str, Any]] = []
    data = {"environment": environment(), "options": options, "rounds": rounds}
    for seed in range(seeds):
        rounds.append({})
        for mode in modes.split(","):
            result = rounds[-1][mode] = run(mode, seed, options)
            click.echo(
                f"seed {seed}  {mode:<6} delays "
                f"{[swap['delay'] for swap in result['swaps']]}  false alarms "
                f"{result['false_alarms']}  learned "
                f"{result['mini_batches']['share_learned']:.2f}  accuracy "
                f"{result['accuracy']['prequential']:.4f}, held out "
                f"{result['accuracy']['held_out']:.4f}  {result['seconds']:.0f} s",
                err=True,
            )
            if json_path is not None:
                json_path.write_text(json.dumps(data))
    click.echo(render(data, markdown))


if __name__ == "__main__":
    main()
