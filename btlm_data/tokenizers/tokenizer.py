"""Text to token ids: Hugging Face `tokenizers` is the truth, fastokens does the work wherever it agrees to the bit.

    tokenizer = load_tokenizer("gpt2")                        # or a tokenizer.json, a folder, a hub id
    ids, offsets = tokenizer.encode_batch(["one", "two"])     # text i is ids[offsets[i]:offsets[i + 1]]

Document text is data: a literal `<|endoftext|>` in it is encoded as ordinary text, no special token is ever added,
and the end-of-document token is the caller's to place (`tokenizer.eos_id`). Truncation, padding and post-processing
that a tokenizer.json asks for are ignored, for the same reason.

Whether the fast backend may run is decided at load by a self-check on `probe_texts`; on any difference, or if the
backend cannot read the tokenizer, `tokenizers` does the work and a warning says so. Long documents are encoded in pieces that cannot change the result (`_Splitter` says why), so memory stays
bounded; a tokenizer whose rules are not known to allow that is fed whole documents.
"""

from __future__ import annotations

import logging
import os
import random
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, DataError, SourceUnavailable

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

Backend = Literal["fastokens", "tokenizers"]
Offsets = npt.NDArray[np.int64]

# fastokens holds about 200 bytes per character of a single unbroken word while it works (10 MB of one letter: 2.1 GB),
# so no piece handed to a backend is longer than this many characters: 60 MB at worst.
MAX_PIECE_CHARS = 1 << 18
# Documents and characters of one call: enough to make the call's cost vanish, few enough to bound its buffers.
MAX_CALL_TEXTS = 1000
MAX_CALL_CHARS = 4 << 20
# Bytes a window of a long word overlaps the next by; far more than the reach of any merge seen, and checked anyway.
_OVERLAP_BYTES = 1024

_GPT2_FOLDER = Path(__file__).parent.parent / "data" / "gpt2"
_GPT2_EOS = "<|endoftext|>"
_COMMON_EOS = (
    _GPT2_EOS,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOS>",
    "<|eos|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
)


class _Cut(NamedTuple):
    """Expressions for the last such place in a range (by match) and the first (by search); the cut is before the last character."""

    last: re.Pattern[str]
    first: re.Pattern[str]


def _cut(pattern: str) -> _Cut:
    return _Cut(re.compile(f"(?s:.*)(?:{pattern})"), re.compile(pattern))


_LETTER_SPACE_LETTER = _cut("[A-Za-z] (?=[A-Za-z])")
# GPT-2's pattern: white space never continues what is not white space, nor punctuation a letter or digit. Only characters
# of the same class in every Unicode table stand here (U+180E, for one, was white space before Unicode 6.3).
_GPT2_CUT = _cut(r"[^\s\u180e][ \n\t\r]|[A-Za-z0-9ぁ-ゖァ-ヺ一-龥가-힣][!-/:-@\[-`{-~、。！，：；？]")

# Patterns of a `Split` pre-tokenizer for which "a| b" is a boundary in any context: no alternative matches a letter and
# then a space, and none looks behind. Llama 3 and cl100k, Qwen 2, o200k.
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SAFE_PATTERNS = frozenset(
    {
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}",
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}",
    }
)


class _Encoder(Protocol):
    """What a backend does: nothing but ids for a few short texts."""

    name: Backend

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        """Flat ids of all texts, and n + 1 offsets into them."""


@dataclass(frozen=True)
class TokenizerSpec:
    """All that another process needs to load the same tokenizer: picklable, a few hundred bytes.

    location: "gpt2", an absolute path, or a hub id. revision: the hub commit. backend: what the self-check allowed.
    """

    name: str
    location: str
    fingerprint: str
    eos: str
    backend: Backend
    revision: str | None = None

    def load(self) -> Tokenizer:
        """Load without a second self-check; a process that has loaded it before (or its parent, if forked) reuses it.

        Raises DataError if the files are no longer the ones the fingerprint was taken from.
        """
        return _load_spec(self)


