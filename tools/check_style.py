"""Checks what ruff can't: the words of the glossary in CONTRIBUTING.md, and the sizes of files.

Prints one line per finding and exits with 1 if there are any. ``make lint`` runs it over everything that git tracks;
``tools/check_style.py PATH ...`` checks some files or folders only.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES, MIN_LINES = 400, 30
_UNSIZED = {"__init__.py", "__main__.py", "docs_hooks.py", "errors.py", "setup.py"}  # faces, entry points, errors
_PRODUCT = ("imagepipe", "transform", "trainer", "components", "pipeline", "benchmarks", "tools")

# Names say what a value is, not how it came to be.
_NAMES = frozenset({"found", "said", "known", "made", "each", "before"})
_PHRASES = re.compile(
    r"so man(y-th|ieth)|(is|are) told, (or|and not)|a row an image|\bmend(s|ed|ing)?\b|\bas said\b", re.IGNORECASE
)
_PREPOSITIONS = ("of_", "without_")  # a function is called by a verb, a value by a noun


def check_file(path: Path) -> Iterator[str]:
    """Yields a line per finding in one file: ``path:line: what is wrong``."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _PHRASES.search(line):
            yield f"{path}:{number}: say it in the words of the glossary: {match[0]!r}"
    if path.suffix != ".py":
        return
    count = text.count("\n")
    if path.parts[0] in _PRODUCT and count > MAX_LINES:
        yield f"{path}:1: {count} lines; split it by what changes together (at most {MAX_LINES})"
    if path.parts[0] in _PRODUCT and count < MIN_LINES and path.name not in _UNSIZED:
        yield f"{path}:1: {count} lines; it belongs to what uses it (at least {MIN_LINES})"
    for node in ast.walk(ast.parse(text)):
        start: int = getattr(node, "lineno", 1)  # modules have none
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and str(node.value.value).startswith("What ")
        ):
            yield f"{path}:{start}: a docstring that begins with 'What': begin with what the thing does or is"
        if path.parts[0] in _PRODUCT and _has_no_encoding(node):
            yield f'{path}:{start}: a text in the encoding of the machine: give encoding="utf-8"'
        name = _bound_name(node)
        if name is not None and (name.strip("_") in _NAMES or name.strip("_").startswith(_PREPOSITIONS)):
            yield f"{path}:{start}: '{name}' says how it came to be, or how it relates: call it by what it is or does"


def _has_no_encoding(node: ast.AST) -> bool:
    """Returns whether a node reads or writes a text file by pathlib, and leaves its encoding to the locale."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    is_text = node.func.attr == "write_text" or (node.func.attr == "read_text" and not node.args)
    return is_text and all(keyword.arg != "encoding" for keyword in node.keywords)


def _bound_name(node: ast.AST) -> str | None:
    """Returns the name that a node binds, if it binds one: a variable, a parameter, an attribute or a function."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
            return name
        case ast.FunctionDef(name=name) | ast.MatchAs(name=str(name)):
            return name
    return None


def _tracked(arguments: list[str]) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *arguments]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603
    paths = (Path(name) for name in names)
    return [path for path in paths if path.suffix in (".py", ".md", ".html", ".js", ".yaml") and path.is_file()]


def main(arguments: list[str]) -> int:
    """Checks files and folders, by default all; returns the exit status."""
    own = (Path(__file__).name, "CONTRIBUTING.md")  # they list the words that are not to be used
    findings = [line for path in _tracked(arguments) if path.name not in own for line in check_file(path)]
    print("\n".join(findings) if findings else "style: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
