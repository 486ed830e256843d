"""Documents in components of two or more, with their texts: from the stored tokens, else by reading the
source again.

A text made from tokens is used only if its normalised form has the hash that `read` took of the text itself
(XXH3-128, in the sketch): so no tokenizer can change what is compared. Where a tokenizer's tokens do not give
the text back, the part of the source is read once more.

reads   dedupe/components, the blocks' .docs, .sketch, .tokens; the source, where tokens are not enough
writes  dedupe/members/PART-NUMBER.cols (dedupe/members.py); by_group.py puts together what belongs to a group
unit    a part of the source, as `read` read it; where there are very many, some in a row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe.index import pack, pieces_of
from btlm_data.dedupe.members import OF_COMPONENTS, Members, MembersWriter, Texts, parts_together, rows_of
from btlm_data.errors import DataError
from btlm_data.kernels import minhash, normalisation, token_text
from btlm_data.stages import read
from btlm_data.stages.block_writer import BlockWriter, Part, ReadSettings
from btlm_data.stages.file_ranges import FileRange
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 4
NAME = "dedupe.members"
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


class PartBlocks(msgspec.Struct, frozen=True):
    """A part of the source and its blocks. task: the one of `read`."""

    task: Task
    blocks: Sequence[Block]


class _Part(NamedTuple):
    """A part as tasks have it: what is read of the source, and its blocks."""

    ranges: Sequence[FileRange]
    blocks: Sequence[Block]


def parts_of(cleaning: Step, blocks: Sequence[Block]) -> list[PartBlocks]:
    """The parts that were read, each with its blocks, in source order."""
    by_part: dict[str, list[Block]] = {}
    for block in blocks:
        by_part.setdefault(block.stem.rpartition("-")[0] + "-", []).append(block)
    return [
        PartBlocks(task, by_part[task.resumes])
        for task in cleaning.tasks
        if task.resumes is not None and task.resumes in by_part
    ]


def plan(
    parts: Sequence[PartBlocks],
    components: Artifact,
    settings: ReadSettings,
    with_texts: bool,
) -> Step:
    """A task per part, or some of them in a row. components: list of files (dedupe/components.py)."""
    tasks = []
    for first in range(0, len(parts), of_task := parts_together(len(parts))):
        chosen = parts[first : first + of_task]
        blocks = [block for part in chosen for block in part.blocks]
        tasks.append(
            Task(
                id=chosen[0].task.id,
                args={"texts": with_texts},
                inputs=[identity for part in chosen for identity in part.task.inputs],
                reads={
                    "components": [components],
                    "docs": [block.docs for block in blocks],
                    "sketches": [block.sketch for block in blocks if block.sketch is not None],
                },
                through={"tokens": [block.tokens for block in blocks]},
                weight=max(1, sum(block.num_documents for block in blocks)),
                hints={"parts": [_Part(read.ranges_of(part.task), part.blocks) for part in chosen]},
            )
        )
    return Step(NAME, VERSION, work, tasks, settings, settings.products["docs"], "doc")


def work(task: Task, settings: ReadSettings, files: TaskFiles) -> Counts:
    """Write the members of some parts. Raises DataError if the source is no longer what was read."""
    components = ByOrdinal(files, task.reads["components"][0])
    writer = MembersWriter(files, task.id)
    from_tokens = from_source = 0
    for part in task.hints["parts"]:
        again = _SourceAgain(part, settings, files)
        for number, block in enumerate(part.blocks):
            ordinals = (block.first_ordinal, block.last_ordinal)
            groups = components.rows("group", *ordinals)
            rows = np.flatnonzero(groups)
            advance(block.num_documents)
            if not len(rows):
                continue
            assert block.sketch is not None
            docs, sketch = files.columns(block.docs), files.columns(block.sketch)
            keys = sketch["bands"] if "bands" in sketch else np.empty((block.num_documents, 0), np.uint64)
            records = rows_of(block, docs, keys, rows)
            for name in OF_COMPONENTS:
                records[name] = components.rows(name, *ordinals)[rows]
            texts = Texts.none(len(rows))
            if task.args["texts"]:
                needed = rows[components.rows("compared", *ordinals)[rows]]
                some, count = _texts(files, block, number, settings, needed, again)
                from_tokens, from_source = from_tokens + count, from_source + len(needed) - count
                texts.put(np.searchsorted(rows, needed), some)
            writer.add(Members(records, groups[rows], texts), docs.meta["files"], docs.meta["sources"])
    writer.flush()
    return Counts(extra={"from_tokens": from_tokens, "from_source": from_source})


def plan_kept(parts: Sequence[PartBlocks], copies: Artifact, settings: ReadSettings) -> Step:
    """A task per part: the texts that stay, as an index keeps them (dedupe/index.py). copies: list of files (dedupe/clusters.py)."""
    tasks = [
        Task(
            id=part.task.id,
            inputs=part.task.inputs,
            reads={
                "copies": [copies],
                "sketches": [block.sketch for block in part.blocks if block.sketch is not None],
                "docs": [block.docs for block in part.blocks],
            },
            through={"tokens": [block.tokens for block in part.blocks]},
            weight=max(1, sum(block.num_documents for block in part.blocks)),
            hints={"part": _Part(read.ranges_of(part.task), part.blocks)},
        )
        for part in parts
    ]
    name = "dedupe.kept-texts"
    return Step(name, VERSION, write_kept, tasks, settings, settings.products["docs"], "doc")


def write_kept(task: Task, settings: ReadSettings, files: TaskFiles) -> Counts:
    """Write the texts of one part that stay, a file for each block. extra: `pieces` of each (dedupe/adding.py)."""
    part: _Part = task.hints["part"]
    copies = ByOrdinal(files, task.reads["copies"][0])
    again = _SourceAgain(part, settings, files)
    pieces = []
    for number, block in enumerate(part.blocks):
        rows = np.flatnonzero(copies.rows("text_stays", block.first_ordinal, block.last_ordinal))
        texts = _texts(files, block, number, settings, rows, again)[0]
        frames, frame_bounds = pack(texts.as_bytes())
        files.write_columns(
            f"dedupe/kept-texts/{task.id}-{number:05d}.cols",
            {"ordinals": rows.astype(np.uint32), "frames": frames, "bounds": frame_bounds},
        )
        pieces.append(pieces_of(rows, frame_bounds))
        advance(block.num_documents)
    return Counts(extra={"pieces": pieces})


def _texts(
    files: TaskFiles,
    block: Block,
    number: int,
    settings: ReadSettings,
    rows: Int64Array,
    again: _SourceAgain,
) -> tuple[Texts, int]:
    """Normalised texts of some rows of a part's block, and how many of them are from its tokens."""
    assert block.sketch is not None
    exact = files.columns(block.sketch)["exact"][rows]
    texts, is_right = _from_tokens(files, block, settings, rows, exact)
    if not is_right.all():
        left = np.flatnonzero(~is_right)
        texts.put(left, again.texts(number, rows[left], exact[left]))
    return texts, int(np.count_nonzero(is_right))


