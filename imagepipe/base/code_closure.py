"""The code that a piece of work runs, for the keys of caches: a cached result is right only for the code that made it.

The code of a module is the module itself and, at any depth, whatever of ours it imports or names:

- modules that it imports, inside functions too;
- modules and functions that a string names, as TFX, TFMA and ``python -m`` take them: ``trainer.run_fn.run_fn``;
- templates, styles, scripts and other files in its folder that a string names, or ends with as a path;
- the packages from elsewhere that these modules import, by their versions.

It is read from syntax trees, so nothing is imported for it, and words don't count; see ``imagepipe.base.syntax``. Names
that are put together when the code runs are not seen.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from imagepipe.base.distributions import is_installed, list_versions
from imagepipe.base.syntax import read_syntax

PACKAGES = ("components", "imagepipe", "pipeline", "trainer", "transform")
"""Our packages, as in pyproject.toml."""

SOURCES = Path(__file__).parents[2]
"""The folder of our packages."""

_MAX_TEXT = 1 << 20  # bytes of a file that is searched for the names of others; no template is larger
_MAX_NAME = 255  # characters
_MAX_DEPTH = 3  # of folders below a module's
_WORD = re.compile(r"[\w./-]+")
_NAME = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


@dataclass
class Closure:
    """The code of some modules.

    Attributes:
        digests: hash by module or file of ours.
        imports: dotted names that are imported from elsewhere, such as ``google.protobuf.text_format``.
    """

    digests: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)


class _Module(NamedTuple):
    name: str
    file: Path
    package: str


def hash_code(
    modules: Iterable[str], sources: Path = SOURCES, packages: tuple[str, ...] = PACKAGES, *, with_others: bool = False
) -> str:
    """Returns a hash of the code of modules, and of the versions of the packages that it imports.

    Args:
        modules: dotted names of modules, or of something in them. Of modules that are not ours, only what they import
            themselves counts.
        sources: the folder of our packages.
        packages: their names.
        with_others: whether other modules in ``sources`` are ours too, unless they were installed there.

    Returns:
        16 hexadecimal digits.

    Raises:
        ConfigError: if one of ours is no Python.
    """
    closure = find_closure(modules, sources, packages, with_others=with_others)
    content = [sorted(closure.digests.items()), sorted(list_versions(closure.imports).items())]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def find_closure(
    modules: Iterable[str], sources: Path = SOURCES, packages: tuple[str, ...] = PACKAGES, *, with_others: bool = False
) -> Closure:
    """Returns the code of modules; see ``hash_code`` for the arguments.

    Of a package that is imported only on the way to its modules, functions don't count, as nobody calls them: those of
    ``imagepipe`` import everything.
    """

    def is_ours(name: str) -> bool:
        top = name.partition(".")[0]
        if top in packages:
            return True
        return with_others and _locate(name, sources) is not None and not is_installed(top, sources)

    closure = Closure()
    waiting = {(name, True) for name in modules if not is_ours(name) or _is_module(name, sources)}
    done = set()
    while waiting:
        name, with_functions = step = waiting.pop()
        done.add(step)
        if not is_ours(name):
            closure.imports |= _read_imports(name)
        elif module := _locate(name, sources):
            syntax = read_syntax(module.file, module.package, with_functions)
            closure.digests[module.name if with_functions else f"{module.name} on the way"] = syntax.digest
            for file in _find_data(module.file.parent, frozenset(syntax.strings)):
                closure.digests[str(file.relative_to(sources))] = _hash_file(file)
            closure.imports |= {name for name in syntax.imports if not is_ours(name)}
            named = (text for text in syntax.strings if _NAME.fullmatch(text) and _is_module(text, sources))
            following = {(name, True) for name in (*filter(is_ours, syntax.imports), *named)}
            if package := module.name.rpartition(".")[0]:
                following.add((package, False))
            waiting |= following - done
    return closure


def find_names(text: str) -> set[str]:
    """Returns the dotted names in a text that may be modules or functions of ours."""
    return set(_NAME.findall(text))


@functools.cache
def _locate(name: str, sources: Path) -> _Module | None:
    """Returns the module with a dotted name, or with a beginning of it; None if there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path, package = sources.joinpath(*parts[:end]), ".".join(parts[:end])
        if (file := path / "__init__.py").is_file():
            return _Module(package, file, package)
        if (file := path.with_suffix(".py")).is_file():
            return _Module(package, file, package.rpartition(".")[0])
    return None


def _is_module(name: str, sources: Path) -> bool:
    """Returns whether a text names a module, or something in it. A key such as ``trainer.epochs`` does not."""
    module = _locate(name, sources)
    return bool(module and ("." in module.name or module.name == name))


def _read_imports(name: str) -> frozenset[str]:
    """Returns what a module from elsewhere imports, and the module."""
    spec = find_spec(name)
    if not (spec and spec.origin and spec.origin.endswith(".py")):
        return frozenset({name})
    return read_syntax(Path(spec.origin), str(spec.parent)).imports | {name}


@functools.cache
def _find_data(folder: Path, texts: frozenset[str]) -> frozenset[Path]:
    """Returns the files in a module's folder that its strings name, and those that such a file names."""
    files: set[Path] = set()
    while new := set(_iterate_named(str(folder), {end for text in texts for end in _list_ends(text)})) - files:
        files |= new
        small = [file for file in new if file.stat().st_size <= _MAX_TEXT]
        texts = texts.union(*(_WORD.findall(file.read_text(encoding="utf-8", errors="replace")) for file in small))
    return frozenset(files)


def _list_ends(text: str) -> list[str]:
    """Returns the paths that a text may end with. Hidden files and folders are nobody's templates."""
    parts = [part for part in text.split("/") if part] if len(text) <= _MAX_NAME else []
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return [end for end in ends if "/." not in f"/{end}" and not end.endswith((".py", ".pyc"))]


def _iterate_named(folder: str, paths: set[str], depth: int = 0) -> Iterator[Path]:
    """Yields the files to which paths lead from a folder, or from folders in it to which others of them lead.

    Nothing is listed: beside a module of the user's may lie all of their images.
    """
    for path in paths:
        place = os.path.join(folder, path)  # noqa: PTH118 (pathlib takes a second for all strings of ours)
        if os.path.isfile(place):  # noqa: PTH113 (a text may be no path at all)
            yield Path(place)
        elif depth < _MAX_DEPTH and os.path.isdir(place):  # noqa: PTH112
            yield from _iterate_named(place, paths, depth + 1)


@functools.cache
def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
