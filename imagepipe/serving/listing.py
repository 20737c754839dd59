"""The inputs that a user names, as ``imagepipe ingest`` takes them: images, folders, patterns, manifests, archives.

Also exports of annotations, and files of requests. A row of a manifest is an input of its own: one photo may be asked
about with several values.
"""

import glob
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, ModelError
from imagepipe.base.features import MISSING_NUMBERS, restore_whole
from imagepipe.base.folders import describe_passed_over, explain_passing_over, list_files
from imagepipe.base.kinds import SUFFIXES
from imagepipe.base.on_disk import DiskCounter
from imagepipe.base.patterns import expand_pattern, has_braces
from imagepipe.base.progress import print_note
from imagepipe.deploy.saved_model import read_inputs
from imagepipe.ingest.annotations import read_named_images
from imagepipe.ingest.archives import Member, is_archive, list_members
from imagepipe.ingest.manifests import is_manifest, locate_image, read_table
from imagepipe.ingest.parquet_images import holds_images, read_questions
from imagepipe.ingest.parts import Part
from imagepipe.ingest.rows import infer_type, widen
from imagepipe.ingest.sources import list_containers
from imagepipe.ingest.webdataset import are_samples, read_samples
from imagepipe.serving.request_files import holds_requests, is_request_file

MAX_COLUMNS = 1000
"""Maximum number of columns that are named as passed over: each row of a stranger's JSON lines may have others."""

_EXPORT = ".json"
_IN_FOLDERS = "tables, exports or files of requests in folders (name them by themselves)"
_REPLACED = "in archives, replaced by a later member of the same name"
_FOR_TRAINING = ("label", "split")  # columns of a manifest that no model asks for
_IMAGES = tuple(f".{suffix}" for suffix in SUFFIXES)
_FILES_OF_HEAD = 100  # by which a folder of a million photos is known as one without listing them all
_TYPES = {"bytes": "string", "int64": "int64", "float": "float32"}


class Item(NamedTuple):
    """One input: an image, a row of a manifest, an image that an export names, or a file of requests.

    Attributes:
        path: of the image or the file of requests, or its URI; of an archive's member, the archive's before it.
        id: the caller's name for the image: its path as the user gave it, or the column ``metadata``.
        key: by which a later run knows it again: the absolute path; or the manifest's, and a hash of the row.
        problem: why it can't be asked about; None if it can.
        line: of the manifest, or the image's place in an export, from 1; None for others.
        side: side features as the manifest has them.
        kept: further columns of the manifest.
        part: where the image lies, if it is a part of a larger file.
    """

    path: str
    id: str
    key: str
    problem: str | None = None
    line: int | None = None
    side: Mapping[str, Any] = {}
    kept: Mapping[str, Any] = {}
    part: Part | None = None

    @property
    def is_request_file(self) -> bool:
        """Whether it holds any number of requests."""
        return self.line is None and self.part is None and not self.problem and is_request_file(self.path)


@dataclass
class Listing:
    """Inputs, and what else was there.

    Attributes:
        items: the inputs, in the order of the names.
        passed_over: files in folders that are no input, by why.
        columns: of manifests and files of requests, that nothing asks for.
        folder: for what has to be unpacked; by default a temporary one, which goes with the listing.
    """

    items: list[Item] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    folder: str = ""
    _temporary: list[tempfile.TemporaryDirectory] = field(default_factory=list)

    @property
    def staging(self) -> str:
        """The folder for what has to be unpacked."""
        if not self.folder:
            self._temporary.append(tempfile.TemporaryDirectory(prefix="imagepipe-"))
            self.folder = self._temporary[0].name
        return self.folder


def describe_omissions(passed_over: Mapping[str, int], columns: Collection[str]) -> str:
    """Returns what is no input, or was not asked with, as text; "" if there is nothing of that."""
    parts = [describe_passed_over(passed_over)] if any(passed_over.values()) else []
    if columns:
        parts.append(f"columns that the model does not take: {', '.join(columns)}")
    return "; ".join(parts)


def list_for_model(model: Path, names: Iterable[str], keep: bool = False) -> Listing:
    """Lists what names stand for, with the side features that a model takes; see ``list_inputs``."""
    return list_inputs(names, read_side_features(str(model)), keep)


def read_side_features(model: str) -> dict[str, str]:
    """Returns the types of the side features that a SavedModel, in a folder by path or URI, takes, by name."""
    return {name: type_ for name, type_ in read_inputs(model).items() if name not in ("input", "metadata")}


def list_inputs(names: Iterable[str], columns: Collection[str] | None = None, keep: bool = False) -> Listing:
    """Lists what names stand for; see ``stream_inputs``."""
    listing = Listing()
    for name in names:
        listing.items += stream_inputs(name, listing, columns, keep)
    return listing


