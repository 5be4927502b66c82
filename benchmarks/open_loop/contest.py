"""One contender and its driver: trials at given rates, and the search for the limit."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import Load, child_environment

from open_loop.contenders import Contender
from open_loop.driver import serve
from open_loop.family import Family
from open_loop.verdict import judge

__all__ = ["Contest", "Failed", "Times", "contest", "measure"]

BENCHMARKS = Path(__file__).parents[1]
OUTSTANDING = 256  # in the closed loop that estimates where to search
RESOLUTION = 1.05  # of the search
TRIALS, CONFIRMATIONS = 8, 4


class Failed(RuntimeError):
    """The contender ended, or does not learn what it is sent."""


@dataclass(frozen=True)
class Times:
    """How long things take, in seconds."""

    window: float = 20.0  # that confirms the limit
    trial: float = 6.0  # of the search
    latency: float = 10.0  # at 80 % of the limit and at the common rates
    lead: float = 2.0  # of the same rate, before each of them
    start: float = 120.0  # until a contender has connected
    drain: float = 30.0  # until all is learned


class Contest:
    """Runs trials; made by `contest`."""

    def __init__(
        self, pipe: Any, driver: Family, process: subprocess.Popen[bytes], log: Path
    ) -> None:
        self._pipe = pipe
        self._driver = driver
        self._process = process
        self._log = log
        self.family = Family(process.pid)
        self.trials: list[dict[str, Any]] = []

    def _answer(self, timeout: float) -> Any:
        """Wait for the driver; None if the time is over."""
        deadline = time.monotonic() + timeout
        while not self._pipe.poll(max(0.0, min(0.2, deadline - time.monotonic()))):
            if self._process.poll() is not None:
                raise Failed(f"It has ended:\n{self.log()}")
            if time.monotonic() > deadline:
                return None
        try:
            return self._pipe.recv()
        except EOFError:
            raise Failed(f"It has not connected, or hung up:\n{self.log()}") from None

    def log(self) -> str:
        """Return the end of what the contender wrote."""
        return self._log.read_text("utf-8", "replace")[-6000:]

    def connected(self, timeout: float) -> None:
        """Wait until the contender has connected."""
        self._pipe.send(timeout)
        if self._answer(timeout + 5) is None:
            raise Failed(f"It has not connected:\n{self.log()}")

    def _used(self) -> tuple[float, float, float]:
        return (
            time.monotonic(),
            self.family.cpu_seconds(),
            self._driver.cpu_seconds() + time.process_time(),
        )

    def capacity(self, seconds: float, drain: float) -> float:
        """Return what a closed loop learns a second, after a third of the time."""
        self._pipe.send((20_000.0, seconds, drain, OUTSTANDING))
        answer = self._answer(seconds + drain + 5)
        if answer is None or answer["lost"]:
            raise Failed(f"It did not learn all that it was sent:\n{self.log()}")
        learned = answer["learned"] - answer["start"]
        first, last = seconds / 3, seconds
        inside = ((learned >= first) & (learned < last)).sum()
        if not inside:
            raise Failed(f"It learned nothing in {last - first:.0f} s:\n{self.log()}")
        return float(inside / (last - first))

    def trial(self, rate: float, window: float, times: Times) -> dict[str, Any]:
        """Emit at one rate, and say how it went in the window that follows the lead."""
        seconds = times.lead + window
        load = Load()
        self._pipe.send((rate, seconds, times.drain, None))
        answer = self._answer(times.lead)
        before = self._used()
        answer = answer or self._answer(window)
        after = self._used()
        others = load.stop()["other_cores"]
        answer = answer or self._answer(times.drain + 5)
        if answer is None or answer["lost"] or answer["twice"]:
            raise Failed(f"It did not learn each item once:\n{self.log()}")
        result = self._judged(answer, rate, window, times.lead)
        elapsed, own, drivers = (b - a for a, b in zip(before, after, strict=True))
        if not result["given_up"] and elapsed > 0.9 * window:
            learned = answer["learned"]
            inside = (learned >= before[0]) & (learned < after[0])
            result["cpu_us"] = 1e6 * own / max(1, inside.sum())
            result["cores"] = own / elapsed
            result["driver_cores"] = drivers / elapsed
            # `others` has the lead and, beside ourselves, all these processes.
            busy = others * (elapsed + times.lead) - (own + drivers) * (
                1 + times.lead / elapsed
            )
            result["other_cores"] = max(0.0, busy / (elapsed + times.lead))
        self.trials.append(result)
        return result

    @staticmethod
    def _judged(
        answer: dict[str, Any], rate: float, window: float, lead: float
    ) -> dict[str, Any]:
        result = {"rate": rate, "window": window, "given_up": answer["given_up"]}
        if answer["given_up"]:
            return result | {"sustained": False}
        learned, start = answer["learned"], answer["start"]
        scheduled = start + np.arange(len(learned)) / rate
        verdict = judge(scheduled, learned, start + lead, start + lead + window, rate)
        return result | verdict | {"loss": float(np.mean(answer["loss"][-200:]))}


@contextmanager
def contest(
    contender: Contender, python: Path, model: str, pool: Path, times: Times
) -> Iterator[Contest]:
    """Start a driver and a contender, each in a session of its own; end all of both."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    connections = contender.connections
    shards = contender.shards or connections
    arguments = (theirs, pool, connections, shards, contender.text)
    driver = context.Process(target=serve, args=arguments, daemon=True)
    driver.start()
    theirs.close()
    data, acks = ours.recv()
    environment = child_environment() | {
        "OPEN_LOOP_DATA": str(data),
        "OPEN_LOOP_ACKS": str(acks),
        "OPEN_LOOP_MODEL": model,
        "PYTHONPATH": str(BENCHMARKS),
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(python),
                    "-m",
                    f"open_loop.{contender.module}",
                    *contender.arguments,
                ],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        made = Contest(ours, Family(driver.pid or os.getpid()), process, log)
        try:
            made.connected(times.start)
            yield made
        finally:
            made.family.kill()
            process.wait()
            ours.close()
            driver.join(5)
            driver.kill()


