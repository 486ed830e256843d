"""`prepare` from a hub gives the shards that `prepare` from a folder gives, whatever the network does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from btlm_data import pipeline
from btlm_data.errors import BtlmError, SourceUnavailable
from btlm_data.recipe.load import load
from btlm_data.recipe.models import Recipe
from btlm_data.task import Step, Task
from tests.hub import Fault, Hub

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "cerebras/SlimPajama-627B"
SOURCES = ("RedPajamaC4", "RedPajamaBook", "RedPajamaArXiv")


class Quiet:
    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None: ...
    def step_moved(self, step: Step, units: int, documents: int) -> None: ...
    def step_finished(self, step: Step, seconds: float, skipped: int) -> None: ...


def build(folder: Path, num_files: int = 8, num_documents: int = 40, seed: int = 0) -> Path:
    """A corpus in SlimPajama's layout, with duplicates and documents that are too short."""
    chance = random.Random(seed)
    words = [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyzé", k=chance.randint(2, 9))) for _ in range(2000)
    ]

    def text() -> str:
        return " ".join(chance.choices(words, k=chance.randint(20, 300)))

    again = [text() for _ in range(10)]
    for split, chunks, kind, number in (
        ("train", 3, "train", num_files),
        ("validation", 2, "holdout", 2),
        ("test", 1, "holdout", 1),
    ):
        for n in range(number):
            path = folder / split / f"chunk{1 + n % chunks}" / f"example_{kind}_{n}.jsonl.zst"
            path.parent.mkdir(parents=True, exist_ok=True)
            records = [
                {
                    "text": chance.choice(again) if chance.random() < 0.1 else text(),
                    "meta": {"redpajama_set_name": chance.choice(SOURCES)},
                }
                for _ in range(num_documents)
            ]
            path.write_bytes(zstandard.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    return folder


def recipe(source: str, out: Path, **run: Any) -> Recipe:
    values: dict[str, Any] = {
        "source.name": source,
        "seq_len": [128],
        "dedupe.method": "exact",
        "run.out": str(out),
        "run.workers": 1,
    }
    values |= {"run.timeout": 5.0, "run.retries": 4, "run.retry_pause": 0.005}
    values |= {f"run.{key}" if "." not in key else key: value for key, value in run.items()}
    return load(None, {key: (value, key) for key, value in values.items()})


def prepare(source: str, out: Path, **run: Any) -> dict[str, str]:
    pipeline.prepare(recipe(source, out, **run), Quiet())
    return shards(out)


def shards(out: Path) -> dict[str, str]:
    """Path -> SHA-256 of the shards."""
    found = {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*.h5"))
    }
    assert found
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return prepare(str(corpus), tmp_path_factory.mktemp("local") / "shards")


@pytest.fixture
def serving(hub: Hub, corpus: Path) -> Hub:
    hub.add(
        REPOSITORY, {p.relative_to(corpus).as_posix(): p.read_bytes() for p in sorted(corpus.rglob("*.zst"))}
    )
    return hub


def largest(corpus: Path) -> int:
    return max(p.stat().st_size for p in corpus.rglob("*.zst"))


def test_a_hub_gives_the_shards_of_a_folder(
    serving: Hub, corpus: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    assert (
        prepare("slimpajama", out, cache_dir=str(tmp_path / "cache"), cache_size=3 * largest(corpus))
        == expected
    )
    text = (out / "dataset.json").read_text() + (out / "provenance.json").read_text()
    assert serving.repositories[REPOSITORY].commits[0][0] in text  # the resolved revision
    for path in corpus.rglob("*.zst"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert sum(r.path.startswith("/cdn/") for r in serving.requests) == 11


def test_offline_the_copy_that_hf_download_keeps_is_named_and_gives_the_same(
    serving: Hub, corpus: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    kept = snapshot_download(
        REPOSITORY, repo_type="dataset", endpoint=serving.url, cache_dir=tmp_path / "hf/hub", etag_timeout=5
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match=f"give --source {re.escape(kept)}"):
        prepare("slimpajama", tmp_path / "shards", cache_dir=str(tmp_path / "cache"))
    assert prepare(kept, tmp_path / "shards") == expected


FAULTS: dict[str, list[Fault]] = {
    "429": [Fault("resolve", status=429, retry_after="0", times=4)],
    "500": [
        Fault("resolve", status=500, times=3),
        Fault("info", status=503),
        Fault("body", status=502, times=2),
    ],
    "cut": [Fault("body", cut_at=3000, times=4)],
    "corrupt": [Fault("body", "_3", corrupt_at=1000), Fault("body", "_0", corrupt_at=5)],
    "trickle": [Fault("body", trickle=300)],
    "silence": [Fault("body", stall=2)],
    "no-ranges": [Fault("body", cut_at=3000, times=2), Fault("body", ignore_range=True, times=2)],
    "too-long": [Fault("body", extra=100)],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_change_no_byte(
    serving: Hub, corpus: Path, expected: dict[str, str], tmp_path: Path, kind: str
) -> None:
    import copy

    serving.faults = copy.deepcopy(FAULTS[kind])
    timeout = 0.5 if kind in ("trickle", "silence") else 5.0
    assert (
        prepare("slimpajama", tmp_path / "shards", cache_dir=str(tmp_path / "cache"), timeout=timeout)
        == expected
    )
    assert all(fault.times == 0 for fault in serving.faults)


def test_a_revision_that_changes_in_mid_run_changes_nothing(
    serving: Hub, corpus: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    real = serving.fault
    changed = threading.Event()

    def change(kind: str, path: str) -> Fault | None:
        if kind == "body" and not changed.is_set():
            changed.set()
            serving.add(
                REPOSITORY,
                {"train/chunk1/example_train_0.jsonl.zst": zstandard.compress(b'{"text": "other"}\n')},
            )
        return real(kind, path)

    serving.fault = change  # type: ignore[method-assign]
    assert prepare("slimpajama", tmp_path / "shards", cache_dir=str(tmp_path / "cache")) == expected
    assert changed.is_set()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("info", status=401, times=None), "HF_TOKEN"),
        (Fault("info", status=404, error_code="RepoNotFound", times=None), "slimpajama-6b"),
        (Fault("resolve", "_5", status=404, error_code="EntryNotFound", times=None), "404"),
        (Fault("body", "_5", corrupt_at=9, times=None), "downloaded twice"),
        (Fault("body", "_5", cut_at=1000, times=None), "repeats did not help"),
    ],
    ids=["401", "404", "file-404", "corrupt", "cut"],
)
def test_what_cannot_be_had_ends_in_an_error_and_can_be_resumed(
    serving: Hub, corpus: Path, expected: dict[str, str], tmp_path: Path, fault: Fault, words: str
) -> None:
    serving.faults.append(fault)
    options = {"cache_dir": str(tmp_path / "cache"), "retries": 2}
    with pytest.raises(BtlmError, match=words):
        prepare("slimpajama", tmp_path / "shards", **options)
    assert not (tmp_path / "shards/dataset.json").exists()
    serving.faults.clear()
    assert prepare("slimpajama", tmp_path / "shards", **options) == expected


def test_excluded_sources_are_in_no_shard(serving: Hub, corpus: Path, tmp_path: Path) -> None:
    remote = prepare(
        "slimpajama",
        tmp_path / "a",
        cache_dir=str(tmp_path / "cache"),
        **{"source.exclude_sources": ["RedPajamaBook"]},
    )
    local = prepare(str(corpus), tmp_path / "b", **{"source.exclude_sources": ["RedPajamaBook"]})
    assert remote == local


def test_a_bucket_gives_the_shards_of_a_folder(
    corpus: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in corpus.rglob("*.zst"):
        memory.pipe_file(f"/bucket/{path.relative_to(corpus).as_posix()}", path.read_bytes())
    try:
        assert prepare("memory://bucket", tmp_path / "shards", cache_dir=str(tmp_path / "cache")) == expected
    finally:
        memory.store.clear()


def test_s3_in_and_out_with_two_workers(
    corpus: Path, expected: dict[str, str], tmp_path: Path, bucket: Any
) -> None:
    for path in corpus.rglob("*.zst"):
        bucket.pipe_file(f"corpus/in/{path.relative_to(corpus).as_posix()}", path.read_bytes())
    arguments = [
        "prepare",
        "--source",
        "s3://corpus/in",
        "--seq-len",
        "128",
        "--dedupe",
        "exact",
        "--workers",
        "2",
        "--out",
        "s3://corpus/out",
    ]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--work-dir", str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "btlm_data.cli", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "s3://corpus/out" in done.stdout.decode() + done.stderr.decode()
    bucket.invalidate_cache()
    found = {
        str(p)[len("corpus/out/") :]: hashlib.sha256(bucket.cat_file(p)).hexdigest()
        for p in bucket.find("corpus/out")
    }
    assert {name: digest for name, digest in found.items() if name.endswith(".h5")} == expected
    assert "dataset.json" in found
    assert not any(name.startswith(".work") for name in found)


def test_a_web_server_that_is_down_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be used"):
        prepare(
            "http://127.0.0.1:9/x.jsonl", tmp_path / "shards", cache_dir=str(tmp_path / "cache"), retries=0
        )


def test_redpajama_folder_to_slimpajama(tmp_path: Path) -> None:
    """The seven folders, ftfy, the holdout, and the text written out: in SlimPajama's layout, deduplicated."""
    chance = random.Random(3)
    folder = tmp_path / "redpajama"
    curly = "The “quoted” text isn’t plain: " + " ".join(f"word{n}" for n in range(60))
    for name in (
        "arxiv/arxiv_1.jsonl",
        "c4/c4-train.jsonl",
        "github/filtered.jsonl",
        "stackexchange/stackexchange.jsonl",
        "wikipedia/wiki.jsonl",
    ):
        texts = [" ".join(f"{chance.random():.9f}" for _ in range(40)) for _ in range(60)] + [curly, "short"]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(
            "".join(json.dumps({"text": t, "meta": {"url": "x"}}) + "\n" for t in texts)
        )
    out, text_out = tmp_path / "shards", tmp_path / "text"
    settings = {"clean.normalize": "ftfy", "holdout.fraction": 0.1, "emit_text": str(text_out)}
    prepare(str(folder), out, **settings)
    documents = []
    for path in sorted(text_out.rglob("*.jsonl.zst")):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
        documents += [(path.relative_to(text_out).parts[0], json.loads(line)) for line in data.splitlines()]
    texts = [document["text"] for _, document in documents]
    assert len(texts) == len(set(texts)) == 5 * 60 + 1
    assert sum('The "quoted" text isn\'t plain' in text for text in texts) == 1
    assert {document["meta"]["redpajama_set_name"] for _, document in documents} == {
        f"RedPajama{name}" for name in ("ArXiv", "C4", "Github", "StackExchange", "Wikipedia")
    }
    assert {split for split, _ in documents} == {"train", "validation"}
    again = tmp_path / "again"
    prepare(str(folder), tmp_path / "shards2", **settings | {"emit_text": str(again), "workers": 2})
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*.zst")} == {
        p.relative_to(text_out): p.read_bytes() for p in text_out.rglob("*.zst")
    }


def test_filters_are_counted_by_name(corpus: Path, tmp_path: Path) -> None:
    filters = [{"max_chars": 1500}, {"name": "regex", "drop": "^[aeiou]"}]
    prepare(str(corpus), tmp_path / "shards", **{"clean.filters": filters})
    text = (tmp_path / "shards/dataset.json").read_text()
    assert "max_chars" in text
    assert '"regex"' in text or "drop:regex" in text


# Killed and resumed ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(serving: Hub, tmp_path: Path, corpus: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    arguments = [
        "prepare",
        "--source",
        "slimpajama",
        "--seq-len",
        "128",
        "--dedupe",
        "exact",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "shards"),
    ]
    arguments += [
        "--cache-dir",
        str(tmp_path / "cache"),
        "--cache-size",
        str(3 * largest(corpus)),
        "--set",
        "run.retry_pause=0.01",
    ]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "btlm_data.cli", *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_with_kills(
    command: Callable[[], subprocess.Popen[bytes]],
    folder: Path,
    limit: int,
    kills: int,
    longest: float,
    seed: int,
) -> int:
    """Kill `kills` times at random moments (those of a process that ended before do not count against it),
    then let it end.
    """
    chance = random.Random(seed)
    killed = 0
    for _ in range(kills):
        process = command()
        try:
            process.communicate(timeout=chance.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
        assert cache_bytes(folder) <= limit
        if process.returncode == 0:
            shutil.rmtree(folder.parent / "shards")
            shutil.rmtree(folder)
    process = command()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    return killed


def cache_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_killed_and_resumed_gives_the_same_shards(
    serving: Hub,
    command: Callable[[], subprocess.Popen[bytes]],
    corpus: Path,
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    serving.rate = 60_000
    run_with_kills(command, tmp_path / "cache", 3 * largest(corpus), kills=1, longest=3.5, seed=1)
    assert shards(tmp_path / "shards") == expected


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_fifty_kills_give_the_same_shards(
    serving: Hub,
    command: Callable[[], subprocess.Popen[bytes]],
    corpus: Path,
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    serving.rate = 60_000
    killed = run_with_kills(command, tmp_path / "cache", 3 * largest(corpus), kills=50, longest=6.0, seed=2)
    assert killed >= 30
    assert shards(tmp_path / "shards") == expected


def test_ctrl_c_ends_at_once(serving: Hub, command: Callable[[], subprocess.Popen[bytes]]) -> None:
    serving.faults.append(Fault("body", trickle=2000, times=None))
    process = command()
    end = time.monotonic() + 20
    while serving.bytes_sent == 0 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130, error.decode()
    assert b"Traceback" not in error


# Tokenizers from the hub -------------------------------------------------------------------------------------------


def small_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_tokenizer_by_hub_id_is_pinned(serving: Hub, corpus: Path, tmp_path: Path) -> None:
    path = small_tokenizer(tmp_path / "tokenizer")
    commit = serving.add("org/tokenizer", {"tokenizer.json": path.read_bytes()})

    def run(tokenizer: str, out: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
        arguments = [
            "prepare",
            "--source",
            str(corpus),
            "--files",
            "1",
            "--seq-len",
            "128",
            "--dedupe",
            "none",
            "--workers",
            "1",
        ]
        arguments += ["--tokenizer", tokenizer, "--out", str(out), *more]
        return subprocess.run(
            [sys.executable, "-m", "btlm_data.cli", *arguments], cwd=ROOT, capture_output=True, check=False
        )

    done = run("org/tokenizer", tmp_path / "a")
    assert done.returncode == 0, done.stderr.decode()
    serving.add("org/tokenizer", {"tokenizer.json": b"{}"})
    assert run(str(path), tmp_path / "b").returncode == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    manifest = json.loads((tmp_path / "a/dataset.json").read_text())
    assert commit in json.dumps(manifest) + (tmp_path / "a/provenance.json").read_text()
    assert (
        manifest["tokenizer"]["fingerprint"]
        == json.loads((tmp_path / "b/dataset.json").read_text())["tokenizer"]["fingerprint"]
    )
    assert run("org/tokenizer", tmp_path / "c", "--set", f"tokenizer.revision={commit}").returncode == 0
    assert shards(tmp_path / "c") == shards(tmp_path / "a")
    refused = run("org/tokenizer", tmp_path / "d", "--set", "tokenizer.revision=nothing")
    assert refused.returncode == 2
    assert b"no revision" in refused.stderr
    serving.faults.append(
        Fault("resolve", "tokenizer.json", status=401, error_code="RepoNotFound", times=None)
    )
    refused = run("org/other", tmp_path / "e")
    assert refused.returncode in (2, 3)
    assert b"Traceback" not in refused.stderr
