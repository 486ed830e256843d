"""The rules of C4 (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.errors import ConfigError

_ELLIPSES = ("...", "…")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]]*(?=\s|$)")


_MAX_WORD_LIST_BYTES = 2**24


class C4(FilterParameters):
    """Section 2.2 of the paper; numbers as in C4's released code.

    Lines that do not end in . ? ! or a quotation mark, have too few words, mention JavaScript or a cookie or
    privacy policy are removed, citation marks too; pages with `lorem ipsum`, a curly bracket, too few
    sentences left, or a word of the list are dropped. Sentences are counted by their end marks (C4 uses
    NLTK), and spans of three sentences that occur twice are left to deduplication.
    """

    min_words_per_line: int = Field(5, ge=0)
    min_sentences: int = Field(3, ge=0)
    max_word_length: int = Field(1000, ge=0)
    terminal_punctuation: bool = True
    curly_brackets: bool = True
    bad_words_file: str | None = None

    def resource(self) -> list[str] | None:
        """The words and phrases of bad_words_file, in order; None without one."""
        if self.bad_words_file is None:
            return None
        path = Path(self.bad_words_file).expanduser()
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_WORD_LIST_BYTES + 1)
            if len(data) > _MAX_WORD_LIST_BYTES:
                raise ValueError(f"it has more than {_MAX_WORD_LIST_BYTES:,} bytes")  # noqa: TRY301
            lines = data.decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"clean.filters: c4: bad_words_file {self.bad_words_file} cannot be read ({error}). "
                "Name a text file with one word or phrase a line."
            ) from None
        return [word for line in lines if (word := line.strip())]

    def rule(self, resource: Any) -> Rule:
        """resource: the words of bad_words_file. See the class."""
        bad_words: re.Pattern[str] | None = None
        if resource:
            bad_words = re.compile(
                r"(?:\W|^)(?:" + "|".join(map(re.escape, resource)) + r")(?:\W|$)", re.IGNORECASE
            )

        def decide(text: str, _: str) -> tuple[Verdict, str]:
            lowered = text.lower()
            if "lorem ipsum" in lowered:
                return "lorem_ipsum", text
            if self.curly_brackets and "{" in text:
                return "curly_bracket", text
            if bad_words is not None and bad_words.search(text):
                return "bad_word", text
            cleaned = map(self._cleaned, text.splitlines())
            result = "\n".join(line for line in cleaned if line is not None)
            if not result:
                return "no_line_left", text
            if len(_SENTENCE_END.findall(result)) < self.min_sentences:
                return "too_few_sentences", text
            return None, result

        return decide

    def _cleaned(self, line: str) -> str | None:
        """The line without citation marks; None if it is to be removed."""
        cleaned = _CITATION.sub("", line.strip()).strip()
        words = cleaned.split()
        if len(words) < self.min_words_per_line or any(len(word) > self.max_word_length for word in words):
            return None
        if self.terminal_punctuation and (
            not cleaned.endswith((".", "?", "!", '"', "”")) or cleaned.endswith(_ELLIPSES)
        ):
            return None
        low = cleaned.lower()
        if "javascript" in low or any(policy in low for policy in _POLICIES):
            return None
        return cleaned
