"""Decisions of people about images: a file ``labels.jsonl``, to which every decision adds a line at once.

A line is a JSON object: ``sha256`` of the image's file; ``metadata``, its id; ``label`` (text, a list of texts or a
number; null excludes the image); ``was``, the label before; ``by`` and ``at``, who and when (ISO 8601, UTC); ``model``
and ``source``, whose answer and which images were looked at; and ``undone``, if it takes back what the same person
decided. Of the decisions about a hash that nobody took back the newest holds. Images that no source may have lie beside
the file, in a folder ``labels.images``, by their hash.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from imagepipe.base import filesystem

Label = str | list[str] | float | None

OVERRIDES = "overrides.jsonl"
"""File of a dataset that lists the decisions that ingest was given, and what became of each."""

_MAX_LINE = 2**20
_HALF = re.compile("[\ud800-\udfff]")  # of a pair, which JSON can escape alone, and UTF-8 can't have
HASH = re.compile(r"[0-9a-f]{64}")
"""How a hash is written, so that it can name a file."""


@dataclass(frozen=True)
class Decision:
    """One line of the file, see the module.

    Attributes:
        sha256: hex, 64 small letters and digits.
        label: None excludes the image.
        metadata: the image's id; "" if it has none.
        was: the label before; None if it had none.
        by: who decided.
        at: when, ISO 8601 in UTC.
        model: the version or run whose answers were looked at; None if there were none.
        source: the run or the capture that had the image; None if it is not known.
        undone: whether this person takes back what they decided about the image.
    """

    sha256: str
    label: Label
    metadata: str = ""
    was: Label = None
    by: str = ""
    at: str = ""
    model: str | None = None
    source: str | None = None
    undone: bool = False


class Standing:
    """The decisions that hold, from lines in the order of the file.

    Attributes:
        newest: by hash the decision that holds.
        times: by hash and person, when the last line was written, also one that takes a decision back.
    """

    def __init__(self) -> None:
        """Makes it, without decisions."""
        self.newest: dict[str, Decision] = {}
        self.times: dict[tuple[str, str], str] = {}
        self._people: dict[str, dict[str, Decision]] = {}  # by hash and person, the newest last

    def add(self, decision: Decision) -> None:
        """Takes the next line."""
        people = self._people.setdefault(decision.sha256, {})
        people.pop(decision.by, None)
        self.times[decision.sha256, decision.by] = decision.at
        if not decision.undone:
            people[decision.by] = decision
        if people:
            self.newest[decision.sha256] = next(reversed(people.values()))
        else:
            self.newest.pop(decision.sha256, None)

    def list_decisions(self, sha256: str) -> list[Decision]:
        """Returns the newest decision of each person about an image, the newest last."""
        return list(self._people.get(sha256, {}).values())


@dataclass(frozen=True)
class Decisions:
    """All that a file says.

    Attributes:
        newest: by hash the decision that holds.
        disputes: by hash the newest decision of each person, where they differ.
        problems: a sentence for each line that can't be read, and is passed over.
    """

    newest: dict[str, Decision]
    disputes: dict[str, list[Decision]]
    problems: list[str]


def read_decisions(path: str) -> Decisions:
    """Reads a file of decisions.

    Args:
        path: an absolute path or URI.

    Raises:
        OSError: it can't be read.
    """
    standing = Standing()
    problems: list[str] = []
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            standing.add(parse_decision(line))
        except ValueError as error:
            cut = "" if line.endswith(b"\n") else ", as when its writer was killed"
            problems.append(f"{path}, line {number} is passed over: {error}{cut}.")
    people = {sha256: standing.list_decisions(sha256) for sha256 in standing.newest}
    disputes = {sha256: by for sha256, by in people.items() if len({json.dumps(one.label) for one in by}) > 1}
    return Decisions(standing.newest, disputes, problems)


def read_given_labels(dataset: str) -> dict[str, Label]:
    """Returns the labels by hash that people decided on, as a dataset lists them; none if it has no list.

    Args:
        dataset: the folder, a path or URI.

    Raises:
        OSError: the list can't be read.
    """
    path = f"{filesystem.absolute(dataset)}/{OVERRIDES}"
    newest = read_decisions(path).newest if filesystem.exists(path) else {}
    return {sha256: decision.label for sha256, decision in newest.items() if decision.label is not None}


def hash_given_labels(dataset: str) -> str:
    """Returns a hash of ``read_given_labels``; "" if there are none."""
    labels = read_given_labels(dataset)
    return hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest() if labels else ""


def parse_decision(line: bytes | str) -> Decision:
    """Reads one line.

    Raises:
        ValueError: it is no decision; says why.
    """
    if len(line) > _MAX_LINE:
        raise ValueError(f"it has more than {_MAX_LINE:,} bytes")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(values, dict) or "label" not in values:
        raise ValueError("it is no JSON object with sha256 and label")
    sha256, texts = values.get("sha256"), {name: values.get(name) for name in ("metadata", "by", "at")}
    if not isinstance(sha256, str) or not HASH.fullmatch(sha256):
        raise ValueError("its sha256 is no hash of 64 small hexadecimal digits")
    if not _is_label(values["label"]) or not _is_label(values.get("was")):
        raise ValueError("its label is neither text, a list of texts, a finite number nor null")
    model, source = (value if isinstance(value := values.get(name), str) else None for name in ("model", "source"))
    further = {
        name: text.encode(errors="replace").decode() if isinstance(text, str) else "" for name, text in texts.items()
    }
    undone = values.get("undone") is True
    return Decision(
        sha256, values["label"], was=values.get("was"), model=model, source=source, undone=undone, **further
    )


def append_decision(path: Path, decision: Decision) -> None:
    """Adds a line, which is on the disk when this returns; several processes may do so at once.

    The folder need not exist.

    Raises:
        OSError: it can't be written.
    """
    values = {name: value for name, value in asdict(decision).items() if name != "undone" or value}
    line = json.dumps(values, ensure_ascii=False).encode(errors="replace") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":  # a writer was killed within its line
            line = b"\n" + line
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def locate_images(path: str) -> str:
    """Returns the folder of the images that lie beside a file of decisions, by their hashes."""
    return f"{path.removesuffix('.jsonl')}.images"


def _is_label(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_text, value))
    if isinstance(value, int | float):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max  # which NaN is not, nor a huge int
    return value is None or _is_text(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _HALF.search(value)


def _read_lines(path: str) -> Iterator[bytes]:
    with filesystem.open_read(path) as file:
        while line := file.readline(_MAX_LINE + 1):
            while len(line) > _MAX_LINE and not line.endswith(b"\n") and (rest := file.readline(_MAX_LINE)):
                line = line[:_MAX_LINE] + rest[-1:]  # the rest of a line that is too long
            yield line