def stream_inputs(
    name: str, listing: Listing, columns: Collection[str] | None = None, keep: bool = False
) -> Iterator[Item]:
    """Yields the inputs that a name stands for, in memory that doesn't grow with their number.

    That holds for folders and manifests; of a pattern the names are held, of an archive what it says of its members.

    Args:
        name: a path, URI or pattern. A name that exists is a path, even with a ``[`` in it.
        listing: gets what else was there, as it goes on.
        columns: the side features that the model takes; None for all columns of manifests but label and split.
        keep: whether the items of manifests have the further columns too.

    Yields:
        The inputs. A file that doesn't exist is one of them, for its reader to report.

    Raises:
        ModelError: if the name stands for no input; IngestError: if a manifest lacks a column, or can't be read, or a
            file that a range in braces names is missing.
    """
    is_empty = True
    for path in _expand(name):
        for item in _read_path(path, listing, columns, keep):
            is_empty = False
            yield item
    if is_empty:
        passed_over = describe_passed_over(listing.passed_over)
        raise ModelError(f"{name}: no image there" + (f"; passed over: {passed_over}" if passed_over else ""))


def check_inputs(name: str, columns: Collection[str], keep: bool) -> None:
    """Checks that a name stands for an input, without listing all of a folder; see ``stream_inputs``.

    Raises:
        ModelError, IngestError: as ``stream_inputs``.
    """
    if not _has_image(name):
        next(stream_inputs(name, Listing(), columns, keep))


def _has_image(folder: str) -> bool:
    """Returns whether a file right in a local folder is an input; False as well if only a listing can tell."""
    if filesystem.is_uri(folder):  # listed page by page, of which one is enough
        return False
    with suppress(OSError), os.scandir(folder) as entries:  # not sorted, as a listing is
        return any(
            entry.is_file() and not explain_passing_over(entry.name) and not _is_named_by_itself(entry.name)
            for entry in entries
        )
    return False


def _expand(name: str) -> list[str]:
    if filesystem.exists(name):
        return [name]
    if has_braces(name):
        return expand_pattern(name)
    return _match(name) if glob.has_magic(name) else [name]


def _match(pattern: str) -> list[str]:
    """Returns the paths that match, but of a folder and what lies in it only one: each image is an input once."""
    pattern = re.sub(r"(^|/)\*\*/$", r"\1**", pattern)  # folders: to a store, without the one at the top
    paths = filesystem.glob(pattern)
    if "**" not in pattern:  # they lie in folders of one depth
        return paths
    paths = list(dict.fromkeys(path.rstrip("/") for path in paths))
    if re.search(r"(^|/)\*\*(/\*)?$", pattern):  # all that is in a folder matches as well
        folders = {path.rpartition("/")[0] for path in paths}
        return [path for path in paths if path not in folders]
    matches = set(paths)
    return [path for path in paths if matches.isdisjoint(_list_parents(path))]


def _list_parents(path: str) -> list[str]:
    steps = path.split("/")
    return ["/".join(steps[:count]) for count in range(1, len(steps))]


def _read_path(path: str, listing: Listing, columns: Collection[str] | None, keep: bool) -> Iterator[Item]:
    if filesystem.is_folder(path):
        if shards := _list_shards(listing, path):
            return chain.from_iterable(_read_path(shard, listing, columns, keep) for shard in shards)
        return _read_folder(listing, path)
    if not filesystem.is_uri(path) and Path(path).exists() and not Path(path).is_file():  # a pipe may never be written
        return iter([_make_item(path, "not an ordinary file")])
    if is_archive(path) and filesystem.exists(path):
        return _read_archive(listing, path)
    if path.lower().endswith(".parquet") and filesystem.exists(path) and holds_images(path):
        return _read_parquet(listing, path, columns, keep)
    if is_manifest(path) and not holds_requests(path):
        return _read_manifest(listing, path, columns, keep)
    if path.lower().endswith(_EXPORT) and filesystem.exists(path):
        return _read_export(path)
    return iter([_make_item(path)])


def _make_item(path: str, problem: str | None = None) -> Item:
    # Whoever reads it may be a process in another folder.
    absolute = filesystem.absolute(path)
    return Item(absolute, path, absolute, problem)


def _list_shards(listing: Listing, folder: str) -> list[str]:
    """Returns the archives, or Parquet files, that a folder has in place of images, as ``ingest`` finds them."""
    names: list[str] = []
    if filesystem.is_uri(folder):
        names = [path for path, _ in islice(filesystem.walk(folder), _FILES_OF_HEAD)]
    else:
        with suppress(OSError), os.scandir(folder) as entries:  # not sorted, as a listing is
            names = [entry.name for entry in islice(entries, _FILES_OF_HEAD)]
    if any(name.lower().endswith(_IMAGES) for name in names):
        return []
    beside = Counter[str]()
    shards = [path for path in list_containers(filesystem.absolute(folder), beside) if not path.endswith(_EXPORT)]
    folders = {path.rpartition("/")[0] for path in shards}
    if any(name.lower().endswith(_IMAGES) for place in folders for name in filesystem.list_folder(place)):
        return []
    listing.passed_over += beside
    return shards


