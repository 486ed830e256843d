"""A dataset that somebody sent: `verify` believes nothing in it, and nothing in it is obeyed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.attacks.bench import EVIL, MINE, Bench, edit, probe, rename_in_manifest

# verify ------------------------------------------------------------------------------------------------------------

BELIEVES = "verify believes the manifest"


def no_dedupe_stage(tree: Any) -> None:
    tree["ledger"] = [row for row in tree["ledger"] if row["stage"] != "dedupe"]


def no_last_stages(tree: Any) -> None:
    tree["ledger"] = [row for row in tree["ledger"] if row["stage"] not in ("pack", "shard")]


def a_stage_twice(tree: Any) -> None:
    tree["ledger"] += [dict(row) for row in tree["ledger"] if row["stage"] == "clean"]


def no_ledger(tree: Any) -> None:
    tree["ledger"] = []


def no_outputs(tree: Any) -> None:
    tree["outputs"] = []


def other_tokenizer(tree: Any) -> None:
    tree["tokenizer"]["fingerprint"] = "0" * 16


def smaller_vocabulary(tree: Any) -> None:
    tree["tokenizer"]["vocab_size"] = tree["tokenizer"]["eos_id"] + 1 - 100
    tree["tokenizer"]["eos_id"] = 5


def other_seed(tree: Any) -> None:
    tree["seed"] += 1
    tree["configuration"]["seed"] = tree["seed"]


def other_shuffle(tree: Any) -> None:
    tree["shuffle"] = tree["configuration"]["shuffle"] = "documents"


def other_minimum(tree: Any) -> None:
    tree["configuration"]["clean"]["min_chars"] = 1


def other_length(tree: Any) -> None:
    tree["seq_len"] = 32
    tree["configuration"]["seq_len"][0]["seq_len"] = 32


def fewer_documents(tree: Any) -> None:
    tree["splits"]["train"]["documents"] -= 1


def fewer_tokens(tree: Any) -> None:
    for name in ("stream_tokens", "label_tokens"):
        tree["splits"]["train"][name] -= 64


def no_validation(tree: Any) -> None:
    del tree["splits"]["validation"]


def other_input_size(tree: Any) -> None:
    tree["inputs"][0]["size"] += 1
    tree["source"]["bytes"] += 1


def no_input(tree: Any) -> None:
    gone = tree["inputs"].pop()
    tree["source"]["files"] -= 1
    tree["source"]["bytes"] -= gone["size"]


def swapped_shards(tree: Any) -> None:
    files = tree["splits"]["train"]["files"]
    files[0]["name"], files[1]["name"] = files[1]["name"], files[0]["name"]


def other_dtype(tree: Any) -> None:
    tree["dtype"] = "uint32"


EDITS = (no_dedupe_stage, no_last_stages, a_stage_twice, no_ledger, no_outputs, other_tokenizer, smaller_vocabulary, other_seed,
         other_shuffle, other_minimum, other_length, fewer_documents, fewer_tokens, no_validation, other_input_size, no_input,
         swapped_shards)  # fmt: skip


@probe(BELIEVES, *EDITS)
def after_an_edit_with_a_right_checksum(bench: Bench, change: Callable[[Any], None]) -> None:
    root = bench.dataset()
    edit(root / "dataset.json", change)
    assert bench.failing_checks(root)


@probe(BELIEVES, other_seed, other_input_size, no_dedupe_stage, other_tokenizer, other_length, no_input)
def after_an_edit_with_a_right_fingerprint_too(bench: Bench, change: Callable[[Any], None]) -> None:
    root = bench.dataset()
    edit(root / "dataset.json", change, fingerprint=True)
    assert bench.failing_checks(root, "--source", bench.root / "corpus", "--deep", "20")


@probe(BELIEVES, "sample", "corpus", "vsl")
def tokens_of_another_document_in_a_shard(bench: Bench, form: str) -> None:
    """Two tokens of the text are exchanged in data and labels, and the manifest names the shard as it is now."""
    root = bench.dataset(form)
    path = root / "train/data-00000.h5"
    with h5py.File(path, "r+") as file:
        rows = file["data"][:]
        if form == "corpus":
            place = next(i for i in range(100, 300) if rows[i] != rows[i + 1])
            rows[[place, place + 1]] = rows[[place + 1, place]]
        else:
            place = next(i for i in range(10, 50) if len({*rows[0, 0, i : i + 2], 50256}) == 3)
            rows[0, 0, [place, place + 1]] = rows[0, 0, [place + 1, place]]
            labels = rows[0, 2]
            labels[[place - 1, place]] = labels[[place, place - 1]]
        file["data"][...] = rows
    rename_in_manifest(root, path)
    assert bench.failing_checks(root, "--source", bench.root / "corpus", "--deep", "80")


@probe(BELIEVES, "documents.parquet", "clusters.parquet", "rejects.jsonl")
def an_emptied_table(bench: Bench, name: str) -> None:
    root = bench.dataset()
    path = root / "train" / name if name.startswith("documents") else root / name
    if path.suffix == ".parquet":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    else:
        path.write_bytes(b'{"file": "x"}\n')
    rename_in_manifest(root, path)
    assert bench.failing_checks(root)


@probe(BELIEVES)
def provenance_of_another_dataset(bench: Bench) -> None:
    root = bench.dataset()
    edit(root / "dataset.json", lambda tree: tree["configuration"]["clean"].update(min_chars=3))
    assert bench.failing_checks(root)


@probe(BELIEVES)
def a_required_signature_that_cannot_be_checked(bench: Bench) -> None:
    root = bench.dataset()
    bench.write("data/dataset.json.sig", "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n")
    assert bench.run("verify", root, "--signers", bench.root / "missing").code in (1, 2, 3)
    bench.write("signers", "")
    assert bench.run("verify", root, "--signers", bench.root / "signers").code in (1, 2)


@probe(BELIEVES)
def a_source_file_that_was_exchanged(bench: Bench) -> None:
    root = bench.dataset()
    path = bench.root / "corpus/train/a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"word1", b"word2"))
    assert bench.failing_checks(root, "--source", bench.root / "corpus")


# Orders ------------------------------------------------------------------------------------------------------------

ORDERS = "a received dataset gives orders"
SECRET = "root:x:0:0:a secret of this machine"


def _run_section(tree: Any) -> None:
    tree["configuration"]["run"] = {
        "out": "victim",
        "overwrite": True,
        "work_dir": "victim",
        "emit_text": "victim",
    }


def _filter_function(tree: Any) -> None:
    tree["configuration"]["clean"]["filters"] = [{"name": "x", "function": "evil_module:check"}]


def _index(tree: Any) -> None:
    tree["configuration"]["dedupe"]["index"] = "victim"


def _sources_file(tree: Any) -> None:
    tree["configuration"].setdefault("run", {})["sources_file"] = "evil.yaml"


@probe(ORDERS, _run_section, _filter_function, _index, _sources_file)
def in_its_configuration(bench: Bench, change: Callable[[Any], None]) -> None:
    bench.dataset()
    theirs = bench.mine("victim/train/data-00000.h5")
    bench.write("evil_module.py", "open('PWNED', 'w')\ndef check(*a, **k):\n    return None\n")
    bench.write("evil.yaml", "x: {url: file:///etc}\n")
    for name in ("dataset.json", "provenance.json"):
        path = bench.root / "data" / name
        tree = json.loads(path.read_bytes())
        change(tree)
        if name == "dataset.json":
            edit(path, change)
        else:
            path.write_text(json.dumps(tree))
    for more in (["--plan"], []):
        bench.run("run", bench.root / "data/dataset.json", "--source", bench.root / "corpus", "--out", bench.root / "again",
                  "--workers", "1", *more)  # fmt: skip
    assert theirs.read_text() == MINE
    assert sorted(path.name for path in (bench.root / "victim").rglob("*")) == ["data-00000.h5", "train"]
    assert not (bench.root / "PWNED").exists()


@probe(ORDERS, "../evil", "/tmp/evil", "..", "msl64/../../evil", "a\0b", "msl64\n", EVIL, "x" * 5000)
def in_names_of_sets_splits_and_files(bench: Bench, name: str) -> None:
    root = bench.dataset()
    whole = (root / "dataset.json").read_bytes()
    bench.mine("evil/train/data-00000.h5")

    def split(tree: Any) -> None:
        tree["splits"][name] = tree["splits"].pop("train")

    def shard(tree: Any) -> None:
        tree["splits"]["train"]["files"][0]["name"] = name

    def table(tree: Any) -> None:
        tree["outputs"][0]["name"] = name

    def sets(tree: Any) -> None:
        tree["set"]["names"] = [name, "msl64"]

    for change in (split, shard, table, sets):
        (root / "dataset.json").write_bytes(whole)
        edit(root / "dataset.json", change)
        for to in ("npy", "mds"):
            assert bench.run("export", root, "--to", to, "--out", bench.root / f"out-{to}").code != 0
        assert bench.failing_checks(root)
        bench.run("inspect", root, "--full")
    present = {path.name for path in bench.root.iterdir()}
    assert present <= {"data", "corpus", "evil", "tmp", "out-npy", "out-mds"}, present
    assert (bench.root / "evil/train/data-00000.h5").read_text() == MINE


def external_storage(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 3, 8), "i4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def soft_link(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.ones((4, 3, 8), "i4")
        file["data"] = h5py.SoftLink("/x")


def external_link(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(secret), "/x")


def virtual(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((4, 3, 8), "i4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 3, 8))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def many_rows(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**40, 3, 64), "i4", chunks=(1, 3, 64), compression="gzip")


def a_sparse_file(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (5, 3, 64), "i4")
    os.truncate(path, 1 << 42)


def a_link_to_a_secret(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def a_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path, secret: Path) -> None:
    path.mkdir()


def a_chunk_bomb(path: Path, secret: Path) -> None:
    import zlib

    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (4, 3, 2**22), "i4", chunks=(1, 1, 2**22), compression="gzip")
        bomb = zlib.compress(bytes(2**24), 9)
        for row in range(4):
            for plane in range(3):
                data.id.write_direct_chunk((row, plane, 0), bomb)


def strings_of_other_files(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.array([EVIL.encode()] * 4, object), dtype=h5py.string_dtype())
        file.attrs["n_examples"] = EVIL.replace("\0", "")


TRAPS = (external_storage, soft_link, external_link, virtual, many_rows, a_sparse_file, a_link_to_a_secret, a_pipe, a_device,
         a_folder, a_chunk_bomb, strings_of_other_files)  # fmt: skip


@probe(ORDERS, *TRAPS)
def a_trap_in_place_of_a_shard(bench: Bench, trap: Callable[[Path, Path], None]) -> None:
    root = bench.dataset()
    secret = bench.write("secret/passwd", SECRET * 100)
    shard = root / "train/data-00000.h5"
    shard.unlink()
    trap(shard, secret)
    for arguments in (["inspect", root, "--full", "--num-samples", "2"], ["inspect", shard], ["verify", root],
                      ["export", root, "--to", "npy", "--out", bench.root / "out"]):  # fmt: skip
        ended = bench.run(*arguments)
        assert "secret of this" not in ended.words, arguments
    assert bench.failing_checks(root)
    assert not (bench.root / "out/export.json").exists()


def _other_rows(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table] * 40)


def _negative(table: pa.Table) -> pa.Table:
    """Every column of numbers below zero, in the signed type of its width."""
    for field in table.schema:
        if pa.types.is_integer(field.type):
            signed = pa.array([-5] * table.num_rows, getattr(pa, f"int{field.type.bit_width}")())
            table = table.set_column(table.schema.get_field_index(field.name), field.name, signed)
    return table


def _controls(table: pa.Table) -> pa.Table:
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type):
            values = pa.array([EVIL] * table.num_rows)
            table = table.set_column(table.schema.get_field_index(field.name), field.name, values)
    return table


def _no_columns(table: pa.Table) -> pa.Table:
    return pa.table({"x": pa.nulls(table.num_rows)})


def _nulls(table: pa.Table) -> pa.Table:
    return pa.table({f.name: pa.nulls(table.num_rows, f.type) for f in table.schema})


@probe(ORDERS, _other_rows, _negative, _controls, _no_columns, _nulls)
def a_table_of_documents_of_their_own(bench: Bench, change: Callable[[pa.Table], pa.Table]) -> None:
    root = bench.dataset()
    path = root / "train/documents.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    rename_in_manifest(root, path)
    bench.run("inspect", root, "--sample", "1", "--full")
    bench.run("export", root, "--to", "megatron", "--out", bench.root / "out")
    assert bench.failing_checks(root)


@probe(
    ORDERS, "dataset.json", "provenance.json", "train/documents.parquet", "rejects.jsonl", "dataset.json.sig"
)
def a_file_that_is_a_pipe(bench: Bench, name: str) -> None:
    root = bench.dataset()
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    bench.run("inspect", root, "--num-samples", "1")
    assert bench.failing_checks(root)
    bench.run("export", root, "--to", "npy", "--out", bench.root / "out")
    bench.run(
        "run", root / "dataset.json", "--plan", "--source", bench.root / "corpus", "--out", bench.root / "x"
    )


@probe(ORDERS, "train/documents.parquet", "clusters.parquet", "removals.parquet", "rejects.jsonl", "provenance.json", "dataset.json",
       "train/data-00001.h5", "croissant.json")  # fmt: skip
def a_file_that_claims_terabytes(bench: Bench, name: str) -> None:
    root = bench.dataset()
    os.truncate(root / name, 1 << 42)
    for arguments in (["inspect", root, "--full", "--num-samples", "2"], ["verify", root], ["diff", root, root], ["trace", root, "--id", "x"],
                      ["export", root, "--to", "npy", "--out", bench.root / "out"]):  # fmt: skip
        began = time.process_time()
        bench.run(*arguments)
        assert time.process_time() - began < 10, arguments
    assert bench.failing_checks(root)


@probe(
    ORDERS,
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "'\"><svg/onload=alert(1)>",
    "[x](javascript:alert(1))",
)
def scripts_in_names_do_not_run_in_pages(bench: Bench, name: str) -> None:
    line = {"text": " ".join(f"{name} word{i}" for i in range(60)), "meta": {"redpajama_set_name": name}}
    bench.write(
        "src/a.jsonl", "".join(json.dumps(line | {"text": f"{i} {line['text']}"}) + "\n" for i in range(30))
    )
    bench.prepare("src", "out", "--accept-removal")
    page = (bench.root / "out/report.html").read_text()
    assert "alert(1)" in page or "a.jsonl" in page
    for bad in ("<script>alert", "<img src=x", "<svg/onload", 'href="javascript:'):
        assert bad not in page, bad
    card = (bench.root / "out/README.md").read_text()
    assert "](javascript:" not in card.replace("\\]", "").replace("\\(", "")
    assert "<script>alert" not in card
