"""The same bytes on every engine, whatever befalls it. A short form here; the whole table of engines and disturbances with -m stress."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from btlm_data import pipeline, run_status
from btlm_data.engine import base, published, status, values
from btlm_data.engine.base import Lost
from btlm_data.engine.execute import Job
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.receipts import Receipt
from btlm_data.errors import ConfigError, DataError, InputError, OutputError
from btlm_data.locations import Locations
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import holdout
from btlm_data.storage import open_store
from btlm_data.storage.claims import CLAIMS, Watch, working
from btlm_data.task import Step, Task
from tests import slurm
from tests.engine import disturbed
from tests.engine.disturbed import Site, contents, finish, helped, killing, left_of, managers_of, workers_of

SAMPLE = ["--source", "sample", "--seq-len", "512", "--samples-per-file", "700"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    given = {"source.name": "sample", "run.out": str(out), "run.workers": 1, "seq_len": 512}
    given |= {"shards.samples_per_file": 700}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    return contents(out)


# What travels ------------------------------------------------------------------------------------------------------


class ByFile(LocalEngine):
    """Publishes jobs, reads each back and does it from there: nothing but the file reaches the work function."""

    seen: ClassVar[list[str]] = []

    def map(self, jobs: Sequence[Job]) -> Iterator[Receipt | Lost | None]:
        if not jobs:
            return
        there = published.publish(jobs[0].locations.open().work, jobs)
        for job in jobs:
            read = published.load(there.pointer(job.task.id))
            assert read == job
            self.seen.append(job.step)
            yield published.outcome(published.do(there.pointer(job.task.id)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run.memory": "40KB", "dedupe.verify": "signature", "format": "vsl", "holdout.fraction": 0.1},
        {"run.memory": "10KB"},
        {
            "dedupe.method": "exact",
            "dedupe.index": "INDEX",
            "run.emit_text": "TEXT",
            "seq_len": ["64:0.5", "32:0.4"],
            "mix": {"RedPajamaC4": 2, "by_copies": {"1": 1.5}},
            "run.allow_missing_source": True,
        },
        {
            "dedupe.method": "none",
            "clean.filters": ["gopher_quality", {"name": "regex", "drop": "x{9}"}],
            "mix": {"RedPajamaC4": 2},
            "run.allow_missing_source": True,
        },
    ],
    ids=["plain", "small memory", "joined in ranges", "index and text", "filters and mix"],
)
def test_every_job_travels_as_data(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        key: str(tmp_path / value) if value in ("INDEX", "TEXT") else value for key, value in options.items()
    }
    given = {"source.name": "sample", "source.files": 1, "run.workers": 1, "seq_len": 64} | options

    def prepare(out: Path) -> dict[str, bytes]:
        recipe = load(None, {key: (value, "test") for key, value in (given | {"run.out": str(out)}).items()})
        pipeline.prepare(recipe, Lines())
        return contents(out)

    monkeypatch.setitem(base.ENGINES, "local", "tests.engine.test_engines:ByFile")
    monkeypatch.setattr(ByFile, "seen", [])
    by_file = prepare(tmp_path / "by-file")
    assert len(set(ByFile.seen)) >= 6
    assert options.get("run.memory") != "10KB" or "dedupe.places" in ByFile.seen
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "INDEX", ignore_errors=True)
    shutil.rmtree(tmp_path / "TEXT", ignore_errors=True)
    assert prepare(tmp_path / "plain") == by_file


@pytest.mark.parametrize(
    "value",
    [
        {"type": "subprocess:Popen", "fields": {"args": ["true"]}},
        {"type": "btlm_data.engine.local:LocalEngine", "fields": {}},
        {"type": "btlm_data.engine.base:os", "fields": {}},
        {"type": "btlm_data.task:Task", "fields": {"no": 1}},
        {"function": "os:system"},
        {"function": "btlm_data.task:Task"},
        {"function": "btlm_data.nothing:work"},
        {"other": 1},
    ],
)
def test_only_data_of_this_project_is_made(value: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="does not know"):
        values.decode(value)


def test_signed_addresses_stay_with_the_driver() -> None:
    from btlm_data.sources.fetch import Fetcher

    assert values.decode(values.encode(Fetcher("/x", 5))) == Fetcher("/x", 5)
    with pytest.raises(ConfigError, match="signed"):
        values.encode(Fetcher("/x", 5, secrets=(("https://a/b", "https://a/b?signature=1"),)))


def test_an_error_arrives_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^line 3 is bad$"):
        published.outcome(published.encode_error(InputError("line 3 is bad")))
    with pytest.raises(RuntimeError, match="KeyError"):
        published.outcome(published.encode_error(KeyError("x")))


def test_a_claim_that_cannot_be_made_is_an_error_and_no_dead_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    task = Task("0", outputs=[("work", "holdout/hashes/0.cols")], reads={"parts": []})
    step = Step("holdout.hashes", 1, holdout.merge_hashes, [task], None, "")
    job = Job.of(step, task, "digest", Locations(str(tmp_path), str(tmp_path / "out")))
    pointer = published.publish(store, [job]).pointer("0")
    (tmp_path / CLAIMS).write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="claims"):
        published.outcome(published.do(pointer))
    (tmp_path / CLAIMS).unlink()
    assert published.outcome(published.do(pointer)).task == "0"


# Claims ------------------------------------------------------------------------------------------------------------


def test_one_worker_gets_a_task_and_a_dead_ones_claim_is_seen(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with working(store) as one, working(store) as other:
        assert one.take("read", "0")
        assert not other.take("read", "0")
        [claim] = Watch(store).claims("read").values()
        assert not Watch(store).is_dead(claim)
        one.release("read", "0")
        assert other.take("read", "0")
    code = (
        "import sys; from btlm_data.storage import open_store; from btlm_data.storage.claims import Worker; import os;"
        "Worker(open_store(sys.argv[1])).take('read', '1'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=disturbed.ROOT, check=False)
    claims = Watch(store).claims("read")
    assert Watch(store).is_dead(claims["1"])
    assert list(store.list(f"{CLAIMS}/read"))


def test_a_worker_elsewhere_is_dead_when_its_heartbeat_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from btlm_data.storage import lease

    monkeypatch.setattr(lease, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lease, "EXPIRY", 0.4)
    store, watch = open_store(tmp_path), Watch(open_store(tmp_path))
    with working(store) as worker:
        claim = {**worker.state, "machine": "another"}
        for _ in range(10):
            assert not watch.is_dead(claim)
            time.sleep(0.1)
    assert not watch.is_dead(claim)
    time.sleep(0.5)
    assert watch.is_dead(claim)


# Free workers ------------------------------------------------------------------------------------------------------


def test_free_workers_come_die_and_go(tmp_path: Path, expected: dict[str, bytes]) -> None:
    site, out = Site(["--engine", "workers"], helpers=2), tmp_path / "out"
    driver = site.start(out, *SAMPLE)
    first, second = site.start_helper(out, 0), site.start_helper(out, 1)
    try:
        claims = out / ".work/engine/claims/read"
        disturbed.wait_for(lambda: len(list(claims.glob("*"))) == 2, 60)
        assert "2 tasks running elsewhere" in shown(out)
        first.kill()
        second.terminate()
        assert second.wait(timeout=30) == 0, "asked to end, it gives its task back and ends well"
        first.wait()
        third = site.start_helper(out, 0)
        code, words = finish(driver)
        assert code == 0, words
        assert "is lost: its worker is gone" in words
        assert third.wait(timeout=30) == 0, "the run is over"
    finally:
        for process in (driver, first, second):
            process.kill()
            process.wait()
    assert contents(out) == expected
    assert "complete" in shown(out)


def shown(out: Path) -> str:
    """What `btlm-data status` prints."""
    command = [sys.executable, "-m", "btlm_data", "status", str(out / ".work")]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=disturbed.ROOT).stdout


def test_an_error_of_a_task_ends_the_run_as_anywhere(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "' + "a text of some length " * 20 + '"}\n{broken\n')
    site, out = Site(["--engine", "workers", "--strict"], helpers=1), tmp_path / "out"
    with helped(site, out):
        code, words = finish(site.start(out, "--source", str(corpus), "--seq-len", "64"))
    assert code == 3
    assert "corpus.jsonl line 2" in words
    found = status.read(open_store(out / ".work"))
    assert found.run is not None
    assert found.run.state == "stopped"
    assert "corpus.jsonl line 2" in found.run.message


def test_status_of_nothing_and_of_a_gone_driver(tmp_path: Path) -> None:
    from rich.console import Console

    with pytest.raises(InputError, match="There is no run in"):
        run_status.show(open_store(tmp_path), Console(), watch=False, as_json=False)
    file = status.StatusFile(open_store(tmp_path), "local")
    file.ended("running")
    stored = json.loads((tmp_path / status.NAME).read_text())
    stored["driver"]["process"], stored["driver"]["started"] = 2**22 + 1, 5
    (tmp_path / status.NAME).write_text(json.dumps(stored))
    assert not status.read(open_store(tmp_path)).driver_is_alive
    console = Console(width=100, record=True, quiet=True)
    run_status.show(open_store(tmp_path), console, watch=False, as_json=False)


# Other engines -----------------------------------------------------------------------------------------------------


def make_site(engine: str, folder: Path, stack: contextlib.ExitStack) -> Site:
    """A site for an engine, with two workers. Skips where it is not installed."""
    if engine in ("local", "workers"):
        return Site(["--engine", engine, "--workers", "2"], helpers=3 if engine == "workers" else 0)
    if engine == "ray":
        pytest.importorskip("ray")
        return disturbed.ray_cluster(stack)
    pytest.importorskip("parsl")
    file = folder / "site.yaml"
    lines = ["nodes: 2", "workers_per_node: 1"]
    environment: dict[str, str] = {}
    if engine == "slurm":
        if (reason := slurm.missing()) is not None:
            pytest.skip(reason)
        environment = stack.enter_context(slurm.running(folder / "slurm"))
        run_folder = folder / "pilots"
        run_folder.mkdir()
        lines += ["provider: slurm", "partition: short", "walltime: '00:20:00'", "address: 127.0.0.1"]
        lines += [f"run_folder: {run_folder}", "provider_options: {exclusive: false, cores_per_node: 1}"]
    file.write_text("\n".join(lines) + "\n")
    return Site(["--engine", "parsl", "--cluster", str(file)], environment)


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_the_same_bytes_on_ray_and_on_a_real_slurm(
    tmp_path: Path, expected: dict[str, bytes], engine: str
) -> None:
    with contextlib.ExitStack() as stack:
        if engine == "ray":  # a run starts a cluster of its own; the table below joins one of two nodes
            pytest.importorskip("ray")
            site = Site(disturbed.RAY)
        else:
            site = make_site(engine, tmp_path, stack)
        code, words = finish(site.start(tmp_path / "out", *SAMPLE), 250)
    assert code == 0, words
    assert contents(tmp_path / "out") == expected


def test_a_run_that_stops_takes_nothing_back_from_parsl(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    from parsl.dataflow.futures import AppFuture

    from btlm_data.engine import pilots

    pending = AppFuture({"id": 0})
    with pytest.raises(NotImplementedError):
        pending.cancel()
    pool = object.__new__(pilots._ParslPool)
    pool.cancel([pending])


def test_a_folder_whose_path_is_too_long_for_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from btlm_data.engine.ray_tasks import RayEngine

    def refuse(**options: Any) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /a/long/one")

    monkeypatch.setattr(ray, "init", refuse)
    with RayEngine(base.EngineSettings(1)) as engine, pytest.raises(ConfigError, match=r"107 bytes.*TMPDIR"):
        engine.start()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_ray_listens_is_named_at_once(scheme: str) -> None:
    pytest.importorskip("ray")
    from btlm_data.engine.ray_tasks import RayEngine

    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        settings = base.EngineSettings(1, ray_address=address)
        with RayEngine(settings) as engine, pytest.raises(ConfigError, match=f"no Ray cluster at {address}"):
            engine.start()


def test_a_cluster_of_its_own_has_no_autoscaler_for_which_its_end_would_wait() -> None:
    pytest.importorskip("ray")
    from btlm_data.engine.ray_tasks import RayEngine

    with RayEngine(base.EngineSettings(1)) as engine:
        engine.start()
        commands = [disturbed.command_of(process) for process in psutil.Process().children()]
    assert any("raylet" in command for command in commands), commands
    assert not any("monitor.py" in command and "log_monitor.py" not in command for command in commands)


# The whole table ---------------------------------------------------------------------------------------------------

ENGINES = ("local", "workers", "ray", "parsl", "slurm")
DISTURBANCES = ("undisturbed", "workers killed", "driver killed", "node lost", "poison", "full disk")
BYTES = int(os.environ.get("BTLM_STRESS_BYTES", "100_000_000"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A corpus of 100 MB with more than one group to compare, and its dataset from an undisturbed local run."""
    folder = tmp_path_factory.mktemp("large")
    corpus = disturbed.write_corpus(folder, BYTES)
    code, words = finish(Site(["--workers", "2"]).start(folder / "out", *recipe(corpus)))
    assert code == 0, words
    assert BYTES < 100_000_000 or len(list((folder / "out/.work/dedupe/compare").iterdir())) > 1
    return corpus, contents(folder / "out")


