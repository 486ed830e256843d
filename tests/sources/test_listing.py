from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from btlm_data.errors import ConfigError, InputError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.listing import list_files
from tests.hub import Fault, Hub

RunMaker = Callable[..., Run]


def records(*names: str) -> bytes:
    return b"".join(
        json.dumps({"text": f"text of {n}", "meta": {"redpajama_set_name": n}}).encode() + b"\n"
        for n in names
    )


def slimpajama(hub: Hub, repository: str = "cerebras/SlimPajama-627B") -> str:
    files = {"README.md": b"# card", ".gitattributes": b"*"}
    for split, chunks, kind in (("train", 10, "train"), ("validation", 5, "holdout"), ("test", 5, "holdout")):
        for chunk in range(1, chunks + 1):
            for n in (2, 10):
                files[f"{split}/chunk{chunk}/example_{kind}_{n}.jsonl.zst"] = (
                    f"{split} {chunk} {n}".encode() * 200
                )
    return hub.add(repository, files)


def names(listing_run: Run, **settings: object) -> list[str]:
    return [file.name for file in list_files(SourceSettings.model_validate(settings), listing_run).files]


def test_slimpajama_is_listed_in_order(hub: Hub, make_run: RunMaker) -> None:
    commit = slimpajama(hub)
    listing = list_files(SourceSettings(name="slimpajama"), make_run())
    assert len(listing.files) == 40
    assert [f.split for f in listing.files] == ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    assert [f.name for f in listing.files[:3]] == [
        "train/chunk1/example_train_10.jsonl.zst",
        "train/chunk1/example_train_2.jsonl.zst",
        "train/chunk10/example_train_10.jsonl.zst",
    ]
    assert all(
        f.sha256 and f.version == f"sha256:{f.sha256}" and f.compression == "zstd" for f in listing.files
    )
    assert listing.provenance["revision"] == commit
    assert "RedPajamaBook" in listing.provenance["license"]
    assert listing.fields == {"text_field": "text", "source_field": "meta.redpajama_set_name"}
    assert json.loads(json.dumps(listing.provenance)) == listing.provenance


def test_chunks_and_files_select(hub: Hub, make_run: RunMaker) -> None:
    slimpajama(hub)
    chosen = names(make_run(), name="slimpajama", chunks=[1, 7], files=3)
    assert [n for n in chosen if n.startswith("train/")] == [
        "train/chunk1/example_train_10.jsonl.zst",
        "train/chunk1/example_train_2.jsonl.zst",
        "train/chunk7/example_train_10.jsonl.zst",
    ]
    assert [n.split("/")[1] for n in chosen if n.startswith("validation/")] == ["chunk1", "chunk1"]
    assert not any("chunk2" in r.path for r in hub.requests)
    with pytest.raises(ConfigError, match="chunks 1 to 10"):
        names(make_run(), name="slimpajama", chunks=[11])
    with pytest.raises(ConfigError, match="--chunks"):
        names(make_run(), name="hf://datasets/cerebras/SlimPajama-627B", chunks=[1])


def test_a_users_field_wins_over_the_entrys(hub: Hub, make_run: RunMaker) -> None:
    slimpajama(hub)
    assert (
        list_files(SourceSettings(name="slimpajama", text_field="content"), make_run()).fields["text_field"]
        == "content"
    )


def test_any_data_set_with_revision_and_glob(hub: Hub, make_run: RunMaker) -> None:
    first = hub.add(
        "org/data",
        {
            "data/train-0.parquet": b"a" * 2000,
            "data/test-0.parquet": b"b" * 2000,
            "data/valid.jsonl": b"c",
            "x.bin": b"d",
        },
    )
    hub.add("org/data", {"new.jsonl": b"e"})
    run = make_run()
    assert names(run, name="hf://datasets/org/data") == ["new.jsonl"]
    listing = list_files(SourceSettings(name=f"hf://datasets/org/data@{first}"), run)
    assert [(f.name, f.split) for f in listing.files] == [
        ("data/train-0.parquet", "train"),
        ("data/valid.jsonl", "validation"),
        ("data/test-0.parquet", "test"),
    ]
    assert names(run, name=f"hf://datasets/org/data@{first}/data/*.parquet") == [
        "train-0.parquet",
        "test-0.parquet",
    ]
    assert names(run, name="hf://datasets/org/data/data", revision=first) == [
        "train-0.parquet",
        "valid.jsonl",
        "test-0.parquet",
    ]
    with pytest.raises(ConfigError, match="hf://datasets/ORG/NAME"):
        names(run, name="hf://org/data")


