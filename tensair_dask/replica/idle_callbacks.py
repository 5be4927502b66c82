"""Let what Dask does many times a second on a worker rest where it only trains."""

from __future__ import annotations

from typing import Any

from tensair_dask import config

__all__ = ["REST", "calm"]

# So many times its own interval lies between two looks of the profiler while there are
# no tasks.
REST = 20

# Marks a worker that was calmed.
_CALMED = "_tensair_calmed"


def calm(worker: Any) -> None:
    """Wake a worker less often for things that say nothing about its replicas.

    They learn on a thread of their own. An idle worker takes 2 % of a core, most of it
    for being woken: by its profiler, which looks every 10 ms which tasks run, and by
    the ticks by which it measures, every 20 ms, how late its event loop is.

    Parameters
    ----------
    worker
        Of Dask. Changed once, however many replicas it holds.
    """
    if hasattr(worker, _CALMED):
        return
    setattr(worker, _CALMED, True)
    _rest_profiler(worker)
    _slow_ticks(worker)


def _rest_profiler(worker: Any) -> None:
    """Look seldom while no task runs: of tasks it misses a fraction of a second."""
    periodic = worker.periodic_callbacks.get("profile")
    if periodic is None:  # it is off
        return
    look, usual = periodic.callback, periodic.callback_time

    def look_or_rest() -> Any:
        # Read by the callback when it ends, for the time of the next.
        periodic.callback_time = usual if worker.active_threads else REST * usual
        return look()

    periodic.callback = look_or_rest


def _slow_ticks(worker: Any) -> None:
    periodic = worker.periodic_callbacks["tick"]
    milliseconds = 1000 * config.get_seconds("replicas.tick")
    periodic.callback_time = max(milliseconds, periodic.callback_time)