class Tokenizer:
    """One loaded tokenizer; see the module. Made by `load_tokenizer` or `TokenizerSpec.load`.

    fingerprint: hex SHA-256 over the canonical JSON of what decides ids (model, normalizer, pre-tokenizer, decoder, added
    tokens). vocab_size: one more than the largest id. dtype: uint16 where every id fits, else uint32.
    """

    def __init__(
        self, config: Mapping[str, Any], spec: TokenizerSpec, encoder: _Encoder, reference: _Reference | None
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.fingerprint = spec.fingerprint
        self.revision = spec.revision
        self.backend: Backend = encoder.name
        vocabulary = _vocabulary(config)
        self.eos_id = vocabulary[spec.eos]
        self.vocab_size = max(vocabulary.values()) + 1
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        self._config = config
        self._encoder = encoder
        self._loaded_reference = reference
        self._splitter = _Splitter(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_spec, (self.spec,)

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Offsets]:
        """Ids of all texts, flat, in `self.dtype`, and int64 offsets: text i is ids[offsets[i]:offsets[i + 1]].

        No special tokens are added or recognised. Raises UnicodeEncodeError for a text with a lone surrogate.
        """
        return self._encode(texts, self._encoder)

    def encode_reference(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Offsets]:
        """The same by `tokenizers`, whatever the backend; for checks."""
        return self._encode(texts, self._reference)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of `ids`, special tokens shown; bytes that are no UTF-8 appear as U+FFFD."""
        return self._reference.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """One token for people: part of a character appears as U+FFFD. Raises ValueError for an unknown id."""
        if self._reference.tokenizer.id_to_token(int(token_id)) is None:
            raise ValueError(
                f"{self.name} has no token {token_id}; its ids go from 0 to {self.vocab_size - 1}."
            )
        return self.decode([token_id])

    @property
    def _reference(self) -> _Reference:
        if self._loaded_reference is None:
            self._loaded_reference = _Reference(_to_json(self._config))
        return self._loaded_reference

    def _encode(self, texts: Sequence[str], encoder: _Encoder) -> tuple[npt.NDArray[Any], Offsets]:
        lengths = np.zeros(len(texts) + 1, np.int64)
        parts: list[npt.NDArray[Any]] = []
        for first, last in _calls(texts):
            if last - first == 1 and len(texts[first]) > MAX_PIECE_CHARS:
                ids = np.empty(0, self.dtype)
                for piece in self._encode_long(texts[first], encoder):
                    start = len(ids)
                    ids.resize(
                        start + len(piece), refcheck=False
                    )  # grows in place: the ids are never held twice
                    ids[start:] = piece
                parts.append(ids)
                lengths[last] = len(ids)
            else:
                encoded, offsets = encoder.encode(texts[first:last])
                parts.append(encoded.astype(self.dtype))
                lengths[first + 1 : last + 1] = np.diff(offsets)
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, self.dtype)
        return flat, np.cumsum(lengths)

    def _encode_long(self, text: str, encoder: _Encoder) -> Iterator[npt.NDArray[np.uint32]]:
        """Encode one text longer than MAX_PIECE_CHARS, piece by piece where the rules allow it."""
        for piece, is_word in self._splitter.pieces(text, lambda: self._reference):
            if is_word and len(piece) > MAX_PIECE_CHARS:
                yield from self._splitter.encode_word(piece, encoder)
            else:
                yield encoder.encode([piece])[0]


def _calls(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts to encode in one call: bounded in number and size, a long text alone."""
    first = size = 0
    for index, text in enumerate(texts):
        length = len(text)
        if index > first and (
            length > MAX_PIECE_CHARS or size + length > MAX_CALL_CHARS or index - first == MAX_CALL_TEXTS
        ):
            yield first, index
            first, size = index, 0
        size += length
        if length > MAX_PIECE_CHARS:
            yield first, index + 1
            first, size = index + 1, 0
    if first < len(texts):
        yield first, len(texts)


class _Fast:
    """fastokens; flat buffers in and out, one thread."""

    name: Backend = "fastokens"

    def __init__(self, text: str) -> None:
        # Read when the library is first imported; one thread a worker, as the engine decides how many workers there are.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(text)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        ids, offsets = self._tokenizer.encode_batch_flat(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)


class _Reference:
    """Hugging Face `tokenizers`, told to treat special tokens in text as text."""

    name: Backend = "tokenizers"

    def __init__(self, text: str) -> None:
        # Read at every call; its threads would multiply with our workers, and a fork after their use prints a warning.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import tokenizers

        self.tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(text)
        self.tokenizer.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Offsets]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(lists), np.uint32, int(offsets[-1])), offsets


