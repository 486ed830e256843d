from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from btlm_data.errors import ConfigError
from btlm_data.fingerprint import digest
from btlm_data.recipe.load import load, parse_assignment
from btlm_data.recipe.models import Recipe, Run, Settings


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
        ("seed: -1\n", 1, ["seed", "must be at least 0", "-1"]),
        ("\nformat: hdf5\n", 2, ["format", "'sample', 'corpus' or 'vsl'", "hdf5"]),
        ("dedupe:\n  threshold: 1.5\n", 2, ["dedupe.threshold", "1.5"]),
        ("dedupe:\n  bands: 20\n", 1, ["dedupe", "bands x rows = 160"]),
        ("run:\n  memory: lots\n", 2, ["run.memory", "'lots' is not a size", "4GB"]),
        ("seq_len: [2048, big]\n", 1, ["'big' is not a sequence length", "2048:0.75"]),
        ("seq_len: [10, 10]\n", None, ["10 is named twice"]),
        ('seq_len: ["10:0.7", "20:0.7"]\n', None, ["add up to 1.4"]),
        ('seq_len: ["10:0.7", "20"]\n', None, ["every length a share, or none"]),
        ("seq_len: []\n", 1, ["seq_len"]),
        ("mix: {A: 101}\n", 1, ["mix.A", "must be at most 100"]),
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


def sent_dataset(folder: Path, configuration: dict[str, Any]) -> Path:
    """A dataset.json as somebody may send it, with the provenance.json that says how it was made."""
    base = load(None, {"source": ("sample", "--source")}).settings.model_dump(mode="json")
    (folder / "dataset.json").write_text(json.dumps({"format_version": 2, "fingerprint": "0" * 64}))
    (folder / "provenance.json").write_text(json.dumps({"configuration": base | configuration}))
    return folder / "dataset.json"


def test_a_received_dataset_never_says_where_or_how_to_work(tmp_path: Path) -> None:
    path = sent_dataset(
        tmp_path,
        {"seed": 7, "run": {"out": "victim", "overwrite": True, "emit_text": "victim2", "workers": 10**9}},
    )
    repeated = load(path, {"run.out": ("mine", "--out")})
    assert repeated.seed == 7
    assert (repeated.run.out, repeated.run.overwrite, repeated.run.emit_text) == ("mine", False, None)
    assert load(path, {}, trust=True).run.out == "shards"


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"clean": {"filters": [{"name": "x", "function": "evil:f"}]}}, "'evil:f'"),
        ({"clean": {"filters": [{"function": {"function": "evil:f"}}]}}, "Python function"),
        ({"clean": {"filters": ["function"]}}, "Python function"),
        ({"clean": {"filters": [{"min_chars": 3}, "evil:f"]}}, "'evil:f'"),
        ({"clean": {"filters": [{"evil:f": {"max_errors": 3}}]}}, "'evil:f'"),
        ({"clean": {"filters": [{"name": "evil:f"}]}}, "'evil:f'"),
        ({"dedupe": {"index": "/home/somebody/index"}}, "/home/somebody/index"),
    ],
)
def test_code_and_folders_named_in_a_received_dataset_need_trust(
    tmp_path: Path, configuration: dict[str, Any], said: str
) -> None:
    path = sent_dataset(tmp_path, configuration)
    message = refused(path)
    assert said in message
    assert "--trust" in message
    load(path, {}, trust=True)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{", b"null", b"[]", b'{"configuration": 1}', b"\xff\xfe", b"\0"]
)
def test_a_damaged_dataset_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    assert str(path) in refused(path)
    path.write_bytes(b'{"fingerprint": "0"}')
    (tmp_path / "provenance.json").write_bytes(content)
    assert "provenance.json" in refused(path)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("tokenizer: {eos: 0}", "tokenizer.eos", "0"),
        ("tokenizer: {eos: '[SEP]'}", "tokenizer.eos", "[SEP]"),
        ("tokenizer: {eos: no}", "tokenizer.eos", "no"),
        ("source: {name: x, exclude_sources: [NO, yes, on, 1e3, 007]}", "source.exclude_sources", ("NO", "yes", "on", "1e3", "007")),
        ("source: 2024", "source.name", "2024"),
        ("dedupe: {method: none, max_removed: 8e-1}", "dedupe.max_removed", 0.8),
        ("run: {timeout: 6e1}", "run.timeout", 60.0),
        ("run: {memory: 1e9}", "run.memory", 10**9),
        ("seq_len: 2048:0.75", "seq_len.0.share", 0.75),
        ("seq_len: [2048:0.75, 8192:0.25]", "seq_len.1.seq_len", 8192),
        ("seed: 010", "seed", 10),
        ("mix: {2020: 1, null: 0.5}", "mix.epochs", {"2020": 1.0, "null": 0.5}),
            ("mix: {by_copies: {1: 2, 3-: 1e0}}", "mix.by_copies", {"1": 2.0, "3-": 1.0}),
        ("dedupe: {verify: none}", "dedupe.verify", "none"),
    ],
)  # fmt: skip
def test_values_mean_what_their_writer_means(tmp_path: Path, text: str, key: str, value: object) -> None:
    found: Any = load(recipe(tmp_path, text + "\n"), {})
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value


