"""Answers of servers that mean no good, or are broken: an error in words, nothing on disk, no end that never
comes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import BtlmError
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.names import is_safe_name
from tests.hub import Fault, Hub

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.one_of(
    st.text(max_size=20),
    st.builds(
        "/".join,
        st.lists(st.sampled_from(["..", ".", "", "a", "train", "\u202e", "\x1b[2J", "x.jsonl"]), max_size=5),
    ),
    st.just("train/a.jsonl"),
)
ENTRIES = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["file", "directory", 3, None])},
        optional={
            "path": st.one_of(NAMES, VALUES),
            "size": st.one_of(st.integers(-5, 10**30), VALUES),
            "oid": st.one_of(st.just("0" * 40), VALUES),
            "lfs": st.one_of(
                VALUES,
                st.fixed_dictionaries(
                    {
                        "oid": st.text("0aZ/.", max_size=64) | VALUES,
                        "size": VALUES | st.just(5),
                        "pointerSize": VALUES,
                    }
                ),
            ),
        },
    ),
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def evil() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def at(evil: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """List a source of the hub, and read what the listing names."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", evil.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run = Run(cache_dir=str(tmp_path / "cache"), cache_size=10**6, timeout=2, retries=1, retry_pause=0.001)

    def read(source: str) -> None:
        try:
            listing = list_files(SourceSettings(name=source), run)
            assert all(is_safe_name(file.name) and file.size >= 0 for file in listing.files)
            for file in listing.files[:2]:
                with Fetcher.of(run, listing).local_copy(file) as path:
                    assert path.is_relative_to(tmp_path / "cache")
            message = ""
        except BtlmError as error:
            message = str(error)
        assert not {"\x1b", "\x00", "\u202e"} & set(message)
        assert not list(folder.iterdir())

    yield read
    from huggingface_hub import close_session

    close_session()


@QUICK
@given(tree=st.one_of(st.lists(ENTRIES, max_size=4), VALUES))
def test_a_listing_of_anything(evil: Hub, at: Callable[[str], None], tree: Any) -> None:
    evil.add("org/evil", {"train/a.jsonl": b'{"text": "x"}\n'})
    evil.repositories["org/evil"].commits[:-1] = []
    body = json.dumps(tree).encode()
    evil.faults = [Fault("tree", garbage=body, times=None)]
    at("hf://datasets/org/evil")


@QUICK
@given(
    info=st.one_of(
        VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40), st.just(b"[" * 100_000)
    )
)
def test_an_answer_of_anything(evil: Hub, at: Callable[[str], None], info: bytes) -> None:
    evil.faults = [Fault("info", garbage=info, times=None)]
    at("hf://datasets/org/evil")


@QUICK
@given(
    fields=st.fixed_dictionaries(
        {"id": st.just("org/evil")},
        optional={"sha": VALUES, "gated": VALUES, "siblings": VALUES, "tags": VALUES},
    )
)
def test_facts_of_any_kind(evil: Hub, at: Callable[[str], None], fields: dict[str, Any]) -> None:
    evil.faults = [Fault("info", garbage=json.dumps(fields).encode(), times=None)]
    at("hf://datasets/org/evil")
