"""Optional filters of documents, by name and in the order given; whatever one drops is counted under its name.

    clean:
      filters:
        - gopher_quality                                # with its paper's thresholds
        - min_chars: 500                                # NAME: its one parameter
        - {name: language, keep: [en, de], min_probability: 0.7}
        - {name: mine, function: "my_filters:no_recipes"}

Reasons are `NAME`, or `NAME.fault` where a filter has several. Filters run after normalisation and before deduplication, see only the document,
and give the same verdict in any process. docs/filters.md describes each, with its thresholds and their sources.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, InputError

VERSION = 1  # goes up whenever a filter decides otherwise

Verdict = str | None  # the fault ("" where a filter has only one), or None to keep
Filter = Callable[[str, str], tuple[Verdict, str]]  # (text, source) -> (fault or None, text)


def build_filters(specs: Sequence[Mapping[str, Any] | str]) -> Filters:
    """Check the list of `clean.filters` and make it ready.

    Raises ConfigError naming the entry: an unknown filter or parameter (with the nearest name), a value of the wrong kind, a
    package or function that cannot be imported.
    """
    parsed = tuple(_parse(spec, number) for number, spec in enumerate(specs, 1))
    filters = Filters(parsed)
    filters.prepare()
    return filters


def fingerprint(specs: Sequence[Mapping[str, Any] | str]) -> str:
    """What decides the verdicts besides the recipe: the source of users' functions, word lists, the version of the language identifier.

    Hex SHA-256; part of the digest of whatever is filtered, so that a changed function redoes the work. Code that a user's module imports
    in its turn is not seen.
    """
    hasher = hashlib.sha256(str(VERSION).encode())
    for name, kind, parameters in build_filters(specs).entries:
        values = dict(parameters)
        hasher.update(f"\0{name}\0{kind}".encode())
        if kind == "function":
            module = importlib.import_module(str(values["function"]).partition(":")[0])
            if (path := getattr(module, "__file__", None)) is not None:
                hasher.update(Path(path).read_bytes())
        elif kind == "c4" and values.get("bad_words_file"):
            hasher.update(Path(values["bad_words_file"]).read_bytes())
        elif kind == "language":
            hasher.update(importlib.metadata.version("py3langid").encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Filters:
    """A checked list of filters. Picklable: names and parameters only; each process makes its own functions of them."""

    entries: tuple[tuple[str, str, tuple[tuple[str, Any], ...]], ...]  # (shown name, kind, parameters)

    def apply(self, texts: Sequence[str], sources: Sequence[str]) -> tuple[list[str | None], list[str]]:
        """The reason each document is dropped for (None keeps it), and the texts as the filters leave them.

        An exception in a user's function drops that document as `NAME.error`. Raises InputError when a function fails on
        more than its `max_errors` documents of one call: then it is the function that is wrong.
        """
        reasons: list[str | None] = [None] * len(texts)
        changed = list(texts)
        for (name, kind, parameters), function in zip(self.entries, self.prepare(), strict=True):
            errors = 0
            limit = int(dict(parameters).get("max_errors", _MAX_ERRORS))
            for i, source in enumerate(sources):
                if reasons[i] is not None:
                    continue
                try:
                    fault, text = function(changed[i], source)
                except Exception as error:
                    if kind != "function":
                        raise
                    errors += 1
                    if errors > limit:
                        raise InputError(
                            _too_many(name, dict(parameters)["function"], errors, error, changed[i])
                        ) from error
                    fault, text = "error", changed[i]
                if fault is not None:
                    reasons[i] = f"{name}.{fault}" if fault else name
                else:
                    changed[i] = text
        return reasons, changed

    def prepare(self) -> tuple[Filter, ...]:
        """The functions, made once a process."""
        return tuple(_made(name, kind, parameters) for name, kind, parameters in self.entries)


_MAX_ERRORS = 20  # documents of one block (about 16 MB of text) on which a user's function may fail


@lru_cache(maxsize=64)
def _made(name: str, kind: str, parameters: tuple[tuple[str, Any], ...]) -> Filter:
    try:
        return _KINDS[kind](**dict(parameters))
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"clean.filters: {name}: {error}. Mend the parameter; docs/filters.md describes it."
        ) from None


# Checking what the user wrote -----------------------------------------------------------------------------------


def _parse(spec: Mapping[str, Any] | str, number: int) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
    """(shown name, kind, parameters) of one entry, in any of its forms."""
    place = f"clean.filters, entry {number}"
    parameters: dict[str, Any] = {}
    if isinstance(spec, str):
        name = spec
    elif "name" in spec:
        parameters = {str(key): value for key, value in spec.items() if key != "name"}
        name = str(spec["name"])
    elif len(spec) == 1:
        name, value = str(next(iter(spec))), next(iter(spec.values()))
        parameters = dict(value) if isinstance(value, Mapping) else {_first_parameter(name, place): value}
    else:
        raise ConfigError(
            f"{place}: {dict(spec)!r} has no `name`. Write {{name: FILTER, parameter: value}}, or just a filter's name."
        )
    kind = name
    if ":" in name and "function" not in parameters:
        parameters["function"] = name
    if "function" in parameters:
        kind = "function"
    if kind not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, 1)
        raise ConfigError(
            f"{place}: there is no filter {name!r}{f'; did you mean {near[0]}' if near else ''}? "
            f"Filters are {', '.join(sorted(set(_KINDS) - {'function'}))}, or your own as module:function."
        )
    _check(kind, parameters, f"{place} ({name})")
    return (
        name.rpartition(":")[2],
        kind,
        tuple((key, _frozen(value)) for key, value in sorted(parameters.items())),
    )


def _first_parameter(name: str, place: str) -> str:
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, 1)
        raise ConfigError(
            f"{place}: there is no filter {name!r}{f'; did you mean {near[0]}' if near else ''}? See docs/filters.md."
        )
    return next(iter(inspect.signature(_KINDS[name]).parameters))


def _check(kind: str, parameters: Mapping[str, Any], place: str) -> None:
    """Every parameter exists, and is of the kind of its default."""
    known = inspect.signature(_KINDS[kind]).parameters
    for key, value in parameters.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(
                f"{place}: no parameter {key!r}{f'; did you mean {near[0]}' if near else ''}? It has {', '.join(known)}."
            )
        wanted = str(known[key].annotation)
        fits = {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
            "str": isinstance(value, str),
            "str | None": isinstance(value, str) or value is None,
            "bool": isinstance(value, bool),
            "Sequence[str]": isinstance(value, str)
            or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)),
        }
        if not fits.get(wanted, isinstance(value, str)):
            names = {
                "int": "a whole number",
                "float": "a number",
                "bool": "true or false",
                "Sequence[str]": "a list of texts",
            }
            raise ConfigError(
                f"{place}: {key} is {value!r}, expected {names.get(wanted, 'a text')}. Mend the recipe."
            )
    missing = [
        key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in parameters
    ]
    if missing:
        raise ConfigError(
            f"{place}: {missing[0]} is not given. Write for example {{name: {kind}, {missing[0]}: ...}}; see docs/filters.md."
        )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _words_of(value: Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


# The filters ------------------------------------------------------------------------------------------------------


def _min_chars(chars: int) -> Filter:
    """Drop texts shorter than `chars` characters, as they are (clean.min_chars counts them as normalised for deduplication)."""
    return lambda text, _: ("" if len(text) < chars else None, text)


def _max_chars(chars: int) -> Filter:
    """Drop texts longer than `chars` characters."""
    return lambda text, _: ("" if len(text) > chars else None, text)


def _language(keep: Sequence[str] = ("en",), min_probability: float = 0.5, max_chars: int = 2000) -> Filter:
    """Keep texts that py3langid takes for one of `keep` (ISO 639-1) with at least that probability, by their first `max_chars` characters."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError(
            "clean.filters: language needs the package py3langid, which is not installed. "
            "Install it with: pip install 'btlm-data[language]', or leave the filter out."
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    wanted = frozenset(_words_of(keep))
    known = frozenset(map(str, identifier.labels))
    if unknown := sorted(wanted - known):
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise ConfigError(
            f"clean.filters: language: {unknown[0]!r} is no language py3langid knows{f'; did you mean {near[0]}' if near else ''}? "
            f"It knows {', '.join(sorted(known))}."
        )

    def decide(text: str, _: str) -> tuple[Verdict, str]:
        found, probability = identifier.classify(text[:max_chars])
        return (None if found in wanted and probability >= min_probability else ""), text

    return decide


