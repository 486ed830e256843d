"""Measure a prepared dataset, or shards that others made, for people and programs: `inspect` returns JSON values.

What the manifest counts is taken from it (`verify` is what re-reads everything); what it cannot say is measured on a seeded
sample, and the report says of how many rows or documents. Anything that cannot be known is listed under `unknown`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import BtlmError, DataError
from btlm_data.formats import provenance
from btlm_data.formats.dataset import Dataset
from btlm_data.formats.ledger import STAGES
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.inspection import lookup
from btlm_data.inspection.lookup import DocumentTable, Rows
from btlm_data.inspection.opening import Opened, open_path, reading
from btlm_data.task import Amount

if TYPE_CHECKING:
    from btlm_data.tokenizers import Tokenizer

SEED = 0x5EED
MAX_DOCUMENTS = 2_000_000  # measured per split; more are sampled by row groups spread evenly over the stream
MAX_RANKED = 200_000
MAX_PAIRS = 256  # of neighbouring rows read per split
MAX_TOKENS = 4_000_000
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
EXAMPLE_CHARS = 200
GPT2_VOCAB, GPT2_EOS = 50257, 50256


def inspect(
    path: Path, *, sample: Sequence[int] = (), split: str | None = None, num_samples: int = 2
) -> dict[str, Any]:
    """Everything that `btlm-data inspect` shows, as JSON values.

    sample: numbers of samples to show (rows of the split's shards, files by name); without any, num_samples are drawn.
    split: which split they are from (default: the one the path names, else train, else the first).
    Raises DataError if there is nothing to look at, or no such sample or split.
    """
    opened = open_path(path)
    if opened.sets is None:
        return _inspect_one(opened, sample, split, num_samples)
    reports: dict[str, Any] = {}
    unknown = []
    for name in opened.sets.names:
        try:
            reports[name] = _inspect_one(open_path(opened.root / name), sample, split, num_samples)
        except DataError as error:
            unknown.append(f"set {name}: {error}")
    return {"kind": "sets", "path": str(opened.root), "sets": reports, "unknown": unknown}


def _inspect_one(
    opened: Opened, sample: Sequence[int], split: str | None, num_samples: int
) -> dict[str, Any]:
    manifest, unknown = opened.manifest, []
    if opened.problem is not None:
        unknown.append(f"{opened.problem}; what follows is measured on the shards")
    elif manifest is None:
        unknown.append(
            "no dataset.json: sources, documents, what was dropped and the order of samples are not known"
        )
    report: dict[str, Any] = {
        "kind": "dataset" if manifest else "shards",
        "path": str(opened.root),
        "identity": _identity(opened),
    }
    names = [opened.chosen] if opened.chosen is not None else list(opened.splits)
    rows = {name: lookup.rows_of(opened, name) for name in names}
    measured = {name: _measure_tokens(opened, name, rows[name], unknown) for name in names}
    tokenizer, reason, guessed = _tokenizer(opened, measured)
    if reason:
        unknown.append(reason)
    report["tokenizer_guess"] = guessed
    if guessed is not None and opened.eos_id is None:
        opened = replace(opened, foreign=opened.foreign | {"eos_id": GPT2_EOS})
        measured = {name: _measure_tokens(opened, name, rows[name], []) for name in names}
    report["splits"] = {name: _split(opened, name, rows[name], measured[name]) for name in names}
    report["tokens"] = {
        name: _named(value, tokenizer) for name, value in measured.items() if value is not None
    }
    tables: dict[str, DocumentTable] = {}
    for name in names:
        unknown += rows[name].problems
        if manifest is None:
            continue
        try:
            tables[name] = DocumentTable(opened.documents_path(name))
        except DataError as error:
            unknown.append(str(error))
    report["lengths"], report["shuffle"] = {}, {}
    for name in names:
        documents = None
        if name in tables:
            try:
                documents = _measure_documents(tables[name], manifest)
            except DataError as error:
                unknown.append(str(error))
        if documents is not None:
            report["lengths"][name] = documents["lengths"]
        report["shuffle"][name] = _shuffle(opened, name, rows[name], documents, measured[name])
    if manifest is not None:
        made = _provenance(opened, unknown)
        report |= {
            "sources": _sources(manifest, names),
            "ledger": _ledger(manifest),
            "source": made.source if made else None,
        }
        report["duplicates"] = _duplicates(opened, manifest, unknown)
        report["examples"] = _examples(opened, unknown)
        report["timings"] = msgspec.to_builtins(made.steps) if made else None
    report["disk"] = _disk(opened, names)
    report["samples"] = _samples(opened, sample, split, num_samples, rows, tables, tokenizer)
    report["unknown"] = unknown
    return report


def _identity(opened: Opened) -> dict[str, Any]:
    manifest = opened.manifest
    if manifest is None:
        return {"foreign": opened.foreign}
    token = manifest.tokenizer
    return {
        "format_version": manifest.format_version,
        "fingerprint": manifest.fingerprint,
        "format": manifest.format,
        "seq_len": manifest.seq_len,
        "shuffle": manifest.shuffle,
        "seed": manifest.seed,
        "tail": manifest.tail,
        "tokenizer": {
            "name": token.name, "fingerprint": token.fingerprint, "eos_id": token.eos_id,
            "vocab_size": token.vocab_size,
        },
        "set": {"index": manifest.set.index, "share": manifest.set.share, "names": manifest.set.names},
        "configuration": manifest.configuration,
    }  # fmt: skip


# Splits, sources, ledger --------------------------------------------------------------------------------------------


def _split(opened: Opened, split: str, rows: Rows, measured: dict[str, Any] | None) -> dict[str, Any]:
    """Counts of one split (of one shard, where the path names one). Packing: real positions of all."""
    layout, manifest = rows.layout, opened.manifest
    entry = manifest.splits.get(split) if manifest else None
    size = sum(path.stat().st_size for path in rows.files if path.exists())
    length = lookup.sequence_length(opened, rows)
    corpus = layout is not None and layout.layout == "corpus"
    positions = rows.total if corpus else rows.total * length
    real: float | None = None
    if entry is not None and opened.only is None:
        real = entry.label_tokens
    elif entry is not None:
        real = sum(file.tokens for file in entry.files if opened.only and file.name == opened.only.name)
    elif corpus:
        real = rows.total
    elif measured is not None:
        real = positions * measured["mask_share"]
    used = (
        positions * measured["used_share"]
        if layout is not None and layout.layout == "vsl" and measured is not None
        else real
    )
    return {
        "files": len(rows.files),
        "samples": lookup.num_sequences(opened, rows),
        "seq_len": length,
        "documents": entry.documents if entry and opened.only is None else None,
        "stream_tokens": entry.stream_tokens if entry and opened.only is None else None,
        "label_tokens": None if real is None else round(real),
        "label_tokens_measured": "all"
        if entry is not None or corpus
        else f"{(measured or {}).get('rows', 0)} rows",
        "positions": positions,
        "packing_efficiency": used / positions if used is not None and positions else None,
        "disk_bytes": size,
        "bytes_per_token": size / real if real else None,
        "layout": layout.layout if layout else None,
        "dtype": layout.dtype if layout else None,
        "shape": list(layout.shape[1:]) if layout else None,
        "chunks": list(layout.chunks) if layout and layout.chunks else None,
        "compression": layout.compression if layout else None,
        "hdf5_shuffle": layout.hdf5_shuffle if layout else None,
    }


def _amount(amount: Amount) -> dict[str, int]:
    return amount._asdict()


def _sources(manifest: Dataset, splits: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What each split's stream is made of: documents, bytes and tokens by source, with shares; most tokens first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split in splits:
        mine = [
            (e.source, e.out.amount)
            for e in manifest.ledger
            if (e.stage, e.split) == ("shuffle", split) and any(e.out.amount)
        ]
        total = Amount()
        for _, amount in mine:
            total = total.plus(amount)
        found[split] = [
            {
                "source": source,
                **_amount(amount),
                "shares": {
                    unit: part / whole if whole else 0.0
                    for unit, part, whole in zip(Amount._fields, amount, total, strict=True)
                },
            }
            for source, amount in sorted(mine, key=lambda item: (-item[1].tokens, item[0]))
        ]
    return found


def _ledger(manifest: Dataset) -> list[dict[str, Any]]:
    """What each stage took, dropped and gave, over all splits and sources."""
    stages = []
    for stage in STAGES:
        entries = [entry for entry in manifest.ledger if entry.stage == stage]
        if not entries:
            continue
        came, out = Amount(), Amount()
        sides: dict[str, dict[str, Amount]] = {"added": {}, "dropped": {}}
        for entry in entries:
            came, out = came.plus(entry.received.amount), out.plus(entry.out.amount)
            for side, amounts in (("added", entry.added), ("dropped", entry.dropped)):
                for reason, value in amounts.items():
                    sides[side][reason] = sides[side].get(reason, Amount()).plus(value.amount)
        named = {
            side: {reason: _amount(value) for reason, value in sorted(amounts.items())}
            for side, amounts in sides.items()
        }
        stages.append({"stage": stage, "in": _amount(came), **named, "out": _amount(out)})
    return stages


def _duplicates(opened: Opened, manifest: Dataset, unknown: list[str]) -> dict[str, Any] | None:
    """Clusters: how many, how large, and what went because of them; None where nothing was deduplicated."""
    settings = manifest.configuration.get("dedupe")
    method = settings.get("method") if isinstance(settings, dict) else None
    if method == "none":
        return None
    dropped: dict[str, Any] = {}
    for stage in _ledger(manifest):
        if stage["stage"] == "dedupe":
            dropped = stage["dropped"]
    found: dict[str, Any] = {"method": method, "dropped": dropped, **(manifest.dedupe or {})}
    path = opened.root / "clusters.parquet"
    if path.is_file():
        try:
            found["sizes"] = _cluster_sizes(path)
        except DataError as error:
            unknown.append(str(error))
    return found


def _cluster_sizes(path: Path) -> dict[str, Any] | None:
    """How many clusters have 2, 3-4, 5-8, ... documents."""
    import pyarrow.parquet as pq

    with reading(path):
        file = pq.ParquetFile(path)
        column = next((name for name in ("cluster", "cluster_id") if name in file.schema_arrow.names), None)
        if column is None:
            return None
        ids = file.read([column]).column(0).to_numpy()
        _, sizes = np.unique(ids, return_counts=True)
    sizes = sizes[sizes > 1]
    if not len(sizes):
        return {"clusters": 0, "documents": 0, "largest": 0, "histogram": []}
    edges = [2, 3]
    while edges[-1] <= sizes.max():
        edges.append(2 * edges[-1] - 1)
    counts = np.histogram(sizes, edges)[0].tolist()
    histogram = [
        {"from": a, "to": b - 1, "clusters": n} for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return {
        "clusters": len(sizes),
        "documents": int(sizes.sum()),
        "largest": int(sizes.max()),
        "histogram": histogram,
    }


def _examples(opened: Opened, unknown: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Up to three examples of each reason to drop a document, shortened."""
    found: dict[str, list[dict[str, Any]]] = {}
    path = opened.root / "examples.jsonl"
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                value = json.loads(line)
                mine = found.setdefault(str(value["reason"]), [])
                if len(mine) < 3:
                    text = str(value.get("text", ""))
                    mine.append(
                        {key: value.get(key) for key in ("file", "offset", "source")}
                        | {"text": text[:EXAMPLE_CHARS]}
                    )
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        unknown.append(f"{path} is damaged: {error}")
    return found


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _disk(opened: Opened, splits: Sequence[str]) -> dict[str, int]:
    """Bytes of the shards, the tables of documents, and all else in the dataset folder (not of a foreign one)."""
    kinds = {"shards": 0, "documents": 0, "other": 0}
    for split in splits:
        kinds["shards"] += sum(
            path.stat().st_size for path in opened.splits[split] if opened.only in (None, path)
        )
    if opened.manifest is not None and opened.only is None:
        kinds["documents"] = sum(p.stat().st_size for p in map(opened.documents_path, splits) if p.is_file())
        if opened.chosen is None:
            kinds["other"] = sum(path.stat().st_size for path in opened.root.iterdir() if path.is_file())
    return kinds | {"total": sum(kinds.values())}


# Tokens, measured ---------------------------------------------------------------------------------------------------


def _measure_tokens(opened: Opened, split: str, rows: Rows, unknown: list[str]) -> dict[str, Any] | None:
    """Ids, masks and neighbours on a seeded sample of pairs of rows (of stretches of a corpus); None if nothing can be read."""
    layout = rows.layout
    if layout is None or layout.layout == "other" or rows.total == 0:
        if layout is not None and layout.layout == "other":
            unknown.append(
                f"{split}: data of shape {layout.shape} and type {layout.dtype} is in no layout this program knows"
            )
        return None
    corpus = layout.layout == "corpus"
    step = 8192 if corpus else 2
    pairs = max(8, min(MAX_PAIRS, MAX_TOKENS // (step if corpus else 2 * layout.shape[2])))
    starts = np.arange(0, rows.total, step)
    if len(starts) > pairs:
        starts = np.sort(np.random.default_rng(SEED).choice(starts, pairs, replace=False))
    counts: dict[str, float] = {
        "rows": 0,
        "positions": 0,
        "mask": 0,
        "used": 0,
        "pairs": 0,
        "continued": 0,
        "parts": 0,
    }
    ids: list[npt.NDArray[np.int64]] = []
    for start in starts.tolist():
        file, row = rows.find(start)
        try:
            with reading(rows.files[file]):
                piece = shards.read_rows(
                    rows.files[file], row, min(row + step, rows.end(file) - rows.first[file])
                )
        except DataError as error:
            unknown.append(str(error))
            continue
        counts["rows"] += len(piece)
        counts["positions"] += len(piece) if corpus else piece.shape[0] * piece.shape[2]
        if corpus:
            counts["mask"] += len(piece)
            counts["used"] += len(piece)
            ids.append(piece.astype(np.int64))
        else:
            ids += _count_rows(piece, counts)
    if not ids or not sum(map(len, ids)):
        return None
    values, amounts = np.unique(np.concatenate(ids), return_counts=True)
    total = int(amounts.sum())
    order = np.lexsort((values, -amounts))[:12]
    eos = opened.eos_id
    return {
        "rows": int(counts["rows"]),
        "all": len(starts) * step >= rows.total,
        "tokens": total,
        "distinct": len(values),
        "min": int(values[0]),
        "max": int(values[-1]),
        "mask_share": counts["mask"] / counts["positions"],
        "used_share": counts["used"] / counts["positions"],
        "eos_share": None
        if eos is None or layout.layout == "vsl"
        else float(amounts[values == eos].sum() / total),
        "document_parts_per_sample": counts["parts"] / counts["rows"] if layout.layout == "vsl" else None,
        "most_common": [{"id": int(values[k]), "share": float(amounts[k] / total)} for k in order],
        "entropy_bits": float(-(amounts / total * np.log2(amounts / total)).sum()),
        "neighbours": int(counts["pairs"]),
        "neighbours_that_continue": counts["continued"] / counts["pairs"] if counts["pairs"] else None,
        # Two independent tokens are equal with this probability, so as many neighbours seem to continue by chance.
        "expected_by_chance": float(((amounts / total) ** 2).sum()),
    }


def _count_rows(piece: npt.NDArray[Any], counts: dict[str, float]) -> list[npt.NDArray[np.int64]]:
    """Add a few rows (n, P, L) to the counts; returns their real ids."""
    used = []
    for planes in piece:
        real = lookup.extent(planes)
        counts["mask"] += int((planes[1] == 1).sum())
        counts["used"] += real
        counts["parts"] += int((planes[4][:real] == 0).sum()) if planes.shape[0] == 5 else 0
        used.append(real)
    if len(piece) == 2 and all(used):
        counts["pairs"] += 1
        counts["continued"] += int(piece[0][2][used[0] - 1] == piece[1][0][0])
    return [planes[0][:real].astype(np.int64) for planes, real in zip(piece, used, strict=True)]


def _tokenizer(
    opened: Opened, measured: dict[str, dict[str, Any] | None]
) -> tuple[Tokenizer | None, str | None, str | None]:
    """(the tokenizer or None, why there is none, in words what was guessed)."""
    from btlm_data.tokenizers import load_tokenizer

    guessed = None
    if opened.manifest is not None:
        name, revision = _place_of_tokenizer(opened)
    else:
        revision = None
        found = [value for value in measured.values() if value is not None]
        stated = str(opened.foreign.get("tokenizer", "")).lower()
        if not found:
            return None, None, None
        top = max(value["max"] for value in found)
        if "gpt2" not in stated and not (stated == "" and top == GPT2_EOS):
            return None, "which tokenizer made the ids is not known, so samples are shown as ids", None
        name = "gpt2"
        guessed = (
            "gpt2, as data_params.json says"
            if stated
            else f"gpt2, because the largest id seen is its <|endoftext|>, {GPT2_EOS}"
        )
    location = _on_this_machine(name, revision)
    if location is None:
        return (
            None,
            f"the tokenizer {name} is not on this machine, so samples are shown as ids (looking downloads nothing)",
            None,
        )
    settings = opened.manifest.configuration.get("tokenizer") if opened.manifest else None
    eos = settings.get("eos") if isinstance(settings, dict) else None
    try:
        tokenizer = load_tokenizer(location, backend="reference", eos=eos if isinstance(eos, str) else None)
    except (BtlmError, OSError, ValueError) as error:
        return None, f"the tokenizer {name} cannot be loaded, so samples are shown as ids: {error}", None
    if opened.manifest is not None and tokenizer.fingerprint != opened.manifest.tokenizer.fingerprint:
        return (
            None,
            f"the tokenizer {name} found here is not the one that made the ids (another fingerprint): samples are shown as ids",
            None,
        )
    return tokenizer, None, guessed


def _provenance(opened: Opened, unknown: list[str]) -> provenance.Provenance | None:
    try:
        return provenance.read(opened.root)
    except DataError as error:
        unknown.append(str(error))
        return None


def _place_of_tokenizer(opened: Opened) -> tuple[str, str | None]:
    """Name and revision of the tokenizer as the run was given them; without provenance, what dataset.json says."""
    assert opened.manifest is not None
    made = _provenance(opened, [])
    chosen = made.configuration.get("tokenizer") if made else None
    if isinstance(chosen, dict) and isinstance(chosen.get("name"), str):
        revision = chosen.get("revision")
        return chosen["name"], revision if isinstance(revision, str) else None
    return opened.manifest.tokenizer.name, None


def _on_this_machine(name: str, revision: str | None) -> str | None:
    """Where a tokenizer lies: inside the package, at its path, or in the hub's cache; None if it would have to be fetched."""
    if name == "gpt2" or Path(name).exists():
        return name
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except ValueError:  # no name of a repository
        return None
    return str(Path(cached).parent) if isinstance(cached, str) else None


def _named(measured: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """With the text of the most common tokens."""
    if tokenizer is None:
        return measured
    common = [
        entry
        | {"text": tokenizer.token_text(entry["id"]) if 0 <= entry["id"] < tokenizer.vocab_size else None}
        for entry in measured["most_common"]
    ]
    return measured | {"most_common": common, "vocabulary_share": measured["distinct"] / tokenizer.vocab_size}


# Documents, measured ------------------------------------------------------------------------------------------------


def _measure_documents(table: DocumentTable, manifest: Dataset | None) -> dict[str, Any]:
    """Lengths, and order against the source, of up to MAX_DOCUMENTS documents."""
    groups = range(table.num_groups)
    if table.num_rows > MAX_DOCUMENTS and table.num_groups > 1:
        wanted = max(2, table.num_groups * MAX_DOCUMENTS // table.num_rows)
        groups = sorted({int(g) for g in np.linspace(0, table.num_groups - 1, wanted).round()})  # type: ignore[assignment]
    files = {file.name: k for k, file in enumerate(manifest.inputs)} if manifest else {}
    sources: dict[str, int] = {}
    parts: dict[str, list[npt.NDArray[Any]]] = {
        key: [] for key in ("tokens", "chars", "bytes", "file", "offset", "source")
    }
    runs = _Runs()
    previous = -1
    for group in groups:
        columns = table.read(group, ("tokens", "chars", "bytes", "file", "offset", "source"))
        for key, known in (("file", files), ("source", sources)):
            codes, names = columns[key]
            columns[key] = np.array([known.setdefault(name, len(known)) for name in names] or [0], np.int64)[
                codes
            ]
        runs.add(columns["source"], joined=group == previous + 1)
        previous = group
        for key, arrays in parts.items():
            arrays.append(columns[key])
    whole = {
        key: np.concatenate(arrays) if arrays else np.empty(0, np.int64) for key, arrays in parts.items()
    }
    counts = np.bincount(whole["source"], minlength=len(sources))
    return {
        "lengths": {
            "documents": len(whole["tokens"]),
            "of": table.num_rows,
            "tokens": _distribution(whole["tokens"]),
            "chars": _distribution(whole["chars"]),
            "chars_per_token": _ratio(whole["chars"], whole["tokens"]),
            "bytes_per_token": _ratio(whole["bytes"], whole["tokens"]),
        },
        "order": _order(whole["file"], whole["offset"].astype(np.int64)),
        "runs": runs.report(list(sources), counts),
    }


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> float | None:
    total = int(below.sum(dtype=np.int64))
    return int(above.sum(dtype=np.int64)) / total if total else None


def _distribution(values: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Mean, quantiles, and a histogram over powers of two."""
    if not len(values):
        return None
    quantiles = np.quantile(values, QUANTILES)
    top = int(values.max())
    edges = [0, 1]
    while edges[-1] <= top:
        edges.append(2 * edges[-1])
    counts = np.histogram(values, edges)[0].tolist()
    first = next(k for k, n in enumerate(counts) if n)
    bars = [
        {"from": a, "to": b - 1, "documents": n}
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return {
        "mean": float(values.mean()),
        "total": int(values.sum(dtype=np.int64)),
        "quantiles": {f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": bars[first:],
    }


def _order(files: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Spearman's rank correlation of place in the stream with place in the source; for a perfect shuffle 0 +- 1/sqrt(n - 1)."""
    if len(files) > MAX_RANKED:
        places = np.linspace(0, len(files) - 1, MAX_RANKED).round().astype(np.int64)
        files, offsets = files[places], offsets[places]
    if len(files) < 3:
        return None
    rank = np.empty(len(files), np.float64)
    rank[np.lexsort((offsets, files))] = np.arange(len(files))
    return _correlation(rank)


def _correlation(rank: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Of ranks in the order they are met, with those of the order itself."""
    n = len(rank)
    rho = float(np.corrcoef(np.arange(n), rank)[0, 1])
    return {
        "rank_correlation": rho,
        "expected": 0.0,
        "standard_deviation": 1 / math.sqrt(n - 1),
        "measured_on": n,
    }


class _Runs:
    """The longest run of documents of one source, over arrays that may follow each other."""

    def __init__(self) -> None:
        self.longest = (0, -1)
        self._open = (0, -1)
        self.documents = 0

    def add(self, codes: npt.NDArray[np.int64], *, joined: bool) -> None:
        """Add the next codes; joined: they follow the ones before directly."""
        if not len(codes):
            return
        self.documents += len(codes)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
        lengths = np.diff(edges)
        if joined and self._open[1] == codes[0]:
            lengths[0] += self._open[0]
        k = int(lengths.argmax())
        self.longest = max(self.longest, (int(lengths[k]), int(codes[edges[k]])))
        self._open = (int(lengths[-1]), int(codes[-1]))

    def report(self, names: list[str], counts: npt.NDArray[np.int64]) -> dict[str, Any] | None:
        """With the length expected of a perfect shuffle."""
        if self.longest[1] < 0:
            return None
        return {
            "longest_run": self.longest[0],
            "source": names[self.longest[1]],
            "expected": max(expected_run(self.documents, int(n)) for n in counts if n),
        }


def expected_run(documents: int, of_source: int) -> float:
    """Expected longest run of one source's documents among all, in random order.

    log_(1/p)(n (1 - p)) + gamma / ln(1/p) - 1/2 for a share p (Schilling, "The Longest Run of Heads", 1990), within 1 to their number.
    """
    if of_source >= documents:
        return float(documents)
    p = of_source / documents
    rate = math.log(1 / p)
    expected = (math.log(max(documents * (1 - p), 1)) + np.euler_gamma) / rate - 0.5
    return float(min(max(expected, 1.0), of_source))


def _shuffle(
    opened: Opened, split: str, rows: Rows, documents: dict[str, Any] | None, measured: dict[str, Any] | None
) -> dict[str, Any]:
    """How well documents, and samples, are mixed; beside each figure what a perfect shuffle would give."""
    found: dict[str, Any] = {"documents": None, "runs": None, "samples": None, "neighbours": None}
    if documents is not None:
        found["documents"], found["runs"] = documents["order"], documents["runs"]
    entry = opened.manifest.splits.get(split) if opened.manifest else None
    if (
        opened.manifest is not None
        and entry is not None
        and opened.manifest.shuffle == "samples"
        and rows.total > 2
    ):
        total = sum(file.n_examples for file in entry.files)
        places = np.unique(
            np.linspace(rows.base, rows.base + rows.total - 1, min(rows.total, MAX_RANKED))
            .round()
            .astype(np.uint64)
        )
        places = places[places < total]
        origin = lookup.origins(opened, split, places, total)
        if origin is not None and len(origin) > 2 and opened.manifest.format == "sample":
            found["samples"] = _correlation(np.argsort(np.argsort(origin)).astype(np.float64))
    if measured is not None and measured["neighbours"]:
        found["neighbours"] = {
            "continue": measured["neighbours_that_continue"],
            "expected": measured["expected_by_chance"],
            "measured_on": measured["neighbours"],
        }
    return found


# Samples ------------------------------------------------------------------------------------------------------------


def _samples(
    opened: Opened, sample: Sequence[int], split: str | None, num_samples: int, rows: dict[str, Rows],
    tables: dict[str, DocumentTable], tokenizer: Tokenizer | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The samples asked for, or a few drawn."""
    if split is not None and split not in rows:
        raise DataError(
            f"There is no split {split!r} in {opened.path}. It has {', '.join(rows) or 'none'}; name one with --split."
        )
    chosen = split or ("train" if "train" in rows else next(iter(rows), None))
    if chosen is None:
        return []
    numbers = list(sample)
    total = lookup.num_sequences(opened, rows[chosen])
    if not numbers and total:
        numbers = sorted(
            np.random.default_rng(SEED).choice(total, min(num_samples, total), replace=False).tolist()
        )
    shown = []
    for number in numbers:
        try:
            shown.append(lookup.sample(opened, chosen, number, rows[chosen], tokenizer, tables.get(chosen)))
        except DataError as error:
            if sample:
                raise
            shown.append(
                {"split": chosen, "sample": number, "note": str(error), "documents": None, "segments": []}
            )
    return shown
