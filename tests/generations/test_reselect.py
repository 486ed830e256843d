"""`btlm-data reselect` of a dataset that grew: every generation is what it would be by itself."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from btlm_data.errors import InputError
from btlm_data.formats import generations
from btlm_data.formats.generations import folder_of
from btlm_data.inspection import verify
from btlm_data.lineage.queries import make
from btlm_data.lineage.reselect import REASON, reselect
from btlm_data.lineage.trace import trace
from tests.generations.corpora import PARTS, first, grow, kept, state, write

CHARS = 345
WHERE = "id NOT LIKE '%3' AND chars > 300"


def test_it_is_what_prepare_and_add_make_with_the_same_filter(tmp_path: Path) -> None:
    """Of documents without copies: deduplication comes before, and has compared what is left out too."""
    drawn = random.Random(5)
    documents = [
        {
            "text": " ".join(f"w{drawn.randrange(10**6)}" for _ in range(40 + n % 10)),
            "id": f"doc-{n}",
            "url": "u",
        }
        for n in range(60)
    ]
    sources = [
        write(tmp_path / f"p{number}.jsonl", documents[30 * number : 30 * number + 30]) for number in range(2)
    ]
    filters: dict[str, list[dict[str, int]]] = {"whole": [], "expected": [{"max_chars": CHARS}]}
    roots = {
        name: first(sources[0], tmp_path / name, clean__filters=rules) for name, rules in filters.items()
    }
    for root in roots.values():
        for source in sources[1:]:
            grow(root, source)
    before = state(roots["whole"])
    outcome = reselect(roots["whole"], f"chars <= {CHARS}", tmp_path / "new")
    assert state(roots["whole"]) == before
    assert outcome.documents == len(kept(roots["expected"])) > 20
    assert outcome.left_out == len(kept(roots["whole"])) - outcome.documents > 20
    assert kept(tmp_path / "new") == kept(roots["expected"])
    shards = sorted(path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*.h5"))
    assert shards == sorted(path.relative_to(roots["expected"]) for path in roots["expected"].rglob("*.h5"))
    assert {shard.parts[0] for shard in shards} == {"train", folder_of(2)}
    for shard in shards:
        assert (tmp_path / "new" / shard).read_bytes() == (roots["expected"] / shard).read_bytes(), shard


def test_every_reader_takes_it_as_one_dataset(grown: Path, tmp_path: Path) -> None:
    reselect(grown, WHERE, tmp_path / "new")
    assert [check for check in verify.verify(tmp_path / "new", lambda _: None) if check.ok is False] == []
    assert len(generations.read(tmp_path / "new")) == 3
    assert not (tmp_path / "new" / generations.INDEX_FOLDER).exists()
    for number in (2, 3):  # each by itself is the same
        folder = folder_of(number)
        reselect(grown / folder, WHERE, tmp_path / f"alone{number}")
        for path in (tmp_path / f"alone{number}").rglob("*.h5"):
            name = path.relative_to(tmp_path / f"alone{number}")
            assert (tmp_path / "new" / folder / name).read_bytes() == path.read_bytes()
    gone = {row["id"] for row in pq.read_table(grown / folder_of(2) / "train/documents.parquet").to_pylist()}
    gone -= set(kept(tmp_path / "new"))
    assert gone
    answers = trace(tmp_path / "new", [make("id", name) for name in sorted(gone)])
    assert {(left.generation, left.reason) for answer in answers for left in answer.dropped} == {(2, REASON)}
    prepared = grow(tmp_path / "new", write(tmp_path / "p3.jsonl", PARTS[3]))  # and it goes on to grow
    assert prepared.generation == 4
    assert [check for check in verify.verify(tmp_path / "new", lambda _: None) if check.ok is False] == []


def test_what_cannot_be_is_refused_in_words(grown: Path, tmp_path: Path) -> None:
    some = kept(grown)[0]
    with pytest.raises(InputError, match=rf"No document of .*{folder_of(2)}/train satisfies --where"):
        reselect(grown, f"id = '{some}'", tmp_path / "new")
    with pytest.raises(InputError, match=r"has 3 generations, each with the order of its own documents"):
        reselect(grown, None, tmp_path / "new", {"docs": 2})
    assert not (tmp_path / "new").exists()
    assert list(tmp_path.iterdir()) == []
