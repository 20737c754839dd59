"""Files with images in them, and what they hold: class folders, samples, rows of Parquet, annotations of images beside.

Each is read as rows, as folders and manifests are.
"""

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.names import TaskName
from imagepipe.base.splits import NAMES, TRAIN, Layout, find_layout
from imagepipe.ingest.annotations import read_annotations
from imagepipe.ingest.archives import Member, is_archive, list_members
from imagepipe.ingest.parquet_images import read_images
from imagepipe.ingest.parts import name_file
from imagepipe.ingest.rows import Row, compile_group, make_folder_row, make_row, reject
from imagepipe.ingest.webdataset import find_samples, read_samples

_GIVEN_BY_NAME = Layout(given_by="The files' names")
_MAX_DEPTH = 8  # of folders above an image that may be splits or classes
_MAX_NAMES, _NAME_COST = 2**27, 100  # bytes of the folders' names of an archive, in memory; and of what holds each


class Reading(NamedTuple):
    """How containers are read.

    Attributes:
        task: how labels are read.
        split_folders: True if folders in an archive, or names of files, must be splits; False if they are none; None to
            find out.
        passed_over: is added to: what isn't read, by why.
        staging: folder that is written to.
        group: what tells an image's group: a column of Parquet, or a pattern on paths in archives; None if nothing.
    """

    task: TaskName
    split_folders: bool | None
    passed_over: Counter[str]
    staging: str
    group: str | None


class _File(NamedTuple):
    """A container: its path, the start of its images' metadata, and the split that its name says."""

    path: str
    start: str
    split: str | None


def read_containers(source: str, paths: Sequence[str], reading: Reading) -> tuple[Layout, Iterator[Row]]:
    """Reads the rows of one file, or of several that are a source together.

    Args:
        source: what the user gave: the file, a folder or a pattern.
        paths: of the files, sorted; one or more.
        reading: how they are read.

    Returns:
        Which folders of the archive are splits, if it is one, and the rows.

    Raises:
        IngestError: a file is damaged or of no known kind, or splits are wanted, and there are none.
    """
    folder = source if filesystem.is_folder(source) else source.rpartition("/")[0]
    names = [path.removeprefix(f"{folder}/") for path in paths]
    splits = read_splits(names) if reading.split_folders is not False else {}
    files = [
        _File(path, "" if path == source else f"{name}/", splits.get(name))
        for path, name in zip(paths, names, strict=True)
    ]
    if len(files) == 1 and is_archive(paths[0]):
        return _read_archive(files[0], reading)
    if reading.split_folders and not splits:
        raise IngestError(f"{source}: neither folders nor the files' names are splits: leave out --splits folders.")
    return _GIVEN_BY_NAME, chain.from_iterable(_read_file(file, reading) for file in files)


def read_splits(names: Sequence[str]) -> dict[str, str]:
    """Returns which split each file is of by its name, as in ``val-0001.tar`` or ``train/0001.parquet``.

    A name that begins so, or lies in a folder that is called so, says it. In the midst of a name the word may mean
    something else (``crash-test-01.tar``), unless every name has one, and one of them is for training.
    """
    words = {name: [word for word in re.split(r"[-_./ ]", name.lower()) if word] for name in names}
    anywhere = {name: next((word for word in some if word in NAMES), "") for name, some in words.items()}
    if all(anywhere.values()) and any(NAMES[word] == TRAIN for word in anywhere.values()):
        return anywhere
    starts = {name: re.split(r"[-_. ]", name.lower().rpartition("/")[2])[0] for name in names}
    folders = {name: name.lower().rpartition("/")[0].rpartition("/")[2] for name in names}
    return {name: word for name in names for word in (starts[name], folders[name]) if word in NAMES}


def _read_file(file: _File, reading: Reading) -> Iterator[Row]:
    if is_archive(file.path):
        return _read_archive(file, reading)[1]
    if file.path.lower().endswith(".json"):
        if reading.group is not None:
            raise IngestError(f"{file.path}: exports of annotations have no groups: leave out --group.")
        return read_annotations(file.path, reading.task, reading.passed_over)
    return read_images(file.path, file.start, file.split, reading.task, reading.staging, reading.group)


# --- archives


def _read_archive(file: _File, reading: Reading) -> tuple[Layout, Iterator[Row]]:
    """Reads an archive of samples, or one of class folders, all of which are known before the first row is."""
    has_samples, members = find_samples(list_members(file.path, reading.staging, reading.passed_over))
    wanted = None if file.split else reading.split_folders
    if has_samples:
        if wanted:
            raise IngestError(f"{file.path} holds samples, so no folders of it are splits: leave out --splits folders.")
        return _GIVEN_BY_NAME, _make_sample_rows(file, reading, members)
    index = name_file(reading.staging)
    folders = _write_index(file.path, index, members)
    layout = find_layout(lambda folder: sorted(folders.get(folder, ())), wanted)
    if not layout.splits:
        layout = dataclasses.replace(layout, root=_find_root(folders), given_by=_GIVEN_BY_NAME.given_by)
    return layout, _make_folder_rows(file, index, layout, reading)


def _make_sample_rows(file: _File, reading: Reading, members: Iterable[Member]) -> Iterator[Row]:
    pattern = compile_group(reading.group) if reading.group else None
    for (name, part, _), label, reason in read_samples(members):
        place = f"{file.path}/{name}"
        if reason:
            yield reject(place, None, reason)
        else:
            match = pattern.search(name) if pattern else None
            group = match[1] if match else None
            yield make_row(
                place, None, f"{file.start}{name}", label, {}, reading.task, split=file.split, group=group, at=part
            )


def _write_index(path: str, index: str, members: Iterable[Member]) -> Mapping[str, set[str]]:
    """Writes members to a file, and returns the names of the folders in each folder, "" or ended by a slash."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    size = 0
    with filesystem.create(index) as file:
        for member in members:
            file.write(json.dumps(member).encode() + b"\n")
            folder = member.path.rpartition("/")[0]
            if member.reason or folder in seen:
                continue
            seen.add(folder)
            size += len(folder) + _NAME_COST
            if size > _MAX_NAMES:
                raise IngestError(f"{path} has {len(seen):,} folders, or more: unpack it, and give the folder.")
            above = ""
            for name in folder.split("/", _MAX_DEPTH)[:_MAX_DEPTH] if folder else ():
                folders[above].add(name)
                above += f"{name}/"
    return folders


def _find_root(folders: Mapping[str, set[str]]) -> str:
    """Returns the folder that holds the class folders: often an archive has a single one on top, named as itself."""
    root = ""
    while len(inside := folders.get(root, ())) == 1 and folders.get(below := f"{root}{next(iter(inside))}/"):
        root = below
    return root


def _make_folder_rows(file: _File, index: str, layout: Layout, reading: Reading) -> Iterator[Row]:
    pattern = compile_group(reading.group) if reading.group else None
    with filesystem.open_read(index) as lines:
        for name, part, reason in map(json.loads, lines):
            place = f"{file.path}/{name}"
            if reason:
                yield reject(place, None, reason)
                continue
            row = make_folder_row(
                place, name, layout, reading.task, reading.passed_over, split=file.split, group=pattern, at=part
            )
            if row:
                yield row if row["reason"] else {**row, "metadata": f"{file.start}{name}"}
