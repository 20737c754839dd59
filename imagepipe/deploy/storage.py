"""Models on any file system: new versions are written whole, models on object stores are fetched to this machine."""

import atexit
import contextlib
import errno
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from imagepipe.base import filesystem
from imagepipe.base.errors import DeployError, ModelError
from imagepipe.base.in_use import hold_folder
from imagepipe.deploy.openvino_form import FOLDER, FORM
from imagepipe.deploy.saved_model import FINGERPRINT, GRAPH, read_labels
from imagepipe.deploy.signing import SIGNATURE, is_signed, sign_model
from imagepipe.deploy.versions import ROLLED_BACK, SHADOW, is_version
from imagepipe.deploy.versions import find_model as find_local_model

LAYOUTS = ("", "{version}")
"""Where in a version's folder its SavedModel may be: right in it, or in a folder called as the version, for KServe."""

_PLACES = (SHADOW, "", ROLLED_BACK)  # of a model's versions in its folder, in the order in which one comes to them

REMOVED = ".removed-"
"""Start of the name of a version's folder that is being removed."""


def list_versions(folder: str) -> list[str]:
    """Returns the names of the version folders in a folder, oldest first; none if it doesn't exist."""
    return sorted((name for name in filesystem.list_folder(folder) if is_version(name)), key=int)


def list_complete_versions(folder: str) -> list[str]:
    """Returns the names of the versions that have a graph, oldest first: what lacks one is on its way, or was killed.

    Who wants the newest only asks ``find_newest_version``, which lists no files.
    """
    versions = list_versions(folder)
    if not versions or not filesystem.is_uri(folder):
        return [version for version in versions if is_complete(folder, version)]
    folder = folder.rstrip("/")
    paths = {path for path, _ in filesystem.walk(folder)}  # in one request, instead of one for each version
    return [version for version in versions if f"{folder}/{version}/{GRAPH}" in paths]


def find_newest_version(folder: str, layouts: Sequence[str] = ("",)) -> str | None:
    """Returns the name of the newest complete version, see ``is_complete``; None if there is none."""
    newest_first = reversed(list_versions(folder))
    return next((version for version in newest_first if is_complete(folder, version, layouts)), None)


def is_complete(folder: str, version: str, layouts: Sequence[str] = ("",)) -> bool:
    """Returns whether a version has a graph, which comes last.

    Args:
        folder: the folder of the versions.
        version: its name.
        layouts: where in the version's folder the SavedModel may be, each as ``inner`` of ``add_version``.
    """
    folders = (_join(folder.rstrip("/"), version, inner.format(version=version)) for inner in layouts)
    return any(filesystem.size(f"{model}/{GRAPH}") is not None for model in folders)


def find_model(path: str) -> str:
    """Finds the SavedModel that a path or URI stands for, see ``versions.find_model``; absolute.

    Raises:
        ModelError: if it is none.
    """
    path = filesystem.absolute(path)
    if not filesystem.is_uri(path):
        return str(find_local_model(Path(path)))
    if filesystem.size(f"{path}/{GRAPH}") is not None:
        return path
    if newest := find_newest_version(path, LAYOUTS) or max(list_versions(path), key=int, default=None):
        return find_model(f"{path}/{newest}")
    raise ModelError(f"{path} is neither a SavedModel nor a folder of its versions (serving/NAME)")


def read_fingerprint(model: str) -> bytes:
    """Returns the bytes that tell a model, in all its forms, from others; b'' if it has none, or isn't complete."""
    fingerprint = _read_if_there(f"{model}/{FINGERPRINT}")
    if not fingerprint or filesystem.size(f"{model}/{GRAPH}") is None:  # which comes last
        return b""
    return fingerprint + _read_if_there(f"{model}/{FOLDER}/{FORM}")


def _read_if_there(path: str) -> bytes:
    try:
        return filesystem.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def is_same_model(one: str, other: str) -> bool:
    """Returns whether two folders hold copies of one SavedModel; False if either has no fingerprint."""
    fingerprint = read_fingerprint(one)
    return bool(fingerprint) and read_fingerprint(other) == fingerprint


def is_deployed(model: str, version: str, key: str | None) -> bool:
    """Returns whether the folder of a version holds a copy of a model, signed with a key if one is given."""
    return is_same_model(model, version) and (key is None or is_signed(version, key))


def add_version(model: str, folder: str, inner: str = "", place: str = "", key: str | None = None) -> str:
    """Copies a SavedModel into a new version folder.

    On this machine the folder appears at once and whole: the copy is written under another name. An object store has no
    such thing; there the file without which a folder is no SavedModel comes last.

    Args:
        model: the SavedModel's folder.
        folder: the folder of the versions; created if missing.
        inner: where in the version folder the SavedModel goes, if not right into it; ``{version}`` is its name.
        place: the folder below it that the version goes into, such as SHADOW; right into it by default.
        key: file with the private key that signs the version before it can be seen; None for no signature.

    Returns:
        The version: seconds since 1970, or one more than the last version, be it in shadow or rolled back, if that is
        later, as a server does not load a number again that it has had; on this machine the next one that no other
        process is writing, or has written meanwhile. If the newest complete version in ``place`` is this very model
        already, and signed if it has to be, nothing is copied, and that version is returned.

    Raises:
        ModelError: if it can't be written there, or can't be signed.
        ConfigError: if the key can't be used.
    """
    try:
        root = _join(folder, place)
        newest = find_newest_version(root, [inner])
        if newest and is_deployed(model, _join(root, newest, inner.format(version=newest)), key):
            return newest
        taken = [int(version) for name in _PLACES for version in list_versions(_join(folder, name))]
        number = max(int(time.time()), max(taken, default=0) + 1)
        if filesystem.is_uri(folder):
            version = str(number)
            _copy_signed(model, _join(root, version, inner.format(version=version)), key)
        else:
            version = _reserve_version(Path(folder), number)
            partial = Path(folder, f"{filesystem.PARTIAL}{version}")
            with _delete_on_failure(partial):
                with hold_folder(partial):
                    _copy_signed(model, _join(str(partial), inner.format(version=version)), key)
                filesystem.rename(str(partial), f"{root}/{version}")
    except OSError as error:
        raise ModelError(f"{folder} can't be written: {error.strerror or error}") from error
    return version


