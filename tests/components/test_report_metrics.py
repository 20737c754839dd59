import json
import math

import numpy as np
import pytest
from google.protobuf import json_format
from kfp import dsl
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_entrypoint_utils

from components.evaluator.evaluation import CANDIDATE, CHAMPION, Curves, Evaluation, MetricValue, RuleOutcome, Slice
from components.kfp_artifacts import ClassificationMetrics
from components.model_report.kfp_metrics import (
    MAX_CLASSES,
    OTHERS,
    UNKNOWN,
    collect_classification_metrics,
    collect_metrics,
)

REFUSED = RuleOutcome(
    "accuracy", {}, "min", 0.8, False, None, 0.75, (0.5, 1.0), None, None, None, None, "refused", "it is too low"
)


def make_evaluation(confusion=None, curves=None, metrics=None, champion=None, rules=()) -> Evaluation:
    whole = Slice({}, 8, metrics or {}, champion, {}, None)
    return Evaluation([whole], {}, confusion or {}, curves or {}, {}, list(rules))


def make_curves(recall: list[float], false_positive_rate: list[float]) -> Curves:
    thresholds = [0.0, 0.25, 0.75]
    return Curves(thresholds, [], recall, false_positive_rate, [], 0, 0, 0, [])


def test_metrics_are_those_of_all_images_of_both_models_and_the_blessing():
    metrics = {"accuracy": MetricValue(0.75, (0.5, 1.0)), "log_loss": MetricValue(None)}
    assert collect_metrics(make_evaluation(metrics=metrics, rules=[REFUSED])) == {
        "blessed": 0.0,
        "example_count": 8.0,
        "accuracy": 0.75,
    }
    evaluation = make_evaluation(metrics=metrics, champion={"accuracy": MetricValue(0.5)})
    collected = collect_metrics(evaluation)
    assert (collected["blessed"], collected["champion_accuracy"]) == (1.0, 0.5)
    assert all(map(math.isfinite, collected.values()))


def test_matrix_and_curve_are_what_kfp_itself_makes():
    evaluation = make_evaluation(
        {(0, 0): 3, (0, 1): 1, (1, 2): 2, (2, 2): 2},
        {
            CANDIDATE: {
                0: make_curves([1.0, 0.9, 0.5], [0.8, 0.4, 0.0]),
                2: make_curves([1.0, 0.7, 0.1], [0.6, 0.2, 0.1]),
            },
            CHAMPION: {0: make_curves([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])},
        },
    )
    kfps = dsl.ClassificationMetrics()
    kfps.log_confusion_matrix(["a", "b", "c"], [[3, 1, 0], [0, 0, 2], [0, 0, 2]])
    kfps.log_roc_curve(fpr=[0, 0.05, 0.3, 1], tpr=[0, 0.3, 0.8, 1], threshold=[1, 0.75, 0.25, 0])
    metrics = collect_classification_metrics(evaluation, ["a", "b", "c"])
    assert metrics.pop("roc_of") == "mean of 2, each against the rest"
    assert metrics["confusionMatrix"] == kfps.metadata["confusionMatrix"]
    for point, theirs in zip(metrics["confidenceMetrics"], kfps.metadata["confidenceMetrics"], strict=True):
        assert point == pytest.approx(theirs)
    assert set(metrics) == set(kfps.metadata)


def test_properties_leave_the_container_as_kfp_would_have_written_them():
    curves = make_curves([1.0, 0.5, 0.0], [1.0, 0.5, 0.0])
    evaluation = make_evaluation({(0, 0): 3, (1, 0): 1}, {CANDIDATE: {1: curves}})
    metadata = collect_classification_metrics(evaluation, ["no", "yes"])
    artifact = ClassificationMetrics()
    for name, value in metadata.items():
        artifact.set_json_value_custom_property(name, value)
    left = json_format.MessageToJson(kubeflow_v2_entrypoint_utils.to_runtime_artifact(artifact, {}))
    assert json.loads(left)["metadata"] == metadata


def test_of_two_classes_the_curve_is_the_seconds():
    second = make_curves([1.0, 0.5, 0.25], [0.75, 0.5, 0.0])
    evaluation = make_evaluation({(0, 0): 1}, {CANDIDATE: {0: make_curves([0.0] * 3, [0.0] * 3), 1: second}})
    metrics = collect_classification_metrics(evaluation, ["no", "yes"])
    assert metrics["roc_of"] == "yes"
    assert [point["recall"] for point in metrics["confidenceMetrics"]] == [0.0, 0.25, 0.5, 1.0]
    two_labels = collect_classification_metrics(make_evaluation(curves=evaluation.curves), ["no", "yes"])
    assert two_labels["roc_of"] == "mean of 2, each against the rest"
    assert "confusionMatrix" not in two_labels


def test_labels_that_the_model_does_not_know_have_a_row_of_their_own():
    metrics = collect_classification_metrics(make_evaluation({(0, 0): 2, (-1, 1): 3}), ["a", "b"])
    matrix = metrics["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["a", "b", UNKNOWN]
    assert [row["row"] for row in matrix["rows"]] == [[2, 0, 0], [0, 0, 0], [0, 3, 0]]


def test_of_many_classes_those_are_shown_that_are_most_often_confused():
    names = [f"class {number}" for number in range(1000)]
    confusion = {(number, number): 10 for number in range(1000)} | {(500, 900): 7, (3, 4): 1}
    matrix = collect_classification_metrics(make_evaluation(confusion), names)["confusionMatrix"]
    categories = [spec["displayName"] for spec in matrix["annotationSpecs"]]
    rows = np.array([row["row"] for row in matrix["rows"]])
    assert rows.shape == (MAX_CLASSES, MAX_CLASSES)
    assert rows.sum() == sum(confusion.values())
    assert {"class 3", "class 4", "class 500", "class 900"} < set(categories)
    assert categories[-1] == OTHERS
    assert categories[:-1] == sorted(categories[:-1], key=names.index)
    assert rows[categories.index("class 500"), categories.index("class 900")] == 7
    assert rows[-1, -1] == 10 * (1000 - MAX_CLASSES + 1)


def test_a_regression_has_neither():
    assert collect_classification_metrics(make_evaluation(), ["price"]) == {}
