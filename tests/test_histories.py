"""A work folder's history never changes a result.

A state machine does to one work folder what people and accidents do: other settings, memory and workers, files added,
removed, renamed and changed, runs that stop after a stage, for safety, or are killed at a random write. After each run that
succeeds, the dataset equals the one that a fresh folder gives, byte for byte. The same with the work folder and the dataset
on S3 (moto's server), held against a fresh folder here.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from btlm_data import pipeline, preparation
from btlm_data.errors import SafetyStop
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.stages import ready
from btlm_data.storage.local import LocalStore
from btlm_data.storage.remote import RemoteStore
from btlm_data.tokenizer import load_tokenizer

KILLED, STOPPED = 9, 5
STAGES = ["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard"]
WORDS = [f"w{i}" for i in range(400)]


@functools.cache
def document(number: int) -> str:
    """Document `number`; 3k + 1 is nearly 3k, 3k + 2 is 3k itself for some k."""
    chance = random.Random(number - number % 3)
    words = chance.choices(WORDS, k=80)
    if number % 3 == 1:
        words[chance.randrange(80)] = "other"
    if number % 3 == 2 and number % 2:
        words = random.Random(number).choices(WORDS, k=30)
    return " ".join(words)


def write_file(path: Path, first: int, count: int) -> None:
    source = ["web", "books"][first % 2]
    lines = [
        {"text": document(n), "meta": {"redpajama_set_name": source}} for n in range(first, first + count)
    ]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + ("{broken\n" if first % 5 == 0 else "")
    )


CHOICES: dict[str, list[Any]] = {
    "dedupe.method": ["minhash", "minhash", "minhash", "exact", "none"],
    "dedupe.bands": [16, 9, 2, 20],
    "dedupe.rows": [8, 13, 2, 6],
    "dedupe.verify": ["text", "text", "none", "signature"],
    "dedupe.keep": ["first", "longest"],
    "dedupe.max_removed": [1.0, 1.0, 0.05],
    "run.memory": ["2GB", "40KB", "10KB"],
    "run.workers": [1, 1, 2],
    "seq_len": [64, 64, ["64", "32"], ["64:0.5", "32:0.4"]],
    "format": ["sample", "sample", "corpus", "vsl"],
    "shuffle": ["samples", "documents", "none"],
    "seed": [0, 0, 1],
    "clean.min_chars": [0, 200],
    "holdout.fraction": [0.0, 0.1],
    "shards.samples_per_file": [None, 7],
    "tail": ["pad", "drop"],
    "mix": [{}, {"web": 1.5, "by_copies": {"1": 0.5, "2-": 3.0}}],
}
CHANGES = st.dictionaries(
    st.sampled_from(sorted(CHOICES)), st.integers(0, 10**6), min_size=0, max_size=3
).map(lambda chosen: {key: CHOICES[key][number % len(CHOICES[key])] for key, number in chosen.items()})


def prepare(source: Path, out: Path | str, work: Path | str, options: dict[str, Any]) -> pipeline.Prepared:
    given = {"source.name": str(source), "run.out": str(out), "run.work_dir": str(work), **options}
    if given.get("dedupe.bands", 16) * given.get("dedupe.rows", 8) > 128:
        given["dedupe.rows"] = 6
    if given.get("dedupe.method") == "none" and given.get("mix"):
        given["mix"] = {}
    if given.get("mix"):
        given["run.allow_missing_source"] = True
    return pipeline.prepare(load(None, {k: (v, "test") for k, v in given.items() if v is not None}), Lines())


def contents(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


def contents_on_s3(bucket: Any, folder: str) -> dict[str, str]:
    return {
        entry.key.removeprefix(f"{folder}/"): hashlib.sha256(entry.get()["Body"].read()).hexdigest()
        for entry in bucket.objects.filter(Prefix=f"{folder}/")
        if not entry.key.endswith("/provenance.json")
    }


def in_a_child(action: Callable[[], None]) -> int:
    """Do something in a forked process; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except SafetyStop:
            code = STOPPED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_write(number: int) -> None:
    """From now on: this process ends, as by SIGKILL, in the middle of its write `number`, wherever that goes."""
    count = itertools.count()

    def dying(store: type[LocalStore] | type[RemoteStore], method: str, leave: Callable[..., None]) -> None:
        original = getattr(store, method)

        def write(self: Any, *arguments: Any, **options: Any) -> Any:
            if next(count) == number:
                leave(self, *arguments)
                os._exit(KILLED)
            return original(self, *arguments, **options)

        setattr(store, method, write)

    def leave_half(store: LocalStore, name: str) -> None:
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).with_name(f".{Path(name).name}.0-00.btlm-tmp").write_bytes(b"half")

    dying(LocalStore, "create", leave_half)
    # Large objects and small ones: half of the writes are lost, the others arrive before the process ends.
    put = RemoteStore._put
    dying(RemoteStore, "_put", lambda store, *rest: put(store, *rest) if number % 2 else None)
    small = RemoteStore.write
    dying(RemoteStore, "write", lambda store, *rest: small(store, *rest) if number % 2 else None)


