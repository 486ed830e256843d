"""Runs of `btlm-data prepare` on any engine, as users start them, and what may befall them: killed workers, a killed driver,
a lost node, a poison file, a full disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from btlm_data.engine import published
from btlm_data.storage import open_store

MANAGER = "process_worker_pool.py"
MARK = "BTLM_TEST_RUN"  # in the environment of a driver and of all that it starts
MARKS: dict[int, str] = {}  # of each driver that was started
ROOT = Path(__file__).resolve().parents[2]
RAY = ["--engine", "ray", "--workers", "2", "--memory", "600MB"]
POISON = "this text kills the process that reads it"
FILTER = f"""
import os, signal

def deadly(document):
    if {POISON!r} in document["text"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


def write_corpus(folder: Path, num_bytes: int, *, poison: bool = False, file_bytes: int = 17_000_000) -> Path:
    """Short documents in files that are each a task of their own, four of five nearly one of any other file, so that 100 MB have
    more than one group to compare; where asked for, a file that kills its reader.
    """
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    (folder / "deadly_filter.py").write_text(FILTER)
    for number in range(-(-num_bytes // file_bytes)):
        chance = random.Random(number)
        words = [f"w{chance.randrange(50_000)}" for _ in range(20_000)]
        models = random.Random(-1)  # the same in every file
        with (corpus / f"part-{number:03d}.jsonl").open("w") as file:
            while file.tell() < file_bytes:
                if chance.random() < 0.8:
                    texts = [f"m{models.randrange(50_000)}" for _ in range(models.randrange(40, 120))]
                    texts[chance.randrange(len(texts))] = "changed"
                    text = " ".join(texts)
                else:
                    text = " ".join(chance.choices(words, k=chance.randrange(40, 120)))
                file.write(json.dumps({"text": text}) + "\n")
            if poison and number == 1:
                file.write(json.dumps({"text": POISON * 10}) + "\n")
    return corpus


def contents(out: Path | str) -> dict[str, bytes]:
    """Every file of a dataset that must be the same every time, without what the command adds to the dataset."""
    store = open_store(out)
    return {
        entry.name: store.read(entry.name)
        for entry in store.list()
        if not entry.name.startswith(".work/")
        and entry.name.rpartition("/")[2]
        not in ("provenance.json", "report.html", "README.md", "croissant.json")
    }


@dataclass
class Site:
    """How an engine's runs are started. options: of prepare. helpers: commands of processes that help, by the work folder.
    bucket: URL of an object store that holds the dataset and the work folder; "": they are in the folder of a run.
    cluster: the Ray cluster (ray.cluster_utils.Cluster) that runs join, if any.
    """

    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    helpers: int = 0
    bucket: str = ""
    cluster: Any = None

    def ray_tasks(self, nodes: Sequence[Any] | None = None) -> list[psutil.Process]:
        """The processes that do tasks on nodes of the Ray cluster, on all where none are named. They have not the environment of
        the driver, which has joined the cluster.
        """
        found: list[psutil.Process] = []
        for node in self.cluster.list_all_nodes() if nodes is None else nodes:
            for raylet in node.all_processes.get("raylet", []):
                with contextlib.suppress(psutil.Error):
                    below = psutil.Process(raylet.process.pid).children(recursive=True)
                    found += [process for process in below if _is_ray_task(process)]
        return found

    def dataset(self, out: Path) -> str:
        """Where the dataset of a run is."""
        return f"{self.bucket}/data" if self.bucket else str(out)

    def work(self, out: Path) -> str:
        """Where the work folder of a run is."""
        return f"{self.bucket}/work" if self.bucket else str(out / ".work")

    def start(self, out: Path, *options: str) -> subprocess.Popen[str]:
        """Start the driver."""
        command = [sys.executable, "-m", "btlm_data", "prepare", "--out", self.dataset(out)]
        command += ["--work-dir", self.work(out), *options, *self.options]
        mark = secrets.token_hex(8)
        driver = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self._environment(), MARK: mark},
            cwd=out.parent,
        )
        MARKS[driver.pid] = mark
        return driver

    def start_helper(self, out: Path, number: int) -> subprocess.Popen[str]:
        """Start a free worker."""
        command = [sys.executable, "-m", "btlm_data", "worker", self.work(out)]
        command += ["--rank", str(number), "--world", str(self.helpers), "--idle", "120"]
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(),
            cwd=out.parent,
        )

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **self.environment}


@contextlib.contextmanager
def helped(
    site: Site, out: Path, killed: threading.Event | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """Free workers beside a run; where `killed` is given, those that die are replaced until it is set."""
    helpers = [site.start_helper(out, number) for number in range(site.helpers)]
    stop = threading.Event()

    def replace() -> None:
        while not stop.wait(0.2):
            for number, helper in enumerate(helpers):
                if helper.poll() not in (None, 0):
                    helpers[number] = site.start_helper(out, number)

    thread = threading.Thread(target=replace)
    if killed is not None:
        thread.start()
    try:
        yield helpers
    finally:
        stop.set()
        if killed is not None:
            thread.join()
        for helper in helpers:
            helper.kill()
            helper.wait()


@contextlib.contextmanager
def killing(find: Callable[[], Sequence[psutil.Process]], every: float, most: int) -> Iterator[list[int]]:
    """SIGKILL one of the found processes after the other; gives the process ids."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while len(killed) < most and not stop.wait(every):
            with contextlib.suppress(psutil.Error):
                found = [process for process in find() if process.is_running()]
                if found:
                    victim = found[len(killed) % len(found)]
                    victim.send_signal(signal.SIGKILL)
                    killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def ray_cluster(stack: contextlib.ExitStack) -> Site:
    """A site with a Ray cluster of two nodes of one core each, for as long as the stack is open."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    stack.callback(cluster.shutdown)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    return Site([*RAY, "--ray-address", cluster.address], cluster=cluster)


def workers_of(driver: subprocess.Popen[str], engine: str) -> list[psutil.Process]:
    """The processes that do the tasks of a run."""
    if engine == "local":
        try:
            below = psutil.Process(driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in below if process.ppid() != driver.pid]
    return [worker for manager in managers_of(driver) for worker in _tasks_below(manager)]


def _is_ray_task(process: psutil.Process) -> bool:
    """Named by Ray after the function that it runs; agents and idle workers have other names."""
    return command_of(process).startswith(f"ray::{published.do.__name__} ")


def managers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Parsl's manager of each pilot job of a run."""
    return [process for process in left_of(driver) if MANAGER in command_of(process).split(" ")[1]]


def _tasks_below(manager: psutil.Process) -> list[psutil.Process]:
    """Below each process of Parsl one makes processes for tasks, and that one's children do them."""
    with contextlib.suppress(psutil.Error):
        below = manager.children(recursive=True)
        makers = {one.pid for own in manager.children() for one in own.children()}
        return [process for process in below if process.ppid() in makers]
    return []


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + "  "
    except psutil.Error:
        return "  "


def left_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every other process that has the environment of a run's driver: all that it started, wherever they are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != driver.pid and process.environ().get(MARK) == MARKS[driver.pid]:
                found.append(process)
    return found


def finish(driver: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    """Exit code and words of a run."""
    words, _ = driver.communicate(timeout=seconds)
    return driver.returncode, words


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)
