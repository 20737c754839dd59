"""Exports of annotations: COCO's and Label Studio's JSON, as far as they say of which class an image is.

The images lie beside the file or below its folder. What it says of their place is a stranger's: no path leaves the
folder. COCO: https://cocodataset.org/#format-data; Label Studio: its "JSON" export.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.features import restore_whole
from imagepipe.base.kinds import SUFFIXES
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.ingest.json_items import read_items
from imagepipe.ingest.rows import Row, make_row, reject

_COCO = {"images", "annotations", "categories"}
_IMAGES = tuple(f".{suffix}" for suffix in SUFFIXES)
_Id = int | str


class NamedImage(NamedTuple):
    """An image that an export names, whatever it says of its class.

    Attributes:
        number: its place in the export, from 1.
        name: as the export has it; "" if it has none.
        path: absolute path or URI of the image, which need not be there; of the export, if the image can't be read.
        reason: why it can't be read, or None.
    """

    number: int
    name: str
    path: str
    reason: str | None


def read_annotations(
    path: str, task: TaskName, passed_over: Counter[str], start: str = "", split: str | None = None
) -> Iterator[Row]:
    """Reads the images and labels of an export, whichever it is.

    Args:
        path: an absolute path or URI.
        task: how labels are read.
        passed_over: is added to: annotations of images that are not listed, or of none.
        start: start of each image's metadata.
        split: of all images; None if it is to be drawn.

    Raises:
        IngestError: it is none of the two, or can't be read.
    """
    if task == "regression":
        raise IngestError(f"{path}: exports of annotations have classes, not numbers: give a manifest for regression.")
    for image, entry in _read_images(path, passed_over):
        row = _make_row(image, entry, task)
        yield row if row["reason"] else {**row, "metadata": f"{start}{row['metadata']}", "split": split}


def read_named_images(path: str) -> Iterator[NamedImage]:
    """Reads the images that an export names, labelled or not; see ``read_annotations``."""
    return (image for image, _ in _read_images(path, Counter()))


class _Entry(NamedTuple):
    """An entry of an export, which says of which classes an image is.

    Attributes:
        name: of the image; "" or blank if it has none.
        candidates: where the image may lie, see ``_Finder``; [""] if that can't be told.
        labels: its classes, sorted.
        reason: why these can't be used, or None.
        controls: of Label Studio, what annotators chose by, if it is more than one.
    """

    name: str
    candidates: list[str]
    labels: list[str]
    reason: str | None
    controls: Sequence[str] = ()


def _read_images(path: str, passed_over: Counter[str]) -> Iterator[tuple[NamedImage, _Entry]]:
    items = read_items(path)
    first = next(items, None)
    if first is None:
        raise IngestError(f"{path} lists no image.")
    finder = _Finder(path)
    items = chain([first], items)
    entries = _read_tasks(items) if first[0] == "" else _read_coco(finder, items, passed_over)
    for number, entry in enumerate(entries, start=1):
        yield _locate(finder, number, entry), entry


# --- COCO


def _read_coco(finder: "_Finder", items: Iterator[tuple[str, Any]], passed_over: Counter[str]) -> Iterator[_Entry]:
    """Reads the document to its end, as annotations and names may come after the images."""
    images: list[tuple[_Id | None, str]] = []
    annotated: dict[_Id, set[_Id]] = {}
    names: dict[_Id, set[str]] = {}
    keys = set()
    for key, item in items:
        keys.add(key)
        if key not in _COCO:
            continue
        values = item if isinstance(item, dict) else {}
        if key == "images":
            file = values.get("file_name")
            images.append((_read_id(values, "id"), file if isinstance(file, str) else ""))
        elif key == "categories" and (number := _read_id(values, "id")) is not None:
            name = _read_id(values, "name")
            names.setdefault(number, set()).update([] if name is None else [str(name)])
        elif key == "annotations":
            image, category = _read_id(values, "image_id"), _read_id(values, "category_id")
            if image is None or category is None:
                passed_over["annotations without an image or a category"] += 1
            else:
                annotated.setdefault(image, set()).add(category)
    if not any(file for _, file in images):
        raise IngestError(
            f"{finder.path} is neither COCO's JSON (with images, annotations, categories) nor Label Studio's (a list "
            f"of tasks): its keys are {list_names(sorted(keys))}."
        )
    files = dict(images)
    if lost := sum(image not in files for image in annotated):
        passed_over["annotated images that are not listed"] += lost
    shared = {image for image, file in images if file != files[image]}
    for image, file in images:
        labels, reason = [], None
        categories = sorted(annotated.get(image, ()), key=str) if image is not None else []
        if image is None or image in shared:
            reason = "image without an id" if image is None else f"its id is that of other images too: {image!r}"
        elif odd := [category for category in categories if len(names.get(category, ())) != 1]:
            named = " or ".join(sorted(names.get(odd[0], ())))
            what = f"has several names: {odd[0]!r} is {named}" if named else f"has no name in the file: {odd[0]!r}"
            reason = f"its category {what}"
        else:
            labels = sorted({name for category in categories for name in names[category]})
        yield _Entry(file, finder.list_places(file), labels, reason)


def _read_id(item: dict[str, Any], key: str) -> _Id | None:
    value = restore_whole(item.get(key))
    return value if isinstance(value, int | str) else None


# --- Label Studio


def _read_tasks(items: Iterator[tuple[str, Any]]) -> Iterator[_Entry]:
    for _, item in items:
        name, candidates, labels = "", [""], list[str]()
        controls: list[str] = []
        reason: str | None = "not a task with an image under data, and annotations"
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            if "data" not in item and _list_images(item):
                reason = 'of an export as "JSON-MIN": export as "JSON"'
            data = item["data"]
            (image,) = [data["image"]] if "image" in data else _list_images(data)
            candidates = _list_places(image)
            name = image
            answers = _list_answers(item)
            controls = _list_controls(item)
            listed = "; ".join("|".join(answer) for answer in sorted(answers))
            reason = f"annotators disagree: {listed[:200]}" if len(answers) > 1 else None
            labels = list(next(iter(answers), ()))
        yield _Entry(name, candidates, labels, reason, controls)


def _list_images(values: dict[str, Any]) -> list[str]:
    return [value for value in values.values() if isinstance(value, str) and value.lower().endswith(_IMAGES)]


def _list_controls(item: dict[str, Any]) -> list[str]:
    """Returns the names of the controls by which annotators chose, if there are several."""
    results = [result for annotation in item.get("annotations") or [] for result in annotation["result"]]
    names = {str(result.get("from_name")) for result in results if result.get("type") == "choices"}
    return sorted(names) if len(names) > 1 else []


def _list_answers(item: dict[str, Any]) -> set[tuple[str, ...]]:
    """Returns the different answers of a task's annotators, each its choices; of cancelled ones and drafts none."""
    answers = set()
    for annotation in item.get("annotations") or item.get("completions") or []:
        if annotation.get("was_cancelled"):
            continue
        results = [result for result in annotation["result"] if result.get("type") == "choices"]
        if choices := sorted({str(choice) for result in results for choice in result["value"]["choices"]}):
            answers.add(tuple(choices))
    return answers


