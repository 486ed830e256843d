"""The index that later documents are compared with: an entry for each generation of a dataset, made from its
shards when something is first added, and kept beside them.

    .dedupe-index/ENTRY/...   as dedupe/index.py has a run; ENTRY names the generation's dataset.json by its
                              checksum, and how documents are compared
    .dedupe-index.work/       the work folder while entries are made

`prepare` writes none of it: an index takes 16 bytes a document and 12 for each band, and texts where these are
compared; whoever adds nothing has no use for it. What is in no generation any more (after `btlm-data forget`) is removed with its
entry, and made anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from btlm_data import blocks as block_table
from btlm_data import pipeline, work_folder
from btlm_data.dedupe import adding
from btlm_data.dedupe.adding import PackedTexts
from btlm_data.dedupe.index import INDEX_VERSION, Index
from btlm_data.dedupe.keys import Chosen
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.steps import Steps
from btlm_data.engine.base import open_engine
from btlm_data.engine.runner import Events, Runner
from btlm_data.engine.status import StatusFile
from btlm_data.fingerprint import digest
from btlm_data.formats import dataset
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.generations import INDEX_FOLDER, INDEX_WORK_FOLDER, Generation
from btlm_data.generations import sketching
from btlm_data.locations import Locations
from btlm_data.recipe.models import Recipe
from btlm_data.stages import ready
from btlm_data.storage import lease, open_store
from btlm_data.tokenizer import Tokenizer
from btlm_data.wording import amount


class IndexSize(msgspec.Struct, frozen=True):
    """What the index of a dataset takes. bytes: present, on disk; to_make: about, of what is not made yet."""

    bytes: int
    to_make: int

    def words(self) -> str:
        """For people."""
        parts = [f"{amount(self.bytes, 'B')} beside the dataset"] if self.bytes else []
        parts += [f"about {amount(self.to_make, 'B')} to be made of its shards first"] if self.to_make else []
        return ", ".join(parts) or "none: nothing is deduplicated"


def size(root: Path, generations: Sequence[Generation], recipe: Recipe) -> IndexSize:
    """Of the index beside a dataset, for a recipe of what is added."""
    settings = ClusterSettings(recipe.dedupe, recipe.run.memory_per_worker)
    present, missing = 0, 0
    for generation in generations:
        folder = root / INDEX_FOLDER / _entry(generation, settings)
        if (folder / "index.json").is_file():
            present += sum(path.stat().st_size for path in folder.iterdir())
            continue
        for _, manifest in _sets(generation):
            documents = sum(split.documents for split in manifest.splits.values())
            texts = sum(row.out.bytes for row in manifest.rows("shuffle"))
            with_signatures = settings.index_needs == "signatures"
            missing += settings.index_bytes(documents, texts, with_signatures=with_signatures)
    return IndexSize(present, missing)


def update(
    root: Path, generations: Sequence[Generation], recipe: Recipe, tokenizer: Tokenizer, events: Events
) -> None:
    """Make the index whole: an entry for each generation, and no other. Raises DataError where a generation's
    texts cannot be had from its shards.
    """
    settings = ClusterSettings(recipe.dedupe, recipe.run.memory_per_worker)
    wanted = {_entry(generation, settings): generation for generation in generations}
    location = root / INDEX_FOLDER
    if location.is_dir():
        for folder in location.iterdir():
            if folder.name not in wanted and folder.is_dir():
                shutil.rmtree(folder)
    for name, generation in wanted.items():
        if not (location / name / "index.json").is_file():
            _make(root, name, generation, recipe, settings, tokenizer, events)
    shutil.rmtree(root / INDEX_WORK_FOLDER, ignore_errors=True)  # also what a call that was killed here left


def _make(
    root: Path,
    name: str,
    generation: Generation,
    recipe: Recipe,
    settings: ClusterSettings,
    tokenizer: Tokenizer,
    events: Events,
) -> None:
    """Make the entry of one generation."""
    location, work = root / INDEX_FOLDER, root / INDEX_WORK_FOLDER / name
    for other in (root / INDEX_WORK_FOLDER).glob("*"):  # of a dataset.json that is there no more
        if other != work:
            shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)
    location.mkdir(exist_ok=True)
    where = Locations(open_store(work).url, open_store(location).url, index=open_store(location).url)
    stores = where.open()
    run = recipe.run
    with (
        lease.hold(stores.work, work_folder.LEASE, f"The index {location} is", heartbeat=False) as held,
        open_engine(run.engine, pipeline.engine_settings(run)) as engine,
    ):
        work_folder.claim(stores.work)
        ready.warm_up(tokenizer)
        engine.start()
        lease.start_heartbeat(held)
        status = StatusFile(stores.work, run.engine)
        runner = Runner(where, stores, engine, events, held, status=status)
        splits = [
            (folder, manifest.checksum, split)
            for folder, manifest in _sets(generation)
            for split in manifest.splits
        ]
        sketch = sketching.SketchSettings(recipe.dedupe, tokenizer.spec, settings.index_needs)
        step = sketching.plan(splits, sketch, name)
        results = runner.run(step)
        blocks = sketching.blocks_of(step, results)
        table = block_table.write_table(stores.work, blocks)
        steps = Steps(blocks, table, settings, name)
        exact = steps.run_exact(runner)
        index = Index(str(location), name, settings.index_kind, settings.index_needs)
        texts = [
            PackedTexts(block.first_ordinal, result.outputs[1], result.counts.extra["pieces"])
            for block, result in zip(blocks, results, strict=True)
        ]
        with_signatures = settings.index_needs == "signatures"
        adding.add(runner, steps, index, Chosen(exact, "root"), texts, with_signatures=with_signatures)
        status.ended("complete")


def _entry(generation: Generation, settings: ClusterSettings) -> str:
    """The name of a generation's entry."""
    kind = [INDEX_VERSION, *settings.index_kind, settings.index_needs, settings.dedupe.holdout]
    return digest(generation.manifest.checksum, kind)[:32]


def _sets(generation: Generation) -> list[tuple[Path, Dataset]]:
    """(folder, dataset.json) of the sets of a generation that have different documents."""
    sets = dataset.read_sets(generation.root)
    chosen = [(generation.root / name if name else generation.root, value) for name, value in sets.items()]
    return chosen if any(value.set.share is not None for _, value in chosen) else chosen[:1]
