from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from btlm_data.errors import ConfigError
from btlm_data.fingerprint import digest
from btlm_data.recipe.load import load, parse_assignment
from btlm_data.recipe.models import Run, Settings


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text if "source:" in text else f"{text}source: sample\n")
    return path


def refused(path: Path | None, overrides: dict[str, tuple[Any, str]] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides or {})
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "key", "advice"),
    [
        ("seed: 1\nshufle: none\n", 2, "shufle", "Did you mean shuffle?"),
        ("clean:\n  min_chars: 5\n  min_char: 6\n", 3, "clean.min_char", "Did you mean clean.min_chars?"),
        ("dedupe: {metod: exact}\n", 1, "dedupe.metod", "Did you mean dedupe.method?"),
        ("run:\n\n  worker: 3\n", 3, "run.worker", "Did you mean run.workers?"),
        ("seq_len:\n  - seq_len: 5\n    shar: 0.5\n", 3, "seq_len.0.shar", "Did you mean seq_len.0.share?"),
        ("shards:\n  qqqqqq: 3\n", 2, "shards.qqqqqq", "Known here: compression"),
    ],
)
def test_an_unknown_key_at_any_depth_is_named_with_its_line_and_nearest_name(
    tmp_path: Path, text: str, line: int, key: str, advice: str
) -> None:
    said = refused(recipe(tmp_path, text))
    assert f"recipe.yaml line {line}: there is no setting '{key}'" in said
    assert advice in said


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("seed: -1\n", 1, ["seed", "greater than or equal to 0", "-1"]),
        ("\nformat: hdf5\n", 2, ["format", "'sample', 'corpus' or 'vsl'", "hdf5"]),
        ("dedupe:\n  threshold: 1.5\n", 2, ["dedupe.threshold", "1.5"]),
        ("dedupe:\n  bands: 20\n", 1, ["dedupe", "bands x rows = 260"]),
        ("run:\n  memory: lots\n", 2, ["run.memory", "'lots' is not a size", "4GB"]),
        ("seq_len: [2048, big]\n", 1, ["'big' is not a sequence length", "2048:0.75"]),
        ("seq_len: [10, 10]\n", None, ["10 is named twice"]),
        ('seq_len: ["10:0.7", "20:0.7"]\n', None, ["add up to 1.4"]),
        ('seq_len: ["10:0.7", "20"]\n', None, ["every length a share, or none"]),
        ("seq_len: []\n", 1, ["seq_len"]),
        ("mix: {A: 101}\n", 1, ["mix.A", "less than or equal to 100"]),
    ],
)
def test_a_wrong_value_names_key_line_and_value(
    tmp_path: Path, text: str, line: int | None, parts: list[str]
) -> None:
    said = refused(recipe(tmp_path, text))
    for part in [*parts, f"recipe.yaml line {line}" if line else "recipe.yaml"]:
        assert part in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1\n", "not valid YAML"),
        (b"a: \xff\n", "not UTF-8 text (byte 3)"),
        (b"- a\n", "the file holds a list"),
        (b"a: &x [*x]\n", "aliases"),
        (b"!!python/object:os.system {}\n", "YAML tags"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert said in refused(path)
    assert "cannot be read" in refused(tmp_path / "missing.yaml")


def test_without_a_source_examples_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("", "seed: 1\n", "source: {text_field: content}\n", "# nothing\n"):
        path.write_text(text)
        said = refused(path)
        assert "no source is given" in said
        assert "--source my_corpus/" in said
        assert load(path, {"source.name": ("sample", "--source")}).source.name == "sample"
    path.write_text("sed: 1\n")
    said = refused(path)
    assert "Did you mean seed?" in said
    assert "source is missing" in said


def test_options_win_and_their_mistakes_name_the_option(tmp_path: Path) -> None:
    path = recipe(tmp_path, "seed: 3\ndedupe: exact\nsource: my/folder\nrun: {workers: 4}\n")
    found = load(
        path, {"seed": (5, "--seed"), "dedupe.max_removed": (0.5, "--set"), "run.out": ("x", "--out")}
    )
    assert (
        found.seed,
        found.dedupe.method,
        found.dedupe.max_removed,
        found.source.name,
        found.run.workers,
    ) == (
        5,
        "exact",
        0.5,
        "my/folder",
        4,
    )
    assert refused(path, {"seed": ("abc", "--seed abc")}).startswith("--seed abc: seed: ")
    source = {"source": ("sample", "--source")}
    assert refused(None, source | {"clean.min_char": (1, "--set clean.min_char=1")}).startswith(
        "--set clean.min_char=1: there is no setting"
    )
    table = recipe(tmp_path, "source: sample\ndedupe: {method: exact, max_removed: 0.3}\n")
    found = load(table, {"dedupe": ("none", "--set dedupe=none")})
    assert (found.dedupe.method, found.dedupe.max_removed) == ("none", 0.3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=5", 5),
        ("a=true", True),
        ("a=[1, x]", [1, "x"]),
        ("a=", None),
        ("a=x=y", "x=y"),
        ("mix.My-Source_2=0.5", 0.5),
        ("a='5'", "5"),
    ],
)
def test_assignments_are_read_as_yaml(text: str, value: object) -> None:
    key, override = parse_assignment(text)
    assert (key, override.value, override.shown) == (text.split("=")[0], value, f"--set {text}")


