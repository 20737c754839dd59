"""Queues from the newest run of a workdir: what its checks found, and what its model was unsure of."""

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.base.names import FEATURES, FINDINGS, NAMES, ROWS, TaskName
from imagepipe.ingest import dataset, shards
from imagepipe.monitoring.traffic import split_label
from pipeline.labelling.neighbours import find_neighbours
from pipeline.labelling.work import MAX_ITEMS, Item, Queue, Work
from pipeline.runs import metadata_store, provenance
from pipeline.runs.summary import Summary, read_summaries
from pipeline.workdir import Workdir

_ROWS_AT_ONCE = 4096
_GUESSES = 5
_Rank = Callable[[Mapping[str, Any], list[tuple[str, float]]], float | None]


def read_run_work(workdir: Workdir, pictures: Path) -> Work:
    """Reads the queues of the newest run that checked its data.

    Args:
        workdir: with the run.
        pictures: folder that gets the images.

    Raises:
        ModelError: there is no such run, or its dataset is not one of ``imagepipe ingest``.
        IngestError: the dataset can't be read.
    """
    run = max(
        (one for _, one in read_summaries(workdir.runs) if one and one.data_dir),
        key=lambda one: one.run_id,
        default=None,
    )
    origin = provenance.read_origin(workdir.runs / run.run_id) if run else None
    if run is None or origin is None:
        raise ModelError(f"{workdir.root} has no run that has checked its data: run the pipeline first (imagepipe run)")
    if dataset.read_unchecked(filesystem.absolute(origin.dataset.path)) is None:
        raise ModelError(
            f"run {run.run_id} read {origin.dataset.path}, which imagepipe ingest did not write (or which is gone): "
            "labels can be corrected of datasets alone"
        )
    data = dataset.load(origin.dataset.path)
    artifacts = _find_artifacts(workdir, run)
    findings = json.loads(filesystem.read_text(f"{run.data_dir}/{FINDINGS}"))
    answers = Answers(artifacts["predictions"]) if "predictions" in artifacts else None
    queues = [*_list_findings(findings), *(list_uncertain(answers, run.run_id) if answers else ())]
    folder = filesystem.absolute(origin.dataset.path)
    labels = _read_labels(folder, {item.sha256 for queue in queues for item in queue.items})
    notes = [] if answers else ["The run left no predictions, so there is no queue of uncertain images."]
    beside: dict[str, list[str]] = {}
    if "features" in artifacts and "examples" in artifacts:
        beside = find_neighbours(Path(artifacts["features"]) / FEATURES, Path(artifacts["examples"]), set(labels))
    else:
        notes.append("No nearest training images are shown: the run computed no features (no pretrained weights).")
    everything = {*labels, *(sha256 for some in beside.values() for sha256 in some)}
    classes_of = _read_labels(folder, everything)
    task = data.options.task
    complete = [
        _complete_queue(queue, classes_of, beside, answers, run.run_id, is_several=task == "multilabel")
        for queue in queues
    ]
    if gone := len({item.sha256 for queue in queues for item in queue.items} - set(labels)):
        notes.append(f"{gone:,} images that the run lists are no longer in the dataset, and are left out.")
    _extract(folder, data, everything, pictures)
    classes = sorted({label for split in data.splits.values() for label in split.labels})
    return Work(run.run_id, task, classes, [queue for queue in complete if queue.items], pictures, notes=notes)


def _find_artifacts(workdir: Workdir, run: Summary) -> dict[str, str]:
    """Returns the folders of predictions, features and Examples, of those that are there."""
    folders: dict[str, str] = {}
    try:
        with metadata_store.open_store(workdir.metadata) as store:
            executions = metadata_store.read_executions(store, run.name, run.run_id) if store else []
    except metadata_store.BusyError:
        return {}
    for execution in executions:
        for artifact in execution.outputs:
            if artifact.key in ("predictions", "features", "examples") and Path(artifact.uri).is_dir():
                folders.setdefault(artifact.key, artifact.uri)
    return folders


def _list_findings(findings: Mapping[str, Any]) -> list[Queue]:
    errors = [
        Item(
            error["sha256"],
            error["id"],
            error["label"],
            ((error["suggested"], error["suggested_confidence"]), (error["label"], error["confidence"])),
            f"looks more like {error['suggested']} than {error['label']}",
        )
        for error in findings.get("label_errors", ())
    ]
    copies = []
    for group in findings.get("near_duplicates", ()):
        if len({image["split"] for image in group}) < 2:
            continue
        for image in group:
            others = [other for other in group if other is not image]
            beside = tuple((other["sha256"], f"{other['split']}: {other['id']}") for other in others[:4])
            named = ", ".join(f"{other['id']} ({other['split']})" for other in others[:3])
            why = f"in {image['split']}, nearly the same as {named}: keep one of them"
            copies.append(Item(image["sha256"], image["id"], None, (), why, beside=beside))
    return [
        Queue("errors", "Likely label errors", "Images that look more like another class than their own.", errors),
        Queue("copies", "Copies across splits", "Images with a near-duplicate in another split.", copies),
    ]