def recipe(corpus: Path) -> list[str]:
    """Options of a run over a corpus of `disturbed`."""
    return ["--source", str(corpus), "--seq-len", "512", "--samples-per-file", "2000", "--accept-removal"]


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_and_disturbances(
    tmp_path: Path, large: tuple[Path, dict[str, bytes]], engine: str, disturbance: str
) -> None:
    corpus, want = large
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        site = make_site(engine, tmp_path, stack)
        DISTURBED[disturbance](site, engine, corpus, out)
    if disturbance != "poison":
        assert contents(out) == want


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("disturbance", [name for name in DISTURBANCES if name != "full disk"])
@pytest.mark.parametrize("engine", ["workers", "ray"])
def test_engines_and_disturbances_on_s3(
    bucket: Any, tmp_path: Path, large: tuple[Path, dict[str, bytes]], engine: str, disturbance: str
) -> None:
    """No file of the run is shared but those in the store."""
    corpus, want = large
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        site = make_site(engine, tmp_path, stack)
        site.bucket = "s3://corpus"
        DISTURBED[disturbance](site, engine, corpus, out)
    assert not out.exists()
    if disturbance != "poison":
        assert contents(site.dataset(out)) == want


def undisturbed(site: Site, engine: str, corpus: Path, out: Path) -> None:
    with helped(site, out):
        code, words = finish(site.start(out, *recipe(corpus)))
    assert code == 0, words


