"""Cutting long texts where that cannot change their ids, so that memory stays bounded regardless of the
length of a document.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.tokenizer.backends import Encoder, Reference
from btlm_data.tokenizer.configuration import vocabulary
from btlm_data.tokenizer.gpt2 import byte_characters

# fastokens holds about 200 bytes per character of a single unbroken word while it works (10 MB of one letter:
# 2.1 GB), so no piece handed to a backend is longer than this many characters: 60 MB at worst.
MAX_PIECE_CHARS = 1 << 18
# Bytes a window of a long word overlaps the next by; far more than the reach of any merge seen, and checked
# anyway.
_OVERLAP_BYTES = 1024


class _Cut(NamedTuple):
    """Expressions for the last such place in a range (by match) and the first (by search); the cut is before
    the last character.
    """

    last: re.Pattern[str]
    first: re.Pattern[str]


def _cut(pattern: str) -> _Cut:
    return _Cut(re.compile(f"(?s:.*)(?:{pattern})"), re.compile(pattern))


_LETTER_SPACE_LETTER = _cut("[A-Za-z] (?=[A-Za-z])")
# GPT-2's pattern: white space never continues what is not white space, nor punctuation a letter or digit.
# Only characters of the same class in every Unicode table stand here (U+180E, for one, was white space before
# Unicode 6.3).
_GPT2_CUT = _cut(r"[^\s\u180e][ \n\t\r]|[A-Za-z0-9ぁ-ゖァ-ヺ一-龥가-힣][!-/:-@\[-`{-~、。！，：；？]")

# Patterns of a `Split` pre-tokenizer for which "a| b" is a boundary in any context: no alternative matches a
# letter and then a space, and none uses lookbehind. Llama 3 and cl100k, Qwen 2, o200k.
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


class Splitter:
    """Cuts a long text into pieces whose ids, one after the other, are the ids of the whole.

    1. *Where every known pattern ends a pre-token whatever is around*: between a letter and a space before a
       letter ("a| b", ASCII); under GPT-2's own pattern, between anything and white space, or a letter or
       digit and punctuation. No alternative matches across that place and none uses lookbehind, so neither
       side's pre-tokens depend on the other.
    2. Where there is no such place (GPT-2's own pattern, no normalizer): *at the start of a pre-token* near
       the end of a window, as `tokenizers` itself finds it. A match that ends before the window does has seen
       the character that ended it, so more text would not change it; unless it is an apostrophe whose
       contraction the window's end cuts, so cuts stay three characters away from there. Nor is there a cut
       after white space, which would see no text after it and swallow its own last character.
    3. If one pre-token fills the window (10 MB of one letter), its end is searched and its BPE done in
       overlapping windows. A sequence of tokens is the BPE of its text if and only if each adjacent pair is
       the BPE of its own text: consider the first merge across a token border; until then the pair's own
       merges were made in the same order, so it would be made in the pair as well. Hence windows that share a
       token join there: the next window starts at a token of the last one and must give that token first, or
       the overlap grows.

    Tokenizers in SentencePiece's manner (Llama 2, Gemma) make one word of the whole text, spaces turned into
    U+2581. Where no token of the vocabulary has a U+2581 after another character, no merge crosses the border
    before one, so "a| b" is a cut for them as well; if they put a U+2581 before every text, that stands for
    the space, which is skipped.
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
            and set(byte_characters()) <= config["model"]["vocab"].keys()
        )

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of text per id; byte-level tokens are spelt with one character a byte."""
        lengths = np.zeros(max(vocabulary(self._config).values()) + 1, np.int64)
        for token, token_id in self._config["model"]["vocab"].items():
            lengths[token_id] = len(token)
        return lengths

    def pieces(self, text: str, reference: Callable[[], Reference]) -> Iterator[tuple[str, bool]]:
        """Pieces in order, and whether each is a single pre-token (which may be longer than
        MAX_PIECE_CHARS).
        """
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

    def encode_word(self, word: str, encoder: Encoder) -> Iterator[npt.NDArray[np.uint32]]:
        """BPE of one long pre-token, in windows (3 above). Each window gives (ids,) uint32."""
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


def _pre_token_starts(reference: Reference, window: str) -> list[int]:
    """First character of each pre-token of `window`."""
    return [start for _, (start, _) in reference.tokenizer.pre_tokenizer.pre_tokenize_str(window)]


def _word_end(reference: Reference, text: str, start: int) -> int:
    """End of the pre-token that fills text[start : start + MAX_PIECE_CHARS].

    It is a run of one class of characters (after at most one space), so it continues through the next window
    exactly as far as the run's last two characters together with that window are one pre-token. (Two, because
    an apostrophe alone before a letter would open a contraction.)
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
    """For a tokenizer in SentencePiece's manner: 1 if it puts a U+2581 before every text, 0 if not; None for
    any other.
    """
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
