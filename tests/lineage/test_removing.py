"""`btlm-data forget --how remove`: the dataset is what `prepare` makes without these documents, byte for byte."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

from btlm_data.cli import cli
from btlm_data.errors import DataError, InputError, OutputError
from btlm_data.formats import dataset, forgotten
from btlm_data.formats.shard_formats import vsl
from btlm_data.inspection import verify
from btlm_data.inspection.check import Check
from btlm_data.lineage import key_index, restream
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.forget import forget, plan
from btlm_data.lineage.queries import make
from btlm_data.lineage.trace import trace
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.lineage.corpora import prepared, records

GONE = {"doc-3", "doc-4", "doc-40", "doc-76", "doc-88"}
OTHERS = [
    ("sample", "none"),
    ("sample", "documents"),
    ("vsl", "documents"),
    ("vsl", "none"),
    ("corpus", "samples"),
    ("corpus", "none"),
]


def made(folder: Path, without: Iterable[str] = (), **options: Any) -> SetView:
    """A dataset of 90 documents; those named are too short to be kept, and as many bytes long in the source."""
    documents = []
    for record in records(90, 11):
        if record["id"] in without:
            record = {**record, "text": "", "more": record["text"]}
            extra = len(json.dumps(record)) - len(json.dumps({**record, "more": ""}))
            whole = len(json.dumps({k: v for k, v in record.items() if k != "more"})) + extra
            record["more"] = record["more"][: extra - (len(json.dumps(record)) - whole)]
        documents.append(record)
    given = {"seq_len": 32, "shards__samples_per_file": 20, "dedupe__method": "none", **options}
    return prepared(folder, documents, **given)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("base")).root


def copied(base: Path, to: Path) -> Path:
    """The common dataset, to be changed."""
    shutil.copytree(base, to, ignore=shutil.ignore_patterns(".work"))
    return to


def faults(root: Path) -> list[Check]:
    return [check for check in verify.verify(root, lambda _: None) if check.ok is False]


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.glob("train/*.h5"))}


def table(of_set: SetView) -> list[dict[str, Any]]:
    found = of_set.splits["train"].table
    rows = found.described(range(found.num_rows))
    return [{key: value for key, value in row.items() if key != "forgotten"} for row in rows]


@pytest.mark.parametrize(
    ("form", "shuffle"),
    [
        ("sample", "samples"),
        ("vsl", "samples"),
        ("corpus", "documents"),
        *(pytest.param(*pair, marks=pytest.mark.stress) for pair in OTHERS),
    ],
)
def test_the_dataset_is_what_prepare_makes_without_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, shuffle: str
) -> None:
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 900)
    options: dict[str, Any] = {
        "format": form,
        "shuffle": shuffle,
        "shards__samples_per_file": 20 if form != "corpus" else 8,
    }
    of_set = made(tmp_path / "all", **options)
    other = made(tmp_path / "without", GONE, **options)
    root, before = of_set.root, shards(of_set.root)
    inodes = {path.name: path.stat().st_ino for path in root.glob("train/*.h5")}
    first = min(row["stream_offset"] for row in table(of_set) if row["id"] in GONE)
    outcome = forget(root, [make("id", name) for name in sorted(GONE)], how="remove", reason="a mail")
    assert (outcome.documents, outcome.masked) == (len(GONE), 0)
    after = shards(root)
    assert after == shards(other.root)
    [renewed] = open_dataset(root)
    assert table(renewed) == table(other)
    entry, wanted = renewed.manifest.splits["train"], other.manifest.splits["train"]
    assert (entry.files, entry.samples, entry.label_tokens, entry.stream_tokens, entry.documents) == (
        wanted.files, wanted.samples, wanted.label_tokens, wanted.stream_tokens, wanted.documents
    )  # fmt: skip
    for stage in ("pack", "shard"):
        assert renewed.manifest.rows(stage) == other.manifest.rows(stage)
    dropped = [row.dropped.get("forgotten") for row in renewed.manifest.rows("shuffle", "train")]
    assert sum(amounts.documents for amounts in dropped if amounts) == len(GONE)
    assert faults(root) == []
    # Only shards behind the first of them change, where rows follow the stream.
    changed = {shard.name for shard in forgotten.read(root).certificates[0].shards}
    assert changed == {name for name in before if before[name] != after.get(name)}
    tokens = 0
    for file in of_set.manifest.splits["train"].files:
        tokens += file.n_examples
        if form == "corpus" and tokens <= first:
            assert (root / "train" / file.name).stat().st_ino == inodes[file.name]
            assert file.name not in changed
    for answer in trace(root, [make("id", name) for name in sorted(GONE)]):
        assert not answer.documents
        assert "it was forgotten" in (answer.note or "")


def test_masked_documents_leave_too_and_later_ones_are_masked(tmp_path: Path, base: Path) -> None:
    other = made(tmp_path / "without", {"doc-3", "doc-4"})
    root = copied(base, tmp_path / "all")
    forget(root, [make("id", "doc-3")])
    planned = plan(root, [make("id", "doc-4")], how="remove")
    assert [document.line for document in planned.named] == [4, 5]
    forget(root, [make("id", "doc-4")], how="remove")
    assert shards(root) == shards(other.root)
    certificate = forgotten.read(root).certificates[1]
    assert (certificate.how, len(certificate.documents)) == ("remove", 2)
    assert faults(root) == []
    forget(root, [make("id", "doc-40")])
    assert faults(root) == []
    chain = forgotten.read(root)
    assert [entry.how for entry in chain.certificates] == ["mask", "remove", "mask"]
    assert [entry.how for entry in chain.masking] == ["mask"]
    last = chain.certificates[2].shards
    assert chain.replaced() == {shard.before: shard.after for shard in last}
    # What is masked can be removed by the same question, though its id is gone; once it is, nothing is left to do.
    assert len(plan(root, [make("id", "doc-40")], how="remove").named) == 1
    assert forget(root, [make("id", "doc-40")], how="remove").documents == 1
    assert faults(root) == []
    again = forget(root, [make("id", "doc-40")], how="remove")
    assert (again.documents, again.done) == (0, ["id doc-40"])


def test_a_training_run_does_not_go_on_with_other_samples(tmp_path: Path, base: Path) -> None:
    root = copied(base, tmp_path / "out")
    config = {"data_dir": str(root / "train"), "batch_size": 3, "shuffle": True}
    loader = GptHDF5MapDataProcessor(config).create_dataloader(rank=0, world_size=1)
    next(iter(loader))
    state = loader.state_dict()
    forget(root, [make("id", "doc-3")], how="remove")
    again = GptHDF5MapDataProcessor(config).create_dataloader(rank=0, world_size=1)
    with pytest.raises(DataError, match="belongs to other data"):
        again.load_state_dict(state)
    assert len(next(iter(again))["input_ids"]) == 3


def test_several_sets_and_splits_that_end_up_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        made(tmp_path, seq_len=[16, 32], holdout__fraction=0.1)
    root = tmp_path / "out"
    names = [row["id"] for of_set in open_dataset(root)[:1] for row in _validation(of_set)]
    with pytest.raises(InputError, match="Nothing of validation would be left"):
        forget(root, [make("id", name) for name in names], how="remove")
    assert not list(tmp_path.glob(".out.forget*"))
    forget(root, [make("id", "doc-5")], how="remove")  # of one split alone
    assert faults(root) == []
    forget(root, [make("id", name) for name in [*names[1:], "doc-6"]], how="remove")
    assert faults(root) == []
    with pytest.raises(InputError, match="one of the sets"):
        forget(root / "msl16", [make("id", "doc-7")])
    shutil.copytree(root / "msl16", root / "generation-0002")  # as an add has it, before it is listed
    assert forget(root / "generation-0002", [make("id", "doc-7")]).documents == 1


def _validation(of_set: SetView) -> list[dict[str, Any]]:
    found = of_set.splits["validation"].table
    return list(found.described(range(found.num_rows)))


def test_what_cannot_be_packed_again_is_refused_and_nothing_changes(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    of_set = made(tmp_path / "cut", tail="drop")
    before = shards(of_set.root)
    with pytest.raises(DataError, match="cannot be packed again"):
        forget(of_set.root, [make("id", "doc-3")], how="remove")
    assert shards(of_set.root) == before
    root = copied(base, tmp_path / "damaged")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(restream, "_IN_MEMORY_BYTES", 0)
        before = shards(root)
        with pytest.raises(OutputError, match="No space left on device"):
            forget(root, [make("id", "doc-3")], how="remove")
        assert shards(root) == before
        assert not list(root.parent.glob(".damaged.forget*btlm-tmp"))
    with monkeypatch.context() as patch:  # an error of the system on the way
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*\.damaged\.forget.btlm-tmp'"):
            forget(root, [make("id", "doc-3")])
        assert shards(root) == before
        assert not list(root.parent.glob(".damaged.forget*btlm-tmp"))
        with pytest.raises(OutputError, match="The disk is full"):
            key_index.make(root)
        assert not list(root.glob(".key-index*"))
    path = sorted(root.glob("train/*.h5"))[1]
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[-2000] ^= 1
    path.unlink()
    path.write_bytes(data.tobytes())
    for kind in ("XXH3", "SHA-256"):
        if kind == "SHA-256":  # of a dataset from before the other was recorded
            without_xxh3(root)
        before = shards(root)
        for how in ("mask", "remove"):
            names = ["doc-3"] if how == "remove" else [f"doc-{n}" for n in range(90)]
            queries = [make("id", name) for name in names]
            with pytest.raises(DataError, match=f"is damaged: its {kind} is"):
                forget(root, queries, how=how)
        assert shards(root) == before


def without_xxh3(root: Path) -> None:
    """A dataset as it was before the XXH3 of shards was recorded."""
    value = dataset.read_set(root)
    splits = {
        name: msgspec.structs.replace(
            split, files=[msgspec.structs.replace(file, xxh3=None) for file in split.files]
        )
        for name, split in value.splits.items()
    }
    (root / "dataset.json").unlink()
    (root / "dataset.json").write_bytes(dataset.encode(msgspec.structs.replace(value, splits=splits)))


@pytest.mark.parametrize("how", ["mask", "remove"])
def test_an_older_dataset_gets_the_checksums_that_it_did_not_have(
    tmp_path: Path, base: Path, how: Literal["mask", "remove"]
) -> None:
    older, newer = copied(base, tmp_path / "older"), copied(base, tmp_path / "newer")
    without_xxh3(older)
    for root in (older, newer):
        forget(root, [make("id", f"doc-{n}") for n in range(0, 90, 3)], how=how)
    assert shards(older) == shards(newer)
    for split, entry in dataset.read_set(newer).splits.items():
        for file, other in zip(entry.files, dataset.read_set(older).splits[split].files, strict=True):
            assert file.xxh3 == xxhash.xxh3_128_hexdigest((newer / split / file.name).read_bytes())
            assert other.xxh3 in (file.xxh3, None)
            assert (other.xxh3 is None) <= (file in dataset.read_set(base).splits[split].files)


def test_the_certificate_is_signed(tmp_path: Path, base: Path) -> None:
    key, root = tmp_path / "key", copied(base, tmp_path / "all")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signers = tmp_path / "signers"
    signers.write_text(f"me@example.org {(tmp_path / 'key.pub').read_text()}")
    done = CliRunner().invoke(cli, ["forget", str(root), "--id", "doc-3", "--sign", str(key)])
    assert done.exit_code == 0, done.output
    checks = [c for c in verify.verify(root, lambda _: None, signers=signers) if "signature" in c.name]
    assert [(check.name, check.ok, check.detail) for check in checks] == [
        ("signature", True, "of me@example.org"),
        ("signature of forgotten.json", True, "of me@example.org"),
    ]
    path = root / "forgotten.json.sig"
    good = path.read_bytes()
    path.write_bytes((root / "dataset.json.sig").read_bytes())
    checks = verify.verify(root, lambda _: None, signers=signers)
    assert any(check.name == "signature" and check.ok is False for check in checks)
    path.write_bytes(good)
    forget(root, [make("id", "doc-4")])  # without a key: no signature of an older dataset stays
    assert not path.exists()
    assert not (root / "dataset.json.sig").exists()
    assert dataset.read_set(root).rows("forget", "train")
