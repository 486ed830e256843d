"""`btlm-data forget`: what is masked and what stays, that verify knows, that a training run goes on, and kills at every write."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from btlm_data.cli import cli
from btlm_data.errors import ConfigError, DataError, InputError, OutputError, SafetyStop
from btlm_data.formats import dataset, forgotten
from btlm_data.formats.shard_formats import vsl
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.inspection import verify
from btlm_data.inspection.check import Check
from btlm_data.lineage import forget as forgetting
from btlm_data.lineage import masking
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.forget import forget
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.queries import make
from btlm_data.lineage.trace import trace
from btlm_data.storage.exchange import exchange as swap
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.lineage.corpora import Killed, Truth, prepared, records, tokenizer

GONE = ["doc-3", "doc-40", "doc-41", "doc-77"]


def made(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[SetView, list[dict[str, Any]]]:
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 900)
    documents = records(90, 11)
    return prepared(
        folder, documents, format=form, seq_len=32, shards__samples_per_file=20, **options
    ), documents


def faults(root: Path) -> list[Check]:
    return [check for check in verify.verify(root, lambda _: None) if check.ok is False]


def rows(root: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(root.glob("train/*.h5")):
        with h5py.File(path) as file:
            found[path.name] = file["data"][:]
    return found


def test_many_shards_are_masked_a_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, few are open at once."""
    most, at_once, grouped = 3, list[int](), list[int]()
    really = masking._write_group

    def write_group(view: Any, group: Any, *rest: Any) -> Any:
        grouped.append(len(group))
        yield from really(view, group, *rest)

    opened = set[Path]()

    class Reader(ShardReader):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.path = path
            opened.add(path)
            at_once.append(len(opened))

        def close(self) -> None:
            opened.discard(self.path)
            super().close()

    of_set, documents = made(tmp_path, "sample", monkeypatch)
    before = rows(of_set.root)
    monkeypatch.setattr(masking, "_GROUP", most)
    monkeypatch.setattr(masking, "_write_group", write_group)
    monkeypatch.setattr(masking, "ShardReader", Reader)
    outcome = forget(of_set.root, [make("id", row["id"]) for row in documents[::2]])
    assert outcome.shards == len(before) > 2 * most
    assert sum(grouped) == outcome.shards
    assert max(grouped) == most
    assert max(at_once) <= most + 1
    assert faults(of_set.root) == []


