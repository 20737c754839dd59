"""Fills the page: one file that needs no other and no host."""

import base64
import datetime
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from components.evaluator.evaluation import CANDIDATE, CHAMPION, CalibrationBucket, Curves, Evaluation
from components.evaluator.metric_names import EXAMPLE_COUNT
from components.model_report import charts, picks, pictures
from components.model_report.picks import UNKNOWN, Picks, Rows
from imagepipe.base.features import Features
from imagepipe.base.names import FINDINGS, OPTIMIZED, STATISTICS, TRAINING_FOLDER
from imagepipe.serving.types import CheckReport

_HERE = Path(__file__).parent
_LARGE, _SMALL = 128, 64  # pixels of the longer side of a picture
_MATRIX = 20  # classes: a larger matrix is a list of its most frequent mistakes
_PAIRS = 60
_CURVES = 12  # classes with curves: those that are ranked worst
_SCATTER = 1000
_SUSPECTS, _COPIES = 24, 12  # label-error candidates and groups of near-duplicates with pictures
_COPIED = 4  # images of such a group
_FINDINGS, _LABELS, _ALL_SLICES = 100, 200, 500
_LOOKED_THROUGH = 50_000  # Examples of a split, for pictures of what the data check names
_SHADES = 10
_HISTOGRAM = 24
_PACKAGES = (
    "imagepipe-tfx",
    "tfx",
    "tensorflow",
    "keras",
    "tensorflow-transform",
    "tensorflow-model-analysis",
    "numpy",
)


@dataclass(frozen=True)
class Inputs:
    """Folders on this machine, and what is known.

    Attributes:
        evaluation: what the Evaluator found.
        predictions: what Predictions wrote.
        splits: those of the Examples, by name; ``eval`` is among them.
        model: the candidate's SavedModel.
        findings: what DataCheck wrote; None if there is none.
        blessed: what the Evaluator decided.
        serving: what ServingCheck found.
        features: which feature of an Example is what.
        name: the pipeline's.
        config: the configuration, as plain data.
    """

    evaluation: Evaluation
    predictions: Path
    splits: Mapping[str, str]
    model: Path
    findings: Path | None
    blessed: bool
    serving: CheckReport
    features: Features
    name: str
    config: Mapping[str, Any]


