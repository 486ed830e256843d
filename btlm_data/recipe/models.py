"""Every setting of a run, with its meaning, its default and its bounds.

Settings of two kinds. `Settings` decides the data: it is recorded in dataset.json, part of the fingerprint,
and each stage's digest covers what the stage depends on. `Run` says how the work is done (workers, memory,
folders): it is never part of a digest and never changes a byte. Both refuse unknown keys.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WrapValidator,
    field_serializer,
    model_serializer,
    model_validator,
)

from btlm_data.formats.shard_formats import FORMATS
from btlm_data.recipe.mix import MixSettings
from btlm_data.redact import without_secrets
from btlm_data.splits import Split

_UNITS = {"": 1, "B": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


def _size(value: object) -> int:
    """Bytes from "4GB" (10^9), "512MiB" (2^20) or a number. Raises ValueError with an example.

    Not pydantic's ByteSize: that reads "1.2.3GB" as one byte and "8bit" as a size.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    match = re.fullmatch(r"\s*([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})\s*([a-zA-Z]{0,3})\s*", str(value))
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(
            f"{str(value)[:80]!r} is not a size; write for example 4GB, 512MiB or a number of bytes"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


if TYPE_CHECKING:
    FormatName = str
else:
    # A new format is in recipes and in help once it is listed there; one that is registered later is known as
    # well.
    FormatName = Annotated[
        Literal[tuple(FORMATS)],
        WrapValidator(lambda value, check: value if value in tuple(FORMATS) else check(value)),
    ]


def _whole(value: object) -> object:
    """1e6 on the command line, as YAML reads it in a recipe."""
    is_power = isinstance(value, str) and re.fullmatch(
        r"\s*[0-9]{1,15}(?:\.[0-9]{1,15})?[eE]\+?[0-9]{1,2}\s*", value
    )
    return float(str(value)) if is_power else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=2**60)]
