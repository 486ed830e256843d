"""`btlm-data index`: with it, passages are found as without it; and documents that have words in common with a file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from btlm_data.cli import cli
from btlm_data.errors import DataError, InputError
from btlm_data.formats import text_index as stored
from btlm_data.formats.shard_formats import vsl
from btlm_data.formats.shard_formats.reader import read_rows
from btlm_data.inspection import verify
from btlm_data.lineage import render, text_index
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.forget import forget
from btlm_data.lineage.passages import find_passages, passage_of, why_read_whole
from btlm_data.lineage.queries import make
from btlm_data.lineage.trace import trace
from btlm_train.data.history import add_part, describe_part
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.lineage.corpora import Killed, prepared, records

Made = tuple[SetView, list[str]]


def documents() -> list[dict[str, Any]]:
    """Words, marks and capitals; some say in part the same, and one is written in two ways."""
    drawn, found = random.Random(3), records(90, 3)
    for number, record in enumerate(found):
        words = record["text"].split()
        for k in drawn.sample(range(len(words)), len(words) // 4):
            words[k] = drawn.choice([words[k].upper(), f"({words[k]})", f"{words[k]},", "–", "ΣΑΣ", "naïve"])
        if number % 3 == 1:
            words[1:1] = found[number - 1]["text"].split()[5:30]
        record["text"] = drawn.choice([" ", "  ", "\n", " \t"]).join(words)
    return found


@pytest.fixture(scope="module", params=["sample", "vsl", "corpus"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        yield _made(tmp_path_factory.mktemp(request.param), request.param, patch)


@pytest.fixture(scope="module")
def of_samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        yield _made(tmp_path_factory.mktemp("samples"), "sample", patch)


def _made(folder: Path, shard_format: str, patch: pytest.MonkeyPatch) -> Made:
    patch.setattr(vsl, "WINDOW_TOKENS", 900)
    patch.setattr(text_index, "_BLOCK_TOKENS", 500)
    patch.setattr(text_index, "_PART_ENTRIES", 300)
    chosen = documents()
    of_set = prepared(folder, chosen, format=shard_format, seq_len=24, shards__samples_per_file=40)
    assert text_index.make(of_set.root).made == 1
    return open_dataset(of_set.root)[0], [record["text"] for record in chosen]


def passages(texts: list[str], count: int) -> list[str]:
    drawn, found = random.Random(8), list[str]()
    while len(found) < count:
        text = drawn.choice(texts)
        start = drawn.randrange(len(text))
        passage = text[start : start + drawn.randrange(20, 300)]
        if len(passage.encode()) >= 8 and passage.strip():
            found.append(passage)
    return found


def test_what_is_found_is_what_reading_everything_finds(made: Made) -> None:
    of_set, texts = made
    asked = [passage_of(text, of_set) for text in [*passages(texts, 50), " ".join(["not there"] * 20)]]
    with_index = find_passages(of_set, list(of_set.splits), asked)
    served = [passage for passage in asked if why_read_whole(of_set, passage) is None]
    assert 10 < len(served) < len(asked)
    aside = of_set.root / "aside"
    (of_set.root / stored.FOLDER).rename(aside)
    try:
        assert why_read_whole(of_set, asked[0]) is None
        assert find_passages(of_set, list(of_set.splits), asked) == with_index
    finally:
        aside.rename(of_set.root / stored.FOLDER)
    assert sum(map(len, with_index.values())) > 40


def test_documents_that_have_words_in_common_with_a_file(of_samples: Made, tmp_path: Path) -> None:
    of_set, texts = of_samples
    drawn = random.Random(4)
    chosen = [texts[k].split() for k in drawn.sample(range(len(texts)), 12)]
    asked = [" ".join(words[2 : 2 + drawn.choice([12, 13, 20])]).upper() for words in chosen]
    file = tmp_path / "evaluation.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in asked))

    def grams(text: str) -> set[str]:
        plain = "".join(c for c in text.lower() if c not in "(),").split()
        return {" ".join(plain[k : k + 13]) for k in range(len(plain) - 12)}

    of_file = set().union(*map(grams, asked))
    expected = {k for k, text in enumerate(texts) if grams(text) & of_file}
    [answer] = trace(of_set.root, [make("ngrams", str(file))])
    assert {document.line - 1 for document in answer.documents} == expected & {
        row["line"]
        for view in of_set.splits.values()
        for row in view.table.described(range(view.table.num_rows))
    }
    assert len(answer.documents) >= 3
    for document in answer.documents:
        assert document.shared is not None
        assert f"of {file}" in document.shared
        assert document.places


def test_the_same_bytes_every_time_and_nothing_of_a_killed_call(
    of_samples: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_set, _ = of_samples
    folder, work = of_set.root / stored.FOLDER, of_set.root / stored.WORK_FOLDER
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) > 2
    assert text_index.make(of_set.root).made == 0
    shutil.rmtree(folder)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(text_index, "_sorted_part", killed)
        with pytest.raises(Killed):
            text_index.make(of_set.root)
    assert work.is_dir()
    assert not folder.exists()
    monkeypatch.setattr(text_index, "_BLOCK_TOKENS", 170)
    monkeypatch.setattr(text_index, "_PART_ENTRIES", 300)
    text_index.make(of_set.root)
    assert not work.exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_damage_is_named_and_an_index_of_another_dataset_is_not_used(
    of_samples: Made, tmp_path: Path
) -> None:
    of_set, texts = of_samples
    root = tmp_path / "copy"
    shutil.copytree(of_set.root, root)
    assert [check.ok for check in verify.verify(root, lambda _: None) if check.name == "text index"] == [True]
    copied = open_dataset(root)[0]
    passage = passage_of(max(texts, key=len), copied)
    for part in sorted((root / stored.FOLDER).glob("part-*")):
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    with pytest.raises(DataError, match="text index is damaged"):
        find_passages(copied, ["train"], [passage])
    assert [check.ok for check in verify.verify(root, lambda _: None) if check.name == "text index"] == [
        False
    ]
    (root / stored.FOLDER / stored.FILE_NAME).write_text("{}")
    assert [check.ok for check in verify.verify(root, lambda _: None) if check.name == "text index"] == [
        False
    ]
    assert text_index.make(root).made == 1
    value = stored.read(root)
    assert value is not None
    other = stored.TextIndexFile("0" * 64, value.words, value.grams, value.splits, value.parts)
    (root / stored.FOLDER / stored.FILE_NAME).write_bytes(stored.encode(other))
    assert [check.ok for check in verify.verify(root, lambda _: None) if check.name == "text index"] == [None]
    assert text_index.TextIndex.of(copied) is None
    assert "another dataset.json" in (why_read_whole(copied, passage) or "")
    assert find_passages(copied, ["train"], [passage]) == find_passages(of_set, ["train"], [passage])


@pytest.mark.parametrize("how", ["mask", "remove"])
def test_what_was_forgotten_is_not_found_and_in_no_index(of_samples: Made, tmp_path: Path, how: Any) -> None:
    of_set, texts = of_samples
    root = tmp_path / "copy"
    shutil.copytree(of_set.root, root)
    gone = max(range(len(texts)), key=lambda k: len(texts[k]))
    outcome = forget(root, [make("text", texts[gone])], how=how)
    assert outcome.documents == 1
    assert "The index is removed." in " ".join(render.forgotten_lines(outcome, root))
    assert not (root / stored.FOLDER).exists()
    text_index.make(root)
    changed = open_dataset(root)[0]
    asked = [texts[gone], *texts[:12]]
    sought = [passage_of(text, of_set) for text in asked]
    left, before = (
        {hit.query for hits in find_passages(each, ["train"], sought).values() for hit in hits}
        for each in (changed, of_set)
    )
    assert left == before - {k for k in before if asked[k] == texts[gone]}
    assert 0 in before
    assert len(left) >= 8


def test_a_run_says_which_steps_saw_shared_words(of_samples: Made, tmp_path: Path) -> None:
    of_set, texts = of_samples
    config = {"data_dir": str(of_set.root / "train"), "shuffle": True, "batch_size": 5}
    loader = GptHDF5MapDataProcessor(config).create_dataloader()
    run, file = tmp_path / "run", tmp_path / "evaluation.jsonl"
    run.mkdir()
    add_part(run, "c" * 32, describe_part(loader, 0, len(loader)))
    batches = [batch["input_ids"].tolist() for batch in loader]
    file.write_text(json.dumps({"question": max(texts, key=len)}) + "\n")
    [answer] = trace(of_set.root, [make("ngrams", str(file))], split="train", run=run)
    assert answer.documents
    sightings = 0
    for document in answer.documents:
        [[same]] = [found.documents for found in trace(of_set.root, [make("id", document.id)], run=run)]
        assert document.places == same.places
        for place in document.places:
            ids = read_rows(of_set.root / "train" / place.shard, place.row, place.row + 1)[0, 0].tolist()
            seen = [(sighting.step, sighting.place) for sighting in place.seen or []]
            assert seen == [
                (step, k) for step, batch in enumerate(batches) for k, row in enumerate(batch) if row == ids
            ]
            sightings += len(seen)
    assert sightings > 0
    command = ["trace", str(of_set.root), "--ngrams-of", str(file), "--split", "train", "--run", str(run)]
    shown = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "n-grams, the first: " in shown
    assert f"step {min(s.step for d in answer.documents for p in d.places for s in p.seen or [])}" in shown
    counted = CliRunner().invoke(cli, [*command, "--count"], catch_exceptions=False).output
    places = sum(len(document.places) for document in answer.documents)
    assert counted.startswith(f"{len(answer.documents)} documents, {places} places: n-grams of ")


def test_on_the_command_line(of_samples: Made, tmp_path: Path) -> None:
    of_set, texts = of_samples
    root = tmp_path / "copy"
    shutil.copytree(of_set.root, root)

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, list(words), catch_exceptions=False)

    long, short = max(texts, key=len), max(texts, key=len)[:30]
    keys, words = run("index", str(root)).output.splitlines()
    assert keys.startswith("1 key index made: ")
    assert words.startswith("No text index made (1 there already): ")
    shutil.rmtree(root / stored.FOLDER)
    result = json.loads(run("index", str(root), "--json").output)
    assert (result["keys"]["made"], result["keys"]["present"], result["text"]["made"]) == (0, 1, 1)
    assert json.loads(run("index", str(root), "--only", "keys", "--json").output).keys() == {"keys"}
    assert "too few for the text index" in run("trace", str(root), "--text", short).output
    assert "too few" not in run("trace", str(root), "--text", long).output
    assert run("trace", str(root), "--text", long, "--count").output.startswith(
        "1 document, 1 place: passage"
    )
    evaluation = tmp_path / "file.jsonl"
    evaluation.write_text(json.dumps({"text": long}) + "\n")
    assert "n-grams, the first: " in run("trace", str(root), "--ngrams-of", str(evaluation)).output
    shutil.rmtree(root / stored.FOLDER)
    with pytest.raises(InputError, match="has no text index"):
        trace(root, [make("ngrams", str(evaluation))])
    evaluation.write_text('{"text": "a few words"}\n')
    with pytest.raises(InputError, match="--ngrams-of: nothing could ever match"):
        trace(root, [make("ngrams", str(evaluation))])
