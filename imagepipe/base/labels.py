r"""Names of classes and labels: which text can be one, and the file that lists them.

The file has one name per line, each ended by ``\n`` and by nothing else: TensorFlow reads it like that. Python's
``splitlines`` and its text mode know ten more ends of a line, and one of them inside a name would shift the names of
all classes after it. Everything of ours that writes or reads such a file does it here, and no name holds one of them.
"""

import difflib
import heapq
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from imagepipe.base.errors import DataError
from imagepipe.base.features import LABEL_SEPARATOR, restore_whole
from imagepipe.base.kinds import SUFFIXES
from imagepipe.base.names import TaskName
from imagepipe.base.splits import NAMES, are_several, guess_split

_FAULT = re.compile("(?P<bytes>[\ud800-\udfff\ufffd])|(?P<control>[\x00-\x1f\x7f-\x9f])|(?P<separator>[\u2028\u2029])")
_FAULTS = {
    "bytes": "bytes that are not UTF-8",  # as Python decodes them, and as others replace them
    "control": "a control character",
    "separator": "a line separator",
}
_FILE_NAME = re.compile(rf"[/\\]|\.({'|'.join(SUFFIXES)})$", re.IGNORECASE)
_MAX_LISTED = 10
_MAX_COMPARED = 3  # names with all labels, of which there may be 100,000: that takes a second
_MIN_SIMILARITY = 0.5  # that of 7 and 007
_MIN_IDS = 50  # fewer labels with a single image can each be named

DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+")
"""A number but for a comma in place of the point."""

_INFINITE = (2 - 2**-24) * 2.0**127  # from here on a float of 32 bits, which is what a record holds
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")  # 007 is a name


def find_fault(name: str) -> str | None:
    """Returns why a text can't name a class, such as "a control character (U+000A)"; None if it can."""
    match = _FAULT.search(name)
    return f"{_FAULTS[str(match.lastgroup)]} (U+{ord(match[0]):04X})" if match else None


def is_number(text: str) -> bool:
    """Returns whether text is a number as tables have it, digits of ASCII and a point, and finite in 32 bits."""
    return bool(_FLOAT.fullmatch(text)) and any(c.isdigit() for c in text) and abs(float(text)) < _INFINITE


def split_labels(label: object, task: TaskName) -> list[str]:
    """Returns the labels in a table's value or a model's answer, each once, sorted, spelled alike; none if it is empty.

    A whole number that is a float is the whole number's text, and true and false are ``True`` and ``False``, as pandas
    writes them.
    """
    parts = label if isinstance(label, list) and task == "multilabel" else [label]
    # macOS decomposes accents.
    texts = [unicodedata.normalize("NFC", str(restore_whole(part))) for part in parts if part is not None]
    if task == "multilabel" and parts is not label:
        texts = [part for text in texts for part in text.split(LABEL_SEPARATOR)]
    return sorted({text.strip() for text in texts} - {""})


def read_labels(label: object, task: TaskName) -> list[str]:
    """Returns the labels of an image as a table has them, see ``split_labels``; of a regression the number's text.

    Args:
        label: text, a number, None, or several of these: a list, or text with separators.
        task: one has several in a multilabel task only.

    Raises:
        ValueError: it can't be a label; says why.
    """
    parts = label if isinstance(label, list) and task == "multilabel" else [label]
    if any(isinstance(part, list | dict) for part in parts):
        raise ValueError("label is neither text nor a number")
    labels = split_labels(label, task)
    for text in labels:
        if task == "regression" and not is_number(text):
            remedy = " (write it with a point in place of the comma)" if DECIMAL_COMMA.fullmatch(text) else ""
            raise ValueError(f"label is not a number: {text[:100]}{remedy}")
        if fault := find_fault(text):
            raise ValueError(f"label can't name a class: {text[:100]!r} holds {fault}")
    return [repr(float(text)) for text in labels] if task == "regression" else labels


def encode_names(names: Iterable[str]) -> bytes:
    """Returns the content of a file of names.

    Raises:
        DataError: if a name can't be read back.
    """
    lines = []
    for name in names:
        if fault := find_fault(name):
            raise DataError(f"the label {name!r} holds {fault}, so it can't name a class: correct it in the data.")
        lines.append(f"{name}\n")
    return "".join(lines).encode()


