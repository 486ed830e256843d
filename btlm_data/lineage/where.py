"""`--where`: which documents of a table satisfy an expression in SQL, evaluated by DuckDB.

The expression comes from outside. DuckDB parses it, and only what is listed here is evaluated: columns of the
table, constants, comparisons, arithmetic, and functions of a row's own values. No subquery, no table, no
setting, nothing that depends on the time or on chance can be named; and the connection that evaluates it
cannot read files, load extensions, or be configured otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, install_command
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.recipe.validation import nearest

MAX_CHARACTERS = 100_000
_CONFIGURATION: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "1GB",
    "threads": "1",
}
# Kinds of nodes in DuckDB's serialised syntax tree.
_NODES = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "OPERATOR",
}
_OPERATORS = {
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "OPERATOR_COALESCE",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_IS_NULL",
    "OPERATOR_NOT",
}
_FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "||"),
    *("~~", "!~~", "~~*", "!~~*", "~~~"),  # LIKE, NOT LIKE, ILIKE, NOT ILIKE, GLOB
    *("abs", "ceil", "floor", "greatest", "isnan", "least", "ln", "log10", "round", "sqrt"),
    *("contains", "ends_with", "starts_with", "prefix", "suffix", "strpos", "position"),
    *("left", "length", "lower", "ltrim", "right", "rtrim", "strlen", "substring", "trim", "upper"),
    *("regexp_extract", "regexp_full_match", "regexp_matches"),
}
_TYPES = {"BIGINT", "BOOLEAN", "DATE", "DOUBLE", "FLOAT", "INTEGER", "TIMESTAMP", "UBIGINT", "VARCHAR"}
_START = "SELECT "


class Where:
    """A checked expression over the columns of a table. columns: those that it names."""

    def __init__(self, expression: str, columns: Sequence[str]) -> None:
        """columns: of the table. Raises ConfigError, saying where in the expression, for what cannot be evaluated."""
        self.expression = expression
        if len(expression) > MAX_CHARACTERS:
            raise ConfigError(
                f"--where has {len(expression):,} characters, at most {MAX_CHARACTERS:,} are read. For many documents by "
                "name, use --list."
            )
        self._connection = _connect()
        tree = self._parse(expression)
        self.columns = tuple(dict.fromkeys(_names(tree, expression, columns)))
        statement = self._one("SELECT json_deserialize_sql(?::JSON)", json.dumps(tree))
        self._query = f"{statement} FROM documents"

    def mask(self, table: Any) -> npt.NDArray[np.bool_]:
        """Which rows satisfy the expression, (n,) bool; a row for which it is unknown (NULL) does not. table: Arrow,
        with at least `columns`.

        Raises ConfigError if the expression cannot be evaluated on these values, or is not true or false.
        """
        import duckdb
        import pyarrow as pa

        if not self.columns:
            values = {"c0": pa.nulls(len(table))}
        else:
            values = {f"c{i}": _plain(table.column(name)) for i, name in enumerate(self.columns)}
        self._connection.register("documents", pa.table(values))
        try:
            column = self._connection.sql(self._query).to_arrow_table().column(0)
        except duckdb.Error as error:
            raise self._refused(_first_line(error)) from None
        finally:
            self._connection.unregister("documents")
        if not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
            raise self._refused(f"it gives values of type {column.type}, not true or false")
        satisfied: npt.NDArray[np.bool_] = column.cast(pa.bool_()).fill_null(False).to_numpy()
        return satisfied

    def _parse(self, expression: str) -> Any:
        """DuckDB's syntax tree of one SELECT of nothing but the expression."""
        tree, plain = (
            json.loads(self._one("SELECT json_serialize_sql(?)", f"{_START}{text}"))
            for text in (expression, "true")
        )
        if tree["error"]:
            at = int(tree.get("position") or 0) - len(_START)
            raise self._refused(f"{tree['error_message']}, at character {max(at, 0) + 1}")
        statements = tree["statements"]
        if len(statements) != 1 or _without_list(tree) != _without_list(plain) or len(_list_of(tree)) != 1:
            raise self._refused("it is more than one expression")
        return tree

    def _one(self, query: str, parameter: str) -> Any:
        import duckdb

        try:
            [(value,)] = self._connection.execute(query, [parameter]).fetchall()
        except duckdb.Error as error:
            raise self._refused(_first_line(error)) from None
        return value

    def _refused(self, reason: str) -> ConfigError:
        shown = self.expression if len(self.expression) <= 200 else f"{self.expression[:200]}..."
        return ConfigError(
            f"--where {shown!r} cannot be used: {reason}. Write for example --where \"source = 'Web' AND tokens > 1000\" "
            "(docs/reselect.md lists what it may name)."
        )


