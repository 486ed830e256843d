"""The filter `presidio`: with the real Presidio, and a pipeline of spaCy that knows two names."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.cleaning.filters import plan_filters
from btlm_data.cleaning.rules import KINDS
from btlm_data.cleaning.rules import presidio as module
from btlm_data.errors import ConfigError
from btlm_data.formats import dataset
from tests.stages.runs import prepare

PIPELINE = "xx_two_names"
TEXT = "Ann Lee and Jürgen Groß pay with 4111 1111 1111 1111, or from GB33 BUKB 2020 1555 5555 55. Not 4111 1111 1111 1112."


class Place(NamedTuple):
    entity_type: str
    start: int
    end: int
    score: float


def rule(**parameters: Any) -> Any:
    pytest.importorskip("presidio_analyzer")
    filter_ = KINDS["presidio"].model_validate(parameters)
    return filter_.rule(filter_.resource())


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed pipeline that takes two names for persons, whatever is around them."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": name} for name in ("Ann Lee", "Jürgen Groß")])
    folder = tmp_path / "packages"
    (folder / PIPELINE).mkdir(parents=True)
    nlp.to_disk(folder / PIPELINE / "data")
    (folder / PIPELINE / "__init__.py").write_text(
        "from pathlib import Path\nfrom spacy.util import load_model_from_path\n"
        "def load(**overrides):\n    return load_model_from_path(Path(__file__).parent / 'data', **overrides)\n"
    )
    (folder / f"{PIPELINE}-1.5.dist-info").mkdir()
    (folder / f"{PIPELINE}-1.5.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {PIPELINE}\nVersion: 1.5\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return PIPELINE


def test_patterns_and_checksums_decide_without_a_pipeline() -> None:
    verdict, text = rule(entities=["CREDIT_CARD", "IBAN_CODE"])(TEXT, "Web")
    assert verdict is None
    assert text == (
        "Ann Lee and Jürgen Groß pay with |||CREDIT_CARD|||, or from |||IBAN_CODE|||. Not 4111 1111 1111 1112."
    )
    _, text = rule(replacement="<{entity}>")("to joe@example.co.uk, please", "")
    assert text == "to <EMAIL_ADDRESS>, please"
    assert rule()("Nothing is here.", "") == (None, "Nothing is here.")


def test_a_pipeline_recognises_names_and_is_part_of_the_run(pipeline: str) -> None:
    decide = rule(entities=["PERSON"], model=pipeline)
    assert decide(TEXT, "")[1].startswith("|||PERSON||| and |||PERSON||| pay with 4111")
    resource = KINDS["presidio"].model_validate({"model": pipeline}).resource()
    assert resource[pipeline] == "1.5"
    assert set(resource) == {pipeline, *module._PACKAGES}


def test_masked_before_tokenizing_with_any_number_of_workers(pipeline: str, tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": f"{i} {(TEXT + chr(10)) * 3}"}) + "\n" for i in range(12)))
    settings = {"seq_len": 64, "dedupe__method": "none", "clean__filters": [{"presidio": {
        "model": pipeline, "entities": ["PERSON", "CREDIT_CARD"]}}]}  # fmt: skip
    prepare(source, tmp_path / "one", run__workers=1, **settings)
    prepare(source, tmp_path / "two", run__workers=2, **settings)
    one, two = (dataset.read_set(tmp_path / name) for name in ("one", "two"))
    assert [file.sha256 for file in one.splits["train"].files] == [
        file.sha256 for file in two.splits["train"].files
    ]
    hashes = pq.read_table(tmp_path / "one/train" / dataset.DOCUMENTS).column("hash").to_pylist()
    named = "|||PERSON||| and |||PERSON||| pay with |||CREDIT_CARD|||" + TEXT.partition("1111 1111 1111")[2]
    assert set(hashes) == {xxhash.xxh3_128_digest(f"{i} {(named + chr(10)) * 3}".encode()) for i in range(12)}


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("presidio_analyzer")
    import socket

    def refused(*_: object) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert rule()("joe@example.co.uk", "")[1] == "|||EMAIL_ADDRESS|||"


def test_long_texts_are_looked_at_in_pieces_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_CHARS", 50)
    text = "".join(f"Line {i} of joe{i}@example.org.\n" for i in range(20)) + "x" * 130
    assert "".join(module._pieces(text)) == text
    assert max(map(len, module._pieces(text))) <= 50
    _, masked = rule()(text, "")
    assert masked == "".join(f"Line {i} of |||EMAIL_ADDRESS|||.\n" for i in range(20)) + "x" * 130


@given(
    text=st.text(max_size=40),
    raw=st.lists(
        st.tuples(
            st.sampled_from("AB"), st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.4, 0.9, 1.0])
        ),
        max_size=6,
    ),
)
def test_what_overlaps_is_masked_once(text: str, raw: list[tuple[str, int, int, float]]) -> None:
    places = [
        Place(kind, min(a, b, len(text)), min(max(a, b), len(text)), score) for kind, a, b, score in raw
    ]
    kept: list[Place] = []
    for place in sorted(places, key=lambda p: (-p.score, p.start - p.end, p.start, p.entity_type)):
        if place.start < place.end and not any(
            set(range(*place[1:3])) & set(range(*other[1:3])) for other in kept
        ):
            kept.append(place)
    expected = list(text)
    for place in kept:
        expected[place.start : place.end] = [f"<{place.entity_type}>"] + [""] * (place.end - place.start - 1)
    assert module.masked(text, places, "<{entity}>") == "".join(expected)
    assert module.masked(text, places[::-1], "<{entity}>") == "".join(expected)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"entities": ["CREDITCARD"]}, "no 'CREDITCARD' in the language 'en'; did you mean CREDIT_CARD"),
        ({"entities": ["PERSON"]}, "PERSON can only be recognised by a pipeline of spaCy"),
        (
            {"model": "en_core_web_none"},
            "en_core_web_none is not installed. .*spacy download en_core_web_none",
        ),
        ({"language": "tlh"}, "spaCy cannot load the language 'tlh'"),
        ({"model": "../elsewhere"}, "model"),
        ({"min_score": 2.0}, "min_score"),
        ({"entities": []}, "entities"),
    ],
)
def test_what_cannot_be_is_said_when_the_run_is_planned(parameters: dict[str, Any], says: str) -> None:
    pytest.importorskip("presidio_analyzer")
    with pytest.raises(ConfigError, match=says):
        plan_filters([{"presidio": parameters}])


def test_a_pipeline_of_another_language_is_refused(pipeline: str) -> None:
    with pytest.raises(ConfigError, match="is for the language 'en', not 'de'"):
        plan_filters([{"presidio": {"language": "de", "model": pipeline}}])


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"presidio needs the package presidio-analyzer.*\[presidio\]"):
        plan_filters([{"presidio": {}}])
    monkeypatch.undo()
    for name in ("presidio_analyzer", "spacy", "tldextract"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs the package \w+, which is not installed.*\[presidio\]"):
        KINDS["presidio"]().rule({})
