"""Sketches and texts of a finished dataset's documents, out of its shards: what deduplication needs to compare
later documents with them. No source is read.

A text is made from a document's tokens and is taken only if its hash is the one that documents.parquet has.
Documents that were forgotten are left out, and so is one whose end is not in the shards (`tail: drop`).

reads   the shards and documents.parquet of one split
writes  index/sketch/NUMBER.sketch and .texts (dedupe/index.py has the columns)
unit    consecutive documents of a row group of documents.parquet
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.dedupe.index import Needs, pack, pieces_of
from btlm_data.dedupe.sketches import sketch
from btlm_data.errors import DataError
from btlm_data.formats import dataset
from btlm_data.kernels import normalisation, token_text
from btlm_data.lineage.split_view import SplitView
from btlm_data.lineage.stored_tokens import tokens_of
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles
from btlm_data.tokenizer import Tokenizer
from btlm_data.tokenizer.tokenizer import TokenizerSpec

VERSION = 2
NAME = "index.sketch"
TASK_BYTES = 64 << 20  # of text, about
BATCH_TOKENS = 1 << 22  # made to text at once
Int64Array = npt.NDArray[np.int64]


class SketchSettings(msgspec.Struct, frozen=True):
    """Picklable. needs: what an index keeps of each document besides its keys."""

    dedupe: DedupeSettings
    tokenizer: TokenizerSpec
    needs: Needs


def plan(splits: Sequence[tuple[Path, str, str]], settings: SketchSettings, lineage: str) -> Step:
    """The step over some splits: (folder of the set, checksum of its dataset.json, split)."""
    tasks: list[Task] = []
    for folder, checksum, split in splits:
        view = _open(folder, checksum, split)
        texts = sum(row.out.bytes for row in view.manifest.rows("shuffle", split))
        most = max(1, TASK_BYTES * view.table.num_rows // max(1, texts))
        for group in range(view.table.num_groups):
            first, last = view.table.group_rows(group)
            for low in range(first, last, most):
                number, high = f"{len(tasks):06d}", min(last, low + most)
                tasks.append(
                    Task(
                        id=number,
                        args={
                            "folder": str(folder),
                            "split": split,
                            "group": group,
                            "first": low,
                            "last": high,
                        },
                        inputs=[checksum],
                        outputs=[("work", f"index/sketch/{number}.{kind}") for kind in ("sketch", "texts")],
                        weight=high - low,
                    )
                )
    return Step(NAME, VERSION, work, tasks, settings, lineage, "doc")


def blocks_of(step: Step, results: Sequence[TaskResult]) -> list[Block]:
    """What the step has left, as deduplication takes documents: one after the other, all alike."""
    blocks, first = [], 0
    for task, result in zip(step.tasks, results, strict=True):
        sketch: Artifact = result.outputs[0]
        count = result.counts.extra["documents"]
        stem = f"index/sketch/{task.id}"
        blocks.append(Block(stem, "train", first, count, 0, sketch, sketch, sketch, None, None, None, None))
        first += count
    return blocks


def work(task: Task, settings: SketchSettings, files: TaskFiles) -> Counts:
    """Sketch the documents of one task. Ordinals of texts are counted within the task."""
    [checksum] = task.inputs
    view = _open(Path(task.args["folder"]), checksum, task.args["split"])
    table = view.table
    names = [
        "stream_offset",
        "tokens",
        "bytes",
        "hash",
        *(["forgotten"] if "forgotten" in table.columns else []),
    ]
    if "hash" not in table.columns:
        raise DataError(
            f"{table.path} has no hashes of texts. Prepare the dataset again with this btlm-data."
        )
    first, last = task.args["first"], task.args["last"]
    base = table.group_rows(task.args["group"])[0]
    part = table.arrow(task.args["group"], names).slice(first - base, last - first)
    begins, lengths, num_bytes = (
        part.column(name).to_numpy().astype(np.int64) for name in ("stream_offset", "tokens", "bytes")
    )
    is_wanted = np.ones(len(begins), np.bool_)
    if "forgotten" in names:
        is_wanted = ~part.column("forgotten").to_numpy()
    hashes = part.column("hash").to_pylist()
    dedupe, tokenizer = settings.dedupe, settings.tokenizer.load()
    sketches: list[dict[str, npt.NDArray[Any]]] = []
    texts: list[bytes] = []
    ids, starts = tokens_of(view, first, begins, lengths)  # all at once: every shard is opened for it
    edges = np.flatnonzero(np.diff(np.cumsum(lengths) // BATCH_TOKENS)) + 1
    for low, high in pairwise([0, *edges.tolist(), len(begins)]):
        rows = np.arange(low, high)
        utf8, offsets, is_right = _texts(
            ids, starts[low : high + 1], num_bytes[rows], hashes[low:high], tokenizer
        )
        kept = np.flatnonzero(is_right & is_wanted[rows])
        wrong = np.flatnonzero(~is_right & is_wanted[rows] & ~_is_cut(view, begins[rows] + lengths[rows]))
        if len(wrong):
            raise DataError(
                f"The text of document {first + low + int(wrong[0]):,} of {view.root / view.name} cannot be had back from "
                f"its tokens: shards are damaged (`btlm-data verify` says where), or the tokenizer "
                f"{view.manifest.tokenizer.name} changes texts before it encodes them. In the second case new documents "
                "cannot be compared with these: prepare old and new source together instead."
            )
        normalised = normalisation.normalise(None, utf8, offsets)
        sketches.append(sketch(normalised, kept, dedupe, with_signatures=settings.needs == "signatures"))
        if settings.needs == "texts":
            bounds = normalised.offsets
            texts += [normalised.utf8[bounds[k] : bounds[k + 1]].tobytes() for k in kept.tolist()]
        advance(high - low)
    joined = {name: np.concatenate([arrays[name] for arrays in sketches]) for name in sketches[0]}
    files.write_columns(task.outputs[0][1], joined)
    frames, frame_bounds = pack(texts)
    count = len(joined["exact"])
    rows = np.arange(len(texts))
    ordinals = rows.astype(np.uint32)
    files.write_columns(task.outputs[1][1], {"ordinals": ordinals, "frames": frames, "bounds": frame_bounds})
    return Counts(extra={"documents": count, "pieces": pieces_of(rows, frame_bounds)})


def _open(folder: Path, checksum: str, split: str) -> SplitView:
    """A split of the dataset that was planned. Raises DataError if it is another one by now."""
    manifest = dataset.read_set(folder)
    if manifest.checksum != checksum:
        raise DataError(f"{folder} was changed while documents were added to it. Run the same command again.")
    return SplitView(folder, manifest, split)


def _texts(
    ids: npt.NDArray[np.uint32],
    starts: Int64Array,
    num_bytes: Int64Array,
    hashes: Sequence[bytes],
    tokenizer: Tokenizer,
) -> tuple[npt.NDArray[np.uint8], Int64Array, npt.NDArray[np.bool_]]:
    """Texts of consecutive documents: their bytes, n + 1 offsets, and which are right by their hashes; the others are
    empty. starts: (n + 1,), where the tokens of each begin in `ids`.
    """
    import xxhash

    token_bytes = tokenizer.token_bytes
    if token_bytes is not None:
        table = token_text.Table.of(token_text.TokenBytes(*token_bytes))
        utf8, offsets = token_text.decode(ids, starts[:-1], np.diff(starts), table, num_bytes)
        data = utf8.tobytes()
        texts = [data[a:b] for a, b in pairwise(offsets.tolist())]
    else:
        texts = [tokenizer.decode(ids[a:b]).encode() for a, b in pairwise(starts.tolist())]
    is_right = np.array(
        [xxhash.xxh3_128_digest(text) == value for text, value in zip(texts, hashes, strict=True)], np.bool_
    )
    texts = [text if right else b"" for text, right in zip(texts, is_right.tolist(), strict=True)]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), offsets, is_right


def _is_cut(view: SplitView, ends: Int64Array) -> npt.NDArray[np.bool_]:
    """Whether documents end behind what is in the shards. ends: (n,) int64, stream positions of their EOS."""
    held = view.num_rows if view.is_corpus else view.num_labels
    if view.format == "vsl":
        return np.zeros(len(ends), np.bool_)
    cut: npt.NDArray[np.bool_] = ends > held
    return cut
