"""What drift detectors cost and how well they find known changes.

``detectors``: time of an update at a full window, size of the state, and F1, delay and
false alarms on seeded streams (`tensair_dask.drift.synthetic`). Detectors take turns
within a round; the median over the rounds is given with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable, Iterator

import numpy as np
from measure import Load, Spread, environment
from report import QUIET_CORES, table

from tensair_dask import drift
from tensair_dask.drift import Detector, optwin_cuts, synthetic

CONTENDERS: dict[str, Callable[[], Detector]] = {
    "OPTWIN": drift.OPTWIN,
    "OPTWIN(confidence=0.998)": lambda: drift.OPTWIN(confidence=0.998),
    "OPTWIN(variance_test=True)": lambda: drift.OPTWIN(variance_test=True),
    "OPTWIN(reference=True)": lambda: drift.OPTWIN(reference=True),
    "ADWIN": drift.ADWIN,
    "ADWIN(clock=1)": lambda: drift.ADWIN(clock=1),
    "PageHinkley": drift.PageHinkley,
    "PageHinkley, as in river": lambda: drift.PageHinkley(
        threshold=50, delta=0.005, standardize=False
    ),
    "DDM": drift.DDM,
    "KSWIN": drift.KSWIN,
}
# Values before the timing, so that windows are full and caches of code are warm.
FULL = 26_000
BLOCK = 1024  # values timed at once: each block holds one renewal of OPTWIN's sums


def quiet_values(count: int, seed: int) -> list[float]:
    """Errors in [0, 1] without any change, and hardly ever an alarm.

    Each is as far from 0.5 as the next one, on the other side: so windows fill up.
    """
    half = np.random.default_rng(seed).uniform(0, 0.5, count // 2)
    return np.stack([half, 1 - half], axis=1).ravel().tolist()


def time_updates(rounds: int) -> list[list[str]]:
    """Time one update of each detector at a full window."""
    detectors = {name: make() for name, make in CONTENDERS.items()}
    for detector in detectors.values():
        slow = isinstance(detector, drift.KSWIN)
        for value in quiet_values(1000 if slow else FULL, seed=0):
            detector.update(value)
    found: dict[str, list[float]] = {name: [] for name in detectors}
    alarms = dict.fromkeys(detectors, 0)
    for number in range(rounds):
        values = quiet_values(BLOCK, seed=1 + number)
        for name, detector in detectors.items():
            # CPU time: a block is shorter than a turn of the scheduler.
            before = time.thread_time()
            for value in values:
                alarms[name] += detector.update(value)
            found[name].append((time.thread_time() - before) / BLOCK * 1e6)
    rows = []
    for name, detector in detectors.items():
        spread = Spread.of(found[name])
        rows.append(
            [
                name,
                f"{spread.median:.2f}",
                f"{spread.low:.2f} to {spread.high:.2f}",
                f"{len(pickle.dumps(detector)):,}",
                f"{detector.bytes:,}",
                str(alarms[name]),
            ]
        )
    return rows


def find_changes(runs: int, seed: int) -> list[list[str]]:
    """Find the changes of all kinds of streams."""
    rows = []
    kinds = {kind: synthetic.generate(kind, runs, seed) for kind in synthetic.KINDS}
    kinds["losses, by half a deviation"] = small_rises(runs, seed)
    for kind, labelled in kinds.items():
        for name, make in CONTENDERS.items():
            if isinstance(make(), drift.DDM) and labelled[0].values.max() > 1:
                continue  # it takes errors only
            result = drift.evaluate(make(), labelled)
            rows.append(
                [
                    kind,
                    name,
                    f"{result.f1:.3f}",
                    f"{result.precision:.3f}",
                    f"{result.recall:.3f}",
                    f"{result.delay_mean:.1f}",
                    f"{result.delay_median:g}",
                    f"{result.false_alarms_per_run:.2f}",
                ]
            )
    return rows


def small_rises(runs: int, seed: int) -> list[synthetic.LabelledStream]:
    """Losses of mean 1 and deviation 0.5 (gamma) that rise by 0.25."""
    made = []
    for stream in synthetic.stationary("loss 1, sd 0.5", runs, seed):
        values = stream.values.copy()
        values[len(values) // 2 :] += 0.25
        made.append(synthetic.LabelledStream("small", values, (len(values) // 2,)))
    return made


def rare_errors(runs: int, seed: int) -> list[synthetic.LabelledStream]:
    """Errors at a rate of 0.01, without a change."""
    made = []
    for run in range(runs):
        values = np.random.default_rng(seed + run).random(2000) < 0.01
        made.append(synthetic.LabelledStream("rare", values.astype(float), ()))
    return made


def false_alarms(runs: int, seed: int) -> list[list[str]]:
    """Count alarms in streams without a change."""
    labelled = {
        kind: synthetic.stationary(kind, runs, seed) for kind in synthetic.STATIONARY
    }
    labelled["errors 0.01"] = rare_errors(runs, seed)
    rows = []
    for name, make in CONTENDERS.items():
        row = [name]
        for some in labelled.values():
            # DDM takes errors only.
            if isinstance(make(), drift.DDM) and some[0].values.max() > 1:
                row.append("refused")
            else:
                row.append(f"{drift.evaluate(make(), some).false_alarms_per_run:.2f}")
        rows.append(row)
    return rows


def time_cuts() -> list[list[str]]:
    """Time OPTWIN's table where nothing is kept from before."""
    rows = []
    for confidence in (0.99, 0.998):
        rows_of = optwin_cuts.Cuts(confidence, 0.5)
        longest = 0.0
        start = time.perf_counter()
        while len(rows_of) <= 25_000:
            before = time.perf_counter()
            rows_of.grow(len(rows_of))
            longest = max(longest, time.perf_counter() - before)
        total = time.perf_counter() - start
        rows.append([f"{confidence}", f"{total:.2f}", f"{longest * 1000:.0f}"])
    return rows