def _from_tokens(
    files: TaskFiles, block: Block, settings: ReadSettings, rows: Int64Array, exact: npt.NDArray[np.uint64]
) -> tuple[Texts, npt.NDArray[np.bool_]]:
    """Normalised texts of some rows, and which of them are proved right by their hashes.

    Tokens are normalised one by one, which is right for nearly all texts; the others are decoded, and normalised whole.
    """
    tables = _tables(settings, files)
    if tables is None or not len(rows):
        return Texts.none(len(rows)), np.zeros(len(rows), np.bool_)
    tokens = files.columns(block.tokens)
    starts, lengths = (tokens[name][rows].astype(np.int64) for name in ("starts", "lengths"))
    ids = tokens.scattered("tokens", starts, lengths)
    num_bytes = files.columns(block.docs)["num_bytes"][rows].astype(np.int64)
    most = num_bytes + num_bytes // 2  # in lower case two bytes can become three
    utf8, offsets = token_text.decode(ids, starts, lengths, tables.normalised, most)
    texts, is_right = Texts.of(utf8, offsets), _are_right(utf8, offsets, exact)
    left = np.flatnonzero(~is_right)
    if len(left):
        utf8, offsets = token_text.decode(ids, starts[left], lengths[left], tables.plain, num_bytes[left])
        try:
            whole = normalisation.normalise(None, utf8, offsets)
        except UnicodeDecodeError:  # a capital sigma beside what is no text
            return texts, is_right
        texts.put(left, Texts.of(whole.utf8, whole.offsets))
        is_right[left] = _are_right(whole.utf8, whole.offsets, exact[left])
    return texts, is_right