def workers_killed(site: Site, engine: str, corpus: Path, out: Path) -> None:
    with helped(site, out, threading.Event()) as helpers:
        driver = site.start(out, *recipe(corpus))

        def find() -> Sequence[psutil.Process]:
            if open_store(site.work(out)).size(status.NAME) is None:
                return []  # the engine is still starting
            if engine == "workers":
                return [psutil.Process(helper.pid) for helper in helpers if helper.poll() is None]
            if engine == "ray":
                return site.ray_tasks()
            return workers_of(driver, "parsl" if engine == "slurm" else engine)

        with killing(find, 1.0, 12) as killed:
            code, words = finish(driver)
        if code == 5:  # one task was hit three times: the same command, undisturbed, does what is left
            code, words = finish(site.start(out, *recipe(corpus)))
    assert killed, "no worker was found to kill"
    assert code == 0, words


def driver_killed(site: Site, engine: str, corpus: Path, out: Path) -> None:
    with helped(site, out):
        for seconds in (4, 9):
            driver = site.start(out, *recipe(corpus))
            time.sleep(seconds)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            disturbed.wait_for(lambda driver=driver: not left_of(driver), 120)  # type: ignore[misc]
            driver.communicate()
        code, words = finish(site.start(out, *recipe(corpus)))
    assert code == 0, words


