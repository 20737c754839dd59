"""The code that a piece of work runs, for the keys of caches: a cached result is right only for the code that made it.

The code of a module is the module itself and, at any depth, whatever of ours it imports or names:

- modules that it imports, inside functions too;
- modules and functions that a string names, as TFX, TFMA and ``python -m`` take them: ``trainer.run_fn.run_fn``;
- templates, styles and scripts in its folder that a string names;
- the packages from elsewhere that these modules import, by their versions.

It is read from syntax trees, so nothing is imported for it, and words don't count; see ``imagepipe.base.syntax``. Names
that are put together when the code runs are not seen.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from imagepipe.base.distributions import list_versions
from imagepipe.base.syntax import read_syntax

PACKAGES = ("components", "imagepipe", "pipeline", "trainer", "transform")
"""Our packages, as in pyproject.toml."""

SOURCES = Path(__file__).parents[2]
"""The folder of our packages."""

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


def hash_code(modules: Iterable[str], sources: Path = SOURCES, packages: tuple[str, ...] = PACKAGES) -> str:
    """Returns a hash of the code of modules, and of the versions of the packages that it imports.

    Args:
        modules: dotted names of modules, or of something in them. Of modules that are not ours, only what they import
            themselves counts.
        sources: the folder of our packages.
        packages: their names.

    Returns:
        16 hexadecimal digits.
    """
    closure = find_closure(modules, sources, packages)
    content = [sorted(closure.digests.items()), sorted(list_versions(closure.imports).items())]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def find_closure(modules: Iterable[str], sources: Path = SOURCES, packages: tuple[str, ...] = PACKAGES) -> Closure:
    """Returns the code of modules; see ``hash_code`` for the arguments.

    Of a package that is imported only on the way to its modules, functions don't count, as nobody calls them: those of
    ``imagepipe`` import everything.
    """

    def is_ours(name: str) -> bool:
        return name.partition(".")[0] in packages

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
            for file in _find_data(module, syntax.strings):
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


def _find_data(module: _Module, strings: Iterable[str]) -> Iterator[Path]:
    """Yields the files in a module's folder that its strings name, and those that such a file names."""
    texts = list(strings)
    rest = set(_list_data(module.file.parent))
    while named := {file for file in rest if any(file.name in text for text in texts)}:
        yield from named
        rest -= named
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in named]


@functools.cache
def _list_data(folder: Path) -> tuple[Path, ...]:
    """Returns the files in a folder that are no modules, and those in folders below that are no packages."""
    files: list[Path] = []
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            files.append(path)
        elif path.is_dir() and not (path / "__init__.py").exists():
            files += _list_data(path)
    return tuple(files)


@functools.cache
def _hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
