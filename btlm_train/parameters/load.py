"""Reads parameter files: the Model Zoo's current form, its older flat form, and `--set KEY=VALUE`.

    current                                     older, flat
    trainer:                                    train_input: {data_dir: ..., batch_size: ...}
      init: {model: ..., optimizer: ..., ...}   eval_input: {...}
      fit: {train_dataloader: ...}              model: {...}
      validate: {val_dataloader: ...}           optimizer: {...}
                                                runconfig: {...}

Every value of a file is looked up in the tables of `keys`, which say where it lands in `Params`; the same
tables serve `--set`, so that `--set train_input.data_dir=shards` works on a file of either form. A key that
no table has is an error that names file, line and the nearest key.
"""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from btlm_data.errors import ConfigError
from btlm_data.recipe import yaml_file
from btlm_data.recipe.validation import explain
from btlm_data.recipe.yaml_file import KeyPath, YamlError, YamlFile
from btlm_train.parameters.keys import (
    FIXED,
    MODEL_ZOO_DEFAULTS,
    advice_for_unknown,
    is_section,
    is_unused,
    shown,
    takes_flag,
    target_of,
)
from btlm_train.parameters.models import ModelConfig, Params
from btlm_train.parameters.schedule import schedule_pieces

ValidationSection = Literal["fit", "eval", "eval_all"]


class Setting(NamedTuple):
    """One value of a parameter file or of --set, and where it was written."""

    path: KeyPath
    value: Any
    where: str

    @property
    def key(self) -> str:
        """The path as a user writes it."""
        return ".".join(self.path)


