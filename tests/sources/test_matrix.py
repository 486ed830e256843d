"""The same files from a folder, a hub, a bucket and a web server: the same documents, splits and bytes.

The long form goes through every pair of format and compression; the short one through each of them once.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import random
import uuid
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import InputError
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.records.compression import COMPRESSIONS
from btlm_data.records.formats import FORMATS, classify
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.names import is_safe_name
from tests.hub import Hub
from tests.sources.test_end_to_end import prepare

SHORT = (".jsonl", ".txt.gz", ".json.zst", ".parquet", ".csv.xz", ".arrow", ".tsv.bz2")
ALL = tuple(
    ending + packing
    for form in FORMATS.values()
    for ending in form.endings
    for packing in ("", *(codec.endings[0] for codec in COMPRESSIONS.values() if form.compressible))
)
LONG = tuple(ending for ending in ALL if ending not in SHORT)
# Every format with every compression, each by its first ending.
PAIRS = tuple(
    form.endings[0] + packing
    for form in FORMATS.values()
    for packing in ("", *(codec.endings[0] for codec in COMPRESSIONS.values() if form.compressible))
)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
NAMES = ("part-0", "sub/part-1", "dev/a", "c4-validation.00000-of-00002", "test")


def corpus(ending: str) -> dict[str, bytes]:
    """A corpus whose files have this ending: three splits, folders, files of other kinds beside them."""
    classified = classify("x" + ending)
    assert classified is not None
    form, packing = classified
    files = {}
    for number, name in enumerate(NAMES):
        files[name + ending] = PACK[packing](encode(form, texts_of(number)))
    return files | {"README.md": b"# a corpus", "_SUCCESS": b"", "b.lz4": b"x", ".git/x.jsonl": b"x"}


def texts_of(number: int) -> list[str]:
    """The documents of the file NAMES[number]."""
    chance = random.Random(number)
    return [" ".join("".join(chance.choices("abcdefghij", k=6)) for _ in range(60)) for _ in range(6)]


def encode(form: str, texts: list[str]) -> bytes:
    """The documents in a record format."""
    buffer = io.BytesIO()
    if form == "parquet":
        pq.write_table(pa.table({"text": texts}), buffer)
    elif form == "arrow":
        table = pa.table({"text": texts})
        with pa.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table)
    elif form == "txt":
        return "\n".join(texts).encode()
    elif form == "json":
        return json.dumps([{"text": text} for text in texts]).encode()
    elif form in ("csv", "tsv"):
        return ("text\n" + "".join(f"{text}\n" for text in texts)).encode()
    elif form in ("warc", "wet"):
        return b"".join(map(_warc_record, texts))
    else:
        assert form == "jsonl", f"{form}: say here how it is written"
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    return buffer.getvalue()


def _warc_record(text: str) -> bytes:
    """A record of plain text
    (https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.0/).
    """
    body = text.encode()
    headers = {
        "WARC-Type": "conversion",
        "WARC-Target-URI": "https://example.org/",
        "WARC-Date": "2024-01-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}>",
        "Content-Type": "text/plain",
        "Content-Length": str(len(body)),
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + body + b"\r\n\r\n"


def listed(source: str, run: Run) -> list[tuple[str, str, int, str, str]]:
    """What decides shards, of every file, and that its bytes are right."""
    listing = list_files(SourceSettings(name=source), run)
    found = []
    for file in listing.files:
        with Fetcher.of(run, listing).local_copy(file) as path:
            found.append((file.name, file.split, len(path.read_bytes()), file.format, file.compression))
    assert {one.reason: one.count for one in listing.left_out} == LEFT_OUT
    return found


LEFT_OUT = {
    "description of the data": 1,
    "bookkeeping files, such as Spark's (name begins with _)": 1,
    "unknown ending .lz4": 1,
    "hidden (name begins with a dot)": 1,
}


@pytest.mark.parametrize("ending", [*SHORT, *(pytest.param(e, marks=pytest.mark.stress) for e in LONG)])
def test_every_place_gives_the_same(
    ending: str, hub: Hub, bucket: Any, tmp_path: Path, make_run: Callable[..., Run]
) -> None:
    files = corpus(ending)
    folder = tmp_path / "corpus"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        bucket.pipe_file(f"corpus/mine/{name}", data)
    hub.add("me/corpus", files)
    run = make_run()
    expected = listed(str(folder), run)
    assert [(name, split) for name, split, *_ in expected] == [
        ("part-0" + ending, "train"),
        ("sub/part-1" + ending, "train"),
        ("c4-validation.00000-of-00002" + ending, "validation"),
        ("dev/a" + ending, "validation"),
        ("test" + ending, "test"),
    ]
    for source in ("hf://datasets/me/corpus", "s3://corpus/mine"):
        assert listed(source, run) == expected
    for source in (f"{folder}/sub", "hf://datasets/me/corpus/sub", "s3://corpus/mine/sub"):
        (file,) = list_files(SourceSettings(name=source), run).files
        assert (file.name, file.split) == ("part-1" + ending, "train")
    one = "c4-validation.00000-of-00002" + ending
    for source in (
        f"{folder}/{one}",
        f"hf://datasets/me/corpus/{one}",
        f"s3://corpus/mine/{one}",
        f"{hub.url}/plain/me/corpus/{one}",
    ):
        (file,) = list_files(SourceSettings(name=source), run).files
        assert (file.name, file.split, file.size) == (one, "train", len(files[one]))
        with Fetcher.of(run).local_copy(file) as path:
            assert path.read_bytes() == files[one]


@pytest.mark.parametrize(
    "ending",
    [
        ".jsonl.zst",
        *(pytest.param(e, marks=pytest.mark.stress) for e in PAIRS if e != ".jsonl.zst"),
    ],
)
def test_every_place_gives_the_same_shards(ending: str, hub: Hub, bucket: Any, tmp_path: Path) -> None:
    """The same bytes from every place; the same documents in the same splits from every format and compression."""
    files = corpus(ending)
    folder = tmp_path / "corpus"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        bucket.pipe_file(f"corpus/mine/{name}", data)
    hub.add("me/corpus", files)
    options = {"cache_dir": str(tmp_path / "cache")}
    expected = prepare(str(folder), tmp_path / "a", **options)
    for split, numbers in {"train": (0, 1), "validation": (2, 3), "test": (4,)}.items():
        texts = [texts_of(number) for number in numbers]
        whole = (
            ["\n".join(of_file) for of_file in texts] if ending.startswith(".txt") else list(chain(*texts))
        )
        hashes = pq.read_table(tmp_path / "a" / split / "documents.parquet")["hash"].to_pylist()
        assert sorted(hashes) == sorted(xxhash.xxh3_128_digest(text.encode()) for text in whole)
    assert prepare("hf://datasets/me/corpus", tmp_path / "b", **options) == expected
    assert prepare("s3://corpus/mine", tmp_path / "c", **options) == expected
    one = "part-0" + ending
    expected = prepare(f"{folder}/{one}", tmp_path / "d", **options)
    assert prepare(f"{hub.url}/plain/me/corpus/{one}", tmp_path / "e", **options) == expected


def test_keys_that_differ_only_in_slashes(bucket: Any, make_run: Callable[..., Run]) -> None:
    keys = {"d//a.jsonl": b"1\n", "d/a.jsonl": b"2\n", "d/x//b.jsonl": b"3\n", "d/x/": b""}
    for key, data in keys.items():
        with contextlib.suppress(FileExistsError):
            bucket.pipe_file(f"corpus/{key}", data)
    run = make_run()
    files = list_files(SourceSettings(name="s3://corpus/d"), run).files
    assert [file.name for file in files] == ["%2F/a.jsonl", "a.jsonl", "x/%2F/b.jsonl"]
    bodies = []
    for file in files:
        with Fetcher.of(run).local_copy(file) as path:
            bodies.append(path.read_bytes())
    assert bodies == [b"1\n", b"2\n", b"3\n"]


_PARTS = st.one_of(
    st.sampled_from(
        [
            "train",
            "dev",
            "test",
            "val-0",
            "data",
            "_temporary",
            ".git",
            "en.parquet",
            "[x]",
            "held-out",
            "README",
            "stats",
        ]
    ),
    st.text("abtrainestvd-_. 0[é", min_size=1, max_size=8),
)
_ENDINGS = st.sampled_from(
    [".jsonl", ".jsonl.gz", ".txt", ".json", ".parquet", ".csv", ".md", "", ".lz4", ".part"]
)
_NAMES = st.builds(
    lambda folders, last, ending: "/".join([*folders, last + ending]),
    st.lists(_PARTS, max_size=2),
    _PARTS,
    _ENDINGS,
)


@given(
    names=st.sets(_NAMES, min_size=1, max_size=8),
    glob=st.sampled_from(["", "/*", "/**/*.jsonl", "/*.parquet", "/data/*"]),
)
@example(names={"train/train.jsonl", "en.parquet/_temporary/train.jsonl"}, glob="/*")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_mean_the_same_in_a_folder_and_in_a_bucket(
    names: set[str], glob: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = {name.rpartition("/")[0] for name in names}
    folders |= {folder.rpartition("/")[0] for folder in folders}
    assume(all(is_safe_name(name) for name in names) and not names & folders)
    folder = tmp_path_factory.mktemp("names")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
        memory.pipe_file(f"/names/{name}", b"x")
    try:
        assert chosen(f"{folder}{glob}") == chosen(f"memory://names{glob}")
    finally:
        memory.store.clear()


def chosen(source: str) -> list[tuple[str, str, str]] | None:
    try:
        listing = list_files(SourceSettings(name=source), Run(retries=0))
    except InputError:
        return None
    return [(file.name, file.split, file.split_rule) for file in listing.files]
