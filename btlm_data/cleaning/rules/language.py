"""The filter by language."""

from __future__ import annotations

import difflib
import importlib.metadata
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.errors import ConfigError, install_command


def as_tuple(value: Any) -> Any:
    """One text means a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Language(FilterParameters):
    """Keep texts that py3langid takes for one of `keep` (ISO 639-1) with at least that probability.

    Only the first `max_chars` characters are looked at.
    """

    keep: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ("en",)
    min_probability: float = 0.5
    max_chars: int = Field(2000, ge=0)

    def resource(self) -> str:
        """The version of py3langid, whose model decides."""
        try:
            return importlib.metadata.version("py3langid")
        except importlib.metadata.PackageNotFoundError:
            raise _not_installed() from None

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise _not_installed() from None
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        wanted, known = frozenset(self.keep), frozenset(map(str, identifier.labels))
        if unknown := sorted(wanted - known):
            near = difflib.get_close_matches(unknown[0], known, 1)
            raise ConfigError(
                f"clean.filters: language: py3langid knows no language {unknown[0]!r}"
                f"{f'; did you mean {near[0]}' if near else ''}. It knows {', '.join(sorted(known))}."
            )
        min_probability, max_chars = self.min_probability, self.max_chars

        def decide(text: str, _: str) -> tuple[Verdict, str]:
            language, probability = identifier.classify(text[:max_chars])
            return (None if language in wanted and probability >= min_probability else ""), text

        return decide


def _not_installed() -> ConfigError:
    return ConfigError(
        "clean.filters: language needs the package py3langid, which is not installed. "
        f"Install it with: {install_command('language')}, or leave the filter out."
    )
