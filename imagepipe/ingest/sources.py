"""Sources of labelled images: a folder of class folders, a manifest, or files with images in them.

Each is read as a stream of rows, one per file or manifest row, whether or not it can be used.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.folders import explain_passing_over, list_files, list_subfolders
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.patterns import expand_pattern
from imagepipe.base.progress import print_note
from imagepipe.base.splits import CLASSES, NAMES, Layout, find_layout, guess_split
from imagepipe.ingest.manifests import SUFFIXES, is_manifest, read_manifest
from imagepipe.ingest.parts import ARCHIVES
from imagepipe.ingest.rows import Row, compile_group, make_folder_row, reject

Reader = Callable[[str], tuple[Layout, Iterator[Row]]]
"""Reads a source, given a folder to unpack into: which of its folders are splits, and its rows."""

_SHARDS = (*ARCHIVES, ".parquet")
_BESIDE = "beside archives or Parquet files"


def find_reader(
    source: str, task: TaskName, split_folders: bool | None, passed_over: Counter[str], group: str | None = None
) -> Reader:
    """Finds out what a source is.

    Args:
        source: absolute path or URI, as ``filesystem.absolute`` returns it: a folder; a manifest, an archive, Parquet
            or an export of annotations, judged by its name; or a pattern of such but manifests.
        task: how labels are read.
        split_folders: whether its folders are splits, see ``splits.find_layout``.
        passed_over: gets the files that don't count, see ``folders.list_files``.
        group: what tells an image's group: a column, or a pattern on paths relative to a folder or in an archive.

    Raises:
        IngestError: there is no such source, or it is of no supported kind, or its columns can't be used; or folders
            that are splits are wanted, and there are none.
    """
    if paths := list_containers(source, passed_over):
        if filesystem.is_folder(source) and paths[0].endswith(".json"):
            print_note(f"The labels are read from {list_names(paths)}.")
        from imagepipe.ingest.containers import Reading, read_containers  # not above: a folder does without

        return lambda staging: read_containers(source, paths, Reading(task, split_folders, passed_over, staging, group))
    layout = find_splits(source, split_folders)
    rows = read_rows(source, task, passed_over, layout, group)
    return lambda _: (layout, rows)


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
        return _read_folder(source, task, layout, passed_over, compile_group(group) if group else None)
    if filesystem.size(source) is None:
        raise IngestError(
            f"{source}: no such folder or file. Give a folder of class folders, a manifest, an archive or Parquet."
        )
    if not is_manifest(source):
        raise IngestError(
            f"{source} is neither a folder nor a manifest ({SUFFIXES}) nor a file with images in it (.tar, .tgz, .zip, "
            ".parquet, .json)."
        )
    return read_manifest(source, task, group)


def _read_folder(
    source: str, task: TaskName, layout: Layout, passed_over: Counter[str], pattern: re.Pattern[str] | None
) -> Iterator[Row]:
    for path, reason in list_files(source, passed_over):
        if reason:
            yield reject(path, None, reason)
            continue
        row = make_folder_row(path, path[len(source) :].lstrip("/"), layout, task, passed_over, group=pattern)
        if row:
            yield row


# --- files with images in them


def list_containers(source: str, passed_over: Counter[str]) -> list[str]:
    """Returns the files with images in them that are a source; none if it is a folder of images, or a manifest."""
    if filesystem.is_folder(source):
        return _list_shards(source, passed_over)
    name = source.lower()
    if filesystem.size(source) is None:
        if not name.endswith("*"):
            return expand_pattern(source) if name.endswith((*_SHARDS, ".json")) else []
        return _choose_shards(expand_pattern(source), passed_over)
    if name.endswith(".parquet"):
        from imagepipe.ingest.parquet_images import holds_images  # not above: PyArrow takes long to import

        return [source] if holds_images(source) else []
    return [source] if name.endswith((*_SHARDS, ".json")) else []


def _list_shards(folder: str, passed_over: Counter[str]) -> list[str]:
    """Returns the archives and Parquet files in a folder that has nothing else, or only in folders of shards."""
    folders = list_subfolders(folder)
    if exports := _list_exports(folder, folders):
        return exports
    places = _list_shard_folders(folder)
    if places is None and len(folders) == 1:
        # A configuration in a repository of Hugging Face's. Other files in there are images of a class.
        inner = f"{folder}/{folders[0]}"
        below = _list_shard_folders(inner)
        if below is not None and all(path.lower().endswith(_SHARDS) for path in _list_paths(inner)):
            places = [inner, *below]
    if places is None:
        return []  # there are class folders, whatever lies beside them
    return _choose_shards([path for place in (folder, *places) for path in _list_paths(place)], passed_over)


def _list_shard_folders(folder: str) -> list[str] | None:
    """Returns the folders in a folder, if all are named as splits are, or ``data``, and hold none; else None."""
    paths = {name: f"{folder}/{name}" for name in list_subfolders(folder)}
    are_all = all((name == "data" or guess_split(name)) and not list_subfolders(path) for name, path in paths.items())
    return list(paths.values()) if are_all else None


def _list_paths(folder: str) -> list[str]:
    """Returns the paths of the files in a folder that count."""
    folders = set(list_subfolders(folder))
    names = [name for name in filesystem.list_folder(folder) if name not in folders]
    return [f"{folder}/{name}" for name in names if not explain_passing_over(name)]


def _list_exports(folder: str, folders: list[str]) -> list[str]:
    """Returns the COCO files of a folder that is laid out as COCO's own data or as Roboflow's exports."""
    places = {"annotations": r"instances_.*\.json"} if "annotations" in folders else {}
    places |= {name: r"_annotations\.coco\.json" for name in folders if name.lower() in NAMES}
    return [
        f"{folder}/{place}/{name}"
        for place, pattern in places.items()
        for name in filesystem.list_folder(f"{folder}/{place}")
        if re.fullmatch(pattern, name)
    ]


def _choose_shards(paths: list[str], passed_over: Counter[str]) -> list[str]:
    shards = [path for path in paths if path.lower().endswith(_SHARDS)]
    if shards:
        passed_over[_BESIDE] += len(paths) - len(shards)
    return shards
