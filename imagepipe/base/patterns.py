"""Patterns of names that stand for several files, with braces as shells and WebDataset write them."""

import re

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError

_MAX_FILES = 100_000  # that a pattern may stand for
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {0000..0127}
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def has_braces(name: str) -> bool:
    """Returns whether a name has a range or a choice in braces."""
    return bool(_RANGE.search(name) or _CHOICE.search(name))


def expand_pattern(pattern: str) -> list[str]:
    """Returns the files that a pattern stands for, such as ``train-{0000..0127}.tar`` or ``data/*.parquet``, sorted.

    Raises:
        IngestError: if one that the pattern names is missing, or it stands for too many.
    """
    folder, rest = filesystem.split_pattern(pattern)
    pending, paths, missing = [rest], [], []
    while pending:
        one = pending.pop()
        if match := _RANGE.search(one):
            first, last = int(match[1]), int(match[2])
            if last - first >= _MAX_FILES:
                raise IngestError(f"{pattern} stands for more than {_MAX_FILES:,} files.")
            values = [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
        elif match := _CHOICE.search(one):
            values = match[1].split(",")
        else:
            path = f"{folder}/{one}"
            if filesystem.size(path) is not None:
                paths.append(path)
            elif not filesystem.is_plain(one):
                paths += [match for match in filesystem.glob(path) if filesystem.size(match) is not None]
            elif path != pattern:
                missing.append(path)
            continue
        pending += [f"{one[: match.start()]}{value}{one[match.end() :]}" for value in values]
        if len(pending) + len(paths) + len(missing) > _MAX_FILES:
            raise IngestError(f"{pattern} stands for more than {_MAX_FILES:,} files.")
    if missing:
        count = len(paths) + len(missing)
        raise IngestError(f"{min(missing)}: no such file, of the {count:,} that {pattern} stands for.")
    return sorted(set(paths))