def rows_where(table: DocumentTable, expression: str) -> list[int]:
    """Rows of a table of documents that satisfy an expression, in order. Raises ConfigError as `Where` does."""
    where = Where(expression, table.columns)
    rows: list[int] = []
    for group in range(table.num_groups):
        satisfied = where.mask(table.arrow(group, where.columns or table.columns[:1]))
        rows += (table.group_rows(group)[0] + np.flatnonzero(satisfied)).tolist()
    return rows


def _connect() -> Any:
    """A connection of its own: what is registered on it is not there on another."""
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--where needs DuckDB, which is not installed. Install it with: {install_command('where')}."
        ) from None
    return _database().cursor()


@lru_cache(maxsize=1)
def _database() -> Any:
    """One for the whole process: to start it takes longer than most expressions."""
    import duckdb

    connection = duckdb.connect(":memory:", config=_CONFIGURATION)
    connection.execute("SET lock_configuration = true")
    return connection


def _list_of(tree: Any) -> Any:
    return tree["statements"][0]["node"].get("select_list") or []


def _without_list(tree: Any) -> Any:
    """The tree of a statement but for what it selects."""
    statement = tree["statements"][0]
    node = {key: value for key, value in statement["node"].items() if key != "select_list"}
    return {**statement, "node": node}


def _names(tree: Any, expression: str, columns: Sequence[str]) -> list[str]:
    """Check every node of the tree, and put c0, c1, ... for the columns; returns their names in that order."""
    columns_of: dict[str, str] = {}
    todo = [_list_of(tree)]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        if not isinstance(node, dict):
            continue
        kind = node.get("class")
        if kind == "COLUMN_REF":
            name = ".".join(node["column_names"])
            if name not in columns:
                raise ConfigError(
                    f"--where names a column {name[:80]!r} that there is not. {nearest(name, list(columns))}"
                )
            node["column_names"] = [columns_of.setdefault(name, f"c{len(columns_of)}")]
        elif kind is not None and (fault := _fault(node, kind)) is not None:
            raise ConfigError(
                f"--where {expression[:200]!r} cannot be used: {fault}. It may compare the document's own columns with "
                "constants, and use the functions that docs/reselect.md lists."
            )
        todo += [value for key, value in node.items() if key != "column_names"]
    return list(columns_of)


def _fault(node: Any, kind: str) -> str | None:
    """What of a node is not evaluated here, in words."""
    if kind == "TYPE":
        name = str(node["type_name"])
        is_plain = not node["children"] and not node["schema"] and not node["catalog"]
        return None if is_plain and name.upper() in _TYPES else f"it casts to the type {name[:40]!r}"
    if kind not in _NODES:
        return f"it has a part of the kind {kind.lower().replace('_', ' ')}"
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        return f"it has a part of the kind {str(node['type']).lower().replace('_', ' ')}"
    if kind == "FUNCTION":
        name = str(node["function_name"])
        is_plain = not (node["schema"] or node["catalog"] or node["distinct"] or node.get("filter"))
        called = ".".join(part for part in (node["catalog"], node["schema"], name) if part)
        return None if is_plain and name in _FUNCTIONS else f"it calls {called[:40]!r}"
    return None


def _plain(column: Any) -> Any:
    """A column as DuckDB compares it: names as text, hashes in hexadecimal digits."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_fixed_size_binary(column.type):
        return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
    return column


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line.removesuffix(".")[:500]