def node_lost(site: Site, engine: str, corpus: Path, out: Path) -> None:
    if engine == "local":
        pytest.skip("one machine is one node")
    if engine == "ray":
        [lost] = site.cluster.worker_nodes
        driver = site.start(out, *recipe(corpus))
        disturbed.wait_for(lambda: bool(site.ray_tasks([lost])), 120)
        site.cluster.remove_node(lost, allow_graceful=False)
        code, words = finish(driver)
        assert code == 0, words
        assert "is lost: its worker is gone" in words
        return
    with helped(site, out) as helpers:
        driver = site.start(out, *recipe(corpus))
        if engine == "workers":
            disturbed.wait_for(lambda: len(open_store(site.work(out)).list(CLAIMS)) > 1, 120)
            helpers[0].kill()
        else:
            disturbed.wait_for(lambda: len(workers_of(driver, "parsl")) >= 2, 120)
            manager = managers_of(driver)[0]
            for process in [manager.parent(), manager, *manager.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        code, words = finish(driver)
    assert code == 0, words


def poison(site: Site, engine: str, corpus: Path, out: Path) -> None:
    deadly = disturbed.write_corpus(out.parent / "deadly", 51_000_000, poison=True)
    options = [*recipe(deadly), "--filter", '{name: deadly, function: "deadly_filter:deadly"}']
    site.environment["PYTHONPATH"] = f"{disturbed.ROOT}:{deadly.parent}"
    with helped(site, out, threading.Event()):
        code, words = finish(site.start(out, *options))
        assert code == 5, words
        assert "part-001.jsonl" in words
        assert "--skip-failed" in words
        code, words = finish(site.start(out, *options, "--skip-failed"))
    assert code == 0, words
    rejects = open_store(site.dataset(out)).read("rejects.jsonl").splitlines()
    dropped = [json.loads(line) for line in rejects]
    assert [(one["file"], one["reason"]) for one in dropped] == [("part-001.jsonl", "unreadable_file")]


def full_disk(site: Site, engine: str, corpus: Path, out: Path) -> None:
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=25m", "btlm", str(out)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with helped(site, out, threading.Event()):
            code, words = finish(site.start(out, *recipe(corpus)))
            assert code == 4, words
            assert "The disk is full" in words
            subprocess.run(["mount", "-o", "remount,size=2g", str(out)], check=True)
            code, words = finish(site.start(out, *recipe(corpus)))
        assert code == 0, words
        shutil.copytree(out, out.parent / "kept")
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)
    shutil.rmtree(out)
    shutil.move(out.parent / "kept", out)


DISTURBED: dict[str, Callable[[Site, str, Path, Path], None]] = {
    "undisturbed": undisturbed,
    "workers killed": workers_killed,
    "driver killed": driver_killed,
    "node lost": node_lost,
    "poison": poison,
    "full disk": full_disk,
}
assert tuple(DISTURBED) == DISTURBANCES