class _Splitter:
    """Cuts a long text into pieces whose ids, one after the other, are the ids of the whole.

    1. *Where every known pattern ends a pre-token whatever is around*: between a letter and a space before a letter
       ("a| b", ASCII); under GPT-2's own pattern, between anything and white space, or a letter or digit and punctuation.
       No alternative matches across that place and none looks behind, so neither side's pre-tokens depend on the other.
    2. Where there is no such place (GPT-2's own pattern, no normalizer): *at the start of a pre-token* near the end of a
       window, as `tokenizers` itself finds it. A match that ends before the window does has seen the character that
       ended it, so more text would not change it; unless it is an apostrophe whose contraction the window's end cuts,
       so cuts stay three characters away from there. Nor is there a cut after white space, which would see no text
       after it and swallow its own last character.
    3. If one pre-token fills the window (10 MB of one letter), its end is searched and its BPE done in overlapping
       windows. A sequence of tokens is the BPE of its text if and only if each adjacent pair is the BPE of its own text:
       consider the first merge across a token border; until then the pair's own merges were made in the same order, so
       it would be made in the pair as well. Hence windows that share a token join there: the next window starts at a
       token of the last one and must give that token first, or the overlap grows.

    Tokenizers in SentencePiece's manner (Llama 2, Gemma) make one word of the whole text, spaces turned into U+2581. Where
    no token of the vocabulary has a U+2581 after another character, no merge crosses the border before one, so "a| b"
    is a cut for them as well; if they put a U+2581 before every text, that stands for the space, which is skipped.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        gpt2_pattern = (config["pre_tokenizer"] or {}).get("type") == "ByteLevel" and all(
            t["special"] for t in config["added_tokens"]
        )
        self._cut = (_GPT2_CUT if gpt2_pattern else _LETTER_SPACE_LETTER) if _can_cut(config) else None
        self._skipped = 0  # characters of the text between two pieces
        if (skipped := _sentencepiece_skip(config)) is not None:
            self._cut, self._skipped = _LETTER_SPACE_LETTER, skipped
        self._can_cut_words = (
            self._cut is _GPT2_CUT
            and config["normalizer"] is None
            and set(_byte_characters()) <= config["model"]["vocab"].keys()
        )

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of text per id; byte-level tokens are spelt with one character a byte."""
        lengths = np.zeros(max(_vocabulary(self._config).values()) + 1, np.int64)
        for token, token_id in self._config["model"]["vocab"].items():
            lengths[token_id] = len(token)
        return lengths

    def pieces(self, text: str, reference: Callable[[], _Reference]) -> Iterator[tuple[str, bool]]:
        """Pieces in order, and whether each is a single pre-token (which may be longer than MAX_PIECE_CHARS)."""
        position = 0
        while self._cut is not None and len(text) - position > MAX_PIECE_CHARS:
            limit = position + MAX_PIECE_CHARS
            # A greedy prefix finds the last place in the second half of the window.
            match = self._cut.last.match(text, position + MAX_PIECE_CHARS // 2, limit)
            is_word = False
            if match:
                end = match.end() - 1
            elif self._can_cut_words:
                window = text[position:limit]
                starts = _pre_token_starts(reference(), window)
                is_word = len(starts) == 1
                # The first pre-token alone is a piece as well, whatever it is.
                settled = [
                    s for s in starts[1:] if s <= len(window) - 3 and not window[s - 1].isspace()
                ] or starts[1:2]
                end = _word_end(reference(), text, position) if is_word else position + settled[-1]
            else:
                match = self._cut.first.search(text, limit)
                end = match.end() - 1 if match else len(text)
            yield text[position:end], is_word
            position = end + self._skipped
        if position < len(text):
            yield text[position:], False

    def encode_word(self, word: str, encoder: _Encoder) -> Iterator[npt.NDArray[np.uint32]]:
        """BPE of one long pre-token, in windows (3 above)."""
        position, size = 0, MAX_PIECE_CHARS
        ids = encoder.encode([word[:size]])[0]
        while position + size < len(word):
            raw = np.frombuffer(word[position : position + size].encode(), np.uint8)
            opens_character = (raw & 0xC0) != 0x80
            starts = np.cumsum(self._token_bytes[ids]) - self._token_bytes[ids]
            overlap = _OVERLAP_BYTES
            while True:
                shared = np.flatnonzero(opens_character[starts] & (starts <= len(raw) - overlap))[-1:]
                if (
                    not shared.size or shared[0] == 0
                ):  # nothing in common within this window: take a larger one
                    size *= 2
                    ids = encoder.encode([word[position : position + size]])[0]
                    break
                following = position + int(opens_character[: starts[shared[0]]].sum())
                following_ids = encoder.encode([word[following : following + size]])[0]
                if following_ids[0] == ids[shared[0]]:
                    yield ids[: shared[0]]
                    position, ids = following, following_ids
                    break
                overlap *= 4
        yield ids


def _pre_token_starts(reference: _Reference, window: str) -> list[int]:
    """First character of each pre-token of `window`."""
    return [start for _, (start, _) in reference.tokenizer.pre_tokenizer.pre_tokenize_str(window)]


def _word_end(reference: _Reference, text: str, start: int) -> int:
    """End of the pre-token that fills text[start : start + MAX_PIECE_CHARS].

    It is a run of one class of characters (after at most one space), so it goes on through the next window exactly as
    far as the run's last two characters together with that window are one pre-token. (Two, because an apostrophe alone
    before a letter would open a contraction.)
    """
    end = start + MAX_PIECE_CHARS
    while end < len(text):
        starts = _pre_token_starts(reference, text[end - 2 : end + MAX_PIECE_CHARS])
        if len(starts) > 1:
            return end - 2 + starts[1]
        end = min(end + MAX_PIECE_CHARS, len(text))
    return end


def _can_cut(config: Mapping[str, Any]) -> bool:
    """Whether this tokenizer's rules are among those for which cutting is known to be exact."""
    model, normalizer, pre_tokenizer = config["model"], config["normalizer"], config["pre_tokenizer"]
    if (
        model.get("type") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return False
    if normalizer is not None and normalizer.get("type") != "NFC":  # a space composes with nothing
        return False
    for token in config["added_tokens"]:
        content = token["content"]
        # A match of a non-special token must not span the cut: none may hold a space and something else.
        spaced = " " in content and content.strip(" ") != ""
        if not token["special"] and (spaced or token["lstrip"] or token["rstrip"] or token["single_word"]):
            return False
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return bool(pre_tokenizer.get("use_regex", True))
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern in _SAFE_PATTERNS
    return False


def _sentencepiece_skip(config: Mapping[str, Any]) -> int | None:
    """For a tokenizer in SentencePiece's manner: 1 if it puts a U+2581 before every text, 0 if not; None for any other."""
    model, space = config["model"], "\u2581"
    if (
        model.get("type") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return None
    if not {space, *string.ascii_letters} <= model["vocab"].keys() or not all(
        token["special"] for token in config["added_tokens"]
    ):
        return None
    if any(re.search(f"[^{space}]{space}", token) for token in model["vocab"]):
        return None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace]}
    match config["normalizer"], config["pre_tokenizer"]:
        case normalizer, None if normalizer == prepend:
            return 1
        case normalizer, None | {"type": "Split", "pattern": {"String": " "}} if normalizer == replace:
            return 0
        case None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}:
            return 0 if scheme == "never" else 1
    return None


