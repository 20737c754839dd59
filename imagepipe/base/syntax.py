"""The content of a source file, read from its syntax tree: a hash without its words, its imports and its strings."""

import ast
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagepipe.base.errors import ConfigError, describe_error


@dataclass(frozen=True)
class Syntax:
    """The content of a source file.

    Attributes:
        digest: hash of the syntax tree without words: docstrings and descriptions of pydantic's fields; comments and
            the layout are not in the tree. Nor does ``__all__`` count.
        imports: absolute dotted names that are imported anywhere in it, of modules or of something in a module. Those
            for type checkers only are left out.
        strings: its constant strings that are no docstrings.
    """

    digest: str
    imports: frozenset[str]
    strings: tuple[str, ...]


def parse_source(file: Path) -> ast.Module:
    """Returns the syntax tree of a source file.

    Raises:
        ConfigError: if it is no Python, with file and line.
    """
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{file} is no Python: {describe_error(error)}") from error


@functools.cache
def read_syntax(file: Path, package: str, with_functions: bool = True) -> Syntax:
    """Reads a source file, once per process: if it is edited later, the process still runs the old code.

    Args:
        file: the file.
        package: dotted name of the package that relative imports start from.
        with_functions: whether functions count, or only what runs when the file is imported.

    Raises:
        ConfigError: see ``parse_source``.
    """
    parts: list[str] = []
    imports: set[str] = set()
    strings: list[str] = []

    def visit(node: Any) -> None:
        kind = type(node)
        if kind is list:
            parts.append("[")
            for child in node:
                visit(child)
            parts.append("]")
        elif not isinstance(node, ast.AST):
            parts.append(repr(node))
        elif kind not in _SPECIAL or visit_special(node):
            parts.append(kind.__name__)
            for name in kind._fields:
                if name != "ctx":
                    visit(getattr(node, name))

    def visit_special(node: ast.AST) -> bool:
        """Takes what is of interest from a node; returns whether its content counts."""
        match node:
            case ast.Expr(value=ast.Constant()):  # a docstring, of a variable too
                return False
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return with_functions
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return False
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                visit(node.orelse)
                return False
            case ast.Call(func=ast.Name(id="Field")):
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
            case ast.Import():
                imports.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                imports.update(f"{_resolve_base(node, package)}.{alias.name}" for alias in node.names)
            case ast.Constant(value=str(text)):
                strings.append(text)
        return True

    tree = parse_source(file)
    try:
        visit(tree)
    except RecursionError as error:
        raise ConfigError(f"{file} has code too deep in other code to be read") from error
    return Syntax(hashlib.sha256("\n".join(parts).encode()).hexdigest(), frozenset(imports), tuple(strings))


_SPECIAL = frozenset(
    {
        ast.Expr,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.Assign,
        ast.If,
        ast.Call,
        ast.Import,
        ast.ImportFrom,
        ast.Constant,
    }
)


def _resolve_base(node: ast.ImportFrom, package: str) -> str:
    """Returns the absolute name of the module that ``from … import`` imports from."""
    if not node.level:
        return str(node.module)
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)
