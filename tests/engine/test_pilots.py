"""Pilot jobs: a task that dies leaves its node, a broken node ends, and a killed driver leaves no process."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from btlm_data.engine import published
from btlm_data.engine.base import LostError
from btlm_data.engine.published import Pointer
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import ConfigError, InputError
from btlm_data.storage import open_store
from btlm_data.storage.claims import CLAIMS, working
from tests.engine import disturbed
from tests.engine.disturbed import Site, left_of, workers_of
from tests.engine.test_local import jobs


@pytest.fixture
def apart() -> Iterator[None]:
    yield
    published._apart().kill()
    published._apart.cache_clear()
    gc.collect()  # what was left open is told here


def test_a_task_that_dies_leaves_the_process_that_handed_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: None
) -> None:
    made = jobs(tmp_path, {"die": signal.SIGKILL}, {"raise": True}, {}, {"sleep": 30}, {})
    with working(open_store(tmp_path)) as worker:
        monkeypatch.setattr(published, "_worker", lambda work: worker)
        monkeypatch.setattr(published, "load", lambda pointer: made[pointer.offset])

        def do(number: int) -> Receipt:
            return published.outcome(published.do_apart(Pointer(str(tmp_path), "", 0, number, 0)))

        with pytest.raises(LostError, match="its worker was killed"):
            do(0)
        with pytest.raises(InputError, match="The third record is bad"):
            do(1)
        first = do(2)
        assert first.counts["extra"]["pid"] != os.getpid()
        maker = psutil.Process(first.counts["extra"]["pid"]).parent()
        threading.Timer(0.3, maker.kill).start()
        with pytest.raises(LostError, match="process that starts worker processes was killed"):
            do(3)
        assert do(4).task == made[4].task.id
        assert not list((tmp_path / CLAIMS).rglob("0*"))


# The keeper of a node ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def keeping(limit: float, code: str) -> Iterator[tuple[socket.socket, psutil.Popen, list[psutil.Process]]]:
    """A keeper of a manager of two processes with one each; gives the run that it watches, it, and all below it."""
    with socket.create_server(("127.0.0.1", 0)) as run:
        options = ["--limit", str(limit), "--addresses", "127.0.0.1", "--port", str(run.getsockname()[1])]
        command = [sys.executable, "-m", "btlm_data.engine.pilot_node", "keep", *options, "--"]
        keeper = psutil.Popen([*command, sys.executable, "-c", code])
        try:
            disturbed.wait_for(lambda: len(keeper.children(recursive=True)) == 5, 30)
            time.sleep(1.2)  # it has looked
            yield run, keeper, keeper.children(recursive=True)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                keeper.kill()
            keeper.wait()


MANAGER = """
import subprocess, sys, time
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '300'])"])
time.sleep(300)
"""


@pytest.mark.parametrize(
    "gone",
    [
        "a process of the manager",
        "the run",
        pytest.param("the manager", marks=pytest.mark.stress),
        pytest.param("the keeper", marks=pytest.mark.stress),
    ],
)
def test_a_broken_node_ends_and_leaves_no_process(gone: str) -> None:
    with keeping(1.0, MANAGER) as (run, keeper, below):
        [manager] = keeper.children()
        if gone == "the run":
            run.close()
        else:
            victims = {
                "a process of the manager": manager.children()[0],
                "the manager": manager,
                "the keeper": keeper,
            }
            victims[gone].kill()
        assert keeper.wait(timeout=20) == (-signal.SIGKILL if gone == "the keeper" else 0)
        left = [process for process in below if process.is_running()]
        if gone == "the keeper":
            disturbed.wait_for(lambda: not manager.is_running(), 10)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        else:
            assert left == []


def test_a_manager_that_does_not_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--limit", "60", "--addresses", "127.0.0.1", "--port", "1", "--"]
    command = [sys.executable, "-m", "btlm_data.engine.pilot_node", "keep", *options]
    assert subprocess.run([*command, sys.executable, "-c", "exit(7)"], check=False).returncode == 7


class Executor:
    """Pilot jobs in some states."""

    address = "127.0.0.1"

    def __init__(self, output: Path) -> None:
        self.output = output
        self.status_facade: dict[str, Any] = {}

    def end(self, block: str, state: str) -> None:
        from parsl.jobs.states import JobState, JobStatus

        self.status_facade[block] = JobStatus(JobState[state], stderr_path=str(self.output))


def test_pilot_jobs_that_end_in_vain_are_not_replaced_without_end(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    from btlm_data.engine import pilots
    from btlm_data.engine.site import Site as SiteFile

    (tmp_path / "stderr").write_text("module: command not found")
    executor = Executor(tmp_path / "stderr")
    pool = object.__new__(pilots._ParslPool)
    pool._executor, pool._site, pool._ended_before = executor, SiteFile(nodes=2), set()
    done: Future[bytes] = Future()
    done.set_result(b"")
    for number in range(
        20
    ):  # those that the strategy takes back, and those that did something, are no sign of anything
        executor.end(f"{number}", "SCALED_IN" if number % 2 else "COMPLETED")
        assert pool.wait([done], 1) == [done]
        assert pool.result(done) == b""
    for number in range(5):
        executor.end(f"vain {number}", "COMPLETED")
        pool.wait([done], 1)
    executor.end("vain 5", "TIMEOUT")
    with pytest.raises(
        ConfigError, match=r"6 pilot jobs .* TIMEOUT: module: command not found\. .*worker_init"
    ):
        pool.wait([done], 1)


BAD_MANAGER = """#!/bin/sh
sleep 3 &
sleep 2
echo "the node is broken" >&2
kill $!
sleep 60
"""


@pytest.mark.stress
def test_a_node_that_breaks_every_pilot_job_is_named_within_two_minutes(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    bad = tmp_path / "bad" / disturbed.MANAGER
    bad.parent.mkdir()
    bad.write_text(BAD_MANAGER)
    bad.chmod(0o755)
    site = tmp_path / "site.yaml"
    site.write_text(f"provider: local\nworker_init: export PATH={bad.parent}:$PATH\n")
    start = time.monotonic()
    driver = Site(["--engine", "parsl", "--cluster", str(site)]).start(
        tmp_path / "out", "--source", "sample", "--seq-len", "64"
    )
    code, words = disturbed.finish(driver, 200)
    assert code == 2, words
    assert "pilot jobs of local have ended, one after the other, without one task done" in words
    assert "the node is broken" in words
    assert time.monotonic() - start < 120


# A killed driver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [pytest.param("local", marks=pytest.mark.stress), "parsl"])
def test_a_killed_driver_leaves_no_process(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("parsl")
    driver = Site(["--engine", engine, "--workers", "2"]).start(
        tmp_path / "out", "--source", "sample", "--seq-len", "64"
    )
    try:
        disturbed.wait_for(lambda: len(workers_of(driver, engine)) > 0, 200)
        assert left_of(driver)
    finally:
        driver.kill()
        driver.wait()
    disturbed.wait_for(lambda: not left_of(driver), 60)
    driver.communicate()
