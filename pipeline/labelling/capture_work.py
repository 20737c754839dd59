"""Queues from captured traffic: what the served model was unsure of, and what is new to it or disputed in shadow."""

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.base.decisions import HASH
from imagepipe.base.errors import ModelError
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import TaskName
from imagepipe.capture.files import list_parts
from imagepipe.monitoring.pairs import find_shadow
from imagepipe.monitoring.traffic import explain_damage, read_tables, split_label
from pipeline.labelling.run_work import measure_doubt, measure_doubts
from pipeline.labelling.trained import TrainedImages
from pipeline.labelling.work import MAX_ITEMS, Item, Queue, Work

_COLUMNS = ["time", "metadata", "version", "label", "score", "classes", "novelty", "sha256", "shadow"]
_ROWS_AT_ONCE = 1024
_NOVEL = 0.95  # from which on an image is in the queue of novel ones
_GUESSES = 5
_CERTAIN = 0.5  # from which on the page proposes one of several labels


@dataclass
class _Seen:
    """Findings of a first reading of a capture: names of classes by version and place, and the task."""

    names: dict[tuple[str, int], str]
    task: TaskName
    rows: int


@dataclass
class _Candidate:
    """The version that was asked in shadow last, and its label by an image's hash; "" and none if nothing was."""

    version: str
    labels: dict[str, str]


def read_capture_work(folder: str, pictures: Path, trained: TrainedImages | None = None) -> Work:
    """Reads the queues of a capture.

    Args:
        folder: the capture's, a path or URI.
        pictures: folder that gets the images.
        trained: the training images, of which the nearest are shown beside; None for none.

    Raises:
        ModelError: nothing is captured there, or the model of the training images gives no embeddings.
    """
    parts = list(list_parts(folder))
    seen = _look(parts)
    if not seen.rows:
        raise ModelError(
            f"{folder} has neither runs nor captured answers: give a pipeline's workdir, or what serve --capture wrote"
        )
    candidate = _read_candidate(folder)
    queues = [queue for queue in _list_queues(parts, seen, candidate) if queue.items]
    wanted = {item.sha256 for queue in queues for item in queue.items}
    originals = _extract(parts, wanted, pictures)
    have = {path.name for path in pictures.iterdir()}
    notes = []
    if lacking := len(wanted - have):
        notes.append(f"Of {lacking:,} images the capture has no picture (--capture-images none): they are left out.")
    if small := len(have - originals):
        notes.append(
            f"Of {small:,} images the capture has a thumbnail only: a decision corrects or excludes them where a "
            "source has them, but adds none to the training data. That needs --capture-images original."
        )
    shown = [Queue(q.name, q.title, q.about, [item for item in q.items if item.sha256 in have]) for q in queues]
    if trained:
        vectors = _read_embeddings(parts, wanted & have, trained.version)
        nearest = trained.find_nearest(vectors, pictures)
        shown = [replace(q, items=[replace(i, beside=nearest.get(i.sha256, ())) for i in q.items]) for q in shown]
        if without := len((wanted & have) - vectors.keys()):
            notes.append(
                f"Beside {without:,} images no training images are shown: version {trained.version} was not asked "
                "about them, or gave no embedding."
            )
    else:
        notes.append("No nearest training images are shown: --against runs/RUN names the run of the served model.")
    classes = sorted(_list_classes(seen, candidate) | (trained.classes if trained else set()))
    work = [queue for queue in shown if queue.items]
    return Work(filesystem.absolute(folder), seen.task, classes, work, pictures, originals, notes)


def _list_classes(seen: _Seen, candidate: _Candidate) -> set[str]:
    if seen.task == "regression":
        return set()
    answered = {name for label in {*candidate.labels.values()} for name in split_label(label, seen.task)}
    return {*seen.names.values(), *answered} - {""}


def _read_rows(parts: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the answers that callers got."""
    for part in parts:
        with explain_damage(part), filesystem.open_read(part) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS):
                answers = (row for row in batch.to_pylist() if not row.get("shadow"))  # no column of older servers
                yield from (row for row in answers if HASH.fullmatch(row["sha256"] or "") and row["classes"])


def _read_candidate(folder: str) -> _Candidate:
    try:
        _, version = find_shadow(folder)
    except ModelError:  # nothing was asked in shadow
        return _Candidate("", {})
    labels: dict[str, str] = {}
    for _, table in read_tables(folder, ["version", "sha256", "label"], with_shadow=True):
        some = table.filter(pc.and_(pc.fill_null(table["shadow"], False), pc.equal(table["version"], version)))
        labels.update(zip(some["sha256"].to_pylist(), some["label"].to_pylist(), strict=True))
    return _Candidate(version, labels)


def _read_embeddings(parts: list[str], wanted: set[str], version: str) -> dict[str, Any]:
    """Returns by an image's hash the embedding that a version gave it."""
    vectors = {}
    for part in parts:
        with explain_damage(part), filesystem.open_read(part) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=["version", "sha256", "embedding"]):
                chosen = pc.and_(pc.equal(batch["version"], version), pc.is_valid(batch["embedding"]))
                for row in batch.filter(
                    pc.and_(chosen, pc.is_in(batch["sha256"], pa.array(wanted, pa.string())))
                ).to_pylist():
                    vectors[row["sha256"]] = np.asarray(row["embedding"], np.float32)
    return vectors


