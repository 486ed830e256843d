"""`btlm-data add`: what is kept and what stays untouched, what refuses, and what every reader sees."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import btlm_data
from btlm_data.cli import cli
from btlm_data.errors import BtlmError, ConfigError, DataError, InputError, NothingNew, OutputError
from btlm_data.export import export
from btlm_data.formats import dataset, forgotten, generations
from btlm_data.formats.shard_formats import vsl
from btlm_data.generations import add as adding
from btlm_data.generations import index
from btlm_data.hub_upload import _files
from btlm_data.inspection import difference, summary, verify
from btlm_data.inspection.check import Check
from btlm_data.inspection.report import GenerationsReport
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import make
from btlm_data.lineage.trace import trace
from btlm_train.data.samples import HDF5Dataset
from tests.generations.corpora import PARTS, first, grow, kept, parts, state, write
from tests.lineage.corpora import tokenizer


@pytest.fixture
def copied(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "copied", copy_function=shutil.copy2))


def failed(root: Path) -> list[Check]:
    return [check for check in verify.verify(root, lambda _: None) if check.ok is False]


# What is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, pytest.param(10, marks=pytest.mark.stress)])
def test_parts_in_sequence_keep_what_one_run_keeps(tmp_path: Path, count: int) -> None:
    pieces = parts(count, 12, 7)
    for number, piece in enumerate(pieces):
        write(tmp_path / "all" / f"p{number}.jsonl", piece)
    together = first(tmp_path / "all", tmp_path / "together")
    root = first(tmp_path / "all/p0.jsonl", tmp_path / "out")
    for number in range(1, count):
        before = state(root)
        grow(root, tmp_path / f"all/p{number}.jsonl")
        after = state(root)
        assert {name: after[name] for name in before} == before, (
            "inode, time and content of all that was there"
        )
    assert sorted(kept(root)) == sorted(kept(together))
    assert len(kept(root)) < 12 * count, "some were duplicates"
    assert failed(root) == []


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {}) for form in ("sample", "corpus", "vsl")),
        ("sample", {"dedupe__preset": "slimpajama"}),
        ("sample", {"dedupe__verify": "signature"}),
    ],
    ids=str,
)
def test_every_document_is_known_from_the_shards(
    tmp_path: Path, form: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 900)
    monkeypatch.setattr("btlm_data.generations.sketching.BATCH_TOKENS", 700)
    source = write(tmp_path / "p.jsonl", PARTS[0])
    root = first(source, tmp_path / "out", format=form, holdout__fraction=0.2, **options)
    with pytest.raises(InputError, match=r"40 x in_index\. .* nothing new to prepare"):
        grow(root, source)
    assert sorted(path.name for path in root.glob("generation*")) == []


def test_sets_with_shares_know_all_their_documents(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", PARTS[0])
    root = first(source, tmp_path / "out", seq_len=["32:0.5", "64:0.5"])
    with pytest.raises(InputError, match="40 x in_index"):
        grow(root, source)
    grow(root, write(tmp_path / "q.jsonl", PARTS[1]))
    assert failed(root) == []
    compared = difference.compare(root / "msl32", root / "generation-0002/msl32")
    assert compared.generations == (2, 1), "a set of the dataset is that of all generations"
    assert compared.documents[0].both > compared.documents[0].only_right == 0
    assert [len(HDF5Dataset({"data_dir": str(root / f"msl{n}"), "batch_size": 1})) for n in (32, 64)] == [
        len(btlm_data.open(root).sets[f"msl{n}"]["train"]) for n in (32, 64)
    ]


def test_the_bytes_do_not_depend_on_workers(grown: Path, tmp_path: Path) -> None:
    root = first(write(tmp_path / "p0.jsonl", PARTS[0]), tmp_path / "out", run__workers=2)
    grow(root, write(tmp_path / "p1.jsonl", PARTS[1]), run__workers=2)
    here, there = (
        {name: digest for name, (_, _, digest) in state(folder / "generation-0002").items()}
        for folder in (root, grown)
    )
    differ = {name for name in there if here[name] != there[name]}
    assert differ <= {"provenance.json"}


def test_each_generation_has_a_shuffle_of_its_own(grown: Path) -> None:
    manifests = [generation.manifest for generation in generations.read(grown)]
    assert [m.seed for m in manifests if isinstance(m, dataset.Dataset)] == [0, 1, 2]


# What every reader sees -------------------------------------------------------------------------------------


def test_readers_take_all_or_some(grown: Path) -> None:
    opened = btlm_data.open(grown)
    lengths = [len(part["train"]) for part in opened.generations.values()]
    assert len(lengths) == 3
    for extra, count in (
        ({}, sum(lengths)),
        ({"generation": "all"}, sum(lengths)),
        ({"generation": 3}, lengths[2]),
        ({"generation": [1, 3]}, lengths[0] + lengths[2]),
    ):
        for folder in (grown, grown / "train"):
            assert len(HDF5Dataset({"data_dir": str(folder), "batch_size": 1, **extra})) == count
    whole = HDF5Dataset({"data_dir": str(grown), "batch_size": 1})
    rows = opened["train"][:]
    assert len(whole) == len(opened["train"]) == len(rows)
    for number in range(0, len(whole), 7):
        np.testing.assert_array_equal(whole[number]["input_ids"], rows[number, 0])
    explicit = [str(grown / "train"), str(grown / "generation-0002/train")]
    assert len(HDF5Dataset({"data_dir": explicit, "batch_size": 1})) == sum(lengths), "none is read twice"
    assert opened["train"].documents().num_rows == opened["train"].num_documents == len(kept(grown))


def test_a_mixture_weighs_generations(grown: Path) -> None:
    sets = [
        {"data_dir": str(grown), "generation": 1, "weight": 0.25},
        {"data_dir": str(grown), "generation": [2, 3], "weight": 0.75},
    ]
    mixed = HDF5Dataset({"mixture": sets, "batch_size": 1})
    names = [[Path(name).parts[-3] for name in source.shards.names] for source in mixed.sources]
    assert set(names[0]) == {grown.name}
    assert set(names[1]) == {"generation-0002", "generation-0003"}


def test_a_generation_that_is_not_there_is_named(grown: Path) -> None:
    with pytest.raises(InputError, match=r"no generation 4 of .*: it has 3"):
        HDF5Dataset({"data_dir": str(grown), "batch_size": 1, "generation": 4})


def test_a_run_goes_on_with_the_generations_that_it_read(grown: Path) -> None:
    one = HDF5Dataset({"data_dir": str(grown), "batch_size": 1, "generation": 1})
    whole = HDF5Dataset({"data_dir": str(grown), "batch_size": 1})
    with pytest.raises(DataError, match="set `generation` to those that were read"):
        whole.load_state_dict(one.state_dict())
    one.load_state_dict(one.state_dict())


def test_trace_numbers_samples_as_readers_do(grown: Path) -> None:
    whole = HDF5Dataset({"data_dir": str(grown), "batch_size": 1})
    texts = {document["id"]: document["text"] for part in PARTS for document in part}
    numbers = list(range(0, len(whole), 5))
    seen = set()
    for number, answer in zip(
        numbers, trace(grown, [make("sample", str(n)) for n in numbers], texts=True), strict=True
    ):
        ids = whole[number]["input_ids"].tolist()
        for document in answer.documents:
            seen.add(document.generation)
            for span in document.places:
                low, high = span.positions
                assert span.sample == number
                expected = tokenizer().encode_batch([texts[document.id]])[0].tolist()
                assert [*expected, 50256][span.tokens[0] : span.tokens[1]] == ids[low:high]
    assert seen == {1, 2, 3}
    [answer] = trace(grown, [make("id", PARTS[2][5]["id"])])
    assert [document.generation for document in answer.documents] == [3]
    before = sum(
        part["train"].num_tokens + 1 for part in list(btlm_data.open(grown).generations.values())[:2]
    )
    [at] = trace(grown, [make("tokens", f"{before}-{before + 1}")])
    assert [document.stream[0] for document in at.documents] == [before]


def test_a_dropped_document_is_found_with_its_generation(grown: Path) -> None:
    missing = [document["id"] for document in PARTS[2] if document["id"] not in kept(grown)]
    answers = trace(
        grown, [make("line", f"p2.jsonl:{[d['id'] for d in PARTS[2]].index(name) + 1}") for name in missing]
    )
    assert answers
    assert {gone.generation for answer in answers for gone in answer.dropped} == {3}


def test_inspect_shows_one_dataset(grown: Path) -> None:
    report = summary.inspect(grown, sample=[0, 60], num_samples=0)
    assert isinstance(report, GenerationsReport)
    assert list(report.generations) == ["1", "2", "3"]
    assert sum(entry.documents for entry in report.splits) == len(kept(grown))
    firsts = [entry.first_sample for entry in report.splits]
    assert firsts == [0, report.splits[0].samples, report.splits[0].samples + report.splits[1].samples]  # type: ignore[operator]
    with pytest.raises(ConfigError, match="through all generations"):
        summary.inspect(grown, sample=[10**6], num_samples=0)
    shown = CliRunner().invoke(cli, ["inspect", str(grown)]).output
    assert "3 generations, read one after the other" in shown


def test_export_and_push_take_every_generation(grown: Path, tmp_path: Path) -> None:
    done = export(grown, "npy", tmp_path / "flat")
    assert list(done) == ["", "generation-0002", "generation-0003"]
    names = list(_files(grown))
    assert names[-1] == generations.FILE_NAME
    assert "generation-0003/train/data-00000.h5" in names
    assert not [name for name in names if name.startswith(".")]


def test_diff_compares_all_generations(grown: Path, copied: Path, tmp_path: Path) -> None:
    compared = difference.compare(grown, copied)
    assert compared.equal
    assert compared.generations == (3, 3)
    (copied / generations.FILE_NAME).unlink()
    parts_of = [pq.read_table(g.root / "train/documents.parquet").num_rows for g in generations.read(grown)]
    total, old = sum(parts_of), parts_of[0]
    compared = difference.compare(grown, copied)
    assert not compared.equal
    assert compared.documents == [difference.Common("train", old, total - old, 0, old)]
    assert compared.only_left == ["generation 2: p1.jsonl", "generation 3: p2.jsonl"]
    assert compared.settings == []
    counts = {amount.name: [amount.left, amount.right] for amount in compared.counts}
    assert counts["generations"] == [3, 1]
    assert counts["train: documents"] == [total, old]
    assert counts["dropped in dedupe: in index"][0] == sum(
        row.dropped["in_index"].documents
        for manifest in generations.read_sets(grown).values()
        for row in manifest.rows("dedupe")
        if "in_index" in row.dropped
    )
    alone = difference.compare(grown, grown / "generation-0003")
    assert alone.documents == [difference.Common("train", parts_of[2], total - parts_of[2], 0, 0)]
    for number, part in enumerate(PARTS[:3]):
        write(tmp_path / "all" / f"p{number}.jsonl", part)
    together = difference.compare(grown, first(tmp_path / "all", tmp_path / "together"))
    assert together.documents[0].both == total, "as one run over all"
    assert together.documents[0].only_left == together.documents[0].only_right == 0


# What is changed later --------------------------------------------------------------------------------------


def test_forget_reaches_every_generation(copied: Path, tmp_path: Path) -> None:
    gone = [PARTS[0][1]["id"], PARTS[2][5]["id"]]
    before = state(copied / "generation-0002")
    forget(copied, [make("id", name) for name in gone])
    assert failed(copied) == []
    assert state(copied / "generation-0002") == before, "nothing of it was forgotten"
    assert not (copied / generations.INDEX_FOLDER).exists(), "it holds their texts"
    assert all(not answer.documents for answer in trace(copied, [make("id", name) for name in gone]))
    for text in (PARTS[0][1]["text"], PARTS[2][5]["text"]):
        [answer] = trace(copied, [make("text", text[:200])])
        assert not answer.documents
    grow(copied, write(tmp_path / "p3.jsonl", PARTS[3]))
    assert failed(copied) == []


@pytest.mark.parametrize("how", ["mask", pytest.param("remove", marks=pytest.mark.stress)])
def test_what_was_forgotten_does_not_come_back_with_a_new_crawl(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Literal["mask", "remove"]
) -> None:
    gone = PARTS[0][1]["text"]
    forget(copied, [make("id", PARTS[0][1]["id"])], how=how)
    crawled = [*PARTS[3], {"text": gone, "id": "again", "url": "https://y.example/"}]
    source = write(tmp_path / "p3.jsonl", crawled)
    with monkeypatch.context() as patch:
        patch.setattr(adding, "_publish", lambda _: None)  # as if killed before it
        grow(copied, source)
    assert len(generations.read(copied)) == 3
    grow(copied, source)
    assert len(generations.read(copied)) == 4
    assert failed(copied) == []
    new = copied / "generation-0004"
    [certificate] = forgotten.read(new).certificates
    assert [len(certificate.documents), certificate.how] == [1, "mask"]
    assert not any(
        answer.documents for answer in trace(copied, [make("text", gone[:200]), make("id", "again")])
    )
    assert trace(copied, [make("id", PARTS[3][0]["id"])])[0].documents


def test_verify_finds_what_does_not_belong_together(copied: Path) -> None:
    shutil.copy(copied / "generation-0002/dataset.json", copied / "generation-0003/dataset.json")
    assert any(check.name == "generations" and "checksum" in str(check.place) for check in failed(copied))
    with pytest.raises(DataError, match="do not belong together"):
        trace(copied, [make("id", "doc-1")])


def test_verify_finds_a_text_in_two_generations(copied: Path) -> None:
    shutil.rmtree(copied / "generation-0003")
    shutil.copytree(copied / "generation-0002", copied / "generation-0003")
    listed = generations.listed(copied)
    entries = [*listed[:2], generations.Listed("generation-0003", listed[1].checksum)]
    (copied / generations.FILE_NAME).write_bytes(generations.encode(generations.GenerationList(entries)))
    assert [check.name for check in failed(copied)] == ["generations disjoint"]


# What refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seq_len": 64}, "seq_len is"),
        ({"dedupe__bands": 9}, "dedupe.bands is 16 in .*, and 9 was given"),
        ({"format": "corpus"}, 'format is "sample" in'),
        ({"run__out": "elsewhere"}, "cannot be given"),
        ({"tokenizer__name": str(Path(__file__).parent.parent / "none.json")}, "none.json"),
    ],
    ids=str,
)
def test_settings_of_the_dataset_stay(
    grown: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=words):
        grow(grown, write(tmp_path / "p3.jsonl", PARTS[3]), **options)


def test_another_tokenizer_is_refused(grown: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    other = Tokenizer(models.BPE({"a": 0, "<|endoftext|>": 1}, []))
    other.pre_tokenizer, other.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    other.add_special_tokens(["<|endoftext|>"])
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(ConfigError) as refused:
        grow(grown, write(tmp_path / "p3.jsonl", PARTS[3]), tokenizer__name=str(tmp_path / "other.json"))
    assert "tokenizer" in str(refused.value)


def test_parts_of_a_dataset_are_refused(grown: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "p3.jsonl", PARTS[3])
    with pytest.raises(InputError, match="is a generation of"):
        grow(grown / "generation-0002", source)
    with pytest.raises(InputError, match="is a generation of"):
        forget(grown / "generation-0002", [make("id", "doc-1")])
    with pytest.raises(OutputError, match="documents were added to"):
        first(source, grown, run__overwrite=True)


def test_the_same_source_is_not_added_twice(grown: Path) -> None:
    before = state(grown)
    added = grow(grown, grown.parent / "p2.jsonl")
    assert (added.generation, added.already_done) == (3, True)
    assert state(grown) == before


def test_a_text_on_both_sides_is_refused(tmp_path: Path) -> None:
    root = first(write(tmp_path / "p0.jsonl", PARTS[0]), tmp_path / "out", dedupe__method="none")
    source = tmp_path / "new"
    write(source / "train/a.jsonl", PARTS[3])
    write(source / "validation/b.jsonl", PARTS[0][:1])
    with pytest.raises(InputError, match="is a holdout document, and row"):
        grow(root, source)
    assert len(generations.read(root)) == 1
    assert failed(root) == []


# Unfinished -------------------------------------------------------------------------------------------------


def test_what_is_not_listed_is_no_part(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "p3.jsonl", PARTS[3])
    before = state(copied)

    def die(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adding, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            grow(copied, source)
    assert len(generations.read(copied)) == 3
    assert failed(copied) == []
    assert len(btlm_data.open(copied).generations) == 3
    with pytest.raises(OutputError, match=r"holds an add of .*/p3.jsonl that is not finished.*--overwrite"):
        grow(copied, write(tmp_path / "other.jsonl", PARTS[3][:20]))
    unlisted = state(copied)
    other = ["add", str(copied), "--source", str(tmp_path / "other.jsonl"), "--plan"]
    assert "that is not finished" in str(CliRunner().invoke(cli, other).exception)
    for option in ("--shuffle=documents", "--shuffle=samples"):  # other settings, and the same
        shown = CliRunner().invoke(cli, ["add", str(copied), "--source", str(source), option, "--plan"])
        assert shown.exit_code == 0, shown.output
        assert "another dataset" not in shown.output
    assert state(copied) == unlisted
    assert not grow(copied, source).already_done, "it was not listed before"
    assert len(generations.read(copied)) == 4
    after = state(copied)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("until", ["clean", pytest.param("end", marks=pytest.mark.stress)])
def test_an_unfinished_add_goes_on_with_corrected_settings(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    source = write(tmp_path / "p3.jsonl", PARTS[3])
    shutil.copytree(copied, tmp_path / "other", copy_function=shutil.copy2)
    grow(tmp_path / "other", source, shuffle="documents")
    with monkeypatch.context() as patch:
        patch.setattr(adding, "_publish", lambda _: None)  # as if killed before it
        grow(copied, source, **({} if until == "end" else {"run__stop_after": "clean"}))
    receipts = copied / "generation-0004/.work/receipts/read"
    before = {path.name: path.stat().st_mtime_ns for path in receipts.iterdir()}
    grow(copied, str(source.parent / "." / source.name), shuffle="documents")
    assert before == {path.name: path.stat().st_mtime_ns for path in receipts.iterdir()}
    assert {
        name: entry[2] for name, entry in state(copied).items() if name.endswith((".h5", "dataset.json"))
    } == {
        name: entry[2]
        for name, entry in state(tmp_path / "other").items()
        if name.endswith((".h5", "dataset.json"))
    }
    assert failed(copied) == []


def test_an_add_that_failed_keeps_what_its_message_names(copied: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "p3.jsonl", PARTS[3])
    with pytest.raises(InputError, match="No document is left after cleaning") as refused:
        grow(copied, source, clean__min_chars=100_000)
    [named] = re.findall(r"(\S+examples.jsonl) has examples", str(refused.value))
    assert Path(named).is_file()
    grow(copied, source)
    assert len(generations.read(copied)) == 4
    with pytest.raises(NothingNew):
        grow(copied, write(tmp_path / "p0.jsonl", PARTS[0]))
    assert not (copied / "generation-0005").exists()


@pytest.mark.stress
def test_an_unfinished_add_can_be_replaced(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index, "update", lambda *_: None)
        patch.setattr(adding, "_publish", lambda _: None)
        grow(copied, write(tmp_path / "p3.jsonl", PARTS[3]))
    grow(copied, write(tmp_path / "other.jsonl", PARTS[3][:20]), run__overwrite=True)
    assert failed(copied) == []
    assert len(generations.read(copied)) == 4


# Mixes ------------------------------------------------------------------------------------------------------


def test_a_budget_is_of_one_source(tmp_path: Path) -> None:
    root = first(
        write(tmp_path / "p0.jsonl", PARTS[0]), tmp_path / "out", dedupe__method="exact", mix={"tokens": 3000}
    )
    source = write(tmp_path / "p1.jsonl", PARTS[1])
    with pytest.raises(
        ConfigError, match=r'budget for its own source .*"tokens":3000.*--set mix=\{\} takes all'
    ):
        grow(root, source)
    assert not (root / "generation-0002").exists()
    grow(root, source, mix={})
    grow(root, write(tmp_path / "p2.jsonl", PARTS[2]), mix__tokens=1500)
    assert failed(root) == []
    splits = [dataset.read_set(generation.root).splits["train"] for generation in generations.read(root)]
    assert [len(split.phases) for split in splits] == [1, 0, 1]
    assert abs(splits[2].stream_tokens - 1500) < 500


def test_a_mix_of_the_dataset_may_name_sources_that_a_new_one_has_not(tmp_path: Path) -> None:
    named = [{**document, "meta": {"redpajama_set_name": "Books"}} for document in PARTS[0]]
    root = first(
        write(tmp_path / "p0.jsonl", named), tmp_path / "out", dedupe__method="exact", mix={"Books": 2.0}
    )
    source = write(tmp_path / "p1.jsonl", PARTS[1])
    with pytest.raises(ConfigError, match="names the source"):
        grow(root, source, mix={"Bokos": 2.0})
    grow(root, source)
    assert failed(root) == []


# The command ------------------------------------------------------------------------------------------------


def test_the_command_plans_and_refuses(copied: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "p3.jsonl", PARTS[3])
    before = state(copied)
    shown = CliRunner().invoke(cli, ["add", str(copied), "--source", str(source), "--plan", "--json"])
    assert json.loads(shown.output)["index"]["bytes"] > 0
    assert state(copied) == before
    refused = CliRunner().invoke(cli, ["add", str(copied), "--source", str(source), "--dedupe-index", "x"])
    assert isinstance(refused.exception, BtlmError)
    assert "--dedupe-index cannot be given" in str(refused.exception)
    before = state(copied)
    for words in ("It is generation 4 of", "Nothing to do: this source was added before, as generation 4 of"):
        told = CliRunner().invoke(cli, ["add", str(copied), "--source", str(source), "--workers", "1"]).output
        assert words in told
        assert re.findall("Next: .*", told) == [
            f"Next: btlm-data inspect {copied}; btlm-data verify {copied}"
        ]