def test_on_the_command_line_text_is_taken_as_written() -> None:
    for text, value in (("[SEP]", "[SEP]"), ("0", "0"), ("1e3", "1e3"), ("'[EOS]'", "[EOS]")):
        key, override = parse_assignment(f"tokenizer.eos={text}")
        assert load(None, {"source": ("x", ""), key: override}).tokenizer.eos == value


def test_text_in_brackets_needs_quotes_in_a_file_and_the_error_says_so(tmp_path: Path) -> None:
    said = refused(recipe(tmp_path, "tokenizer:\n  eos: [SEP]\n"))
    assert "line 2" in said
    assert "needs quotes: '[SEP]'" in said


@pytest.mark.parametrize(
    "text",
    [
        "run: {memory: 1}",
        "run: {workers: 1000000000}",
        "dedupe: {num_perm: 10000000}",
        "dedupe: {num_perm: 100000000, bands: 10000000, rows: 10}",
        "run: {memory: 1e400}",
        "run: {timeout: .nan}",
        "mix: {A: .inf}",
        "clean: {min_chars: 99999999999999999999}",
        "shards: {samples_per_file: 1000000000000000000000000000000}",
        "source: {name: x, text_field: '" + "a." * 3000 + "a'}",
        "seed: " + "9" * 5000,
        "seq_len: [" + ", ".join(map(str, range(1, 100))) + "]",
    ],
)
def test_every_setting_has_bounds(tmp_path: Path, text: str) -> None:
    said = refused(recipe(tmp_path, text + "\n"))
    assert "recipe.yaml line 1" in said
    assert len(said) < 1000


def test_every_number_and_text_of_a_recipe_is_bounded() -> None:
    """No setting takes any number or any length of text; a new one must say how much is sensible."""

    def visit(schema: dict[str, Any], path: str) -> None:
        if "$ref" in schema:
            visit(schemas[schema["$ref"].rpartition("/")[2]], path)
        for inner in schema.get("anyOf", []):
            visit(inner, path)
        kind = schema.get("type")
        if kind in ("integer", "number"):
            assert {"maximum", "exclusiveMaximum", "le", "lt"} & schema.keys(), path
            assert {"minimum", "exclusiveMinimum", "ge", "gt"} & schema.keys(), path
        elif kind == "string" and "enum" not in schema and "const" not in schema:
            assert {"maxLength", "pattern"} & schema.keys(), path
        elif kind == "array":
            assert "maxItems" in schema or path.startswith("source.splits"), path
            for item in schema.get("prefixItems", [schema.get("items")]):
                visit(item, f"{path}[]")
        elif kind == "object":
            for name, inner in schema.get("properties", {}).items():
                visit(inner, f"{path}.{name}".lstrip("."))
            if isinstance(schema.get("additionalProperties"), dict):
                visit(schema["additionalProperties"], f"{path}.*")

    whole = Recipe.model_json_schema()
    schemas = whole["$defs"]
    visit(whole, "")


def test_every_setting_says_what_it_means() -> None:
    def visit(model: Any, path: str) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                visit(inner, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no description"

    visit(Recipe, "")