@pytest.mark.parametrize("form", ["sample", "vsl", "corpus"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_documents_are_masked_and_all_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, compression: str
) -> None:
    monkeypatch.setattr("btlm_data.lineage.masking._IN_MEMORY", 64)  # so that some are put aside
    monkeypatch.setattr("btlm_data.lineage.masking._STRETCH_ELEMENTS", 100)
    of_set, documents = made(tmp_path, form, monkeypatch, shards__compression=compression)
    root, view = of_set.root, of_set.splits["train"]
    truth = Truth(of_set, "train", documents)
    wanted = [name for name in GONE if name in {row["id"] for row in truth.rows}]
    before, inodes = rows(root), {p.name: p.stat().st_ino for p in root.glob("train/*.h5")}
    chosen = [row["row"] for row in truth.rows if row["id"] in wanted]
    extents = view.extents(chosen)
    expected = {name: data.copy() for name, data in before.items()}
    touched, masked = set(), 0
    for extent in extents:
        for place in view.spans(extent):
            number, row = view.shard_of(place.row)
            name = view.entry.files[number].name
            touched.add(name)
            if form == "corpus":
                expected[name][slice(*place.positions)] = truth.eos
                continue
            expected[name][row, 0, slice(*place.positions)] = truth.eos
            expected[name][row, 1, slice(*place.labels)] = 0
            expected[name][row, 2, slice(*place.labels)] = truth.eos
            masked += place.labels[1] - place.labels[0]
    outcome = forget(root, [make("id", name) for name in wanted], reason="a mail")
    assert (outcome.documents, outcome.masked, outcome.nothing) == (len(wanted), masked, [])
    after = rows(root)
    for name, data in after.items():
        assert np.array_equal(data, expected[name]), name
        assert (root / "train" / name).stat().st_ino == inodes[name] or name in touched
    assert faults(root) == []
    assert not (root / ".work").exists()
    # Nobody finds them any more, but by the hash of a text that was known before.
    texts = {row["id"]: truth.texts[row["id"]] for row in truth.rows}
    [renewed] = open_dataset(root)
    view = renewed.splits["train"]
    masks = Masks(view)
    with monkeypatch.context() as patch:  # verify's threads ask at once, and a table is for one
        patch.setattr(type(view.table), "rows", None)
        for number, file in enumerate(view.entry.files):
            assert masks.undo(after[file.name].copy(), view.first_row(number)) is None
    others = [text for name, text in texts.items() if name not in wanted]
    answers = trace(root, [make("text", texts[name]) for name in wanted])
    for name, answer in zip(wanted, answers, strict=True):
        assert len(answer.documents) == sum(texts[name] in text for text in others)
    hashes = [row["hash"].hex() for row in truth.rows if row["id"] in wanted]
    for answer in trace(root, [make("hash", value) for value in hashes]):
        assert any(document.forgotten and document.fields == {"url": None} for document in answer.documents)
    for answer in trace(root, [make("id", name) for name in wanted]):
        assert not answer.documents
        assert "it was forgotten" in (answer.note or "")
    chain = forgotten.read(root)
    assert [one.hash for one in chain.certificates[0].documents] == [
        row["hash"].hex() for row in truth.rows if row["row"] in chosen
    ]
    assert (
        renewed.manifest.rows("forget", "train")[0].out.tokens
        == renewed.manifest.splits["train"].label_tokens - masked
    )
    # Once more, and others: certificates are chained; what is gone is known as gone.
    again = forget(root, [make("id", wanted[0])])
    assert (again.documents, again.done, again.certificate) == (0, [f"id {wanted[0]}"], None)
    gone = make("id", next(f"{row['file']}#{row['offset']}" for row in truth.rows if row["row"] in chosen))
    assert forget(root, [gone]).done == [f"id {gone.value}"]  # never asked before
    other = next(row["id"] for row in truth.rows if row["id"] not in wanted)
    forget(root, [make("id", other), make("id", wanted[0])])
    second = forgotten.read(root)
    assert len(second.certificates) == 2
    assert second.certificates[1].previous == second.certificates[0].digest
    assert faults(root) == []


def test_documents_are_named_by_an_expression(tmp_path: Path) -> None:
    documents = records(60, 5)
    of_set = prepared(tmp_path / "one", documents, seq_len=32)
    root = of_set.root
    shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns(".work"))
    chosen = [
        row["id"]
        for row in of_set.splits["train"].table.described(range(of_set.splits["train"].table.num_rows))
        if row["fields.url"].startswith("https://two.") and row["tokens"] > 60
    ]
    assert len(chosen) > 2
    expression = "fields.url LIKE 'https://two.%' AND tokens > 60"
    result = CliRunner().invoke(cli, ["forget", str(root), "--where", expression, "--json"])
    assert json.loads(result.output)["documents"] == len(chosen), result.output
    # What an unfinished add left has texts too; a folder of the user that is called like it stays.
    shutil.copytree(root, tmp_path / "other/generation-0002")
    (tmp_path / "other/generation-0003").mkdir()
    done = forget(tmp_path / "other", [make("id", name) for name in chosen])
    assert done.unfinished == "generation-0002"
    assert [path.name for path in (tmp_path / "other").glob("generation-*")] == ["generation-0003"]
    for path in (root / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "other/train" / path.name).read_bytes(), path.name
    assert faults(root) == []
    again = json.loads(CliRunner().invoke(cli, ["forget", str(root), "--where", expression, "--json"]).output)
    assert (again["documents"], again["done"]) == (0, [f"where {expression}"])
    with pytest.raises(ConfigError, match=r"Did you mean tokens\?"):
        forget(root, [make("where", "token > 60")])


def test_a_plan_names_what_would_be_taken_out_and_changes_nothing(tmp_path: Path) -> None:
    root = prepared(tmp_path / "one", records(60, 5), seq_len=32).root

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(root.parent.rglob("*")) if p.is_file()}

    before = contents()
    told = CliRunner().invoke(cli, ["forget", str(root), "--where", "tokens > 60", "--id", "doc-x", "--plan"])
    assert told.exit_code == 0, told.output
    assert contents() == before
    planned = forgetting.plan(root, [make("where", "tokens > 60"), make("id", "doc-x")])
    assert planned.nothing == ["id doc-x"]
    assert told.output.splitlines()[-1].startswith(f"{planned.documents} documents with ")
    assert f"and {planned.documents - 20} more" in told.output
    as_json = CliRunner().invoke(cli, ["forget", str(root), "--where", "tokens > 60", "--plan", "--json"])
    done = forget(root, [make("where", "tokens > 60")], how="remove")
    [certificate] = forgotten.read(root).certificates
    assert [(f.split, f.document, f.tokens) for f in planned.named] == [
        (d.split, d.document, d.tokens) for d in certificate.documents
    ]
    assert done.documents == planned.documents == len(json.loads(as_json.output)["named"]) > 20
    with pytest.raises(InputError, match="No document of"):
        forgetting.plan(root, [make("id", "doc-x")])


