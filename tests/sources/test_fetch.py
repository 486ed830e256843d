from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from btlm_data.errors import DataError, InputError, OutputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.base import SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.pool import Partial, machine_name
from btlm_data.sources.prefetch import Prefetcher
from tests.hub import Fault, Hub

RunMaker = Callable[..., Run]
ROOT = Path(__file__).resolve().parents[2]


def body(seed: int, size: int = 300_000) -> bytes:
    return random.Random(seed).randbytes(size)


def listed(hub: Hub, run: Run, files: dict[str, bytes]) -> list[SourceFile]:
    hub.add("org/data", files)
    return list(list_files(SourceSettings(name="hf://datasets/org/data"), run).files)


def one(hub: Hub, run: Run, size: int = 300_000) -> SourceFile:
    return listed(hub, run, {"train/a.jsonl": body(1, size)})[0]


def get(run: Run, file: SourceFile) -> bytes:
    with Fetcher.of(run).local_copy(file) as path:
        return path.read_bytes()


def stored(run: Run) -> int:
    return _usage(run)


def test_the_bytes_are_right_and_fetched_once(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    files = listed(
        hub,
        run,
        {"train/a.jsonl": body(1), "train/small.jsonl": b'{"text": "x"}\n', "train/empty.jsonl": b""},
    )
    assert [get(run, f) for f in files] == [body(1), b'{"text": "x"}\n']
    sent = hub.bytes_sent
    assert [get(run, f) for f in files] == [body(1), b'{"text": "x"}\n']
    assert hub.bytes_sent == sent
    fetcher = pickle.loads(pickle.dumps(Fetcher.of(run)))
    with fetcher.local_copy(files[0]) as path:
        assert path.read_bytes() == body(1)
    assert hub.bytes_sent == sent


@pytest.mark.parametrize(
    "fault",
    [
        Fault("resolve", status=429, retry_after="0", times=3),
        Fault("resolve", status=429, times=3),
        Fault("resolve", status=500, times=4),
        Fault("resolve", status=503, retry_after="0", times=2),
        Fault("body", status=502, times=3),
        Fault("body", cut_at=0, times=3),
        Fault("body", cut_at=100_000, times=1),
        Fault("body", corrupt_at=250_000, times=1),
        Fault("body", extra=50, times=1),
        Fault("body", ignore_range=True, cut_at=200_000, times=2),
    ],
    ids=lambda f: (
        f"{f.kind}-{f.status or ''}{'-cut' if f.cut_at is not None else ''}{'-corrupt' if f.corrupt_at else ''}{'-extra' if f.extra else ''}"
    ),
)
def test_a_passing_fault_leaves_the_right_bytes(hub: Hub, make_run: RunMaker, fault: Fault) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(fault)
    assert get(run, file) == body(1)
    assert fault.times == 0


def test_a_cut_goes_on_inside_the_file(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(Fault("body", cut_at=200_000))
    assert get(run, file) == body(1)
    ranges = [request.range for request in hub.requests if "/cdn/" in request.path]
    assert ranges == [None, "bytes=200000-"]
    assert hub.bytes_sent == 300_000


def test_many_cuts_in_one_file_are_no_failure_while_it_grows(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(retries=2)
    file = one(hub, run, 1_000_000)
    hub.faults += [Fault("body", cut_at=100_000 * n) for n in range(1, 10)]
    assert get(run, file) == body(1, 1_000_000)


def test_a_server_that_never_gets_on_is_given_up(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(retries=3)
    file = one(hub, run)
    hub.faults.append(Fault("body", cut_at=100_000, times=None))
    with pytest.raises(SourceUnavailable, match=r"a\.jsonl could not be downloaded .* 3 repeats"):
        get(run, file)
    hub.faults.clear()
    assert get(run, file) == body(1)
    assert [r.range for r in hub.requests if "/cdn/" in r.path][-1] == "bytes=100000-"


def test_a_body_that_is_always_wrong_is_named(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(Fault("body", corrupt_at=7, times=None))
    with pytest.raises(DataError, match=r"a\.jsonl was downloaded twice .*SHA-256"):
        get(run, file)
    assert hub.count("/cdn/") == 2
    hub.faults.clear()
    assert get(run, file) == body(1)


def test_a_small_file_is_checked_by_its_git_hash(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = listed(hub, run, {"train/small.jsonl": b'{"text": "small"}\n'})[0]
    assert file.sha256 is None
    hub.faults.append(Fault("body", corrupt_at=3, times=None))
    with pytest.raises(DataError, match="git hash"):
        get(run, file)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("resolve", status=401, times=None), "not authorised"),
        (Fault("resolve", status=403, times=None), "gated"),
        (Fault("resolve", status=404, error_code="EntryNotFound", times=None), "not found"),
        (Fault("resolve", status=404, error_code="RevisionNotFound", times=None), "no revision"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(
    hub: Hub, make_run: RunMaker, fault: Fault, words: str
) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(fault)
    before = hub.count("/resolve/")
    with pytest.raises(SourceUnavailable, match=words):
        get(run, file)
    assert hub.count("/resolve/") == before + 1


def test_retry_after_is_waited_for(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(Fault("resolve", status=429, retry_after="1"))
    threads = [threading.Thread(target=get, args=(run, file)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [r.time for r in hub.requests if "/resolve/" in r.path and r.method == "GET"]
    assert len(asked) == 2  # the others wait for the one that downloads
    assert asked[1] - asked[0] >= 1.0


def test_a_trickle_and_a_silence_are_cut(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(timeout=0.4)
    file = one(hub, run)
    hub.faults += [Fault("body", trickle=500), Fault("body", stall=1.5)]
    begin = time.monotonic()
    assert get(run, file) == body(1)
    assert time.monotonic() - begin < 4


def test_a_revision_that_changes_is_read_as_it_was_listed(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = one(hub, run)
    hub.add("org/data", {"train/a.jsonl": body(99)})
    assert get(run, file) == body(1)


def test_the_token_goes_to_the_hub_only(
    hub: Hub, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    run = make_run()
    hub.add("org/secret", {"train/a.jsonl": body(1)}, private=True)
    file = list_files(SourceSettings(name="hf://datasets/org/secret"), run).files[0]
    assert get(run, file) == body(1)
    assert all(request.authorized for request in hub.requests if "/cdn/" not in request.path)
    assert not any(request.authorized for request in hub.requests if "/cdn/" in request.path)


def test_a_file_that_hf_download_keeps_is_used(
    hub: Hub, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    run = make_run()
    file = one(hub, run)
    commit = file.url.split("@")[1].split("/")[0]
    kept = tmp_path / "hf/hub/datasets--org--data/snapshots" / commit / "train/a.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(body(1))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    with Fetcher.of(run).local_copy(file) as path:
        assert path == kept
    kept.write_bytes(body(2))
    with Fetcher.of(run).local_copy(file) as path:
        assert path != kept
        assert path.read_bytes() == body(1)


# The cache --------------------------------------------------------------------------------------------------------


def test_the_cache_stays_below_its_size(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=1_000_000)
    files = listed(hub, run, {f"train/{n:02d}.jsonl": body(n) for n in range(12)})
    worst = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal worst
        while not done.wait(0.002):
            worst = max(worst, _usage(run))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with Prefetcher(Fetcher.of(run), files):
        threads = [
            threading.Thread(target=lambda part: [get(run, f) for f in part], args=(files[k::2],))
            for k in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done.set()
    watcher.join()
    assert 300_000 < worst <= 1_000_000
    assert sum(r.path.startswith("/cdn/") and r.method == "GET" for r in hub.requests) == 12


def _usage(run: Run) -> int:
    """Bytes of files that were in the cache at one moment: before and after it; a file of two names counts once."""
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    for sizes in (before, after):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(Fetcher.of(run).folder):
                with contextlib.suppress(FileNotFoundError):
                    sizes[entry.stat().st_ino] = entry.stat().st_size
    return sum(size for number, size in before.items() if number in after)


def test_a_file_larger_than_the_cache_is_an_error_that_says_so(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=200_000)
    file = one(hub, run)
    for attempt in (lambda: get(run, file), lambda: Fetcher.of(run).check_room([file])):
        with pytest.raises(OutputError, match="--cache-size to at least"):
            attempt()


def test_a_full_disk_of_the_cache_is_named_and_seen_coming(
    hub: Hub, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    file, fetcher = one(hub, run), Fetcher.of(run)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    fetcher.check_room([file])
    assert "room for 0.000 GB" in caplog.text
    assert not Path(fetcher.folder).exists()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("btlm_data.sources.pool.os.write", full)
    with (
        pytest.raises(OutputError, match=r"The disk of the download folder .* is full.*--cache-dir"),
        fetcher.local_copy(file),
    ):
        pass


def test_keep_downloads_needs_room_for_everything(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=400_000, keep_downloads=True)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(2)})
    with pytest.raises(OutputError, match="--keep-downloads"):
        Fetcher.of(run).check_room(files)


def test_kept_downloads_serve_other_runs_too(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(keep_downloads=True)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(2)})
    assert [get(run, file) for file in files] == [body(0), body(1)]
    Fetcher.of(run).release(files)
    sent = hub.bytes_sent
    other = make_run(keep_downloads=True, out="other")
    assert Fetcher.of(other).folder != Fetcher.of(run).folder
    assert [get(other, file) for file in files] == [body(0), body(1)]
    assert hub.bytes_sent == sent


def test_two_runs_with_one_cache_folder_do_not_meet(hub: Hub, make_run: RunMaker) -> None:
    runs = [make_run(out=name, cache_size=350_000) for name in ("a", "b")]
    files = listed(hub, runs[0], {f"train/{n}.jsonl": body(n) for n in range(2)})
    with Fetcher.of(runs[0]).local_copy(files[0]) as path:
        assert [get(runs[1], file) for file in files] == [body(0), body(1)]
        Fetcher.of(runs[1]).release(files)
        assert path.read_bytes() == body(0)


def test_what_an_unfinished_run_left_goes_after_a_week(hub: Hub, make_run: RunMaker) -> None:
    old, busy, new = (make_run(out=name) for name in ("old", "busy", "new"))
    file = one(hub, new)
    get(old, file)
    with Fetcher.of(busy).local_copy(file):
        long_ago = time.time() - 8 * 86_400
        for run in (old, busy):
            os.utime(Fetcher.of(run).folder, (long_ago, long_ago))
        with Prefetcher(Fetcher.of(new), [file]):
            pass
        assert not Path(Fetcher.of(old).folder).exists()
        assert Path(Fetcher.of(busy).folder).exists()


def test_a_pinned_file_stays_and_others_go(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=700_000)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(4)})
    fetcher = Fetcher.of(run)
    with fetcher.local_copy(files[0]) as path:
        for file in files[1:]:
            get(run, file)
        assert path.read_bytes() == body(0)
    sent = hub.bytes_sent
    get(run, files[0])
    get(run, files[3])
    assert hub.bytes_sent == sent
    fetcher.release(files)
    assert stored(run) == 0


def test_what_a_dead_process_was_reading_gives_way(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=350_000)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(2)})
    get(run, files[0])
    folder = Path(Fetcher.of(run).folder)
    [whole] = [path for path in folder.iterdir() if "." not in path.name]
    (folder / f"{whole.name}.{machine_name()}-{os.getpid()}-1-0.reading").hardlink_to(
        whole
    )  # began at another time
    assert get(run, files[1]) == body(1)
    assert not list(folder.glob("*.reading"))


def test_a_file_is_downloaded_by_one_process_and_read_by_two_while_its_name_goes(
    hub: Hub, make_run: RunMaker
) -> None:
    run = make_run(cache_size=650_000)
    file = one(hub, run)
    pool = Fetcher.of(run).pool()
    taken = pool.obtain("a" * 32, 300_000, lambda _: True)
    assert isinstance(taken, Partial)
    assert pool.obtain("a" * 32, 300_000, lambda _: True) is None
    taken.append(b"x" * 1000)
    taken.leave()
    again = pool.obtain("a" * 32, 300_000, lambda _: True)
    assert isinstance(again, Partial)
    assert again.received == 1000
    with Fetcher.of(run).local_copy(file) as first, Fetcher.of(run).local_copy(file) as second:
        assert first != second
        (Path(Fetcher.of(run).folder) / first.name.partition(".")[0]).unlink()
        assert first.read_bytes() == second.read_bytes() == body(1)
        assert pool.usage() == 600_000
    assert pool.usage() == 300_000


def test_prefetching_does_not_fetch_again_what_was_used_and_dropped(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=350_000)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(5)})
    with Prefetcher(Fetcher.of(run), files, threads=1):
        for file in files:
            assert get(run, file) == body(int(Path(file.name).stem))
        time.sleep(0.3)
    assert (
        sum(r.path.startswith("/cdn/") for r in hub.requests) <= 6
    )  # at most one lost race for the only place


def test_a_failure_ahead_is_left_to_the_reader(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(retries=1)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(3)})
    hub.faults.append(Fault("resolve", "1.jsonl", status=404, error_code="EntryNotFound", times=None))
    with Prefetcher(Fetcher.of(run), files):
        assert get(run, files[0]) == body(0)
        with pytest.raises(SourceUnavailable):
            get(run, files[1])
        assert get(run, files[2]) == body(2)


def test_leaving_the_prefetcher_is_quick(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(timeout=30)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(8)})
    hub.faults.append(Fault("body", trickle=20_000, times=None))
    begin = time.monotonic()

    def interrupted() -> None:
        with Prefetcher(Fetcher.of(run), files):
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 2.0


def test_a_forked_child_does_not_keep_the_parents_pins(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=350_000)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(2)})
    with Fetcher.of(run).local_copy(files[0]):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        pid = _fork_sleeper()
    try:
        assert get(run, files[1]) == body(1)  # would wait for ever for the only place
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        child.kill()
        child.wait()


def _fork_sleeper() -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    return pid


FETCH = """
import sys, json
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
run = Run(**json.loads(sys.argv[1]))
for file in list_files(SourceSettings(name="hf://datasets/org/data"), run).files:
    with Fetcher.of(run).local_copy(file) as path:
        path.read_bytes()
"""


@pytest.fixture
def fetch_process(hub: Hub, tmp_path: Path) -> Iterator[Callable[[Run], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(run: Run) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", FETCH, run.model_dump_json()], cwd=ROOT)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_process_leaves_a_start_that_the_next_one_uses(
    hub: Hub, make_run: RunMaker, fetch_process: Callable[[Run], subprocess.Popen[bytes]]
) -> None:
    run = make_run()
    file = one(hub, run, 2_000_000)
    hub.faults.append(Fault("body", stall=20))  # half, then silence
    process = fetch_process(run)
    end = time.monotonic() + 15
    while _usage(run) < 1_000_000 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _usage(run) == 1_000_000
    begin = time.monotonic()
    assert get(run, file) == body(1, 2_000_000)
    assert time.monotonic() - begin < 3
    assert [r.range for r in hub.requests if "/cdn/" in r.path][-1] == "bytes=1000000-"


def test_what_a_dead_process_left_is_dropped_when_room_is_needed(hub: Hub, make_run: RunMaker) -> None:
    run = make_run(cache_size=400_000)
    files = listed(hub, run, {f"train/{n}.jsonl": body(n) for n in range(2)})
    hub.faults.append(Fault("body", "0.jsonl", cut_at=100_000, times=None))
    with pytest.raises(SourceUnavailable):
        get(run, files[0])
    assert _usage(run) == 100_000
    assert get(run, files[1]) == body(1)


def test_a_damaged_start_is_noticed(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    file = one(hub, run)
    hub.faults.append(Fault("body", cut_at=100_000, times=None))
    with pytest.raises(SourceUnavailable):
        get(run, file)
    hub.faults.clear()
    (partial,) = Path(Fetcher.of(run).folder).glob("*.part")
    with partial.open("r+b") as stream:
        stream.write(b"\0" * 100)
    assert get(run, file) == body(1)


@pytest.mark.stress
def test_fifty_kills(
    hub: Hub, make_run: RunMaker, fetch_process: Callable[[Run], subprocess.Popen[bytes]]
) -> None:
    run = make_run(cache_size=1_500_000)
    files = listed(hub, run, {f"train/{n:02d}.jsonl": body(n) for n in range(20)})
    hub.rate = 2e6
    chance = random.Random(5)
    for _ in range(50):
        process = fetch_process(run)
        time.sleep(chance.uniform(0.3, 2.5))
        process.kill()
        process.wait()
        assert _usage(run) <= 1_500_000
    hub.rate = None
    for number, file in enumerate(files):
        assert get(run, file) == body(number)


# Plain web servers --------------------------------------------------------------------------------------------------


def test_a_file_on_a_web_server(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    hub.add("org/data", {"a.jsonl": body(1)})
    listing = list_files(SourceSettings(name=f"{hub.url}/plain/org/data/a.jsonl"), run)
    (file,) = listing.files
    assert (file.name, file.size, file.split) == ("a.jsonl", 300_000, "train")
    hub.faults.append(Fault("body", cut_at=100_000))
    assert get(run, file) == body(1)


def test_a_file_that_changed_on_a_web_server_is_an_error(hub: Hub, make_run: RunMaker) -> None:
    run = make_run()
    hub.add("org/data", {"a.jsonl": body(1)})
    (file,) = list_files(SourceSettings(name=f"{hub.url}/plain/org/data/a.jsonl"), run).files
    hub.add("org/data", {"a.jsonl": body(2)})
    with pytest.raises(InputError, match="has changed since"):
        get(run, file)
