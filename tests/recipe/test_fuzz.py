"""Whatever a recipe, a --set, an option or a dataset.json holds: settings come out, or an error in words."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_data.recipe.load import load, parse_assignment
from btlm_data.recipe.models import Recipe, Settings
from btlm_data.recipe.options import overrides, parameter_name

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["[SEP]", "1e400", "4GB", "2048:0.75", ".nan", "a:b", "../..", "\x1b[2J", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def keys(model: Any = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe, sections too."""
    found = []
    for name, field in model.model_fields.items():
        found.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


KEYS = keys()
OPTION_KEYS = st.sampled_from(
    [*KEYS, "sed", "source.nam", "run.", "a.b.c.d", "seq_len.0", "clean.filters.0.x"]
)


def check(path: Path | None, given: dict[str, Any], *, trust: bool = False) -> None:
    """Load; an error must be ours, one short line for each thing that is wrong."""
    try:
        recipe = load(path, given, trust=trust)
    except ConfigError as error:
        lines = str(error).splitlines()
        if len(lines) > 30 or any(len(line) > 1000 for line in lines):
            pytest.fail(str(error)[:2000])
    else:
        recipe.run.memory_per_worker  # noqa: B018
        Settings.model_validate(recipe.settings.model_dump(mode="json"))
        json.dumps(recipe.model_dump(mode="json"))


@given(st.lists(st.tuples(OPTION_KEYS, VALUES), min_size=1, max_size=3))
@example([("source", {"name": "x"}), ("mix", {"": 1})])
def test_any_value_of_any_setting(pairs: list[tuple[str, Any]]) -> None:
    check(None, {"source": ("x", "--source")} | {key: (value, f"--set {key}") for key, value in pairs})


@given(
    st.dictionaries(st.sampled_from([key for key in KEYS if "." not in key]) | st.text(), VALUES, max_size=5)
)
@settings(deadline=None)
def test_any_tree_in_a_file_or_in_a_dataset(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps(tree), encoding="utf-8")
        check(recipe, {})
        dataset = Path(folder) / "dataset.json"
        dataset.write_text(json.dumps({"fingerprint": "0"}))
        (Path(folder) / "provenance.json").write_text(json.dumps({"configuration": tree}), encoding="utf-8")
        check(dataset, {})
        check(dataset, {"source.name": ("x", "--source")}, trust=True)


@given(st.text() | st.tuples(OPTION_KEYS, st.text()).map("=".join))
@example("tokenizer.eos=[")
@example("mix.A: B=1")
def test_any_assignment(text: str) -> None:
    try:
        key, override = parse_assignment(text)
    except ConfigError:
        return
    check(None, {"source": ("x", "--source"), key: override})


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_of_the_options_that_are_read_here(texts: list[str]) -> None:
    for key in ("clean.filters", "mix", "source.splits"):
        try:
            given = overrides({parameter_name(key): tuple(texts)}, ())
        except ConfigError:
            continue
        check(None, {"source": ("x", "--source")} | given)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_of_a_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("recipe.yaml", "dataset.json"):
            (Path(folder) / name).write_bytes(data)
            check(Path(folder) / name, {})
