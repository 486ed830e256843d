"""docs/reference.md: what the code itself knows about exit codes, files and the Python API. Called by write_docs.py."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import msgspec

import btlm_data
from btlm_data import errors
from btlm_data.cleaning.rules import KINDS
from btlm_data.formats import dataset, ledger, provenance
from btlm_data.inspection import report

_HEAD = """# Types, messages and exit codes

Written from the code by `tools/write_docs.py`.
"""


def reference() -> str:
    """The page."""
    parts = [
        _HEAD, _exit_codes(), _filters(),
        _structs("dataset.json", dataset, "Dataset", "SetList", "Split", "ShardFile", "StoredFile", "InputFile", "Tokenizer"),
        _structs("The ledger", ledger, "Row", "Amounts"), _structs("provenance.json", provenance, "Provenance", "StepTime"),
        _structs("`inspect --json`", report, "Report", "Split", "Tokens", "Lengths", "Shuffle", "Verdict"), _api(),
    ]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> str:
    rows = ["## Exit codes\n", "| code | error | when |", "|---|---|---|", "| 0 | | done |"]
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BtlmError)
    ]
    rows += [
        f"| {kind.exit_code} | `{kind.__name__}` | {_sentence(kind.__doc__)} |"
        for kind in sorted(kinds, key=lambda kind: (kind.exit_code, kind.__name__))
        if kind is not errors.BtlmError
    ]
    rows.append("| 70 | | A fault of the program; the message names a file with the details. |")
    return "\n".join(rows) + "\n"


def _filters() -> str:
    rows = ["## Filters\n", "| name | drops |", "|---|---|"]
    rows += [f"| `{name}` | {_sentence(rule.__doc__)} |" for name, rule in sorted(KINDS.items())]
    return "\n".join(rows) + "\n"


def _structs(title: str, module: ModuleType, *names: str) -> str:
    lines = [f"## {title}\n"]
    for name in names:
        kind: Any = getattr(module, name)
        lines += [f"### {name}\n", _paragraphs(kind.__doc__), "", "| key | type |", "|---|---|"]
        lines += [
            f"| `{field.encode_name}` | `{_type(kind, field.name)}` |"
            for field in msgspec.structs.fields(kind)
        ]
        lines.append("")
    return "\n".join(lines)


def _type(kind: type, name: str) -> str:
    """A field's type as the class that has it spells it."""
    for one in kind.__mro__:
        if name in (annotations := inspect.get_annotations(one)):
            return str(annotations[name]).replace("|", "\\|")
    return "?"


def _api() -> str:
    lines = ["## Python\n"]
    for name in btlm_data.__all__:
        value: Any = getattr(btlm_data, name)
        lines += [f"### btlm_data.{name}\n"]
        if inspect.isclass(value):
            lines += [_paragraphs(value.__doc__), ""]
            for key, member in vars(value).items():
                function = getattr(member, "func", None) or getattr(member, "fget", None) or member
                if key.startswith("_") or not callable(function) or not function.__doc__:
                    continue
                shown = f"{key}{_signature(function)}" if inspect.isfunction(member) else key
                lines += [f"- `{shown}`: {_sentence(function.__doc__)}"]
            lines.append("")
        else:
            lines += [f"```python\n{name}{_signature(value)}\n```\n", _paragraphs(value.__doc__), ""]
    return "\n".join(lines)


def _signature(function: Any) -> str:
    return re.sub(r"\bself(, )?", "", str(inspect.signature(function)).replace("'", ""))


def _sentence(text: str | None) -> str:
    """The first paragraph of a docstring, in one line, fit for a table."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split()).replace("|", "\\|")


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n"))