def _list_places(image: str) -> list[str]:
    """Returns where an image may lie below the folder, by how Label Studio names it."""
    parts = urlsplit(image)
    if parts.path.endswith("/data/local-files/"):  # below a folder that the server knows: the export may lie deeper
        return _list_ends(parse_qs(parts.query)["d"][0])
    if parts.path.startswith("/data/upload/"):  # PROJECT/8 hexadecimal digits-NAME
        stored = parts.path.removeprefix("/data/")
        name = stored.rpartition("/")[2]
        return [*_list_ends(stored), f"images/{name}", name.partition("-")[2] or name]
    return [image]


def _list_ends(path: str) -> list[str]:
    steps = path.split("/", _MAX_STEPS)
    return ["/".join(steps[at:]) for at in range(len(steps))]


# --- both


_MAX_STEPS = 32  # folders of a path, of which each may be the first below the export
_FOLDERS = 1000  # of which it is kept whether they are there


class _Finder:
    """Finds images below the folder of an export, without leaving it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder, _, name = path.rpartition("/")
        is_stored = filesystem.is_uri(path)
        self._bucket = "/".join(path.split("/", 3)[:3]) + "/" if is_stored else "\0"  # such as s3://photos/; or none
        self._may_hold = lru_cache(_FOLDERS)(_may_hold)
        self._others = ["images"]
        if self._folder.endswith("/annotations"):  # COCO's own instances_val2017.json, beside val2017/
            self._folder = self._folder.rpartition("/")[0]
            self._others.append(name.rpartition("_")[2].partition(".")[0])

    def list_places(self, name: str) -> list[str]:
        """Returns where an image may lie, by its name in COCO's JSON."""
        return [name, *(f"{folder}/{name}" for folder in self._others)]

    def find(self, candidates: list[str]) -> str | None:
        """Returns the path of the first candidate that is there, else the first; None if that one leaves the folder."""
        paths = [self._resolve(candidate) for candidate in candidates]
        if paths[0] is None or filesystem.is_uri(candidates[0]):
            return paths[0]
        return next(filter(self._holds, filter(None, paths)), paths[0])

    def _holds(self, path: str) -> bool:
        with contextlib.suppress(OSError):  # a name of thousands of characters, a folder that isn't ours to read
            return self._may_hold(path.rpartition("/")[0]) and filesystem.size(path) is not None
        return False

    def _resolve(self, place: str) -> str | None:
        if filesystem.is_uri(place):  # read with the user's rights, of which the export's author has no say
            return place if place.startswith(self._bucket) and ".." not in place.split("/") else None
        if place.startswith("/") or ".." in place.split("/") or "\0" in place:
            return None
        return filesystem.join(self._folder, place)


def _may_hold(folder: str) -> bool:
    """Returns whether an image may be in a folder: in one that is not there a store is not asked for each."""
    with contextlib.suppress(OSError):  # who may not list a store's folder may read what is in it
        return filesystem.exists(folder)
    return True


def _locate(finder: _Finder, number: int, entry: _Entry) -> NamedImage:
    name = entry.name
    if not name.strip():
        return NamedImage(number, "", finder.path, "no name of the image")
    path = finder.find(entry.candidates)
    if path:
        return NamedImage(number, name, path, None)
    if name.startswith(("http://", "https://")):
        problem = f"on the web, which is not read: download it ({name[:200]})"
    else:
        problem = f"its path leaves the folder of the file ({name[:200]})"
    return NamedImage(number, name, finder.path, problem)


def _make_row(image: NamedImage, entry: _Entry, task: TaskName) -> Row:
    reason, labels = entry.reason or image.reason, entry.labels
    if not reason and task == "classification" and len(labels) > 1:
        chosen = f", of the controls {list_names(entry.controls)}" if entry.controls else ""
        reason = f"several classes: {list_names(labels)}{chosen} (--task multilabel takes them)"
    if reason:
        return reject(image.path, image.number, reason)
    label = labels if task == "multilabel" else labels[0] if labels else None
    return make_row(image.path, image.number, image.name, label, {}, task)
