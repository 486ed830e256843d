"""Settings of every stage, read from YAML and from the command line; the only YAML in the code.

A *what* setting decides bytes and is part of a stage's digest; a *how* setting (workers, memory, engine, folders)
never is. `Settings` holds the first kind, `Run` the second. Both reject unknown keys, and `load` turns every mistake
into a ConfigError that names the key, the file and line, and the nearest valid name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from btlm_data.errors import ConfigError

SPLITS = ("train", "validation", "test")
_UNITS = {
    "": 1,
    "B": 1,
    "K": 1000,
    "KB": 1000,
    "M": 10**6,
    "MB": 10**6,
    "G": 10**9,
    "GB": 10**9,
    "T": 10**12,
    "TB": 10**12,
}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(value: object) -> int:
    """Bytes from "4GB", "512MiB" or a number. Raises ValueError with an example if it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)\s*", str(value))
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write for example 4GB, 512MiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class SourceSettings(_Model):
    """Where the text comes from and how a record is read."""

    name: str = Field(
        "sample", description="registered name, local file, folder or glob, or URL (hf://, s3://, https://)"
    )
    text_field: str = Field(
        "text", min_length=1, description="record field that holds the text; dots descend"
    )
    source_field: str = Field(
        "meta.redpajama_set_name", description="record field that names the document's source; dots descend"
    )
    limit: int | None = Field(None, ge=1, description="read only the first N records of each split")
    revision: str | None = Field(None, description="hub revision; resolved and pinned in dataset.json")
    chunks: tuple[int, ...] = Field(
        (), description="SlimPajama chunks to read, for example 1,2; all when empty"
    )
    files: int | None = Field(None, ge=1, description="read only the first N files of each split")
    exclude_sources: tuple[str, ...] = Field(
        (), description="source names to leave out, for example RedPajamaBook"
    )
    max_record_bytes: Size = Field(
        512 * 2**20, description="a longer record is rejected (record_too_large), never held in memory"
    )


class CleanSettings(_Model):
    """SlimPajama's cleaning: normalise, then drop what is too short; optional filters."""

    normalize: Literal["nfc", "ftfy", "none"] = "nfc"
    min_chars: int = Field(
        200, ge=0, description="characters of the text normalised as for deduplication; single spaces count"
    )
    filters: tuple[dict[str, Any] | str, ...] = Field(
        (), description="filters by name with parameters, applied in order"
    )
    rejected_sample: int = Field(100, ge=0, description="examples kept of what each reason dropped")


class DedupeSettings(_Model):
    """Section 5 of the design: exact and near-duplicates, within and across sources, train against holdout."""

    method: Literal["minhash", "exact", "none"] = "minhash"
    scheme: Literal["affine32", "legacy"] = "affine32"
    bands: int = Field(9, ge=1)
    rows: int = Field(13, ge=1)
    num_perm: int = Field(128, ge=4)
    threshold: float = Field(
        0.8, gt=0, le=1, description="used by verify: pairs estimated below it are no duplicates"
    )
    verify: bool = False
    keep: Literal["first", "longest", "source-priority"] = "first"
    source_priority: tuple[str, ...] = ()
    holdout: bool = Field(
        True, description="remove from train what is a (near-)duplicate of a validation or test document"
    )
    max_removed: float = Field(
        0.8, gt=0, le=1, description="stop when more than this share of a source's bytes would go"
    )
    index: str | None = Field(
        None, description="folder of an index of earlier runs: drop what matches it, add what is new"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DedupeSettings:
        if self.bands * self.rows > self.num_perm:
            raise ValueError(
                f"bands x rows = {self.bands * self.rows} needs more than num_perm = {self.num_perm} values"
            )
        if self.keep == "source-priority" and not self.source_priority:
            raise ValueError("keep: source-priority needs source_priority: [names, best first]")
        return self


class HoldoutSettings(_Model):
    """Validation and test: the source's own, or drawn."""

    fraction: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of documents drawn as validation when the source has none of its own",
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=0.5, description="share of documents drawn as test when the source has none of its own"
    )
    decontaminate: tuple[str, ...] = Field(
        (), description="evaluation sets (JSONL or parquet): train documents sharing a 13-word n-gram go"
    )
    report_only: bool = Field(False, description="list contaminated documents, remove none")


class TokenizerSettings(_Model):
    """Which tokenizer, and how far it is re-checked during the run."""

    name: str = Field(
        "gpt2", description="gpt2 (inside the package), a tokenizer.json, a folder, or a hub id"
    )
    revision: str | None = None
    eos: str | None = Field(
        None, description="the end-of-document token, where it cannot be told from the tokenizer"
    )
    verify_every: int = Field(
        0, ge=0, description="re-check one document in N against `tokenizers`; 0 checks only at start"
    )
    backend: Literal["auto", "fast", "reference"] = "auto"