def _search(run: Contest, capacity: float, times: Times) -> float:
    """Bisect for the highest rate that short trials sustain."""
    low, high, rate = 0.0, 0.0, 0.9 * capacity
    for _ in range(TRIALS):
        if run.trial(rate, times.trial, times)["sustained"]:
            low = rate
        else:
            high = rate
        if low and high and high / low < RESOLUTION:
            break
        if not low:
            rate = 0.75 * high
        elif not high:
            rate = 1.12 * low
        else:
            rate = (low * high) ** 0.5
    if not low:
        raise Failed(f"It does not even sustain {high:.0f} mini-batches a second.")
    return low


def _confirmed(run: Contest, rate: float, times: Times) -> tuple[float, bool]:
    """Go down until a whole window is sustained; else return the last that was not."""
    for turn in range(CONFIRMATIONS):
        rate *= 0.95 if turn else 1.0
        if run.trial(rate, times.window, times)["sustained"]:
            return rate, True
    return rate, False


def measure(
    run: Contest, warmup: float, common: list[float], times: Times
) -> dict[str, Any]:
    """Find the limit of a contender, and its latency and CPU below it."""
    capacity = run.capacity(max(warmup, 3.0), times.drain)
    limit, confirmed = _confirmed(run, _search(run, capacity, times), times)
    at_limit = run.trials[-1]
    return {
        "closed_loop": capacity,
        "sustained": limit,
        "confirmed": confirmed,
        "at_limit": at_limit,
        "at_80": run.trial(0.8 * limit, times.latency, times),
        "common": {
            f"{rate:g}": run.trial(rate, times.latency, times)
            for rate in common
            if rate < 0.95 * limit
        },
        "groups": run.family.groups(),
        "processes": len(run.family.members()),
        "trials": run.trials,
    }
