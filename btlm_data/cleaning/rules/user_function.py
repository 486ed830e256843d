"""A filter that is a function of the user's, named as module:function.

The module is found once, when the run is planned: a file of the current folder first, then whatever Python
can import (the current folder last). What travels to the workers is the module's name, the folder it was
imported from and the SHA-256 of its source, so that a worker in another folder, or on another machine that
sees the same folder, runs the same code or says that it cannot.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import Field

from btlm_data.cleaning.document import Document
from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict
from btlm_data.errors import ConfigError, DataError

MAX_ERRORS = 20  # documents of one block (about 16 MB of text) on which a user's function may fail
_MAX_FAULT_CHARS = 64


class ModuleSource(NamedTuple):
    """Where a module comes from: all that another process needs to import the same one.

    folder: the absolute path of the folder that holds the module, or its top package ("" for one without a
    file). is_file: the module is the file folder/name.py and is loaded from there, whatever else has its
    name. sha256: hex digest of the module's source.
    """

    name: str
    folder: str
    is_file: bool
    sha256: str


class UserFunction(FilterParameters):
    """function: module:function. max_errors: how many documents of a block it may fail on.

    metadata: whether the function reads document["metadata"], the whole record. docs/filters.md describes the
    function.
    """

    function: str
    max_errors: int = Field(MAX_ERRORS, ge=0)
    metadata: bool = False

    @property
    def module_name(self) -> str:
        """The part before the colon. Raises ConfigError if `function` is not module:function."""
        module, _, name = self.function.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
            raise ConfigError(
                f"clean.filters: {self.function!r} does not name a function. "
                "Write module:function, for example my_filters:no_recipes."
            )
        return module

    def resource(self) -> list[Any]:
        """The module's source, as a list of JSON values (see ModuleSource). Imports the module."""
        source = _find_module(self.module_name, self.function)
        self._function(source)
        return list(source)

    def rule(self, resource: Any) -> Rule:
        """A user's function receives a Document; Filters.apply calls `document_rule` instead."""
        raise NotImplementedError

    def document_rule(self, resource: Any) -> Callable[[Document], tuple[Verdict, str]]:
        """The function that judges a document. Raises DataError if the module is not the one the run was
        planned with.
        """
        function = self.loaded(resource)

        def decide(document: Document) -> tuple[Verdict, str]:
            text = document["text"]
            answer = function(document)
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
                return re.sub(r"[^A-Za-z0-9_.-]+", "_", answer[1])[:_MAX_FAULT_CHARS], text
            raise TypeError(f"returned {answer!r:.80}; expected True, False, (False, fault) or the new text")

        return decide

    def loaded(self, resource: Any) -> Callable[[Document], Any]:
        """The function itself. Raises DataError if the module is not the one the run was planned with."""
        return self._function(ModuleSource(*resource))

    def _function(self, source: ModuleSource) -> Callable[[Document], Any]:
        value: Any = _import(source, self.function)
        try:
            for part in self.function.partition(":")[2].split("."):
                value = getattr(value, part)
        except AttributeError as error:
            raise ConfigError(
                f"clean.filters: {self.function} cannot be imported: {error}. Check the name."
            ) from None
        if not callable(value):
            raise ConfigError(
                f"clean.filters: {self.function} is a {type(value).__name__}, expected a function of one "
                "document. "
                "Name a function."
            )
        function: Callable[[Document], Any] = value
        return function


# Modules of the user's own folder that this process has loaded, by their source: two runs in one process may
# have two files of one name, and a file may change between them.
_FILE_MODULES: dict[ModuleSource, ModuleType] = {}
# The digest of each other module when it was imported for a filter.
_IMPORTED: dict[str, str] = {}
_LOCK = threading.Lock()


def _find_module(name: str, function: str) -> ModuleSource:
    """Where the module is, seen from the current folder."""
    folder = Path.cwd()
    file = folder / f"{name}.py"
    if "." not in name and file.is_file():
        return ModuleSource(name, str(folder), True, _sha256(file))
    module = _import_by_name(name, str(folder), function)
    if (path := getattr(module, "__file__", None)) is None:
        return ModuleSource(name, "", False, hashlib.sha256(name.encode()).hexdigest())
    # folder/package/module.py: as many folders up as the name has parts, one more for a package's
    # __init__.py.
    levels = name.count(".") + (Path(path).name == "__init__.py")
    return ModuleSource(name, str(Path(path).resolve().parents[levels]), False, _sha256(Path(path)))


def _import(source: ModuleSource, function: str) -> ModuleType:
    """The module that `source` describes. Raises DataError if its code is another by now."""
    with _LOCK:
        if source.is_file:
            if source not in _FILE_MODULES:
                path = Path(source.folder, f"{source.name}.py")
                _check(source, _sha256(path) if path.is_file() else None)
                _FILE_MODULES[source] = _load_file(source, path, function)
            return _FILE_MODULES[source]
        module = _import_by_name(source.name, source.folder, function)
        if (module_file := getattr(module, "__file__", None)) is not None:
            _check(source, _sha256(Path(module_file)))
            if _IMPORTED.setdefault(source.name, source.sha256) != source.sha256:
                module = importlib.reload(module)  # its file changed since an earlier run of this process
                _IMPORTED[source.name] = source.sha256
        return module


def _check(source: ModuleSource, sha256: str | None) -> None:
    if sha256 != source.sha256:
        problem = (
            "is missing" if sha256 is None else "has changed since the run was planned, or is another file"
        )
        raise DataError(
            f"clean.filters: the module {source.name} in {source.folder} {problem}. "
            "Every worker must see the same file; run the same command again to plan with the file as it is "
            "now."
        )


def _load_file(source: ModuleSource, path: Path, function: str) -> ModuleType:
    """Run a file of the user's as a module under a name of its own; it may import its neighbours."""
    _append_to_path(source.folder)
    unique_name = f"{source.name}_{source.sha256[:16]}"
    spec = importlib.util.spec_from_file_location(unique_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique_name] = module  # dataclasses and pickling look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[unique_name]
        raise _cannot_import(function, error, source.folder) from error
    return module


def _import_by_name(name: str, folder: str, function: str) -> ModuleType:
    if folder:
        _append_to_path(folder)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _cannot_import(function, error, folder) from error


def _append_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _cannot_import(function: str, error: BaseException, folder: str) -> ConfigError:
    module = function.partition(":")[0].split(".")[0]
    return ConfigError(
        f"clean.filters: {function} cannot be imported: {type(error).__name__}: {error}. "
        f"Check the name, and that {module}.py is in this folder ({folder}) or installed."
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
