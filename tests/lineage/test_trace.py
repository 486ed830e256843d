"""`btlm-data trace`: documents by all that is known of them, passages of text, and the steps of a run that saw them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

from btlm_data.cli import cli
from btlm_data.errors import BtlmError, ConfigError
from btlm_data.formats import provenance
from btlm_data.formats.shard_formats import vsl
from btlm_data.lineage import trace as tracing
from btlm_data.lineage.answers import Answer
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.queries import make, read_list
from btlm_data.lineage.trace import trace
from btlm_train.data.history import add_part, describe_part
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.lineage.corpora import Truth, prepared, records

Made = tuple[SetView, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["sample", "vsl", "corpus"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    documents = records(150, 5)
    documents[7]["text"] = "short"
    documents[9]["text"] = documents[8]["text"].upper()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vsl, "WINDOW_TOKENS", 900)
        folder = tmp_path_factory.mktemp(request.param)
        of_set = prepared(folder, documents, format=request.param, seq_len=24, shards__samples_per_file=40)
        assert of_set.splits["train"].num_rows
        yield of_set, documents


def one(answers: list[Answer]) -> Answer:
    [answer] = answers
    return answer


def test_documents_are_found_by_id_url_hash_file_and_line(made: Made) -> None:
    of_set, documents = made
    truth = Truth(of_set, "train", documents)
    for row in random.Random(1).sample(truth.rows, 8):
        record = documents[row["line"]]
        digest = xxhash.xxh3_128_hexdigest(record["text"].encode())
        asked = [
            make("id", record["id"]),
            make("url", record["url"]),
            make("line", f"docs.jsonl:{row['line'] + 1}"),
            make("id", f"docs.jsonl#{row['offset']}"),
            make("any", record["id"]),
        ]
        answers = trace(of_set.root, asked)
        for answer in answers:
            assert [(d.document, d.id, d.line) for d in answer.documents] == [
                (row["row"], record["id"], row["line"] + 1)
            ]
            assert answer.documents[0].fields == {"url": record["url"]}
            assert not answer.dropped
        by_hash = one(trace(of_set.root, [make("hash", digest)]))
        assert row["row"] in [d.document for d in by_hash.documents]
        assert all(d.hash == digest for d in by_hash.documents)


def test_documents_that_left_are_answered_with_where_and_why(
    made: Made,
) -> None:
    of_set, documents = made
    short, double, unknown = trace(
        of_set.root, [make("id", "doc-7"), make("url", documents[9]["url"]), make("id", "doc-x")]
    )
    assert [(d.stage, d.reason, d.line) for d in short.dropped] == [("clean", "too_short", 8)]
    [gone] = double.dropped
    assert (gone.stage, gone.reason) == ("dedupe", "exact_duplicate")
    kept = one(trace(of_set.root, [make("id", "doc-8")])).documents[0]
    assert gone.kept == [f"docs.jsonl#{kept.offset}"]
    assert gone.detail in (None, "similarity 1.000")
    assert not unknown.documents
    assert "was not made from it" in (unknown.note or "")


def test_passages_are_found_wherever_they_begin(made: Made) -> None:
    of_set, documents = made
    truth = Truth(of_set, "train", documents)
    texts = {row["row"]: truth.texts[row["id"]].encode() for row in truth.rows}
    drawn = random.Random(3)
    passages = []
    for _ in range(60):
        text = drawn.choice(list(texts.values())).decode()
        size = drawn.choice([8, 12, 30, 100, len(text)])
        begin = drawn.randrange(max(1, len(text) - size + 1))
        if len(text[begin : begin + size]) >= 8:
            passages.append(text[begin : begin + size])
    passages += ["not in any document", documents[7]["text"] + "er than that"]
    answers = trace(of_set.root, [make("text", passage) for passage in passages])
    for passage, answer in zip(passages, answers, strict=True):
        data = passage.encode()
        expected = {row for row, text in texts.items() if data in text}
        assert {d.document for d in answer.documents} == expected, passage
        for document in answer.documents:
            assert document.passage is not None
            tokens = truth.tokens[document.document]
            first, last = document.passage
            assert data in of_set.tokenizer.decode(tokens[first:last]).encode()


def test_samples_give_their_documents_and_texts(made: Made) -> None:
    of_set, documents = made
    truth = Truth(of_set, "train", documents)
    tokenizer = of_set.tokenizer
    number = 3
    answer = one(trace(of_set.root, [make("sample", str(number))], texts=True))
    for document in answer.documents:
        for place in document.places:
            tokens = truth.tokens[document.document][slice(*place.tokens)]
            kept = [token for token in tokens if token != truth.eos]
            assert place.text == tokenizer.decode(kept)
    if truth.view.is_corpus:
        return
    shard, row = truth.view.shard_of(number)
    same = one(trace(of_set.root, [make("row", f"{truth.view.entry.files[shard].name}:{row}")], texts=True))
    assert same.documents == answer.documents


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_run_says_at_which_steps_documents_were_seen(made: Made, tmp_path: Path, shuffle: bool) -> None:
    of_set, _ = made
    view = of_set.splits["train"]
    length = 20 if view.is_corpus else 24
    config: dict[str, Any] = {"data_dir": str(of_set.root / "train"), "shuffle": shuffle, "batch_size": 7}
    config |= {"max_sequence_length": length} if view.is_corpus else {}
    delivered: dict[tuple[int, int], list[list[int]]] = {}
    steps, state = 0, None
    for ranks, count in ((1, 5), (2, 30)):  # a run of 5 steps, continued on two ranks over several epochs
        loaders = [
            GptHDF5MapDataProcessor(config).create_dataloader(rank=r, world_size=ranks) for r in range(ranks)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        add_part(tmp_path, "c" * 32, describe_part(loaders[0], steps, steps + count))
        for rank, loader in enumerate(loaders):
            step = steps
            while step < steps + count:
                for batch in loader:
                    delivered[step, rank] = batch["input_ids"].tolist()
                    step += 1
                    if step == steps + count:
                        break
        state, steps = loaders[0].state_dict(), steps + count
    names = [row["id"] for row in view.table.described(range(view.table.num_rows))]
    answers = trace(of_set.root, [make("id", name) for name in names], run=tmp_path)
    told: set[tuple[int, int, int]] = set()
    for answer in answers:
        for document in answer.documents:
            for place in document.places:
                assert place.seen is not None
                for sighting in place.seen:
                    assert not sighting.done  # there is no checkpoint
                    told.add((sighting.step, sighting.rank, sighting.place))
                    first = sum(
                        len(delivered.get((sighting.step, rank), [])) for rank in range(sighting.rank)
                    )
                    ids = delivered[sighting.step, sighting.rank][sighting.place - first]
                    if place.sample is not None:
                        assert ids == np.asarray(read(view, place.shard, place.row)[0]).tolist()
    everything = {
        (step, rank, place + sum(len(delivered.get((step, r), [])) for r in range(rank)))
        for (step, rank), rows in delivered.items()
        for place in range(len(rows))
    }
    assert told == everything
    # And the other way: the documents of a step are those whose places it saw.
    for step in (0, 4, 5, steps - 1):
        of_step = tracing.batch(tmp_path, step)
        assert {(step, rank, place) for rank, place, _ in of_step} == {
            at for at in everything if at[0] == step
        }
    with pytest.raises(ConfigError, match=r"has no step 35"):
        tracing.batch(tmp_path, 35)


def read(view: Any, shard: str, row: int) -> Any:
    from btlm_data.formats.shard_formats.reader import read_rows

    return read_rows(Path(shard), row, row + 1)[0]


def test_a_list_of_questions_and_what_is_wrong_with_one(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        '# asked by mail\n\n#\n#17\ndoc-1\n{"text": "eight bytes"}\n{"file": "a.jsonl", "line": 3}\n{"sample": 4}\n'
    )
    asked = read_list(path)
    assert [(q.kind, q.value) for q in asked] == [
        ("any", "#17"), ("any", "doc-1"), ("text", "eight bytes"), ("line", "a.jsonl:3"), ("sample", "4"),
    ]  # fmt: skip
    for line, message in (
        ('{"texts": "x"}', r"line 1: it has the keys texts"),
        ("{broken", r"line 1: it is no JSON object"),
        ('{"sample": "x"}', r"line 1: 'x' is no sample"),
        ("# nothing", r"asks nothing"),
    ):
        path.write_text(line + "\n")
        with pytest.raises(ConfigError, match=message):
            read_list(path)
    for kind, value in (
        ("tokens", "5-5"),
        ("tokens", "a"),
        ("row", "17"),
        ("hash", "12"),
        ("line", "a:0"),
        ("id", ""),
    ):
        with pytest.raises(ConfigError):
            make(kind, value)  # type: ignore[arg-type]


def test_the_command_answers_people_and_programs(made: Made, tmp_path: Path) -> None:
    of_set, documents = made
    listed = tmp_path / "list.txt"
    listed.write_text("doc-1\ndoc-7\n")

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["trace", str(of_set.root), *arguments], catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    told = invoke("--list", str(listed), "--id", "doc-nowhere")
    assert "train document" in told
    assert "left at clean: too_short" in told
    assert "not found: the dataset was not made from it" in told
    values = [
        json.loads(line)
        for line in invoke("--json", "--url", documents[1]["url"], "--sample", "0").splitlines()
    ]
    assert [value["query"] for value in values] == ["sample", "url"]
    assert values[1]["documents"][0]["id"] == "doc-1"
    with pytest.raises(BtlmError, match="--file and --line belong together"):
        invoke("--file", "docs.jsonl")
    with pytest.raises(BtlmError, match="Nothing is asked"):
        invoke()
    with pytest.raises(BtlmError, match=r"has no data\.json"):
        invoke("--id", "doc-1", "--run", str(tmp_path))


def test_several_sets_are_asked_together(tmp_path: Path) -> None:
    documents = records(60, 2)
    prepared_sets(tmp_path, documents)
    answer = one(trace(tmp_path / "out", [make("id", "doc-3")]))
    assert {d.set for d in answer.documents} == {"msl16", "msl32"}
    assert provenance.read(tmp_path / "out") is not None


def prepared_sets(folder: Path, documents: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="too many values"):  # there are two sets, not one
        prepared(folder, documents, seq_len=[16, 32])
    assert len(open_dataset(folder / "out")) == 2
