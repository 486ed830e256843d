"""The forms in which an item of `clean.filters` or `annotate` may stand, and whether it names code to run.

NAME                    a filter without parameters, or module:function
{NAME: value}           one with a mapping of parameters, or the value of its first
{name: NAME, ...}       one with parameters; with `function`, NAME is only what the ledger shows
{function: F, ...}      module:function with parameters
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class FilterEntry(NamedTuple):
    """One item. name: the filter's. parameters: a mapping of them, or the value of the first one."""

    name: str
    parameters: Any

    @property
    def function(self) -> str | None:
        """What names a Python function here, which a run would import and call; None for the filters of the
        package.
        """
        if isinstance(self.parameters, Mapping) and "function" in self.parameters:
            return str(self.parameters["function"])
        return self.name if ":" in self.name or self.name == "function" else None


def parse_entry(item: object) -> FilterEntry | None:
    """An item in one form; None if it has none of them. Whether the filter exists is not asked."""
    if isinstance(item, str):
        return FilterEntry(item, {})
    if isinstance(item, Mapping):
        if "name" in item:
            return FilterEntry(str(item["name"]), {str(k): v for k, v in item.items() if k != "name"})
        if "function" in item:
            return FilterEntry(str(item["function"]), {str(k): v for k, v in item.items()})
        if len(item) == 1:
            name, parameters = next(iter(item.items()))
            return FilterEntry(str(name), parameters)
    return None