Number = Annotated[int, BeforeValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
FieldName = Annotated[str, Field(min_length=1, max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=0.5)]


# Measured while reading documents of ordinary length: 0.53 to 0.59 GB for a run in one process, 0.45 GB for
# each worker more (what they share is counted once).
_FIRST_PROCESS_BYTES, _PROCESS_BYTES = 600 * 10**6, 450 * 10**6


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceSettings(_Settings):
    """Where the text comes from and how a record is read."""

    name: Name = Field(
        description="file, folder, glob (quoted), URL (hf://, s3://, gs://, https://), or a registered "
        "corpus: sample, slimpajama, slimpajama-6b, redpajama (docs/sources.md)"
    )
    text_field: FieldName = Field(
        "text", description="record field that holds the text; dots descend into objects"
    )
    source_field: FieldName = Field(
        "meta.redpajama_set_name",
        description="record field that names the document's source; dots descend into objects",
    )
    id_field: FieldName | None = Field(
        None,
        description="record field with the document's own id; kept in documents.parquet. Without it a document is "
        "named by its file and offset",
    )
    keep_fields: tuple[FieldName, ...] = Field(
        (),
        max_length=100,
        description="record fields kept in documents.parquet, for example url,meta.timestamp",
    )
    limit: Number | None = Field(
        None, ge=1, le=10**15, description="read only the first N records of each split"
    )
    revision: Name | None = Field(None, description="hub revision; resolved and recorded in dataset.json")
    chunks: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (), max_length=10_000, description="SlimPajama chunks to read, for example 1,2; all when empty"
    )
    files: int | None = Field(None, ge=1, le=10**9, description="read only the first N files of each split")
    splits: dict[Split, tuple[Name, ...]] = Field(
        default_factory=dict,
        description="file patterns of each split, relative to the source, for example "
        "`{validation: [heldout/*.jsonl]}`; the other files are train. Default: by folder and file names "
        "(docs/sources.md)",
    )
    exclude_sources: tuple[Name, ...] = Field(
        (), max_length=100_000, description="source names to leave out, for example RedPajamaBook"
    )
    max_record_bytes: Size = Field(
        512 * 2**20, description="a longer record is rejected (record_too_large), never held in memory"
    )
    max_window: Size = Field(
        128 * 2**20,
        le=2**31,
        description="memory that decompressing one file may take; archives of `zstd --long=31` need 2GiB",
    )
    encoding: str = Field(
        "utf-8",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$",
        description="character encoding of text files, for example utf-16",
    )
    txt: Literal["file", "paragraphs", "lines"] = Field(
        "file", description="what one document of a .txt file is: the file, a paragraph, or a line"
    )
    text_join: str | None = Field(
        None,
        max_length=1000,
        description="put between the texts of a text field that is a list; without it they are rejected",
    )
    max_rejected: float = Field(
        0.05,
        ge=0,
        le=1,
        description="stop when more than this share of the records cannot be read (up to ten bad ones among more "
        "good ones never do); 1 never stops, 0 stops at the first",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SourceSettings:
        if len(set(self.keep_fields)) != len(self.keep_fields):
            raise ValueError(
                f"keep_fields: {max(self.keep_fields, key=self.keep_fields.count)} is named twice"
            )
        return self

    @property
    def kept_columns(self) -> dict[str, str]:
        """Columns of documents.parquet that hold fields of the records, and the field of each."""
        own = {} if self.id_field is None else {"id": self.id_field}
        return own | {f"fields.{name}": name for name in self.keep_fields}

    @field_serializer("name", when_used="json")
    def _name_without_secrets(self, name: str) -> str:
        """What is recorded and hashed: a URL signed again names the same corpus, and its key belongs in no
        file.
        """
        return without_secrets(name)


class CleanSettings(_Settings):
    """SlimPajama's cleaning: normalise, then drop what is too short; optional filters."""

    normalize: Literal["nfc", "ftfy", "none"] = Field(
        "nfc", description="Unicode normalisation: NFC; NFC and repair of wrongly decoded text; or none"
    )
    min_chars: int = Field(
        200,
        ge=0,
        le=10**9,
        description="drop documents with fewer characters, counted after the normalisation for deduplication "
        "(lower case, no punctuation, single spaces); 0 keeps all",
    )
    filters: tuple[dict[str, Any] | Name, ...] = Field(
        (),
        max_length=1000,
        description="filters by name, with parameters, applied in order (docs/filters.md)",
    )
    rejected_sample: int = Field(
        100, ge=0, le=10**6, description="how many dropped documents to keep as examples for each reason"
    )


# dedupe.preset: what each published method does differently from our own.
PRESETS: dict[str, dict[str, Any]] = {
    # Soboleva et al. 2023 and their scripts: connected components of documents that share a band
    "slimpajama": {"verify": "none", "bands": 9, "rows": 13, "num_perm": 128, "max_removed": 0.8},
    # Penedo et al. 2024, appendix E.1: words of five, "14 buckets with 8 hashes each"
    "fineweb": {
        "verify": "none",
        "shingle": "words",
        "shingle_size": 5,
        "bands": 14,
        "rows": 8,
        "num_perm": 112,
        "max_removed": 0.8,
    },
    # Su et al. 2024 (Nemotron-CC), with NeMo Curator's defaults: characters of 24, 20 bands of 13
    "nemotron": {
        "verify": "none",
        "shingle": "chars",
        "shingle_size": 24,
        "bands": 20,
        "rows": 13,
        "num_perm": 260,
        "max_removed": 0.8,
    },
}


class DedupeSettings(_Settings):
    """Exact and near-duplicates, within and across sources, and train against holdout."""

    method: Literal["minhash", "exact", "none"] = Field(
        "minhash", description="near-duplicates by MinHash (and exact ones), exact duplicates only, or none"
    )
    scheme: Literal["affine32", "legacy"] = Field(
        "affine32",
        description="hash functions: datasketch 2's, or those of datasketch before 2 (SlimPajama's)",
    )
    preset: Literal["slimpajama", "fineweb", "nemotron"] | None = Field(
        None,
        description="the settings of a published corpus, where others are not given, with verify: none. slimpajama: "
        "13 characters, 9 bands x 13 rows; fineweb: 5 words, 14 x 8; nemotron: 24 characters, 20 x 13",
    )
    shingle: Literal["chars", "words"] = Field(
        "chars", description="features of a document: characters or words in a row, of its normalised text"
    )
    shingle_size: int = Field(13, ge=1, le=1000, description="characters or words in a feature")
    bands: int = Field(
        16, ge=1, le=4096, description="bands of the MinHash signature; one equal band nominates a pair"
    )
    rows: int = Field(8, ge=1, le=4096, description="hash values in a band")
    num_perm: int = Field(128, ge=4, le=4096, description="hash values in a signature; at least bands x rows")
    verify: Literal["text", "signature", "none"] = Field(
        "text",
        description="what decides about pairs that share a band: their texts (a document is removed only if it is "
        "similar to one that is kept), their whole signatures, or nothing more (all connected documents but one are removed)",
    )
    threshold: float = Field(
        0.85,
        gt=0,
        le=1,
        description="with `verify`: pairs with a lower similarity are not duplicates",
    )
    similarity: Literal["jaccard", "containment"] = Field(
        "jaccard",
        description="with `verify: text`: shared features over all features of the pair, or over those of the document "
        "that would be removed",
    )
    keep: Literal["first", "longest", "source-priority"] = Field(
        "first", description="which document of a group of duplicates is kept"
    )
    source_priority: tuple[Name, ...] = Field(
        (), max_length=100_000, description="source names, best first, for keep: source-priority"
    )
    holdout: bool = Field(
        True, description="remove train documents that are (near-)duplicates of validation or test documents"
    )
    max_removed: float = Field(
        0.5, gt=0, le=1, description="stop when more than this share of a source's bytes would be removed"
    )
    expected_removed: dict[Name, tuple[Share, Share]] = Field(
        default_factory=dict,
        max_length=100_000,
        description="for sources by name, the least and the most of their bytes that may be removed, for example "
        "`{web: [0.3, 0.6]}`; stop outside of it. Takes the place of max_removed there",
    )
    max_component: float = Field(
        0.1,
        gt=0,
        le=1,
        description="stop when one component would take more than this share of a source's documents (and more than 1,000)",
    )
    index: Name | None = Field(
        None, description="folder of an index of earlier runs: drop what matches it, add what is new"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, value: Any) -> Any:
        """What a preset sets is below what is given."""
        preset = value.get("preset") if isinstance(value, dict) else None
        return {**PRESETS.get(preset, {}), **value} if isinstance(preset, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> DedupeSettings:
        if self.bands * self.rows > self.num_perm:
            raise ValueError(
                f"bands x rows = {self.bands * self.rows} needs more than num_perm = {self.num_perm} values"
            )
        if self.scheme == "legacy" and (self.shingle, self.shingle_size) != ("chars", 13):
            raise ValueError(
                "scheme: legacy knows features of 13 characters only; leave shingle and shingle_size out"
            )
        if self.keep == "source-priority" and not self.source_priority:
            raise ValueError("keep: source-priority needs source_priority: [names, best first]")
        return self


class HoldoutSettings(_Settings):
    """Validation and test: the source's own, or drawn at random."""

    fraction: Fraction = Field(
        0.0, description="share of documents drawn as validation when the source has none of its own"
    )
    test_fraction: Fraction = Field(
        0.0, description="share of documents drawn as test when the source has none of its own"
    )
    decontaminate: tuple[Name, ...] = Field(
        (),
        max_length=10_000,
        description="evaluation sets (JSON Lines or parquet): train documents that share 13 words in a row "
        "with one of them are removed",
    )
    report_only: bool = Field(False, description="list contaminated documents, remove none")


class TokenizerSettings(_Settings):
    """Which tokenizer, and how far it is checked during the run."""

    name: Name = Field(
        "gpt2", description="name: gpt2 (inside the package), a tokenizer.json, a folder, or a hub id"
    )
    revision: Name | None = Field(None, description="hub revision of the tokenizer; recorded in dataset.json")
    eos: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="the end-of-document token, where the tokenizer does not name it",
    )
    verify_every: int = Field(
        0,
        ge=0,
        le=10**12,
        description="check one document in N against `tokenizers` during the run; 0 checks only at the start",
    )
    backend: Literal["auto", "fast", "reference"] = Field(
        "auto", description="the fast tokenizer where it is exact, always the fast one, or `tokenizers`"
    )


class ShardSettings(_Settings):
    """How samples are stored in HDF5."""

    samples_per_file: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="samples in a shard. Default: 16,777,216 tokens (8,192 samples of 2,048)",
    )
    compression: Literal["gzip", "none"] = Field("gzip", description="compression of the HDF5 chunks")
    level: int = Field(1, ge=0, le=9, description="gzip level; 1 is fastest")
    hdf5_shuffle: bool = Field(
        False, description="HDF5's byte-shuffle filter: files 5 % smaller, half as fast to read"
    )
    dtype: Literal["int32", "uint16"] = Field(
        "int32", description="type of the values; Model Zoo's reader needs int32"
    )