def test_the_hubs_parquet_copy_and_folders_called_as_files(hub: Hub, make_run: RunMaker) -> None:
    copy = hub.add(
        "org/data", {"default/train/0000.parquet": b"a" * 2000, "default/test/0000.parquet": b"b" * 2000}
    )
    hub.add("org/data", {"original.jsonl": b"c", "x.parquet/part-0.parquet": b"d", "x.parquet/_SUCCESS": b""})
    hub.repositories["org/data"].refs["refs/convert/parquet"] = copy
    run = make_run()
    at = "hf://datasets/org/data@refs/convert/parquet"
    for source in (at, at.replace("refs/convert/parquet", "refs%2Fconvert%2Fparquet")):
        assert names(run, name=source) == ["default/train/0000.parquet", "default/test/0000.parquet"]
    assert names(run, name=f"{at}/default/train") == ["0000.parquet"]
    assert names(run, name=f"{at}/default/*/*.parquet") == ["train/0000.parquet", "test/0000.parquet"]
    listing = list_files(SourceSettings(name=at), run)
    assert listing.provenance["revision"] == copy
    assert listing.provenance["asked_revision"] == "refs/convert/parquet"
    assert names(run, name="hf://datasets/org/data/x.parquet") == ["part-0.parquet"]
    assert names(run, name="hf://datasets/org/data/*.parquet") == ["x.parquet/part-0.parquet"]
    assert names(run, name="hf://datasets/org/data/original.jsonl") == ["original.jsonl"]


def test_a_misspelt_source_to_exclude_is_refused(hub: Hub, make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run(sources_file=str(redpajama(hub, tmp_path)))
    with pytest.raises(ConfigError, match=r"RedPajamaBok.*Its sources are RedPajamaArXiv, RedPajamaBook"):
        names(run, name="redpajama", exclude_sources=["RedPajamaBok"])


def test_descriptions_are_no_part_of_a_corpus(hub: Hub, make_run: RunMaker) -> None:
    hub.add(
        "org/data",
        {
            "train/a.json": b"x",
            "about.json": b"x",
            "dataset_infos.json": b"x",
            "test/dataset_info.json": b"x",
        },
    )
    hub.add("org/flat", {"a.json": b"x", "dataset_infos.json": b"x"})
    assert names(make_run(), name="hf://datasets/org/data") == ["train/a.json"]
    assert names(make_run(), name="hf://datasets/org/flat") == ["a.json"]


def test_a_hundred_thousand_entries_are_listed(hub: Hub, make_run: RunMaker) -> None:
    hub.add("org/many", {"train/000000.jsonl": b"x"})
    hub.repositories["org/many"].fake_tree = [
        {"type": "file", "oid": "0" * 40, "size": 1, "path": f"train/{n:06d}.jsonl"} for n in range(100_000)
    ]
    assert len(names(make_run(), name="hf://datasets/org/many")) == 100_000
    assert hub.count("/tree/") == 100


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/x.jsonl",
        "/etc/x.jsonl",
        "a/../../x.jsonl",
        "a//b.jsonl",
        "a\x00b.jsonl",
        "a\x1b[2Jb.jsonl",
        "a\nb.jsonl",
        "C:/x.jsonl",
        "x\\..\\y.jsonl",
        "a" * 2000 + ".jsonl",
    ],
)
def test_a_hostile_listing_is_refused_and_writes_nothing(
    hub: Hub, make_run: RunMaker, tmp_path: Path, path: str
) -> None:
    hub.add("org/evil", {"train/a.jsonl": b"x"})
    hub.repositories["org/evil"].fake_tree = [{"type": "file", "oid": "0" * 40, "size": 1, "path": path}]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SourceUnavailable, match="no plain relative path") as caught:
        names(make_run(), name="hf://datasets/org/evil")
    assert not set("\x00\x1b\n") & set(str(caught.value))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1},
        {"size": "12"},
        {"size": 1, "lfs": {"oid": "../../x", "size": 1, "pointerSize": 1}},
        {"size": 1, "lfs": {"oid": "a" * 64, "size": -5, "pointerSize": 1}},
    ],
)
def test_nonsense_in_a_listing_is_refused(hub: Hub, make_run: RunMaker, entry: dict[str, object]) -> None:
    hub.add("org/evil", {"train/a.jsonl": b"x"})
    hub.repositories["org/evil"].fake_tree = [{"type": "file", "oid": "0" * 40, "path": "a.jsonl", **entry}]
    with pytest.raises(SourceUnavailable, match="its listing gives"):
        names(make_run(), name="hf://datasets/org/evil")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("info", status=401, error_code="RepoNotFound", times=None), "401, not authorised"),
        (Fault("info", status=404, error_code="RepoNotFound", times=None), "404"),
        (Fault("info", status=403, error_code="GatedRepo", times=None), "accept its terms"),
        (Fault("info", status=429, retry_after="0", times=None), "429"),
        (Fault("info", status=500, times=None), "500"),
        (Fault("info", garbage=b"<html>please log in</html>", times=None), "does not answer as it should"),
        (Fault("tree", status=404, error_code="RevisionNotFound", times=None), "no revision"),
        (Fault("resolve", status=401, times=None), "not authorised"),
    ],
)
def test_a_source_that_cannot_be_had_says_what_to_do(
    hub: Hub, make_run: RunMaker, fault: Fault, words: str
) -> None:
    slimpajama(hub)
    hub.faults.append(fault)
    with pytest.raises(SourceUnavailable) as caught:
        names(make_run(retries=1), name="slimpajama", chunks=[1])
    message = str(caught.value)
    assert words in message
    for advice in ("HF_TOKEN", "mirror", "--source FOLDER", "--source slimpajama-6b"):
        assert advice in message


