"""Decisions to and from other programs: Label Studio's JSON and CSV.

Label Studio: a list of tasks, each with the image in ``data.image`` (a ``data:`` URI, so that it needs no files), its
hash in ``data.sha256``, the model's answers under ``predictions`` and decisions under ``annotations``
(https://labelstud.io/guide/tasks, "Basic Label Studio JSON format"). The choices are called ``label``.
"""

import base64
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.decisions import HASH, Decision, Label, read_decisions
from imagepipe.base.errors import IngestError, ModelError
from imagepipe.base.filesystem import open_whole
from imagepipe.base.labels import is_number
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.ingest.json_items import read_items
from pipeline.labelling.work import Item, Ledger, Work, read_label

EXCLUDED = "not an image of ours"
"""The choice in Label Studio that excludes an image."""

_COLUMNS = ("sha256", "metadata", "label", "excluded", "was", "by", "at")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_KINDS = ((b"\x89PNG", "png"), (b"RIFF", "webp"))


class _Given(NamedTuple):
    """A decision in a file: the image's hash and label; who decided when, the image's id and its URI if it says so."""

    sha256: str
    label: Label
    by: str
    at: str
    id: str
    image: str


def export_decisions(work: Work, labels: Path, out: Path) -> int:
    """Writes all images of the queues with their decisions (.json), or all decisions (.csv); returns their number.

    Raises:
        ModelError: the file's name has another end.
        OSError: it can't be written.
    """
    _check_name(out)
    newest = read_decisions(str(labels)).newest if labels.exists() else {}
    if out.suffix.lower() == ".csv":
        with open_whole(out) as file:
            lines = [",".join(_COLUMNS), *(_write_row(decision) for decision in newest.values())]
            file.write("".join(f"{line}\r\n" for line in lines).encode())
        return len(newest)
    items = {item.sha256: item for queue in work.queues for item in queue.items}
    with open_whole(out) as file:
        file.write(b"[")
        for number, item in enumerate(items.values()):
            task = _make_task(work, item, newest.get(item.sha256))
            file.write((b",\n" if number else b"\n") + json.dumps(task).encode())
        file.write(b"\n]\n")
    return len(items)


def import_decisions(work: Work, labels: Path, source: Path) -> tuple[int, Counter[str]]:
    """Adds the decisions of a file, but for those that are there already, or older than what that person did since.

    An image that a capture's queues have no longer is taken from the file. How many have none there is printed.

    Returns:
        The number of decisions that were added, and how many others were not, by why.

    Raises:
        ModelError: the file's name has another end, or it is no such file.
        OSError: it can't be read, or decisions can't be written.
    """
    _check_name(source)
    ledger = Ledger(labels, work)
    skipped: Counter[str] = Counter()
    added = without = 0
    read = _read_csv if source.suffix.lower() == ".csv" else _read_tasks
    for _ in read(source, work.task, Counter()):  # all or, if the file can't be read to its end, none
        pass
    for given in read(source, work.task, skipped):
        present = ledger.standing.list_decisions(given.sha256)
        if any((one.by, one.label) == (given.by, given.label) for one in present):
            skipped["there already"] += 1
            continue
        last = ledger.standing.times.get((given.sha256, given.by))
        if last is not None and not _is_later(given.at, last):
            skipped["not later than the same person's last decision on the image"] += 1
            continue
        item = work.find(given.sha256)
        image = _decode_image(given) if work.is_captured and not item and given.label is not None else None
        without += work.is_captured and not item and given.label is not None and not image
        item = item or Item(given.sha256, given.id, None, (), "")
        ledger.decide(item, given.label, given.by, at=given.at, image=image)
        added += 1
    if without:
        print_note(
            f"{without:,} decisions are about images that the queues have no longer, and that {source} has not as they "
            "were sent: they correct what a source has, but add no image."
        )
    return added, skipped


def _decode_image(given: _Given) -> bytes | None:
    """Returns the image in a ``data:`` URI, if it is the one that was decided on."""
    start, _, content = given.image.partition(";base64,")
    try:
        data = base64.b64decode(content) if start.startswith("data:") else b""
    except ValueError:
        return None
    return data if hashlib.sha256(data).hexdigest() == given.sha256 else None


def _is_later(at: str, last: str) -> bool:
    """Returns whether a decision was made after another one: without a time it is made now; False if none can tell."""
    try:
        times = [datetime.fromisoformat(text) for text in (last, at)]
    except ValueError:
        return not at
    earlier, later = (time if time.tzinfo else time.replace(tzinfo=UTC) for time in times)
    return later > earlier


def _check_name(path: Path) -> None:
    if path.suffix.lower() not in (".json", ".csv"):
        raise ModelError(f"{path}: expected a file .json (Label Studio) or .csv")


# --- CSV


def _write_row(decision: Decision) -> str:
    excluded = "true" if decision.label is None else ""
    cells = (
        decision.sha256, decision.metadata, _spell(decision.label), excluded, _spell(decision.was), decision.by,
        decision.at,
    )  # fmt: skip
    return ",".join(f'"{_guard(cell).replace(chr(34), chr(34) * 2)}"' if cell else "" for cell in cells)


