"""The installed distributions that imports come from, and their versions."""

import functools
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

# Libraries that leave the work to others, whose versions they hardly limit: TensorFlow runs their graphs, tfx-bsl reads
# their Examples.
_BELOW = {
    "tensorflow_data_validation": ("tfx_bsl",),
    "tensorflow_model_analysis": ("tensorflow", "tfx_bsl"),
    "tensorflow_transform": ("tensorflow", "tfx_bsl"),
}


def list_versions(imports: Iterable[str]) -> dict[str, str]:
    """Returns the version of each distribution that is imported.

    Of what these depend on in turn, only the libraries that do TensorFlow's work count: the requirements of TFX are
    most of an installation, and with them nearly every upgrade would count.

    Args:
        imports: dotted names of modules, or of something in them. Those of Python itself are left out.

    Returns:
        Versions by the distribution's name; '' by the name's first part if no distribution has it.
    """
    versions: dict[str, str] = {}
    path = tuple(sys.path)
    for name in imports:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        for module in (name, *_BELOW.get(top, ())):
            versions |= dict(map(_read_version, _find_owners(module, path))) or {top: ""}
    return versions


def is_installed(module: str, folder: Path) -> bool:
    """Returns whether an installer copied a module into a folder, so that its distribution's version tells its code.

    It lists what it copies, but not what lies in a project's own folder (``pip install -e``).
    """
    owners = _find_owners(module, tuple(sys.path))
    return any(owner.read_text("RECORD") and _find_folder(owner) == folder.resolve() for owner in owners)


def _find_folder(distribution: Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


@functools.cache
def _find_owners(name: str, path: tuple[str, ...]) -> list[Distribution]:
    """Returns the distributions that a dotted name comes from.

    Several distributions share a package such as ``google``: those that have the longest part of the name are meant.
    """
    package = name.rpartition(".")[0]
    if not package:
        # Of two distributions of one name, Python imports from the one whose folder comes first.
        return list({owner.name: owner for owner in reversed(_index_distributions(path).get(name, []))}.values())
    owners = _find_owners(package, path)
    if len(owners) < 2:
        return owners
    folder, file = f"\n{name.replace('.', '/')}/", f"\n{name.replace('.', '/')}.py"
    return [owner for owner in owners if folder in _read_record(owner) or file in _read_record(owner)] or owners


@functools.cache
def _index_distributions(path: tuple[str, ...]) -> dict[str, list[Distribution]]:
    """Returns the distributions in the folders of ``path`` by the modules and packages that they install."""
    index: dict[str, list[Distribution]] = {}
    for distribution in distributions(path=list(path)):
        heads = {line.partition("/")[0] for line in _read_record(distribution).split("\n")}
        for module in {head.partition(".")[0] for head in heads}:
            index.setdefault(module, []).append(distribution)
    return index


@functools.cache
def _read_record(distribution: Distribution) -> str:
    """Returns the list of a distribution's files, one after each line end; if its installer wrote none, its modules."""
    return "\n" + (distribution.read_text("RECORD") or distribution.read_text("top_level.txt") or "")


@functools.cache
def _read_version(distribution: Distribution) -> tuple[str, str]:
    return distribution.name, distribution.version
