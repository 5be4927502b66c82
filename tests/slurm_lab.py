"""A SLURM of one node on loopback, for tests: real daemons, real jobs.

Its daemons run in the foreground, as children of the process that uses it, without
systemd, cgroups or a database, and are ended by their ids.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = (
    *("munged", "slurmctld", "slurmd"),
    *("sbatch", "scancel", "sinfo", "squeue"),
    "setpriv",
)
PATIENCE = 20.0  # seconds for a daemon to start, a job to end
GPUS = 4  # files that stand for them, so that jobs can ask for --gres=gpu:N

CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
# Without these, the daemons listen on every interface.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# No cgroups, no accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=5
GresTypes=gpu
# Jobs may ask for more CPUs than this machine has.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None if there can."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return (
            f"SLURM needs {', '.join(lacking)}: "
            "apt-get install --no-install-recommends slurm-wlm munge"
        )
    if os.geteuid() != 0:
        return "SLURM's daemons need root to start jobs"
    return None


class SlurmLab:
    """A running SLURM.

    Attributes
    ----------
    environment
        What its commands, and programs that call them, need in theirs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self._configuration)}

    def run(self, *command: str) -> str:
        """Run a command of SLURM's, such as squeue; its output."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} says: {done.stderr}")
        return done.stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait, run or are ending."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def states(self) -> dict[str, str]:
        """State of each job of the last minutes by its id, such as CANCELLED."""
        everything = ("--states=all", "--format=%i %T")
        lines = self.run("squeue", "--noheader", *everything).splitlines()
        return dict(line.split() for line in lines)

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        self._configure()
        munge = ("key-file=munge.key", "seed-file=munge.seed", "log-file=munged.log")
        socket_file = self._folder / "munge.socket"
        self._spawn(
            "munged",
            "--foreground",
            f"--socket={socket_file}",
            f"--pid-file={self._folder}/munged.pid",
            *(f"--{option.replace('=', f'={self._folder}/', 1)}" for option in munge),
        )
        self._wait(socket_file.exists, "munged listens")
        self._spawn("slurmctld", "-D", "-c", "-f", str(self._configuration))
        self._spawn("slurmd", "-D", "-f", str(self._configuration))
        self._wait(self._is_idle, "the node is idle")

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        # In this order: a job's slurmstepd whose slurmd is gone stays for ever.
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            if jobs := self.jobs():
                self.run("scancel", *jobs)
            self._wait(lambda: not self.jobs() and not self._steps(), "the jobs end")
        for step in self._steps():
            with contextlib.suppress(psutil.NoSuchProcess):
                step.kill()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        controller_port, node_port = _free_ports(2)
        values = {
            "host": socket.gethostname().partition(".")[0],
            "folder": self._folder,
            "controller_port": controller_port,
            "node_port": node_port,
            "memory": psutil.virtual_memory().total * 4 // 5 // 2**20,
            "gpus": GPUS,
        }
        self._configuration.write_text(CONFIGURATION.format(**values))
        devices = []
        for number in range(GPUS):
            devices.append(self._folder / f"gpu{number}")
            devices[-1].symlink_to("/dev/null")
        (self._folder / "gres.conf").write_text(
            "".join(
                f"Name=gpu File={device} Flags=nvidia_gpu_env\n" for device in devices
            )
        )

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            daemon = subprocess.Popen(
                # Where the tests are killed, it ends, too.
                ["setpriv", "--pdeathsig", "TERM", program, *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C ends the tests, which end it
            )
        self._daemons.append(daemon)

    def _is_idle(self) -> bool:
        try:
            return self.run("sinfo", "--noheader", "--format=%t").strip() == "idle"
        except RuntimeError:
            return False

    def _steps(self) -> list[psutil.Process]:
        """What runs jobs of this very SLURM."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "slurmstepd" and process.environ().get(
                    "SLURM_CONF"
                ) == str(self._configuration):
                    found.append(process)
        return found

    def _wait(self, predicate: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not predicate():
            ended = [one.args for one in self._daemons if one.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"Not so: {what}. Ended: {ended}.\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        return "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self._folder.glob("*.log"))
        )


@contextlib.contextmanager
def slurm_lab() -> Iterator[SlurmLab]:
    """Run a SLURM for the time of the block."""
    # Below /tmp, since the path of a socket must be short, and open to all, or munged
    # refuses it.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        lab = SlurmLab(folder)
        try:
            lab.start()
            yield lab
        finally:
            lab.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