_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-", "*", "‣", "▪", "●", "◦", "–", "·")
_ELLIPSES = ("...", "…")


def _gopher_quality(
    min_words: int = 50,
    max_words: int = 100_000,
    min_mean_word_length: float = 3.0,
    max_mean_word_length: float = 10.0,
    max_symbol_ratio: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8,
    min_stop_words: int = 2,
) -> Filter:
    """Quality rules of Rae et al. 2021 (Gopher, arXiv 2112.11446), appendix A.1.1, "Quality Filtering"; words are split at white space."""

    def decide(text: str, _: str) -> tuple[Verdict, str]:
        words = text.split()
        n = len(words)
        if n < min_words:
            return "too_few_words", text
        if n > max_words:
            return "too_many_words", text
        mean = sum(map(len, words)) / n
        if mean < min_mean_word_length:
            return "words_too_short", text
        if mean > max_mean_word_length:
            return "words_too_long", text
        if text.count("#") > max_symbol_ratio * n:
            return "too_many_hashes", text
        if text.count("...") + text.count("…") > max_symbol_ratio * n:
            return "too_many_ellipses", text
        lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
        if sum(line.startswith(_BULLETS) for line in lines) > max_bullet_lines * len(lines):
            return "too_many_bullet_lines", text
        if sum(line.endswith(_ELLIPSES) for line in lines) > max_ellipsis_lines * len(lines):
            return "too_many_ellipsis_lines", text
        if sum(any(map(str.isalpha, word)) for word in words) < min_alphabetic_words * n:
            return "too_few_alphabetic_words", text
        if (
            len(_STOP_WORDS.intersection(word.strip(".,;:!?\"'()").lower() for word in words))
            < min_stop_words
        ):
            return "too_few_stop_words", text
        return None, text

    return decide


_TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
_DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def _gopher_repetition(
    max_duplicate_lines: float = 0.30,
    max_duplicate_paragraphs: float = 0.30,
    max_duplicate_line_chars: float = 0.20,
    max_duplicate_paragraph_chars: float = 0.20,
    ngrams: bool = True,
) -> Filter:
    """Repetition rules of Rae et al. 2021 (Gopher), appendix A.1.1, "Repetition Removal", table A1.

    The characters of n-grams are those of their words; the most frequent n-gram counts only where it occurs twice.
    ngrams: also the nine rules on word n-grams, with table A1's thresholds.
    """

    def decide(text: str, _: str) -> tuple[Verdict, str]:
        for unit, parts, max_share, max_chars in (
            ("lines", text.split("\n"), max_duplicate_lines, max_duplicate_line_chars),
            ("paragraphs", text.split("\n\n"), max_duplicate_paragraphs, max_duplicate_paragraph_chars),
        ):
            stripped = [part for part in map(str.strip, parts) if part]
            number, chars = _duplicates(stripped)
            if number > max_share * len(stripped):
                return f"duplicate_{unit}", text
            if chars > max_chars * sum(map(len, stripped)):
                return f"duplicate_{unit.rstrip('s')}_chars", text
        return (_repeated_ngrams(text.split()) if ngrams else None), text

    return decide


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Number and characters of the parts that have stood before."""
    seen: set[str] = set()
    number = chars = 0
    for part in parts:
        if part in seen:
            number += 1
            chars += len(part)
        else:
            seen.add(part)
    return number, chars


def _repeated_ngrams(words: Sequence[str]) -> Verdict:
    """Which of table A1's n-gram rules `words` breaks, if any. n-grams are compared by a 64-bit hash."""
    codes: dict[str, int] = {}
    ids = np.fromiter((codes.setdefault(word, len(codes)) for word in words), np.uint64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths.sum())
    ends = np.concatenate(([0], np.cumsum(lengths)))
    hashes: npt.NDArray[np.uint64] = ids + np.uint64(1)
    limits = dict((*_TOP_NGRAMS, *_DUPLICATE_NGRAMS))
    for n in range(2, 11):
        if len(words) < n:
            return None
        hashes = (hashes[:-1] * np.uint64(0x9E3779B97F4A7C15)) ^ (ids[n - 1 :] + np.uint64(n))
        hashes ^= hashes >> np.uint64(29)
        _, first, inverse, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        if n <= 4:
            sizes = ends[first + n] - ends[first]
            covered = int((counts * sizes)[counts > 1].max(initial=0))
            if covered > limits[n] * total:
                return f"top_{n}_gram"
        else:
            starts = np.flatnonzero(counts[inverse] > 1)
            edges = np.zeros(len(words) + 1, np.int64)
            np.add.at(edges, starts, 1)
            np.add.at(edges, starts + n, -1)
            if int(lengths[np.cumsum(edges[:-1]) > 0].sum()) > limits[n] * total:
                return f"duplicate_{n}_grams"
    return None


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


