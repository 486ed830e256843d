"""Claims of a received dataset that a right checksum covers, and what its other parts could make each command do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from btlm_data import hub_upload
from btlm_data.errors import DataError
from btlm_data.serve.app import create
from tests.attacks.bench import EVIL, Bench, edit, probe, rename_in_manifest
from tests.attacks.received_datasets import BELIEVES, ORDERS, SECRET


def _rows(root: Path, change: Callable[[Any], None]) -> None:
    """Change rows of the first shard, and name it as it is then."""
    path = root / "train/data-00000.h5"
    with h5py.File(path, "r+") as file:
        rows = file["data"][:]
        change(rows)
        file["data"][...] = rows
    rename_in_manifest(root, path)


def no_loss_somewhere(rows: Any) -> None:
    rows[1, 1, 5:9] = 0


def a_label_of_the_next_sample(rows: Any) -> None:
    rows[0, 2, -1] = 77


def no_end_of_a_document(rows: Any) -> None:
    samples, places = (rows[:, 0] == 50256).nonzero()
    rows[samples[0], 0, places[0]] = 11


def an_end_inside_a_document(rows: Any) -> None:
    rows[0, 0, 30] = rows[0, 2, 29] = 50256


def two_samples_exchanged(rows: Any) -> None:
    rows[[0, 1]] = rows[[1, 0]]


def one_sample_twice(rows: Any) -> None:
    rows[2] = rows[1]


def a_token_beyond_the_vocabulary(rows: Any) -> None:
    rows[0, 0, 7] = rows[0, 2, 6] = 50257


def a_negative_token(rows: Any) -> None:
    rows[0, 0, 7] = rows[0, 2, 6] = -1


@probe(BELIEVES, no_loss_somewhere, a_label_of_the_next_sample, no_end_of_a_document, an_end_inside_a_document,
       two_samples_exchanged, one_sample_twice, a_token_beyond_the_vocabulary, a_negative_token)  # fmt: skip
def a_shard_changed_by_one_who_knows_the_format(bench: Bench, change: Callable[[Any], None]) -> None:
    root = bench.dataset()
    _rows(root, change)
    assert bench.failing_checks(root)


def _exchanged(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)])


def _column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        number = table.schema.get_field_index(name)
        values = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
        return table.set_column(number, table.schema.field(name), values)

    changed.__name__ = name
    return changed


def _rotated(values: list[Any]) -> list[Any]:
    return values[1:] + values[:1]


@probe(BELIEVES, _exchanged, _column("offset", _rotated), _column("hash", _rotated), _column("file", lambda v: ["x"] * len(v)),
       _column("tokens", _rotated), _column("bytes", _rotated))  # fmt: skip
def a_table_of_documents_that_lies(bench: Bench, change: Callable[[pa.Table], pa.Table]) -> None:
    root = bench.dataset()
    path = root / "train/documents.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    rename_in_manifest(root, path)
    assert bench.failing_checks(root, "--source", bench.root / "corpus", "--deep", "100")


def the_reason_of_a_drop(tree: Any) -> None:
    for row in tree["ledger"]:
        row["dropped"] = {f"not_{reason}": amount for reason, amount in row["dropped"].items()}


def sources_exchanged(tree: Any) -> None:
    names = {"S0": "S1", "S1": "S0"}
    for row in tree["ledger"]:
        row["source"] = names.get(row["source"], row["source"])


def more_bytes(tree: Any) -> None:
    for row in tree["ledger"]:
        if row["stage"] == "acquire":
            for key in row:
                if isinstance(row[key], dict) and "bytes" in row[key]:
                    row[key]["bytes"] += 5


def a_version_to_come(tree: Any) -> None:
    tree["format_version"] += 1


def an_older_version(tree: Any) -> None:
    tree["format_version"] = 1


def the_same_shard_twice(tree: Any) -> None:
    tree["splits"]["train"]["files"].append(tree["splits"]["train"]["files"][0])


def a_split_without_files(tree: Any) -> None:
    tree["splits"]["validation"]["files"] = []


def exchanged_splits(tree: Any) -> None:
    splits = tree["splits"]
    splits["train"], splits["validation"] = splits["validation"], splits["train"]


def other_samples_in_a_shard(tree: Any) -> None:
    files = tree["splits"]["train"]["files"]
    files[0]["n_examples"] += 1
    files[1]["n_examples"] -= 1


def other_tokens_in_a_shard(tree: Any) -> None:
    files = tree["splits"]["train"]["files"]
    files[0]["tokens"] += 1
    files[1]["tokens"] -= 1


def other_digest_of_an_input(tree: Any) -> None:
    tree["inputs"][0]["digest"] = "xxh3_128_64m:" + "0" * 32


@probe(BELIEVES, the_reason_of_a_drop, sources_exchanged, more_bytes, a_version_to_come, an_older_version, the_same_shard_twice,
       a_split_without_files, exchanged_splits, other_samples_in_a_shard, other_tokens_in_a_shard, other_digest_of_an_input)  # fmt: skip
def another_claim_with_a_right_checksum(bench: Bench, change: Callable[[Any], None]) -> None:
    root = bench.dataset()
    before = (root / "dataset.json").read_bytes()
    edit(root / "dataset.json", change)
    if (root / "dataset.json").read_bytes() != before:
        assert bench.failing_checks(root, "--source", bench.root / "corpus")


@probe(BELIEVES, "train/data-99999.h5", "extra/data-00000.h5", "train/data-00000-copy.h5", "train/a b.h5")
def a_shard_that_nobody_lists(bench: Bench, name: str) -> None:
    root = bench.dataset()
    (root / name).parent.mkdir(exist_ok=True)
    shutil.copy(root / "train/data-00000.h5", root / name)
    assert bench.failing_checks(root)


@probe(BELIEVES, "report.html", "README.md", "croissant.json", slow=True)
def a_page_of_another_dataset(bench: Bench, name: str) -> None:
    root = bench.dataset()
    bench.corpus("b.jsonl", 40, 9)
    bench.prepare("b.jsonl", "other")
    shutil.copy(bench.root / "other" / name, root / name)
    assert bench.failing_checks(root)


# What else a received dataset could do ------------------------------------------------------------------------------


def _duplicates(bench: Bench) -> Path:
    """A dataset with a removed document, whose source is one file a line of which is wanted."""
    line = json.dumps({"text": "the same words again and again " * 12})
    bench.write("src/a.jsonl", f"{line}\n{line}\n" + bench.corpus("b.jsonl", 20).read_text())
    bench.prepare("src", "data", "--accept-removal")
    shutil.rmtree(bench.root / "data/.work")
    return bench.root / "data"


@probe(ORDERS, "path", "file URL", "link", "pipe", "no digest", slow=True)
def a_secret_as_its_source(bench: Bench, how: str) -> None:
    """provenance.json names a file of this machine, of the right size, as what the documents were read from."""
    root = _duplicates(bench)
    size = (bench.root / "src/a.jsonl").stat().st_size
    secret = bench.write("secret/key.jsonl", (json.dumps({"text": SECRET * 9}) + "\n").ljust(size)[:size])
    if how == "link":
        (bench.root / "link.jsonl").symlink_to(secret)
    elif how == "pipe":
        secret.unlink()
        os.mkfifo(secret)

    def change(tree: Any) -> None:
        place = bench.root / "link.jsonl" if how == "link" else secret
        tree["inputs"][0]["url"] = f"file://{place}" if how == "file URL" else str(place)

    edit(root / "provenance.json", change)
    if how == "no digest":
        edit(root / "dataset.json", lambda tree: tree["inputs"][0].update(digest=None), fingerprint=True)
        checksum = json.loads((root / "dataset.json").read_bytes())["checksum"]
        edit(root / "provenance.json", lambda tree: tree.update(dataset=checksum))
    for words in (["inspect", root, "--duplicates"], ["inspect", root, "--html"], ["verify", root, "--deep", "3"],
                  ["trace", root, "--file", "a.jsonl", "--line", "1", "--show-text"]):  # fmt: skip
        ended = bench.run(*words)
        assert "secret of this" not in ended.words, words
    assert "secret of this" not in (root / "report.html").read_text()
    client = TestClient(create([root], host="127.0.0.1", token=None), "http://localhost")
    for page in ("record?file=a.jsonl&offset=0", "pairs?n=0", "document?split=train&row=0"):
        answer = client.get(f"/0/{page}")
        assert answer.status_code == 200, answer.text
        assert "secret of this" not in answer.text, page


@probe(ORDERS, "../secret.json", "/dev/zero", "http://127.0.0.1:9/t.json", "evil/model", "pipe", "\x1b[2J")
def a_tokenizer_somewhere_else(bench: Bench, name: str) -> None:
    root = bench.dataset()
    os.mkfifo(bench.root / "pipe")
    bench.write("secret.json", SECRET)
    for path in (root / "dataset.json", root / "provenance.json"):
        edit(path, lambda tree: tree["tokenizer"].update(name=name))
    for words in (["inspect", root, "--sample", "0"], ["verify", root], ["trace", root, "--sample", "0"], ["diff", root, root],
                  ["forget", root, "--id", "train/a.jsonl#0"], ["export", root, "--to", "npy", "--out", bench.root / "o"]):  # fmt: skip
        ended = bench.run(*words)
        assert "secret of this" not in ended.words, words


@probe(
    ORDERS,
    "forgotten.json",
    "dropped.parquet",
    "clusters.parquet",
    "removals.parquet",
    "train/documents.parquet",
    "examples.jsonl",
)
def a_part_that_is_a_link_to_a_secret(bench: Bench, name: str) -> None:
    root = bench.dataset()
    secret = bench.write("secret", SECRET)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(secret)
    for words in (["inspect", root, "--full"], ["inspect", root, "--duplicates"], ["trace", root, "--hash", "0" * 32],
                  ["diff", root, root], ["forget", root, "--id", "train/a.jsonl#0"], ["inspect", root, "--html"]):  # fmt: skip
        ended = bench.run(*words)
        assert "secret of this" not in ended.words, words
    assert bench.failing_checks(root)
    assert secret.read_text() == SECRET


@probe(
    ORDERS,
    "[",
    "{}",
    '{"certificates": 5}',
    '{"certificates": [' + "{}," * 9 + "{}]}",
    "[" * 90_000,
    EVIL,
    "\0",
)
def a_chain_of_certificates_of_their_own(bench: Bench, text: str) -> None:
    root = bench.dataset()
    (root / "forgotten.json").write_text(text, encoding="utf-8")
    assert bench.failing_checks(root)
    for words in (["inspect", root, "--full"], ["trace", root, "--sample", "0"], ["diff", root, root],
                  ["forget", root, "--id", "train/a.jsonl#0"], ["inspect", root, "--html"]):  # fmt: skip
        bench.run(*words)


@probe(
    ORDERS,
    "[",
    "null",
    '{"stage": 5}',
    "[" * 90_000,
    json.dumps({"format_version": 1, "steps": EVIL}),
    "\0",
    '{"a":' * 3000,
)
def a_work_folder_that_was_sent(bench: Bench, text: str) -> None:
    for name in (
        "status.json",
        "work-folder.json",
        "run.lease",
        "jobs/step.json",
        "jobs/current.json",
        "failures/read/x.json",
    ):
        shutil.rmtree(bench.root / "work", ignore_errors=True)
        bench.write(f"work/{name}", text)
        bench.run("status", bench.root / "work")
        bench.run("status", bench.root / "work", "--json")
        bench.run("worker", bench.root / "work", "--idle", "0")


@probe(
    ORDERS,
    "train/data-00000.h5",
    "README.md",
    "report.html",
    "dataset.json.sig",
    "rejects.jsonl",
    "train",
    ".env",
)
def push_sends_nothing_from_elsewhere(bench: Bench, name: str) -> None:
    """A link in the dataset leads to a secret: it is refused, or it is left out."""
    root = bench.dataset()
    path = root / name
    size = path.stat().st_size if path.exists() else 50
    secret = bench.write("secret/data-00000.h5", SECRET.ljust(size)[:size])
    if name == "train":
        path.rename(bench.root / "elsewhere")
        secret = bench.root / "elsewhere"
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(secret)
    try:
        sent = list(hub_upload._files(root))
    except DataError as error:
        assert "is a link" in str(error)  # noqa: PT017 - both ends are right
        return
    assert name not in sent
