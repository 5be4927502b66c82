"""A job of a real SLURM that is cancelled while its replica learns."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from departing import FleetOf, Steady, until
from distributed import Client, utils_test
from helpers import linear_data
from slurm_lab import SlurmLab, missing, slurm_lab

import tensair_dask

SLURMCluster = pytest.importorskip("dask_jobqueue").SLURMCluster
# gen_cluster puts back what was configured before dask_jobqueue was imported.
utils_test.original_config.setdefault(
    "jobqueue", copy.deepcopy(dask.config.get("jobqueue"))
)

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("slurm")]

FOLDER = Path(tensair_dask.__file__).parent.parent


@pytest.fixture
def lab(monkeypatch, tmp_path) -> Iterator[SlurmLab]:
    if reason := missing():
        pytest.skip(reason)
    with slurm_lab() as lab:
        for name, value in lab.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield lab


def test_a_cancelled_job_loses_nothing(lab):
    async def run() -> None:
        async with (
            SLURMCluster(
                queue="main",
                interface="lo",
                cores=1,
                processes=1,
                memory="1 GB",
                log_directory="logs",
                worker_extra_args=["--dashboard-address", "127.0.0.1:0"],
                scheduler_options={"dashboard_address": "127.0.0.1:0"},
                job_script_prologue=[f"export PYTHONPATH={FOLDER}"],
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            cluster.scale(jobs=3)
            await client.wait_for_workers(3, timeout=60)
            workers = (await client.scheduler.identity())["workers"]
            fleet = await FleetOf(client, list(workers), model=Steady).start()
            data = linear_data(900)
            feeding = asyncio.gather(
                *(
                    fleet.feed(data[300 * each : 300 * (each + 1)], each)
                    for each in range(3)
                )
            )
            await until(lambda: len(fleet.learned) > 50)
            victim = list(workers)[2]
            job = cluster.workers[workers[victim]["name"]].job_id
            await asyncio.to_thread(lab.run, "scancel", job)
            await feeding
            while victim in (await client.scheduler.identity())["workers"]:
                await asyncio.sleep(0.01)
            assert len(fleet.learned) == 900
            await fleet.check([0, 1])
            fleet.release()

    asyncio.run(run())
