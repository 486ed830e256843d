"""The state of one run: what each stage hands on to the next, typed and in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from btlm_data.blocks import Block
from btlm_data.cleaning.evaluation_sets import EvaluationFile, evaluation_files
from btlm_data.cleaning.filters import Filters, plan_filters
from btlm_data.cleaning.signals import Signals, plan_signals
from btlm_data.engine.runner import Runner
from btlm_data.fingerprint import digest
from btlm_data.formats import dataset
from btlm_data.formats.dataset import ShardFile
from btlm_data.formats.ledger import STAGES
from btlm_data.output_folder import OutputFolder
from btlm_data.recipe.models import Recipe, Run, SetSettings, Settings
from btlm_data.records.base import Fields, ReadOptions
from btlm_data.sources.base import Listing
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.stages.block_writer import ReadSettings
from btlm_data.stages.mixing import MixFiles
from btlm_data.stages.pack import SampleSet
from btlm_data.stages.shard import Planned
from btlm_data.stages.shuffle import ScatteredGroup
from btlm_data.stages.stream import StreamIndex
from btlm_data.task import Artifact, Counts, Step, TaskResult
from btlm_data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, looked up: files, tokenizer, filters, evaluation sets. Nothing of the text has
    been read.
    """

    recipe: Recipe
    listing: Listing
    tokenizer: Tokenizer
    filters: Filters
    evaluation: Sequence[EvaluationFile]
    signals: Signals

    @staticmethod
    def look_up(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Inputs:
        """List the source, load the tokenizer where none is given. Raises BtlmError for everything that a user can
        correct.
        """
        settings = recipe.settings
        listing = list_files(settings.source, recipe.run)
        if tokenizer is None:
            tokenizer = load_tokenizer(
                settings.tokenizer.name,
                eos=settings.tokenizer.eos,
                backend=settings.tokenizer.backend,
                revision=settings.tokenizer.revision,
            )
        return Inputs(
            recipe,
            listing,
            tokenizer,
            plan_filters(settings.clean.filters),
            evaluation_files(settings.holdout.decontaminate) if settings.holdout.decontaminate else (),
            plan_signals(settings.annotate),
        )

    @property
    def settings(self) -> Settings:
        """What decides bytes."""
        return self.recipe.settings

    @property
    def run(self) -> Run:
        """How the work is done."""
        return self.recipe.run

    @property
    def options(self) -> ReadOptions:
        """How the files are read: the user's choice, what the source's registration says, or the default."""
        source, listed = self.settings.source, self.listing.fields
        return ReadOptions(
            Fields(
                listed.get("text_field", source.text_field), listed.get("source_field", source.source_field)
            ),
            max_record_bytes=source.max_record_bytes,
            max_window=source.max_window,
            encoding=source.encoding,
            txt=source.txt,
            text_join=source.text_join,
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings, with what the source itself decided where the user did not."""
        configuration: dict[str, Any] = self.settings.model_dump(mode="json")
        configuration["source"] |= self.listing.fields
        return configuration

    @property
    def set_folders(self) -> list[str]:
        """Folders of the prepared sets in the dataset; "" where there is only one."""
        sets = self.settings.seq_len
        return [set_.name for set_ in sets] if len(sets) > 1 else [""]

    @cached_property
    def fingerprint(self) -> str:
        """Of the run: settings and inputs with their modification times. An unchanged run has nothing to do."""
        identities = [file.identity for file in self.listing.files]
        return digest(
            self.settings,
            identities,
            self.tokenizer.fingerprint,
            self.filters.fingerprint if self.filters.entries else None,
            [list(file) for file in self.evaluation],
            dataset.FORMAT_VERSION,
            *([self.signals.fingerprint] if self.signals.entries else []),
        )

    def read_settings(self, ngrams: Artifact | None) -> ReadSettings:
        """What the pass over the text needs. ngrams: the table of evaluation n-grams."""
        from btlm_data.stages import read

        keep_signatures = read.keeps_signatures(self.settings)
        need_sha256 = read.needs_sha256(self.settings)
        products = read.product_digests(
            self.settings,
            self.filters,
            self.options,
            self.tokenizer.spec,
            ngrams,
            self.signals,
            keep_signatures=keep_signatures,
            need_sha256=need_sha256,
        )
        return ReadSettings(
            settings=self.settings,
            filters=self.filters,
            signals=self.signals,
            options=self.options,
            tokenizer=self.tokenizer.spec,
            fetcher=Fetcher.of(self.run, self.listing),
            products=products,
            strict=self.run.strict,
            keep_signatures=keep_signatures,
            need_sha256=need_sha256,
        )


class PreparedSplit(msgspec.Struct):
    """One split of a set and the shards that hold it."""

    sample_set: SampleSet
    files: list[ShardFile] = msgspec.field(default_factory=list)


class PreparedSet(msgspec.Struct):
    """One prepared length: its folder ("" where it is the only one) and splits."""

    index: int
    settings: SetSettings
    folder: str
    splits: dict[str, PreparedSplit] = msgspec.field(default_factory=dict)

    def split_folder(self, split: str) -> str:
        """Folder of a split in the dataset folder."""
        return f"{self.folder}/{split}" if self.folder else split


class Preparation(msgspec.Struct):
    """One run in progress. Each stage reads what earlier ones have set, and sets its own."""

    inputs: Inputs
    runner: Runner
    output: OutputFolder
    adds_to_index: bool = True  # where dedupe.index names one
    counts: dict[str, Counts] = msgspec.field(default_factory=lambda: {name: Counts() for name in STAGES})
    ngrams: Artifact | None = None  # holdout.ngrams
    read_step: Step | None = None  # the parts of the source
    blocks: list[Block] = msgspec.field(default_factory=list)  # clean
    table: Artifact | None = None  # of the blocks
    # clean: (split, name) of an input file -> digests of its stretches; none where it is not read whole
    input_digests: dict[tuple[str, str], list[str]] = msgspec.field(default_factory=dict)
    num_rejects: int = 0
    reject_files: Sequence[Artifact] = ()  # clean: rejects.jsonl and examples.jsonl
    dedupe_fates: Artifact | None = None
    clusters: Artifact | None = None  # clusters.parquet
    removals: Artifact | None = None  # removals.parquet
    copies: Artifact | None = (
        None  # list of files (dedupe/clusters.py): how many documents each kept one stands for
    )
    dedupe_summary: Mapping[str, Any] | None = None
    index_lineage: list[list[str]] = msgspec.field(default_factory=list)  # of the dedupe index
    fates: Artifact | None = None  # holdout
    contamination: Artifact | None = None  # contamination.parquet
    splits: tuple[str, ...] = ()  # shuffle: those that can have documents
    streams: dict[str, StreamIndex] = msgspec.field(default_factory=dict)
    scattered: list[ScatteredGroup] = msgspec.field(default_factory=list)
    mix: MixFiles = msgspec.field(default_factory=lambda: MixFiles(None, None))
    sets: list[PreparedSet] = msgspec.field(default_factory=list)  # pack, shard
    shards: Planned | None = None  # pack
    warnings: list[str] = msgspec.field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """What decides bytes."""
        return self.inputs.settings

    @property
    def run(self) -> Run:
        """How the work is done."""
        return self.inputs.run

    def step(self, step: Step) -> list[TaskResult]:
        """Run a step and add its tasks' counts to the ledger."""
        results = self.runner.run(step)
        for result in results:
            for name, value in result.counts.extra.get("stages", {}).items():
                self.counts[name].merge(Counts.from_json(value))
        return results
