"""Measure ids, masks and neighbours on a seeded sample of rows; and find the tokenizer that made the ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import BtlmError, DataError
from btlm_data.formats import provenance
from btlm_data.inspection import lookup
from btlm_data.inspection.document_measures import histogram
from btlm_data.inspection.lookup import Rows
from btlm_data.inspection.opening import Opened, OpenShards
from btlm_data.inspection.report import Bar, Neighbours, Rank, Repeat, Tokens, TokenShare

if TYPE_CHECKING:
    from btlm_data.tokenizer import Tokenizer

SEED = 0x5EED
MAX_PAIRS = 256  # of neighbouring rows read per split
MAX_TOKENS = 4_000_000
CORPUS_STEP = 8192  # tokens of a corpus read in one stretch
NUM_COMMON = 12
NUM_RANKS = 60
_COUNTED = 1 << 20  # ids of a vocabulary
GPT2_EOS = 50256


@dataclass
class _Tally:
    """Sums over the rows read so far. eos: the id that ends documents, if it is known."""

    eos: int | None
    rows: int = 0
    positions: int = 0
    mask: int = 0
    used: int = 0
    pairs: int = 0
    continued: int = 0
    parts: int = 0
    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    repeat: Repeat = Repeat(-1, 0)  # noqa: RUF009  # a value that cannot change

    def _see(self, ids: npt.NDArray[np.int64]) -> None:
        """Add the ids of one row, without padding."""
        self.ids.append(ids)
        if not len(ids):
            return
        edges = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)]])
        lengths = np.diff(edges)
        k = int(lengths.argmax())
        if lengths[k] > self.repeat.length:
            self.repeat = Repeat(int(ids[edges[k]]), int(lengths[k]))

    def add_corpus(self, piece: npt.NDArray[Any]) -> None:
        self.rows += len(piece)
        self.positions += len(piece)
        self.mask += len(piece)
        self.used += len(piece)
        self._see(piece.astype(np.int64))

    def add_rows(self, piece: npt.NDArray[Any]) -> None:
        """Add one row, or two that follow each other: (1 or 2, P, L)."""
        self.rows += len(piece)
        self.positions += piece.shape[0] * piece.shape[2]
        used = []
        for planes in piece:
            real = lookup.extent(planes)
            self.mask += int((planes[1] == 1).sum())
            self.used += real
            ids = planes[0][:real].astype(np.int64)
            if planes.shape[0] == 5:
                parts = int((planes[4][:real] == 0).sum())
                self.parts += parts
                self.documents.append(parts)
            elif self.eos is not None and real:
                self.documents.append(int((ids[:-1] == self.eos).sum()) + 1)
            used.append(real)
            self._see(ids)
        if len(piece) == 2 and all(used):
            self.pairs += 1
            self.continued += int(piece[0][2][used[0] - 1] == piece[1][0][0])


def measure_tokens(
    opened: Opened, split: str, rows: Rows, unknown: list[str]
) -> tuple[Tokens, Neighbours | None] | None:
    """Figures of a seeded sample of pairs of rows (of stretches of a corpus); None if nothing can be read."""
    layout = rows.layout
    shard_format = rows.shard_format
    if layout is None or shard_format is None or rows.total == 0:
        if layout is not None and shard_format is None:
            unknown.append(
                f"{split}: data of shape {layout.shape} and type {layout.dtype} is in no layout this "
                "program knows"
            )
        return None
    corpus = rows.are_tokens
    step = CORPUS_STEP if corpus else 2
    pairs = max(8, min(MAX_PAIRS, MAX_TOKENS // (step if corpus else 2 * max(1, layout.shape[2]))))
    num_starts = -(-rows.total // step)
    numbers = (
        np.sort(np.random.default_rng(SEED).choice(num_starts, pairs, replace=False))
        if num_starts > pairs
        else np.arange(num_starts)
    )
    tally = _Tally(opened.eos_id)
    damaged: set[int] = set()  # one line for each file is enough
    with OpenShards() as shards:
        for start in (numbers * step).tolist():
            file, row = rows.find(start)
            if file in damaged:
                continue
            try:
                stop = min(row + step, rows.end(file) - rows.first[file])
                piece = shards.read(rows.files[file], row, stop, axes=1 if corpus else 3)
            except DataError as error:
                unknown.append(str(error))
                damaged.add(file)
                continue
            if corpus:
                tally.add_corpus(piece)
            elif piece.shape[1] >= 3:
                tally.add_rows(piece)
    if not sum(map(len, tally.ids)):
        return None
    return _figures(opened, tally, everything=len(numbers) * step >= rows.total, has_parts=rows.have_parts)


def _figures(
    opened: Opened, tally: _Tally, *, everything: bool, has_parts: bool
) -> tuple[Tokens, Neighbours | None]:
    values, amounts = _counts(tally.ids)
    total = int(amounts.sum())
    shares = amounts / total
    order = np.lexsort((values, -amounts))[:NUM_COMMON]
    eos = opened.eos_id
    tokens = Tokens(
        rows=tally.rows,
        all=everything,
        tokens=total,
        distinct=len(values),
        min=int(values[0]),
        max=int(values[-1]),
        mask_share=tally.mask / tally.positions,
        used_share=tally.used / tally.positions,
        eos_share=None if eos is None or has_parts else float(amounts[values == eos].sum() / total),
        document_parts_per_sample=tally.parts / tally.rows if has_parts else None,
        most_common=[TokenShare(int(values[k]), float(shares[k])) for k in order],
        entropy_bits=float(-(shares * np.log2(shares)).sum()),
        ranks=_ranks(np.sort(shares)[::-1]),
        longest_repeat=tally.repeat,
        documents_per_sample=_documents_per_sample(tally.documents),
    )
    if not tally.pairs:
        return tokens, None
    # Two independent tokens are equal with this probability, so as many neighbours seem to continue by
    # chance.
    chance = float((shares**2).sum())
    return tokens, Neighbours(tally.continued / tally.pairs, chance, tally.pairs)


def _counts(parts: list[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct values, ascending, and how often each is there. parts: (n,) each."""
    ids = np.concatenate(parts)
    least, most = int(ids.min()), int(ids.max())
    if (
        most - least > 8 * len(ids) + _COUNTED
    ):  # ids of no vocabulary: a count for each would take too much memory
        return np.unique(ids, return_counts=True)
    amounts = np.bincount(ids - least)
    values = np.flatnonzero(amounts)
    return values + least, amounts[values]