def load_tokenizer(
    spec: str,
    *,
    eos: str | None = None,
    backend: Literal["auto", "fast", "reference"] = "auto",
    revision: str | None = None,
) -> Tokenizer:
    """Load a tokenizer and decide, by self-check, which backend runs it.

    spec: "gpt2" (inside the package), a tokenizer.json, a folder that holds one (or GPT-2's vocab.json and merges.txt),
    or a hub id. eos: the end-of-document token; by default what tokenizer_config.json beside it says, or the one common
    name in the vocabulary. backend: "auto" falls back to `tokenizers` with a warning, "fast" raises instead. revision:
    hub branch, tag or commit; the commit it stood for is in `Tokenizer.revision`.
    Raises ConfigError if the tokenizer cannot be found, read or used, SourceUnavailable if the hub cannot be reached.
    """
    location, resolved = _locate(spec, revision)
    config, stated_eos = _read(spec, location, resolved)
    vocabulary = _vocabulary(config)
    eos = _find_eos(spec, vocabulary, config, eos, stated_eos)
    text = _to_json(config)
    try:
        reference = _Reference(text)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise ConfigError(
            f"`tokenizers` cannot use the tokenizer {spec}: {error}. Check that the file is whole and made for this version."
        ) from error
    encoder: _Encoder = reference
    if backend != "reference":
        fast, problem = _checked_fast(text, reference, config)
        if fast is not None:
            encoder = fast
        elif backend == "fast":
            raise ConfigError(
                f"The fast backend cannot run the tokenizer {spec} exactly: {problem}. Use tokenizer.backend=auto."
            )
        else:
            logger.warning(
                "tokenizer %s: running on `tokenizers` (about 50 times slower), because %s", spec, problem
            )
    described = TokenizerSpec(spec, location, fingerprint(config), eos, encoder.name, resolved)
    tokenizer = Tokenizer(config, described, encoder, reference)
    _LOADED[described] = tokenizer
    return tokenizer


