"""The recipe of a run: a recipe file, or a dataset.json to repeat, with the command line laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pydantic import ValidationError

from btlm_data.errors import ConfigError
from btlm_data.recipe import mix_weights, yaml_file
from btlm_data.recipe.filter_entries import parse_entry
from btlm_data.recipe.models import Recipe
from btlm_data.recipe.validation import explain, key_path
from btlm_data.recipe.yaml_file import KeyPath, YamlError, YamlFile

_SHORT_FORMS = {"source": "name", "tokenizer": "name", "dedupe": "method"}  # `dedupe: exact`
_PROVENANCE = "provenance.json"
_SOURCE = (("source",), ("source", "name"))
_NO_SOURCE = """no source is given. Say what to prepare, for example:
  --source my_corpus/                      a folder of .jsonl, .jsonl.zst, .jsonl.gz, .parquet or .txt files
  --source 'data/*.jsonl.gz'               the files that match a pattern
  --source hf://datasets/ORG/NAME          a data set on a hub; also s3://, gs://, https://
  --source slimpajama                      a registered corpus (docs/sources.md)
  --source sample                          the small corpus inside this package"""
_MAX_MANIFEST_BYTES = 2**30


class Override(NamedTuple):
    """A setting from the command line. shown: as the user wrote it, for messages.

    text: the value before it was read as YAML.
    """

    value: Any
    shown: str
    text: str | None = None


def load(
    path: Path | None,
    overrides: Mapping[str, Override | tuple[Any, str]],
    *,
    trust: bool = False,
    without: Sequence[str] = (),
) -> Recipe:
    """Read a recipe and lay the command line over it.

    path: a recipe file, or a dataset.json, of which only what decides the data is repeated: its configuration
    without any `run` section. overrides: dotted key -> setting. trust: whether a dataset.json may name code
    to run (a filter's function) and a deduplication index to write. without: dotted keys of a dataset.json
    that are not repeated. Raises ConfigError naming the key, the place and the nearest valid key.
    """
    file = YamlFile("", {}, {}, {}) if path is None else _read(path, trust, without)
    tree = file.tree
    given: dict[KeyPath, Override] = {}
    for dotted, override in overrides.items():
        keys = tuple(dotted.split("."))
        given[keys] = Override(*override)
        _set(tree, keys, given[keys].value)
    _import_weights(tree, of_recipe=path is None or path.suffix != ".json" or ("mix", "weights") in given)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problem = error
    if _as_text(problem, tree, file, given):
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            problem = error
    if all(fault["type"] == "missing" and fault["loc"] in _SOURCE for fault in problem.errors()):
        raise ConfigError(f"{f'{file.name}: ' if file.name else ''}{_NO_SOURCE}")
    raise ConfigError(explain(problem, Recipe, lambda key: _where(key, file, given)))


def parse_assignment(text: str) -> tuple[str, Override]:
    """Split KEY=VALUE; the value is read as YAML, so that numbers, true and [a, b] mean what they mean in a
    file.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[a-z_0-9]+(\.[^.\s]+)*", key):
        raise ConfigError(
            f"--set {text!r} is not KEY=VALUE, with a dotted key of a recipe. Write for example --set "
            "clean.min_chars=100."
        )
    try:
        return key, Override(yaml_file.parse_value(value), f"--set {text}", value.strip())
    except YamlError as error:
        raise ConfigError(
            f"--set {text!r}: {error} Text with special characters needs quotes, for example --set "
            "'source.name=\"a: b\"'."
        ) from None


def _read(path: Path, trust: bool, without: Sequence[str]) -> YamlFile:
    if path.suffix != ".json":
        return yaml_file.read(path)
    manifest = _read_json(path)
    if isinstance(manifest, dict) and "fingerprint" in manifest:  # the places of files are in provenance.json
        beside = path.with_name(_PROVENANCE)
        if not beside.exists():
            raise ConfigError(
                f"{path} says what the data is, not where it came from, and there is no {_PROVENANCE} beside "
                "it. "
                "Restore that file, or write a recipe (docs/recipes.md)."
            )
        path, manifest = beside, _read_json(beside)
    settings = manifest.get("configuration") if isinstance(manifest, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} holds no configuration of a dataset. Name a recipe (YAML) or the dataset.json of a "
            "prepared dataset."
        )
    settings = {key: value for key, value in settings.items() if key != "run"}
    for dotted in without:
        section, _, key = dotted.partition(".")
        if isinstance(settings.get(section), dict):
            settings[section].pop(key, None)
    if not trust:
        _refuse_instructions(settings, path)
    return YamlFile(str(path), settings, {}, {})


