"""Put what `benchmarks/training.py --json FILE` measured into docs/benchmarks/index.md.

With the file alone the table is printed; with a page as well, the table between its two
markers is replaced.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

BEGIN = "<!-- The table of training: made by `make benchmark-docs`. -->\n"
END = "<!-- The end of the table of training. -->\n"

MODELS = {
    "85k": "MLP, 85k parameters",
    "1.1m": "MLP, 1.1M",
    "cnn": "CNN, 122,570",
}
RATES = {
    "plain": "plain PyTorch loop, 1 process",
    "plain-2": "two free-running plain loops (no exchange)",
    "hogwild": "torch Hogwild, 2 processes",
    "ddp": "DDP over gloo, 2 processes",
    "replicas-1": "**tensair_dask, 1 replica**",
    "replicas-2": "**tensair_dask, 2 replicas, every gradient exchanged**",
}
RATIOS = {
    "plain": "2 replicas ÷ plain loop",
    "plain-2": "2 replicas ÷ two plain loops",
    "ddp": "2 replicas ÷ DDP",
    "hogwild": "2 replicas ÷ Hogwild",
}

Rounds = list[dict[str, Any]]  # of each round: what every contender answered


def rate(rounds: Rounds, contender: str) -> str:
    """Mini-batches a second: the median, with the smallest and the largest."""
    rates = [each[contender]["rate"] for each in rounds if contender in each]
    if not rates:
        return ""
    digits = 1 if max(rates) < 100 else 0
    low, middle, high = (
        f"{value:,.{digits}f}"
        for value in (min(rates), statistics.median(rates), max(rates))
    )
    return f"{middle} ({low} to {high})"


def ratio(rounds: Rounds, other: str) -> str:
    """How many times faster two replicas are: the median of the rounds' ratios."""
    both = [each for each in rounds if "replicas-2" in each and other in each]
    ratios = [each["replicas-2"]["rate"] / each[other]["rate"] for each in both]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def age(rounds: Rounds) -> str:
    """Milliseconds until the peer has applied a gradient, of the slower replica."""
    ages = [
        max(replica["age_p95_ms"] for replica in each["replicas-2"]["exchange"])
        for each in rounds
        if "exchange" in each.get("replicas-2", {})
    ]
    return f"{statistics.median(ages):.0f} ms" if ages else ""


def client_cpu(rounds: Rounds) -> str:
    """CPU of client and scheduler for a mini-batch."""
    found = [each.get("replicas-2", {}) for each in rounds]
    used = [each["client_scheduler_cpu_us"] for each in found if "rate" in each]
    if not used:
        return ""
    middle = statistics.median(used)
    return f"{middle:.0f} µs" if middle < 1000 else f"{middle / 1000:.1f} ms"


def accuracy(rounds: Rounds) -> str:
    """How much worse two replicas predict than the plain loop, at equal samples."""
    both = [each for each in rounds if "replicas-2" in each and "plain" in each]
    if not both:
        return ""
    gaps = [each["replicas-2"]["accuracy"] - each["plain"]["accuracy"] for each in both]
    return f"{statistics.median(gaps):.4f} of {len(both[0]['plain']['scores']):,}"


def table(measured: dict[str, Any]) -> str:
    """Lay out the table, with a column for each model that was measured."""
    models = [model for model in MODELS if model in measured["rounds"]]
    speeds = [measured["rounds"][model]["throughput"] for model in models]
    scores = [measured["rounds"][model]["accuracy"] for model in models]
    age_row = "age of a gradient when applied by the peer, p95"
    rows = [
        ["", *(MODELS[model] for model in models)],
        ["---"] * (len(models) + 1),
        *([text, *(rate(s, name) for s in speeds)] for name, text in RATES.items()),
        *([text, *(ratio(s, name) for s in speeds)] for name, text in RATIOS.items()),
        [age_row, *map(age, speeds)],
        ["client + scheduler, CPU a mini-batch", *map(client_cpu, speeds)],
        ["accuracy while learning, minus the plain loop's", *map(accuracy, scores)],
    ]
    full = [row for row in rows if any(row[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in full)


def main(measured: str, page: str | None = None) -> None:
    """Print the table, or write it into a page."""
    made = table(json.loads(Path(measured).read_text(encoding="utf-8")))
    if page is None:
        print(made, end="")
        return
    text = Path(page).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page} lacks the markers between which the table goes.")
    new = f"{before}{BEGIN}\n{made}\n{END}{after}"
    Path(page).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