class SetSettings(_Settings):
    """One prepared set: a sequence length and, if the documents are divided, this set's share of them."""

    seq_len: int = Field(ge=1, le=2**20, description="tokens in a sample")
    share: float | None = Field(None, gt=0, le=1, description="share of the documents; all when absent")

    @property
    def name(self) -> str:
        """Folder name when several sets are prepared at once."""
        return f"msl{self.seq_len}"


def parse_sets(value: object) -> object:
    """seq_len accepts 2048, "2048:0.75", or a list of these."""
    items = value if isinstance(value, list | tuple) else [value]
    sets: list[object] = []
    for item in items:
        if isinstance(item, str):
            length, colon, share = item.partition(":")
            if not re.fullmatch(r"\s*[0-9]{1,9}\s*", length) or (
                colon and not re.fullmatch(r"\s*[0-9]*\.?[0-9]{1,20}\s*", share)
            ):
                several = re.fullmatch(r"\s*[0-9]+(?:\s*[,;]\s*[0-9]+)+\s*", item) is not None
                example = " ".join(f"--seq-len {digits}" for digits in re.findall("[0-9]+", item))
                raise ValueError(
                    f"{item[:80]!r} is not a sequence length; write 2048, or 2048:0.75 for a share of the "
                    "documents" + (f"; for several, {example[:80]}, or [a, b] in a recipe" if several else "")
                )
            sets.append({"seq_len": int(length), "share": float(share) if share else None})
        elif isinstance(item, int) and not isinstance(item, bool):
            sets.append({"seq_len": item})
        else:
            sets.append(item)
    return sets


