"""Find the highest rate that each contender sustains when a driver sets the pace.

A closed loop, as in `training.py`, waits for the learner; a stream does not. Here a
process of its own emits mini-batches on a schedule over a socket. A rate is sustained
if over a window of 20 s the backlog grows by less than 1.5 % of the rate, and the
median latency of the last third is about that of the first. The latency of a
mini-batch is the time from when it was scheduled until it was learned.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from measure import Spread, environment
from open_loop.contenders import CONTENDERS
from open_loop.contest import Failed, Times, contest, measure
from report import table
from workloads import WORKLOADS

HEAVY = Path(__file__).parents[1] / ".venv-benchmark" / "bin" / "python"
MODELS = ("85k", "1.1m")  # a frame holds flat features


def once(
    name: str, model: str, pool: Path, common: list[float], times: Times
) -> dict[str, Any]:
    """Run one contender, and return what was measured or why it was not."""
    contender = CONTENDERS[name]
    if contender.heavy and not HEAVY.exists():
        return {"failed": "needs `make benchmark-env`"}
    python = HEAVY if contender.heavy else Path(sys.executable)
    begun = time.monotonic()
    try:
        with contest(contender, python, model, pool, times) as run:
            answer = measure(run, contender.warmup, common, times)
    except Failed as error:
        return {"failed": str(error)}
    return answer | {"took": time.monotonic() - begun}


def _numbers(values: list[float], form: str = ",.0f") -> str:
    """Write the median of the rounds, and the range where there are several."""
    spread = Spread.of(values)
    if len(values) == 1:
        return format(spread.median, form)
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"


def _latency(trials: list[dict[str, Any]]) -> str:
    trials = [trial for trial in trials if "p50_ms" in trial]
    if not trials:
        return ""
    p50, p99 = ([trial[key] for trial in trials] for key in ("p50_ms", "p99_ms"))
    return f"{_numbers(p50, ',.3g')} / {_numbers(p99, ',.3g')}"


def _cpu(trials: list[dict[str, Any]]) -> str:
    values = [trial["cpu_us"] for trial in trials if "cpu_us" in trial]
    return _numbers(values) if values else ""


def row(name: str, answers: list[dict[str, Any]], common: list[str]) -> list[str]:
    """Sum up the rounds of one contender."""
    says = CONTENDERS[name].says
    good = [answer for answer in answers if "sustained" in answer]
    if not good:
        reason = answers[0]["failed"].strip().splitlines()
        return [says, f"not measured: {reason[0]} {reason[-1]}"[:200]]
    at_80 = [answer["at_80"] for answer in good]
    cells = [
        says,
        _numbers([answer["sustained"] for answer in good])
        + ("" if all(answer["confirmed"] for answer in good) else " (not sustained)"),
        _cpu([answer["at_limit"] for answer in good]),
        _latency(at_80),
    ]
    for rate in common:
        trials = [each["common"][rate] for each in good if rate in each["common"]]
        cells += [_cpu(trials), _latency(trials)]
    loads = [each["other_cores"] for each in at_80 if "other_cores" in each]
    return [
        *cells,
        str(max(answer["processes"] for answer in good)),
        str(max(answer["groups"] for answer in good)),
        _numbers(loads, ".2f") if loads else "",
    ]


def render(data: dict[str, Any], common: list[str], markdown: bool) -> str:
    """Make the table, and say how each contender was set."""
    header = [
        "contender",
        "sustained, mini-batches/s",
        "CPU there, us a mini-batch",
        "p50 / p99 at 80 %, ms",
    ]
    for rate in common:
        header += [f"CPU at {rate}/s, us", f"p50 / p99 at {rate}/s, ms"]
    header += ["processes", "scheduling groups", "other load"]
    rows = []
    for name in CONTENDERS:
        if answers := data["contenders"].get(name):
            cells = row(name, answers, common)
            rows.append(cells + [""] * (len(header) - len(cells)))
    settings = [
        f"{'* ' if markdown else ''}{each.says}: {each.settings}."
        + (f" Unfair: {each.unfair}." if each.unfair else "")
        for name, each in CONTENDERS.items()
        if name in data["contenders"]
    ]
    return table("Open loop", header, rows, markdown) + "\n\n" + "\n".join(settings)


def _names(ctx: Any, param: Any, value: str) -> list[str]:
    names = value.split(",")
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise click.BadParameter(f"{unknown} are none of {', '.join(CONTENDERS)}")
    return names


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(MODELS), default="85k", show_default=True)
@click.option("--contenders", default=",".join(CONTENDERS), callback=_names)
@click.option("--rounds", default=1, show_default=True)
@click.option("--window", default=20.0, show_default=True, help="Seconds.")
@click.option("--trial", default=6.0, show_default=True, help="Window of the search.")
@click.option("--latency", default=10.0, show_default=True, help="Other windows.")
@click.option("--common", default="20,200", show_default=True, help="Rates for all.")
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--add", is_flag=True, help="Keep the rounds that lie in that file.")
@click.option("--markdown", is_flag=True, help="A table in Markdown.")
def main(
    model: str,
    contenders: list[str],
    rounds: int,
    window: float,
    trial: float,
    latency: float,
    common: str,
    json_path: Path | None,
    add: bool,
    markdown: bool,
) -> None:
    times = Times(window=window, trial=trial, latency=latency)
    rates = [float(rate) for rate in common.split(",")]
    data: dict[str, Any] = {"environment": environment(), "contenders": {}}
    if add and json_path is not None and json_path.exists():
        data = json.loads(json_path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.npz"
        WORKLOADS[model].write_pool(pool)
        for turn in range(rounds):
            for name in contenders[:: -1 if turn % 2 else 1]:
                answer = once(name, model, pool, rates, times)
                data["contenders"].setdefault(name, []).append(answer)
                said = answer.get("failed") or (
                    f"{answer['sustained']:.0f}/s in {answer['took']:.0f} s"
                )
                click.echo(f"round {turn + 1}: {name} {said}", err=True)
                if json_path is not None:
                    json_path.write_text(json.dumps(data), encoding="utf-8")
    click.echo(render(data, [f"{rate:g}" for rate in rates], markdown))


if __name__ == "__main__":
    main()
