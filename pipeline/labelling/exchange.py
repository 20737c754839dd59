"""Decisions to and from other programs: Label Studio's JSON and CSV.

Label Studio: a list of tasks, each with the image in ``data.image`` (a ``data:`` URI, so that it needs no files), its
hash in ``data.sha256``, the model's answers under ``predictions`` and decisions under ``annotations``
(https://labelstud.io/guide/tasks, "Basic Label Studio JSON format"). The choices are called ``label``.
"""

import base64
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.decisions import HASH, Decision, Label, read_decisions
from imagepipe.base.errors import IngestError, ModelError
from imagepipe.base.filesystem import open_whole
from imagepipe.base.labels import is_number
from imagepipe.base.names import TaskName
from imagepipe.ingest.json_items import read_items
from pipeline.labelling.work import Item, Ledger, Work, read_label

EXCLUDED = "not an image of ours"
"""The choice in Label Studio that excludes an image."""

_COLUMNS = ("sha256", "metadata", "label", "excluded", "was", "by", "at")
_KINDS = ((b"\x89PNG", "png"), (b"RIFF", "webp"))


class _Given(NamedTuple):
    """A decision in a file: the image's hash, its label, and who decided when, if the file says."""

    sha256: str
    label: Label
    by: str
    at: str


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

    Returns:
        The number of decisions that were added, and how many others were not, by why.

    Raises:
        ModelError: the file's name has another end, or it is no such file.
        OSError: it can't be read, or decisions can't be written.
    """
    _check_name(source)
    ledger = Ledger(labels, work)
    skipped: Counter[str] = Counter()
    added = 0
    read = _read_csv if source.suffix.lower() == ".csv" else _read_tasks
    for given in list(read(source, work.task, skipped)):  # all or, if the file can't be read to its end, none
        present = ledger.standing.list_decisions(given.sha256)
        if any((one.by, one.label) == (given.by, given.label) for one in present):
            skipped["there already"] += 1
            continue
        last = ledger.standing.times.get((given.sha256, given.by))
        if last is not None and not _is_later(given.at, last):
            skipped["not later than the same person's last decision on the image"] += 1
            continue
        item = work.find(given.sha256) or Item(given.sha256, "", None, (), "")
        ledger.decide(item, given.label, given.by, at=given.at)
        added += 1
    return added, skipped


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
    return ",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' if cell else "" for cell in cells)


def _spell(label: Label) -> str:
    return "" if label is None else "|".join(label) if isinstance(label, list) else str(label)


def _read_csv(source: Path, task: TaskName, skipped: Counter[str]) -> Iterator[_Given]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.DictReader(file, strict=True)
            if not {"sha256", "label"} <= set(rows.fieldnames or ()):
                raise ModelError(f"{source} needs the columns sha256 and label")
            for row in rows:
                text = (row["label"] or "").strip()
                if (row.get("excluded") or "").strip().lower() in ("true", "1", "yes"):
                    choices = [EXCLUDED]
                elif not text:
                    skipped["without a label"] += 1
                    continue
                else:
                    choices = text.split("|") if task == "multilabel" else [text]
                yield from _check(row["sha256"], choices, row.get("by"), row.get("at"), task, skipped)
        except csv.Error as error:
            place = f"line {rows.line_num}: {error}"
            raise ModelError(f"{source} can't be read as CSV: {place}. Is there a quote too many?") from error
        except UnicodeDecodeError as error:
            raise ModelError(f"{source} is not text in UTF-8: {error}") from error


def _check(
    sha256: object, choices: Sequence[Any], by: object, at: object, task: TaskName, skipped: Counter[str]
) -> Iterator[_Given]:
    if not isinstance(sha256, str) or not HASH.fullmatch(sha256):
        skipped["without a sha256 of 64 small hexadecimal digits"] += 1
        return
    try:
        yield _Given(sha256, _read_choices(choices, task), str(by or "import"), str(at or ""))
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
    if item.guesses and work.task != "regression":
        name, score = item.guesses[0]
        task["predictions"] = [{"model_version": item.model or "", "score": score, "result": _make_result([name])}]
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
        data = item["data"]
        answers = [
            (annotation, [choice for result in annotation["result"] for choice in result["value"].get("choices", ())])
            for annotation in item.get("annotations") or ()
            if not annotation.get("was_cancelled")
        ]
    except (AttributeError, KeyError, TypeError):
        skipped["no tasks with data and annotations"] += 1
        return
    if not any(choices for _, choices in answers):
        skipped["without a label"] += 1
    for annotation, choices in answers:
        if not choices:
            continue
        by = annotation.get("completed_by")
        person = by.get("email") if isinstance(by, dict) else by
        yield from _check(
            data.get("sha256"), choices, person or data.get("by"), annotation.get("created_at"), task, skipped
        )