def _by_name(key: str) -> BeforeValidator:
    """Let `tokenizer: gpt2` mean `tokenizer: {name: gpt2}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Settings(_Settings):
    """Everything that decides the bytes of a prepared dataset."""

    source: Annotated[SourceSettings, _by_name("name")]
    clean: CleanSettings = CleanSettings()
    dedupe: Annotated[DedupeSettings, _by_name("method")] = DedupeSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    tokenizer: Annotated[TokenizerSettings, _by_name("name")] = TokenizerSettings()
    seq_len: Annotated[tuple[SetSettings, ...], BeforeValidator(parse_sets)] = Field(
        (SetSettings(seq_len=2048),),
        min_length=1,
        max_length=64,
        description="tokens in a sample; a list for several; `2048:0.75` takes a share of the documents",
    )
    format: FormatName = Field(
        "sample",
        description="samples of (3, seq_len); the token stream; or whole documents packed into samples",
    )
    shuffle: Literal["samples", "documents", "none"] = Field(
        "samples",
        description="what is shuffled, over the whole split: documents and samples, documents, or none",
    )
    tail: Literal["pad", "drop"] = Field(
        "pad", description="the last, short sample of a split: padded, or dropped (and counted)"
    )
    mix: MixSettings = Field(
        MixSettings(), description="epochs of each source, 1 where not named; and by the copies of a document"
    )
    annotate: tuple[dict[str, Any] | Name, ...] = Field(
        (),
        max_length=100,
        description="signals kept beside each document in documents.parquet, by name, with parameters "
        "(docs/reselect.md)",
    )
    max_documents_per_sample: int | None = Field(
        None, ge=1, le=2**20, description="for vsl: most documents in one sample"
    )
    shards: ShardSettings = ShardSettings()
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        shares = [item.share for item in self.seq_len]
        if any(share is not None for share in shares):
            if any(share is None for share in shares):
                raise ValueError("seq_len: give every length a share, or none")
            if sum(share for share in shares if share is not None) > 1 + 1e-9:
                raise ValueError(
                    f"seq_len: the shares add up to {sum(s or 0 for s in shares):g}, more than 1"
                )
        lengths = [item.seq_len for item in self.seq_len]
        if len(set(lengths)) != len(lengths):
            raise ValueError(f"seq_len: {max(lengths, key=lengths.count)} is named twice")
        if self.mix.by_copies and self.dedupe.method == "none":
            raise ValueError(
                "mix.by_copies counts the duplicates that were removed, and dedupe: none removes none; leave it out, or "
                "set dedupe to minhash or exact"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `annotate` where it is not used: a dataset without signals is described as ever."""
        return {key: value for key, value in handler(self).items() if key != "annotate" or value}


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Stage = Literal["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard"]


