"""Train on the jobs of a SLURM: copy this file, and give it the names of your site.

Run it on a machine from which you submit jobs, in a folder that the compute nodes
see, with an environment that they see::

    pip install "tensair-dask[hpc,demo]"
    python train_on_slurm.py --queue compute --account bio --interface ib0 --jobs 4

Partition, account and interface that you leave out are those of your site's
``jobqueue.yaml``, if it has one. Ctrl-C ends the stream, learns what has been emitted,
shows the scores and cancels the jobs.

`SlurmRun` is the part that knows SLURM. For a model of your own put it in the place of
``ScoredRun`` in a pipeline such as ``tensair_dask/pipelines/flights.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dask
from dask.distributed import Client
from dask.utils import parse_bytes
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed.deploy.spec import ProcessInterface

from tensair_dask.errors import ClusterError
from tensair_dask.pipelines import flights
from tensair_dask.runner.options import FOLDER, FROM_ZERO, POSITIVE, option
from tensair_dask.runner.run import command
from tensair_dask.runner.scored_run import ScoredRun

Item = TypeVar("Item")


class CancelledJob(SLURMJob):
    """A job that is marked as closed once it is cancelled.

    dask-jobqueue 0.9 forgets to, and now and then Dask takes that for an error when it
    closes the cluster.
    """

    async def close(self) -> None:
        """Cancel the job."""
        await super().close()
        await ProcessInterface.close(self)


class TidyCluster(SLURMCluster):
    """A cluster whose certificate is gone once it is closed.

    dask-jobqueue leaves that to Python's collection of garbage, which need not come.
    """

    async def _close(self) -> None:
        await super()._close()
        for part in ("ca_file", "cert", "key"):
            if (file := getattr(self, f"_job_{part}", None)) is not None:
                file.close()


@dataclass
class SlurmRun(ScoredRun):
    """A run whose workers are jobs of a SLURM; the scheduler lives in this process.

    Partition, account and interface that are not given are those of the site's
    ``jobqueue.yaml``. The stream ends before the ``walltime`` is over.
    """

    records: str = "flights"
    # No options of this run: its workers are the jobs.
    scheduler: None = field(default=None, init=False)
    workers: None = field(default=None, init=False)
    queue: str | None = option(None, "Partition of the jobs.", "--queue", "--partition")
    account: str | None = option(None, "Account that pays for the jobs.")
    interface: str | None = option(
        None, "Network interface of scheduler and workers, for example ib0."
    )
    walltime: int = option(
        60, "How long a job may run.", type=POSITIVE, metavar="MINUTES"
    )
    jobs: int = option(2, "How many jobs to submit.", type=POSITIVE)
    gpus: int = option(
        0, "GPUs of a job, each with a worker of its own.", type=FROM_ZERO
    )
    cores: int = option(1, "Cores of a worker.", type=POSITIVE)
    memory: str = option("4 GB", "Memory of a worker.")
    tls: bool = option(
        True,
        "Encrypt, and let in only who has this run's certificate.",
        "--tls/--no-tls",
    )
    logs: Path = option(
        Path("slurm-logs"),
        "Folder for the logs of the jobs, and for the certificate.",
        type=FOLDER,
    )

    deadline = float("inf")  # on the clock of time.monotonic

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Submit the jobs, and wait until all have started."""
        if shutil.which("sbatch") is None:
            raise ClusterError(
                "There is no sbatch here. Run this where you submit jobs, for example "
                "on a login node."
            )
        async with (
            self.cluster() as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            port = cluster.scheduler.http_server.port
            self.say(f"Dashboard: http://127.0.0.1:{port}/status; to see it elsewhere:")
            self.say(f"  ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}")
            cluster.scale(jobs=self.jobs)
            try:
                # Ctrl-C must not part a job from its number: then none could cancel it.
                await asyncio.shield(cluster)
            except RuntimeError as error:
                told = str(error).partition("stderr:")[2].strip()
                raise ClusterError(f"SLURM refused a job: {told or error}") from error
            self.say(f"Submitted {self.jobs} jobs (squeue --me); logs: {self.logs}")
            await client.wait_for_workers(1)
            # A little before the walltime of the first job, so that there is time to
            # learn what has been emitted, and to save.
            self.deadline = time.monotonic() + 0.9 * 60 * self.walltime
            await client.wait_for_workers(self.jobs * self.workers_per_job)
            self.say("All jobs have started")
            yield client

    def cluster(self) -> TidyCluster:
        """Make the cluster, without jobs as yet."""
        self.logs.mkdir(parents=True, exist_ok=True)
        directives = dask.config.get("jobqueue.slurm.job-extra-directives")
        if self.gpus:
            directives = [*directives, f"--gres=gpu:{self.gpus}"]
        return TidyCluster(
            job_cls=CancelledJob,
            queue=self.queue,
            account=self.account,
            interface=self.interface,
            walltime=str(self.walltime),
            processes=self.workers_per_job,
            cores=self.cores * self.workers_per_job,
            memory=f"{parse_bytes(self.memory) * self.workers_per_job} B",
            job_extra_directives=directives,
            log_directory=str(self.logs.resolve()),
            # Others on this machine have dashboards, too: any port that is free. And
            # only from this machine, because it asks for no certificate.
            scheduler_options={
                **dask.config.get("jobqueue.slurm.scheduler-options"),
                "dashboard_address": "127.0.0.1:0",
            },
            security=self.tls or None,
            shared_temp_directory=str(self.logs.resolve()),
            asynchronous=True,
        )

    @property
    def workers_per_job(self) -> int:
        """One for each GPU, or one."""
        return max(1, self.gpus)

    def in_time(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass on items as long as the jobs have time left; looks as each one comes."""
        for item in items:
            if time.monotonic() > self.deadline:
                self.say("The walltime is almost over: the stream ends here")
                return
            yield item


@command(SlurmRun)
async def main(run: SlurmRun) -> None:
    """Learn which flights arrive late, on the jobs of a SLURM."""
    data = flights.load(run.limit)
    async with run.client() as client:
        source, reports, trainer, scores = flights.build(client, window=run.window)
        async with trainer:
            with run.watch_scores(trainer, reports, scores, times=data.time):
                batches = data.batches(run.batch_size)
                await run.feed_batches(source, run.in_time(batches))
                await trainer.drain()
            await run.save(trainer, scores)
    run.finish(
        scores,
        times=data.time,
        title=f"Arrives {flights.LATE} minutes late or more",
        axis="scheduled departure",
    )


if __name__ == "__main__":
    main()
