"""The filter that masks what Presidio recognises as personal data: https://microsoft.github.io/presidio/."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.cleaning.rules.language import as_tuple
from btlm_data.errors import ConfigError, install_command

_PACKAGES = ("presidio-analyzer", "spacy", "phonenumbers", "tldextract")  # what decides what is found
_MAX_CHARS = 1000  # of a replacement
_PIECE_CHARS = 100_000  # a pipeline's memory grows with the length of its text
_ENTITY = "{entity}"


class Presidio(FilterParameters):
    """Put a text in the place of every stretch that Presidio recognises as one of `entities`, before deduplication
    and tokenizing. No document is dropped.

    model: an installed pipeline of spaCy, which names of people and places need; without one, patterns and checksums decide.
    """

    entities: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "CREDIT_CARD",
        "CRYPTO",
        "EMAIL_ADDRESS",
        "IBAN_CODE",
        "IP_ADDRESS",
        "PHONE_NUMBER",
        "US_SSN",
    )
    language: str = "en"
    model: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    min_score: float = Field(0.4, ge=0, le=1)
    replacement: str = Field(f"|||{_ENTITY}|||", max_length=_MAX_CHARS)

    def resource(self) -> dict[str, str]:
        """The versions of what decides."""
        versions = {}
        for package in (*_PACKAGES, *((self.model,) if self.model is not None else ())):
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                raise _not_installed(package, self.model) from None
        return versions

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        analyzer = _analyzer(self.language, self.model)
        _require_known(analyzer, self.entities, self.language, self.model)
        chosen, language, min_score = list(self.entities), self.language, self.min_score

        def decide(text: str, _: str) -> tuple[Verdict, str]:
            parts = []
            for piece in _pieces(text):
                places = analyzer.analyze(
                    text=piece, language=language, entities=chosen, score_threshold=min_score
                )
                parts.append(masked(piece, places, self.replacement))
            return None, "".join(parts)

        return decide


def masked(text: str, places: Sequence[Any], replacement: str) -> str:
    """The text with what stands for each of some places, which may overlap: the surest one counts, then the longest, then the first.

    places: with `entity_type`, `start`, `end` and `score`, as Presidio gives them.
    """
    taken: list[tuple[int, int, str]] = []
    is_taken = bytearray(len(text))
    for place in sorted(places, key=lambda p: (-p.score, p.start - p.end, p.start, p.entity_type)):
        if place.start < place.end and is_taken.find(1, place.start, place.end) < 0:
            is_taken[place.start : place.end] = b"\1" * (place.end - place.start)
            taken.append((place.start, place.end, place.entity_type))
    parts, position = [], 0
    for start, end, entity in sorted(taken):
        parts += [text[position:start], replacement.replace(_ENTITY, entity)]
        position = end
    return "".join([*parts, text[position:]])


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that end with a line, else with a word."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        limit = start + _PIECE_CHARS
        end = text.rfind("\n", start, limit) + 1 or text.rfind(" ", start, limit) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:]


def _analyzer(language: str, model: str | None) -> Any:
    try:
        import spacy
        import tldextract
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError as error:
        raise _not_installed(error.name or _PACKAGES[0], model) from None
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    # With the list of top-level domains that the package has: it would fetch one, and what that says would decide.
    domains: Any = tldextract
    domains.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    try:
        pipeline = spacy.blank(language) if model is None else spacy.load(model)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"clean.filters: presidio: spaCy cannot load {model or f'the language {language!r}'}: {str(error)[:300]}"
        ) from None
    if pipeline.lang != language:
        raise ConfigError(
            f"clean.filters: presidio: the pipeline {model} is for the language {pipeline.lang!r}, not {language!r}. "
            f"Set language: {pipeline.lang}, or name another."
        )
    engine: Any = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or "blank"}])
    engine.nlp = {language: pipeline}
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])


def _require_known(analyzer: Any, entities: Sequence[str], language: str, model: str | None) -> None:
    known = set(analyzer.get_supported_entities(language))
    if unknown := sorted(set(entities) - known):
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise ConfigError(
            f"clean.filters: presidio recognises no {unknown[0]!r} in the language {language!r}"
            f"{f'; did you mean {near[0]}' if near else ''}. It recognises {', '.join(sorted(known))}."
        )
    by_rules = {
        entity
        for recognizer in analyzer.get_recognizers(language)
        if type(recognizer).__name__ != "SpacyRecognizer"
        for entity in recognizer.supported_entities
    }
    if model is None and (without := sorted(set(entities) - by_rules)):
        raise ConfigError(
            f"clean.filters: presidio: {', '.join(without)} can only be recognised by a pipeline of spaCy. Install one (python -m spacy "
            "download en_core_web_lg) and name it as `model`, or leave that entity out."
        )


def _not_installed(package: str, model: str | None) -> ConfigError:
    if package == model:
        return ConfigError(
            f"clean.filters: presidio: the spaCy pipeline {model} is not installed. Install it with: python -m spacy download {model}"
        )
    return ConfigError(
        f"clean.filters: presidio needs the package {package}, which is not installed. "
        f"Install it with: {install_command('presidio')}, or leave the filter out."
    )