class Run(_Settings):
    """How the work is done: never part of a digest, never changes a byte."""

    out: Name = Field("shards", description="folder of the dataset, or a URL to write to")
    work_dir: Name | None = Field(
        None, description="folder of intermediate files and receipts. Default: .work inside `out`"
    )
    workers: int = Field(
        default_factory=_cpu_count,
        ge=1,
        le=4096,
        description="number of processes. Default: one for each core",
    )
    memory: Annotated[Size, Field(ge=10_000)] | None = Field(
        None,
        description="memory of the whole run; at least 600 MB, and 450 MB for each worker but the first. Default: 1 GB "
        "for each worker. From 10 kB to 1 MB: the smallest pieces, to try on a small corpus what happens to a large one",
    )
    engine: Literal["local", "workers", "ray", "parsl"] = Field(
        "local",
        description="where tasks run: processes on this machine, `btlm-data worker` processes anywhere, a Ray "
        "cluster, or pilot jobs of a batch system",
    )
    cluster: Name | None = Field(
        None, description="for parsl: the site file, which says how pilot jobs are started"
    )
    ray_address: Name | None = Field(
        None,
        description="for ray: address of the cluster. Default: RAY_ADDRESS, or one started on this machine",
    )
    strict: bool = Field(False, description="the first record that cannot be read ends the run with an error")
    accept_removal: bool = Field(
        False, description="continue regardless of how much deduplication would remove"
    )
    accept_removal_of: tuple[Name, ...] = Field(
        (),
        max_length=100_000,
        description="continue regardless of how much deduplication would remove of these sources",
    )
    allow_missing_source: bool = Field(
        False, description="accept source names in settings that no document has"
    )
    skip_failed: bool = Field(
        False,
        description="leave out input that has killed every process that tried to read it, and count it",
    )
    report: bool = Field(True, description="also write report.html, a page about the dataset, beside it")
    card: Literal["plain", "eu", "none"] = Field(
        "plain",
        description="README.md and croissant.json beside the dataset; eu: with the fields of the European Commission's "
        "summary of training content; none: neither",
    )
    overwrite: bool = Field(False, description="replace another dataset in the output folder")
    stop_after: Stage | None = Field(None, description="end after this stage; a later run continues")
    emit_text: Name | None = Field(None, description="also write the kept text as .jsonl.zst to this folder")
    cache_dir: Name | None = Field(None, description="folder of downloaded files while they are read")
    cache_size: Size = Field(50 * 10**9, description="most bytes of downloaded files on disk at once")
    keep_downloads: bool = Field(False, description="keep downloaded files after they are read")
    sources_file: Name | None = Field(None, description="YAML file with more registered sources")
    timeout: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="seconds without a byte from a server before the request is repeated",
    )
    retries: int = Field(8, ge=0, le=1000, description="how often a failed request is repeated")
    retry_pause: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="seconds before the first repetition; doubles each time up to a minute, and a server's "
        "Retry-After takes precedence",
    )

    @property
    def least_memory(self) -> int:
        """Bytes that the processes of a run on this machine take whatever is read; less cannot be kept."""
        return _FIRST_PROCESS_BYTES + (self.workers - 1) * _PROCESS_BYTES

    @property
    def memory_per_worker(self) -> int:
        """Bytes one worker may hold."""
        return (self.memory or 10**9 * self.workers) // self.workers

    @property
    def memory_alone(self) -> int:
        """Bytes that a task may hold that no other can run beside: here those of all workers, elsewhere those of 16, as of a node."""
        return self.memory_per_worker * (self.workers if self.engine == "local" else min(self.workers, 16))

    @property
    def threads_alone(self) -> int:
        """Threads of a task that no other can run beside: here as many as workers, which wait; elsewhere all cores of its node."""
        return self.workers if self.engine == "local" else 4096


class Recipe(Settings):
    """A recipe file: the settings, and under `run` how to do it."""

    run: Run = Run()

    @property
    def settings(self) -> Settings:
        """The part that decides bytes."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})