class ShardSettings(_Model):
    """How samples are laid down in HDF5."""

    samples_per_file: int | None = Field(
        None, ge=1, description="default: 16,777,216 tokens a file (8,192 samples of 2,048)"
    )
    compression: Literal["gzip", "none"] = "gzip"
    level: int = Field(1, ge=0, le=9)
    hdf5_shuffle: bool = False
    dtype: Literal["int32", "uint16"] = "int32"


class Part(_Model):
    """One prepared set: a sequence length and, if the documents are divided, this set's share of them."""

    seq_len: int = Field(ge=1, le=2**20)
    share: float | None = Field(None, gt=0, le=1)

    @property
    def name(self) -> str:
        """Folder name when several sets are prepared at once."""
        return f"msl{self.seq_len}"


def parse_parts(value: object) -> object:
    """seq_len accepts 2048, "2048:0.75", or a list of these."""
    items = value if isinstance(value, list | tuple) else [value]
    parts: list[object] = []
    for item in items:
        if isinstance(item, str):
            length, _, share = item.partition(":")
            if not length.strip().isdigit() or (share and not re.fullmatch(r"\s*\d*\.?\d+\s*", share)):
                raise ValueError(
                    f"{item!r} is not a sequence length; write 2048, or 2048:0.75 for a share of the documents"
                )
            parts.append({"seq_len": int(length), "share": float(share) if share else None})
        elif isinstance(item, int) and not isinstance(item, bool):
            parts.append({"seq_len": item})
        else:
            parts.append(item)
    return parts


