"""Sources of labelled images: a folder of class folders, or a manifest.

Each is read as a stream of rows, one per file or manifest row, whether or not it can be used.
"""

from collections import Counter
from collections.abc import Iterator

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.folders import list_files
from imagepipe.base.names import TaskName
from imagepipe.ingest.manifests import SUFFIXES, is_manifest, read_manifest
from imagepipe.ingest.rows import Row, make_row, reject


def read_rows(source: str, task: TaskName, passed_over: Counter[str]) -> Iterator[Row]:
    """Returns the rows of a source, in an order that depends on its content only.

    Args:
        source: absolute path or URI, as ``filesystem.absolute`` returns it; a folder is one of class folders, a file
            is a manifest, judged by its name.
        task: how labels are read.
        passed_over: gets the files of a folder that don't count, see ``folders.list_files``.

    Raises:
        IngestError: there is no such source, or it is of no supported kind, or its columns can't be used.
    """
    if filesystem.is_folder(source):
        return _read_folder(source, task, passed_over)
    if filesystem.size(source) is None:
        raise IngestError(f"{source}: no such folder or file. Give a folder of class folders, or a manifest.")
    if not is_manifest(source):
        raise IngestError(f"{source} is neither a folder nor a manifest ({SUFFIXES}).")
    return read_manifest(source, task)


def _read_folder(source: str, task: TaskName, passed_over: Counter[str]) -> Iterator[Row]:
    for path, reason in list_files(source, passed_over):
        yield reject(path, None, reason) if reason else _make_folder_row(source, path, task)


def _make_folder_row(source: str, path: str, task: TaskName) -> Row:
    metadata = path[len(source) :].lstrip("/")
    label = metadata.partition("/")[0] if "/" in metadata else None
    return make_row(path, None, metadata, label, {}, task)
