"""Optional filters of documents, by name and in the order given; each dropped document is counted under its
filter's name.

    clean:
      filters:
        - gopher_quality                                # with its paper's thresholds
        - min_chars: 500                                # NAME: its one parameter
        - {name: language, keep: [en, de], min_probability: 0.7}
        - {name: mine, function: "my_filters:no_recipes"}

Reasons are `NAME`, or `NAME.fault` where a filter has several. Filters run after normalisation and before
deduplication, see only one document, and give the same verdict in any process. docs/filters.md describes
each, with its thresholds and sources.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from pydantic import ValidationError

from btlm_data.cleaning.document import Document, Documents
from btlm_data.cleaning.rules import KINDS, FilterParameters, Rule, UserFunction, Verdict
from btlm_data.errors import BtlmError, ConfigError, InputError
from btlm_data.recipe.filter_entries import parse_entry
from btlm_data.recipe.validation import explain

VERSION = 2  # increased whenever a filter decides otherwise

Spec = Mapping[str, Any] | str  # an item of clean.filters


def plan_filters(specs: Sequence[Spec]) -> Filters:
    """Check the items of `clean.filters` and read all that they name: word lists, users' modules.

    Raises ConfigError naming the entry: an unknown filter or parameter (with the nearest name), a value of
    the wrong kind, a package, file or function that cannot be read or imported.
    """
    entries = []
    for number, spec in enumerate(specs, 1):
        name, parameters = _checked(spec, number)
        with _named(name):
            entries.append(FilterEntry(name, parameters, parameters.resource()))
    filters = Filters(tuple(entries))
    filters.prepare()
    return filters


def modules_named(specs: Sequence[Spec]) -> list[str]:
    """The names of the modules that these filters would import, without importing any: code that needs to be
    trusted.

    For recipes that came with a dataset. Raises ConfigError as plan_filters does for an entry that is wrong
    in itself.
    """
    checked = [_checked(spec, number)[1] for number, spec in enumerate(specs, 1)]
    return sorted({p.module_name for p in checked if isinstance(p, UserFunction)})


class FilterEntry(msgspec.Struct, frozen=True):
    """One filter. name: as counted in the ledger. resource: what `parameters.resource()` read, JSON
    values.
    """

    name: str
    parameters: FilterParameters
    resource: Any


@dataclass(frozen=True)
class Filters:
    """A checked list of filters, complete: it can be pickled and used in any process, whatever its current
    folder.

    Each process makes its own functions of it once. A user's module is imported there from the folder it was
    in when the run was planned.
    """

    entries: tuple[FilterEntry, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that decides the verdicts: parameters, word lists, the source of users' modules.

        Code that a user's module imports in turn is not covered.
        """
        described: list[Any] = [VERSION]
        for entry in self.entries:
            parameters = entry.parameters.model_dump(mode="json", exclude={"bad_words_file"})
            resource = entry.resource
            if isinstance(entry.parameters, UserFunction):
                resource = resource[-1]  # the digest alone: where the file is decides nothing
            described.append([entry.name, type(entry.parameters).__name__, parameters, resource])
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def needs_metadata(self) -> bool:
        """Whether a filter asks for whole records: `apply` then needs Documents.records."""
        return any(isinstance(e.parameters, UserFunction) and e.parameters.metadata for e in self.entries)

    def apply(self, documents: Documents) -> tuple[list[str | None], list[str]]:
        """The reason each document is dropped for (None: it is kept), and the texts as the filters leave
        them.

        An exception in a user's function drops that document as `NAME.error`. Raises InputError when a
        function fails on more than its `max_errors` documents of one call, as the function must then be
        wrong.
        """
        reasons: list[str | None] = [None] * len(documents.texts)
        texts = list(documents.texts)
        for entry, rule in zip(self.entries, self.prepare(), strict=True):
            if isinstance(entry.parameters, UserFunction):
                verdicts = _by_user_function(entry.name, entry.parameters, rule, documents, reasons, texts)
            else:
                verdicts = (
                    (i, *rule(texts[i], source))
                    for i, source in enumerate(documents.sources)
                    if reasons[i] is None
                )
            for i, fault, text in verdicts:
                if fault is not None:
                    reasons[i] = f"{entry.name}.{fault}" if fault else entry.name
                else:
                    texts[i] = text
        return reasons, texts

    def prepare(self) -> tuple[Any, ...]:
        """The functions that judge; made once in a process for each fingerprint."""
        folders = tuple(e.resource[1] for e in self.entries if isinstance(e.parameters, UserFunction))
        key = (self.fingerprint, folders)  # a user's module may read files beside itself
        with _LOCK:
            rules = _RULES.pop(key, None) or tuple(map(_rule, self.entries))
            _RULES[key] = rules  # the latest is last
            while len(_RULES) > _MAX_PREPARED:
                del _RULES[next(iter(_RULES))]
        return rules


