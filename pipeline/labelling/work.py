"""The work that there is: queues of images, what is known of each, and the decisions so far."""

import io
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.decisions import Decision, Label, Standing, append_decision, locate_images, parse_decision
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.labels import find_fault
from imagepipe.base.names import TaskName

MAX_ITEMS = 1000
"""Maximum number of images in a queue."""

MAX_NAME = 200
"""Maximum number of characters of a class's or a person's name."""


@dataclass(frozen=True)
class Item:
    """An image to decide on.

    Attributes:
        sha256: of its file, hex.
        id: its id, as the data has it.
        label: the label that it has; None if it has none.
        guesses: labels that a model gives it, with their scores, the best first.
        why: why it is in the queue, a sentence.
        model: the run or version whose guesses these are; None if there are none.
        beside: hashes of images to compare it with, each with a caption.
        answer: of several labels those that the model gave it, each from a threshold of its own on; empty if unknown.
    """

    sha256: str
    id: str
    label: Label
    guesses: tuple[tuple[str, float], ...]
    why: str
    model: str | None = None
    beside: tuple[tuple[str, str], ...] = ()
    answer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queue:
    """Images in the order in which they are worth a look.

    Attributes:
        name: for URLs.
        title: for people.
        about: what is in it, a sentence.
        items: at most MAX_ITEMS.
    """

    name: str
    title: str
    about: str
    items: list[Item]


@dataclass
class Work:
    """All queues of one source.

    Attributes:
        source: the run, or the capture's folder.
        task: of the labels.
        classes: known so far, sorted.
        queues: those that have images.
        pictures: folder with the encoded images, each named by its hash.
        originals: hashes of the images whose files no source has, and that are kept when they get a label.
        notes: what else a person should know, a sentence each.
        is_captured: whether the images are of a capture, so that no source may have them.
    """

    source: str
    task: TaskName
    classes: list[str]
    queues: list[Queue]
    pictures: Path
    originals: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    is_captured: bool = False

    def find(self, sha256: str) -> Item | None:
        """Returns an image's item in the first queue that has it."""
        return next((item for queue in self.queues for item in queue.items if item.sha256 == sha256), None)


class Ledger:
    """The decisions in a file, to which other processes may add at any time."""

    def __init__(self, path: Path, work: Work) -> None:
        """Reads what is there."""
        self.path = path
        self.standing = Standing()
        self.changed: list[str] = []
        """Hashes in the order of their decisions, so that a page can ask for those since it last looked."""
        self._work = work
        self._end, self._last = 0, b""  # of what was read: where it ends, and its last line
        self._lock = threading.RLock()  # requests are answered in several threads
        self.refresh()

    def refresh(self) -> None:
        """Reads the lines that came since the last time; one that is not whole yet waits for the next time.

        If the file is another one by now, such as an older state of it, or is gone, all of it is read again.
        """
        with self._lock, self.path.open("rb") if self.path.exists() else io.BytesIO() as file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                self.changed += self.standing.newest  # a page that has seen these learns what became of them
                self.standing, self._end, self._last = Standing(), 0, b""
                file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._end += len(line)
                self._last = line
                try:
                    decision = parse_decision(line)
                except ValueError:  # ingest names it
                    continue
                self.standing.add(decision)
                self.changed.append(decision.sha256)

    def decide(
        self, item: Item, label: Label, by: str, undone: bool = False, at: str = "", image: bytes | None = None
    ) -> None:
        """Writes a decision, unless it is what this person has decided already, as when an answer got lost.

        Likewise, nothing is written to take back what this person has not decided.

        Args:
            item: the image.
            label: None excludes it.
            by: who decides.
            undone: whether this person takes back what they decided.
            at: when, by default now.
            image: its file, to be kept with a label if the queues have it no longer.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            self.refresh()
            last = self.standing.newest.get(item.sha256)
            people = {one.by for one in self.standing.list_decisions(item.sha256)}
            if (by not in people) if undone else (last is not None and (last.label, last.by) == (label, by)):
                return
            if item.sha256 in self._work.originals:
                image = (self._work.pictures / item.sha256).read_bytes()
            if label is not None and not undone and image:
                filesystem.write_whole(f"{locate_images(str(self.path))}/{item.sha256}", image)
            at = at or datetime.now(UTC).isoformat(timespec="milliseconds")
            decision = Decision(
                item.sha256, label, item.id, item.label, by, at, item.model, self._work.source, undone=undone
            )
            append_decision(self.path, decision)
            self.refresh()

    def describe(self, since: int) -> Mapping[str, object]:
        """Returns the labels of the images that were decided on since a number of decisions; of undone ones nothing."""
        self.refresh()
        hashes = dict.fromkeys(self.changed[since:])
        now = {sha256: self.standing.newest.get(sha256) for sha256 in hashes}
        return {
            "seen": len(self.changed),
            "decided": {sha256: {"label": one.label, "by": one.by} if one else None for sha256, one in now.items()},
        }


def list_labels(label: Label, task: TaskName) -> list[str]:
    """Returns the classes that a label names: none of a regression, or of an image that is excluded."""
    if label is None or task == "regression":
        return []
    return label if isinstance(label, list) else [str(label)]


def read_label(value: Any, task: TaskName) -> Label:
    """Returns a label as the task has it; None excludes the image.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    if task == "regression":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("the label has to be a number")
        return float(value)
    names = value if task == "multilabel" else [value]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("the label has to be " + ("a list of classes" if task == "multilabel" else "a class"))
    names = sorted({name.strip() for name in names})
    for name in names:
        fault = f"more than {MAX_NAME} characters" if len(name) > MAX_NAME else find_fault(name)
        if task == "multilabel" and LABEL_SEPARATOR in name:
            fault = f"a {LABEL_SEPARATOR}, which separates several"
        if fault:
            raise ValueError(f"a class can't be called {name[:50]!r}: it holds {fault}")
    return names if task == "multilabel" else names[0]
