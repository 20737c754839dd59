"""The layouts of TFRecords made elsewhere: which files of a folder are of which split."""

import fnmatch
import glob
import os
import re
from collections import defaultdict
from collections.abc import Sequence

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.labels import list_names
from imagepipe.base.splits import EVAL, NAMES, TRAIN

_START = "[!._]"
"""How names of records start, as a pattern: _SUCCESS and .part-0.crc are none."""

# What programs and people leave beside records.
_NO_RECORDS = (".txt", ".json", ".pbtxt", ".csv", ".tsv", ".md", ".crc", ".idx", ".yaml", ".yml", ".xml", ".log")
_WORDS = re.compile(r"[^-_.]+")


def find_patterns(folder: str) -> dict[str, str]:
    """Finds the splits of a folder: folders that are called like splits, or files that have a split in their names.

    Args:
        folder: of TFRecord files.

    Patterns tell records from other files by their names alone, as TFX takes no lists of files.

    Returns:
        Pattern by split, relative to the folder, for those of ``train``, ``eval`` and ``test`` that there are; only
        ``train`` if there are no others. Empty if no names tell splits.

    Raises:
        ConfigError: if two folders mean one split, names of files tell splits but not plainly, or train or eval lacks
            where there is another split.
    """
    named = _find_folders(folder) or _find_prefixes(folder)
    patterns = {split: named[split] for split in dict.fromkeys(NAMES.values()) if split in named}
    if not patterns or set(patterns) == {TRAIN}:
        return patterns
    if missing := [name for name in (TRAIN, EVAL) if name not in patterns]:
        called = " or ".join(name for name, split in NAMES.items() if split == missing[0])
        raise ConfigError(
            f"data.path: {folder} has records for {' and '.join(patterns)}, but none for {missing[0]}: add a folder, "
            f"or files, called {called}; or give one set of records, which is split by data.split"
        )
    return patterns


def find_pattern(folder: str) -> str:
    """Returns the pattern of all records of a folder, relative to it.

    Raises:
        ConfigError: if no pattern has just the records.
    """
    names = _list_names(folder)
    pattern = _match_records(_START, names)
    if pattern is None:
        others = [name for name in names if not _is_record(name)]
        raise ConfigError(
            f"data.path: no pattern has just the records of {folder}: move {list_names(others)} out of it"
        )
    return pattern


def _list_names(folder: str) -> list[str]:
    paths = filesystem.glob(f"{glob.escape(folder)}/{_START}*")
    return [path.rpartition("/")[2] for path in paths if not filesystem.is_folder(path)]


def _is_record(name: str) -> bool:
    return not name.lower().endswith(_NO_RECORDS)


def _match_records(start: str, names: Sequence[str]) -> str | None:
    """Returns the pattern of just those names that are of records, or of all if none is; None if there is no such one.

    Args:
        start: how the pattern starts.
        names: of all files that match it with any end.
    """
    records = list(filter(_is_record, names)) or names
    first = glob.escape(os.path.commonprefix(records))  # noqa: RUF071 (of names, not of paths)
    last = glob.escape(os.path.commonprefix([name[::-1] for name in records])[::-1])  # noqa: RUF071 (as above)
    one = [glob.escape(records[0])] if len(records) == 1 else []
    candidates = [f"{start}*", f"{first}*", f"{start}*{last}", f"{start}*[0-9]", *one]
    return next((pattern for pattern in candidates if fnmatch.filter(names, pattern) == records), None)


def _find_folders(folder: str) -> dict[str, str]:
    patterns: dict[str, str] = {}
    for path in filesystem.glob(f"{glob.escape(folder)}/{_START}*"):
        name = path.rstrip("/").rpartition("/")[2]
        split = NAMES.get(name.lower())
        if split and filesystem.is_folder(path) and any(map(_is_record, _list_names(path.rstrip("/")))):
            pattern = f"{glob.escape(name)}/{find_pattern(path.rstrip('/'))}"
            if split in patterns:
                raise ConfigError(
                    f"data.path: {folder} has two folders for {split}, {patterns[split].split('/')[0]} and {name}: "
                    "remove one, or give it another name"
                )
            patterns[split] = pattern
    return patterns


def _find_prefixes(folder: str) -> dict[str, str]:
    """Finds splits by names such as ``train-00000-of-00010`` and ``flowers-train.tfrecord-00000-of-00002``."""
    names = _list_names(folder)
    records = defaultdict(list)
    starts = defaultdict(set)
    for name in filter(_is_record, names):
        if words := [word for word in _WORDS.finditer(name) if word[0].lower() in NAMES]:
            split = NAMES[words[0][0].lower()]
            records[split].append(name)
            starts[split].add(name[: words[0].end() + 1])
    patterns = {}
    for split, some in records.items():
        start = min(starts[split])
        pattern = _match_records(glob.escape(start), [name for name in names if name.startswith(start)])
        if pattern and fnmatch.filter(names, pattern) == some:
            patterns[split] = pattern
    if patterns.keys() == records.keys():
        return patterns
    if {TRAIN, EVAL} <= records.keys():
        raise ConfigError(
            f"data.path: names of files in {folder} tell splits ({TRAIN}, {EVAL}), but no pattern has just the records "
            "of one: give each split a folder of its own, such as train/ and val/"
        )
    return {}
