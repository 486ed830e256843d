"""Removed documents beside the ones that were kept for them: rows of removals.parquet, and both texts from
the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.filters import modules_named, plan_filters
from btlm_data.errors import BtlmError, ConfigError, DataError, InputError
from btlm_data.formats.dataset import Dataset, InputFile
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened, open_path
from btlm_data.inspection.removed_pairs import MARKS, SHOWN_WORDS, TABLE, Pair, Words, side_by_side
from btlm_data.inspection.source_checks import (
    NORMALIZERS,
    bytes_before,
    options_of,
    path_of_input,
    records_at,
    where_it_was_read,
)
from btlm_data.recipe.recorded import settings_of
from btlm_data.recipe.validation import nearest
from btlm_data.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

CLUSTERS = "clusters.parquet"
SEED = 0xD0B1E


class Wanted(msgspec.Struct, frozen=True):
    """Which pairs: a seeded sample of those that all the given conditions hold for. largest: of the largest
    component.
    """

    count: int = 10
    source: str | None = None
    reason: str | None = None
    similarity: tuple[float, float] | None = None
    cluster: int | None = None
    largest: bool = False
    seed: int = SEED


def parse_range(text: str) -> tuple[float, float]:
    """A range such as 0.80-0.85, both ends included. Raises ConfigError for anything else."""
    low, dash, high = text.partition("-")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (1.0, 0.0)
    if not dash or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ConfigError(f"--similarity {text!r} is not a range. Write for example 0.80-0.85.")
    return bounds


def pairs(path: Path, wanted: Wanted, source: Path | None = None) -> list[Pair]:
    """The pairs requested, in the order of the table. source: the source's folder; None: where the run read
    it.

    Raises DataError where the dataset has no such table, InputError where the source is not there, ConfigError for
    a source, a reason or a component that the dataset does not know.
    """
    opened = open_path(path)
    manifest = _manifest(opened)
    _require_known(manifest, wanted)
    rows = list(_choose(opened.root / TABLE, wanted))
    if not rows and wanted.cluster is not None:
        _require_component(opened.root / CLUSTERS, wanted.cluster)
    texts = Texts(opened, manifest, source).read(rows)
    return [
        Pair(row, texts[row["file"], row["offset"]], texts.get((row["kept_file"], row["kept_offset"])))
        for row in rows
    ]


def _manifest(opened: Opened) -> Dataset:
    if opened.manifest is None:
        raise DataError(
            f"{opened.root} has no dataset.json of one set, so nothing says where its documents came from. "
            "Name the folder of a prepared set."
        )
    return opened.manifest


def _require_known(manifest: Dataset, wanted: Wanted) -> None:
    """Raise ConfigError for a source that the dataset does not have, or a reason for which it removed nothing."""
    rows = manifest.rows("dedupe")
    sources = sorted({row.source for row in rows})
    if wanted.source is not None and wanted.source not in sources:
        raise ConfigError(
            f"--source: the dataset has no source {wanted.source!r}. {nearest(wanted.source, sources)}"
        )
    reasons = sorted({reason for row in rows for reason in row.dropped})
    if wanted.reason is not None and reasons and wanted.reason not in reasons:
        raise ConfigError(
            f"--reason: deduplication removed no document for {wanted.reason!r}. {nearest(wanted.reason, reasons)}"
        )


def _require_component(path: Path, number: int) -> None:
    """Raise ConfigError for a component that the dataset does not have. path: of clusters.parquet."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        return
    require_regular(path)
    with reading(path):
        file = pq.ParquetFile(path)
        for group in range(file.metadata.num_row_groups):
            if pc.any(pc.equal(file.read_row_group(group, columns=["cluster"])["cluster"], number)).as_py():
                return
    raise ConfigError(
        f"--cluster: no component has the number {number}. A component has the number of its first document: `dedupe-report`, "
        f"dataset.json and {path.name} name them."
    )