def test_passing_faults_of_a_listing(hub: Hub, make_run: RunMaker) -> None:
    slimpajama(hub)
    hub.faults += [
        Fault("info", status=500, times=2),
        Fault("info", status=429, retry_after="0"),
        Fault("tree", garbage=b"[{"),
    ]
    assert len(names(make_run(), name="slimpajama", chunks=[1])) == 6


def test_a_silent_hub_does_not_hang(hub: Hub, make_run: RunMaker) -> None:
    slimpajama(hub)
    hub.faults.append(Fault("info", stall=3, times=None))
    with pytest.raises(SourceUnavailable):
        names(make_run(timeout=0.2, retries=1), name="slimpajama")


def test_a_gated_source_without_and_with_a_token(
    hub: Hub, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/gated", {"train/a.jsonl": b"x" * 2000}, gated=True)
    with pytest.raises(SourceUnavailable, match=r"gated.*not set"):
        names(make_run(), name="hf://datasets/org/gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    listing = list_files(SourceSettings(name="hf://datasets/org/gated"), make_run())
    assert listing.provenance["gated"] is True


def test_offline_mode_is_named(hub: Hub, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE"):
        names(make_run(), name="hf://datasets/org/data")


def test_a_mirror_is_read_when_the_first_place_is_gone(hub: Hub, make_run: RunMaker, tmp_path: Path) -> None:
    slimpajama(hub, "somebody/copy")
    sources = tmp_path / "sources.yaml"
    sources.write_text(
        textwrap.dedent("""
        slimpajama:
          at: hf://datasets/cerebras/SlimPajama-627B
          mirrors: [hf://datasets/somebody/gone, hf://datasets/somebody/copy]
          splits: {train: ["train/chunk{chunk}/*.jsonl.zst"]}
          chunks: {train: 10}
        """)
    )
    listing = list_files(SourceSettings(name="slimpajama"), make_run(sources_file=str(sources)))
    assert len(listing.files) == 20
    assert listing.provenance["repository"] == "somebody/copy"


def test_a_registered_folder(make_run: RunMaker, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for name in ("one/a.jsonl", "two/b.jsonl", "three/c.jsonl"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(records("x"))
    sources = tmp_path / "sources.yaml"
    sources.write_text(
        f"mine:\n  at: {folder}\n  splits: {{train: ['one/*'], test: ['two/*']}}\n  source_names: {{'one/*': First}}\n"
    )
    listing = list_files(SourceSettings(name="mine"), make_run(sources_file=str(sources)))
    assert [(f.name, f.split, f.source) for f in listing.files] == [
        ("one/a.jsonl", "train", "First"),
        ("two/b.jsonl", "test", None),
    ]
    assert names(make_run(sources_file=str(sources)), name="mine", exclude_sources=["First"]) == [
        "two/b.jsonl"
    ]
    sources.write_text(sources.read_text().replace(", test: ['two/*']", ""))
    with pytest.raises(InputError, match="none is left"):
        names(make_run(sources_file=str(sources)), name="mine", exclude_sources=["First"])


def test_a_misspelt_name_is_guessed(make_run: RunMaker) -> None:
    with pytest.raises(InputError, match="Did you mean slimpajama"):
        names(make_run(), name="slimpyjama")


# RedPajama ------------------------------------------------------------------------------------------------------------

BODIES = {
    "arxiv/arxiv_1.jsonl": records("a") * 30,
    "book/book.jsonl": records("b") * 30,
    "c4/c4-train.00000-of-01024.jsonl": records("c") * 30,
    "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst": records("d") * 30,
    "github/filtered_1.sampled.jsonl": records("e") * 30,
    "stackexchange/stackexchange.jsonl": records("f") * 30,
    "wikipedia/wiki.jsonl": records("g") * 30,
}


def redpajama(hub: Hub, tmp_path: Path) -> Path:
    """The lists on the hub, the data on a bare web server beside it; the sources file that says so."""
    sums = {
        f"sha256/{name.split('/')[0]}_SHA256SUMS.txt": f"{hashlib.sha256(body).hexdigest()}  {name}\n".encode()
        for name, body in BODIES.items()
    }
    hub.add("web/data", BODIES | sums)
    base = f"{hub.url}/plain/web/data/"
    hub.add(
        "togethercomputer/RedPajama-Data-1T",
        {f"urls/{name.split('/')[0]}.txt": f"{base}{name}\n".encode() for name in BODIES},
    )
    from btlm_data.sources.corpora import BUILT_IN

    entry = BUILT_IN["redpajama"].model_dump(mode="json") | {"url_base": base}
    path = tmp_path / "sources.yaml"
    path.write_text(json.dumps({"redpajama": entry}))
    return path


def test_redpajama_by_its_lists(hub: Hub, make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run(sources_file=str(redpajama(hub, tmp_path)))
    listing = list_files(SourceSettings(name="redpajama"), run)
    parts = ("ArXiv", "Book", "C4", "CommonCrawl", "Github", "StackExchange", "Wikipedia")
    assert {f.name: f.source for f in listing.files} == {
        name: f"RedPajama{part}" for name, part in zip(BODIES, parts, strict=True)
    }
    assert {f.name: f.sha256 for f in listing.files} == {
        name: hashlib.sha256(body).hexdigest() for name, body in BODIES.items()
    }
    from btlm_data.sources.fetch import Fetcher

    for file in listing.files:
        with Fetcher.of(run).local_copy(file) as path:
            assert path.read_bytes() == BODIES[file.name]


def test_a_withdrawn_part_is_named_and_can_be_left_out(hub: Hub, make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run(sources_file=str(redpajama(hub, tmp_path)))
    lists = hub.repositories["togethercomputer/RedPajama-Data-1T"].commits[-1][1]
    del lists["urls/book.txt"]
    with pytest.raises(SourceUnavailable, match=r"urls/book\.txt.*--exclude-source"):
        names(run, name="redpajama")
    assert len(names(run, name="redpajama", exclude_sources=["RedPajamaBook"])) == 6
    assert (
        names(run, name="redpajama", exclude_sources=["RedPajamaBook"], files=2)
        == sorted(BODIES)[:1] + sorted(BODIES)[2:3]
    )


def test_a_list_that_points_elsewhere_is_refused(hub: Hub, make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run(sources_file=str(redpajama(hub, tmp_path)))
    lists = hub.repositories["togethercomputer/RedPajama-Data-1T"].commits[-1][1]
    lists["urls/arxiv.txt"] = b"http://169.254.169.254/secrets.jsonl\n"
    with pytest.raises(SourceUnavailable, match="does not begin with"):
        names(run, name="redpajama")
    lists["urls/arxiv.txt"] = f"{hub.url}/plain/web/data/arxiv/%2e%2e/%2e%2e/x.jsonl\n".encode()
    with pytest.raises(SourceUnavailable, match="no plain address"):
        names(run, name="redpajama")