class Answers:
    """The rows of the component Predictions."""

    def __init__(self, folder: str) -> None:
        """Reads the task and the names of the classes; ``folder`` is the component's output."""
        self.path = Path(folder) / ROWS
        names = json.loads((Path(folder) / NAMES).read_text(encoding="utf-8"))
        self.task, self.names = names["task"], names["candidate"] or []

    def read(self) -> Iterator[tuple[dict[str, Any], list[tuple[str, float]]]]:
        """Yields each row with the candidate's classes and scores, the best first."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    scores = zip(self.names, row["candidate"] or (), strict=False)
                    yield row, sorted(scores, key=lambda pair: -pair[1])

    def read_answer(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the labels of a row that the candidate gave, of several; else none."""
        text = row["candidate_label"] if self.task == "multilabel" else None
        return tuple(split_label(text, self.task)) if text else ()


def list_uncertain(answers: Answers, run: str) -> Iterator[Queue]:
    """Yields the queues that follow from a run's answers, without the images' labels."""
    if answers.task != "regression":
        yield _rank(
            answers, run, ("uncertain", "Most uncertain", "Images of the eval split that the model is least sure of."),
            measure_doubt if answers.task == "classification" else measure_doubts, "the model is unsure",
        )  # fmt: skip
    yield _rank(
        answers, run, ("novel", "Most novel", "Images of the eval split that are least like the training images."),
        lambda row, _: row.get("candidate_novelty"), "unlike the training images",
    )  # fmt: skip
    if answers.task != "regression":  # numbers are hardly ever the same
        yield _rank(
            answers, run,
            ("disputed", "Candidate and champion disagree", "Images that the live model answers otherwise."),
            partial(_is_disputed, task=answers.task), "the live model and this one disagree",
        )  # fmt: skip


def _is_disputed(row: Mapping[str, Any], _: object, task: TaskName) -> bool:
    candidate, champion = row["candidate_label"], row.get("champion_label")
    if champion is None:  # nothing was live; of several labels "" is an answer
        return False
    return set(split_label(candidate or "", task)) != set(split_label(champion, task))


def measure_doubt(_: Mapping[str, Any], guesses: list[tuple[str, float]]) -> float | None:
    """Returns how near the second class is to the first, up to 1 for the same; None if there are no two."""
    return 1 - guesses[0][1] + guesses[1][1] if len(guesses) > 1 else None


def measure_doubts(_: Mapping[str, Any], guesses: list[tuple[str, float]]) -> float | None:
    """Returns how near to one half the least sure label is, up to 1; None if there are no labels."""
    return 1 - 2 * min(abs(score - 0.5) for _, score in guesses) if guesses else None


def _rank(answers: Answers, run: str, named: tuple[str, str, str], measure: _Rank, why: str) -> Queue:
    def weigh() -> Iterator[tuple[float, int, dict[str, Any], list[tuple[str, float]]]]:
        for number, (row, guesses) in enumerate(answers.read()):
            if row["sha256"] and (value := measure(row, guesses)):
                yield float(value), -number, row, guesses

    ranked = heapq.nlargest(MAX_ITEMS, weigh(), key=lambda one: one[:2])
    items = [
        Item(row["sha256"], row["id"], None, tuple(guesses[:_GUESSES]), why, run, answer=answers.read_answer(row))
        for _, _, row, guesses in ranked
    ]
    return Queue(*named, items)


def _read_labels(folder: str, wanted: set[str]) -> dict[str, list[str]]:
    """Returns the labels that images have in the dataset now, by hash."""
    return {
        entry["sha256"]: next(iter(entry["copies"].values()))
        for path, _ in filesystem.walk(f"{folder}/index")
        for entry in shards.read_index(path)
        if entry["sha256"] in wanted and entry["shard"]
    }


def _complete_queue(
    queue: Queue,
    labels: Mapping[str, list[str]],
    beside: Mapping[str, list[str]],
    answers: Answers | None,
    run: str,
    is_several: bool,
) -> Queue:
    """Returns a queue whose images have their present labels and images beside them, without those that are gone."""
    items = []
    is_number = answers is not None and answers.task == "regression"
    for item in queue.items:
        if item.sha256 not in labels:
            continue
        now = labels[item.sha256]
        label = now if is_several else float(now[0]) if is_number else now[0]
        near = tuple((one, "|".join(labels[one])) for one in beside.get(item.sha256, ()) if one in labels)
        kept = tuple(one for one in item.beside if one[0] in labels)
        items.append(replace(item, label=label, model=run, beside=kept or near))
    return Queue(queue.name, queue.title, queue.about, items)


def _extract(folder: str, data: dataset.Dataset, wanted: set[str], pictures: Path) -> None:
    """Writes the images of some hashes to files; reads only shards that have any."""
    for file in (shard.file for split in data.splits.values() for shard in split.shards):
        index = shards.read_index(f"{folder}/{shards.locate_index(file)}")
        if not any(entry["sha256"] in wanted for entry in index):
            continue
        for record in shards.read_records(f"{folder}/{file}", data.options.compress):
            sha256 = tfrecord.read_bytes_feature(record, "sha256")[0].decode()
            if sha256 in wanted:
                (pictures / sha256).write_bytes(tfrecord.read_bytes_feature(record, "input")[0])