_LOADED: dict[TokenizerSpec, Tokenizer] = {}  # what this process has loaded; forked workers inherit it


def _load_spec(spec: TokenizerSpec) -> Tokenizer:
    if spec not in _LOADED:
        config, _ = _read(spec.name, spec.location, spec.revision)
        if fingerprint(config) != spec.fingerprint:
            raise DataError(
                f"The tokenizer {spec.name} ({spec.location}) changed during the run: its fingerprint is {fingerprint(config)[:12]}, "
                f"the run started with {spec.fingerprint[:12]}. Restore the file, or start again with another work folder."
            )
        text = _to_json(config)
        encoder: _Encoder = _Fast(text) if spec.backend == "fastokens" else _Reference(text)
        _LOADED[spec] = Tokenizer(config, spec, encoder, encoder if isinstance(encoder, _Reference) else None)
    return _LOADED[spec]


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hex SHA-256 over what decides ids, as JSON with sorted keys and no spaces; independent of any library's version."""
    deciding = {
        key: config[key] for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
    }
    return sha256(msgspec.json.encode(deciding, order="sorted")).hexdigest()


# Reading


def _locate(spec: str, revision: str | None) -> tuple[str, str | None]:
    """Where the tokenizer is: "gpt2", an absolute path, or a hub id with its commit."""
    if spec == "gpt2":
        return spec, None
    path = Path(spec).expanduser()
    if path.exists():
        return str(path.resolve()), None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", spec) or spec.endswith(".json"):
        raise ConfigError(
            f"There is no tokenizer at {spec}. Name `gpt2`, a tokenizer.json, a folder that holds one, or a hub id (ORG/NAME)."
        )
    # The commit is the snapshot's folder name; asking for it this way also works offline, from the cache.
    return spec, _hub_file(spec, "tokenizer.json", revision).parent.name


