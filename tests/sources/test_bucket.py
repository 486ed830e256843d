from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from btlm_data.errors import ConfigError, InputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files

RunMaker = Callable[..., Run]


def test_an_s3_folder_is_listed_and_read(bucket: Any, make_run: RunMaker) -> None:
    body = random.Random(1).randbytes(9 * 2**20)  # more than one range
    bucket.pipe_file("corpus/mine/train/b.jsonl", body)
    bucket.pipe_file("corpus/mine/validation/a.jsonl.zst", b"x")
    bucket.pipe_file("corpus/mine/notes.md", b"x")
    run = make_run(cache_size=2 * 10**7)
    listing = list_files(SourceSettings(name="s3://corpus/mine"), run)
    assert [(f.name, f.split, f.size, f.url) for f in listing.files] == [
        ("train/b.jsonl", "train", len(body), "s3://corpus/mine/train/b.jsonl"),
        ("validation/a.jsonl.zst", "validation", 1, "s3://corpus/mine/validation/a.jsonl.zst"),
    ]
    with Fetcher.of(run).local_copy(listing.files[0]) as path:
        assert path.read_bytes() == body
    assert [f.name for f in list_files(SourceSettings(name="s3://corpus/mine/*/*.jsonl"), run).files] == [
        "train/b.jsonl"
    ]
    assert [f.name for f in list_files(SourceSettings(name="s3://corpus/mine/train/b.jsonl"), run).files] == [
        "b.jsonl"
    ]


def test_an_s3_redpajama_folder_gets_its_names(bucket: Any, make_run: RunMaker) -> None:
    for name in ("arxiv/a.jsonl", "stackexchange/stackexchange.jsonl"):
        bucket.pipe_file(f"corpus/{name}", b"x")
    listing = list_files(SourceSettings(name="s3://corpus", exclude_sources=("RedPajamaArXiv",)), make_run())
    assert [(f.name, f.source) for f in listing.files] == [
        ("stackexchange/stackexchange.jsonl", "RedPajamaStackExchange")
    ]


def test_an_object_that_changed_is_an_error(bucket: Any, make_run: RunMaker) -> None:
    bucket.pipe_file("corpus/a.jsonl", b"one\n")
    run = make_run()
    (file,) = list_files(SourceSettings(name="s3://corpus"), run).files
    bucket.pipe_file("corpus/a.jsonl", b"two\n")
    with pytest.raises(InputError, match="has changed since"), Fetcher.of(run).local_copy(file):
        pass
    bucket.rm_file("corpus/a.jsonl")
    with pytest.raises(SourceUnavailable, match="gone now"), Fetcher.of(run).local_copy(file):
        pass


def test_what_is_not_there_is_said_plainly(
    bucket: Any, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(retries=0)
    with pytest.raises(SourceUnavailable, match="No corpus file"):
        list_files(SourceSettings(name="s3://corpus/nothing"), run)
    with pytest.raises(ConfigError, match="cannot be opened"):
        list_files(SourceSettings(name="nosuch://corpus/x"), run)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        list_files(SourceSettings(name="gs://corpus/x"), run)
