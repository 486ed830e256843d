"""Public docstrings of functions on arrays, and names of variables."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = [path for package in ("btlm_data", "btlm_train") for path in sorted(Path(package).rglob("*.py"))]

_ARRAY = re.compile(r"NDArray|ndarray|\b[A-Z]\w*Array\b")
_TYPED = re.compile(
    r"\b(U?Int|Float|Bool)\w*Array\b|np\.(u?int|float|bool)\w*"
)  # the annotation names the dtype
_SHAPE = re.compile(r"\([^()]*,[^()]*\)|any shape")
_DTYPE = re.compile(r"\b(dtypes?|bool|u?int(8|16|32|64)|float(32|64)|integers)\b")

# A variable says what it holds; these names say nothing.
_EMPTY = {"found", "what", "mine", "said", "there", "here", "whoever", "thing", "stuff"}


def public_functions(body: list[ast.stmt], scope: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """The public functions and methods of public classes, by qualified name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{scope}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{scope}{node.name}", node


def missing(function: ast.FunctionDef) -> list[str]:
    """What the docstring of a function on arrays does not state: "shape", "dtype"."""
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    arrays = [text for node in annotations if node is not None and _ARRAY.search(text := ast.unparse(node))]
    docstring = ast.get_docstring(function) or ""
    if not arrays or docstring.startswith("See "):
        return []
    stated = {
        "shape": _SHAPE.search(docstring) is not None,
        "dtype": all(map(_TYPED.search, arrays)) or _DTYPE.search(docstring) is not None,
    }
    return [name for name, is_stated in stated.items() if not is_stated]


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Variables and parameters, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def test_public_functions_on_arrays_state_shapes_and_dtypes() -> None:
    faults = [
        f"{path}:{function.lineno} {name} has no {' and no '.join(lacks)}"
        for path in FILES
        for name, function in public_functions(ast.parse(path.read_text()).body)
        if (lacks := missing(function))
    ]
    assert not faults, "\n".join(faults)


def test_variables_say_what_they_hold() -> None:
    faults = [
        f"{path}:{line} {name}"
        for path in FILES
        for name, line in bound_names(ast.parse(path.read_text()))
        if name in _EMPTY
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a: npt.NDArray[Any]) -> None:\n    'Sort.'", ["shape", "dtype"]),
        ("def f(a: npt.NDArray[Any]) -> None:\n    'a: (n,) of any integer dtype.'", []),
        ("def f(*, a: npt.NDArray[np.uint8] | None) -> None:\n    'Sort.'", ["shape"]),
        ("def f() -> Int64Array:\n    'Returns (n, L).'", []),
        ("def f() -> Mapping[str, np.ndarray]:\n    'Returns (n, L).'", ["dtype"]),
        ("def f(a: list[int]) -> int:\n    'Sum.'", []),
    ],
)
def test_the_check_finds_what_is_missing(source: str, expected: list[str]) -> None:
    [(_, function)] = public_functions(ast.parse(source).body)
    assert missing(function) == expected
