"""Files with images in them, and what they hold: class folders, samples, rows of Parquet, annotations of images beside.

Each is read as rows, as folders and manifests are.
"""

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import BinaryIO, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.folders import explain_passing_over
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.base.splits import CLASSES, NAMES, TRAIN, Layout, find_layout, list_split_words
from imagepipe.ingest.annotations import read_annotations
from imagepipe.ingest.archives import Member, is_archive, list_members
from imagepipe.ingest.parquet_images import read_images
from imagepipe.ingest.parts import ARCHIVES, name_file
from imagepipe.ingest.rows import Row, compile_group, make_folder_row, make_row, reject
from imagepipe.ingest.webdataset import are_samples, find_split, read_samples

_BY_NAMES, _BY_FOLDERS = Layout(given_by="The files' names"), Layout(given_by="Folders")
_UNNAMED = "among the images of an export, which does not name them"
_MEMBERS_IN_LINE = 500  # of an index: each line costs as much as a member
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
        group: what tells an image's group: a column of Parquet, or a pattern on paths in archives and names in
            exports; None if nothing.
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
    folder = source if filesystem.is_folder(source) else filesystem.split_pattern(source)[0]
    names = [path.removeprefix(f"{folder}/") for path in paths]
    splits = read_splits(names) if reading.split_folders is not False else {}
    files = [
        _File(path, "" if path == source else f"{name}/", splits.get(name))
        for path, name in zip(paths, names, strict=True)
    ]
    if reading.split_folders and not splits and not all(map(is_archive, paths)):
        raise IngestError(f"{source}: neither folders nor the files' names are splits: leave out --splits folders.")
    archives = _name_classes([_open_archive(file, reading) for file in files if is_archive(file.path)])
    tables = [file for file in files if file.path.lower().endswith(".parquet")]
    exports = [file for file in files if not is_archive(file.path) and file not in tables]
    rows = [
        *(_make_rows(archive, reading) for archive in archives),
        *(read_images(*file, reading.task, reading.staging, reading.group) for file in tables),
        _read_exports(exports, reading),
    ]
    if archives and len(files) == 1:
        layout = archives[0].layout
    else:  # a column may give them where neither names nor folders do
        layout = _BY_NAMES if splits else _BY_FOLDERS if archives else CLASSES
    return layout, chain.from_iterable(rows)


def read_splits(names: Sequence[str]) -> dict[str, str]:
    """Returns which split each file is of by its name, as in ``val-0001.tar`` or ``train/0001.parquet``.

    Numbers after the word don't count (COCO's ``instances_val2017.json``). A name that begins so, or lies in a folder
    that is called so, says it. In the midst of a name the word may mean something else (``crash-test-01.tar``), unless
    every name has one, and one of them is for training.
    """
    words = {name: [word for word in re.split(r"\d*[-_./ ]", name.lower()) if word] for name in names}
    anywhere = {name: next((word for word in some if word in NAMES), "") for name, some in words.items()}
    if all(anywhere.values()) and any(NAMES[word] == TRAIN for word in anywhere.values()):
        return anywhere
    starts = {name: re.split(r"\d*[-_. ]", name.lower().rpartition("/")[2])[0] for name in names}
    folders = {name: name.lower().rpartition("/")[0].rpartition("/")[2].rstrip("0123456789") for name in names}
    return {name: word for name in names for word in (starts[name], folders[name]) if word in NAMES}


def _read_exports(files: Sequence[_File], reading: Reading) -> Iterator[Row]:
    """Reads exports of annotations, and counts the files that lie among their images and that none of them names."""
    exports = {file.path for file in files}
    named, folders = set(), set()
    pattern = compile_group(reading.group) if reading.group else None
    for file in files:
        for row in read_annotations(file.path, reading.task, reading.passed_over, file.start, file.split):
            if pattern and (match := pattern.search(row["metadata"].removeprefix(file.start))):
                row = {**row, "group": match[1]}
            named.add(hash(row["path"]))  # which takes a third of the path's memory
            folders.add(row["path"].rpartition("/")[0])
            yield row
    for folder in folders:
        names = set(filesystem.list_folder(folder)).difference(filesystem.list_subfolders(folder))
        paths = {f"{folder}/{name}" for name in names} - exports
        unnamed = [path for path in paths if hash(path) not in named]
        if len(unnamed) < len(paths):  # else no image is there, and all may be of something else
            reading.passed_over.update(explain_passing_over(path.rpartition("/")[2]) or _UNNAMED for path in unnamed)


# --- archives


class _Archive(NamedTuple):
    """An archive whose members are known.

    Attributes:
        file: the archive.
        members: path of a file that lists its members.
        has_samples: whether these are samples.
        layout: which of its folders are splits and which are classes.
        chain: its folders from the top down, as long as each is the only one; more than one may follow.
        has_classes: whether its folders are splits, or more than one follow, which are classes.
    """

    file: _File
    members: str
    has_samples: bool
    layout: Layout
    chain: Sequence[str] = ()
    has_classes: bool = True