def _guard(cell: str) -> str:
    """Returns a cell that no spreadsheet takes for a formula: metadata, and perhaps labels, are from strangers.

    Numbers stay. So that ``_unguard`` is the reverse, a quote before such a cell is doubled.
    """
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) and not is_number(cell) else cell


def _unguard(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def _spell(label: Label) -> str:
    return "" if label is None else "|".join(label) if isinstance(label, list) else str(label)


def _read_csv(source: Path, task: TaskName, skipped: Counter[str]) -> Iterator[_Given]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.DictReader(file, strict=True)
            if not {"sha256", "label"} <= set(rows.fieldnames or ()):
                raise ModelError(f"{source} needs the columns sha256 and label")
            for row in rows:
                text = _unguard((row["label"] or "").strip())
                if (row.get("excluded") or "").strip().lower() in ("true", "1", "yes"):
                    choices = [EXCLUDED]
                elif not text:
                    skipped["without a label"] += 1
                    continue
                else:
                    choices = list(filter(str.strip, text.split("|"))) if task == "multilabel" else [text]
                facts = {
                    "by": _unguard(row.get("by") or ""),
                    "at": row.get("at"),
                    "id": _unguard(row.get("metadata") or ""),
                }
                yield from _check(row["sha256"], choices, facts, task, skipped)
        except csv.Error as error:
            place = f"line {rows.line_num}: {error}"
            raise ModelError(f"{source} can't be read as CSV: {place}. Is there a quote too many?") from error
        except UnicodeDecodeError as error:
            raise ModelError(f"{source} is not text in UTF-8: {error}") from error


def _check(
    sha256: object, choices: Sequence[Any], facts: Mapping[str, object], task: TaskName, skipped: Counter[str]
) -> Iterator[_Given]:
    if not isinstance(sha256, str) or not HASH.fullmatch(sha256):
        skipped["without a sha256 of 64 small hexadecimal digits"] += 1
        return
    try:
        texts = {name: str(facts.get(name) or "") for name in ("by", "at", "id", "image")}
        yield _Given(sha256, _read_choices(choices, task), **texts | {"by": texts["by"] or "import"})
    except ValueError:
        skipped["with a label that can't be used"] += 1


def _read_choices(choices: Sequence[Any], task: TaskName) -> Label:
    """Returns the label that choices make; None excludes the image.

    Raises:
        ValueError: they are none, or contradict one another.
    """
    if EXCLUDED in choices:
        if any(choice != EXCLUDED for choice in choices):
            raise ValueError("an image is excluded, or has a label")
        return None
    if task == "multilabel":
        return read_label(list(choices), task)
    (choice,) = choices
    if task == "regression":
        if not isinstance(choice, str) or not is_number(choice):
            raise ValueError("the label has to be a number")
        return float(choice)
    return read_label(choice, task)


# --- Label Studio


def _make_task(work: Work, item: Item, decision: Decision | None) -> dict[str, Any]:
    image = (work.pictures / item.sha256).read_bytes()
    kind = next((kind for start, kind in _KINDS if image.startswith(start)), "jpeg")
    data = {
        "image": f"data:image/{kind};base64,{base64.b64encode(image).decode()}",
        "sha256": item.sha256,
        "id": item.id,
        "label": _spell(item.label),
        "why": item.why,
    }
    task: dict[str, Any] = {"data": data, "annotations": [], "predictions": []}
    if decision:
        choices = [EXCLUDED] if decision.label is None else _list_choices(decision.label)
        data["by"] = decision.by
        task["annotations"] = [{"result": _make_result(choices), "created_at": decision.at}]
    names = list(item.answer) if work.task == "multilabel" else [name for name, _ in item.guesses[:1]]
    if names and work.task != "regression":
        prediction = {"model_version": item.model or "", "result": _make_result(names)}
        scores = [score for name, score in item.guesses if name in names]
        task["predictions"] = [prediction | ({"score": min(scores)} if scores else {})]
    return task


def _list_choices(label: Label) -> list[str]:
    return label if isinstance(label, list) else [str(label)]


def _make_result(choices: list[str]) -> list[dict[str, Any]]:
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": choices}}]


def _read_tasks(source: Path, task: TaskName, skipped: Counter[str]) -> Iterator[_Given]:
    try:
        for _, item in read_items(filesystem.absolute(str(source))):
            yield from _read_task(item, task, skipped)
    except IngestError as error:
        raise ModelError(str(error)) from error


def _read_task(item: Any, task: TaskName, skipped: Counter[str]) -> Iterator[_Given]:
    try:
        data = dict(item["data"])
        answers = [
            (annotation, [choice for result in annotation["result"] for choice in result["value"].get("choices", ())])
            for annotation in item.get("annotations") or ()
            if not annotation.get("was_cancelled")
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        skipped["no tasks with data and annotations"] += 1
        return
    if not any(choices for _, choices in answers):
        skipped["without a label"] += 1
    for annotation, choices in answers:
        if not choices:
            continue
        by = annotation.get("completed_by")
        person = by.get("email") if isinstance(by, dict) else by
        facts = data | {"by": person or data.get("by"), "at": annotation.get("created_at")}
        yield from _check(data.get("sha256"), choices, facts, task, skipped)
