"""Exports against independent readers, built from the layouts alone, and against the libraries they are for."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers

from btlm_data.errors import ConfigError, DataError, OutputError
from btlm_data.export import ExportedSplit, Target, export
from btlm_data.formats.dataset import sealed
from btlm_data.pipeline import prepare
from btlm_data.recipe.models import Recipe
from btlm_data.task import Step, Task
from btlm_data.tokenizers import load_tokenizer

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
    """Ids of each document with its EOS, by `tokenizers`, in the order documents.parquet tells; cut to what the shards hold."""
    folder = Path(load_tokenizer.__globals__["_GPT2_FOLDER"])
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
    monkeypatch.setattr("btlm_data.export.MDS_SHARD_BYTES", 1000)
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
    plain: Path, tmp_path: Path, to: Target
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
        export(plain, "tar", tmp_path / "out")  # type: ignore[arg-type]  # as a caller without types would
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
    with pytest.raises(DataError, match=r"documents.parquet cannot be read"):
        export(copy, "megatron", tmp_path / "out")


# The libraries the exports are for. Their pins contradict ours (huggingface_hub < 1, numpy < 2.2), so they may live in another
# environment, whose interpreter BTLM_EXPORT_PYTHON names; docs/export.md tells how to make one.

PYTHON = os.environ.get("BTLM_EXPORT_PYTHON", sys.executable)

# `import streaming` wants torchvision for its image datasets, which no test here opens: an empty stand-in will do.
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
    monkeypatch.setattr("btlm_data.export.MDS_SHARD_BYTES", 1000)
    export(plain, "mds", tmp_path / "out")
    data = planes(plain)
    expected = data[data[:, 1].all(axis=1), 0].tolist()
    assert by_library("streaming", READ_MDS, tmp_path / "out" / "train") == expected


def test_megatron_core_reads_the_indexed_dataset(plain: Path, tmp_path: Path) -> None:
    export(plain, "megatron", tmp_path / "out")
    assert by_library("megatron", READ_MEGATRON, tmp_path / "out" / "train") == truth(plain)
