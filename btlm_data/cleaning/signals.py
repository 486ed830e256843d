"""Signals of documents, kept beside them instead of dropping any: `annotate` in a recipe.

    annotate: [gopher, repetition, c4, pii, language, {host: url}, {fasttext: quality.bin},
               {perplexity: en.arpa.bin}, "my_signals:length"]

Each signal is one or several columns of documents.parquet, of the text as cleaning left it; the same text has
the same values in any process. docs/reselect.md describes each, with its sources.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, ValidationError

from btlm_data.cleaning import pii
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.perplexity import Perplexity
from btlm_data.cleaning.signal_parameters import Kind, SignalParameters, Values, package_version
from btlm_data.cleaning.signals_of_users import FastText, UserSignals
from btlm_data.errors import ConfigError
from btlm_data.fingerprint import digest
from btlm_data.recipe.filter_entries import FilterEntry, parse_entry
from btlm_data.recipe.validation import explain
from btlm_data.records.fields import as_text, lookup

NUMBERS = "signals"  # of a block: the numbers of each document, together (`Signals.dtype`)
VERSION = 1  # increased whenever a signal has other values


class Gopher(SignalParameters):
    """What "Quality Filtering" of Gopher compares (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1)."""

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        from btlm_data.kernels.text_measures import QUALITY

        whole = {"words", "stop_words"}
        return {f"gopher_{name}": "uint32" if name in whole else "float64" for name in QUALITY}

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Returns (n,) float64 each."""
        from btlm_data.kernels.text_measures import quality

        return list(quality(documents.texts).T)


class Repetition(SignalParameters):
    """What "Repetition Removal" of Gopher compares (Rae et al. 2021, table A1)."""

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        from btlm_data.kernels.text_measures import REPETITION

        return {f"repetition_{name}": "float64" for name in REPETITION}

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Returns (n,) float64 each."""
        from btlm_data.kernels.text_measures import repetition

        return list(repetition(documents.texts).T)


_POLICY = re.compile(r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]]*(?=\s|$)")


class C4(SignalParameters):
    """What the rules of C4 look at (Raffel et al. 2020, arXiv 1910.10683, section 2.2)."""

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {
            "c4_lines": "uint32",
            "c4_sentences": "uint32",
            "c4_terminal_lines": "float64",
            "c4_short_lines": "float64",
            "c4_javascript_lines": "float64",
            "c4_policy_lines": "float64",
            "c4_curly_brackets": "bool",
            "c4_lorem_ipsum": "bool",
        }

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Returns (n,) float64 each."""
        return list(np.array(list(map(_c4, documents.texts)), np.float64).reshape(-1, 8).T)


def _c4(text: str) -> tuple[float, ...]:
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    share = 1 / len(lines) if lines else 0.0
    lowered = [line.lower() for line in lines]
    terminal = sum(
        line.endswith((".", "?", "!", '"', "”")) and not line.endswith(("...", "…")) for line in lines
    )
    return (
        len(lines),
        len(_SENTENCE_END.findall(text)),
        terminal * share,
        sum(len(line.split(maxsplit=5)) < 5 for line in lines) * share,
        sum("javascript" in line for line in lowered) * share,
        sum(_POLICY.search(line) is not None for line in lowered) * share,
        "{" in text,
        any("lorem ipsum" in line for line in lowered),
    )


class Pii(SignalParameters):
    """E-mail addresses, public IP addresses and phone numbers (cleaning/pii.py)."""

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {f"pii_{kind}": "uint32" for kind in pii.KINDS}

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Returns (n,) uint32 each."""
        return [
            np.array([pii.count(text, kind) for text in documents.texts], np.uint32) for kind in pii.KINDS
        ]


class Host(SignalParameters):
    """The host of the URL in a field of the record, in small letters."""

    field: str = Field("url", min_length=1, max_length=1000)

    @property
    def needs_metadata(self) -> bool:
        """See SignalParameters."""
        return True

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {"host": "text"}

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters."""
        assert documents.records is not None
        return [[_host(as_text(lookup(record.fields(), self.field))) for record in documents.records]]


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url).hostname if url else None
    except ValueError:  # as https://[1
        return None


