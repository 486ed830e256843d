"""What the kill runs kill: a command that can be repeated until it ends, what it reads, and what it must leave."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.commands import command
from tests.train import tiny

EXPORTED = "holds an earlier export"
UNEQUAL = {
    "provenance.json",
    "report.html",
    "export.lock",
}  # when and where a run was made; the lease of one that was killed at its end


def last_receipt(folder: Path) -> str:
    """The step that has the newest receipt."""
    receipts = sorted(folder.glob("out/**/receipts/*"), key=lambda path: path.stat().st_mtime_ns)
    return receipts[-1].name.partition(".")[0] if receipts else "(before)"


class Target(NamedTuple):
    """A command that is killed and repeated.

    program: the module that is run. inputs: makes what the command reads, once. start: copies into a fresh folder
    what the command changes, given (inputs, folder). arguments: of the command, given (inputs, folder).
    contents: everything that must be equal in two folders whose commands have ended. between: names of what may not be
    as it is after a kill, given (inputs, folder, contents of a folder whose command has ended). done: the words with which the
    command refuses to do again what is done, if it does so. reached: where a command was that was killed in a folder.
    """

    program: str
    inputs: Callable[[Path], None]
    arguments: Callable[[Path, Path], list[str]]
    start: Callable[[Path, Path], None] = lambda inputs, folder: None
    contents: Callable[[Path], dict[str, str]] = lambda folder: hashes(folder)
    between: Callable[[Path, Path, dict[str, str]], list[str]] = lambda inputs, folder, contents: []
    done: str | None = None
    reached: Callable[[Path], str] = last_receipt


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but those of the work folder and of provenance."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".work" not in path.parts and path.name not in UNEQUAL
    }


def write_corpus(folder: Path, files: int, documents: int, seed: int) -> None:
    """Files of JSON lines, every other one compressed; one document in five is nearly or wholly another one."""
    chance = random.Random(seed)
    words = [f"word{i}" for i in range(3000)]
    earlier: list[list[str]] = []
    folder.mkdir(parents=True)
    for number in range(files):
        lines = []
        for _ in range(documents):
            text = chance.choices(words, k=chance.randint(5, 120))
            if earlier and chance.random() < 0.2:
                text = list(chance.choice(earlier))
                text[chance.randrange(len(text))] = chance.choice(words)
            earlier.append(text)
            source = chance.choice(["web", "books", "code"])
            lines.append(json.dumps({"text": " ".join(text), "meta": {"redpajama_set_name": source}}) + "\n")
        raw = ("".join(lines) + "{broken\n" * (number % 2)).encode()
        if number % 2:
            (folder / f"{number:02}.jsonl.gz").write_bytes(gzip.compress(raw, 1, mtime=0))
        else:
            (folder / f"{number:02}.jsonl").write_bytes(raw)


def _corpus(inputs: Path) -> None:
    write_corpus(inputs / "corpus", 6, 40, 1)


def _no_inputs(inputs: Path) -> None:
    """The sample is part of the package."""


def _prepare_sample(inputs: Path, folder: Path) -> list[str]:
    """Every stage, several shards a split, with memory for everything."""
    return [
        *[
            "prepare",
            "--source",
            "sample",
            "--set",
            "source.limit=100",
            "--seq-len",
            "256",
            "--samples-per-file",
            "90",
        ],
        *["--out", str(folder / "out")],
    ]


def _prepare_corpus(inputs: Path, folder: Path) -> list[str]:
    """Little memory, so that every step writes files between; two lengths, checked pairs, a drawn holdout."""
    return [
        *["prepare", "--source", str(inputs / "corpus"), "--seq-len", "64:0.5", "--seq-len", "32:0.5"],
        *["--out", str(folder / "out"), "--memory", "30KB", "--samples-per-file", "50"],
        *["--set", "holdout.fraction=0.1", "--set", "clean.min_chars=50"],
    ]


def _several_groups(folder: Path) -> dict[str, str]:
    """The dataset, whose documents were compared in several groups that found their rows in files of several passes."""
    steps = {
        path.name: len(list(path.iterdir()))
        for path in (folder / "out/.work/dedupe").iterdir()
        if path.is_dir()
    }
    assert steps["compare"] > 2
    assert "members-2" in steps
    return hashes(folder)


def _cleaned(inputs: Path, folder: Path) -> None:
    """A work folder in which the next step is the first one of deduplication, made the first time it is asked for."""
    if not (inputs / "out").exists():
        from tests.faults.kill_runs import run_command

        run_command(
            "btlm_data", [*_prepare_corpus(inputs, inputs), "--workers", "1", "--stop-after", "clean"]
        )
    shutil.copytree(inputs / "out", folder / "out")


def _emit_text(inputs: Path, folder: Path) -> list[str]:
    return [*_prepare_corpus(inputs, folder), "--emit-text", str(folder / "text")]


def _two_corpora(inputs: Path) -> None:
    _corpus(inputs)
    write_corpus(inputs / "earlier", 3, 40, 1)  # the same documents as the first files of the corpus


def _update_index(inputs: Path, folder: Path) -> list[str]:
    return [*_prepare_corpus(inputs, folder), "--dedupe-index", str(folder / "index"), "--accept-removal"]


def _earlier_index(inputs: Path, folder: Path) -> None:
    """An index that holds an earlier run, made the first time it is asked for."""
    if not (inputs / "index").exists():
        from tests.faults.kill_runs import run_command

        arguments = ["prepare", "--source", str(inputs / "earlier"), "--seq-len", "64"]
        run_command(
            "btlm_data", [*arguments, "--out", str(inputs / "o"), "--dedupe-index", str(inputs / "index")]
        )
    shutil.copytree(inputs / "index", folder / "index", dirs_exist_ok=True)


def _with_index(folder: Path) -> dict[str, str]:
    """The dataset, and every file of the index."""
    index = {f"index/{name}": value for name, value in hashes(folder / "index").items()}
    assert sum(name.endswith("index.json") for name in index) == 2
    return hashes(folder / "out") | index


def _dataset(inputs: Path) -> None:
    from tests.faults.kill_runs import run_command

    run_command("btlm_data", _prepare_sample(inputs, inputs))


def _export(to: str) -> Callable[[Path, Path], list[str]]:
    def arguments(inputs: Path, folder: Path) -> list[str]:
        return ["export", str(inputs / "out"), "--to", to, "--out", str(folder / "out")]

    return arguments


def _forget_inputs(inputs: Path) -> None:
    from tests.faults.kill_runs import run_command

    _corpus(inputs)
    run_command("btlm_data", _prepare_corpus(inputs, inputs))
    shutil.rmtree(inputs / "out/.work")


def _forget(inputs: Path, folder: Path) -> list[str]:
    return ["forget", str(folder / "out"), "--id", "00.jsonl#0", "--id", "02.jsonl#0", "--id", "04.jsonl#0"]


def _remove(inputs: Path, folder: Path) -> list[str]:
    return [*_forget(inputs, folder), "--how", "remove"]


def _old_or_new(inputs: Path, folder: Path, contents: dict[str, str]) -> list[str]:
    """Shards and tables are all as they were, or all as they are to be."""
    old, new, present = (
        {
            name: value
            for name, value in found.items()
            if name.startswith("out/") and name.endswith((".h5", ".parquet"))
        }
        for found in (hashes(inputs), contents, hashes(folder))
    )
    assert old != new
    if present in (old, new):
        return []
    return sorted(name for name in {*old, *present} if present.get(name) != old.get(name))


def _copied(inputs: Path, folder: Path) -> None:
    shutil.copytree(inputs / "out", folder / "out")


def _forgotten(folder: Path) -> dict[str, str]:
    """Everything but the time of the certificates, what names a certificate by its hash, and the pages with their lease."""
    others = (".json", ".md", ".lease")
    found = {name: value for name, value in hashes(folder).items() if not name.endswith(others)}
    for path in sorted(folder.rglob("forgotten.json")):
        tree = json.loads(path.read_bytes())["certificates"]
        assert len(tree) == 1, "forgotten more than once"
        found[str(path.relative_to(folder))] = json.dumps([tree[0]["asked"], tree[0]["documents"]])
    found["verified"] = str(command("verify", folder / "out").code)
    return found


def _index_inputs(inputs: Path) -> None:
    """A dataset whose indexes take longer to make than it takes to open."""
    from tests.faults.kill_runs import run_command

    write_corpus(inputs / "corpus", 4, 500, 1)
    source = ["--source", str(inputs / "corpus"), "--seq-len", "64:0.5", "--seq-len", "32:0.5"]
    run_command("btlm_data", ["prepare", *source, "--out", str(inputs / "out"), "--accept-removal"])
    shutil.rmtree(inputs / "out/.work")


def _index_reached(folder: Path) -> str:
    """Which index of the two sets is being made, and how far it is."""
    works = sorted((folder / "out").rglob(".*-index.work"))
    if not works:
        made = len([*(folder / "out").rglob(".*-index")])
        return f"({made} of 4 made)" if made else "(before)"
    [work] = works
    names = [path.name for path in work.iterdir()]
    parts = [name for name in names if name[-4:].isdigit() and not name.startswith("entries")]
    step = "index.json" if "index.json" in names else "parts" if parts else "entries"
    return f"{work.name.removesuffix('.work').removeprefix('.')} {step}"


def _index_text(inputs: Path, folder: Path) -> list[str]:
    return ["index", str(folder / "out")]


def _none_or_whole(inputs: Path, folder: Path, contents: dict[str, str]) -> list[str]:
    """The dataset stays as it is, and an index that is there is whole."""
    present, before = hashes(folder / "out"), hashes(inputs / "out")
    expected = {name.removeprefix("out/"): value for name, value in contents.items()}
    made = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob(".*-index")}
    assert expected.keys() > before.keys()
    wanted = before | {
        name: value for name, value in expected.items() if any(name.startswith(f"{each}/") for each in made)
    }
    left = {name: value for name, value in present.items() if "-index.work/" not in name}
    return sorted(name for name in {*left, *wanted} if left.get(name) != wanted.get(name))


def _add_inputs(inputs: Path) -> None:
    """A finished dataset of documents that are a half of what is added to it."""
    from tests.faults.kill_runs import run_command

    _two_corpora(inputs)
    arguments = ["prepare", "--source", str(inputs / "earlier"), "--seq-len", "64:0.5", "--seq-len", "32:0.5"]
    arguments += ["--set", "clean.min_chars=50", "--samples-per-file", "50"]
    run_command("btlm_data", [*arguments, "--out", str(inputs / "out")])
    shutil.rmtree(inputs / "out/.work")


def _add(inputs: Path, folder: Path) -> list[str]:
    return ["add", str(folder / "out"), "--source", str(inputs / "corpus"), "--memory", "30KB"]


def _old_or_grown(inputs: Path, folder: Path, contents: dict[str, str]) -> list[str]:
    """What is there stays; what is listed is whole, but for its pages, which are written last."""
    from btlm_data.formats import generations
    from btlm_data.formats.pages import PAGES

    expected = hashes(inputs)
    expected = {name: value for name, value in expected.items() if name.startswith("out/")}
    if len(generations.read(folder / "out")) > 1:
        expected |= {name: value for name, value in contents.items() if Path(name).name not in PAGES}
    present = hashes(folder)
    return [name for name, value in expected.items() if present.get(name) != value]


def _train_inputs(inputs: Path) -> None:
    tiny.write_params(
        inputs / "params.yaml",
        tiny.write_shards(inputs / "train"),
        runconfig={"checkpoint_steps": 2, "max_checkpoints": 3},
    )


def _train(inputs: Path, folder: Path) -> list[str]:
    return tiny.command(inputs / "params.yaml", folder / "run")[3:]


def _trained(folder: Path) -> dict[str, str]:
    """The weights and optimizer state of every checkpoint kept, and the figures of every step."""
    run = folder / "run"
    kept = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".pt")
    }
    assert kept, "no checkpoint is kept"
    return {**kept, "losses": json.dumps(tiny.losses(run))}


TARGETS = {
    "sample": Target("btlm_data", _no_inputs, _prepare_sample),
    "corpus": Target("btlm_data", _corpus, _prepare_corpus, contents=_several_groups),
    "dedupe": Target("btlm_data", _corpus, _prepare_corpus, _cleaned, contents=_several_groups),
    "emit-text": Target("btlm_data", _corpus, _emit_text),
    "index": Target("btlm_data", _two_corpora, _update_index, _earlier_index, _with_index),
    "export-npy": Target("btlm_data", _dataset, _export("npy"), done=EXPORTED),
    "export-megatron": Target("btlm_data", _dataset, _export("megatron"), done=EXPORTED),
    "export-mds": Target("btlm_data", _dataset, _export("mds"), done=EXPORTED),
    "forget": Target("btlm_data", _forget_inputs, _forget, _copied, _forgotten, _old_or_new),
    "forget-remove": Target("btlm_data", _forget_inputs, _remove, _copied, _forgotten, _old_or_new),
    "text-index": Target(
        "btlm_data", _index_inputs, _index_text, _copied, between=_none_or_whole, reached=_index_reached
    ),
    "add": Target("btlm_data", _add_inputs, _add, _copied, between=_old_or_grown),
    "train": Target("btlm_train", _train_inputs, _train, contents=_trained),
}