def render(given: Inputs) -> str:
    """Makes the page, as HTML."""
    found, said = given.evaluation, picks.load(given.predictions)
    picks = picks.pick(said)
    training = given.model.parent / TRAINING_FOLDER
    shown = _pictures(given, said, picks, training)
    data = _data(given)
    script = (_HERE / "script.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    cells = {f"{a},{b}": [f"r{row}" for row in behind] for (a, b), behind in picks.behind.items()}
    captions = {
        f"r{row}": {
            "src": shown[f"r{row}"],
            "id": said.ids[row],
            "actual": picks.actual(said, row),
            "said": picks.said(said, row),
        }
        for behind in picks.behind.values()
        for row in behind
        if f"r{row}" in shown
    }
    return _template().render(
        name=given.name,
        task=said.task,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        passed=given.blessed and not given.serving.problems,
        reasons=_reasons(given, found),
        rules=found.rules,
        whole=found.whole,
        slices=[part for part in found.slices if part.columns][:_ALL_SLICES],
        slices_left=max(0, len(found.slices) - 1 - _ALL_SLICES),
        metrics=list(found.whole.metrics),
        training=_training(training),
        confusion=_confusion(found, said.names, picks),
        by_label=_by_label(found, said, picks),
        scatter=_scatter(said),
        mistakes=[_card(said, each, shown) for each in picks.mistakes],
        uncertain=[_card(said, each, shown) for each in picks.uncertain],
        explained=any(key.startswith("h") for key in shown),
        unexplained=_unexplained(training),
        calibration=_calibration(found, said.names),
        curves=_curves(found, said.names),
        data=data,
        serving=given.serving,
        served=_json(training / OPTIMIZED),
        features=given.features,
        labels=said.names,
        config=json.dumps(given.config, indent=1),
        settings=_json(training / "config.json"),
        versions=dict(_versions()),
        island=json.dumps({"cells": cells, "images": captions}).translate(_NO_MARKUP),
        style=(_HERE / "style.css").read_text(),
        script=script,
        digest=digest,
        size=(charts.WIDTH, charts.HEIGHT),
    )


# In a script element, whatever its type, "</script" and "<!--" have a meaning; as \u003c they are text.
_NO_MARKUP = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value: "not a number" if value is None else f"{value:.4f}"
    environment.filters["short"] = lambda value: "" if value is None else f"{value:.5g}"
    return environment.get_template("page.html")


def _reasons(given: Inputs, found: Evaluation) -> list[str]:
    reasons = [rule.because for rule in found.rules if rule.verdict == "refused"]
    if not given.blessed and not reasons:
        reasons.append("the Evaluator did not bless it, and none of the rules says why")
    return [*reasons, *given.serving.problems]


def _pictures(given: Inputs, said: Rows, picks: Picks, training: Path) -> dict[str, str]:
    """URLs by ``r<row>`` (a small picture), ``b<row>`` (a larger one) and ``h<row>`` (with its heat map)."""
    explained = {each.row: each.output for each in [*picks.mistakes, *picks.uncertain]}
    wanted = {
        int(said.indexes[row]): row for row in {*explained, *(i for behind in picks.behind.values() for i in behind)}
    }
    made: dict[str, str] = {}
    large: dict[int, Any] = {}
    records: dict[int, bytes] = {}
    small = {row for behind in picks.behind.values() for row in behind}
    for place, record in pictures.read(given.splits["eval"], lambda place, _: place in wanted):
        row, data = wanted[place], pictures.encoded(record, given.features)
        image = pictures.picture(data, _LARGE)
        if image is None:
            continue
        if row in small:
            made[f"r{row}"] = pictures.data_url(pictures.shrunk(image, _SMALL))
        if row in explained:
            made[f"b{row}"] = pictures.data_url(image)
            large[row], records[row] = image, record
    if (training / "model.keras").is_file() and records:
        heat = pictures.heat_maps(training / "model.keras", given.model, records, explained)
        made |= {f"h{row}": pictures.data_url(pictures.overlaid(large[row], each)) for row, each in heat.items()}
    return made


def _unexplained(training: Path) -> str:
    if (training / "model.keras").is_file():
        return "No heat maps (Grad-CAM): of images this small the backbone's last features have one place only."
    return "No heat maps (Grad-CAM): there is no Keras model beside the one that serves."


def _card(said: Rows, pick: picks.Pick, shown: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": said.ids[pick.row],
        "actual": picks.actual(said, pick.row),
        "said": picks.said(said, pick.row),
        "about": said.names[pick.output],
        "image": shown.get(f"b{pick.row}"),
        "heat": shown.get(f"h{pick.row}"),
    }


def _training(folder: Path) -> list[charts.Chart]:
    """Curves of the loss and of each metric that has one on both splits."""
    history = _json(folder / "history.json") or []
    names = [name for name in (history[0] if history else {}) if f"val_{name}" in history[0]]
    drawn = [
        charts.chart(
            name.replace("_", " "),
            "epoch",
            name.replace("_", " "),
            {
                split: [(row["epoch"], row[key]) for row in history if isinstance(row.get(key), int | float)]
                for split, key in (("training", name), ("eval", f"val_{name}"))
            },
        )
        for name in names
    ]
    return [each for each in drawn if each]


def _confusion(found: Evaluation, names: list[str], picks: Picks) -> dict[str, Any] | None:
    """A matrix, or with many classes the pairs that are most often taken for each other."""
    if not found.confusion:
        return None
    totals: dict[int, int] = {}
    for (actual, _), count in found.confusion.items():
        totals[actual] = totals.get(actual, 0) + count

    def cell(actual: int, predicted: int) -> dict[str, Any]:
        count = found.confusion.get((actual, predicted), 0)
        return {
            "key": f"{actual},{predicted}",
            "actual": _name(names, actual),
            "predicted": _name(names, predicted),
            "count": count,
            "shade": round(_SHADES * count / totals[actual]) if totals.get(actual) else 0,
            "right": actual == predicted,
            "opens": (actual, predicted) in picks.behind,
        }

    if len(names) <= _MATRIX:
        actuals = [*range(len(names)), *([UNKNOWN] if UNKNOWN in totals else [])]
        table = [(_name(names, a), [cell(a, p) for p in range(len(names))]) for a in actuals]
        return {"names": names, "rows": table}
    wrong = sorted(((count, key) for key, count in found.confusion.items() if key[0] != key[1]), reverse=True)
    pairs = [cell(*key) for _, key in wrong[:_PAIRS]]
    return {"names": names, "rows": None, "pairs": pairs, "left": len(wrong) - len(pairs)}


def _name(names: list[str], place: int) -> str:
    return "(unknown to the model)" if place == UNKNOWN else names[place]


def _by_label(found: Evaluation, said: Rows, picks: Picks) -> dict[str, Any] | None:
    """Of several labels each with its figures, and the images that it was missed in and wrongly given to."""
    if said.task != "multilabel":
        return None
    columns = list(dict.fromkeys(name for figures in found.by_label.values() for name in figures if name != EXAMPLE_COUNT))
    table = []
    for place, name in enumerate(said.names):
        wrong = [
            {
                "key": f"{place},{there}",
                "count": picks.counts.get((place, there), 0),
                "opens": (place, there) in picks.behind,
            }
            for there in (1, 0)
        ]
        figures = found.by_label.get(name, {})
        count = int(figures.get(EXAMPLE_COUNT) or 0)
        table.append({"name": name, "count": count, "figures": [figures.get(c) for c in columns], "wrong": wrong})
    return {"columns": columns, "rows": table[:_LABELS], "left": max(0, len(table) - _LABELS)}


def _scatter(said: Rows) -> charts.Chart | None:
    if said.task != "regression":
        return None
    return charts.chart(
        "Predicted and actual",
        "actual",
        "predicted",
        {"images": picks.scatter(said, _SCATTER)},
        diagonal=True,
        dots_only=True,
    )


def _calibration(found: Evaluation, names: list[str]) -> dict[str, Any] | None:
    """A reliability diagram: of the most probable class, else of the labels that have most images."""
    series: dict[str, list[CalibrationBucket]] = dict(found.confidence)
    if not series:
        series = {
            _name(names, place): each.calibration
            for place, each in list(found.curves.get(CANDIDATE, {}).items())[:_CURVES]
        }
    drawn = charts.chart(
        "Reliability",
        "said",
        "came true",
        {name: [(bucket.said, bucket.right) for bucket in buckets] for name, buckets in series.items()},
        x=(0, 1),
        y=(0, 1),
        diagonal=True,
    )
    return {"chart": drawn, "buckets": found.confidence.get(CANDIDATE, [])} if drawn else None


def _curves(found: Evaluation, names: list[str]) -> dict[str, Any] | None:
    of_candidate, of_champion = (found.curves.get(model, {}) for model in (CANDIDATE, CHAMPION))
    if not of_candidate:
        return None
    worst = sorted(of_candidate.items(), key=lambda item: item[1].average_precision)[:_CURVES]

    def each(curves: Curves, x: str, y: str) -> charts.Points:
        ends = [] if x == "recall" else [(1.0, 1.0)]
        points = list(zip(getattr(curves, x), getattr(curves, y), strict=True))
        return [*ends, *points]

    drawn = [
        charts.chart(title, x_name, y_name, {_name(names, p): each(c, x, y) for p, c in worst[:6]}, x=(0, 1), y=(0, 1))
        for title, x_name, y_name, x, y in (
            ("Precision and recall", "recall", "precision", "recall", "precision"),
            ("ROC", "false positive rate", "true positive rate", "false_positive_rate", "recall"),
        )
    ]
    table = [
        {"name": _name(names, place), "curves": curves, "champion": of_champion.get(place)}
        for place, curves in sorted(of_candidate.items())
    ]
    return {"charts": [one for one in drawn if one], "rows": table}


def _data(given: Inputs) -> dict[str, Any] | None:
    """What DataCheck found, with pictures of the images that it suspects."""
    if given.findings is None:
        return None
    found = _json(given.findings / FINDINGS) or {}
    statistics = _json(given.findings / STATISTICS) or {}
    suspects = found.get("label_errors", [])[:_SUSPECTS]
    copies = found.get("near_duplicates", [])[:_COPIES]
    asked: dict[str, set[str]] = {}
    for each in [*suspects, *(one for group in copies for one in group[:_COPIED])]:
        asked.setdefault(each["split"], set()).add(each["id"])
    images: dict[tuple[str, str], str] = {}
    for split, ids in asked.items():
        if split in given.splits:
            for key, data in pictures.by_id(given.splits[split], given.features, ids, _LOOKED_THROUGH).items():
                if image := pictures.picture(data, _LARGE * 3 // 4):
                    images[split, key] = pictures.data_url(image)

    def with_image(each: dict[str, Any]) -> dict[str, Any]:
        return each | {"image": images.get((each["split"], each["id"]))}

    return {
        "findings": found.get("findings", [])[:_FINDINGS],
        "findings_left": max(0, len(found.get("findings", [])) - _FINDINGS),
        "suspects": [with_image(each) for each in suspects],
        "suspects_all": len(found.get("label_errors", [])),
        "copies": [
            {"shown": [with_image(each) for each in group[:_COPIED]], "left": max(0, len(group) - _COPIED)}
            for group in copies
        ],
        "copies_all": len(found.get("near_duplicates", [])),
        "splits": {name: split["count"] for name, split in statistics.items()},
        "labels": _label_counts(statistics),
        "columns": _columns(statistics),
    }


def _label_counts(statistics: dict[str, Any]) -> list[tuple[str, list[int]]]:
    names = sorted({label for split in statistics.values() for label in split["labels"]})
    return [(name, [split["labels"].get(name, 0) for split in statistics.values()]) for name in names[:_LABELS]]


def _columns(statistics: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for split, known in statistics.items():
        for name, column in known["columns"].items():
            found.append({"split": split, "name": name, "of": column, "bars": _bars(column.get("histogram") or [])})
    return sorted(found, key=lambda each: each["name"])


def _bars(histogram: list[Any]) -> list[tuple[float, float]]:
    """(place, height) of the bars of a histogram, heights 0 to 20."""
    counts = [count for _, _, count in histogram[:_HISTOGRAM]]
    most = max(counts, default=0)
    return [(i * 5.0, round(20 * count / most, 1)) for i, count in enumerate(counts)] if most else []


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