def _c4(
    min_words_per_line: int = 5,
    min_sentences: int = 3,
    max_word_length: int = 1000,
    terminal_punctuation: bool = True,
    curly_brackets: bool = True,
    bad_words_file: str | None = None,
) -> Filter:
    """Rules of C4: Raffel et al. 2020 (arXiv 1910.10683), section 2.2; numbers as in C4's released code.

    Lines that do not end in . ? ! or a quotation mark, have too few words, mention JavaScript or a cookie or privacy policy are taken
    out, citation marks too; pages with `lorem ipsum`, a curly bracket, too few sentences left, or a word of the list are dropped. Sentences are
    counted by their end marks (C4 uses NLTK), and spans of three sentences that occur twice are left to deduplication.
    """
    bad_words: re.Pattern[str] | None = None
    if bad_words_file is not None:
        try:
            listed = [
                line.strip()
                for line in Path(bad_words_file).read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"clean.filters: c4: bad_words_file {bad_words_file} cannot be read ({error}). Name a text file, a word a line."
            ) from None
        if listed:
            bad_words = re.compile(
                r"(?:\W|^)(?:" + "|".join(map(re.escape, listed)) + r")(?:\W|$)", re.IGNORECASE
            )

    def decide(text: str, _: str) -> tuple[Verdict, str]:
        lowered = text.lower()
        if "lorem ipsum" in lowered:
            return "lorem_ipsum", text
        if curly_brackets and "{" in text:
            return "curly_bracket", text
        if bad_words is not None and bad_words.search(text):
            return "bad_word", text
        kept: list[str] = []
        for line in text.splitlines():
            cleaned = _CITATION.sub("", line.strip()).strip()
            words = cleaned.split()
            if len(words) < min_words_per_line or any(len(word) > max_word_length for word in words):
                continue
            if terminal_punctuation and (
                not cleaned.endswith((".", "?", "!", '"', "”")) or cleaned.endswith(_ELLIPSES)
            ):
                continue
            low = cleaned.lower()
            if "javascript" in low or any(policy in low for policy in _POLICIES):
                continue
            kept.append(cleaned)
        result = "\n".join(kept)
        if not result:
            return "no_line_left", text
        if len(_SENTENCE_END.findall(result)) < min_sentences:
            return "too_few_sentences", text
        return None, result

    return decide


def _regex(
    drop: str | None = None, keep: str | None = None, remove: str | None = None, ignore_case: bool = False
) -> Filter:
    """Drop texts in which `drop` is found; drop those in which `keep` is not; take out every match of `remove`."""
    if drop is None and keep is None and remove is None:
        raise ValueError("one of drop, keep or remove must be given")
    flags = re.MULTILINE | (re.IGNORECASE if ignore_case else 0)
    dropping, keeping, removing = (
        re.compile(p, flags) if p is not None else None for p in (drop, keep, remove)
    )

    def decide(text: str, _: str) -> tuple[Verdict, str]:
        if (dropping is not None and dropping.search(text)) or (
            keeping is not None and not keeping.search(text)
        ):
            return "", text
        return None, removing.sub("", text) if removing is not None else text

    return decide


def _function(function: str, max_errors: int = _MAX_ERRORS) -> Filter:
    """A user's function: a document {"text", "source"} in; True keeps it, False or (False, "fault") drops it, a text replaces its text."""
    del max_errors  # read by Filters.apply
    module_name, _, name = function.partition(":")
    if not module_name or not name:
        raise ConfigError(
            f"clean.filters: {function!r} is no function. Write module:function, for example my_filters:no_recipes."
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # a file beside the recipe can be imported by its name
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(
            f"clean.filters: {function} cannot be imported: {type(error).__name__}: {error}. "
            f"Check the name, and that {module_name.split('.')[0]}.py lies in this folder ({folder}) or is installed."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"clean.filters: {function} is a {type(found).__name__}, expected a function of one document. Name a function."
        )

    def decide(text: str, source: str) -> tuple[Verdict, str]:
        answer = found({"text": text, "source": source})
        if answer is True:
            return None, text
        if answer is False:
            return "", text
        if isinstance(answer, str):
            answer.encode()  # a lone surrogate cannot be written anywhere
            return None, answer
        if (
            isinstance(answer, tuple)
            and len(answer) == 2
            and answer[0] is False
            and isinstance(answer[1], str)
        ):
            return re.sub(r"[^A-Za-z0-9_.-]+", "_", answer[1])[:64], text
        raise TypeError(f"returned {answer!r:.80}; expected True, False, (False, fault) or the new text")

    return decide


def _too_many(name: str, function: str, errors: int, error: Exception, text: str) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"The filter {name} ({function}) failed on {errors} documents of one block; the last error is {type(error).__name__}: {error} "
        f"({last.filename} line {last.lineno}), on the document that begins {text[:60]!r}. "
        "Mend the function, or raise its max_errors if so many failures are to be counted as drops."
    )


_KINDS: dict[str, Callable[..., Filter]] = {
    "min_chars": _min_chars,
    "max_chars": _max_chars,
    "language": _language,
    "gopher_quality": _gopher_quality,
    "gopher_repetition": _gopher_repetition,
    "c4": _c4,
    "regex": _regex,
    "function": _function,
}
