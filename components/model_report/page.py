"""Makes the page of the report: one HTML file that needs no other file and no host."""

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
from PIL import Image

from components.evaluator.evaluation import Evaluation
from components.model_report import evaluation_sections, grad_cam, pictures
from components.model_report.data_section import describe_data
from components.model_report.picks import (
    Pick,
    Picks,
    PredictionTable,
    format_actual,
    format_predicted,
    pick_images,
    read_predictions,
)
from imagepipe.base.features import Features
from imagepipe.base.names import CALIBRATION, FINDINGS, OPTIMIZED, STATISTICS, THRESHOLDS, TRAINING_FOLDER
from imagepipe.base.templates import load_templates
from imagepipe.serving.types import CheckReport

_HERE = Path(__file__).parent
_LARGE, _SMALL = 128, 64  # pixels of the longer side of a picture
_MAX_SLICES = 500
_PACKAGES = (
    "imagepipe-tfx",
    "tfx",
    "tensorflow",
    "keras",
    "tensorflow-transform",
    "tensorflow-model-analysis",
    "numpy",
)

# In a script element of any type, "</script" and "<!--" have a meaning; as \u003c they are text.
_NO_MARKUP = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class PageInputs:
    """The inputs of a page; folders are on this machine.

    Attributes:
        evaluation: the Evaluator's results.
        predictions: folder that Predictions wrote.
        splits: folders of the splits of the Examples, by name; ``eval`` is among them.
        model: folder of the candidate's SavedModel.
        findings: folder that DataCheck wrote; None if there is none.
        serving: result of ServingCheck.
        features: names of an Example's features.
        name: name of the pipeline.
        config: the configuration, as plain data.
    """

    evaluation: Evaluation
    predictions: Path
    splits: Mapping[str, str]
    model: Path
    findings: Path | None
    serving: CheckReport
    features: Features
    name: str
    config: Mapping[str, Any]


def render_page(inputs: PageInputs) -> str:
    """Returns the page as HTML."""
    evaluation, table = inputs.evaluation, read_predictions(inputs.predictions)
    picks = pick_images(table)
    training = inputs.model.parent / TRAINING_FOLDER
    urls = _load_pictures(inputs, table, picks, training)
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    return _load_template().render(
        name=inputs.name,
        task=table.task,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reasons=[*evaluation.refusals, *inputs.serving.problems],
        unchecked=evaluation.unchecked,
        champion_note=evaluation.champion_note,
        rules=evaluation.rules,
        whole=evaluation.whole,
        slices=[part for part in evaluation.slices if part.columns][:_MAX_SLICES],
        slices_left=max(0, len(evaluation.slices) - 1 - _MAX_SLICES),
        metrics=list(evaluation.whole.metrics),
        training=evaluation_sections.draw_training(_read_json(training / "history.json") or []),
        confusion=evaluation_sections.tabulate_confusion(evaluation, table.names, picks),
        by_label=evaluation_sections.tabulate_labels(evaluation, table, picks, _read_json(training / THRESHOLDS) or {}),
        scatter=evaluation_sections.draw_scatter(table),
        mistakes=[_make_card(table, pick, urls) for pick in picks.mistakes],
        uncertain=[_make_card(table, pick, urls) for pick in picks.uncertain],
        novel=[_make_card(table, pick, urls) for pick in picks.novel],
        explained=any(key.startswith("h") for key in urls),
        unexplained=_explain_missing_heat_maps(training),
        calibration=evaluation_sections.draw_calibration(evaluation, table.names),
        curves=evaluation_sections.draw_curves(evaluation, table.names),
        data=_describe_data(inputs),
        serving=inputs.serving,
        served=_read_json(training / OPTIMIZED),
        calibrated=_read_json(training / CALIBRATION),
        features=inputs.features,
        labels=table.names,
        config=json.dumps(inputs.config, indent=1),
        settings=_read_json(training / "config.json"),
        versions=dict(_list_versions()),
        island=json.dumps(_collect_cells(table, picks, urls)).translate(_NO_MARKUP),
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@functools.cache
def _load_template() -> jinja2.Template:
    environment = load_templates(_HERE)
    environment.filters["figure"] = lambda value: "not a number" if value is None else f"{value:.4f}"
    environment.filters["short"] = lambda value: "" if value is None else f"{value:.5g}"
    return environment.get_template("page.html")


def _load_pictures(inputs: PageInputs, table: PredictionTable, picks: Picks, training: Path) -> dict[str, str]:
    """Returns URLs by ``r<row>`` (a small picture), ``b<row>`` (a larger one) and ``h<row>`` (with its heat map)."""
    outputs = {pick.row: pick.output for pick in [*picks.mistakes, *picks.uncertain, *picks.novel]}
    small = {row for rows in picks.behind.values() for row in rows}
    rows = {int(table.indexes[row]): row for row in {*outputs, *small}}
    urls: dict[str, str] = {}
    large: dict[int, Image.Image] = {}
    records: dict[int, bytes] = {}
    for position, record in pictures.read_examples(inputs.splits["eval"], lambda position, _: position in rows):
        row = rows[position]
        picture = pictures.decode_picture(pictures.read_encoded_image(record, inputs.features), _LARGE)
        if picture is None:
            continue
        if row in small:
            urls[f"r{row}"] = pictures.format_data_url(pictures.resize_picture(picture, _SMALL))
        if row in outputs:
            urls[f"b{row}"] = pictures.format_data_url(picture)
            large[row], records[row] = picture, record
    if (training / "model.keras").is_file() and records:
        heat_maps = grad_cam.compute_heat_maps(training / "model.keras", inputs.model, records, outputs)
        for row, heat in heat_maps.items():
            urls[f"h{row}"] = pictures.format_data_url(grad_cam.overlay_heat_map(large[row], heat))
    return urls


def _explain_missing_heat_maps(training: Path) -> str:
    if (training / "model.keras").is_file():
        return (
            "No heat maps (Grad-CAM): the backbone's last features are no map of the image, as of one of your own, or "
            "have one position only, as for images this small."
        )
    return "No heat maps (Grad-CAM): there is no Keras model beside the SavedModel."


def _make_card(table: PredictionTable, pick: Pick, urls: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": table.ids[pick.row],
        "actual": format_actual(table, pick.row),
        "predicted": format_predicted(table, pick.row),
        "output": table.names[pick.output],
        "novelty": float(table.novelty[pick.row]),
        "image": urls.get(f"b{pick.row}"),
        "heat": urls.get(f"h{pick.row}"),
    }


def _collect_cells(table: PredictionTable, picks: Picks, urls: Mapping[str, str]) -> dict[str, Any]:
    """Returns the images behind the counts, for the page's script."""
    rows = [row for behind in picks.behind.values() for row in behind if f"r{row}" in urls]
    return {
        "cells": {f"{a},{b}": [f"r{row}" for row in behind] for (a, b), behind in picks.behind.items()},
        "images": {
            f"r{row}": {
                "src": urls[f"r{row}"],
                "id": table.ids[row],
                "actual": format_actual(table, row),
                "predicted": format_predicted(table, row),
            }
            for row in rows
        },
    }


def _describe_data(inputs: PageInputs) -> dict[str, Any] | None:
    if inputs.findings is None:
        return None
    findings, statistics = (_read_json(inputs.findings / name) or {} for name in (FINDINGS, STATISTICS))
    return describe_data(findings, statistics, inputs.splits, inputs.features)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _list_versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