def detectors(arguments: argparse.Namespace) -> Iterator[str]:
    """Print every table of the command ``detectors``."""
    import dask
    import scipy.special  # noqa: F401  its import is not what is timed

    with dask.config.set({"tensair.drift.cache": None}):
        yield table(
            "OPTWIN's table of cuts for 25,000 values, computed anew",
            ["confidence", "seconds", "longest chunk, ms"],
            time_cuts(),
            markdown=True,
        )
        yield table(
            f"CPU of one update at a full window, median of {arguments.rounds} rounds",
            ["detector", "us", "range", "pickled, bytes", "bytes at most", "alarms"],
            time_updates(arguments.rounds),
            markdown=True,
        )
        yield table(
            f"Errors that rise from 0.2 to 0.8, losses; {arguments.runs} streams each",
            [
                "stream",
                "detector",
                "F1",
                "precision",
                "recall",
                "delay, mean",
                "median",
                "false alarms a stream",
            ],
            find_changes(arguments.runs, arguments.seed),
            markdown=True,
        )
        yield table(
            f"False alarms in 2,000 values without a change, {arguments.runs} streams",
            ["detector", *synthetic.STATIONARY, "errors 0.01"],
            false_alarms(arguments.runs, arguments.seed),
            markdown=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("detectors", help="cost and quality of every detector")
    one.add_argument("--runs", type=int, default=30, help="streams of each kind")
    one.add_argument("--rounds", type=int, default=15, help="of the timing")
    one.add_argument("--seed", type=int, default=0, help="of the first stream")
    one.set_defaults(run=detectors)
    arguments = parser.parse_args()

    machine = environment()
    print(
        f"{machine['processor']}, {machine['cores']} cores; {machine['system']}; "
        f"Python {machine['python']}, numpy {machine['packages']['numpy']}. Load "
        f"average {', '.join(f'{x:.2f}' for x in machine['load_average'])}.\n"
    )
    load = Load()
    for part in arguments.run(arguments):
        print(part, flush=True)
    others = load.stop()["other_cores"]
    print(
        f"CPU that others used meanwhile: {others:.2f} cores (disturbed above "
        f"{QUIET_CORES})."
    )


if __name__ == "__main__":
    main()