def _read_json(path: Path) -> Any:
    if path.exists() and not path.is_file():  # a pipe would be waited for without an end
        raise ConfigError(f"{path} is not a regular file. Name a recipe or a dataset.json.")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        manifest = msgspec.json.decode(data) if len(data) <= _MAX_MANIFEST_BYTES else None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path} cannot be read: {reason}. Name a recipe or a dataset.json.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid JSON ({error or 'nested too deeply'}). Name a recipe or a dataset.json."
        ) from None
    return manifest


def _refuse_instructions(settings: dict[str, Any], path: Path) -> None:
    """Refuse what in a received dataset.json would run code or write outside the output folder."""
    clean, dedupe = settings.get("clean"), settings.get("dedupe")
    filters = clean.get("filters") if isinstance(clean, dict) else None
    for key, entries in (("clean.filters", filters), ("annotate", settings.get("annotate"))):
        if (function := _function_named(entries)) is not None:
            raise ConfigError(
                f"{path}: {key} names a Python function ({function[:80]!r}), which a run would execute. "
                "If you trust this file and that code, add --trust."
            )
    if isinstance(dedupe, dict) and dedupe.get("index"):
        raise ConfigError(
            f"{path}: dedupe.index names a folder ({str(dedupe['index'])[:80]!r}), to which a run would "
            "write. "
            "If that is wanted, add --trust; else --set dedupe.index=null leaves it out, after --trust."
        )


def _function_named(filters: object) -> str | None:
    """The first function that an item of clean.filters or annotate names, or None.

    Other values than a list are refused later.
    """
    entries = map(parse_entry, filters if isinstance(filters, list) else [])
    return next(
        (entry.function for entry in entries if entry is not None and entry.function is not None), None
    )


def _import_weights(tree: dict[str, Any], *, of_recipe: bool) -> None:
    """Put the weights of a file that the mix names into the recipe; a received dataset.json can name none."""
    mix = tree.get("mix")
    if of_recipe and isinstance(mix, dict) and isinstance(mix.get("weights"), str | dict):
        tree["mix"] = mix_weights.imported(mix)


def _set(tree: dict[str, Any], keys: KeyPath, value: Any) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        if isinstance(child, str):  # `dedupe: exact` in the file, then --set dedupe.verify=true
            child = {_SHORT_FORMS.get(key, "name"): child}
        tree[key] = child = dict(child) if isinstance(child, dict) else {}
        tree = child
    existing = tree.get(keys[-1])
    if isinstance(existing, dict) and isinstance(value, str) and keys[-1] in _SHORT_FORMS:
        existing[_SHORT_FORMS[keys[-1]]] = value
    else:
        tree[keys[-1]] = value


def _as_text(
    error: ValidationError, tree: dict[str, Any], file: YamlFile, given: Mapping[KeyPath, Override]
) -> bool:
    """Where text is expected and a number or (on the command line) a list was read, put what was written;
    whether anything changed.

    So `eos: 0`, `exclude_sources: [007]` and `--set tokenizer.eos=[SEP]` mean the text.
    """
    changed = False
    for problem in error.errors(include_url=False):
        path = key_path(problem["loc"])
        text = file.texts.get(path)
        for keys, override in given.items():
            if path[: len(keys)] == keys:
                text = override.text if path == keys else None
        expected = problem["type"] == "string_type" or (
            problem["type"] == "model_type" and len(path) == 1 and path[0] in _SHORT_FORMS
        )
        if expected and text and _replace(tree, path, text):
            changed = True
    return changed


def _replace(tree: Any, path: KeyPath, text: str) -> bool:
    """Put `text` at a path of mappings and lists; False if there is no such path."""
    for key in path[:-1]:
        tree = _child(tree, key)
    if isinstance(tree, dict) and path[-1] in tree:
        tree[path[-1]] = text
        return True
    if isinstance(tree, list) and path[-1].isdigit() and int(path[-1]) < len(tree):
        tree[int(path[-1])] = text
        return True
    return False


def _child(tree: Any, key: str) -> Any:
    if isinstance(tree, dict):
        return tree.get(key)
    return tree[int(key)] if isinstance(tree, Sequence) and key.isdigit() and int(key) < len(tree) else None


def _where(path: KeyPath, file: YamlFile, given: Mapping[KeyPath, Override]) -> str | None:
    shown = next((given[path[:i]].shown for i in range(len(path), 0, -1) if path[:i] in given), None)
    return shown or (file.where(path) if file.name else None)