def _read(spec: str, location: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    """The configuration, reduced to what decides ids, and the EOS token that tokenizer_config.json names."""
    if location == "gpt2":
        return _read_vocab_and_merges(_GPT2_FOLDER), _GPT2_EOS
    path = Path(location)
    if path.is_dir():
        stated = _stated_eos(path / "tokenizer_config.json")
        if (path / "tokenizer.json").exists():
            return _read_tokenizer_json(path / "tokenizer.json"), stated
        if (path / "vocab.json").exists() and (path / "merges.txt").exists():
            return _read_vocab_and_merges(path), stated
        raise ConfigError(
            f"The folder {path} holds neither tokenizer.json nor vocab.json with merges.txt. Save the tokenizer there."
        )
    if path.is_file():
        return _read_tokenizer_json(path), _stated_eos(
            path.parent / "tokenizer_config.json"
        ) if path.name == "tokenizer.json" else None
    if revision is None:
        raise DataError(
            f"The tokenizer {spec} is no longer at {location}. Restore it and run the same command again."
        )
    config = _hub_file(spec, "tokenizer_config.json", revision, optional=True)
    return _read_tokenizer_json(_hub_file(spec, "tokenizer.json", revision)), _stated_eos(config)


def _hub_file(repo_id: str, name: str, revision: str | None, *, optional: bool = False) -> Path:
    """Fetch one file of a model repository into the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo_id}{f' at revision {revision}' if revision else ''}"
    try:
        # HF_ENDPOINT as it is now: the client reads it only once, when it is first imported.
        return Path(hf_hub_download(repo_id, name, revision=revision, endpoint=os.environ.get("HF_ENDPOINT")))
    except GatedRepoError as error:
        raise SourceUnavailable(
            f"The hub repository {where} is gated. Accept its terms on its page, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"The hub repository {repo_id} has no revision {revision}. Check tokenizer.revision."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"There is no tokenizer {where}: neither a file or folder here nor a repository on the hub. Check the name; "
            "if it is private, set HF_TOKEN."
        ) from error
    except LocalEntryNotFoundError as error:
        if optional:
            return Path(os.devnull)
        raise SourceUnavailable(
            f"The hub cannot be reached for {name} of {where}, and it is not in the cache. Check the connection, or name a tokenizer.json."
        ) from error
    except EntryNotFoundError as error:
        if optional:
            return Path(os.devnull)
        raise ConfigError(
            f"The hub repository {where} holds no {name}. Convert the tokenizer with transformers and name the file."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise SourceUnavailable(
            f"The hub refused {name} of {where}: {error}. Try again later, or name a tokenizer.json."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"The tokenizer file {path} cannot be read: {error.strerror}. Check its name and permissions."
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"The tokenizer file {path} is not valid JSON: {error}. Fetch it again: it may be cut short."
        ) from error


def _stated_eos(path: Path) -> str | None:
    """`eos_token` of a tokenizer_config.json, which is a string or an added token; None if there is none."""
    if not path.is_file():
        return None
    stated = _read_json(path)
    token = stated.get("eos_token") if isinstance(stated, dict) else None
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_tokenizer_json(path: Path) -> dict[str, Any]:
    raw = _read_json(path)
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ConfigError(
            f"{path} is JSON but no tokenizer: it has no model with a vocabulary. Name the tokenizer.json of a Hugging Face tokenizer."
        )
    if model.get("dropout"):
        logger.warning(
            "%s asks for BPE dropout; it is switched off, as the same text must always give the same ids",
            path,
        )
        model["dropout"] = None
    if "merges" in model:  # both spellings that `tokenizers` reads, so that the fingerprint is the same
        model["merges"] = [
            merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]
        ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    added = sorted(
        ({**flags, **token} for token in raw.get("added_tokens") or []), key=lambda token: int(token["id"])
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": raw.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": raw.get("decoder"),
        "model": model,
    }


def _read_vocab_and_merges(folder: Path) -> dict[str, Any]:
    """GPT-2's two files as one configuration: byte-level BPE, `<|endoftext|>` the only special token."""
    vocab = _read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocab, dict) or any(len(merge) != 2 for merge in merges):
        raise ConfigError(
            f"{folder} holds vocab.json and merges.txt, but not in GPT-2's form. Fetch them again, or use a tokenizer.json."
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    eos = {
        "content": _GPT2_EOS,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[_GPT2_EOS], **eos}] if _GPT2_EOS in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _to_json(config: Mapping[str, Any]) -> str:
    return msgspec.json.encode(config).decode()