class _Tables(msgspec.Struct, frozen=True):
    """What tokens stand for: in a text, and in a normalised one."""

    plain: token_text.Table
    normalised: token_text.Table


def _tables(settings: ReadSettings, files: TaskFiles) -> _Tables | None:
    """None where a token's bytes depend on its neighbours."""
    tokenizer = settings.tokenizer.load()

    def make() -> _Tables | None:
        if tokenizer.token_bytes is None:
            return None
        tokens = token_text.TokenBytes(*tokenizer.token_bytes)
        of_normalised = token_text.Table.of(token_text.normalised(tokens), collapses=True)
        return _Tables(token_text.Table.of(tokens), of_normalised)

    return files.kept(("tokens as text", tokenizer.fingerprint), make)


def _are_right(utf8: UInt8Array, offsets: Int64Array, exact: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether texts utf8[offsets[i]:offsets[i + 1]] have the hashes that `read` took."""
    return np.asarray((minhash.exact_hashes(utf8, offsets) == exact).all(axis=1))


class _SourceAgain:
    """Reads a part of the source once more, block by block, as far as it is requested."""

    def __init__(self, part: _Part, settings: ReadSettings, files: TaskFiles) -> None:
        self._ranges, self._blocks = part
        self._settings, self._files = settings, files
        self._next = 0
        self._records: Iterator[Any] | None = None

    def texts(self, number: int, rows: Int64Array, exact: npt.NDArray[np.uint64]) -> Texts:
        """Normalised texts of rows of block `number`; blocks must be requested in order. Raises DataError for
        a changed source.
        """
        if self._records is None:
            self._records = read.records(self._ranges, self._settings, (0, 0))
        while True:
            block = next(self._records, None)
            self._next += 1
            if block is None or self._next > number:
                break
        name = self._ranges[0].file.name
        docs = self._files.columns(self._blocks[number].docs)
        wanted = list(zip(docs["file"][rows].tolist(), docs["offset"][rows].tolist(), strict=True))
        row_of = (
            {document: row for row, document in enumerate(zip(block.files, block.block.offsets, strict=True))}
            if block is not None
            else {}
        )
        missing = [offset for file, offset in wanted if (file, offset) not in row_of]
        if block is None or missing:
            raise _changed(name, missing[0])
        documents = block.documents(self._ranges, [row_of[document] for document in wanted])
        part = Part(self._ranges, self._settings, {})
        cleaned = BlockWriter(self._files, self._blocks[number].stem, part).cleaned(documents)
        normalised = normalisation.normalise(cleaned.texts, cleaned.utf8, cleaned.offsets)
        is_right = _are_right(normalised.utf8, normalised.offsets, exact)
        if not is_right.all():
            raise _changed(name, wanted[int(np.flatnonzero(~is_right)[0])][1])
        return Texts.of(normalised.utf8, normalised.offsets)


def _changed(name: str, offset: int) -> DataError:
    return DataError(
        f"{name} has changed since it was read: the document at offset {offset} is not the one that it was. "
        "Restore the file, or start again with another --work-dir."
    )
