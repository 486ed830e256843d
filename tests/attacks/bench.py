"""Where probes are made: folders, small corpora and datasets, commands in this process or in their own, and the list of probes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from btlm_data.formats import dataset as dataset_json
from btlm_data.formats.sealed_json import sealed
from tests.faults.commands import Ended, command

ROOT = Path(__file__).resolve().parents[2]
EVIL = "\x1b]52;c;Y3VybA==\x07\x1b[2J\u202etxt.exe\x9b1A"  # clipboard, clear screen, other direction, a C1 control
MINE = "somebody else's\n"


class Probe(NamedTuple):
    """One attack. number: of its value among those of one function. slow: takes processes of its own, or seconds."""

    group: str
    name: str
    attack: Callable[[Bench], None]
    number: int
    slow: bool

    @property
    def is_quick(self) -> bool:
        """Whether it is made in the tests, and not only in the whole run: the first value of what takes no seconds."""
        return self.number == 0 and not self.slow


PROBES: list[Probe] = []


def probe(
    group: str, *values: Any, slow: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function (bench) or, once for each value, (bench, value) as probes of a group; assertions say that it held."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", " ")
        if not values:
            PROBES.append(Probe(group, name, function, 0, slow))
        for number, value in enumerate(values):
            attack = functools.partial(_with_value, function, value)
            label = value.__name__ if callable(value) else str(value)
            PROBES.append(Probe(group, f"{name}: {label[:60]!r}", attack, number, slow))
        return function

    return register


def _with_value(function: Callable[..., None], value: Any, bench: Bench) -> None:
    function(bench, value)


class Bench:
    """A folder of a probe's own, and what it does there. cache: made once for all probes."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    # What probes are made of

    def write(self, name: str, content: str | bytes) -> Path:
        """A file below the probe's folder."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    def mine(self, name: str) -> Path:
        """A file of somebody else."""
        return self.write(name, MINE)

    def corpus(self, name: str = "a.jsonl", documents: int = 40, seed: int = 1) -> Path:
        """A file of documents, of three sources."""
        chance = random.Random(seed)
        words = [f"word{i}" for i in range(2000)]
        lines = [
            json.dumps(
                {"text": " ".join(chance.choices(words, k=60)), "meta": {"redpajama_set_name": f"S{i % 3}"}}
            )
            for i in range(documents)
        ]
        return self.write(name, "\n".join(lines) + "\n")

    def dataset(self, form: str = "sample", name: str = "data") -> Path:
        """A copy of a small dataset of two splits, without its work folder; corpus.jsonl beside it is its source."""
        kept = self.cache / f"dataset-{form}"
        if not kept.exists():
            making = Bench(Path(tempfile.mkdtemp(dir=self.cache)), self.cache)
            making.corpus("corpus/train/a.jsonl", 60)
            making.corpus("corpus/validation/b.jsonl", 20, 2)
            making.prepare("corpus", "data", "--format", form, "--samples-per-file", "20")
            shutil.rmtree(making.root / "data/.work")
            making.root.rename(kept)
        shutil.copytree(kept / "data", self.root / name)
        if not (self.root / "corpus").exists():
            shutil.copytree(kept / "corpus", self.root / "corpus")
        return self.root / name

    # What is done

    def prepare(
        self, source: str | Path, out: str | Path = "out", *more: object, code: int | None = 0
    ) -> Ended:
        """`prepare` in this process, one worker; code: how it must end (None: in words)."""
        arguments = [
            "prepare",
            "--source",
            self.root / source,
            "--out",
            self.root / out,
            "--seq-len",
            "64",
            "--workers",
            "1",
        ]
        ended = command(*arguments, *more)
        assert code is None or ended.code == code, f"exit code {ended.code}: {ended.words[-1500:]}"
        return ended

    def run(self, *arguments: object, program: str = "btlm_data", code: int | None = None) -> Ended:
        """Any command in this process."""
        ended = command(*arguments, program=program)
        assert code is None or ended.code == code, f"exit code {ended.code}: {ended.words[-1500:]}"
        return ended

    def process(
        self,
        *arguments: object,
        seconds: float = 120,
        program: str = "btlm_data",
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """A command in a process of its own. Raises AssertionError if it takes longer. prefix: words before it (a shell)."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            **options,
        }
        words = [*prefix, sys.executable, "-m", program, *map(str, arguments)]
        try:
            return subprocess.run(
                words, env=environment, cwd=self.root, timeout=seconds, check=False, **options
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{words} did not end in {seconds} s") from None

    def failing_checks(self, path: Path, *more: object) -> set[str]:
        """Names of the checks of `verify` that fail."""
        ended = self.run("verify", path, "--json", *more)
        lines = [json.loads(line) for line in ended.output.splitlines()]
        if ended.code != 1:
            assert ended.code in (0, 1), ended.words
        if lines and "error" in lines[-1]:
            return {lines[-1]["error"]["kind"]}
        return {line["name"] for line in lines if line["ok"] is False}

    # What is looked at

    def hashes(self, name: str | Path) -> dict[str, str]:
        """Name -> SHA-256 of every file of a dataset but its provenance and work folder."""
        root = self.root / name
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and ".work" not in path.parts
            and path.name not in ("provenance.json", "report.html")
        }


def edit(path: Path, change: Callable[[Any], object], *, fingerprint: bool = False) -> None:
    """Change a sealed JSON file as one who knows the format would: its checksum is right again (and the fingerprint, if asked)."""
    tree = json.loads(path.read_bytes())
    change(tree)
    if fingerprint:
        value = dataset_json.decode(sealed(tree), path.name)
        assert isinstance(value, dataset_json.Dataset)
        tree["fingerprint"] = dataset_json.fingerprint_of(
            value.configuration, value.inputs, value.tokenizer.fingerprint, value.other_inputs
        )
    path.write_bytes(sealed(tree))


def rename_in_manifest(root: Path, changed: Path) -> None:
    """Make dataset.json name a changed file with its size and hash as they are now."""
    data = changed.read_bytes()

    def change(tree: Any) -> None:
        files = [
            file for split in tree["splits"].values() for file in (*split["files"], split["documents_file"])
        ]
        for split, entry in tree["splits"].items():
            for file in (*entry["files"], entry["documents_file"]):
                if root / split / file["name"] == changed:
                    file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        del files
        for file in tree["outputs"]:
            if root / file["name"] == changed:
                file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit(root / "dataset.json", change)


def try_one(one: Probe, cache: Path) -> str | None:
    """Make one probe in a fresh folder; why it did not hold, or None."""
    cache.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="probe-", dir=cache))
    before, temporary = Path.cwd(), os.environ.get("TMPDIR")
    (root / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
    os.chdir(root)
    try:
        one.attack(Bench(root, cache))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return traceback.format_exc()[-3000:]
    finally:
        os.chdir(before)
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if temporary is not None:
            os.environ["TMPDIR"] = temporary
        _writable(root)
        shutil.rmtree(root, ignore_errors=True)
    return None


def _writable(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)
