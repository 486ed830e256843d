"""Measure ids, masks and neighbours on a seeded sample of rows; and find the tokenizer that made the ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import BtlmError, DataError
from btlm_data.formats import provenance
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
_AT_ONCE = 1 << 20  # numbers of rows that are looked at together
_COUNTED = 1 << 20  # ids of a vocabulary
GPT2_EOS = 50256


class _Tally(msgspec.Struct):
    """Sums over the rows read so far. eos: the id that ends documents, if it is known."""

    eos: int | None
    rows: int = 0
    positions: int = 0
    mask: int = 0
    used: int = 0
    pairs: int = 0
    continued: int = 0
    parts: int = 0
    ids: list[npt.NDArray[np.int64]] = msgspec.field(default_factory=list)
    documents: list[int] = msgspec.field(default_factory=list)
    repeat: Repeat = Repeat(-1, 0)  # a value that cannot change

    def _see(self, ids: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> None:
        """Add the ids of some rows, end to end without padding, (n,), and where each row that has any begins."""
        self.ids.append(ids)
        if not len(ids):
            return
        is_edge = np.concatenate([[True], ids[1:] != ids[:-1]])
        is_edge[starts] = True
        edges = np.flatnonzero(is_edge)
        lengths = np.diff(edges, append=len(ids))
        k = int(lengths.argmax())
        if lengths[k] > self.repeat.length:
            self.repeat = Repeat(int(ids[edges[k]]), int(lengths[k]))

    def add_corpus(self, piece: npt.NDArray[Any]) -> None:
        self.rows += len(piece)
        self.positions += len(piece)
        self.mask += len(piece)
        self.used += len(piece)
        self._see(piece.astype(np.int64), np.zeros(1, np.int64))

    def add_rows(self, pieces: npt.NDArray[Any]) -> None:
        """Add rows, or pairs of rows that follow each other: (n, 1 or 2, P, L)."""
        rows = pieces.reshape(-1, *pieces.shape[2:])
        length = rows.shape[2]
        is_used = rows[:, 1] != 0
        if rows.shape[1] == 5:
            is_used |= (rows[:, 3] != 0) | (rows[:, 4] != 0)
        real = np.where(is_used.any(1), length - is_used[:, ::-1].argmax(1), 0)  # as lookup.extent
        inside = np.arange(length) < real[:, None]
        self.rows += len(rows)
        self.positions += len(rows) * length
        self.mask += int((rows[:, 1] == 1).sum())
        self.used += int(real.sum())
        if rows.shape[1] == 5:
            parts = ((rows[:, 4] == 0) & inside).sum(1)
            self.parts += int(parts.sum())
            self.documents += parts.tolist()
        elif self.eos is not None:
            ends = (rows[:, 0, :-1] == self.eos) & inside[:, 1:]
            self.documents += (ends.sum(1) + 1)[real > 0].tolist()
        ids = rows[:, 0]
        self._see((ids.reshape(-1) if inside.all() else ids[inside]).astype(np.int64), _starts(real))
        if pieces.shape[1] == 2:
            first, second = real.reshape(-1, 2).T
            pairs = np.flatnonzero((first > 0) & (second > 0))
            self.pairs += len(pairs)
            self.continued += int((pieces[pairs, 0, 2, first[pairs] - 1] == pieces[pairs, 1, 0, 0]).sum())


def _starts(real: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where rows of so many ids begin, end to end; of those that have any. real: (n,)."""
    begins: npt.NDArray[np.int64] = (np.cumsum(real) - real)[real > 0]
    return begins


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
    waiting: list[npt.NDArray[Any]] = []
    size = 0

    def add(pieces: list[npt.NDArray[Any]]) -> None:
        for shape in dict.fromkeys(piece.shape for piece in pieces):
            tally.add_rows(np.stack([piece for piece in pieces if piece.shape == shape]))
        pieces.clear()

    with OpenShards(few=True) as shards:
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
                waiting.append(piece)
                size += piece.size
                if size >= _AT_ONCE:
                    add(waiting)
                    size = 0
    add(waiting)
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


class FoundTokenizer(msgspec.Struct, frozen=True):
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
