"""Filters by length and by regular expression."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.cleaning.rules.regex_trial import endless_pattern


class MinChars(FilterParameters):
    """Drop texts shorter than `chars` characters, as they are (clean.min_chars counts them as normalised for
    deduplication).
    """

    chars: int = Field(ge=0)

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        chars = self.chars
        return lambda text, _: ("" if len(text) < chars else None, text)


class MaxChars(FilterParameters):
    """Drop texts longer than `chars` characters."""

    chars: int = Field(ge=0)

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        chars = self.chars
        return lambda text, _: ("" if len(text) > chars else None, text)


class RegularExpression(FilterParameters):
    """Drop texts in which `drop` is found; drop those in which `keep` is not; remove every match of
    `remove`.
    """

    drop: str | None = None
    keep: str | None = None
    remove: str | None = None
    ignore_case: bool = False

    def resource(self) -> None:
        """Try the patterns. Raises ValueError if one is no regular expression, or never ends on some
        texts.
        """
        patterns = {
            name: str(getattr(self, name)) for name in ("drop", "keep", "remove") if self._compiled(name)
        }
        if problem := endless_pattern(patterns, self._flags):
            raise ValueError(problem)

    def rule(self, resource: Any) -> Rule:
        """See the class. Raises ValueError if none is given or one is no regular expression."""
        if self.drop is None and self.keep is None and self.remove is None:
            raise ValueError("one of drop, keep or remove must be given")
        dropping, keeping, removing = (self._compiled(name) for name in ("drop", "keep", "remove"))

        def decide(text: str, _: str) -> tuple[Verdict, str]:
            if (dropping is not None and dropping.search(text)) or (
                keeping is not None and not keeping.search(text)
            ):
                return "", text
            return None, removing.sub("", text) if removing is not None else text

        return decide

    @property
    def _flags(self) -> int:
        return re.MULTILINE | (re.IGNORECASE if self.ignore_case else 0)

    def _compiled(self, name: str) -> re.Pattern[str] | None:
        pattern: str | None = getattr(self, name)
        if pattern is None:
            return None
        try:
            return re.compile(pattern, self._flags)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{name} is not a regular expression: {error}") from None