def _read_folder(listing: Listing, folder: str) -> Iterator[Item]:
    for path, problem in list_files(folder, listing.passed_over):
        if _is_named_by_itself(path):
            listing.passed_over[_IN_FOLDERS] += 1
        else:
            yield _make_item(path, problem)


def _is_named_by_itself(path: str) -> bool:
    return is_manifest(path) or is_request_file(path) or path.lower().endswith(_EXPORT)


def _read_archive(listing: Listing, archive: str) -> Iterator[Item]:
    source = filesystem.absolute(archive)
    members: dict[str, Member] = {}
    for member in list_members(source, listing.staging, listing.passed_over):
        if member.path in members:
            listing.passed_over[_REPLACED] += 1  # as it is where an archive is unpacked
        members[member.path] = member
    if are_samples(members.values()):  # whose images have files of text beside them
        entries = ((member.path, member.part, reason) for member, _, reason in read_samples(members.values()))
    else:
        entries = ((member.path, member.part, member.reason) for member in members.values())
    for name, part, problem in entries:
        yield Item(f"{source}/{name}", f"{archive}/{name}", f"{source}#{name}", problem, part=part)


def _read_parquet(listing: Listing, table: str, columns: Collection[str] | None, keep: bool) -> Iterator[Item]:
    source = filesystem.absolute(table)
    copies = DiskCounter()
    for row in read_questions(source, listing.staging, sorted(columns or ())):
        key = _make_key(source, {**row.cells, "path": row.path or row.number}, copies)
        id_ = row.cells.pop("metadata", None)
        side, kept = _divide(listing, row.cells, columns, keep)
        name = _choose_id(id_, row.path or f"{table}/{row.number}")
        problem = row.reason and f"line {row.number}: {row.reason}"
        yield Item(f"{source}/{row.number}", name, key, problem, row.number, side, kept, row.at)


def _make_key(source: str, cells: Mapping[str, Any], copies: DiskCounter) -> str:
    """Returns the key of a row by its content, wherever in the table it stands; ``copies`` tells equal ones apart."""
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True, default=str).encode()).hexdigest()[:32]
    count = copies.add(digest)
    return f"{source}#{digest}" + (f"-{count}" if count > 1 else "")


def _divide(
    listing: Listing, cells: Mapping[str, Any], columns: Collection[str] | None, keep: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the cells of a row that are asked with, and those that are kept; others are noted as passed over."""
    side: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in cells.items():
        is_asked = name not in _FOR_TRAINING if columns is None else name in columns
        (side if is_asked else others)[name] = value
    if not keep and len(listing.columns) < MAX_COLUMNS:
        listing.columns |= dict.fromkeys(others)
    return side, others if keep else {}


def _read_manifest(listing: Listing, manifest: str, columns: Collection[str] | None, keep: bool) -> Iterator[Item]:
    source = filesystem.absolute(manifest)
    copies = DiskCounter()

    def pass_over(column: str) -> None:
        if len(listing.columns) < MAX_COLUMNS:
            listing.columns[column] = None

    needed = ("path", *sorted(columns or ()))
    # Without a model that says what it takes, all columns are asked with.
    for line, cells in read_table(source, needed, print_note, None if columns is None else pass_over):
        place = f"{manifest}, line {line}"
        if isinstance(cells, str):
            yield Item(source, f"{manifest}:{line}", f"{source}#{line}", f"{place}: {cells}", line)
            continue
        key = _make_key(source, cells, copies)
        path, id_ = cells.pop("path", None), cells.pop("metadata", None)
        problem = None if isinstance(path, str) and path else f"{place}: no path"
        side, kept = _divide(listing, cells, columns, keep)
        image = source if problem else locate_image(source, str(path))
        name = _choose_id(id_, str(path or f"{manifest}:{line}"))
        yield Item(image, name, key, problem, line, side, kept)


def _choose_id(given: Any, place: str) -> str:
    return place if given is None or given == "" else str(restore_whole(given))


def _read_export(export: str) -> Iterator[Item]:
    source = filesystem.absolute(export)
    copies = DiskCounter()
    try:
        for number, name, path, reason in read_named_images(source):
            key = _make_key(source, {"path": name}, copies)
            problem = reason and f"{export}, image {number}: {reason}"
            yield Item(path, name or f"{export}/{number}", key, problem, number)
    except IngestError as error:  # such as what a program writes beside photos, which a pattern takes with them
        yield _make_item(export, str(error))


def infer_types(items: Iterable[Item]) -> dict[str, str]:
    """Returns the narrowest type that holds all values of each side feature, where no model says its types.

    Whole numbers of which some are missing are floats, as in pandas.
    """
    types: dict[str, str] = {}
    lacking: set[str] = set()
    for item in items:
        for name, value in item.side.items():
            if value is None or (isinstance(value, str) and (not value or value in MISSING_NUMBERS)):
                lacking.add(name)
            elif isinstance(value, str | int | float):
                types[name] = widen(types.get(name, "int64"), infer_type(value))
    lacking = {name for name in lacking if types.get(name) == "int64"}
    return {name: "float32" if name in lacking else _TYPES[type_] for name, type_ in types.items()}