def _by_name(key: str) -> BeforeValidator:
    """Let `tokenizer: gpt2` mean `tokenizer: {name: gpt2}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Settings(_Model):
    """Everything that decides the bytes of a prepared dataset."""

    source: Annotated[SourceSettings, _by_name("name")] = SourceSettings()
    clean: CleanSettings = CleanSettings()
    dedupe: Annotated[DedupeSettings, _by_name("method")] = DedupeSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    tokenizer: Annotated[TokenizerSettings, _by_name("name")] = TokenizerSettings()
    seq_len: Annotated[tuple[Part, ...], BeforeValidator(parse_parts)] = Field(
        (Part(seq_len=2048),), min_length=1
    )
    format: Literal["sample", "corpus", "vsl"] = "sample"
    shuffle: Literal["samples", "documents", "none"] = "samples"
    tail: Literal["pad", "drop"] = Field(
        "pad", description="the last sample of a split: padded, or dropped (and counted)"
    )
    mix: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict, description="epochs per source; 1 where unnamed"
    )
    max_documents_per_sample: int | None = Field(None, ge=1, description="vsl only")
    shards: ShardSettings = ShardSettings()
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        shares = [part.share for part in self.seq_len]
        if any(share is not None for share in shares):
            if any(share is None for share in shares):
                raise ValueError("seq_len: give every length a share, or none")
            if sum(share for share in shares if share is not None) > 1 + 1e-9:
                raise ValueError(
                    f"seq_len: the shares add up to {sum(s or 0 for s in shares):g}, more than 1"
                )
        lengths = [part.seq_len for part in self.seq_len]
        if len(set(lengths)) != len(lengths):
            raise ValueError(f"seq_len: {max(lengths, key=lengths.count)} is named twice")
        return self


class Run(_Model):
    """How the work is done: never part of a digest, never changes a byte."""

    out: str = "shards"
    work_dir: str | None = None
    workers: int = Field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ),
        ge=1,
    )
    memory: Size | None = Field(None, description="for the whole run; default: 1 GB a worker")
    engine: Literal["local"] = "local"
    strict: bool = Field(False, description="the first bad record ends the run with an error")
    accept_removal: bool = Field(False, description="go on although dedupe.max_removed is exceeded")
    overwrite: bool = Field(False, description="replace another dataset in the output folder")
    stop_after: (
        Literal["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard"] | None
    ) = None
    emit_text: str | None = Field(None, description="also write the kept text as .jsonl.zst to this folder")
    cache_dir: str | None = Field(None, description="where remote files are kept while they are read")
    cache_size: Size = Field(50 * 10**9, description="most bytes of remote files on disk at once")
    keep_downloads: bool = False
    sources_file: str | None = Field(None, description="more registered sources (YAML)")
    timeout: float = Field(
        60.0, gt=0, description="seconds without a byte from a server before it is asked again"
    )
    retries: int = Field(8, ge=0, description="times a failed request is repeated, with growing pauses")
    retry_pause: float = Field(
        1.0,
        gt=0,
        description="seconds before the first repeat; doubles up to a minute, and a server's Retry-After counts more",
    )

    @property
    def memory_per_worker(self) -> int:
        """Bytes one worker may hold."""
        return (self.memory or 10**9 * self.workers) // self.workers


class Recipe(Settings):
    """A pipeline file: the settings, and under `run` how to do it."""

    run: Run = Run()

    @property
    def settings(self) -> Settings:
        """The part that decides bytes."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def digest(*parts: object) -> str:
    """Fingerprint of settings and other JSON values: hex SHA-256 of their canonical JSON."""
    values = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(path: Path | None, overrides: Mapping[str, tuple[Any, str]]) -> Recipe:
    """Read a recipe and lay the command line over it.

    path: YAML (or a dataset.json, whose recorded configuration is repeated). overrides: dotted key -> (value, how the
    user wrote it, for messages). Raises ConfigError naming the key, the place and the nearest valid key.
    """
    tree: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    if path is not None:
        tree, lines = _read(path)
    origins: dict[tuple[str, ...], str] = {}
    for dotted, (value, written) in overrides.items():
        keys = tuple(dotted.split("."))
        _set(tree, keys, value)
        origins[keys] = written
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(e, tree, path, lines, origins) for e in error.errors())
        ) from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE; the value is read as YAML, so numbers, true and [a, b] mean what they mean in a file."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_0-9]+(\.[A-Za-z_0-9-]+)*", key.strip()):
        raise ConfigError(
            f"--set {text!r} is not KEY=VALUE. The key is dotted lower case. Write for example --set clean.min_chars=100"
        )
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {text!r}: the value is not valid YAML. Quote it, for example --set 'source.name=\"a: b\"'."
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The tree of a YAML or dataset.json file, and the line of each key path."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The recipe {path} cannot be read: {error.strerror}. Name a pipeline file, for example pipelines/sample.yaml."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The recipe {path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError(
                f"{path}: YAML aliases (*name) are not allowed in a recipe. Write the value out."
            )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path}{place}: not valid YAML ({getattr(error, 'problem', error)}). Mend that line."
        ) from None
    if isinstance(tree, dict) and "configuration" in tree and "format_version" in tree:
        return dict(tree["configuration"]), {}
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: found a {type(tree).__name__}, expected `key: value` lines. See pipelines/sample.yaml for an example."
        )
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: Any, prefix: tuple[str, ...]) -> None:
        pairs: Sequence[tuple[Any, Any]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [(key.value, (key, value)) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pairs = [(str(i), (value, value)) for i, value in enumerate(node.value)]
        for name, (key, value) in pairs:
            lines[(*prefix, name)] = key.start_mark.line + 1
            walk(value, (*prefix, name))

    walk(node, ())
    return tree, lines


def _set(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        if isinstance(child, str):  # `dedupe: exact` in the file, then --set dedupe.verify=true
            child = {{"dedupe": "method"}.get(key, "name"): child}
        tree[key] = child = dict(child) if isinstance(child, dict) else {}
        tree = child
    existing = tree.get(keys[-1])
    if (
        isinstance(existing, dict)
        and isinstance(value, str)
        and keys[-1] in ("source", "tokenizer", "dedupe")
    ):
        existing[{"dedupe": "method"}.get(keys[-1], "name")] = value
    else:
        tree[keys[-1]] = value


def _explain(
    error: Any,
    tree: Mapping[str, Any],
    path: Path | None,
    lines: Mapping[tuple[str, ...], int],
    origins: Mapping[tuple[str, ...], str],
) -> str:
    location = tuple(str(part) for part in error["loc"])
    shown = ".".join(location) or "the recipe"
    place = next(
        (origins[location[:i]] for i in range(len(location), 0, -1) if location[:i] in origins), None
    )
    if place is None and path is not None:
        line = next((lines[location[:i]] for i in range(len(location), 0, -1) if location[:i] in lines), None)
        place = f"{path} line {line}" if line else str(path)
    prefix = f"{place}: " if place else ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        advice = (
            f"Did you mean {'.'.join((*location[:-1], near[0]))}?"
            if near
            else f"Known here: {', '.join(sorted(known))}."
        )
        return f"{prefix}there is no setting {shown!r}. {advice}"
    message = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
    value = error.get("input")
    given = "" if isinstance(value, dict | list | tuple | BaseModel) else f" (given: {value!r})"
    return f"{prefix}{shown}: {message[0].lower() + message[1:]}{given}."


def _known_keys(location: tuple[str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        field = (
            model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        )
        if field is None:
            if part.isdigit():
                continue
            return []
        model = field.annotation
        if getattr(model, "__origin__", None) is tuple:
            model = Part
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