class Language(SignalParameters):
    """The language of the first `max_chars` characters (ISO 639-1), and its probability, by py3langid."""

    max_chars: int = Field(2000, ge=0)

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {"language": "text", "language_probability": "float64"}

    def resource(self) -> str:
        """See SignalParameters."""
        return package_version("py3langid", "language", "language")

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters."""
        identifier = _identifier()
        pairs = [identifier.classify(text[: self.max_chars]) for text in documents.texts]
        return [
            [str(language) for language, _ in pairs],
            np.array([float(share) for _, share in pairs], np.float64),
        ]


KINDS: dict[str, type[SignalParameters]] = {
    "gopher": Gopher,
    "repetition": Repetition,
    "c4": C4,
    "pii": Pii,
    "host": Host,
    "language": Language,
    "fasttext": FastText,
    "perplexity": Perplexity,
    "function": UserSignals,
}


@dataclass(frozen=True)
class Signals:
    """A checked list of signals with what each names outside the recipe; it can be used in any process."""

    entries: tuple[tuple[SignalParameters, Any], ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides the values."""
        return digest(
            VERSION,
            [[type(e).__name__, e.deciding(), e.identity(r)] for e, r in self.entries],
        )

    @property
    def columns(self) -> dict[str, Kind]:
        """All columns, in order."""
        return {name: kind for entry, _ in self.entries for name, kind in entry.columns.items()}

    @property
    def dtype(self) -> np.dtype[Any]:
        """One document's numbers, together."""
        return numbers_dtype(self.columns)

    @property
    def needs_metadata(self) -> bool:
        """Whether one reads whole records."""
        return any(entry.needs_metadata for entry, _ in self.entries)

    def measure(self, documents: Documents) -> dict[str, Values]:
        """The values of every column: (n,) of its dtype, or n texts."""
        values: dict[str, Values] = {}
        for entry, resource in self.entries:
            measured = entry.measure(documents, resource)
            for (name, kind), column in zip(entry.columns.items(), measured, strict=True):
                values[name] = column if isinstance(column, list) else column.astype(kind)
        return values


NO_SIGNALS = Signals()


def numbers_dtype(columns: Mapping[str, Kind]) -> np.dtype[Any]:
    """A document's values in the columns that hold numbers, together."""
    return np.dtype([(name, kind) for name, kind in columns.items() if kind != "text"])


def plan_signals(specs: Sequence[Mapping[str, Any] | str]) -> Signals:
    """Check the items of `annotate`, and what they name. Raises ConfigError naming the entry."""
    entries, columns = list[tuple[SignalParameters, Any]](), set[str]()
    for number, spec in enumerate(specs, 1):
        shown = f"annotate, entry {number}"
        parsed = parse_entry(spec)
        if parsed is not None and parsed.function is not None:
            given = parsed.parameters if isinstance(parsed.parameters, Mapping) else {}
            parsed = FilterEntry("function", {"function": parsed.function, **given})
        if parsed is None or parsed.name not in KINDS:
            name = parsed.name if parsed is not None else str(spec)
            near = difflib.get_close_matches(name, KINDS, 1)
            raise ConfigError(
                f"{shown}: there is no signal {name[:80]!r}. {f'Did you mean {near[0]}? ' if near else ''}"
                f"Signals are {', '.join(KINDS)}; your own is module:function."
            )
        kind, parameters = KINDS[parsed.name], parsed.parameters
        if not isinstance(parameters, Mapping):
            first = next(iter(kind.model_fields), None)
            if first is None:
                raise ConfigError(f"{shown}: {parsed.name} has no parameters. Write only its name.")
            parameters = {first: parameters}
        try:
            entry = kind.model_validate({str(key): value for key, value in parameters.items()})
        except ValidationError as error:
            raise ConfigError(
                f"{explain(error, kind, lambda _: f'{shown} ({parsed.name})')} docs/reselect.md describes the parameters."  # noqa: B023
            ) from None
        if twice := sorted(columns & entry.columns.keys()):
            raise ConfigError(
                f"{shown}: {parsed.name} is named twice, or another signal has a column {twice[0]!r} too. Leave one out, or "
                "name its columns otherwise."
            )
        columns |= entry.columns.keys()
        entries.append((entry, entry.resource()))
    return Signals(tuple(entries))


# What they need ---------------------------------------------------------------------------------------------


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