def _open_archive(file: _File, reading: Reading) -> _Archive:
    """Lists the members of an archive, all of which are known before the first row is."""
    index = name_file(reading.staging)
    folders = _write_index(file.path, index, list_members(file.path, reading.staging, reading.passed_over))
    wanted = None if file.split else reading.split_folders
    base = _BY_NAMES if file.split else _BY_FOLDERS
    if are_samples(_read_index(index)):
        if wanted:
            raise IngestError(
                f"{file.path} holds samples, which give their splits by folders, if any, without --splits folders: "
                "leave it out."
            )
        return _Archive(file, index, True, base)
    layout = find_layout(lambda folder: sorted(folders.get(folder, ())), wanted)
    if layout.splits:
        return _Archive(file, index, False, layout)
    names: list[str] = []
    while len(inside := folders.get(_join(names), ())) == 1:
        names += inside
    # The last of a chain is the class: often an archive has a single folder on top, named as itself.
    layout = dataclasses.replace(layout, root=_join(names if inside else names[:-1]), given_by=base.given_by)
    return _Archive(file, index, False, layout, names, bool(inside))


def _join(names: Sequence[str]) -> str:
    return "".join(f"{name}/" for name in names)


def _make_rows(archive: _Archive, reading: Reading) -> Iterator[Row]:
    return (_make_sample_rows if archive.has_samples else _make_folder_rows)(archive, reading)


def _make_sample_rows(archive: _Archive, reading: Reading) -> Iterator[Row]:
    file = archive.file
    pattern = compile_group(reading.group) if reading.group else None
    for (name, part, _), label, reason in read_samples(_read_index(archive.members)):
        place = f"{file.path}/{name}"
        if reason:
            yield reject(place, None, reason)
        else:
            match = pattern.search(name) if pattern else None
            group = match[1] if match else None
            split = (None if reading.split_folders is False else find_split(name)) or file.split
            yield make_row(
                place, None, f"{file.start}{name}", label, {}, reading.task, split=split, group=group, at=part
            )


def _write_index(path: str, index: str, members: Iterable[Member]) -> Mapping[str, set[str]]:
    """Writes members to a file, and returns the names of the folders in each folder, "" or ended by a slash."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    size = 0
    with filesystem.create(index) as file:
        for member in _write_lines(members, file):
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


def _write_lines(members: Iterable[Member], file: BinaryIO) -> Iterator[Member]:
    """Writes members, some hundred in one line of JSON, and yields them."""
    members = iter(members)
    while some := list(islice(members, _MEMBERS_IN_LINE)):
        file.write(json.dumps(some).encode() + b"\n")
        yield from some


def _read_index(index: str) -> Iterator[Member]:
    with filesystem.open_read(index) as lines:
        for line in lines:
            yield from map(Member._make, json.loads(line))


def _make_folder_rows(archive: _Archive, reading: Reading) -> Iterator[Row]:
    file = archive.file
    pattern = compile_group(reading.group) if reading.group else None
    for name, part, reason in _read_index(archive.members):
        place = f"{file.path}/{name}"
        if reason:
            yield reject(place, None, reason)
            continue
        row = make_folder_row(
            place, name, archive.layout, reading.task, reading.passed_over, split=file.split, group=pattern, at=part
        )
        if row:
            yield row if row["reason"] else {**row, "metadata": f"{file.start}{name}"}


# --- one archive per class


def _name_classes(archives: Sequence[_Archive]) -> Sequence[_Archive]:
    """Finds out what tells the class where no archive holds several: their folders, or the archives' own names.

    Of the folders it is the topmost that differ by more than numbers (``roses/2024/`` beside ``daisy/2023/``). Names
    that differ in numbers only number parts of one thing, and those of splits are no classes.
    """
    alone = [archive for archive in archives if not archive.has_classes]
    if len(alone) < 2 or len(alone) < len(archives):
        _report_loose(alone)
        return archives
    chains = [archive.chain for archive in archives]
    shared = min(map(len, chains))
    for depth in range(shared):
        if len(_spell({chain[depth] for chain in chains})) > 1:
            return [_read_as(archive, root=_join(archive.chain[:depth])) for archive in archives]
    if shared and len({chain[-1] for chain in chains}) > 1:
        return archives
    names = {archive.file.path: _cut_suffix(archive.file.path) for archive in archives}
    classes = sorted(set(names.values()))
    if 1 < len(classes) == len(_spell(classes)) and not any(map(list_split_words, classes)):
        print_note(f"Each archive was read as one class, by its name: {list_names(classes)}.")
        return [_read_as(archive, label=names[archive.file.path]) for archive in archives]
    _report_loose(alone)
    return archives


def _report_loose(archives: Sequence[_Archive]) -> None:
    """Says which of several archives hold images in no folder."""
    if loose := [archive.file.path for archive in archives if archive.file.start and not archive.chain]:
        print_note(
            "Images in no folder of an archive have no class, as the archives are not one per class, called as these "
            f"are: {list_names(loose)}. Pack the images of each class in a folder of its own, or in such an archive."
        )


def _read_as(archive: _Archive, root: str = "", label: str | None = None) -> _Archive:
    return archive._replace(layout=dataclasses.replace(archive.layout, root=root, label=label))


def _cut_suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return next(name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix))


def _spell(names: Iterable[str]) -> set[str]:
    """Returns the letters of names, without numbers and what separates words."""
    return {re.sub(r"[\W\d_]+", "", name).lower() for name in names}
