"""Run contenders in fresh processes, and know how quiet the machine was meanwhile."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Load", "Spread", "child_environment", "environment", "run_contender"]

# Gives every process one intra-op thread, whatever library asks.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Sum up the values of the rounds."""
        return cls(statistics.median(values), min(values), max(values))


class Load:
    """CPU that others used between start and stop, in cores.

    The load average lags by a minute and counts us too. What the machine was busy with,
    less what our own (ended) children used, is what disturbed the measurement.
    """

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._busy, self._stolen = self._system()
        self._own = self._ours()

    @staticmethod
    def _system() -> tuple[float, float]:
        times = psutil.cpu_times()
        stolen = getattr(times, "steal", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guest time is contained in user time already.
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return sum(times) - guest - idle - stolen, stolen

    @staticmethod
    def _ours() -> float:
        usages = [
            resource.getrusage(who)
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def stop(self) -> dict[str, Any]:
        """Return what others and the hypervisor took since the start."""
        wall = time.perf_counter() - self._wall
        busy, stolen = self._system()
        others = (busy - self._busy) - (self._ours() - self._own)
        return {
            "load_average": os.getloadavg(),
            "other_cores": max(0.0, others / wall),
            "stolen_cores": (stolen - self._stolen) / wall,
        }


def child_environment() -> dict[str, str]:
    """Return the environment of a contender: one thread, glibc's own allocator."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }
    return environment | dict.fromkeys(_ONE_THREAD, "1")


def run_contender(
    contender: str,
    *options: str,
    timeout: float,
    script: str = "contenders.py",
    own_group: bool = False,
) -> dict[str, Any]:
    """Run one contender in a fresh process and return what it printed, with the load.

    With ``own_group`` Linux gives it a share of the CPUs as if it were one process.

    Raises
    ------
    RuntimeError
        The contender failed; the message ends with what it wrote.
    """
    load = Load()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), contender, *options],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        start_new_session=own_group,
    )
    if done.returncode:
        raise RuntimeError(
            f"{contender} {' '.join(options)} ended with {done.returncode}:\n"
            f"{done.stderr[-4000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1]) | {"load": load.stop()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def environment() -> dict[str, Any]:
    """Say on what the figures were taken."""
    packages = ("torch", "dask", "distributed", "streamz", "numpy", "tensair-dask")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "load_average": os.getloadavg(),
    }