def _vocabulary(config: Mapping[str, Any]) -> dict[str, int]:
    """Token text -> id, added tokens included. A Unigram vocabulary is a list of (token, score); its ids are positions."""
    vocab = config["model"]["vocab"]
    ids = (
        dict(vocab)
        if isinstance(vocab, dict)
        else {entry[0]: position for position, entry in enumerate(vocab)}
    )
    return ids | {token["content"]: int(token["id"]) for token in config["added_tokens"]}


def _find_eos(
    spec: str, vocabulary: Mapping[str, int], config: Mapping[str, Any], asked: str | None, stated: str | None
) -> str:
    """The end-of-document token: asked for, else stated beside the tokenizer, else the one common name it has."""
    if asked is not None:
        if asked not in vocabulary:
            special = [token["content"] for token in config["added_tokens"] if token["special"]]
            raise ConfigError(
                f"tokenizer.eos: {asked!r} is no token of {spec}. Its special tokens are {', '.join(special[:20]) or 'none'}."
            )
        return asked
    if stated is not None and stated in vocabulary:
        return stated
    found = [name for name in _COMMON_EOS if name in vocabulary]
    if len(found) != 1:
        raise ConfigError(
            f"Which token of {spec} ends a document cannot be told: it has {' and '.join(found) or 'none of the common names'}. "
            "Pass tokenizer.eos, for example --set tokenizer.eos='</s>'."
        )
    return found[0]


