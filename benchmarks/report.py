"""Turn what `training.py` measured into tables.

Also on its own, from its JSON file::

    python benchmarks/report.py out.json --markdown
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from contenders import CONTENDERS
from measure import Spread

__all__ = ["COMPARISONS", "render"]

Rounds = dict[str, dict[str, Any]]  # contender -> its result, one such a round
Row = list[str]


@dataclass(frozen=True)
class Comparison:
    """A ratio of two rates, and the least that it should be, per model."""

    ours: str
    other: str
    at_least: dict[str, float]


COMPARISONS = (
    Comparison("replicas-1", "plain", {"85k": 0.9, "1.1m": 0.95, "cnn": 0.95}),
    # How much of the line above is the allocator's, which replicas set (memory.py).
    Comparison("replicas-1", "plain-kept", {}),
    Comparison("replicas-2", "plain", {"85k": 1.4, "1.1m": 1.25}),
    Comparison("replicas-2", "plain-2", {"cnn": 0.93}),
    Comparison("replicas-2", "plain-2-kept", {}),
    Comparison("replicas-2", "ddp", {"85k": 2.5, "1.1m": 2.0}),
    Comparison("replicas-2", "hogwild", {"85k": 0.8, "1.1m": 1.2}),
)
CLIENT_CPU_US_AT_MOST = {"85k": 100.0}
GRADIENT_AGE_MS_AT_MOST = 100.0
ACCURACY_WITHIN = 0.01
QUIET_CORES = 0.05  # of CPU used by others; above, a round is disturbed


def _verdict(met: bool) -> str:
    return "yes" if met else "NO"


def _disturbed(rounds: list[Rounds], *contenders: str) -> str:
    """Count the rounds in which others used the machine beside these contenders."""
    counted = [
        max(r[name]["load"]["other_cores"] for name in contenders) > QUIET_CORES
        for r in rounds
        if all(name in r for name in contenders)
    ]
    return f"{sum(counted)} of {len(counted)}"


def table(title: str, header: Row, rows: list[Row], markdown: bool) -> str:
    """Lay out one table, as Markdown or aligned for a terminal."""
    if not rows:
        return ""
    if markdown:
        lines = [header, ["---"] * len(header), *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {title}\n\n{body}\n"
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    body = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in [header, ["-" * width for width in widths], *rows]
    )
    return f"{title}\n{body}\n"


def _values(rounds: list[Rounds], contender: str, key: str) -> list[float]:
    return [r[contender][key] for r in rounds if key in r.get(contender, {})]


def _spread(values: Iterable[float], digits: int) -> Row:
    spread = Spread.of(list(values))
    return [
        f"{spread.median:,.{digits}f}",
        f"{spread.low:,.{digits}f} to {spread.high:,.{digits}f}",
    ]


def _rates(model: str, rounds: list[Rounds]) -> list[Row]:
    rows = []
    for contender, says in CONTENDERS.items():
        rates = _values(rounds, contender, "rate")
        if not rates:
            continue
        others = [r[contender]["load"]["other_cores"] for r in rounds if contender in r]
        # The range too: a median hides the one round that was disturbed.
        rows.append(
            [
                model,
                says,
                *_spread(rates, 1 if max(rates) < 100 else 0),
                _spread(_values(rounds, contender, "cpu_us"), 0)[0],
                _spread(_values(rounds, contender, "loss"), 3)[0],
                *_spread(others, 2),
                _disturbed(rounds, contender),
            ]
        )
    return rows


def _ratios(model: str, rounds: list[Rounds]) -> list[Row]:
    rows = []
    for comparison in COMPARISONS:
        pairs = [
            (r[comparison.ours]["rate"], r[comparison.other]["rate"])
            for r in rounds
            if "rate" in r.get(comparison.ours, {})
            and "rate" in r.get(comparison.other, {})
        ]
        if not pairs:
            continue
        ratios = [ours / other for ours, other in pairs]
        target = comparison.at_least.get(model)
        rows.append(
            [
                model,
                f"{CONTENDERS[comparison.ours]} / {CONTENDERS[comparison.other]}",
                *_spread(ratios, 2),
                "" if target is None else f">= {target:.2f}",
                "" if target is None else _verdict(Spread.of(ratios).median >= target),
                _disturbed(rounds, comparison.ours, comparison.other),
            ]
        )
    return rows


def _client_cpu(model: str, rounds: list[Rounds]) -> list[Row]:
    rows = []
    for contender in ("replicas-1", "replicas-2"):
        values = _values(rounds, contender, "client_scheduler_cpu_us")
        if not values:
            continue
        target = CLIENT_CPU_US_AT_MOST.get(model)
        rows.append(
            [
                model,
                CONTENDERS[contender],
                *_spread(values, 0),
                "" if target is None else f"<= {target:.0f}",
                "" if target is None else _verdict(Spread.of(values).median <= target),
            ]
        )
    return rows


def _exchange(model: str, rounds: list[Rounds]) -> list[Row]:
    """Show the worst replica of each round: a mean over replicas would flatter."""
    found = [r["replicas-2"] for r in rounds if "exchange" in r.get("replicas-2", {})]
    if not found:
        return []

    def worst(key: str) -> list[float]:
        return [max(replica[key] for replica in f["exchange"]) for f in found]

    p95 = worst("age_p95_ms")
    return [
        [
            model,
            *(_spread(worst(f"age_{key}_ms"), 0)[0] for key in ("mean", "p95", "max")),
            f"p95 <= {GRADIENT_AGE_MS_AT_MOST:.0f}",
            _verdict(Spread.of(p95).median <= GRADIENT_AGE_MS_AT_MOST),
            _spread(worst("messages_per_second"), 1)[0],
            _spread(worst("mb_per_second"), 1)[0],
            _spread(worst("staleness_mean"), 0)[0],
        ]
    ]


def _second_half(result: dict[str, Any]) -> float:
    scores = result["scores"]
    half = scores[len(scores) // 2 :]
    return sum(half) / len(half)


def _accuracy(model: str, rounds: list[Rounds]) -> list[Row]:
    """Judge by the whole stream; the second half tells a slow start from a lasting gap.

    The gap of a slow start shrinks as the stream gets longer, so its length is shown.
    """
    rows = []
    plain = [r["plain"] for r in rounds if "accuracy" in r.get("plain", {})]
    if plain:
        rows.append(
            [
                model,
                CONTENDERS["plain"],
                str(len(plain[0]["scores"])),
                *_spread((p["accuracy"] for p in plain), 4),
                *[""] * 5,
            ]
        )
    for contender in ("replicas-1", "replicas-2"):
        pairs = [
            (r[contender], r["plain"])
            for r in rounds
            if "accuracy" in r.get(contender, {}) and "accuracy" in r.get("plain", {})
        ]
        if not pairs:
            continue
        differences = [ours["accuracy"] - other["accuracy"] for ours, other in pairs]
        later = [_second_half(ours) - _second_half(other) for ours, other in pairs]
        off = abs(Spread.of(differences).median)
        rows.append(
            [
                model,
                CONTENDERS[contender],
                str(len(pairs[0][0]["scores"])),
                *_spread((ours["accuracy"] for ours, _ in pairs), 4),
                *_spread(differences, 4),
                f"within {ACCURACY_WITHIN}",
                _verdict(off <= ACCURACY_WITHIN),
                _spread(later, 4)[0],
            ]
        )
    return rows


def render(data: dict[str, Any], markdown: bool = False) -> str:
    """Lay out everything that one run of `training.py` found."""
    machine = data["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    load = ", ".join(f"{value:.2f}" for value in machine["load_average"])
    lines = [
        f"{machine['processor']}, {machine['cores']} cores,"
        f" {machine['memory_gib']} GiB; {machine['system']};"
        f" Python {machine['python']}; {packages}.",
        f"Load average at the start (1, 5, 15 minutes): {load}. 'other load' below is"
        " the CPU that processes other than the contender's used while it ran, in"
        f" cores; a round with more than {QUIET_CORES} counts as disturbed, and its"
        " figures are not to be trusted.",
        f"Measured {data['seconds']:g} s after a warm-up of {data['warmup']:g} s, in"
        " fresh processes, one intra-op thread each, SGD lr 0.05, every loss read."
        " Contenders take turns within a round; a ratio is taken within its round;"
        " the median over the rounds is given, with the smallest and the largest.",
        *(f"{name}: {says}." for name, says in data["workloads"].items()),
    ]
    models = data["rounds"]
    tables = [
        (
            "Mini-batches per second",
            [
                "model",
                "contender",
                "mini-batches/s",
                "range",
                "CPU us per mini-batch",
                "loss",
                "other load",
                "range",
                "rounds disturbed",
            ],
            _rates,
            "throughput",
        ),
        (
            "Ratios",
            ["model", "ratio", "median", "range", "target", "met", "rounds disturbed"],
            _ratios,
            "throughput",
        ),
        (
            "CPU of client and scheduler, us per mini-batch",
            ["model", "contender", "median", "range", "target", "met"],
            _client_cpu,
            "throughput",
        ),
        (
            "Exchange between two replicas: age of a gradient when applied, ms",
            [
                "model",
                "mean",
                "p95",
                "max",
                "target",
                "met",
                "messages/s",
                "MB/s",
                "staleness (gradients)",
            ],
            _exchange,
            "throughput",
        ),
        (
            "Prequential accuracy at equal samples",
            [
                "model",
                "contender",
                "mini-batches",
                "accuracy",
                "range",
                "minus plain",
                "range",
                "target",
                "met",
                "second half minus plain",
            ],
            _accuracy,
            "accuracy",
        ),
    ]
    parts = ["\n".join(f"- {line}" for line in lines) + "\n"]
    for title, header, rows_of, part in tables:
        rows = [
            row
            for model, measured in models.items()
            for row in rows_of(model, measured[part])
        ]
        parts.append(table(title, header, rows, markdown))
    if data["failures"]:
        parts.append("FAILED, and left out above:\n" + "\n".join(data["failures"]))
    return "\n".join(part for part in parts if part)


@click.command(help=__doc__)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(path: Path, markdown: bool) -> None:
    click.echo(render(json.loads(path.read_text(encoding="utf-8")), markdown))


if __name__ == "__main__":
    main()
