"""The readers of outside bytes that fuzz.py damages the files of: a valid folder, a way to damage it, a way to read it.

`read` may raise BtlmError; commands may end with the exit codes of errors.py. Nothing else is allowed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.faults.commands import command
from tests.faults.fuzz_hdf5 import HDF5_CHECKPOINTS, HDF5_SHARDS
from tests.faults.kill_targets import hashes, write_corpus
from tests.faults.mutations import (
    CONTROL,
    TEXTS,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_tree,
    to_text,
)
from tests.train import tiny


class Reader(NamedTuple):
    """make: writes a valid folder, once. damage, read: given (chance, a copy of it). around: holds for a whole slice.
    megabytes: of memory that one case may take.
    """

    name: str
    make: Callable[[Path], None]
    damage: Callable[[random.Random, Path], None]
    read: Callable[[random.Random, Path], None]
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] | None = None
    megabytes: int = 1000


def load_programs() -> None:
    """Import what the readers need before anything is forked."""
    from tests.faults import kill_runs, kill_targets

    kill_runs.load_programs([kill_targets.TARGETS["train"]])
    for module in ("fastwarc", "httpx2", "huggingface_hub", "resiliparse.extract.html2text", "s3fs",
                   "tests.records.test_fuzz", "tests.tokenizer.test_fuzz", "torch._dynamo", "torch.utils.tensorboard"):  # fmt: skip
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:  # whatever is imported and compiled on first use
        root = Path(folder)
        _make_dataset(root)
        for words in (["--full"], ["--json", "--num-samples", "1"]):
            command("inspect", root / "data", *words)
        command("verify", root / "data")
        command("export", root / "data", "--to", "npy", "--out", root / "exported")
        command("run", root / "data/dataset.json", "--plan", "--source", "sample", "--out", root / "x")


# Records ----------------------------------------------------------------------------------------------------------


def _make_records(folder: Path) -> None:
    from tests.records.test_fuzz import SEEDS

    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


def _damage_one(chance: random.Random, folder: Path) -> None:
    """Keep one file, damaged."""
    chosen = chance.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != chosen:
            path.unlink()
    chosen.write_bytes(mutate_bytes(chance, chosen.read_bytes()))


def _read_records(chance: random.Random, folder: Path) -> None:
    from tests.records.test_fuzz import _read_all

    for path in folder.iterdir():
        _read_all(path)


# Datasets ---------------------------------------------------------------------------------------------------------

SAMPLE = [
    *[
        "prepare",
        "--source",
        "sample",
        "--set",
        "source.limit=40",
        "--samples-per-file",
        "40",
        "--workers",
        "1",
    ],
    *["--seq-len", "128"],
]


def _make_dataset(folder: Path) -> None:
    code, *_ = command(
        *SAMPLE, "--out", folder / "data", "--work-dir", folder / "work", "--format", _format(folder)
    )
    assert code == 0
    shutil.rmtree(folder / "work")


def _format(folder: Path) -> str:
    return "corpus" if "corpus" in folder.parent.name else "vsl" if "vsl" in folder.parent.name else "sample"


def reseal(folder: Path, changed: Path) -> None:
    """Make the dataset's manifest name a changed file as it is now: what a stranger who made it would have done."""
    path = folder / "dataset.json"
    tree = json.loads(path.read_bytes())
    data = changed.read_bytes()
    now = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for split in tree.get("splits", {}).values():
        for file in [*split["files"], split["documents_file"]]:
            if file["name"] == changed.name:
                file.update(now)
    for file in tree.get("outputs", []):
        if file["name"] == changed.name:
            file.update(now)
    _seal(path, tree)


def _seal(path: Path, tree: Any) -> None:
    from btlm_data.formats.sealed_json import sealed

    try:
        path.write_bytes(sealed(tree))
    except (TypeError, ValueError, UnicodeEncodeError, AttributeError, msgspec.MsgspecError):
        path.write_bytes(to_text(tree))


