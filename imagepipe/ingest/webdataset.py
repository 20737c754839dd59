"""WebDataset: archives whose files lie together in samples, an image and its label under one name.

``0001.jpg`` and ``0001.cls`` are a sample: what comes before the first dot of the file's name is its key, what comes
after says what it is (webdataset's ``base_plus_ext``, https://github.com/webdataset/webdataset). The label is the text
of ``.cls``, else a value of ``.json`` that is called so, else the text of ``.txt``.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from imagepipe.base.images import BadImage
from imagepipe.base.kinds import SUFFIXES
from imagepipe.base.labels import list_names
from imagepipe.base.splits import NAMES
from imagepipe.ingest.archives import Member
from imagepipe.ingest.parts import read_part

_LABELS = ("cls", "json", "txt")
_NAMES = ("label", "labels", "cls", "class", "class_name", "category")  # in a sample's JSON
_MAX_LABEL = 2**20  # bytes of a file with a label


class Sample(NamedTuple):
    """An image and its label.

    Attributes:
        image: the image, or the first file of a sample that can't be used.
        label: as the sample has it: text, a number, or a list of these; None if it has none.
        reason: why it can't be used, or None.
    """

    image: Member
    label: Any
    reason: str | None


def are_samples(members: Iterable[Member]) -> bool:
    """Returns whether files are samples rather than images in class folders.

    The first image tells. Beside one in a folder, JSON and text may also be what a program says of the image: these are
    samples if the JSON has a label, and all images lie in one folder, or in folders named as splits.
    """
    home = None
    for key, files in _group(members):
        kinds = dict(files)
        image = next((member for kind, member in files if _is_image(kind)), None)
        if image is None:
            continue
        folder = key.rpartition("/")[0]
        if home is None:
            if "cls" in kinds or not folder:
                return not kinds.keys().isdisjoint(_LABELS)
            if "json" not in kinds or _read_label(image, {"json": kinds["json"]}).label is None:
                return False
            home = folder
        elif folder != home and not (find_split(key) and find_split(f"{home}/")):
            return False
    return home is not None


def find_split(path: str) -> str | None:
    """Returns the name of the folder that a file lies in, if it is that of a split."""
    name = path.rpartition("/")[0].rpartition("/")[2]
    return name if name.lower() in NAMES else None


def read_samples(members: Iterable[Member]) -> Iterator[Sample]:
    """Reads the samples of an archive, whose files lie next to each other."""
    for key, files in _group(members):
        images = [member for kind, member in files if _is_image(kind)]
        first = images[0] if images else files[0][1]
        if first.reason:
            yield Sample(first, None, first.reason)
        elif len(images) != 1:
            names = list_names([kind for kind, _ in files])
            yield Sample(first, None, f"sample without exactly one image: {key} has {len(images)} ({names})")
        else:
            yield _read_label(first, dict(files))


def _is_image(kind: str) -> bool:
    return kind.rpartition(".")[2] in SUFFIXES  # also of input.jpg


def _group(members: Iterable[Member]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Yields key and files of each sample, a file as its kind (such as ``jpg``) and itself."""
    for key, files in groupby(members, key=lambda member: _split(member.path)[0]):
        yield key, [(_split(member.path)[1], member) for member in files]


def _split(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    start, _, kind = name.partition(".")
    return f"{folder}{slash}{start}", kind.lower()


def _read_label(image: Member, files: dict[str, Member]) -> Sample:
    for kind in _LABELS:
        member = files.get(kind)
        if member is None or member.part is None:
            continue
        _, _, packed, unpacked = member.part
        if (size := max(packed, unpacked or 0)) > _MAX_LABEL:
            return Sample(image, None, f"its label is too long: {member.path} has {size:,} bytes")
        try:
            label = read_part(member.part).decode("utf-8-sig").strip()
            if kind != "json":
                return Sample(image, label, None)
            value = json.loads(label)
        except (ValueError, RecursionError, BadImage) as error:
            return Sample(image, None, f"its label can't be read: {member.path}: {error}")
        if isinstance(value, dict):
            value = next((value[name] for name in _NAMES if name in value), None)
        if value is not None:
            return Sample(image, value, None)
    return Sample(image, None, None)
