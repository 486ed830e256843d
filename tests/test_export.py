"""Exports against independent readers, built from the layouts alone, and against the libraries they are for."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

import btlm_data
from btlm_data.errors import ConfigError, DataError, OutputError
from btlm_data.export import ExportedSplit, export
from btlm_data.export.split import OpenedSplit
from btlm_data.formats.sealed_json import sealed
from btlm_data.pipeline import prepare
from btlm_data.recipe.models import Recipe
from btlm_data.task import Step, Task

EOS = 50256
GENERATOR = np.random.default_rng(5)
WORDS = [
    "river",
    "stone",
    "the",
    "of",
    "naïve",
    "中文",
    "walks",
    "42",
    "<|endoftext|>",
    "light",
    "\n",
    "under",
    "a",
    "quiet",
]
TEXTS = [" ".join(GENERATOR.choice(WORDS, int(n))) for n in GENERATOR.integers(1, 120, 60)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "train"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in TEXTS[number * 20 : number * 20 + 20]]
        (folder / f"part{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


class Silent:
    """Nobody listens."""

    def step_started(self, step: Step, todo: Sequence[Task], done: Sequence[Task]) -> None: ...

    def step_moved(self, step: Step, units: int, documents: int) -> None: ...

    def step_finished(self, step: Step, seconds: float, skipped: int) -> None: ...


def prepared(corpus: Path, out: Path, **settings: Any) -> Path:
    """Prepare the corpus, nothing dropped, in 32-token samples, 10 a shard."""
    recipe = Recipe.model_validate(
        {
            "source": str(corpus),
            "clean": {"min_chars": 0},
            "dedupe": "none",
            "seq_len": 32,
            "shards": {"samples_per_file": 10},
            "run": {"out": str(out), "workers": 1},
        }
        | settings
    )
    assert prepare(recipe, Silent()).complete
    return out


CASES: dict[str, dict[str, Any]] = {
    "samples": {},
    "documents": {"shuffle": "documents"},
    "none": {"shuffle": "none"},
    "corpus": {"format": "corpus"},
    "drop": {"tail": "drop"},
    "uint16": {"shards": {"samples_per_file": 7, "dtype": "uint16"}},
}


@pytest.fixture(scope="session", params=sorted(CASES))
def dataset(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(corpus, tmp_path_factory.mktemp("dataset") / "shards", **CASES[request.param])


@pytest.fixture(scope="session")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(corpus, tmp_path_factory.mktemp("plain") / "shards")


def truth(dataset: Path) -> list[list[int]]:
    """Ids of each document with its EOS, by `tokenizers`, in the order documents.parquet tells; cut to what
    the shards hold.
    """
    folder = Path(btlm_data.__file__).parent / "data" / "gpt2"
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    left = num_tokens(dataset)
    documents = []
    for row in pq.read_table(dataset / "train" / "documents.parquet").to_pylist():
        text = TEXTS[int(row["file"].split("part")[1][0]) * 20 + row["line"]]
        ids = [*tokenizer.encode(text).ids, EOS][:left]
        left -= len(ids)
        if ids:
            documents.append(ids)
    assert left == 0
    return documents


def num_tokens(dataset: Path) -> int:
    """Tokens of the stream that the shards hold, counted in the shards."""
    data = planes(dataset)
    return len(data) if data.ndim == 1 else int(data[:, 1].sum()) + 1


def planes(dataset: Path) -> np.ndarray[Any, Any]:
    paths = sorted((dataset / "train").glob("*.h5"))
    assert len(paths) > 2
    return np.concatenate([h5py.File(path)["data"][:] for path in paths])


def only(result: dict[str, dict[str, ExportedSplit]]) -> ExportedSplit:
    return result[""]["train"]


def read_megatron(prefix: Path) -> list[list[int]]:
    """Documents of a Megatron-LM pair of files, from the layout."""
    index = prefix.with_suffix(".idx").read_bytes()
    magic, version, code, num_sequences, num_documents = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    dtype = {8: "<u2", 4: "<i4"}[code]
    at = struct.calcsize("<9sQBQQ")
    lengths = struct.unpack_from(f"<{num_sequences}i", index, at)
    pointers = struct.unpack_from(f"<{num_sequences}q", index, at + 4 * num_sequences)
    documents = struct.unpack_from(f"<{num_documents}q", index, at + 12 * num_sequences)
    assert len(index) == at + 12 * num_sequences + 8 * num_documents
    assert documents == tuple(range(num_sequences + 1))
    content = prefix.with_suffix(".bin").read_bytes()
    assert len(content) == sum(lengths) * np.dtype(dtype).itemsize
    return [
        np.frombuffer(content, dtype, n, start).tolist() for n, start in zip(lengths, pointers, strict=True)
    ]


def read_mds(folder: Path) -> list[list[int]]:
    """Samples of an MDS folder, from the layout."""
    samples = []
    index = json.loads((folder / "index.json").read_bytes())
    assert index["version"] == 2
    for shard in index["shards"]:
        content = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", content)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", content, 4)
        stated = json.loads(content[4 + 4 * (count + 1) : offsets[0]])
        assert stated == {key: shard[key] for key in stated}
        assert shard["column_names"] == ["tokens"]
        kind, dtype, _ = shard["column_encodings"][0].split(":")
        assert kind == "ndarray"
        samples += [np.frombuffer(content[a:b], dtype).tolist() for a, b in pairwise(offsets)]
    return samples


def test_megatron_holds_the_documents_put_in(dataset: Path, tmp_path: Path) -> None:
    result = only(export(dataset, "megatron", tmp_path / "out"))
    expected = truth(dataset)
    assert read_megatron(tmp_path / "out" / "train") == expected
    assert (result.documents, result.tokens) == (len(expected), sum(map(len, expected)))


def test_npy_holds_the_stream_and_its_borders(dataset: Path, tmp_path: Path) -> None:
    export(dataset, "npy", tmp_path / "out")
    stream = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    borders = np.load(tmp_path / "out" / "train.documents.npy")
    assert [stream[a:b].tolist() for a, b in pairwise(borders)] == truth(dataset)


def test_mds_holds_the_samples_in_shard_order(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("btlm_data.export.mds.SHARD_BYTES", 1000)
    result = only(export(dataset, "mds", tmp_path / "out"))
    data = planes(dataset)
    whole = (
        data[: len(data) // 32 * 32].reshape(-1, 32) if data.ndim == 1 else data[data[:, 1].all(axis=1), 0]
    )
    assert read_mds(tmp_path / "out" / "train") == whole.tolist()
    assert len(list((tmp_path / "out" / "train").glob("*.mds"))) > 2
    assert result.samples == len(whole)
    assert result.tokens + sum(result.left_out_tokens.values()) == sum(
        len(text) for text in truth_whole(dataset)
    )


def truth_whole(dataset: Path) -> list[range]:
    """One item a document of the whole stream, as long as the document with its EOS."""
    return [
        range(n + 1) for n in pq.read_table(dataset / "train" / "documents.parquet")["tokens"].to_pylist()
    ]


@pytest.mark.parametrize("to", ["megatron", "npy", "mds"])
def test_the_same_dataset_gives_the_same_bytes_and_export_json_tells_them(
    plain: Path, tmp_path: Path, to: str
) -> None:
    contents = []
    for name in ("a", "b"):
        export(plain, to, tmp_path / name)
        contents.append(
            {
                str(p.relative_to(tmp_path / name)): p.read_bytes()
                for p in (tmp_path / name).rglob("*")
                if p.is_file()
            }
        )
    assert contents[0] == contents[1]
    told = json.loads(contents[0]["export.json"])
    assert told["sets"][""]["tokenizer"]["eos_id"] == EOS
    files = told["sets"][""]["splits"]["train"]["files"]
    assert {file["name"] for file in files} == set(contents[0]) - {"export.json"}
    assert all(file["bytes"] == len(contents[0][file["name"]]) for file in files)


def test_several_lengths_go_to_folders_of_their_own(corpus: Path, tmp_path: Path) -> None:
    dataset = prepared(corpus, tmp_path / "shards", seq_len=["16:0.6", "32:0.4"])
    result = export(dataset, "megatron", tmp_path / "out")
    assert set(result) == {"msl16", "msl32"}
    documents = [read_megatron(tmp_path / "out" / name / "train") for name in sorted(result)]
    assert [documents[0], documents[1]] == [truth(dataset / "msl16"), truth(dataset / "msl32")]
    assert len(documents[0]) + len(documents[1]) == len(TEXTS)
    export(dataset / "msl32", "megatron", tmp_path / "alone")
    assert read_megatron(tmp_path / "alone" / "train") == documents[1]


def test_what_cannot_be_exported_is_said(plain: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'dev'. It has train"):
        export(plain, "npy", tmp_path / "out", splits=["dev"])
    with pytest.raises(ConfigError, match="no export to 'tar'"):
        export(plain, "tar", tmp_path / "out")
    with pytest.raises(DataError, match="There is no"):
        export(corpus, "npy", tmp_path / "out")
    manifest = json.loads((plain / "dataset.json").read_bytes())
    (tmp_path / "vsl").mkdir()
    (tmp_path / "vsl" / "dataset.json").write_bytes(sealed(manifest | {"format": "vsl"}))
    with pytest.raises(ConfigError, match="--format corpus"):
        export(tmp_path / "vsl", "npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_is_replaced_only_when_told(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(plain, "npy", out)
    with pytest.raises(OutputError, match=r"an earlier export.*--overwrite"):
        export(plain, "npy", out)
    export(plain, "mds", out, overwrite=True)
    assert not (out / "train.bin").exists()
    assert (out / "train" / "index.json").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="files that are no export"):
        export(plain, "npy", foreign, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_a_stream_that_cannot_be_restored_is_an_error(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "train").mkdir(parents=True)
    for path in (plain / "train").iterdir():
        (copy / "train" / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((plain / "dataset.json").read_bytes())
    (copy / "dataset.json").write_bytes(sealed(manifest | {"seed": 1}))
    with pytest.raises(DataError, match="no document ends at token"):
        export(copy, "megatron", tmp_path / "out")
    assert not (tmp_path / "out" / "train.bin").exists()
    (copy / "dataset.json").write_bytes(sealed(manifest))
    (copy / "train" / "documents.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"documents\.parquet has 4 bytes"):
        export(copy, "megatron", tmp_path / "out")


# Interruptions, full disks, and datasets from strangers -----------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def two_splits(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(
        corpus,
        tmp_path_factory.mktemp("splits") / "shards",
        holdout={"fraction": 0.4},
        seq_len=["16:0.6", "32:0.4"],
    )


KILLED = """
import os, sys
from pathlib import Path
from btlm_data.export import export, mds
from btlm_data.storage.local import LocalStore
mds.SHARD_BYTES = 1000
real, left = LocalStore._open_aside, [int(sys.argv[1])]
def killed(self, path, temporary):  # at the beginning of every write of a file
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
    return real(self, path, temporary)
