"""The options of `prepare` and `run`: which recipe key each sets, in groups, the most used first.

Type, choices, default and help come from the settings themselves (models.py); this table adds the names only.
A setting without an option is reached by `--set KEY=VALUE`.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from btlm_data.entry import Completed, GroupedOption
from btlm_data.errors import ConfigError
from btlm_data.recipe.load import Override, parse_assignment
from btlm_data.recipe.models import Recipe
from btlm_data.recipe.yaml_file import YamlError, parse_value
from btlm_data.splits import SPLITS

logger = logging.getLogger(__name__)


class Flag(NamedTuple):
    """An option. key: the recipe key it sets, or "" where the command itself reads it.

    help: where the setting's own would not do.
    """

    name: str
    key: str
    metavar: str | None = None
    help: str | None = None


GROUPS: dict[str, tuple[Flag, ...]] = {
    "Most used": (
        Flag("--source", "source.name", "SOURCE"),
        Flag("--out", "run.out", "DIR"),
        Flag("--seq-len", "seq_len", "N[:SHARE]",
             "Tokens in a sample. Repeat for several lengths from one pass; with shares (2048:0.75) each "
             "document goes to one of them."),
        Flag("--tokenizer", "tokenizer.name", "NAME"),
        Flag("--text-field", "source.text_field", "FIELD"),
        Flag("--workers", "run.workers", "N"),
        Flag("--memory", "run.memory", "SIZE"),
        Flag("--overwrite", "run.overwrite"),
    ),
    "What is read": (
        Flag("--source-field", "source.source_field", "FIELD"),
        Flag("--id-field", "source.id_field", "FIELD"),
        Flag("--keep-field", "source.keep_fields", "FIELD"),
        Flag("--limit", "source.limit", "N"),
        Flag("--files", "source.files", "N"),
        Flag("--chunks", "source.chunks", "1,2"),
        Flag("--split-rule", "source.splits", "SPLIT=PATTERN",
             "Which files are validation or test, for example validation=heldout/*.jsonl; the others are "
             "train. Repeatable. Default: by folder and file names."),
        Flag("--exclude-source", "source.exclude_sources", "NAME"),
        Flag("--allow-missing-source", "run.allow_missing_source"),
        Flag("--max-rejected", "source.max_rejected", "SHARE"),
        Flag("--strict", "run.strict"),
        Flag("--encoding", "source.encoding", "NAME"),
        Flag("--revision", "source.revision", "REV"),
        Flag("--sources-file", "run.sources_file", "FILE"),
    ),
    "Cleaning": (
        Flag("--normalize", "clean.normalize"),
        Flag("--min-chars", "clean.min_chars", "N"),
        Flag("--filter", "clean.filters", "FILTER",
             "A filter of documents: its name, as in --filter gopher_quality, or its name and parameters, as "
             "in --filter '{name: language, keep: [en]}' (docs/filters.md). Repeatable; applied in order."),
    ),
    "Deduplication": (
        Flag("--dedupe", "dedupe.method"),
        Flag("--dedupe-preset", "dedupe.preset"),
        Flag("--bands", "dedupe.bands", "N"),
        Flag("--rows", "dedupe.rows", "N"),
        Flag("--num-perm", "dedupe.num_perm", "N"),
        Flag("--dedupe-verify", "dedupe.verify"),
        Flag("--similarity", "dedupe.similarity"),
        Flag("--threshold", "dedupe.threshold", "S"),
        Flag("--keep", "dedupe.keep"),
        Flag("--source-priority", "dedupe.source_priority", "NAME"),
        Flag("--dedupe-index", "dedupe.index", "DIR"),
        Flag("--max-removed", "dedupe.max_removed", "SHARE"),
        Flag("--accept-removal", "run.accept_removal"),
        Flag("--accept-removal-of", "run.accept_removal_of", "NAME"),
    ),
    "Validation and test": (
        Flag("--holdout", "holdout.fraction", "SHARE"),
        Flag("--test-holdout", "holdout.test_fraction", "SHARE"),
        Flag("--decontaminate", "holdout.decontaminate", "FILE"),
        Flag("--report-only", "holdout.report_only"),
    ),
    "Samples and shards": (
        Flag("--format", "format"),
        Flag("--shuffle", "shuffle"),
        Flag("--seed", "seed", "N"),
        Flag("--mix", "mix", "SOURCE=EPOCHS",
             "How often a source's documents are seen in an epoch, for example Books=2; 1 where not named. "
             "Repeatable."),
        Flag("--annotate", "annotate", "SIGNAL",
             "A signal to keep beside each document, by name (gopher, repetition, c4, pii, host, language) or with "
             "parameters as in --annotate '{host: url}' (docs/reselect.md). Repeatable."),
        Flag("--tail", "tail"),
        Flag("--eos", "tokenizer.eos", "TOKEN"),
        Flag("--samples-per-file", "shards.samples_per_file", "N"),
    ),
    "How it runs": (
        Flag("--stop-after", "run.stop_after"),
        Flag("--report", "run.report"),
        Flag("--card", "run.card"),
        Flag("--emit-text", "run.emit_text", "DIR"),
        Flag("--work-dir", "run.work_dir", "DIR"),
        Flag("--cache-dir", "run.cache_dir", "DIR"),
        Flag("--cache-size", "run.cache_size", "SIZE"),
        Flag("--keep-downloads", "run.keep_downloads"),
        Flag("--engine", "run.engine"),
        Flag("--cluster", "run.cluster", "FILE"),
        Flag("--ray-address", "run.ray_address", "ADDRESS"),
        Flag("--skip-failed", "run.skip_failed"),
    ),
}  # fmt: skip


def options(source_names: Callable[[], list[str]]) -> Iterator[GroupedOption]:
    """All options that set a recipe key, in the order of GROUPS.

    source_names: names that the shell may propose for --source.
    """
    for group, flags in GROUPS.items():
        for flag in flags:
            yield _option(flag, group, {"source.name": source_names} | _COMPLETIONS)


def overrides(values: Mapping[str, Any], assignments: tuple[str, ...]) -> dict[str, Override]:
    """What the command line says about the recipe: recipe key -> value. values: by parameter name; None or ()
    where not given.

    Raises ConfigError naming the option.
    """
    given: dict[str, Override] = {}
    for flags in GROUPS.values():
        for flag in flags:
            value = values.get(parameter_name(flag.key))
            if value is None or value == ():
                continue
            given[flag.key] = Override(_READ.get(flag.key, _plain)(value), flag.name)
    for assignment in assignments:
        key, override = parse_assignment(assignment)
        if key in given and not given[key].shown.startswith("--set"):
            logger.warning("%s is overridden by --set %s; give one of the two.", given[key].shown, key)
        given[key] = override
    return given


def parameter_name(key: str) -> str:
    """The name under which click passes the option of a recipe key."""
    return "key_" + key.replace(".", "__")


def _option(flag: Flag, group: str, completions: Mapping[str, Callable[[], list[str]]]) -> GroupedOption:
    field = field_of(flag.key)
    kind = _unwrapped(field.annotation)
    text = flag.help or _sentence(field.description or "")
    extra: dict[str, Any] = {"help": f"{text}{_default(field)}", "group": group, "default": None}
    if kind is bool:
        name = f"{flag.name}/--no-{flag.name[2:]}" if field.default else flag.name
        return GroupedOption([name, parameter_name(flag.key)], is_flag=True, **extra)
    if get_origin(kind) is Literal:
        extra["type"] = click.Choice([str(choice) for choice in get_args(kind)])
    elif flag.key in completions:
        extra["type"] = Completed(completions[flag.key], files=flag.key != "source.splits")
    elif flag.metavar in ("DIR", "FILE"):
        extra["type"] = click.Path()
    if flag.key == "mix" or (get_origin(kind) in (tuple, dict) and flag.key != "source.chunks"):
        extra["multiple"] = True
        extra["default"] = ()
    return GroupedOption([flag.name, parameter_name(flag.key)], metavar=flag.metavar, **extra)


def field_of(key: str) -> FieldInfo:
    """The field of a dotted recipe key."""
    model: Any = Recipe
    *sections, last = key.split(".")
    for section in sections:
        model = _unwrapped(model.model_fields[section].annotation)
        assert issubclass(model, BaseModel)
    field = model.model_fields[last]
    assert isinstance(field, FieldInfo)
    return field


def _unwrapped(annotation: Any) -> Any:
    """The type without Annotated and without None."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _default(field: FieldInfo) -> str:
    value = field.default
    if (
        "Default:" in (field.description or "")
        or field.is_required()
        or field.default_factory
        or value is None
        or value in ((), False)
        or isinstance(value, BaseModel)
    ):
        return ""
    if isinstance(value, tuple):
        return f"  [default: {value[0].seq_len}]"
    if isinstance(value, bool):
        return "  [default: on]"
    return (
        f"  [default: {value:,}]" if isinstance(value, int) and value >= 10_000 else f"  [default: {value}]"
    )


