"""Every kind of store gives the same answers; leases are held by one; names never lead outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import DataError, OutputError
from btlm_data.storage import Store, check_name, lease, open_store
from btlm_data.storage.local import LocalStore
from btlm_data.storage.remote import RemoteStore
from btlm_data.storage.retry import LONGEST_WISH, Retry, TransientError


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield open_store(tmp_path / "store")
    elif request.param == "memory":
        made = open_store(f"memory://{tmp_path.name}-{os.getpid()}")
        yield made
        made.delete([entry.name for entry in made.list()])
    else:
        request.getfixturevalue("bucket")
        yield open_store("s3://corpus/place")


def test_what_is_written_is_read(store: Store) -> None:
    assert store.list() == []
    assert store.size("a/b.bin") is None
    store.write("a/b.bin", b"0123456789")
    store.write("c.bin", b"")
    with store.create("a/d/e.bin") as creating:
        creating.file.write(b"abc")
        creating.file.seek(0)
        creating.file.write(b"A")
        assert store.size("a/d/e.bin") is None
    assert [tuple(entry) for entry in store.list()] == [("a/b.bin", 10), ("a/d/e.bin", 3), ("c.bin", 0)]
    assert [entry.name for entry in store.list("a/d")] == ["a/d/e.bin"]
    assert store.list("nowhere") == []
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read("a/b.bin", 3, 5) == b"34"
    assert store.read("a/b.bin", 8) == b"89"
    assert bytes(store.map("a/d/e.bin")) == b"Abc"
    assert bytes(store.map("c.bin")) == b""
    with store.open("a/b.bin") as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"
        file.seek(2)
        assert file.read(2) == b"23"
    store.delete(["a/b.bin", "not there", "c.bin"])
    assert [entry.name for entry in store.list()] == ["a/d/e.bin"]


def test_nothing_half_written_gets_a_name(store: Store) -> None:
    store.write("kept", b"old")
    with contextlib.suppress(RuntimeError), store.create("kept") as creating:
        creating.file.write(b"new")
        raise RuntimeError
    assert store.read("kept") == b"old"
    assert [entry.name for entry in store.list()] == ["kept"]


def test_missing_and_short_files_are_said(store: Store) -> None:
    with pytest.raises(DataError, match="missing"):
        store.read("gone")
    with pytest.raises(DataError, match="missing"):
        store.open("gone")
    with pytest.raises(DataError, match="missing"):
        store.map("gone")
    store.write("short", b"abc")
    with pytest.raises(DataError, match="cut"):
        store.read("short", 0, 5)


def test_versions_decide_who_was_first(store: Store) -> None:
    first = store.create_new("lock", b"one")
    assert first is not None
    assert store.create_new("lock", b"two") is None
    assert store.read_version("lock") == (b"one", first)
    second = store.replace_version("lock", b"three", first)
    assert second is not None
    assert store.replace_version("lock", b"four", first) is None
    assert store.read_version("lock") == (b"three", second)
    assert store.read_version("no lock") is None


def test_of_those_who_replace_one_version_at_once_one_does(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    ready = threading.Barrier(4)

    class Slow(LocalStore):
        def read_version(self, name: str) -> tuple[bytes, str] | None:
            present = super().read_version(name)
            time.sleep(0.01)  # between the comparison and the replacement
            return present

    def replace(number: int, version: str) -> None:
        ready.wait()
        won[number] = Slow(tmp_path).replace_version("lock", b"%d" % number, version)

    for _ in range(20):
        won: dict[int, str | None] = {}
        version = store.create_new("lock", b"dead")
        assert version is not None
        threads = [threading.Thread(target=replace, args=(n, version)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [(winner, new)] = [(number, new) for number, new in won.items() if new is not None]
        assert store.read_version("lock") == (b"%d" % winner, new)
        assert os.listdir(tmp_path) == ["lock"]
        store.delete(["lock"])


def test_a_folder_that_others_remove_as_empty_is_made_again(tmp_path: Path) -> None:
    """Each takes and gives back the only file of a folder, as workers do with their claims."""
    failed: list[OutputError] = []

    def take_and_give_back(number: int) -> None:
        store = LocalStore(tmp_path)
        try:
            for turn in range(300):
                assert store.create_new(f"claims/step/{number}-{turn}", b"x") is not None
                store.delete([f"claims/step/{number}-{turn}"])
                store.write(f"claims/step/{number}-{turn}", b"y", durable=False)
                store.delete([f"claims/step/{number}-{turn}"])
        except OutputError as error:
            failed.append(error)

    threads = [threading.Thread(target=take_and_give_back, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_claim_of_a_process_that_died_while_replacing_does_not_stay(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version = store.create_new("lock", b"dead")
    assert version is not None
    claim = tmp_path / f".lock.{version[:16]}.btlm-tmp"
    claim.write_bytes(b"died here")
    assert store.replace_version("lock", b"new", version) is None
    os.utime(claim, (0, 0))
    assert store.replace_version("lock", b"new", version) is None  # removed by this attempt
    assert store.replace_version("lock", b"new", version) is not None
    assert os.listdir(tmp_path) == ["lock"]


def test_a_lease_has_one_holder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.05)
    with lease.hold(store, "lock", "The folder is") as held:
        with (
            pytest.raises(OutputError, match=r"The folder is in use by process \d+"),
            lease.hold(store, "lock", "The folder is"),
        ):
            pass
        time.sleep(0.3)
        held.check()
        state = json.loads(store.read("lock"))
        assert state["beat"] > 0
    assert store.size("lock") is None


def _check_for(held: lease.Lease, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        held.check()
        time.sleep(0.05)


def test_a_lease_of_another_machine_expires_only_without_heartbeat(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 0.3)
    other = {
        "holder": "process 1 on other",
        "token": "t",
        "machine": "elsewhere",
        "process": 1,
        "started": 1,
        "beat": 0,
    }
    store.write("lock", json.dumps(other).encode())
    start = time.monotonic()
    with lease.hold(store, "lock", "The folder is", heartbeat=False) as held:
        assert time.monotonic() - start >= 0.3
        monkeypatch.setattr(lease, "HEARTBEAT", 0.05)
        store.write("lock", json.dumps(other).encode())  # somebody takes it while this process sleeps
        lease.start_heartbeat(held)
        with pytest.raises(OutputError, match="taken over"):
            _check_for(held, 10.0)  # until a heartbeat has seen it
    assert store.size("lock") is not None  # the other's lease stays


def test_the_lease_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom btlm_data.storage import lease, open_store\n"
        "with lease.hold(open_store(sys.argv[1]), 'lock', 'It is'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        store = open_store(tmp_path)
        with pytest.raises(OutputError, match=str(child.pid)), lease.hold(store, "lock", "It is"):
            pass
    finally:
        child.kill()
        child.communicate()
    start = time.monotonic()
    with lease.hold(store, "lock", "It is"):
        assert time.monotonic() - start < 5


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs").write_text("theirs")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store" / "lock").symlink_to(tmp_path / "elsewhere" / "theirs")
    store = open_store(tmp_path / "store")
    attempts: list[Callable[[], object]] = [
        lambda: store.write("folder/theirs", b"ours"),
        lambda: store.write("folder/deeper/new", b"ours"),
        lambda: store.delete(["folder/theirs"]),
    ]
    for attempt in attempts:
        with pytest.raises(OutputError, match="link"):
            attempt()
    store.write("lock", b"ours")  # replaces the link, not what it leads to
    assert (tmp_path / "elsewhere" / "theirs").read_text() == "theirs"
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["theirs"]
    assert [entry.name for entry in store.list()] == ["lock"]


def test_only_our_temporary_files_are_swept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / ".draft.tmp").write_text("theirs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".x.1-00.btlm-tmp").write_text("ours")
    for held in ("run.lease", "run.lock"):  # another run writes there now
        (tmp_path / f"other-{held}").mkdir()
        (tmp_path / f"other-{held}" / held).write_text("{}")
        (tmp_path / f"other-{held}" / ".x.1-00.btlm-tmp").write_text("theirs")
    assert store.sweep() == 1
    assert len(list(tmp_path.glob("other-*/.x.1-00.btlm-tmp"))) == 2
    assert (tmp_path / "notes" / ".draft.tmp").exists()


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="regular"):
        open_store(tmp_path).read("pipe")


@given(st.text(max_size=30))
def test_names_stay_inside(name: str) -> None:
    try:
        checked = check_name(name)
    except DataError:
        return
    path = os.path.normpath(os.path.join("/folder", checked))
    assert path == "/folder/" + checked


def test_retry_counts_tries_without_progress() -> None:
    pauses: list[float] = []
    answers: list[Any] = [TransientError("one"), TransientError("two", wait=3.0), "done"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert Retry(2, 0.5).call(ask, pauses.append) == "done"
    assert 0.25 <= pauses[0] <= 0.5
    assert 3.0 <= pauses[1] <= 3.5
    attempts = Retry(2, 0.5).attempts()
    for progress in (False, False, True, False):
        assert attempts.failed(TransientError("x"), progress=progress) is not None
    assert attempts.failed(TransientError("x")) is None
    assert Retry(9).attempts().failed(TransientError("x", wait=LONGEST_WISH + 1)) is None


def test_a_store_with_faults_answers_in_the_end_or_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from btlm_data.storage import remote

    store = remote.RemoteStore(f"memory://{tmp_path.name}", Retry(2, 0.001))
    store.write("a", b"abc")
    files, _ = store._files()
    real: Callable[..., Any] = files.cat_file
    faults = [OSError("reset"), OSError("reset")]

    def cat_file(*args: Any, **kwargs: Any) -> Any:
        if faults:
            raise faults.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(files, "cat_file", cat_file)
    assert store.read("a") == b"abc"
    faults.extend([OSError("reset")] * 3)
    with pytest.raises(DataError, match="could not be read: reset"):
        store.read("a")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_cannot_be_a_lease_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "no"),
    }
    make[kind]()
    with pytest.raises(OutputError, match="in the way"), lease.hold(open_store(tmp_path), "lock", "It is"):
        pass
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_a_store_that_does_not_answer_is_named_soon(
    endpoint: str, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    RemoteStore("s3://corpus/x").reach()
    with pytest.raises(OutputError, match="s3://none/x: there is no such bucket"):
        RemoteStore("s3://none/x").reach()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    bucket.clear_instance_cache()
    monkeypatch.setattr("btlm_data.storage.remote._FIRST_ANSWER", 1.0)
    with pytest.raises(OutputError, match="the store cannot be reached"):
        RemoteStore("s3://corpus/x").reach()
