"""What people really have in a folder: links, special files, other programs' files, their own output."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from btlm_data.errors import ConfigError, InputError
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.base import Listing
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.local import check_outside, unchanged

LINE = b'{"text": "a document"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    return path


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Listing]:
    monkeypatch.chdir(tmp_path)

    def make(source: object, **run: object) -> Listing:
        settings = SourceSettings.model_validate(
            source if isinstance(source, dict) else {"name": str(source)}
        )
        return list_files(settings, Run.model_validate({"out": str(tmp_path / "out")} | run))

    return make


Listed = Callable[..., Listing]


def add(path: Path, data: bytes = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(listing: Listing) -> list[str]:
    return [file.name for file in listing.files]


def left_out(listing: Listing) -> dict[str, tuple[str, ...]]:
    return {one.reason: one.names for one in listing.left_out}


def test_linked_folders_and_files_are_followed(folder: Path, tmp_path: Path, listed: Listed) -> None:
    add(tmp_path / "disk1/a.jsonl")
    add(tmp_path / "disk2/deep/b.jsonl")
    (folder / "part1").symlink_to(tmp_path / "disk1")
    (folder / "part2").symlink_to(tmp_path / "disk2")
    (folder / "c.jsonl").symlink_to(tmp_path / "disk1/a.jsonl")
    expected = ["c.jsonl", "part1/a.jsonl", "part2/deep/b.jsonl"]
    assert names(listed(folder)) == expected
    assert names(listed(f"{folder}/**/*.jsonl")) == expected
    (tmp_path / "link").symlink_to(folder)
    assert names(listed(tmp_path / "link")) == expected


def test_a_link_without_an_ending_is_what_it_points_to(tmp_path: Path, listed: Listed) -> None:
    add(tmp_path / "kept/b.jsonl")
    (tmp_path / "latest").symlink_to("kept/b.jsonl")
    assert names(listed(tmp_path / "latest")) == ["b.jsonl"]
    (tmp_path / "kept/plain").touch()
    (tmp_path / "other").symlink_to("kept/plain")
    with pytest.raises(InputError, match="no ending of a known format"):
        listed(tmp_path / "other")


@pytest.mark.parametrize("name", ["docs.zip", "docs.tar", "docs.tar.gz", "DOCS.TGZ", "docs.jsonl.tar.zst"])
def test_an_archive_by_itself_is_called_one(tmp_path: Path, listed: Listed, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="is an archive"):
        listed(tmp_path / name)


def test_loops_dangling_links_and_special_files_are_named(
    folder: Path, tmp_path: Path, listed: Listed
) -> None:
    add(folder / "sub/a.jsonl")
    (folder / "sub/up").symlink_to(folder)
    (folder / "sub/out").symlink_to(tmp_path)
    (folder / "self.jsonl").symlink_to("self.jsonl")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.jsonl")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jsonl")
        os.chdir(here)
        listing = listed(folder)
    assert names(listing) == ["sub/a.jsonl"]
    assert left_out(listing) == {
        "link to a folder above itself": ("sub/out/", "sub/up/"),
        "link that points to itself": ("self.jsonl",),
        "link to nothing": ("gone.jsonl",),
        "named pipe": ("pipe.jsonl",),
        "socket": ("s.jsonl",),
    }
    assert [one["reason"] for one in listing.provenance["left_out"]] == [
        one.reason for one in listing.left_out
    ]
    json.dumps(listing.provenance)
    with pytest.raises(InputError, match="is a named pipe"):
        listed(folder / "pipe.jsonl")


def test_what_is_left_out_is_told(folder: Path, listed: Listed, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "b.jsonl.lz4", "c.jsonl.lz4", "README.md"):
        add(folder / name)
    listed(folder)
    assert (
        "3 files of the source are not read: 2 x unknown ending .lz4 (b.jsonl.lz4, c.jsonl.lz4); "
        "1 x description of the data (README.md)" in caplog.text
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(folder: Path, listed: Listed) -> None:
    add(folder / "a.jsonl").chmod(0)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read: no permission"):
        listed(folder)
    (folder / "a.jsonl").chmod(0o644)
    (folder / "sub").mkdir(mode=0)
    with pytest.raises(InputError, match="sub cannot be read"):
        listed(folder)
    (folder / "sub").chmod(0o755)


def test_spark_output(folder: Path, listed: Listed) -> None:
    for name in ("part-0.parquet", "_SUCCESS", "_metadata", ".part-0.crc"):
        add(folder / "en.parquet" / name, b"x")
    add(folder / "fr.jsonl/part-0.json")
    add(folder / "fr.jsonl/_temporary/0/attempt_1/part-1.json")
    assert names(listed(folder)) == ["en.parquet/part-0.parquet", "fr.jsonl/part-0.json"]
    assert names(listed(f"{folder}/*.parquet")) == ["en.parquet/part-0.parquet"]
    assert names(listed(folder / "en.parquet")) == ["part-0.parquet"]


def test_splits_as_anywhere_else(folder: Path, listed: Listed) -> None:
    for name in ("corpus.jsonl", "dev/d.jsonl", "val.jsonl", "eval-set/e.jsonl"):
        add(folder / name)
    listing = listed(folder)
    assert {file.name: file.split for file in listing.files} == {
        "corpus.jsonl": "train",
        "dev/d.jsonl": "validation",
        "eval-set/e.jsonl": "validation",
        "val.jsonl": "validation",
    }
    assert [one.reason for one in listing.split_rules()["validation"]] == [
        "folder name begins with `dev`",
        "folder name begins with `eval`",
        "file name begins with `val`",
    ]
    said = {"name": str(folder), "splits": {"test": ["dev/*"], "validation": ["v*.jsonl", "none"]}}
    with pytest.raises(ConfigError, match="'none' for validation"):
        listed(said)
    said = {"name": str(folder), "splits": {"test": ["dev/*"]}}
    assert {file.name: file.split for file in listed(said).files if file.split != "train"} == {
        "dev/d.jsonl": "test"
    }


def test_git_lfs_pointers_are_named_as_such(folder: Path, listed: Listed) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    add(folder / "a.jsonl")
    add(folder / "b.parquet", pointer)
    with pytest.raises(InputError, match=r"Git LFS pointers.*b\.parquet.*git lfs pull"):
        listed(folder)
    with pytest.raises(InputError, match="Git LFS pointers"):
        listed(folder / "b.parquet")
    assert names(listed(f"{folder}/*.jsonl")) == ["a.jsonl"]


def test_the_runs_own_folders_and_prepared_datasets_are_not_the_corpus(folder: Path, listed: Listed) -> None:
    add(folder / "a.jsonl")
    add(folder / "out/report.json")
    add(folder / ".w/x.jsonl")
    add(folder / "text/train/x.jsonl")
    for name, manifest in (("old", "dataset.json"), ("begun", "preparing.json")):
        add(folder / name / manifest, json.dumps({"fingerprint": "0" * 64}).encode())
        add(folder / name / "documents.parquet")
    add(folder / "theirs/dataset.json", b'{"text": "no dataset of ours"}')
    run = {"out": f"{folder}/out", "work_dir": f"{folder}/.w", "emit_text": f"{folder}/text"}
    listing = listed(folder, **run)
    assert names(listing) == ["a.jsonl", "theirs/dataset.json"]
    assert left_out(listing) == {
        "folder of a prepared dataset": ("begun/", "old/"),
    }
    with pytest.raises(InputError, match="btlm-data prepared"):
        listed(folder / "old")


def test_a_source_inside_what_is_written_is_refused(folder: Path, tmp_path: Path, listed: Listed) -> None:
    add(folder / "a.jsonl")
    for out in (folder, tmp_path):
        with pytest.raises(ConfigError, match="is inside"):
            listed(folder, out=str(out))
    with pytest.raises(ConfigError, match="is inside"):
        listed(f"{folder}/*.jsonl", work_dir=str(folder))
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ConfigError, match="is inside"):
        check_outside(str(tmp_path / "link"), [folder])
    check_outside("s3://bucket/x", [folder])
    check_outside(str(folder), [folder / "out", f"{folder}2"])


def test_urls_are_absolute_and_a_task_may_run_anywhere(
    folder: Path, tmp_path: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder / "a.jsonl")
    for name in ("corpus", "./corpus/../corpus", "corpus/a.jsonl", "corpus/*.jsonl", f"file://{folder}"):
        (file,) = listed(name).files
        assert file.url == str(folder / "a.jsonl")
    fetcher = Fetcher.of(Run(cache_dir="cache"))
    assert fetcher.folder.startswith(str(tmp_path / "cache"))
    monkeypatch.chdir("/")
    with fetcher.local_copy(file) as path:
        assert path.read_bytes() == LINE


@pytest.mark.parametrize(
    "how", ["appended", "deleted", "truncated", "rewritten, same size and time", "replaced"]
)
def test_a_file_that_changes_during_the_run_is_noticed(folder: Path, listed: Listed, how: str) -> None:
    path = add(folder / "a.jsonl", LINE * 100)
    (file,) = listed(folder).files
    fetcher = Fetcher.of(Run())

    def change() -> None:
        before = path.stat()
        if how == "appended":
            path.write_bytes(LINE * 101)
        elif how == "deleted":
            path.unlink()
        elif how == "truncated":
            os.truncate(path, 10)
        elif how == "replaced":
            add(folder / "new", LINE * 100).rename(path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            path.write_bytes(LINE.replace(b"a", b"b") * 100)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    words = "is gone" if how == "deleted" else "has changed"
    with pytest.raises(InputError, match=f"{words}.*since the run listed it"), fetcher.local_copy(file):
        change()
    with pytest.raises(InputError, match="since the run listed it"), fetcher.local_copy(file):
        pass
    unchanged(replace(file, stamp=None))  # nothing is known of it


def test_folders_with_brackets_in_their_names(folder: Path, listed: Listed) -> None:
    add(folder / "[2024]/a.jsonl")
    add(folder / "[2024]/sub/b.jsonl")
    assert names(listed(folder / "[2024]")) == ["a.jsonl", "sub/b.jsonl"]
    assert names(listed(f"{folder}/[2024]/*.jsonl")) == ["a.jsonl"]
    assert names(listed(f"{folder}/[[]2024]/*.jsonl")) == ["[2024]/a.jsonl"]


def test_a_file_and_its_compressed_copy_are_named(
    folder: Path, listed: Listed, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder / "a.jsonl")
    add(folder / "a.jsonl.gz")
    add(folder / "b.jsonl")
    listed(folder)
    assert "a.jsonl and a.jsonl.gz look like the same file stored more than once" in caplog.text
    assert "b.jsonl" not in caplog.text


def test_a_name_as_on_the_hub_gets_advice(listed: Listed) -> None:
    with pytest.raises(InputError, match="write --source hf://datasets/allenai/c4"):
        listed("allenai/c4")


def test_odd_names_are_shown_without_obeying_them(
    folder: Path, listed: Listed, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder / "a.jsonl")
    add(folder / "x\x1b]52;c;aaaa\x07.lz4")
    add(folder / "\u202egnp.lz4")
    assert names(listed(folder)) == ["a.jsonl"]
    assert "\\x1b]52" in caplog.text
    assert "\\u202egnp" in caplog.text
    assert not {"\x1b", "\x07", "\u202e"} & set(caplog.text)
