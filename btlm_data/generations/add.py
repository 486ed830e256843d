"""Documents of a new source added to a finished dataset: prepared as its next generation, deduplicated against
all earlier ones, and listed in generations.json when it is complete.

Nothing that is there is written again: earlier generations keep every file. A kill at any moment leaves the
dataset without the new generation or with it; the same command continues, also with corrected settings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from btlm_data import output_folder, pipeline
from btlm_data.engine.runner import Events
from btlm_data.errors import ConfigError, DataError, InputError, NothingNew, OutputError
from btlm_data.formats import dataset, forgotten, generations, ledger, provenance
from btlm_data.formats.dataset import FILE_NAME, UNFINISHED_NAME, SetList
from btlm_data.formats.generations import Generation, GenerationList, Listed
from btlm_data.generations import index
from btlm_data.lineage import queries
from btlm_data.lineage.forget import forget
from btlm_data.lineage.overlap import GenerationDocuments, first_shared, those_with
from btlm_data.lineage.staging import lock_of
from btlm_data.output_folder import OutputFolder
from btlm_data.pipeline import Prepared
from btlm_data.preparation import Inputs
from btlm_data.recipe.load import Override, load
from btlm_data.recipe.models import Recipe
from btlm_data.storage import open_store
from btlm_data.storage.lease import hold
from btlm_data.task import Counts
from btlm_data.tokenizer import Tokenizer, load_tokenizer
from btlm_data.wording import counted

# Of the first generation's settings, what is about its source alone.
_OF_THE_SOURCE = (
    "source.name",
    "source.revision",
    "source.limit",
    "source.files",
    "source.chunks",
    "source.splits",
    "dedupe.index",
)
# What one reader sees must be of one kind, and what is compared must be made alike.
_FIXED = ("seq_len", "format", "tail", "max_documents_per_sample", "shards", "tokenizer", "dedupe")
_FREE_OF_DEDUPE = ("index", "max_removed", "max_component", "expected_removed")
_PLACES = ("name", "revision", "backend")  # of the tokenizer, which is compared by its fingerprint
# Settings that name sources. Those of the dataset were right for its own source, and need not name any of a new one.
_NAMING_SOURCES = ("mix", "source.exclude_sources", "dedupe.expected_removed", "run.accept_removal_of")


class Plan(msgspec.Struct, frozen=True):
    """What `add` is going to do. generations: those that are there; number: of the next one; recipe: how it is
    prepared.
    """

    root: Path
    generations: list[Generation]
    number: int
    recipe: Recipe
    tokenizer: Tokenizer

    @property
    def folder(self) -> Path:
        """Of the next generation."""
        return self.root / generations.folder_of(self.number)

    @property
    def index_size(self) -> index.IndexSize:
        """What the index takes; nothing where the recipe deduplicates nothing."""
        if self.recipe.dedupe.method == "none":
            return index.IndexSize(0, 0)
        return index.size(self.root, self.generations, self.recipe)


def plan(path: Path, overrides: Mapping[str, Override], *, trust: bool = False) -> Plan:
    """Read the dataset and the recipe of the next generation: the first one's, with the new source and what the
    command line says. Raises ConfigError for settings that cannot differ from the dataset's, DataError if the
    dataset is not whole, InputError where `path` is a part of one.
    """
    root = (path.parent if path.name == FILE_NAME else path).absolute()
    _refuse_parts(root)
    present = generations.read(root)
    if len(present) == generations.MAX_GENERATIONS:
        raise OutputError(
            f"{root} has {len(present):,} generations, and there can be no more. Prepare it anew."
        )
    for key in ("run.out", "dedupe.index"):
        if key in overrides:
            raise ConfigError(
                f"{overrides[key].shown} cannot be given: what is added goes into {root}, and is compared with the index "
                "beside it. Leave it out."
            )
    number = len(present) + 1
    given = dict(overrides)
    given["run.out"] = Override(str(root / generations.folder_of(number)), "add")
    recipe = load(root / FILE_NAME, given, trust=trust, without=_OF_THE_SOURCE)
    _require_own_budget(root, recipe, overrides)
    changes: dict[str, Any] = {}
    if "seed" not in overrides:
        changes["seed"] = (recipe.seed + number - 1) % 2**63
    if recipe.dedupe.method != "none":
        changes["dedupe"] = recipe.dedupe.model_copy(update={"index": str(root / generations.INDEX_FOLDER)})
    if not any(_is_of(key, name) for key in overrides for name in _NAMING_SOURCES):
        changes["run"] = recipe.run.model_copy(update={"allow_missing_source": True})
    recipe = recipe.model_copy(update=changes)
    settings = recipe.settings
    tokenizer = load_tokenizer(
        settings.tokenizer.name,
        eos=settings.tokenizer.eos,
        backend=settings.tokenizer.backend,
        revision=settings.tokenizer.revision,
    )
    _check_settings(root, recipe, tokenizer, trust)
    return Plan(root, present, number, recipe, tokenizer)


def add(planned: Plan, events: Events) -> Prepared:
    """Add what was planned; what was added before is `already_done`. Raises BtlmError for everything that a user can
    correct; the dataset is as it was then.
    """
    root, recipe = planned.root, planned.recipe
    with hold(open_store(root.parent), lock_of(root), f"The dataset {root} is", heartbeat=False):
        if [g.manifest.checksum for g in generations.read(root)] != [
            g.manifest.checksum for g in planned.generations
        ]:
            raise OutputError(f"{root} was changed by another program meanwhile. Run the same command again.")
        inputs = Inputs.look_up(recipe, planned.tokenizer)
        if (number := _already_added(planned, inputs)) is not None:
            folder = root / generations.folder_of(number)
            none: dict[str, Counts] = {stage: Counts() for stage in ledger.STAGES}
            return Prepared(
                str(folder),
                str(folder),
                True,
                none,
                already_done=True,
                datasets=dataset.read_sets(folder),
                generation=number,
                added_to=str(root),
            )
        _take_over(planned, inputs)
        if recipe.dedupe.method != "none":
            index.update(root, planned.generations, recipe, planned.tokenizer, events)
        try:
            prepared = pipeline.prepare(recipe, events, inputs=inputs, adds_to_index=False)
        except NothingNew:  # there is nothing to continue
            shutil.rmtree(planned.folder, ignore_errors=True)
            raise
        if prepared.complete:
            _forget_again(planned, prepared)
            _require_disjoint(planned)
            _publish(planned)
            prepared.generation, prepared.added_to = planned.number, str(root)
            prepared.already_done = False  # also where a killed add had left no more than this to do
    return prepared


# What can be added, and to what -----------------------------------------------------------------------------


def _refuse_parts(root: Path) -> None:
    """Raise InputError for a folder that is a part of a dataset, DataError for one that is being prepared."""
    if root.is_symlink():
        raise InputError(f"{root} is a link. Name the folder that it leads to: {root.resolve()}.")
    if not (root / FILE_NAME).is_file():
        if (root / UNFINISHED_NAME).exists():
            raise DataError(
                f"{root} is being prepared, or its run was stopped. Finish it first: run the same command again."
            )
        dataset.read(root)  # which says what is missing
    if (whole := generations.whole_of(root)) is not None:
        raise InputError(f"{root} is a generation of {whole}. Name that folder.")
    if (root.parent / FILE_NAME).is_file() and isinstance(dataset.read(root.parent), SetList):
        raise InputError(
            f"{root} is one of the sets of {root.parent}, which are prepared together. Name that folder."
        )


def _require_own_budget(root: Path, recipe: Recipe, overrides: Mapping[str, Override]) -> None:
    """Raise ConfigError where the mix is a budget that was made for the documents of the first generation."""
    if recipe.mix.is_budget and not any(_is_of(key, "mix") for key in overrides):
        budget = _shown(recipe.mix.model_dump(mode="json"))
        raise ConfigError(
            f"The train split of {root} is mixed by a budget for its own source ({budget}). Say what the new source is to "
            "give: --set mix={} takes all of it, --set mix.tokens=10B (or another key of mix) makes a budget of its own."
        )


def _is_of(key: str, name: str) -> bool:
    """Whether a dotted key is a setting, or a part of it."""
    return key == name or key.startswith(f"{name}.")


def _check_settings(root: Path, recipe: Recipe, tokenizer: Tokenizer, trust: bool) -> None:
    """Raise ConfigError where a setting that all generations share is another one."""
    first = next(iter(dataset.read_sets(root).values()))
    if tokenizer.fingerprint != first.tokenizer.fingerprint:
        raise ConfigError(
            f"The ids of {root} were made by the tokenizer {first.tokenizer.name} (fingerprint "
            f"{first.tokenizer.fingerprint[:16]}...), and {tokenizer.name} is another one (fingerprint "
            f"{tokenizer.fingerprint[:16]}...). All generations have one tokenizer: leave --tokenizer out, or restore "
            "the files of the old one."
        )
    source = {"source.name": Override(recipe.source.name, "--source")}
    first_recipe = load(root / FILE_NAME, source, trust=trust, without=_OF_THE_SOURCE)
    for key in _FIXED:
        old, new = (_comparable(key, value.model_dump(mode="json")[key]) for value in (first_recipe, recipe))
        if old != new:
            names = [key]
            if isinstance(old, dict):
                name = next(name for name in old if old[name] != new[name])
                names, old, new = [key, name], old[name], new[name]
            raise ConfigError(
                f"{'.'.join(names)} is {_shown(old)} in {root}, and {_shown(new)} was given. All generations of a dataset "
                "share it: leave it out, or prepare the new source as a dataset of its own."
            )


def _comparable(key: str, value: Any) -> Any:
    left_out = {"dedupe": _FREE_OF_DEDUPE, "tokenizer": _PLACES}.get(key, ())
    return {name: v for name, v in value.items() if name not in left_out} if left_out else value


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _already_added(planned: Plan, inputs: Inputs) -> int | None:
    """The generation that this very source was added as, with these settings; None if there is none."""
    for generation in planned.generations[1:]:
        made = provenance.read(generation.root)
        shift = {"seed": planned.recipe.seed + generation.number - planned.number}
        recipe = planned.recipe.model_copy(update=shift)
        same = Inputs(
            recipe, inputs.listing, inputs.tokenizer, inputs.filters, inputs.evaluation, inputs.signals
        )
        if made is not None and made.run == same.fingerprint:
            return generation.number
    return None


def to_measure(planned: Plan) -> Recipe:
    """The recipe as `--plan` is to measure it: what `add` would take over counts as nothing. Raises OutputError as `add`."""
    if planned.folder.exists() and _is_to_take_over(
        planned, Inputs.look_up(planned.recipe, planned.tokenizer)
    ):
        run = planned.recipe.run.model_copy(update={"overwrite": True})
        return planned.recipe.model_copy(update={"run": run})
    return planned.recipe


def _take_over(planned: Plan, inputs: Inputs) -> None:
    """Make an add of this source that is not listed, with other settings, one of this command: its work is
    continued, and nothing of its dataset is left. Raises OutputError where it is of another source.
    """
    if _is_to_take_over(planned, inputs):
        store = open_store(planned.folder)
        with hold(store, output_folder.LEASE, f"The folder {planned.folder} is", heartbeat=False):
            _output(planned, inputs).claim(inputs.fingerprint, overwrite=False)


def _is_to_take_over(planned: Plan, inputs: Inputs) -> bool:
    """Whether there is an add of this source with other settings that is not listed, finished or not. Raises OutputError
    where it is of another source.
    """
    folder, source = planned.folder, inputs.listing.provenance["place"]
    if not folder.exists() or planned.recipe.run.overwrite:
        return False
    owner = _output(planned, inputs).owner()
    if owner is None or owner[0] == inputs.fingerprint:
        return False
    if owner[1] not in (None, source):
        raise OutputError(
            f"{folder} holds an add of {owner[1]} that is not finished. Run that command again to finish it, or add "
            "--overwrite to this one to replace it."
        )
    return True


def _output(planned: Plan, inputs: Inputs) -> OutputFolder:
    return OutputFolder(open_store(planned.folder), inputs.set_folders, inputs.listing.provenance["place"])


# The end ----------------------------------------------------------------------------------------------------


def _forget_again(planned: Plan, prepared: Prepared) -> None:
    """Mask documents that a certificate of an earlier generation names by the hash of their text, with a certificate of their own: what
    was forgotten does not come back with a new crawl. Tells of it in `prepared`.
    """
    hashes = {
        bytes.fromhex(document.hash)
        for generation in planned.generations
        for name in dataset.read_sets(generation.root)
        for certificate in forgotten.read(generation.root / name).certificates
        for document in certificate.documents
        if document.hash is not None
    }
    new = GenerationDocuments.of(Generation(planned.number, planned.folder, dataset.read(planned.folder)))
    if not (again := those_with((*new.train, *new.holdout), hashes)):
        return
    asked = [queries.make("hash", value.hex()) for value in sorted(again)]
    outcome = forget(planned.folder, asked, reason="forgotten in an earlier generation")
    prepared.datasets = dataset.read_sets(planned.folder)
    prepared.warnings.append(
        f"{counted(len(again), 'text')} of the new source {'was' if len(again) == 1 else 'were'} forgotten before, and "
        f"{'is' if len(again) == 1 else 'are'} masked in the new generation too ({outcome.certificate})."
    )


def _require_disjoint(planned: Plan) -> None:
    """Raise InputError where a text is in train of one generation and in validation or test of another."""
    new = GenerationDocuments.of(Generation(planned.number, planned.folder, dataset.read(planned.folder)))
    for generation in planned.generations:
        old = GenerationDocuments.of(generation)
        for one, other, kind in ((new.train, old.holdout, "train"), (new.holdout, old.train, "holdout")):
            if (shared := first_shared(one, other)) is not None:
                (table, row), (old_table, old_row) = shared
                document = next(table.described([row]))
                raise InputError(
                    f"{document['file']} line {document['line'] + 1} of the new source is a {kind} document, and row "
                    f"{old_row:,} of {old_table.path} has the same text: it would be trained on and measured with. Leave "
                    "such documents out of the source, or read them for another split (--split-rule), and add again. The "
                    "dataset is as it was."
                )


def _publish(planned: Plan) -> None:
    """List the new generation: from here on it is a part of the dataset."""
    manifest = dataset.read(planned.folder)
    entries = [
        Listed(generations.folder_of(generation.number), generation.manifest.checksum)
        for generation in planned.generations
    ]
    entries.append(Listed(generations.folder_of(planned.number), manifest.checksum))
    _sync(planned.folder)
    store = open_store(planned.root)
    store.delete([f"{generations.FILE_NAME}.sig"])  # of the list that is replaced
    store.write(generations.FILE_NAME, generations.encode(GenerationList(entries)))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
