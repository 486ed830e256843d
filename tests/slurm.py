"""A real Slurm of one node on this machine, for the length of a test: Debian's slurmctld, slurmd and slurm-client.

Nothing of it is installed or running elsewhere: ports and folders are its own, authentication is off, addresses are
127.0.0.1. It needs root, as slurmd starts the jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "sinfo", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=btlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:8 State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    if os.geteuid() != 0:
        return "a Slurm of a test's own needs root"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    return (
        f"not installed: {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client)"
        if absent
        else None
    )


_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; gives the environment in which its commands work."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    port, node_port = _free_ports()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, port=port, node_port=node_port, folder=folder))
    environment = {"SLURM_CONF": str(configuration), "PATH": _PATH}
    daemons = [
        subprocess.Popen(
            [shutil.which(program, path=_PATH) or program, "-D", "-f", str(configuration), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
            preexec_fn=_die_with_this_process,
        )
        for program, more in (("slurmctld", ["-c"]), ("slurmd", ["-N", host, "-c"]))
    ]
    try:
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--full", "-u", "root"],
            env={**os.environ, **environment},
            check=False,
            capture_output=True,
        )
        _end_steps(environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()


def _die_with_this_process() -> None:
    """Have the system end a daemon when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end_steps(environment: dict[str, str]) -> None:
    """Wait until the jobs that were cancelled are gone; end what does not go. A slurmstepd whose slurmctld is gone
    stays.
    """
    own = environment["SLURM_CONF"]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "slurmstepd":
                family = [process, *process.children(recursive=True)]
                if any(one.environ().get("SLURM_CONF") == own for one in family):
                    found.append(process)
    _, left = psutil.wait_procs(found, timeout=15)
    for step in left:
        for process in [*step.children(recursive=True), step]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        found = subprocess.run(
            ["sinfo", "-h", "-o", "%T"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"Slurm does not start:\n{logs}")


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