def _ranks(shares: npt.NDArray[np.float64]) -> list[Rank]:
    """Some of the ranks, evenly spread on a logarithmic scale, first and last included. shares: falling."""
    ranks = np.unique(np.geomspace(1, len(shares), NUM_RANKS).round().astype(np.int64))
    return [Rank(int(rank), float(shares[rank - 1])) for rank in ranks]


def _documents_per_sample(counts: list[int]) -> list[Bar] | None:
    return histogram(np.array(counts), [1, 2, 3], 1) if counts else None


def with_texts(tokens: Tokens, tokenizer: Tokenizer | None) -> Tokens:
    """With the text of the most common tokens, and the share of the vocabulary that was seen."""
    if tokenizer is None:
        return tokens

    def text(token: int) -> str | None:
        return tokenizer.token_text(token) if 0 <= token < tokenizer.vocab_size else None

    return msgspec.structs.replace(
        tokens,
        most_common=[TokenShare(entry.id, entry.share, text(entry.id)) for entry in tokens.most_common],
        longest_repeat=msgspec.structs.replace(tokens.longest_repeat, text=text(tokens.longest_repeat.id)),
        vocabulary_share=tokens.distinct / tokenizer.vocab_size,
    )


# The tokenizer ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundTokenizer:
    """tokenizer: None where it is not available. reason: why. guess: what was guessed."""

    tokenizer: Tokenizer | None = None
    reason: str | None = None
    guess: str | None = None


def find_tokenizer(opened: Opened, largest_id: int | None) -> FoundTokenizer:
    """The tokenizer that made the ids, if it is on this machine; nothing is downloaded.

    largest_id: seen in the shards, from which GPT-2's is guessed where nothing names one.
    """
    from btlm_data.tokenizer import already_open, load_tokenizer

    guess = None
    if opened.manifest is not None:
        recorded = opened.manifest.tokenizer
        if (loaded := already_open(recorded.fingerprint, recorded.eos_id)) is not None:
            return FoundTokenizer(loaded)
        name, revision = _recorded_location(opened)
    else:
        revision = None
        if largest_id is None:
            return FoundTokenizer()
        stated = str(opened.foreign.get("tokenizer", "")).lower()
        if "gpt2" not in stated and not (stated == "" and largest_id == GPT2_EOS):
            return FoundTokenizer(
                reason="which tokenizer made the ids is not known, so samples are shown as ids"
            )
        name = "gpt2"
        guess = (
            "gpt2, as data_params.json says"
            if stated
            else f"gpt2, because the largest id seen is its <|endoftext|>, {GPT2_EOS}"
        )
    location = _on_this_machine(name, revision)
    if location is None:
        return FoundTokenizer(
            reason=f"the tokenizer {name} is not on this machine, so samples are shown as ids "
            "(inspect downloads nothing)"
        )
    settings = opened.manifest.configuration.get("tokenizer") if opened.manifest else None
    eos = settings.get("eos") if isinstance(settings, dict) else None
    try:
        tokenizer = load_tokenizer(location, backend="reference", eos=eos if isinstance(eos, str) else None)
    except (BtlmError, OSError, ValueError) as error:
        return FoundTokenizer(
            reason=f"the tokenizer {name} cannot be loaded, so samples are shown as ids: {error}"
        )
    if opened.manifest is not None and tokenizer.fingerprint != opened.manifest.tokenizer.fingerprint:
        return FoundTokenizer(
            reason=f"the tokenizer {name} on this machine is not the one that made the ids "
            "(its fingerprint differs), "
            "so samples are shown as ids"
        )
    return FoundTokenizer(tokenizer, None, guess)


def _recorded_location(opened: Opened) -> tuple[str, str | None]:
    """Name and revision of the tokenizer as the run was given them; without provenance, what dataset.json
    says.
    """
    assert opened.manifest is not None
    try:
        made = provenance.read(opened.root)
    except DataError:
        made = None
    chosen = made.configuration.get("tokenizer") if made else None
    if isinstance(chosen, dict) and isinstance(chosen.get("name"), str):
        revision = chosen.get("revision")
        return chosen["name"], revision if isinstance(revision, str) else None
    return opened.manifest.tokenizer.name, None


def _on_this_machine(name: str, revision: str | None) -> str | None:
    """Where a tokenizer is: inside the package, at its path, or in the hub's cache; None if it would have to
    be fetched.
    """
    if name == "gpt2":
        return name
    path = Path(name)
    if "\0" not in name and (path.is_file() or path.is_dir()):  # no pipe, no device
        return name
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except (ValueError, OSError):  # not the name of a repository
        return None
    return str(Path(cached).parent) if isinstance(cached, str) else None