# Reading what the options give ------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _chunks(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _entries(name: str, example: str) -> Callable[[tuple[str, ...]], list[Any]]:
    def read(values: tuple[str, ...]) -> list[Any]:
        entries = []
        for text in values:
            try:
                value = parse_value(text)
            except YamlError as error:
                raise ConfigError(
                    f"{name} {text!r}: {error} Write a name, or for example {name} '{example}'."
                ) from None
            entries.append(value if isinstance(value, dict) else text)
        return entries

    return read


def _pairs(name: str, example: str) -> Callable[[tuple[str, ...]], list[tuple[str, str]]]:
    def read(values: tuple[str, ...]) -> list[tuple[str, str]]:
        pairs = []
        for text in values:
            left, equals, right = text.rpartition("=") if name == "--mix" else text.partition("=")
            if not equals or not left.strip() or not right.strip():
                raise ConfigError(
                    f"{name} {text!r} is not {example.partition('=')[0].upper()}=VALUE. Write for example "
                    f"{name} {example}."
                )
            pairs.append((left.strip(), right.strip()))
        return pairs

    return read


def _split_rules(values: tuple[str, ...]) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {}
    for split, pattern in _pairs("--split-rule", "validation=heldout/*.jsonl")(values):
        rules.setdefault(split, []).append(pattern)
    return rules


def _mix(values: tuple[str, ...]) -> dict[str, str]:
    return dict(_pairs("--mix", "Books=2")(values))


_READ: dict[str, Callable[[Any], Any]] = {
    "source.chunks": _chunks,
    "source.splits": _split_rules,
    "clean.filters": _entries("--filter", "{name: language, keep: [en]}"),
    "annotate": _entries("--annotate", "{host: url}"),
    "mix": _mix,
}

# Shell completion -------------------------------------------------------------------------------------------


def _split_rule_starts() -> list[str]:
    return [f"{split}=" for split in SPLITS]


_COMPLETIONS: dict[str, Callable[[], list[str]]] = {
    "source.splits": _split_rule_starts,
    "tokenizer.name": lambda: ["gpt2"],
}