def test_what_was_forgotten_is_said_by_other_commands(tmp_path: Path) -> None:
    root = prepared(tmp_path / "one", records(60, 5), seq_len=32).root
    shutil.copytree(root, tmp_path / "before", ignore=shutil.ignore_patterns(".work"))
    [found] = trace(root, [make("id", "doc-3")])[0].documents
    assert found.hash is not None
    told = CliRunner().invoke(
        cli, ["forget", str(root), "--where", f"id = 'doc-3' AND tokens = {found.tokens}"]
    )
    assert told.output.startswith("Masked 1 document: "), told.output
    by_hash, by_id = trace(root, [make("hash", found.hash), make("id", "doc-3")])
    assert [document.forgotten for document in by_hash.documents] == [True]
    assert "1 document was forgotten" in (by_id.note or "")
    forget(root, [make("id", "doc-8")], how="remove")
    by_hash, by_id = trace(root, [make("hash", found.hash), make("id", "doc-8")])
    assert "it was forgotten" in (by_hash.note or "")
    assert "it was forgotten" in (by_id.note or "")
    masked = tmp_path / "masked"
    shutil.copytree(tmp_path / "before", masked)
    positions = forget(masked, [make("id", "doc-3")]).masked
    said = CliRunner().invoke(cli, ["inspect", str(masked)]).output
    assert f"{positions:,} label positions masked" in said
    said = CliRunner().invoke(cli, ["diff", str(tmp_path / "before"), str(masked)]).output
    [line] = [line for line in said.splitlines() if "masked (forgotten)" in line]
    assert line.split()[-2:] == ["0", str(positions)]
    said = CliRunner().invoke(cli, ["diff", str(masked), str(root)]).output
    [line] = [line for line in said.splitlines() if "dropped in shuffle: forgotten" in line]
    assert line.split()[-2:] == ["0", "2"]


def test_what_is_not_masked_as_certified_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_set, _ = made(tmp_path, "sample", monkeypatch)
    root, view = of_set.root, of_set.splits["train"]
    [row] = view.table.matching({"id": {"doc-3"}})
    forget(root, [make("id", "doc-3")])
    [place, *_] = view.spans(view.extents([row])[0])
    number, shard_row = view.shard_of(place.row)
    path = root / "train" / view.entry.files[number].name
    good = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["data"][shard_row, 1, place.labels[0]] = 1
    found = {check.name: check.place for check in faults(root)}
    assert "is not masked" in (found["forgotten"] or "")
    path.write_bytes(good)
    assert faults(root) == []
    certificates = root / forgotten.FILE_NAME
    whole = certificates.read_bytes()
    certificates.write_bytes(whole.replace(b'"reason": ""', b'"reason": "x"'))
    with pytest.raises(DataError, match="checksum"):
        forgotten.read(root)
    assert {"forgotten", "files"} <= {check.name for check in faults(root)}
    certificates.write_bytes(whole)
    chain = forgotten.read(root)
    broken = forgotten.Forgotten([*chain.certificates, *chain.certificates])
    certificates.write_bytes(forgotten.encode(broken))
    with pytest.raises(DataError, match="certificate 2 does not follow"):
        forgotten.read(root)


def test_a_training_run_goes_on_with_the_masked_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_set, _ = made(tmp_path, "sample", monkeypatch)
    config = {"data_dir": str(of_set.root / "train"), "batch_size": 3, "shuffle": True}
    loader = GptHDF5MapDataProcessor(config).create_dataloader(rank=0, world_size=1)
    whole = [batch["input_ids"].numpy() for batch in loader]
    loader = GptHDF5MapDataProcessor(config).create_dataloader(rank=0, world_size=1)
    next(iter(loader))
    state = loader.state_dict()
    forget(of_set.root, [make("id", "doc-3")])
    continued = GptHDF5MapDataProcessor(config).create_dataloader(rank=0, world_size=1)
    continued.load_state_dict(state)
    for before, after in zip(whole[1:], continued, strict=True):
        changed = (before != after["input_ids"].numpy()).any(1)
        assert (after["attention_mask"].numpy()[changed] == 0).any() or not changed.any()