def decode_names(content: bytes) -> list[str]:
    """Returns the names in a file of names, in their order; the last line may lack its end."""
    return content.decode().removesuffix("\n").split("\n") if content else []


def list_names(names: Sequence[str], count: int | None = None) -> str:
    """Returns the first ten names as text, with the number of the others; ``count`` is of all, if these are some."""
    more = (len(names) if count is None else count) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def describe_unknown(names: Iterable[str], labels: Collection[str], kind: str) -> str | None:
    """Returns which names are no labels, as text with the labels that are most like them; None if all are.

    Args:
        names: as a configuration has them.
        labels: of the data, or values of another column.
        kind: what they are, such as "labels of the split train".
    """
    unknown = sorted(set(names).difference(labels))
    if not unknown:
        return None
    spellings = {label.lower(): label for label in labels}
    similar = [
        match
        for name in unknown[:_MAX_COMPARED]
        for match in difflib.get_close_matches(name.lower(), spellings, cutoff=_MIN_SIMILARITY)
    ]
    nearest = [spellings[match] for match in dict.fromkeys(similar)]
    listed = f"of which the nearest are {list_names(nearest)}" if nearest else f"which are {list_names(sorted(labels))}"
    return f"{list_names(unknown)}: not among the {kind}, {listed}"


def sum_counts(counts_by_split: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Returns the number of images by label, of all splits together."""
    counts = Counter[str]()
    for split in counts_by_split:
        counts.update(split)
    return counts


def describe_ids(images: int, counts_by_split: Iterable[Mapping[str, int]]) -> str | None:
    """Returns why labels look like ids, as text that follows the name of their column; None if they don't.

    They do if most images have one that no other image has. An image has one id: several tags of its own are none.

    Args:
        images: number of images of all splits; one can have several labels.
        counts_by_split: number of images by label, of each split.
    """
    counts = sum_counts(counts_by_split)
    single = [label for label, count in counts.items() if count == 1]
    if len(single) < _MIN_IDS or not images / 2 < len(single) <= images:
        return None
    examples = ", ".join(heapq.nsmallest(3, single))
    return (
        f"has {len(counts):,} different values for {images:,} images, and {len(single):,} of them are on a single "
        f"image, such as {examples}: these look like ids, not like classes. Give the column that has the classes"
    )


def list_label_warnings(images: int, counts_by_split: Iterable[Mapping[str, int]]) -> list[str]:
    """Returns what makes labels look like something else than classes, a sentence each with what to do about it.

    Args:
        images: number of images of all splits; one can have several labels.
        counts_by_split: number of images by label, of each split.
    """
    counts = sum_counts(counts_by_split)
    if not counts:
        return []
    labels = sorted(counts)
    splits = [label for label in labels if label.lower().rstrip("0123456789") in NAMES]  # also COCO's train2017
    files = [label for label in labels if _FILE_NAME.search(label)]
    warnings = []
    by_a_word = [label for label in labels if guess_split(label)]
    if len(by_a_word) > len(labels) / 2 and are_several(map(guess_split, labels)):  # else a train station
        splits = by_a_word
    if len(splits) > 1 or splits == labels:
        warnings.append(
            f"The labels {list_names(splits)} look like splits, not like classes. Give the folders, or the column, "
            "that have the classes."
        )
    if len(files) > len(labels) / 2:
        warnings.append(
            f"Labels such as {heapq.nsmallest(1, files)[0]} look like file names, not like classes. Give the column "
            "that has the classes."
        )
    elif ids := describe_ids(images, [counts]):
        warnings.append(f"The label {ids}.")
    elif len(labels) == images > 2:
        warnings.append(
            f"Each of {images:,} images has a label of its own, such as {labels[0]}: nothing can be learned from one "
            "image per class. Give the folders, or the column, that have the classes."
        )
    if len(labels) == 1 and not warnings:
        warnings.append(
            f"All images have the label {labels[0]}, and a classifier needs two classes. Give the folder in which each "
            "class has a folder of its own, or the column that has the classes."
        )
    return warnings