@pytest.mark.parametrize("text", ["a", "=5", "a b=5", "a..b=1", "A=1", "a=[1", "a=b: c: d"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_assignment(text)


@pytest.mark.parametrize(
    ("value", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), ("1.5k", 1500), (77, 77), (" 2 tb ", 2 * 10**12), ("12", 12)],
)
def test_sizes(value: object, size: int) -> None:
    assert Run.model_validate({"cache_size": value}).cache_size == size


@pytest.mark.parametrize("value", ["", "GB", "1.2.3GB", "5 bananas", "-5", True, None, "."])
def test_what_is_no_size_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="write for example 4GB"):
        Run.model_validate({"cache_size": value})


def test_sequence_lengths_in_every_spelling() -> None:
    for value, expected in [
        (2048, [(2048, None)]),
        ("2048:0.75", [(2048, 0.75)]),
        (["128", 256], [(128, None), (256, None)]),
        (["8:.5", {"seq_len": 16, "share": 0.25}], [(8, 0.5), (16, 0.25)]),
    ]:
        parts = Settings.model_validate({"source": "sample", "seq_len": value}).seq_len
        assert [(part.seq_len, part.share) for part in parts] == expected


def test_a_digest_follows_what_decides_bytes_and_nothing_else(tmp_path: Path) -> None:
    base = load(None, {"source": ("sample", "--source")})
    other_run = load(
        None,
        {
            "source": ("sample", ""),
            "run.workers": (7, ""),
            "run.memory": ("3GB", ""),
            "run.out": ("elsewhere", ""),
            "run.strict": (True, ""),
        },
    )
    assert digest(base.settings) == digest(other_run.settings)
    assert base.settings == Settings.model_validate({"source": "sample"})
    changed = {
        digest(load(None, {"source": ("sample", ""), key: (value, "")}).settings)
        for key, value in [("seed", 1), ("clean.min_chars", 5), ("shuffle", "none"), ("mix", {"A": 2})]
    }
    assert len(changed | {digest(base.settings)}) == 5


def test_a_recorded_configuration_is_a_recipe(tmp_path: Path) -> None:
    original = load(
        None,
        {
            "source": ("sample", ""),
            "seq_len": (["64:0.5", "128:0.25"], ""),
            "dedupe.method": ("exact", ""),
            "mix": ({"A": 2.0}, ""),
        },
    )
    path, beside = tmp_path / "dataset.json", tmp_path / "provenance.json"
    path.write_text(json.dumps({"format_version": 2, "fingerprint": "0", "configuration": {}}))
    assert "no provenance.json beside it" in refused(path)
    recorded = {"format_version": 1, "run": "0" * 64}
    beside.write_text(json.dumps(recorded | {"configuration": original.settings.model_dump(mode="json")}))
    assert load(path, {}).settings == original.settings
    assert load(path, {"seed": (4, "--seed")}).seed == 4
    beside.write_text(json.dumps(recorded | {"configuration": {"sed": 1}}))
    assert "Did you mean seed?" in refused(path)