def test_what_stands_where_the_new_dataset_is_built_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_set, _ = made(tmp_path / "made", "sample", monkeypatch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("mine")
    of_set.root.with_name(f".{of_set.root.name}.forget.btlm-tmp").symlink_to(theirs)
    with pytest.raises(OutputError, match="in the way"):
        forget(of_set.root, [make("id", "doc-3")])
    assert (theirs / "file").read_text() == "mine"


@pytest.mark.parametrize("form", ["sample", "corpus"])
def test_a_kill_at_any_write_leaves_the_old_dataset_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    of_set, _ = made(tmp_path / "made", form, monkeypatch)
    base = tmp_path / "base"
    shutil.copytree(of_set.root, base, ignore=shutil.ignore_patterns(".work"))
    old = rows(base)
    shutil.copytree(base, tmp_path / "new")
    forget(tmp_path / "new", [make("id", "doc-3")])
    new = rows(tmp_path / "new")
    steps = 0
    while True:
        root = tmp_path / f"kill-{steps}"
        shutil.copytree(base, root)
        left = [steps]

        def dying(call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def killed(*args: Any, **kwargs: Any) -> Any:
                if threading.current_thread() is threading.main_thread():  # not the lease's heartbeat
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                return call(*args, **kwargs)

            return killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", dying(os.fsync))
            patch.setattr(os, "link", dying(os.link))
            patch.setattr(forgetting, "exchange", dying(swap))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                forget(root, [make("id", "doc-3")])
                died = False
            except Killed:
                died = True
        found = rows(root)
        is_old = all(np.array_equal(found[name], data) for name, data in old.items())
        assert is_old or all(np.array_equal(found[name], data) for name, data in new.items())
        assert faults(root) == [] if steps % 10 == 0 else dataset.read(root)
        (root / ".report.html.1-ab.btlm-tmp").write_bytes(b"a page that was cut short")
        (root.parent / f"..{root.name}.forget.lock.1-ab.btlm-tmp").write_bytes(b"a lease that was")
        forget(root, [make("id", "doc-3")])  # the same command again
        assert all(np.array_equal(rows(root)[name], data) for name, data in new.items())
        assert [p.name for folder in (root, root.parent) for p in folder.glob(".*btlm-tmp")] == []
        shutil.rmtree(root)
        if not died:
            break
        steps += 1
    assert steps > 15


def test_several_sets_and_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        prepared(tmp_path, records(60, 2), seq_len=[16, 32])
    root = tmp_path / "out"
    with pytest.raises(InputError, match=r"No document of .* answers the question: id doc-x"):
        forget(root, [make("id", "doc-x")])
    with pytest.raises(DataError, match=r"There is no .*train/dataset\.json"):
        forget(root / "msl16" / "train", [make("id", "doc-3")])
    with pytest.raises(InputError, match="is one of the sets of"):
        forget(root / "msl16", [make("id", "doc-3")])
    result = CliRunner().invoke(
        cli, ["forget", str(root), "--id", "doc-3", "--id", "doc-x", "--reason", "a mail", "--json"]
    )
    value = json.loads(result.output)
    assert (value["documents"], value["nothing"]) == (2, ["id doc-x"])
    assert any("source" in place for place in value["still_held"])
    assert faults(root) == []
    told = CliRunner().invoke(cli, ["forget", str(root), "--id", "doc-4"]).output
    assert "Masked 2 documents: " in told
    assert faults(root) == []


@pytest.mark.parametrize(
    ("form", "how"), [("sample", "mask"), ("corpus", "mask"), ("vsl", "mask"), ("sample", "remove")]
)
def test_no_passage_of_50_tokens_is_found_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, how: forgotten.How
) -> None:
    of_set, documents = made(tmp_path, form, monkeypatch)
    texts = {f"doc-{number}": document["text"] for number, document in enumerate(documents)}
    present = {row["id"] for row in Truth(of_set, "train", documents).rows}
    gone = [name for name in texts if name in present and len(texts[name]) > 150][::4]
    passages = []
    for name in gone:
        [ids, _] = tokenizer().encode_batch([texts[name]])
        passages += [tokenizer().decode(ids[k : k + 50]) for k in range(len(ids) - 49)]
    others = [texts[name] for name in present - set(gone)]
    before = trace(of_set.root, [make("text", passage) for passage in passages])
    assert all(answer.documents for answer in before)
    forget(of_set.root, [make("id", name) for name in gone], how=how)
    after = trace(of_set.root, [make("text", passage) for passage in passages])
    assert len(passages) > 300
    for passage, answer in zip(passages, after, strict=True):
        assert len(answer.documents) == sum(passage in text for text in others)


def test_an_expression_that_names_most_documents_is_asked_about(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    of_set = prepared(tmp_path, records(60, 5), seq_len=32)
    before = rows(of_set.root)
    with pytest.raises(SafetyStop, match="--accept-most"):
        forget(of_set.root, [make("where", "tokens > 0")])
    assert {name: data.tobytes() for name, data in rows(of_set.root).items()} == {
        name: data.tobytes() for name, data in before.items()
    }
    forget(of_set.root, [make("where", "tokens > 20")], accept_most=True)
    assert faults(of_set.root) == []
