"""Sources of labelled images: a folder of class folders, or a manifest.

Each is read as a stream of rows, one per file or manifest row, whether or not it can be used.
"""

import re
from collections import Counter
from collections.abc import Iterator

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.folders import list_files, list_subfolders
from imagepipe.base.names import TaskName
from imagepipe.base.splits import CLASSES, Layout, find_layout
from imagepipe.ingest.manifests import SUFFIXES, is_manifest, read_manifest
from imagepipe.ingest.rows import Row, make_row, reject


def find_splits(source: str, wanted: bool | None) -> Layout:
    """Finds out which folders of a source are splits and which are classes, see ``splits.find_layout``.

    Raises:
        IngestError: folders that are splits are wanted, and there are none.
    """
    if not filesystem.is_folder(source):
        if wanted:
            raise IngestError(f"{source} is no folder, so no folders of it are splits: leave out --splits folders.")
        return CLASSES
    return find_layout(lambda folder: list_subfolders(f"{source}/{folder}".rstrip("/")), wanted)


def read_rows(
    source: str, task: TaskName, passed_over: Counter[str], layout: Layout = CLASSES, group: str | None = None
) -> Iterator[Row]:
    """Returns the rows of a source, in an order that depends on its content only.

    Args:
        source: absolute path or URI, as ``filesystem.absolute`` returns it; a folder is one of class folders, a file
            is a manifest, judged by its name.
        task: how labels are read.
        passed_over: gets the files of a folder that don't count, see ``folders.list_files``.
        layout: which of its folders are splits.
        group: what tells an image's group: a column of a manifest, or a pattern on paths relative to a folder.

    Raises:
        IngestError: there is no such source, it is of no supported kind, or its columns or the pattern can't be used.
    """
    if filesystem.is_folder(source):
        return _read_folder(source, task, layout, passed_over, _compile_group(group))
    if filesystem.size(source) is None:
        raise IngestError(f"{source}: no such folder or file. Give a folder of class folders, or a manifest.")
    if not is_manifest(source):
        raise IngestError(f"{source} is neither a folder nor a manifest ({SUFFIXES}).")
    return read_manifest(source, task, group)


def _compile_group(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise IngestError(f"--group {pattern} is no regular expression: {error}.") from error
    if compiled.groups != 1:
        raise IngestError(
            f"--group {pattern}: of a folder it is a regular expression with one group in parentheses, the part of the "
            r"path that tells an image's group, such as (patient\d+)."
        )
    return compiled


def _read_folder(
    source: str, task: TaskName, layout: Layout, passed_over: Counter[str], pattern: re.Pattern[str] | None
) -> Iterator[Row]:
    for path, reason in list_files(source, passed_over):
        if reason:
            yield reject(path, None, reason)
            continue
        metadata = path[len(source) :].lstrip("/")
        folder, label = layout.read_path(metadata)
        match = pattern.search(metadata) if pattern else None
        if folder in layout.unlabelled:
            passed_over[f"without a label in {folder}, for imagepipe predict"] += 1
        elif layout.splits and folder is None and "/" in metadata:
            yield reject(path, None, f"in none of the folders that are splits ({', '.join(layout.splits)})")
        else:
            yield make_row(path, None, metadata, label, {}, task, split=folder, group=match and match[1])
