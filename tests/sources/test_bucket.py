from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from btlm_data.sources.upload import Upload, upload_dataset

from btlm_data.errors import ConfigError, InputError, OutputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources import upload as upload_module
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


# Upload -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    (folder / "train").mkdir(parents=True)
    (folder / "train/data-00000.h5").write_bytes(random.Random(0).randbytes(100_000))
    (folder / "train/data-00001.h5").write_bytes(random.Random(1).randbytes(100_000))
    (folder / "train/.data-00002.h5.1.tmp").write_bytes(b"half")
    (folder / "dataset.json").write_text('{"format_version": 1}')
    return folder


URLS = ["s3://corpus/out", "file://{tmp}/out", "memory://out"]


@pytest.fixture(params=URLS)
def destination(request: pytest.FixtureRequest, tmp_path: Path, bucket: Any) -> Iterator[str]:
    import fsspec

    yield str(request.param).format(tmp=tmp_path)
    fsspec.filesystem("memory").store.clear()


def contents(url: str) -> dict[str, bytes]:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    return {
        str(name)[len(root.rstrip("/")) :].lstrip("/"): filesystem.cat_file(name)
        for name in filesystem.find(root)
    }


def expected(dataset: Path) -> dict[str, bytes]:
    return {
        p.relative_to(dataset).as_posix(): p.read_bytes()
        for p in dataset.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_upload_sends_everything_once(dataset: Path, destination: str) -> None:
    assert upload_dataset(dataset, destination) == Upload(3, 0, 200_021)
    assert contents(destination) == expected(dataset)
    again = upload_dataset(dataset, destination)
    assert again.num_files + again.num_skipped == 3
    assert again.num_skipped >= (3 if destination.startswith("s3") else 1)
    assert contents(destination) == expected(dataset)


@pytest.mark.parametrize(
    "tell",
    [
        lambda md5: {"ETag": f'"{md5.hex()}"'},
        lambda md5: {"etag": "CJ/+AB", "md5Hash": base64.b64encode(md5).decode()},
    ],
)
def test_an_object_is_the_same_by_what_its_store_tells(
    tmp_path: Path, tell: Callable[[bytes], dict[str, str]]
) -> None:
    path = tmp_path / "data.h5"
    path.write_bytes(random.Random(0).randbytes(2_000_000))
    for content, same in ((path.read_bytes(), True), (random.Random(1).randbytes(2_000_000), False)):
        info = {"size": 2_000_000, **tell(hashlib.md5(content).digest())}
        assert upload_module._same(None, "place", path, info) is same
    assert not upload_module._same(None, "place", path, {"size": 2_000_000, "md5Hash": "no base64 !"})


def test_the_manifest_comes_last(dataset: Path, destination: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = upload_module._put
    sent: list[str] = []

    def put(filesystem: Any, path: Path, place: str, *, atomic_put: bool) -> None:
        if len(sent) == 1:
            raise OSError("connection lost")
        sent.append(path.name)
        real(filesystem, path, place, atomic_put=atomic_put)

    monkeypatch.setattr(upload_module, "_put", put)
    with pytest.raises(OutputError, match="connection lost"):
        upload_dataset(dataset, destination, retries=1, pause=0.001, threads=1)
    assert "dataset.json" not in contents(destination)
    monkeypatch.setattr(upload_module, "_put", real)
    upload_dataset(dataset, destination)
    assert contents(destination) == expected(dataset)


def test_a_passing_fault_of_the_store_is_tried_again(
    dataset: Path, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = upload_module._put
    failures = iter([OSError("reset"), TimeoutError("slow")])

    def put(*args: Any, **options: Any) -> None:
        for failure in failures:
            raise failure
        real(*args, **options)

    monkeypatch.setattr(upload_module, "_put", put)
    upload_dataset(dataset, destination, pause=0.001, threads=1)
    assert contents(destination) == expected(dataset)


def test_another_dataset_is_not_overwritten_unasked(dataset: Path, destination: str) -> None:
    import fsspec

    upload_dataset(dataset, destination)
    (dataset / "dataset.json").write_text('{"format_version": 1, "other": true}')
    (dataset / "train/data-00001.h5").unlink()
    with pytest.raises(OutputError, match="another dataset"):
        upload_dataset(dataset, destination)
    filesystem, root = fsspec.core.url_to_fs(destination)
    filesystem.pipe_file(f"{root}/thesis.tex", b"precious")
    upload_dataset(dataset, destination, overwrite=True)
    assert contents(destination) == expected(dataset) | {"thesis.tex": b"precious"}


def test_foreign_files_are_left_alone(dataset: Path, destination: str) -> None:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(destination)
    filesystem.makedirs(root, exist_ok=True)
    filesystem.pipe_file(f"{root}/thesis.tex", b"precious")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        upload_dataset(dataset, destination)
    assert contents(destination) == {"thesis.tex": b"precious"}


def test_an_unfinished_dataset_is_not_uploaded(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no finished dataset"):
        upload_dataset(tmp_path, "memory://out")


def test_a_missing_bucket_is_said_plainly(dataset: Path, bucket: Any) -> None:
    with pytest.raises(OutputError, match="bucket"):
        upload_dataset(dataset, "s3://no-such-bucket/out", retries=0)
    assert json.loads((dataset / "dataset.json").read_text())