def _damage_manifest(chance: random.Random, folder: Path) -> None:
    path = chance.choice([folder / "data/dataset.json"] * 4 + [folder / "data/provenance.json"])
    if chance.random() < 0.4:
        path.write_bytes(mutate_json(chance, path.read_bytes()))
    else:
        _seal(path, mutate_tree(chance, json.loads(path.read_bytes())))


def _damage_table(chance: random.Random, folder: Path) -> None:
    """Bytes of a table or list; or, in parquet, other columns, types and values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = folder / "data"
    names = sorted([*root.rglob("*.parquet"), *root.glob("*.jsonl"), *root.rglob("documents.parquet")])
    path = chance.choice(names)
    if path.suffix == ".parquet" and chance.random() < 0.6:
        table = pq.read_table(path)
        for _ in range(chance.randint(1, 3)):
            column = chance.randrange(table.num_columns) if table.num_columns else -1
            how = chance.randrange(6)
            if column < 0:
                break
            name = table.column_names[column]
            rows = table.num_rows
            other = pa.array(
                [chance.choice([0, -1, 2**62, 5]) for _ in range(rows)]
                if how < 3
                else [
                    chance.choice([*TEXTS[:20], CONTROL]).encode("utf-8", "replace").decode()
                    for _ in range(rows)
                ]
            )
            if how == 5:
                table = table.drop_columns([name])
            elif how == 4:
                table = table.slice(0, chance.randrange(rows + 1))
            else:
                with contextlib.suppress(pa.ArrowException):
                    other = other.cast(table.schema.field(name).type) if chance.random() < 0.7 else other
                table = table.set_column(column, name, other)
        pq.write_table(table, path, row_group_size=chance.choice([1, 7, 1000]))
    else:
        path.write_bytes(mutate_bytes(chance, path.read_bytes()))
    if chance.random() < 0.8:
        reseal(root, path)


def _damage_shard(chance: random.Random, folder: Path) -> None:
    root = folder / "data"
    path = chance.choice(sorted(root.rglob("*.h5")))
    how = chance.random()
    if how < 0.7:
        path.write_bytes(mutate_bytes(chance, path.read_bytes()))
    else:
        _other_layout(chance, path)
    if chance.random() < 0.8:
        reseal(root, path)
    if chance.random() < 0.3:
        (root / "dataset.json").unlink()


def _other_layout(chance: random.Random, path: Path) -> None:
    """A file of the HDF5 library's own making that is no shard of ours."""
    import h5py
    import numpy as np

    bounds = chance.choice([("earliest", "v108"), ("v110", "v110"), ("v112", "v112"), ("v114", "latest")])
    dtype = chance.choice(
        ["<i4", ">i4", "<f8", "S7", "<u8", "i1", h5py.string_dtype(), np.dtype([("a", "i4")])]
    )
    shape = chance.choice([(), (0,), (5,), (4, 3), (4, 3, 16), (4, 5, 16), (2, 2, 2, 2)])
    with h5py.File(path, "w", libver=bounds, userblock_size=chance.choice([0, 512])) as file:
        for name in chance.sample(
            ["data", CONTROL.replace("\r", ""), "input_ids", "x" * 2000], chance.randint(0, 3)
        ):
            options: dict[str, Any] = {}
            if shape and 0 not in shape and chance.random() < 0.7:
                options = {
                    "chunks": tuple(max(1, n // 2) for n in shape),
                    "maxshape": tuple(None if chance.random() < 0.5 else n for n in shape),
                    **chance.choice(
                        [{}, {"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}]
                    ),
                }
            with contextlib.suppress(ValueError, TypeError):  # not every filter takes every type
                file.create_dataset(name, shape, dtype, **options)
        file.attrs["n_examples"] = chance.choice([4, -1, 2**63 - 1, 0.5])
        file.attrs[CONTROL.replace("\0", "")[:9]] = "x"
        for i in range(chance.choice([0, 0, 200])):
            file.create_group(f"g{i}/{'/'.join('abc' * 10)}")


def _read_dataset(chance: random.Random, folder: Path) -> None:
    """As a user would look at something that was sent."""
    root = folder / "data"
    chosen = chance.choice(
        ["inspect", "inspect", "full", "json", "verify", "verify", "export", "run", "train", "shard"]
    )
    if chosen == "inspect":
        command(
            "inspect",
            root,
            *chance.choice([[], ["--sample", "3"], ["--num-samples", "2", "--split", "train"]]),
        )
    elif chosen == "full":
        command("inspect", root, "--full", "--num-samples", "1")
    elif chosen == "json":
        command("inspect", root, "--json", "--num-samples", "1")
    elif chosen == "verify":
        command("verify", root, *chance.choice([[], ["--json"]]))
    elif chosen == "export":
        command(
            "export", root, "--to", chance.choice(["npy", "megatron", "mds"]), "--out", folder / "exported"
        )
    elif chosen == "run":
        more = chance.choice([["--plan"], ["--plan", "--json"], ["--plan", "--trust"]])
        corpus = folder / "corpus"
        write_corpus(corpus, 1, 3, 1)
        command("run", root / "dataset.json", "--source", corpus, "--out", folder / "again", *more)
    elif chosen == "shard":
        for path in sorted(root.rglob("*.h5"))[:1]:
            command("inspect", path, "--full")
    else:
        small = {"hidden_size": 8, "filter_size": 8, "mup_base_hidden_size": 8, "mup_base_filter_size": 8, "num_hidden_layers": 1,
                 "vocab_size": 50257, "max_position_embeddings": 128}  # fmt: skip
        params = tiny.write_params(
            folder / "params.yaml", root / "train", model=small, runconfig={"max_steps": 1},
            train_input={"batch_size": 1}, eval_input={"batch_size": 1},
        )  # fmt: skip
        command("run", "--params", params, "--mode", "train", "--model-dir", folder / "model", "--device", "cpu",
                program="btlm_train")  # fmt: skip


def _make_export(folder: Path) -> None:
    _make_dataset(folder)
    code, *_ = command("export", folder / "data", "--to", "npy", "--out", folder / "exported")
    assert code == 0
    tree = json.loads((folder / "exported/export.json").read_bytes())
    files = [file["name"] for split in tree["sets"][""]["splits"].values() for file in split["files"]]
    manifest = json.loads((folder / "data/dataset.json").read_bytes())
    request = {"to": "npy", "sets": {"": [manifest["fingerprint"], sorted(manifest["splits"])]}}
    state = {"request": request, "files": files, "done": {}, "format_version": 1}
    (folder / "exporting.json").write_text(json.dumps(state))
    (folder / "exported/mine.txt").write_text("mine")


def _damage_export(chance: random.Random, folder: Path) -> None:
    if chance.random() < 0.5:
        shutil.move(folder / "exporting.json", folder / "exported/exporting.json")
    for path in sorted((folder / "exported").glob("export*.json")):
        if chance.random() < 0.7:
            path.write_bytes(mutate_json(chance, path.read_bytes()))


def _read_export(chance: random.Random, folder: Path) -> None:
    command(
        "export",
        folder / "data",
        "--to",
        "npy",
        "--out",
        folder / "exported",
        *chance.choice([[], ["--overwrite"]]),
    )
    assert (folder / "exported/mine.txt").read_text() == "mine"


def _make_signed(folder: Path) -> None:
    import subprocess

    _make_dataset(folder)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    kind, key = (folder / "key.pub").read_text().split()[:2]
    (folder / "signers").write_text(f"me@example.org {kind} {key}\n")
    code, *_ = command("sign", folder / "data", "--key", folder / "key")
    assert code == 0


def _damage_signed(chance: random.Random, folder: Path) -> None:
    path = chance.choice([folder / "data/dataset.json.sig", folder / "signers", folder / "data/dataset.json"])
    path.write_bytes(mutate_bytes(chance, path.read_bytes()))


def _read_signed(chance: random.Random, folder: Path) -> None:
    intact = hashes(folder / "data") == json.loads((folder.parent / "signed.json").read_text())
    code, *_ = command("verify", folder / "data", "--signers", folder / "signers")
    assert code or intact or (folder / "signers").exists()


@contextlib.contextmanager
def _signed(folder: Path) -> Iterator[None]:
    (folder / "signed.json").write_text(json.dumps(hashes(folder / "seed/data")))
    yield


# Work folders and indices -----------------------------------------------------------------------------------------


def _corpus_run(folder: Path, *more: object) -> list[object]:
    return [
        *[
            "prepare",
            "--source",
            folder / "corpus",
            "--seq-len",
            "64",
            "--out",
            folder / "out",
            "--workers",
            "1",
        ],
        *["--memory", "40KB", "--accept-removal", "--dedupe-index", folder / "index"],
        *["--no-report", "--card", "none", *more],  # they are made from the dataset
    ]


def _make_work(folder: Path) -> None:
    write_corpus(folder / "corpus", 3, 30, 1)
    write_corpus(folder / "earlier", 2, 30, 1)
    code, *_ = command(*_corpus_run(folder, "--source", folder / "earlier", "--out", folder / "first"))
    assert code == 0
    code, *_ = command(*_corpus_run(folder, "--stop-after", "pack"))
    assert code == 0
    shutil.rmtree(folder / "first")


def _damage_work(chance: random.Random, folder: Path) -> None:
    files = sorted(path for path in (folder / "out/.work").rglob("*") if path.is_file())
    for path in chance.sample(files, chance.choice([1, 1, 3])):  # none twice: the second finds no JSON
        data = path.read_bytes()
        if path.suffix == ".json" and "receipt" in path.parts and chance.random() < 0.5:
            from btlm_data.storage import digest

            body = to_text(mutate_tree(chance, json.loads(data)["receipt"]))
            path.write_bytes(
                b'{"checksum":"' + digest.checksum(body).encode() + b'","receipt":' + body + b"}\n"
            )
        elif path.suffix == ".json":
            path.write_bytes(mutate_json(chance, data))
        else:
            path.write_bytes(mutate_bytes(chance, data))


def _damage_index(chance: random.Random, folder: Path) -> None:
    path = chance.choice(sorted(path for path in (folder / "index").rglob("*") if path.is_file()))
    if path.suffix == ".json":
        path.write_bytes(mutate_json(chance, path.read_bytes()))
    elif chance.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(mutate_bytes(chance, path.read_bytes()))
    shutil.rmtree(folder / "out")


def _read_work(chance: random.Random, folder: Path) -> None:
    """The next run goes on from it: what it leaves is right, or it says that something is damaged."""
    code, *_ = command(*_corpus_run(folder))
    if code == 0:
        expected = json.loads((folder.parent / "expected.json").read_text())
        unequal = {name for name, value in hashes(folder / "out").items() if expected.get(name) != value}
        assert not unequal, f"exit code 0, and {sorted(unequal)} differ"


@contextlib.contextmanager
def _expected(folder: Path) -> Iterator[None]:
    """What an undamaged folder gives; its own place is the same as that of the damaged ones."""
    if not (folder / "expected.json").exists():
        shutil.copytree(folder / "seed", folder / "case")
        code, *_ = command(*_corpus_run(folder / "case"))
        assert code == 0
        (folder / "expected.json").write_text(json.dumps(hashes(folder / "case/out")))
        shutil.rmtree(folder / "case")
    yield


# Recipes, parameters, tokenizers ----------------------------------------------------------------------------------


def _make_recipes(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for path in (root / "pipelines").glob("*.yaml"):
        shutil.copy(path, folder)
    for path in (root / "btlm_train/configs").glob("*.yaml"):
        shutil.copy(path, folder / f"params-{path.name}")
    tiny.write_params(folder / "params-tiny.yaml", folder / "nowhere")
    write_corpus(folder / "corpus", 1, 5, 1)


def _damage_recipe(chance: random.Random, folder: Path) -> None:
    _damage_yaml(chance, [path for path in folder.glob("*.yaml") if not path.name.startswith("params-")])


def _damage_params(chance: random.Random, folder: Path) -> None:
    _damage_yaml(chance, [*folder.glob("params-*.yaml")])


def _damage_yaml(chance: random.Random, paths: list[Path]) -> None:
    import yaml

    path = chance.choice(sorted(paths))
    data = path.read_bytes()
    if chance.random() < 0.5:
        tree = mutate_tree(chance, yaml.safe_load(data))
        data = to_text(tree)
    else:
        data = mutate_lines(chance, data)
    (path.parent / "case.yaml").write_bytes(data)


def _read_recipe(chance: random.Random, folder: Path) -> None:
    more = chance.choice([[], ["--json"]])
    command(
        "run", folder / "case.yaml", "--plan", "--source", folder / "corpus", "--out", folder / "x", *more
    )


def _read_params(chance: random.Random, folder: Path) -> None:
    from btlm_train.parameters import load_model_config, load_params

    if chance.random() < 0.3:
        load_model_config(folder / "case.yaml")
    elif chance.random() < 0.5:
        load_params(str(folder / "case.yaml"), ["runconfig.max_steps=1"])
    else:
        data = f"train_input.data_dir={folder / 'nowhere'}"
        command("run", "--params", folder / "case.yaml", "--mode", "train", "--model-dir", folder / "m", "--device", "cpu",
                "--set", data, program="btlm_train")  # fmt: skip


def _make_tokenizers(folder: Path) -> None:
    from tests.tokenizer.makers import OTHERS

    for name, make in OTHERS.items():
        (folder / f"{name}.json").write_text(make().to_str())
    for name in ("tokenizer_config", "special_tokens_map", "generation_config", "config"):
        (folder / f"{name}.json").write_text('{"eos_token": "</s>", "eos_token_id": 2}')


def _damage_tokenizer(chance: random.Random, folder: Path) -> None:
    beside = ("tokenizer_config", "special_tokens_map", "generation_config", "config")
    path = chance.choice(sorted(path for path in folder.glob("*.json") if path.stem not in beside))
    shutil.copy(path, folder / "tokenizer.json")
    damaged = folder / (f"{chance.choice(beside)}.json" if chance.random() < 0.2 else "tokenizer.json")
    damaged.write_bytes(mutate_json(chance, damaged.read_bytes()))


def _read_tokenizer(chance: random.Random, folder: Path) -> None:
    from tests.tokenizer import test_fuzz

    test_fuzz.load(folder / "tokenizer.json")


# The trainer ------------------------------------------------------------------------------------------------------


def _make_run(folder: Path) -> None:
    params = tiny.write_params(
        folder / "params.yaml",
        tiny.write_shards(folder / "train"),
        runconfig={"max_steps": 3, "checkpoint_steps": 1},
    )
    code, *_ = command("run", "--params", params, "--mode", "train", "--model-dir", folder / "model", "--device", "cpu",
                      program="btlm_train")  # fmt: skip
    assert code == 0
    for to in ("hf", "modelzoo"):
        code, *_ = command("export", folder / "model", "--to", to, "--out", folder / to, program="btlm_train")
        assert code == 0


def _damage_run(chance: random.Random, folder: Path) -> None:
    newest = sorted((folder / "model/checkpoints").iterdir())[-1]
    path = chance.choice(sorted(path for path in (folder / "model").rglob("*") if path.is_file()))
    if chance.random() < 0.6:
        path = chance.choice(sorted(newest.iterdir()))
    if path.suffix in (".json", ".jsonl"):
        if path.name in ("state.json", "run.json") and chance.random() < 0.7:
            _seal(path, mutate_tree(chance, json.loads(path.read_bytes())))
        else:
            path.write_bytes(mutate_bytes(chance, path.read_bytes()))
        return
    path.write_bytes(mutate_bytes(chance, path.read_bytes()))
    if chance.random() < 0.7 and path.suffix == ".safetensors":  # as somebody who wants it to be believed
        import xxhash

        state = path.parent / "state.json"
        tree = json.loads(state.read_bytes())
        data = path.read_bytes()
        tree["files"][path.name] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        _seal(state, tree)


def _read_run(chance: random.Random, folder: Path) -> None:
    chosen = chance.randrange(4)
    if chosen == 0:
        mode = chance.choice(["eval", "eval_all"])
        command("run", "--params", folder / "params.yaml", "--mode", mode, "--model-dir", folder / "model", "--device", "cpu",
                program="btlm_train")  # fmt: skip
    elif chosen == 1:
        command("export", folder / "model", "--to", "hf", "--out", folder / "out", program="btlm_train")
    else:
        command("run", "--params", folder / "params.yaml", "--mode", "train", "--model-dir", folder / "model", "--max-steps", "4",
                "--device", "cpu", *chance.choice([[], ["--set", "runconfig.max_checkpoints=1"]]), program="btlm_train")  # fmt: skip


def _damage_import(chance: random.Random, folder: Path) -> None:
    for to in ("hf", "modelzoo"):
        path = chance.choice(sorted(path for path in (folder / to).iterdir() if path.suffix not in (".py",)))
        data = path.read_bytes()
        mutate = (
            mutate_json
            if path.suffix == ".json"
            else mutate_lines
            if path.suffix == ".yaml"
            else mutate_bytes
        )
        path.write_bytes(mutate(chance, data))


def _read_import(chance: random.Random, folder: Path) -> None:
    command(
        "import",
        folder / chance.choice(["hf", "modelzoo"]),
        "--model-dir",
        folder / "new",
        program="btlm_train",
    )


# Servers ----------------------------------------------------------------------------------------------------------

LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>corpus</Name><Prefix></Prefix><KeyCount>2</KeyCount>
<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>train/a.jsonl</Key>
<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;5d41402abc4b2a76b9719d911017c592&quot;</ETag><Size>14</Size>
<StorageClass>STANDARD</StorageClass></Contents><Contents><Key>train/b.jsonl</Key>
<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;5d41402abc4b2a76b9719d911017c593&quot;</ETag><Size>14</Size>
<StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"""
TREE = [
    {"type": "file", "path": "train/a.jsonl", "size": 14, "oid": "0" * 40},
    {"type": "file", "path": "train/b.jsonl", "size": 5000, "oid": "1" * 40,
     "lfs": {"oid": "2" * 64, "size": 5000, "pointerSize": 130}},
]  # fmt: skip
FACTS = {
    "id": "org/name",
    "sha": "3" * 40,
    "siblings": [],
    "gated": False,
    "private": False,
    "tags": [],
    "downloads": 1,
}
BODY = b'{"text": "x"}\n'


def _make_answers(folder: Path) -> None:
    (folder / "listing").write_bytes(LISTING)
    (folder / "tree").write_bytes(to_text(TREE))
    (folder / "facts").write_bytes(to_text(FACTS))
    (folder / "body").write_bytes(BODY)
    headers = {"Content-Type": "application/octet-stream", "ETag": '"5d41402abc4b2a76b9719d911017c592"', "Accept-Ranges": "bytes",
               "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "x-amz-request-id": "1", "X-Repo-Commit": "3" * 40}  # fmt: skip
    (folder / "headers").write_bytes(to_text({"status": 200, "headers": headers}))


def _damage_answers(chance: random.Random, folder: Path) -> None:
    for name in chance.sample(["listing", "tree", "facts", "body", "headers"], chance.randint(1, 2)):
        path = folder / name
        mutate = mutate_json if name in ("tree", "facts") else mutate_bytes
        if name == "headers":
            path.write_bytes(to_text(mutate_tree(chance, json.loads(path.read_bytes()))))
        elif name == "listing" and chance.random() < 0.5:
            text = path.read_text()
            for old in chance.sample(
                ["14", "train/a.jsonl", "false", "2024-01-01T00:00:00.000Z", "5d41", "Key", "<Size>"], 2
            ):
                text = text.replace(
                    old, chance.choice([*TEXTS[:16], "-1", "1e5", "9" * 40]), chance.choice([1, 5])
                )
            path.write_bytes(text.encode("utf-8", "replace"))
        else:
            path.write_bytes(mutate(chance, path.read_bytes()))


class _Answers(BaseHTTPRequestHandler):
    """Answers as the hub, the object store and a web server would, from the files of the current case."""

    folder: Path
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path
        name = (
            "tree"
            if "/tree/" in path
            else "facts"
            if "/api/" in path
            else "listing"
            if "list-type" in path
            else "body"
        )
        try:
            body = (self.folder / name).read_bytes()
            told = json.loads((self.folder / "headers").read_bytes())
        except (OSError, ValueError):
            return
        status = 200
        headers: dict[str, Any] = {}
        if isinstance(told, dict):
            status = told.get("status", 200)
            headers = told.get("headers", {}) if isinstance(told.get("headers", {}), dict) else {}
        number = (
            status
            if isinstance(status, int) and 100 < status < 1000 and not isinstance(status, bool)
            else 200
        )
        with contextlib.suppress(OSError, ValueError):
            self.send_response(number)
            for key, value in headers.items():
                if not str(key).lower().startswith(("content-length", "transfer")) or number == 200:
                    self.send_header(str(key)[:50].strip() or "x", str(value).replace("\n", " ")[:5000])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[None]:
    handler = type("Handler", (_Answers,), {"folder": folder / "case"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    os.environ.update(
        FUZZ_URL=url, HF_ENDPOINT=url, HF_HOME=str(folder / "hf"), AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s", AWS_DEFAULT_REGION="us-east-1", AWS_MAX_ATTEMPTS="1",
    )  # fmt: skip
    os.environ.pop("HF_HUB_OFFLINE", None)
    yield
    server.shutdown()


def _read_answers(kind: str) -> Callable[[random.Random, Path], None]:
    def read(chance: random.Random, folder: Path) -> None:
        from btlm_data.recipe.models import Run, SourceSettings
        from btlm_data.sources.fetch import Fetcher
        from btlm_data.sources.listing import list_files
        from btlm_data.sources.names import is_safe_name

        cache = folder / "cache"
        run = Run(
            cache_dir=str(cache),
            cache_size=10**6,
            timeout=1,
            retries=1,
            retry_pause=0.001,
            out=str(folder / "out"),
        )
        names = {
            "hub": "hf://datasets/org/name",
            "s3": "s3://corpus/train",
            "web": f"{os.environ['FUZZ_URL']}/train/a.jsonl",
        }
        listing = list_files(SourceSettings(name=names[kind]), run)
        assert all(is_safe_name(file.name) and file.size >= 0 for file in listing.files)
        for file in listing.files[:2]:
            with Fetcher.of(run, listing).local_copy(file) as path:
                assert path.is_relative_to(cache)

    return read


READERS = [
    Reader("records", _make_records, _damage_one, _read_records),
    Reader("manifest", _make_dataset, _damage_manifest, _read_dataset),
    Reader("manifest-corpus", _make_dataset, _damage_manifest, _read_dataset),
    Reader("tables", _make_dataset, _damage_table, _read_dataset),
    Reader("shards", _make_dataset, _damage_shard, _read_dataset),
    Reader("shards-vsl", _make_dataset, _damage_shard, _read_dataset),
    Reader("hdf5-shards", *HDF5_SHARDS, megabytes=100),
    Reader("hdf5-checkpoints", *HDF5_CHECKPOINTS, megabytes=100),
    Reader("export-state", _make_export, _damage_export, _read_export),
    Reader("signature", _make_signed, _damage_signed, _read_signed, _signed),
    Reader("work-folder", _make_work, _damage_work, _read_work, _expected),
    Reader("index", _make_work, _damage_index, _read_work, _expected),
    Reader("recipe", _make_recipes, _damage_recipe, _read_recipe),
    Reader("parameters", _make_recipes, _damage_params, _read_params),
    Reader("tokenizer", _make_tokenizers, _damage_tokenizer, _read_tokenizer),
    Reader("checkpoint", _make_run, _damage_run, _read_run),
    Reader("import", _make_run, _damage_import, _read_import),
    Reader("hub", _make_answers, _damage_answers, _read_answers("hub"), _servers),
    Reader("s3", _make_answers, _damage_answers, _read_answers("s3"), _servers),
    Reader("web", _make_answers, _damage_answers, _read_answers("web"), _servers),
]