def _byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level tokens (GPT-2's `bytes_to_unicode`), by byte.

    Bytes that are printable Latin-1 stand for themselves, the others for U+0100 onwards in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# The self-check


def _checked_fast(text: str, reference: _Reference, config: Mapping[str, Any]) -> tuple[_Fast | None, str]:
    """The fast backend, if it can read the tokenizer and agrees with `reference` on every probe; else why not."""
    try:
        fast = _Fast(text)
    except (
        Exception
    ) as error:  # fastokens raises ValueError for what it does not know, but any failure means: do not use it
        return None, f"fastokens cannot read it ({error})"
    probes = probe_texts(config)
    try:
        ids, offsets = fast.encode(probes)
    except Exception as error:
        return None, f"fastokens failed on a probe ({error})"
    expected, expected_offsets = reference.encode(probes)
    if np.array_equal(offsets, expected_offsets) and np.array_equal(ids, expected):
        return fast, ""
    wrong = next(
        probe
        for i, probe in enumerate(probes)
        if not np.array_equal(
            ids[offsets[i] : offsets[i + 1]], expected[expected_offsets[i] : expected_offsets[i + 1]]
        )
    )
    return None, f"fastokens gives other ids for {wrong[:40]!r}"


def probe_texts(config: Mapping[str, Any]) -> list[str]:
    """About 250 kB of text on which tokenizers that are not the same are likely to differ.

    White space of every kind in runs before every kind of character; contractions in every spelling after every kind
    of character; both ends of every run of code points of one general category and of every unassigned gap (where
    newer Unicode tables assign letters), before a contraction, which shows their class; digits, emoji sequences,
    control characters, combining sequences; the special and other added tokens as text; long runs; words of the
    vocabulary in random order; random mixtures. The same for the same configuration.
    """
    kinds = [
        "a",
        "Z",
        "é",
        "中",
        "ا",
        "ไ",
        "1",
        "٣",
        "Ⅷ",
        "²",
        "!",
        "'",
        "’",
        "_",
        "—",
        "€",
        "\u0301",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x1f",
        "\ue000",
        "\U0010ffff",
    ]
    spaces = [
        chr(c)
        for c in (
            9,
            10,
            11,
            12,
            13,
            28,
            31,
            32,
            0x85,
            0xA0,
            0x1680,
            0x180E,
            0x2000,
            0x200A,
            0x2028,
            0x2029,
            0x202F,
            0x205F,
            0x3000,
        )
    ]
    contractions = [
        "'s",
        "'t",
        "'re",
        "'ve",
        "'m",
        "'ll",
        "'d",
        "'S",
        "'RE",
        "'lL",
        "’s",
        "'x",
        "'",
        "''s",
        "'s's",
        "'st",
    ]
    probes = ["", " ", "\n"]
    probes += [
        f"{kind}{contraction}{after}"
        for kind in [*kinds, " ", "\n"]
        for contraction in contractions
        for after in ("", "b", " b", "1")
    ]
    probes += [
        f"{kind}{space * n}{after}"
        for kind in ("a", "1", "!")
        for space in spaces
        for n in (1, 2, 3)
        for after in ("", "b", "2", "?", "'s", "\n", "中")
    ]
    probes += [f"{first}{second} {second}{first}" for first in kinds for second in kinds]
    points = _telling_code_points()
    probes += ["".join(f"{chr(c)}'s" for c in points[i : i + 64]) for i in range(0, len(points), 64)]
    probes += [
        "".join(f"a{chr(c)}1 {chr(c)}" for c in points[i : i + 64 : 4]) for i in range(0, len(points), 64)
    ]
    for token in config["added_tokens"][:300]:
        content = token["content"]
        probes += [content, f"a{content}b", f" {content} {content}", f"{content[:-1]} {content}\n"]
    probes += [
        run * 2000 for run in ("a", "A", "1", " ", "\n", "!", "\u200b", "中", "é", "ab", " a", "\t\n", "😀")
    ]
    probes += [
        unicodedata.normalize(form, "Ångström ﬁnale 한국어 ｶﾞ ệ Ω ½ İi ſ")
        for form in ("NFC", "NFD", "NFKC", "NFKD")
    ]
    generator = random.Random(0)
    words = [token.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ") for token in _vocabulary(config)]
    probes += ["".join(generator.choices(words, k=20)) for _ in range(200)]
    mixture = [*kinds, *spaces, *contractions, "the", "The", " of", "ing", "http://", "x=1;", "123", "\r\n"]
    probes += ["".join(generator.choices(mixture, k=12)) for _ in range(1500)]
    return probes


def _telling_code_points() -> list[int]:
    """Ends and middle of each run of one general category up to U+3FFFF, and unassigned gaps densely (wide ones sparsely)."""
    points: set[int] = set()
    start, category = 0, "Cc"
    for point in range(0x40000):
        following = unicodedata.category(chr(point))
        if following != category:
            points |= _of_run(start, point - 1, category)
            start, category = point, following
    points |= _of_run(start, 0x3FFFF, category)
    return sorted(point for point in points if not 0xD800 <= point < 0xE000)


def _of_run(first: int, last: int, category: str) -> set[int]:
    if category == "Cn":
        return {*range(first, last + 1, 1 if last - first < 256 else 16), last}
    return {first, (first + last) // 2, last}