def _choose(path: Path, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Rows that meet the conditions, at most `count` of them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        raise DataError(
            f"There is no {path}. A dataset has it where documents were deduplicated by a version that lists removals; "
            "prepare it again."
        )
    require_regular(path)
    with reading(path):
        file = pq.ParquetFile(path)
        candidates: list[tuple[int, int]] = []
        largest = -1
        if wanted.largest:
            largest = max(
                (
                    pc.max(file.read_row_group(g, columns=["cluster_size"])["cluster_size"]).as_py() or 0
                    for g in range(file.metadata.num_row_groups)
                ),
                default=0,
            )
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(
                group, columns=["source", "reason", "similarity", "cluster", "cluster_size"]
            )
            mask = np.ones(len(table), np.bool_)
            for column, value in (
                ("source", wanted.source),
                ("reason", wanted.reason),
                ("cluster", wanted.cluster),
                ("cluster_size", largest if wanted.largest else None),
            ):
                if value is not None:
                    same = pc.equal(table[column].cast(pa.string()), str(value))
                    mask &= same.to_numpy(zero_copy_only=False).astype(np.bool_)
            if wanted.similarity is not None:
                similarity = table["similarity"].to_numpy(zero_copy_only=False)
                mask &= (similarity >= wanted.similarity[0]) & (similarity <= wanted.similarity[1])
            candidates += [(group, row) for row in np.flatnonzero(mask).tolist()]
        draw = np.random.default_rng(wanted.seed).permutation(len(candidates))[: wanted.count]
        for group, row in (candidates[k] for k in np.sort(draw).tolist()):
            yield file.read_row_group(group).slice(row, 1).to_pylist()[0]


class Texts:
    """Reads documents out of the source and cleans them as the run did."""

    def __init__(self, opened: Opened, manifest: Dataset, source: Path | None) -> None:
        """source: the source's folder; None: where the run read it. Raises DataError where the dataset does
        not say how its documents were cleaned.
        """
        settings = settings_of(manifest.configuration)
        if isinstance(settings, str):
            raise DataError(f"The configuration in dataset.json is not valid ({settings}). Restore the file.")
        if modules_named(settings.clean.filters):
            raise DataError(
                "A filter of this dataset names a Python function, which is not run for a received dataset."
            )
        self.settings = settings
        self._filters = plan_filters(settings.clean.filters)
        self._inputs = {file.name: file for file in manifest.inputs}
        self._source = source
        self._root = opened.root

    def read(self, rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], str]:
        """Texts by file and offset."""
        wanted: dict[str, set[int]] = {}
        for row in rows:
            for name, offset in ((row["file"], row["offset"]), (row["kept_file"], row["kept_offset"])):
                if name is not None:
                    wanted.setdefault(name, set()).add(offset)
        texts: dict[tuple[str, int], str] = {}
        for name, offsets in wanted.items():
            if name not in self._inputs:
                raise DataError(f"{TABLE} names {name!r}, which is not among the inputs in dataset.json.")
            path = self._path(self._inputs[name])
            options = options_of(self.settings.source)
            whole = self._filters.needs_metadata
            for batch, index in records_at(path, self._inputs[name], offsets, options, whole=whole):
                text = NORMALIZERS[self.settings.clean.normalize](batch.texts[index])
                if self._filters.entries:
                    records = [batch.records[index]] if batch.records is not None else None
                    documents = Documents(
                        [text], [batch.sources[index]], [name], [batch.offsets[index]], records
                    )
                    text = self._filters.apply(documents)[1][0]
                texts[name, batch.offsets[index]] = text
            if missing := offsets - {offset for file, offset in texts if file == name}:
                raise DataError(
                    f"{path} has no record at byte {min(missing):,}: it is not the file that was read."
                )
        return texts

    def bytes_before(self, name: str, offset: int) -> int:
        """Bytes of an input file that are read to come to a record; 0 if there is none of this name."""
        file = self._inputs.get(name)
        return 0 if file is None else bytes_before(file, offset, options_of(self.settings.source))

    def _path(self, file: InputFile) -> Path:
        if self._source is not None:
            return path_of_input(self._source, file)
        try:
            return where_it_was_read(self._root, file)
        except InputError as error:
            raise InputError(f"{error} Name a folder that holds the source's files with --from.") from None


