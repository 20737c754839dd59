"""Sections of the report about the model: training, mistakes, calibration and curves, as data for the template."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluator.evaluation import CANDIDATE, CHAMPION, CalibrationBucket, Curves, Evaluation
from components.evaluator.metric_names import EXAMPLE_COUNT
from components.model_report.picks import UNKNOWN, Picks, PredictionTable, sample_values
from imagepipe.base.charts import Axis, Chart, Point, draw_chart

_MAX_MATRIX = 20  # classes: a larger matrix becomes a list of its most frequent mistakes
_MAX_PAIRS = 60
_MAX_LABELS = 200
_MAX_CALIBRATED = 12  # labels in the reliability diagram of a multilabel task
_MAX_CURVES = 6  # classes with curves: those with the lowest average precision
_MAX_SCATTER = 1000
_SHADES = 10
_UNIT = (0.0, 1.0)


def draw_training(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draws the loss and each metric computed in training and in validation, over the epochs of ``history.json``."""
    names = [name for name in (history[0] if history else {}) if f"val_{name}" in history[0]]
    charts = []
    for name in names:
        title = name.replace("_", " ")
        series = {
            split: [Point(row["epoch"], row[key]) for row in history if isinstance(row.get(key), int | float)]
            for split, key in (("training", name), ("validation", f"val_{name}"))
        }
        charts.append(draw_chart(title, series, Axis("epoch"), Axis(title)))
    return [chart for chart in charts if chart]


def tabulate_confusion(evaluation: Evaluation, names: list[str], picks: Picks) -> dict[str, Any] | None:
    """Returns the confusion matrix, or for many classes the pairs that are most often confused."""
    confusion = evaluation.confusion
    if not confusion:
        return None
    totals: dict[int, int] = {}
    for (actual, _), count in confusion.items():
        totals[actual] = totals.get(actual, 0) + count

    def make_cell(actual: int, predicted: int) -> dict[str, Any]:
        count = confusion.get((actual, predicted), 0)
        return {
            "key": f"{actual},{predicted}",
            "actual": _name_class(names, actual),
            "predicted": _name_class(names, predicted),
            "count": count,
            "shade": round(_SHADES * count / totals[actual]) if totals.get(actual) else 0,
            "right": actual == predicted,
            "opens": (actual, predicted) in picks.behind,
        }

    if len(names) <= _MAX_MATRIX:
        actuals = [*range(len(names)), *([UNKNOWN] if UNKNOWN in totals else [])]
        rows = [(_name_class(names, a), [make_cell(a, p) for p in range(len(names))]) for a in actuals]
        return {"names": names, "rows": rows}
    wrong = sorted(((count, key) for key, count in confusion.items() if key[0] != key[1]), reverse=True)
    pairs = [make_cell(*key) for _, key in wrong[:_MAX_PAIRS]]
    return {"names": names, "rows": None, "pairs": pairs, "left": len(wrong) - len(pairs)}


def _name_class(names: list[str], index: int) -> str:
    return "(unknown to the model)" if index == UNKNOWN else names[index]


def tabulate_labels(
    evaluation: Evaluation, table: PredictionTable, picks: Picks, thresholds: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns for each label of a multilabel task its metrics, and its images by kind of mistake.

    ``thresholds`` has their decision thresholds, as the training wrote them; those of earlier versions wrote none.
    """
    if table.task != "multilabel":
        return None
    columns = list(
        dict.fromkeys(name for metrics in evaluation.by_label.values() for name in metrics if name != EXAMPLE_COUNT)
    )
    rows = []
    for label, name in enumerate(table.names[:_MAX_LABELS]):
        mistakes = [
            {
                "key": f"{label},{has_label}",
                "count": picks.counts.get((label, has_label), 0),
                "opens": (label, has_label) in picks.behind,
            }
            for has_label in (1, 0)
        ]
        metrics = evaluation.by_label.get(name, {})
        count = int(metrics.get(EXAMPLE_COUNT) or 0)
        values = [metrics.get(column) for column in columns]
        rows.append(
            {"name": name, "count": count, "metrics": values, "mistakes": mistakes, "decided": thresholds.get(name)}
        )
    return {
        "columns": columns,
        "rows": rows,
        "left": len(table.names) - len(rows),
        "has_thresholds": bool(thresholds),
    }


def draw_scatter(table: PredictionTable) -> Chart | None:
    """Draws predicted over actual values of a regression; None for other tasks."""
    if table.task != "regression":
        return None
    points = [Point(actual, predicted) for actual, predicted in sample_values(table, _MAX_SCATTER)]
    return draw_chart(
        "Predicted and actual", {"images": points}, Axis("actual"), Axis("predicted"), diagonal=True, joined=False
    )


def draw_calibration(evaluation: Evaluation, names: list[str]) -> dict[str, Any] | None:
    """Draws a reliability diagram: of the most probable class, or else of the first labels."""
    series: dict[str, list[CalibrationBucket]] = dict(evaluation.confidence)
    if not series:
        series = {
            _name_class(names, index): curves.calibration
            for index, curves in list(evaluation.curves.get(CANDIDATE, {}).items())[:_MAX_CALIBRATED]
        }
    chart = draw_chart(
        "Reliability",
        {name: [Point(b.mean_score, b.share_right) for b in buckets] for name, buckets in series.items()},
        Axis("mean score", _UNIT),
        Axis("share that was right", _UNIT),
        diagonal=True,
    )
    return {"chart": chart, "buckets": evaluation.confidence.get(CANDIDATE, [])} if chart else None


def draw_curves(evaluation: Evaluation, names: list[str]) -> dict[str, Any] | None:
    """Draws precision-recall and ROC curves of the classes with the lowest average precision, and lists all classes."""
    candidate, champion = (evaluation.curves.get(model, {}) for model in (CANDIDATE, CHAMPION))
    if not candidate:
        return None
    worst = sorted(candidate.items(), key=lambda item: item[1].average_precision)[:_MAX_CURVES]

    def list_points(curves: Curves, x: str, y: str) -> list[Point]:
        ends = [] if x == "recall" else [Point(1.0, 1.0)]
        return [*ends, *map(Point, getattr(curves, x), getattr(curves, y))]

    charts = [
        draw_chart(
            title,
            {_name_class(names, index): list_points(curves, x, y) for index, curves in worst},
            Axis(x_name, _UNIT),
            Axis(y_name, _UNIT),
        )
        for title, x_name, y_name, x, y in (
            ("Precision and recall", "recall", "precision", "recall", "precision"),
            ("ROC", "false positive rate", "true positive rate", "false_positive_rate", "recall"),
        )
    ]
    rows = [
        {"name": _name_class(names, index), "curves": curves, "champion": champion.get(index)}
        for index, curves in sorted(candidate.items())
    ]
    return {"charts": [chart for chart in charts if chart], "rows": rows}
