"""Where the CPU time goes while this project trains: processes, threads, functions.

Threads are timed by the kernel, over a window with no profiler running. Afterwards
py-spy (``pip install py-spy``; needs the right to trace processes) may sample every
process, or cProfile the event loop of client and scheduler::

    python benchmarks/profile_replica.py --workload 85k --replicas 2 --py-spy
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click
import psutil
from distributed import Client
from measure import Load
from replicas import Tally, feed, training, worker_processes
from streamz import Stream
from workloads import WORKLOADS, load_pool

ThreadTimes = dict[int, tuple[float, float]]  # thread id -> user, system seconds


def _thread_names() -> dict[int, str]:
    return {t.native_id: t.name for t in threading.enumerate() if t.native_id}


def _thread_times(process: psutil.Process) -> ThreadTimes:
    return {t.id: (t.user_time, t.system_time) for t in process.threads()}


async def _worker_thread_names(client: Client) -> dict[int, str]:
    def names() -> dict[int, str]:
        import threading

        return {t.native_id: t.name for t in threading.enumerate() if t.native_id}

    merged: dict[int, str] = {}
    for found in (await client.run(names)).values():
        merged |= found
    return merged


def _print_threads(
    label: str,
    before: ThreadTimes,
    after: ThreadTimes,
    names: dict[int, str],
    seconds: float,
    minibatches: int,
) -> None:
    spent = {}
    for thread, (user, system) in after.items():
        user_before, system_before = before.get(thread, (0.0, 0.0))
        spent[thread] = (user - user_before, system - system_before)
    for thread, (user, system) in sorted(spent.items(), key=lambda t: -sum(t[1])):
        if user + system < 0.005 * seconds:
            continue
        name = names.get(thread, "(not a Python thread)")
        click.echo(
            f"{label:12}{name[:38]:40}{100 * (user + system) / seconds:8.1f} %"
            f"{1e6 * (user + system) / minibatches:12.1f}"
            f"{1e6 * user / minibatches:10.1f}{1e6 * system / minibatches:10.1f}"
        )


def _print_stacks(label: str, path: Path, top: int) -> None:
    """Print where the samples of a collapsed-stack file lie, per thread."""
    own: dict[str, Counter[str]] = {}
    within: dict[str, Counter[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if not frames:
            continue
        own.setdefault(thread, Counter())[frames[-1]] += int(count)
        # A set: a recursive function is in its own samples once.
        inclusive = within.setdefault(thread, Counter())
        for frame in set(frames):
            inclusive[frame] += int(count)
    samples = sum(counter.total() for counter in own.values())
    for thread, counter in own.items():
        if counter.total() < 0.02 * samples:
            continue
        click.echo(f"\n{label}, {thread}: {counter.total()} samples")
        for title, counts in (("own time", counter), ("with callees", within[thread])):
            click.echo(f"  {title}")
            for frame, count in counts.most_common(top):
                click.echo(f"    {100 * count / counter.total():5.1f} %  {frame}")


async def _py_spy(
    processes: dict[str, psutil.Process], seconds: float, options: list[str], top: int
) -> None:
    program = shutil.which("py-spy")
    if program is None:
        raise click.ClickException("py-spy is not installed: pip install py-spy")
    with tempfile.TemporaryDirectory() as folder:
        for label, process in processes.items():
            path = Path(folder) / "stacks.txt"
            command = [program, "record", "--pid", str(process.pid), "--threads"]
            command += ["--duration", str(max(1, round(seconds))), "--rate", "200"]
            command += ["--format", "raw", "--output", str(path), *options]
            child = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await child.communicate()
            if child.returncode:
                raise click.ClickException(f"py-spy: {errors.decode()[-500:]}")
            _print_stacks(label, path, top)


async def _profile(
    workload: str,
    replicas: int,
    warmup: float,
    seconds: float,
    py_spy: list[str] | None,
    c_profile: bool,
    top: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.npz"
        WORKLOADS[workload].write_pool(path)
        pool = load_pool(path)
    tally = Tally()
    async with training(WORKLOADS[workload], replicas) as (client, trainer):
        processes = {"driver": psutil.Process()}
        for number, process in enumerate(await worker_processes(client)):
            processes[f"worker {number}"] = process
        source = Stream(asynchronous=True)
        source.train(trainer).sink(tally.add)
        feeding = asyncio.create_task(feed(source, pool))
        await asyncio.wait([feeding], timeout=warmup)

        load, count = Load(), tally.minibatches
        before = {label: _thread_times(p) for label, p in processes.items()}
        start = time.perf_counter()
        await asyncio.wait([feeding], timeout=seconds)
        elapsed = time.perf_counter() - start
        after = {label: _thread_times(p) for label, p in processes.items()}
        count = tally.minibatches - count
        busy = load.stop()
        if feeding.done():
            await feeding
        names = _thread_names() | await _worker_thread_names(client)
        own = sum(
            sum(map(sum, after[k].values())) - sum(map(sum, before[k].values()))
            for k in processes
            if k != "driver"  # `Load` has subtracted this process already
        )
        click.echo(
            f"{workload}, {replicas} replicas: {count / elapsed:.1f} mini-batches/s;"
            f" other load {max(0.0, busy['other_cores'] - own / elapsed):.2f} cores\n\n"
            f"{'process':12}{'thread':40}{'of a core':>10}"
            f"{'us/mini-batch':>12}{'user':>9}{'system':>10}"
        )
        for label in processes:
            _print_threads(label, before[label], after[label], names, elapsed, count)

        if c_profile:
            profile = cProfile.Profile()
            profile.enable()
            await asyncio.wait([feeding], timeout=seconds)
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(top)
        if py_spy is not None:
            await _py_spy(processes, seconds, py_spy, top)

        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await trainer.drain()


@click.command(help=__doc__)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="85k")
@click.option("--replicas", default=2, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=5.0, show_default=True, help="Each measurement.")
@click.option("--py-spy", is_flag=True, help="Sample the stacks of each process.")
@click.option("--gil", is_flag=True, help="py-spy: only threads that hold the GIL.")
@click.option("--native", is_flag=True, help="py-spy: C and C++ functions too.")
@click.option("--cprofile", is_flag=True, help="cProfile client and scheduler.")
@click.option("--top", default=15, show_default=True, help="Lines of each profile.")
def main(
    workload: str,
    replicas: int,
    warmup: float,
    seconds: float,
    py_spy: bool,
    gil: bool,
    native: bool,
    cprofile: bool,
    top: int,
) -> None:
    options = ["--gil"] * gil + ["--native"] * native if py_spy else None
    asyncio.run(_profile(workload, replicas, warmup, seconds, options, cprofile, top))


if __name__ == "__main__":
    main()