class Histories(RuleBasedStateMachine):
    """One source folder, one work folder, one dataset folder."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="btlm-history-"))
        self.source = self.root / "source"
        self.work: Path | str = self.root / "work"
        self.out: Path | str = self.root / "out"
        self.source.mkdir()
        self.options: dict[str, Any] = {"run.workers": 1, "clean.min_chars": 0, "dedupe.max_removed": 1.0}
        self.numbers = itertools.count()
        self.fresh = 0
        for _ in range(3):
            self.add_file(30)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    def contents(self) -> dict[str, str]:
        """Of the dataset."""
        assert isinstance(self.out, Path)
        return contents(self.out)

    @rule(count=st.integers(1, 40))
    def add_file(self, count: int) -> None:
        number = next(self.numbers)
        write_file(self.source / f"f{number:03d}.jsonl", 7 * number, count)

    @precondition(lambda self: len(list(self.source.iterdir())) > 1)
    @rule(chance=st.randoms())
    def remove_file(self, chance: random.Random) -> None:
        chance.choice(sorted(self.source.iterdir())).unlink()

    @rule(chance=st.randoms())
    def rename_file(self, chance: random.Random) -> None:
        path = chance.choice(sorted(self.source.iterdir()))
        path.rename(path.with_name(f"r{next(self.numbers):03d}.jsonl"))

    @rule(chance=st.randoms(), count=st.integers(1, 40))
    def change_file(self, chance: random.Random, count: int) -> None:
        write_file(chance.choice(sorted(self.source.iterdir())), next(self.numbers), count)

    @rule(changes=CHANGES)
    def change_settings(self, changes: dict[str, Any]) -> None:
        self.options |= changes

    @rule(stage=st.sampled_from(STAGES[:-1]), changes=CHANGES)
    def run_stopped(self, stage: str, changes: dict[str, Any]) -> None:
        options = {**self.options, **changes, "run.stop_after": stage, "run.overwrite": True}
        assert in_a_child(lambda: self.prepare_here(options)) in (0, STOPPED)

    @rule(write=st.integers(0, 60), changes=CHANGES)
    def run_killed(self, write: int, changes: dict[str, Any]) -> None:
        def killed() -> None:
            die_at_write(write)
            self.prepare_here({**self.options, **changes, "run.workers": 1, "run.overwrite": True})

        assert in_a_child(killed) in (0, KILLED, STOPPED)

    @rule(changes=CHANGES)
    def run_to_the_end(self, changes: dict[str, Any]) -> None:
        self.options |= changes
        options = {**self.options, "run.overwrite": True}
        code = in_a_child(lambda: self.prepare_here(options))
        assert code in (0, STOPPED)
        fresh = self.root / f"fresh-{self.fresh}"
        self.fresh += 1
        alone = {**options, "run.workers": 1}
        assert in_a_child(lambda: ignore(prepare(self.source, fresh / "out", fresh / "work", alone))) == code
        if code == 0:
            assert self.contents() == contents(fresh / "out")
        shutil.rmtree(fresh)

    def prepare_here(self, options: dict[str, Any]) -> None:
        prepare(self.source, self.out, self.work, options)


class HistoriesOnS3(Histories):
    """The work folder and the dataset are places in a bucket; one worker (tests/test_locations.py has two).

    This process never asks s3fs itself, whose threads a forked child would miss: it looks at the bucket through boto3.
    """

    bucket: ClassVar[Any]
    number = itertools.count()

    @initialize()
    def start(self) -> None:
        super().start()
        self.folder = f"history-{next(self.number)}"
        self.work, self.out = (f"s3://{self.bucket.name}/{self.folder}/{name}" for name in ("work", "out"))

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.bucket.objects.filter(Prefix=f"{self.folder}/").delete()

    def contents(self) -> dict[str, str]:
        return contents_on_s3(self.bucket, f"{self.folder}/out")

    def prepare_here(self, options: dict[str, Any]) -> None:
        super().prepare_here({**options, "run.workers": 1})


def ignore(_: object) -> None:
    """Drop a result."""


def run_histories(
    count: int, monkeypatch: pytest.MonkeyPatch, histories: type[Histories] = Histories
) -> None:
    kept = functools.lru_cache(load_tokenizer)
    monkeypatch.setattr(preparation, "load_tokenizer", kept)
    ready.warm_up(kept("gpt2", eos=None, backend="auto", revision=None))
    machine: Any = histories.TestCase
    machine.settings = settings(
        max_examples=count,
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine("runTest").runTest()


@pytest.fixture
def on_s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Histories]]:
    """Histories in an empty bucket."""
    import boto3
    import s3fs  # noqa: F401, imported once for all children

    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    bucket = boto3.resource("s3").create_bucket(Bucket="histories")
    monkeypatch.setattr(HistoriesOnS3, "bucket", bucket, raising=False)
    yield HistoriesOnS3
    bucket.objects.delete()
    bucket.delete()


@pytest.mark.timeout(900)
def test_thirty_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    run_histories(30, monkeypatch)


@pytest.mark.timeout(900)
def test_four_histories_on_s3(monkeypatch: pytest.MonkeyPatch, on_s3: type[Histories]) -> None:
    run_histories(4, monkeypatch, on_s3)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_five_hundred_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    run_histories(500, monkeypatch)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_a_hundred_histories_on_s3(monkeypatch: pytest.MonkeyPatch, on_s3: type[Histories]) -> None:
    run_histories(100, monkeypatch, on_s3)