# Showing ----------------------------------------------------------------------------------------------------


def to_builtins(chosen: Sequence[Pair]) -> list[dict[str, Any]]:
    """For --json: each row, with `text` and `kept_text`."""
    return [{**pair.row, "text": pair.text, "kept_text": pair.kept_text} for pair in chosen]


def render(chosen: Sequence[Pair], console: Console) -> None:
    """Print pairs side by side."""
    from rich.table import Table
    from rich.text import Text

    if not chosen:
        console.print("No removed document meets these conditions.")
    for pair in chosen:
        row = pair.row
        similarity = "not compared" if row["similarity"] is None else f"similarity {row['similarity']:.3f}"
        if row["containment"] is not None:
            similarity += f", {row['containment']:.1%} of it in the kept one"
        console.print(
            f"{row['reason']}: {similarity}; {counted(row['bands'] or 0, 'band')} shared; component "
            f"{row['cluster']} of {counted(row['cluster_size'], 'document')}",
            style="bold",
            highlight=False,
        )
        table = Table(box=None, pad_edge=False, expand=True)
        for prefix, title in (("", "removed"), ("kept_", "kept")):
            heading = (
                f"{title}: {row[f'{prefix}source']}, {row[f'{prefix}file']} line {row[f'{prefix}line'] + 1}"
                if row[f"{prefix}file"] is not None
                else f"{title}: in an index of earlier runs"
            )
            table.add_column(Text(heading), ratio=1, overflow="fold")
        cells = (
            [styled(words) for words in side_by_side(pair.text, pair.kept_text)]
            if pair.kept_text is not None
            else [Text(" ".join(pair.text.split()[:SHOWN_WORDS])), Text("")]
        )
        table.add_row(*cells)
        console.print(table)
        console.print()


def styled(words: Words) -> Any:
    """As rich text, differing words in marks and in colour."""
    from rich.text import Text

    text = Text()
    for word, is_other in zip(words.words, words.differs, strict=True):
        text.append(f"{MARKS[0]}{word}{MARKS[1]}" if is_other else word, style="yellow" if is_other else "")
        text.append(" ")
    return text


# Checking ---------------------------------------------------------------------------------------------------


def check_removals(opened: Opened, manifest: Dataset, source: Path | None, count: int, tell: Report) -> None:
    """Read `count` drawn pairs from the source and count their features again."""
    from btlm_data.kernels import minhash, normalisation, shingles

    name = "removals again"
    problems: list[str] = []
    compared = 0
    try:
        rows = list(_choose(opened.root / TABLE, Wanted(count)))
        reader = Texts(opened, manifest, source)
        texts = reader.read(rows)
    except BtlmError as error:
        tell(Check(name, None, f"not made: {error}"))
        return
    dedupe = reader.settings.dedupe
    shingle = minhash.Shingle.of(dedupe.shingle, dedupe.shingle_size)
    for row in rows:
        if row["similarity"] is None or row["kept_file"] is None:
            continue
        both = [texts[row["file"], row["offset"]], texts[row["kept_file"], row["kept_offset"]]]
        encoded = [text.encode() for text in both]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        normalised = normalisation.normalise(both, np.frombuffer(b"".join(encoded), np.uint8), offsets)
        begin, middle, end = normalised.offsets.tolist()
        parts = normalised.utf8[begin:middle], normalised.utf8[middle:end]
        counts = shingles.count(parts, shingle)
        numbers = {
            "similarity": counts.shared / (counts.first + counts.second - counts.shared),
            "containment": counts.shared / counts.first,
            "kept_containment": counts.shared / counts.second,
        }
        compared += 1
        problems += [
            f"{TABLE}, document {row['document']}: {key} is {row[key]}, the texts give {value}"
            for key, value in numbers.items()
            if row[key] != value
        ]
    tell_problems(
        tell,
        name,
        problems,
        f"{counted(compared, 'pair')} read from the source and compared: as alike as {TABLE} says",
    )
