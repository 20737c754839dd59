"""Decisions of people (``labels.jsonl``), which override what the sources say of an image's label, by its hash.

The dataset remembers the file, so that the next ingest of any of its sources takes them again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.decisions import Decisions, locate_images, read_decisions
from imagepipe.base.errors import IngestError, describe_error
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.ingest.rows import Row, make_row

EFFECTS = {
    "corrected": "give another label than the source",
    "confirmed": "give the source's label",
    "added": "add an image",
    "excluded": "exclude an image",
    "elsewhere": "are about images of sources that were not read now (ingest those too)",
    "nowhere": "are about images that are neither in this source nor in the dataset",
    "refused": "have a label that can't be used",
}
"""Everything that can become of a decision, and how that reads after a number."""

_MAX_NAMED = 5


@dataclass(frozen=True)
class Overrides:
    """A file of decisions, read for a task.

    Attributes:
        path: of the file, absolute or a URI.
        labels: by hash the labels as the task wants them; None excludes the image.
        refused: by hash why a label can't be used.
        decisions: all that the file says.
    """

    path: str
    labels: dict[str, list[str] | None]
    refused: dict[str, str]
    decisions: Decisions

    @property
    def folder(self) -> str:
        """Folder of the images beside the file, of which no source may have a copy."""
        return locate_images(self.path)

    def explain_misnaming(self, path: str, sha256: str) -> str | None:
        """Returns why no decision is about a file beside this one, whose name is another hash; None if that is right.

        Args:
            path: of an image, wherever it lies.
            sha256: of its bytes.
        """
        name = path.removeprefix(f"{self.folder}/")
        if name == sha256 or name not in self.labels:
            return None
        return f"its name is the hash of another image, its own is {sha256}: copy the image here again"


def read_overrides(path: str, task: TaskName) -> Overrides:
    """Reads a file of decisions.

    Raises:
        IngestError: it can't be read.
    """
    try:
        decisions = read_decisions(path)
    except OSError as error:
        raise IngestError(
            f"{path} can't be read: {describe_error(error)}. Labels are taken from there: give the file with --labels, "
            "or --labels none to take the source's own."
        ) from error
    labels: dict[str, list[str] | None] = {}
    refused: dict[str, str] = {}
    for sha256, decision in decisions.newest.items():
        if decision.label is None:
            labels[sha256] = None
            continue
        row = make_row(path, None, decision.metadata, decision.label, {}, task)
        if row["reason"]:
            refused[sha256] = row["reason"]
        else:
            labels[sha256] = row["labels"]
    return Overrides(path, labels, refused, decisions)


def read_additions(overrides: Overrides, task: TaskName) -> Iterator[Row]:
    """Reads the images that lie beside the file and have a label, sorted by hash."""
    for sha256 in sorted(filesystem.list_folder(overrides.folder)):
        if overrides.labels.get(sha256):
            decision = overrides.decisions.newest[sha256]
            yield make_row(f"{overrides.folder}/{sha256}", None, decision.metadata or sha256, decision.label, {}, task)


def list_effects(overrides: Overrides, outcomes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what became of each decision, for the list in the dataset.

    Args:
        overrides: the decisions.
        outcomes: those of the kind ``override``, by hash.
    """
    effects = []
    for sha256, decision in sorted(overrides.decisions.newest.items()):
        entry: dict[str, Any] = {name: getattr(decision, name) for name in ("metadata", "label", "by", "at")}
        labels = overrides.labels.get(sha256)
        if labels and not isinstance(decision.label, int | float):  # as the record has it, however it was spelled
            entry["label"] = labels if len(labels) > 1 else labels[0]
        if sha256 in overrides.refused:
            entry |= {"effect": "refused", "reason": overrides.refused[sha256]}
        elif sha256 in outcomes:
            entry |= {name: outcomes[sha256][name] for name in ("effect", "was")}
        else:
            entry["effect"] = "nowhere"
        if sha256 in overrides.decisions.disputes:
            entry["disputed"] = {one.by: one.label for one in overrides.decisions.disputes[sha256]}
        effects.append({"sha256": sha256, **entry})
    return effects


def describe_effects(
    overrides: Overrides, effects: list[dict[str, Any]], counts: Mapping[str, int], listed: str
) -> list[str]:
    """Returns what became of the decisions as sentences, whose numbers add up.

    Args:
        overrides: the decisions.
        effects: see ``list_effects``.
        counts: number of images of each label in the dataset after this ingest.
        listed: path of the list of effects.
    """
    numbers = Counter(entry["effect"] for entry in effects)
    parts = [f"{numbers[effect]:,} {text}" for effect, text in EFFECTS.items() if numbers[effect]]
    notes = [f"{overrides.path} overrides the source. Decisions: {len(effects):,}" + (": " if parts else ".")]
    notes[0] += "; ".join(parts) + (f". All are listed in {listed}." if parts else "")
    if disputed := [entry for entry in effects if "disputed" in entry]:
        named = [
            f"{entry['metadata'] or entry['sha256']} ("
            + ", ".join(f"{by or 'unnamed'}: {_spell(label)}" for by, label in entry["disputed"].items())
            + ")"
            for entry in disputed[:_MAX_NAMED]
        ]
        notes.append(
            f"{len(disputed):,} images have different labels by different people, of which the newest holds: "
            f"{list_names(named)}."
        )
    given: Counter[str] = Counter()
    for entry in effects:
        if entry["effect"] in ("corrected", "added"):
            given.update(overrides.labels[entry["sha256"]] or ())
    if own := sorted(label for label, count in given.items() if counts.get(label) == count):
        notes.append(f"Classes that only decisions give, of no source: {list_names(own)}.")
    return [*notes, *overrides.decisions.problems]


def _spell(label: object) -> str:
    if label is None:
        return "excluded"
    return "|".join(label) if isinstance(label, list) else str(label)