class _Sorted:
    """The settings of a file and of --set, sorted into the tree that `Params` is made of."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[KeyPath, str] = {}
        self.unused: dict[str, None] = {}

    def add(self, setting: Setting) -> None:
        """Put one setting in its place. Raises ConfigError if there is no such parameter, or BTLM has not
        this value.
        """
        if is_unused(setting.path):
            self.unused[setting.key] = None
            return
        target = target_of(setting.path)
        if target is None:
            if setting.value in (None, [], {}) and is_section(setting.path):
                return  # an empty section
            raise ConfigError(f"{setting.where}: {advice_for_unknown(setting.path)}")
        if target[0] == "model" and target[1] in FIXED:
            _check_fixed(setting, FIXED.get(".".join(target[1:]), ()))
            return
        if isinstance(setting.value, bool) and not takes_flag(target):
            raise ConfigError(
                f"{setting.where}: {setting.key} is {str(setting.value).lower()}, which is no value of this "
                "setting. "
                "Give a number or text."
            )
        for destination in self._destinations(target):
            _put(self.tree, destination, setting.value)
            self.origins[destination] = setting.where

    def _destinations(self, target: KeyPath) -> list[KeyPath]:
        """`eval_input` means each validation section; an override of a list of them means each member."""
        if target[0] != "validation":
            return [target]
        destinations: list[KeyPath] = []
        for section in ("fit", "eval", "eval_all") if target[1] == "all" else (target[1],):
            present = self.tree.get("validation", {}).get(section, {})
            members = [key for key in present if key.isdigit()]
            numbered = len(target) > 2 and target[2].isdigit()
            destinations += [("validation", section, m, *target[2:]) for m in members if not numbered] or [
                ("validation", section, *target[2:])
            ]
        return destinations

    def where(self, location: KeyPath) -> str | None:
        """The place of the setting at or next to `location` in Params."""
        if location[:1] == ("validation",):
            location = ("validation", "fit", *location[2:])
        for i in range(len(location), 1, -1):
            for destination, where in self.origins.items():
                if destination[:i] == location[:i]:
                    return where
        return None


def load_params(name: str, overrides: Sequence[str] = (), validation: ValidationSection = "fit") -> Params:
    """Read a parameter file and lay `--set KEY=VALUE` over it.

    name: a path, or the name of a file in btlm_train/configs. validation: which of the current form's three
    validation sections to use; a section that is missing falls back on the others. Raises ConfigError naming
    file, line and the nearest known key.
    """
    path = find_params(name)
    file = yaml_file.read(path, "parameter file", aliases=True)
    if not file.tree:
        raise ConfigError(
            f"{path}: the file is empty, expected `trainer:` or `model:` and other sections. "
            "See btlm_train/configs for examples."
        )
    result = _Sorted()
    for setting in (*_settings(file.tree, (), file), *map(_assignment, overrides)):
        result.add(setting)
    return _build(result, path, validation)


def load_model_config(path: Path) -> ModelConfig:
    """The model of a parameter file of either form; the other sections are not looked at. Raises
    ConfigError.
    """
    file = yaml_file.read(path, "parameter file", aliases=True)
    result = _Sorted()
    for setting in _settings(file.tree, (), file):
        if setting.path[:1] == ("model",) or setting.path[:3] == ("trainer", "init", "model"):
            result.add(setting)
    if "model" not in result.tree:
        raise ConfigError(
            f"{path} has no `model` section, so the model is not known. Take the file it was trained with."
        )
    return _build(_only_model(result), path, "fit").model


def find_params(name: str) -> Path:
    """A parameter file by path, or by its name in btlm_train/configs (with or without .yaml).

    Raises ConfigError with the names there are.
    """
    try:
        if Path(name).is_file():
            return Path(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The parameter file {shown(name)} cannot be read: {error}. Check --params."
        ) from None
    folder = Path(str(importlib.resources.files("btlm_train") / "configs"))
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if candidate.parent == folder and candidate.is_file():
            return candidate
    names = sorted(path.name for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(Path(name).name, names, n=1, cutoff=0.5)
    advice = f"Did you mean {near[0]}?" if near else f"Give a path, or one of {', '.join(names)}."
    raise ConfigError(
        f"There is no parameter file {shown(name)}. It is neither a path nor a name in btlm_train/configs. "
        f"{advice}"
    )


def _settings(value: Any, path: KeyPath, file: YamlFile) -> Iterator[Setting]:
    """The values of a file; lists of anything but single values are numbered."""
    if isinstance(value, dict) and value:
        children = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        children = {str(number): item for number, item in enumerate(value)}.items()
    else:
        yield Setting(path, value, file.where(path))
        return
    for key, child in children:
        yield from _settings(child, (*path, key), file)


def _assignment(text: str) -> Setting:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {shown(text)} is not KEY=VALUE. Write for example --set train_input.batch_size=16."
        )
    try:
        return Setting(tuple(key.strip().split(".")), yaml_file.parse_value(value), f"--set {text[:200]}")
    except YamlError as error:
        raise ConfigError(
            f"--set {shown(text)}: the value is not valid YAML ({error}). "
            "Quote it, for example --set 'model_dir=\"a: b\"'."
        ) from None


def _check_fixed(setting: Setting, accepted: tuple[object, ...]) -> None:
    if any(setting.value == value and type(setting.value) is type(value) for value in accepted):
        return
    values = [shown(value) for value in accepted if value is not None]
    raise ConfigError(
        f"{setting.where}: {setting.key} is {shown(setting.value)}, which BTLM does not have. "
        f"Leave it out, or set it to {' or '.join(values) or 'null'}."
    )


def _put(tree: dict[str, Any], path: KeyPath, value: object) -> None:
    for name in path[:-1]:
        child = tree.get(name)
        tree[name] = child = child if isinstance(child, dict) else {}
        tree = child
    tree[path[-1]] = value


def _with_lists(tree: Any) -> Any:
    """The same tree with mappings of positions as the lists they were."""
    if not isinstance(tree, dict):
        return tree
    values = {key: _with_lists(value) for key, value in tree.items()}
    return list(values.values()) if values and all(key.isdigit() for key in values) else values


def _only_model(result: _Sorted) -> _Sorted:
    result.tree = {"model": result.tree["model"]}
    return result


def _build(result: _Sorted, path: Path, validation: str) -> Params:
    tree = result.tree
    sections = tree.pop("validation", {})
    candidates = [sections[key] for key in (validation, "fit", "eval", "eval_all") if sections.get(key)]
    if candidates:
        chosen = _with_lists(candidates[0])
        tree["validation"] = chosen if isinstance(chosen, list) else [chosen]
    if "train" in tree:
        tree["train"] = _with_lists(tree["train"])
    optimizer = tree.get("optimizer", {})
    if "schedule" in tree:
        pieces = list(schedule_pieces(tree.pop("schedule"), str(path)))
        if len(pieces) == 1 and "rate" in pieces[0]:
            tree.setdefault("optimizer", optimizer)["learning_rate"] = pieces[0]["rate"]
        else:
            tree["schedule"] = pieces
    if tree.get("device") is not None:
        tree["device"] = str(tree["device"]).lower()
    if str(optimizer.get("name")).lower() == "adamw":
        optimizer["name"] = "AdamW"
    tree["unused"] = tuple(result.unused)
    tree["assumed"] = tuple(_assumed(tree.get("model")))
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, Params, lambda key: result.where(key) or str(path))) from None


def _assumed(model: Any) -> Iterator[str]:
    """What is taken for model settings that the file leaves out and for which the Model Zoo has another
    default.
    """
    given = model if isinstance(model, dict) else {}
    for key, zoo_default in MODEL_ZOO_DEFAULTS.items():
        if key not in given:
            default = ModelConfig.model_fields[key].default
            default = given.get("dropout_rate", 0.0) if key == "attention_dropout_rate" else default
            if default != zoo_default:
                yield f"{key}: {default} (the Model Zoo's default is {zoo_default})"