def _look(parts: list[str]) -> _Seen:
    names: dict[tuple[str, int], str] = {}
    joint: dict[tuple[str, int], str] = {}
    rows, is_single = 0, True
    sums = True
    for row in _read_rows(parts):
        scores = row["classes"]
        rows += 1
        is_single &= len(scores) == 1
        sums &= abs(sum(scores) - 1) < 0.01
        best = max(range(len(scores)), key=scores.__getitem__)
        if row["label"]:
            places = joint if LABEL_SEPARATOR in row["label"] else names
            places.setdefault((row["version"] or "", best), row["label"])
    task: TaskName = "classification" if sums and not is_single else "regression" if is_single else "multilabel"
    if task == "classification":  # a bar in an answer belongs to the name
        names = joint | names
    return _Seen({} if task == "regression" else names, task, rows)


def _list_queues(parts: list[str], seen: _Seen, candidate: _Candidate) -> Iterator[Queue]:
    measure = measure_doubt if seen.task == "classification" else measure_doubts
    if seen.task != "regression":
        about = "Images that the served model was least sure of."
        ranked = _rank(parts, seen, measure)
        yield Queue("uncertain", "Most uncertain", about, _make_items(ranked, "the model is unsure"))
    about = f"The newest images with a novelty of {_NOVEL:.0%} or more: unlike what the model was trained on."
    ranked = _rank(parts, seen, lambda row, _: row["time"].timestamp() if (row["novelty"] or 0) >= _NOVEL else None)
    yield Queue("novel", "Newest novel ones", about, _make_items(ranked, "unlike the training images"))
    if seen.task != "regression":
        about = f"The newest images that version {candidate.version}, in shadow, answers otherwise."
        items = _make_items(_rank(parts, seen, partial(_date_dispute, candidate=candidate, task=seen.task)), "")
        disputed = [
            replace(
                item, why=f"version {candidate.version}, in shadow, says {candidate.labels[item.sha256] or 'nothing'}"
            )
            for item in items
        ]
        yield Queue("disputed", "Candidate and champion disagree", about, disputed)


def _date_dispute(row: Mapping[str, Any], _: object, candidate: _Candidate, task: TaskName) -> float | None:
    """Returns when an image was answered otherwise than in shadow; None if it wasn't."""
    other = candidate.labels.get(row["sha256"])
    if other is None or row["version"] == candidate.version:
        return None
    is_same = set(split_label(row["label"] or "", task)) == set(split_label(other, task))
    return None if is_same else row["time"].timestamp()


def _rank(parts: list[str], seen: _Seen, measure: Any) -> list[tuple[dict[str, Any], list[tuple[str, float]]]]:
    def weigh() -> Iterator[tuple[float, int, dict[str, Any], list[tuple[str, float]]]]:
        for number, row in enumerate(_read_rows(parts)):
            version = row["version"] or ""
            named = [(seen.names.get((version, i), ""), score) for i, score in enumerate(row["classes"])]
            guesses = sorted(named, key=lambda pair: -pair[1])
            if (value := measure(row, guesses)) is not None:
                yield value, -number, row, _keep_named(guesses, seen.task)

    best: dict[str, tuple[dict[str, Any], list[tuple[str, float]]]] = {}
    # One image may have been asked about many times.
    for _, _, row, guesses in heapq.nlargest(4 * MAX_ITEMS, weigh(), key=lambda one: one[:2]):
        best.setdefault(row["sha256"], (row, guesses))
    return list(best.values())[:MAX_ITEMS]


def _keep_named(guesses: list[tuple[str, float]], task: TaskName) -> list[tuple[str, float]]:
    """Returns the guesses with a name: a class that no answer has named yet is called nothing that could be a label.

    If the answer itself is one of these, there is none left that a person could accept by mistake.
    """
    if task == "regression":
        return guesses
    answered = guesses[:1] if task == "classification" else [guess for guess in guesses if guess[1] >= _CERTAIN]
    return [guess for guess in guesses if guess[0]] if all(name for name, _ in answered) else []


def _make_items(ranked: list[tuple[dict[str, Any], list[tuple[str, float]]]], why: str) -> list[Item]:
    return [
        Item(
            row["sha256"],
            (row["metadata"] or b"").decode(errors="replace"),
            None,
            tuple(guesses[:_GUESSES]),
            why,
            f"version {row['version']}" if row["version"] else None,
        )
        for row, guesses in ranked
    ]


def _extract(parts: list[str], wanted: set[str], pictures: Path) -> set[str]:
    """Writes images to files; returns the hashes of those that are as they were sent."""
    originals = set()
    for part in parts:
        with explain_damage(part), filesystem.open_read(part) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(64, columns=["sha256", "image"]):
                for sha256, image in zip(
                    *(batch.column(name).to_pylist() for name in ("sha256", "image")), strict=True
                ):
                    if sha256 not in wanted or not image or sha256 in originals:
                        continue
                    (pictures / sha256).write_bytes(image)
                    if hashlib.sha256(image).hexdigest() == sha256:
                        originals.add(sha256)
    return originals
