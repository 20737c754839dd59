"""The layouts of TFRecords made elsewhere: which files of a folder are of which split."""

import glob
import re
from collections import defaultdict

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.splits import EVAL, NAMES, TRAIN

RECORD_FILES = "[!._]*"
"""Pattern of a folder's files without those that programs leave beside records, such as _SUCCESS and .part-0.crc."""

_NO_RECORDS = (".txt", ".json", ".pbtxt", ".csv", ".md", ".crc")
_WORDS = re.compile(r"[^-_.]+")


def find_patterns(folder: str) -> dict[str, str]:
    """Finds the splits of a folder: folders that are called like splits, or files that have a split in their names.

    Args:
        folder: of TFRecord files.

    Returns:
        Pattern by split, relative to the folder, for those of ``train``, ``eval`` and ``test`` that there are; only
        ``train`` if there are no others. Empty if no names tell splits.

    Raises:
        ConfigError: if two folders mean one split, names of files tell splits but not plainly, or train or eval lacks
            where there is another split.
    """
    paths = filesystem.glob(f"{glob.escape(folder)}/{RECORD_FILES}")
    named = _find_folders(folder, paths) or _find_prefixes(folder, paths)
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


def _find_folders(folder: str, paths: list[str]) -> dict[str, str]:
    patterns: dict[str, str] = {}
    for path in paths:
        name = path.rstrip("/").rpartition("/")[2]
        split = NAMES.get(name.lower())
        if split and filesystem.is_folder(path) and filesystem.glob(f"{glob.escape(path.rstrip('/'))}/{RECORD_FILES}"):
            pattern = f"{glob.escape(name)}/{RECORD_FILES}"
            if split in patterns:
                raise ConfigError(
                    f"data.path: {folder} has two folders for {split}, {patterns[split].split('/')[0]} and {name}: "
                    "remove one, or give it another name"
                )
            patterns[split] = pattern
    return patterns


def _find_prefixes(folder: str, paths: list[str]) -> dict[str, str]:
    """Finds splits by names such as ``train-00000-of-00010`` and ``flowers-train.tfrecord-00000-of-00002``."""
    files = defaultdict(set)
    patterns = defaultdict(set)
    for path in paths:
        name = path.rpartition("/")[2]
        words = [word for word in _WORDS.finditer(name) if word[0].lower() in NAMES]
        if words and not name.lower().endswith(_NO_RECORDS) and not filesystem.is_folder(path):
            split = NAMES[words[0][0].lower()]
            files[split].add(path)
            patterns[split].add(f"{glob.escape(name[: words[0].end() + 1])}*")
    are_plain = all(
        len(patterns[split]) == 1
        and set(filesystem.glob(f"{glob.escape(folder)}/{min(patterns[split])}")) == files[split]
        for split in files
    )
    if not are_plain and {TRAIN, EVAL} <= files.keys():
        raise ConfigError(
            f"data.path: names of files in {folder} tell splits ({TRAIN}, {EVAL}), but no pattern has just the records "
            "of one: give each split a folder of its own, such as train/ and val/"
        )
    return {split: min(patterns[split]) for split in files} if are_plain else {}
