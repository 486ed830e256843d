"""Signals by what a user brings: a classifier in fastText's format, and a function of one's own."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from btlm_data.cleaning.document import Document, Documents
from btlm_data.cleaning.rules.user_function import UserFunction
from btlm_data.cleaning.signal_parameters import (
    Kind,
    SignalParameters,
    Values,
    column_name,
    package_version,
    require_unchanged,
    sha256_of_model,
)
from btlm_data.errors import BtlmError, ConfigError, DataError, InputError

_KINDS: dict[str, Kind] = {"boolean": "bool", "number": "float64", "text": "text", "count": "uint32"}


class FastText(SignalParameters):
    """A classifier in fastText's format (Joulin et al. 2017, arXiv 1607.01759): the label that is likeliest and its
    probability, or the probability of one label.

    model: the file (.bin or .ftz). name: of the column, or the first of two. label: as `__label__good`; the column is its
    probability then, 0 where the model has no such label for the text. Line ends are read as spaces.
    """

    model: str = Field(min_length=1)
    name: str = "fasttext"
    label: str | None = None

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        return column_name(name)

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        if self.label is not None:
            return {self.name: "float64"}
        return {self.name: "text", f"{self.name}_probability": "float64"}

    def resource(self) -> list[str]:
        """The package's version, the file's absolute path and its SHA-256."""
        version = package_version("fasttext-predict", "fasttext", "fasttext")
        path = Path(self.model).absolute()
        resource = [version, str(path), sha256_of_model(path)]
        labels, _ = _load(*resource).predict("", k=-1)
        if self.label is not None and labels and self.label not in labels:
            raise ConfigError(
                f"annotate: the model {self.model} has no label {self.label[:80]!r}. It has {', '.join(labels[:8])}."
            )
        return resource

    def deciding(self) -> Any:
        """All but where the model is."""
        return self.model_dump(mode="json", exclude={"model"})

    def identity(self, resource: Any) -> Any:
        """The package's version and the model's SHA-256."""
        return [resource[0], resource[2]]

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters."""
        model = _load(*resource)
        number = 1 if self.label is None else -1
        answers = [model.predict(" ".join(text.splitlines()), k=number) for text in documents.texts]
        if self.label is not None:
            of_label = [
                dict(zip(labels, shares, strict=True)).get(self.label, 0.0) for labels, shares in answers
            ]
            return [np.minimum(np.array(of_label, np.float64), 1.0)]
        return [
            [labels[0] if labels else None for labels, _ in answers],
            np.minimum(
                np.array([shares[0] if labels else 0.0 for labels, shares in answers], np.float64), 1.0
            ),
        ]


@lru_cache(maxsize=4)
def _load(version: str, path: str, sha256: str) -> Any:
    """The model, once in a process. Raises DataError if it is another file by now, ConfigError if it is no model."""
    import fasttext

    require_unchanged(Path(path), sha256)
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"annotate: {path} is no model in fastText's format ({error}). Name a .bin or .ftz file."
        ) from None


class UserSignals(SignalParameters):
    """Columns by a function of the user's, module:function, of one document; its module is found and checked as that of a
    filter.

    columns: name and kind of each: number, count, boolean or text; by default one number, named as the function. The function returns the values by these names, or the
    value itself where there is one column; None is allowed for text. metadata: whether it reads document["metadata"], the
    whole record.
    """

    function: str
    columns_: dict[str, Literal["boolean", "number", "text", "count"]] = Field(
        {}, alias="columns", max_length=100
    )
    metadata: bool = False

    @model_validator(mode="after")
    def _named(self) -> UserSignals:
        for name in self.kinds:
            column_name(name)
        return self

    @property
    def columns(self) -> dict[str, Kind]:
        """See SignalParameters."""
        return {name: _KINDS[kind] for name, kind in self.kinds.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column, as recipes name it."""
        return dict(self.columns_) or {self.function.rpartition(":")[2].rpartition(".")[2]: "number"}

    @property
    def needs_metadata(self) -> bool:
        """See SignalParameters."""
        return self.metadata

    def resource(self) -> Any:
        """The module's source, as UserFunction has it. Imports the module."""
        return self._own(lambda rule: rule.resource())

    def identity(self, resource: Any) -> Any:
        """The digest of the module's source: where the file is decides nothing."""
        return resource[-1]

    def measure(self, documents: Documents, resource: Any) -> list[Values]:
        """See SignalParameters. Raises InputError, naming the document, where the function fails or gives something else."""
        function: Callable[[Document], Any] = self._own(lambda rule: rule.loaded(resource))
        values: dict[str, list[Any]] = {name: [] for name in self.kinds}
        for number, text in enumerate(documents.texts):
            document = documents.document(number, text, with_metadata=self.metadata)
            try:
                answer = function(document)
                for name, value in _bycolumn_name(answer, list(values)).items():
                    values[name].append(_value(name, self.kinds[name], value))
            except BtlmError:
                raise
            except Exception as error:
                raise InputError(self._failure(document, error)) from error
        return [
            each if kind == "text" else np.array(each, kind)
            for each, kind in zip(values.values(), self.columns.values(), strict=True)
        ]

    def _own(self, work: Callable[[UserFunction], Any]) -> Any:
        """What `work` gives of the filter with the same function; its errors are of `annotate`."""
        try:
            return work(UserFunction(function=self.function))
        except (ConfigError, DataError) as error:
            raise type(error)(str(error).replace("clean.filters: ", "annotate: ")) from error

    def _failure(self, document: Document, error: Exception) -> str:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"annotate: {self.function} failed on the document at byte or row {document['offset']:,} of {document['file']}: "
            f"{type(error).__name__}: {error} ({last.filename} line {last.lineno}). Correct the function; it must give a value "
            "for every document."
        )


def _bycolumn_name(answer: Any, names: list[str]) -> Mapping[str, Any]:
    """What a function gave, by the names of its columns. Raises TypeError."""
    if not isinstance(answer, Mapping) and len(names) == 1:
        return {names[0]: answer}
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise TypeError(f"returned {answer!r:.80}; expected values of {', '.join(names)}")
    return answer


def _value(name: str, kind: str, value: Any) -> Any:
    """A value of the user's function, checked. Raises TypeError or ValueError."""
    if kind == "text":
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r:.80}; expected text or None")
        if value is not None:
            value.encode()  # a lone surrogate cannot be written anywhere
        return value
    if kind == "boolean":
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} is {value!r:.80}; expected True or False")
        return bool(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r:.80}; expected a number")
    if kind == "number":
        if not np.isfinite(value):
            raise ValueError(f"{name} is {value}; expected a finite number")
        return float(value)
    if value != int(value) or not 0 <= value < 2**32:
        raise ValueError(f"{name} is {value}; expected a whole number from 0 to 4,294,967,295")
    return int(value)