LocalStore._open_aside = killed
export(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
"""


@pytest.mark.parametrize("to", ["megatron", "npy", "mds"])
def test_a_killed_export_continues_with_the_same_command(
    two_splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setattr("btlm_data.export.mds.SHARD_BYTES", 1000)
    export(two_splits, to, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for count in (0, 1, 2, 5, 9):
        out = tmp_path / str(count)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(count), str(two_splits), to, str(out)], check=False
        )
        assert done.returncode == -9
        export(two_splits, to, out)
        assert contents(out) == expected


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("to", ["megatron", "npy", "mds"])
def test_two_hundred_kills_of_an_export(two_splits: Path, tmp_path: Path, to: str) -> None:
    """At random moments, until it ends by itself; always the same bytes."""
    call = f"export(Path({str(two_splits)!r}), {to!r}, Path(OUT))"
    command = f"from pathlib import Path; from btlm_data.export import export; {call}"
    export(two_splits, to, tmp_path / "whole")
    generator, kills, number = np.random.default_rng(7), 0, 0
    while kills < 67:
        number += 1
        out = tmp_path / str(number)
        for _ in range(20):
            process = subprocess.Popen([sys.executable, "-c", command.replace("OUT", repr(str(out)))])
            try:
                code = process.wait(timeout=float(generator.uniform(0.2, 1.2)))
                # A kill may come when all is done, before the process ends; then the export is there already.
                assert code == 0 or set(contents(out)) == set(contents(tmp_path / "whole"))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            else:
                break
        else:
            export(two_splits, to, out)
        assert contents(out) == contents(tmp_path / "whole")


def test_what_an_interrupted_export_finished_is_kept_where_it_is_intact(
    two_splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished splits are not written again, but for one whose file was damaged meanwhile."""
    out = tmp_path / "out"
    export(two_splits, "npy", tmp_path / "whole")
    real = OpenedSplit.write_stream
    written: list[str] = []

    def stopped(self: OpenedSplit, *arguments: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(self.shown)
        real(self, *arguments)

    monkeypatch.setattr(OpenedSplit, "write_stream", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(two_splits, "npy", out)
    first = [Path(shown).relative_to(two_splits) for shown in written]
    damaged = out / first[0].parent / f"{'val' if first[0].name == 'validation' else first[0].name}.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"!!")
    written.clear()

    def recorded(self: OpenedSplit, *arguments: Any) -> Any:
        written.append(self.shown)
        return real(self, *arguments)

    monkeypatch.setattr(OpenedSplit, "write_stream", recorded)
    export(two_splits, "npy", out)
    assert len(written) == 2
    assert written[0] == str(two_splits / first[0])
    assert contents(out) == contents(tmp_path / "whole")


def test_an_unfinished_export_is_replaced_only_when_told(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("btlm_data.export.mds.SHARD_BYTES", 1000)
    out = tmp_path / "out"
    killed = [sys.executable, "-c", KILLED, "5", str(plain), "mds", str(out)]
    assert subprocess.run(killed, check=False).returncode == -9
    with pytest.raises(
        OutputError, match=r"an unfinished export of other data, or in another format.*--overwrite"
    ):
        export(plain, "npy", out)
    export(plain, "npy", out, overwrite=True)
    assert set(contents(out)) == {"export.json", "train.bin", "train.documents.npy"}


@pytest.mark.parametrize("to", ["megatron", "npy", "mds"])
def test_a_disk_that_is_full_is_an_error_and_the_same_command_continues(
    plain: Path, tmp_path: Path, to: str
) -> None:
    """Memory maps of sparse files would be a bus error; here the system refuses to write beyond `limit`
    bytes.
    """
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            export(plain, to, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    export(plain, to, out)
    export(plain, to, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((folder / "dataset.json").read_bytes())
    change(tree)
    (folder / "dataset.json").write_bytes(sealed(tree))


def told_as_it_is(folder: Path, name: str) -> None:
    """As somebody would who forges a dataset: dataset.json says what a changed file is."""
    content = (folder / "train" / name).read_bytes()

    def change(tree: dict[str, Any]) -> None:
        split = tree["splits"]["train"]
        for file in [*split["files"], split["documents_file"]]:
            if file["name"] == name:
                file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    resealed(folder, change)


def test_nothing_is_written_outside_the_output_folder(plain: Path, two_splits: Path, tmp_path: Path) -> None:
    """Whatever names a dataset.json has, and through no link."""

    def evil_split(tree: dict[str, Any]) -> None:
        tree["splits"]["../../../evil"] = tree["splits"].pop("train")

    def evil_set(tree: dict[str, Any]) -> None:
        tree["sets"][0]["name"] = "../evil"

    for number, (source, change) in enumerate([(plain, evil_split), (two_splits, evil_set)]):
        copy = tmp_path / str(number) / "shards"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".work"))
        shutil.copytree(copy / "msl16" if number else copy, tmp_path / str(number) / "evil")
        resealed(copy, change)
        before = contents(tmp_path / str(number))
        with pytest.raises(DataError, match=r"dataset\.json"):
            export(copy, "npy", tmp_path / str(number) / "out")
        assert contents(tmp_path / str(number)) == before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "linked"
    out.mkdir()
    (out / "train").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link"):
        export(plain, "mds", out)
    assert not list(elsewhere.iterdir())


def test_an_export_json_from_a_stranger_removes_nothing_outside(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(plain, "npy", out)
    (tmp_path / "thesis.txt").write_text("years of work")
    for name in ("../thesis.txt", "/etc/passwd", "a/../../thesis.txt"):
        told = json.loads((out / "export.json").read_bytes())
        told["sets"][""]["splits"]["train"]["files"][0]["name"] = name
        (out / "export.json").write_text(json.dumps(told))
        with pytest.raises(OutputError, match="what may be replaced is unknown"):
            export(plain, "npy", out, overwrite=True)
    (out / "export.json").write_text("[" * 100_000)
    with pytest.raises(OutputError, match="what may be replaced is unknown"):
        export(plain, "npy", out, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_of_the_user_in_an_export_is_not_replaced(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(plain, "npy", out)
    (out / "train.idx").write_text("mine")
    with pytest.raises(OutputError, match=r"train\.idx was not written by an export"):
        export(plain, "megatron", out, overwrite=True)
    assert (out / "train.idx").read_text() == "mine"
    assert (out / "train.bin").exists()


def test_two_exports_into_one_folder_at_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OpenedSplit.write_stream
    refused: list[str] = []

    def second(self: OpenedSplit, *arguments: Any) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(OutputError, match="in use by process"):
                export(plain, "npy", tmp_path / "out")
        real(self, *arguments)

    monkeypatch.setattr(OpenedSplit, "write_stream", second)
    export(plain, "npy", tmp_path / "out")
    assert refused
    assert (tmp_path / "out" / "export.json").exists()


@pytest.mark.parametrize("fault", ["gap", "null", "text", "pipe"])
def test_a_table_of_documents_from_a_stranger_is_checked(plain: Path, tmp_path: Path, fault: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy, ignore=shutil.ignore_patterns(".work"))
    path = copy / "train" / "documents.parquet"
    table = pq.read_table(path)
    offsets = table["stream_offset"].to_pylist()
    values = {
        "gap": [*offsets[:-1], offsets[-1] + 2**40],
        "null": [None, *offsets[1:]],
        "text": list(map(str, offsets)),
    }
    path.unlink()
    if fault == "pipe":
        os.mkfifo(path)
    else:
        column = pa.array(values[fault])
        pq.write_table(
            table.set_column(table.schema.get_field_index("stream_offset"), "stream_offset", column), path
        )
        told_as_it_is(copy, "documents.parquet")
    with pytest.raises(DataError, match=r"documents\.parquet (cannot be read|is not a regular file)"):
        export(copy, "npy", tmp_path / "out")


def test_ids_outside_the_vocabulary_are_no_other_ids(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy, ignore=shutil.ignore_patterns(".work"))
    with h5py.File(copy / "train" / "data-00001.h5", "r+") as file:
        file["data"][3, 0, 5] = 65_537  # would become 1 as uint16
    with pytest.raises(DataError, match=r"data-00001\.h5 has .* It was changed or damaged"):
        export(copy, "mds", tmp_path / "out")
    told_as_it_is(copy, "data-00001.h5")
    with pytest.raises(DataError, match=r"data-00001\.h5 has an id outside the vocabulary of 50257"):
        export(copy, "mds", tmp_path / "out")


# The libraries the exports are for. Their pins contradict ours (huggingface_hub < 1, numpy < 2.2), so they
# may live in another environment, whose interpreter BTLM_EXPORT_PYTHON names; docs/export.md tells how to
# make one.

PYTHON = os.environ.get("BTLM_EXPORT_PYTHON", sys.executable)

# `import streaming` wants torchvision for its image datasets, which no test here opens: an empty stand-in
# will do.
READ_MDS = """
import importlib.machinery, importlib.util, json, sys, types
if importlib.util.find_spec("torchvision") is None:
    for name in ("torchvision", "torchvision.datasets", "torchvision.datasets.folder", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)
        module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
        for missing in ("VisionDataset", "ImageFolder", "default_loader", "to_tensor"):
            setattr(module, missing, object)
        sys.modules[name] = module
from streaming import StreamingDataset
dataset = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1, validate_hash="sha1")
print(json.dumps([dataset[i]["tokens"].tolist() for i in range(len(dataset))]))
"""
READ_MEGATRON = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
dataset = IndexedDataset(sys.argv[1])
assert len(dataset.document_indices) == len(dataset) + 1
print(json.dumps([dataset[i].tolist() for i in range(len(dataset))]))
"""


def by_library(module: str, script: str, argument: Path) -> list[list[int]]:
    present = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([PYTHON, "-c", present], check=False).returncode:
        pytest.skip(f"{module} is not installed in {PYTHON}; see docs/export.md and BTLM_EXPORT_PYTHON")
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", script, str(argument)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    documents: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return documents


def test_mosaicml_streaming_reads_the_mds(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("btlm_data.export.mds.SHARD_BYTES", 1000)
    export(plain, "mds", tmp_path / "out")
    data = planes(plain)
    expected = data[data[:, 1].all(axis=1), 0].tolist()
    assert by_library("streaming", READ_MDS, tmp_path / "out" / "train") == expected


def test_megatron_core_reads_the_indexed_dataset(plain: Path, tmp_path: Path) -> None:
    export(plain, "megatron", tmp_path / "out")
    assert by_library("megatron", READ_MEGATRON, tmp_path / "out" / "train") == truth(plain)