@contextlib.contextmanager
def _delete_on_failure(folder: Path) -> Iterator[None]:
    """Deletes a folder that is being written if that fails or is interrupted: a disk that is full would stay so.

    It is for folders that nobody else writes into. In a store nothing reserves a version: what is there may be of
    another push.
    """
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # the first error is the one to report
        raise


def _reserve_version(folder: Path, number: int) -> str:
    """Makes the folder that a version is written in, which nobody else has; returns the version, ``number`` or later.

    Leftovers of a copy that was killed keep their number until `imagepipe clean`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        partial = folder / f"{filesystem.PARTIAL}{number}"
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
            if not any((folder / place / str(number)).exists() for place in _PLACES):  # nobody else can make it now
                return str(number)
            partial.rmdir()
        number += 1


def move_model(model: str, target: str) -> None:
    """Moves a SavedModel's folder so that no reader sees a part of it.

    An object store renames file by file, if it renames at all: there the graph comes last and goes first.

    Args:
        model: the SavedModel's folder.
        target: its new folder. On this machine it may not exist: what is there may have been moved by another process.

    Raises:
        DeployError: if it can't be moved, such as when another process has moved it.
    """
    try:
        if not filesystem.is_uri(model):
            filesystem.rename(model, target)
            return
        _copy(model, target)
        filesystem.delete(f"{model}/{GRAPH}")
        filesystem.delete_folder(model)
    except OSError as error:
        was_moved = isinstance(error, FileNotFoundError | FileExistsError) or error.errno == errno.ENOTEMPTY
        hint = ". Another process may have moved it: `imagepipe status` shows what is where" if was_moved else ""
        raise DeployError(f"{model} can't be moved to {target}: {error.strerror or error}{hint}") from error


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _copy_signed(source: str, target: str, key: str | None) -> None:
    """Copies a SavedModel's folder, with a new signature first if there is a key: no reader sees it without."""
    if key is None:
        _copy(source, target)
        return
    local = fetch_folder(source)
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder, SIGNATURE)
        sign_model(local, signature, key)
        filesystem.copy(str(signature), f"{target}/{SIGNATURE}")
    _copy(str(local), target, omitted=SIGNATURE)


def _copy(source: str, target: str, omitted: str = "") -> None:
    """Copies a SavedModel's folder, the graph last, without the file called ``omitted``."""
    source = source.rstrip("/")
    graph = f"{source}/{GRAPH}"
    for path, _ in filesystem.walk(source):
        if path not in (graph, f"{source}/{omitted}"):
            filesystem.copy(path, target + path.removeprefix(source))
    filesystem.copy(graph, f"{target}/{GRAPH}")


def fetch_folder(model: str) -> Path:
    """Returns a SavedModel, or a folder of its versions, on this machine: itself, or a copy.

    The copy lives as long as the process.

    Raises:
        ModelError: if it can't be read.
    """
    if not filesystem.is_uri(model):
        return Path(model)
    copy = _create_temporary_folder() / PurePosixPath(model).name
    fetch(model.rstrip("/"), copy)
    return copy


def fetch_newest(model: str) -> Path:
    """Returns a SavedModel, or a folder of its versions, on this machine: itself, or a copy, of versions of the newest.

    The copy lives as long as the process.

    Raises:
        ModelError: if there is no model, or it can't be read.
    """
    if not filesystem.is_uri(model):
        return Path(model)
    model = filesystem.absolute(model)
    newest = find_model(model)
    copy = _create_temporary_folder() / PurePosixPath(model).name
    fetch(newest, copy / newest.removeprefix(model).strip("/"))
    return copy


def fetch_assets(model: str) -> Path:
    """Returns a folder on this machine with a SavedModel's ``assets/``: itself, or a copy, see ``fetch_model``.

    ``deploy.saved_model`` reads labels and task from it.

    Raises:
        ModelError: if they can't be read.
    """
    if not filesystem.is_uri(model):
        return Path(model)
    copy = _create_temporary_folder()
    fetch(f"{model}/assets", copy / "assets")
    return copy


def read_common_labels(models: Sequence[str]) -> list[str]:
    """Returns the names of the outputs of SavedModels; none if they don't all have the same.

    Raises:
        ModelError: if they can't be read.
    """
    names, *others = [read_labels(fetch_assets(model)) for model in models]
    return names if all(other == names for other in others) else []


def _create_temporary_folder() -> Path:
    """Returns a folder that lives as long as the process."""
    folder = tempfile.mkdtemp(prefix="imagepipe-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def fetch(root: str, copy: Path) -> None:
    """Copies all that lies below a URI into a folder on this machine.

    Raises:
        ModelError: if there is nothing, or it can't be read.
    """
    try:
        for path, _ in filesystem.walk(root):
            name = PurePosixPath(path.removeprefix(root).strip("/"))
            if ".." in name.parts:  # an object may be called so, and must not be written beside the copy
                raise ModelError(f"{root} can't be fetched: {name} leads out of it")
            filesystem.copy(path, str(copy / name))
    except OSError as error:
        raise ModelError(f"{root} can't be fetched: {error}") from error
    if not copy.exists():
        raise ModelError(f"{root}: there is nothing")