_MAX_PREPARED = 8
_RULES: dict[tuple[str, tuple[str, ...]], tuple[Any, ...]] = {}
_LOCK = threading.Lock()


def _rule(entry: FilterEntry) -> Rule | Callable[[Document], tuple[Verdict, str]]:
    with _named(entry.name):
        if isinstance(entry.parameters, UserFunction):
            return entry.parameters.document_rule(entry.resource)
        return entry.parameters.rule(entry.resource)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what is wrong with a filter's parameters into a ConfigError that names the filter."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"clean.filters: {name}: {error}. Correct the parameter; docs/filters.md describes it."
        ) from None


def _by_user_function(
    name: str,
    parameters: UserFunction,
    rule: Callable[[Document], tuple[Verdict, str]],
    documents: Documents,
    reasons: Sequence[str | None],
    texts: Sequence[str],
) -> Iterator[tuple[int, Verdict, str]]:
    """(index, fault, text) of each document that no filter before has dropped."""
    num_errors = 0
    for i, text in enumerate(texts):
        if reasons[i] is not None:
            continue
        try:
            fault, changed = rule(documents.document(i, text, with_metadata=parameters.metadata))
        except BtlmError:
            raise
        except Exception as error:
            num_errors += 1
            if num_errors > parameters.max_errors:
                raise InputError(_too_many(name, parameters.function, num_errors, error, text)) from error
            fault, changed = "error", text
        yield i, fault, changed


def _too_many(name: str, function: str, num_errors: int, error: Exception, text: str) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"The filter {name} ({function}) failed on {num_errors} documents of one block; the last error is "
        f"{type(error).__name__}: {error} ({last.filename} line {last.lineno}), on the document that begins "
        f"{text[:60]!r}. Correct the function, or raise its max_errors to count so many failures as drops."
    )


# Checking what the recipe says ------------------------------------------------------------------------------


def _checked(spec: Spec, number: int) -> tuple[str, FilterParameters]:
    """(name in the ledger, parameters) of one item of clean.filters, in any of its forms."""
    entry = f"clean.filters, entry {number}"
    parsed = parse_entry(spec)
    if parsed is None:
        raise ConfigError(
            f"{entry}: {spec!r} has no `name`. Write {{name: FILTER, parameter: value}}, or only a filter's "
            "name."
        )
    name, function = parsed.name, parsed.function
    kind = KINDS["function"] if function is not None else _kind(name, entry)
    if isinstance(parsed.parameters, Mapping):
        parameters = {str(key): value for key, value in parsed.parameters.items()}
    elif function is not None and parsed.parameters is None:
        parameters = {}
    else:
        parameters = {next(iter(kind.model_fields)): parsed.parameters}
    if function is not None:
        parameters.setdefault("function", function)
    shown = name.rpartition(":")[2]
    try:
        checked = kind.model_validate(parameters)
    except ValidationError as error:
        problems = explain(error, kind, lambda _: f"{entry} ({name})")
        raise ConfigError(f"{problems} docs/filters.md describes the parameters.") from None
    if isinstance(checked, UserFunction):
        _ = checked.module_name  # raises if it is not module:function
    return shown, checked


def _kind(name: str, entry: str) -> type[FilterParameters]:
    known = sorted(set(KINDS) - {"function"})
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(
            f"{entry}: there is no filter {name!r}. {f'Did you mean {near[0]}? ' if near else ''}"
            f"Filters are {', '.join(known)}, or your own as module:function."
        )
    return KINDS[name]
