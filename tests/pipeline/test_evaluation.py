import json
import time

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from matplotlib.axes import Axes
from tensorflow_model_analysis.evaluators.metrics_validator import validate_metrics
from tensorflow_model_analysis.metrics.metric_types import MetricKey
from tensorflow_model_analysis.proto import config_pb2, validation_result_pb2

from components.evaluator.evaluation import MetricValue, Slice
from components.evaluator.executor import drop_constant_metrics, override_thresholds
from components.evaluator.gate_rules import DEMANDED, read_outcomes
from imagepipe.base.features import Features
from pipeline.config import EvaluationConfig
from pipeline.eval_config import build_eval_config, list_slice_columns
from pipeline.runs.run_metrics import draw_confusion_matrix


def read_thresholds(config: EvaluationConfig, task="classification"):
    (spec,) = build_eval_config(task, config, Features()).metrics_specs
    return {
        json.loads(metric.config)["name"]: metric.per_slice_thresholds
        for metric in spec.metrics
        if metric.per_slice_thresholds
    }


def test_thresholds_hold_for_the_whole_split_only_and_log_loss_is_an_upper_bound():
    thresholds = read_thresholds(EvaluationConfig(thresholds={"accuracy": 0.9, "log_loss": 0.5}, margin=0.02))
    assert set(thresholds) == {"accuracy", "log_loss"}
    for (per_slice,) in thresholds.values():
        assert [len(s.feature_keys) for s in per_slice.slicing_specs] == [0]
    accuracy = thresholds["accuracy"][0].threshold
    assert accuracy.value_threshold.lower_bound.value == 0.9
    assert accuracy.change_threshold.absolute.value == -0.02
    assert thresholds["log_loss"][0].threshold.value_threshold.upper_bound.value == 0.5


def test_top_k_accuracy_is_measured_only_if_there_are_more_classes_than_k():
    built = build_eval_config("classification", EvaluationConfig(top_k=5), Features())
    names = {
        outputs: [json.loads(metric.config or "{}").get("name") for metric in spec.metrics]
        for outputs in (2, 5, 6)
        for spec in drop_constant_metrics(built, outputs).metrics_specs
    }
    assert names[2] == names[5] == [name for name in names[6] if name != "top_k_accuracy"]
    assert len(names[6]) == len(names[5]) + 1


def test_without_thresholds_the_champion_is_still_compared_with():
    ((per_slice,),) = read_thresholds(EvaluationConfig(thresholds={})).values()
    assert not per_slice.threshold.HasField("value_threshold")
    assert per_slice.threshold.HasField("change_threshold")


def test_errors_are_upper_bounds_and_the_champions_margin_is_a_share_of_its_error():
    config = EvaluationConfig(thresholds={"mean_squared_error": 4, "r_squared": -1}, margin=0.1)
    thresholds = read_thresholds(config, "regression")
    assert thresholds["mean_squared_error"][0].threshold.value_threshold.upper_bound.value == 4
    assert thresholds["r_squared"][0].threshold.value_threshold.lower_bound.value == -1
    change = thresholds["mean_absolute_error"][0].threshold.change_threshold
    assert change.direction == config_pb2.MetricDirection.LOWER_IS_BETTER
    assert change.relative.value == 0.1
    assert not change.HasField("absolute")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_only_a_classification_is_sliced_by_label_and_has_a_confusion_matrix(task):
    eval_config = build_eval_config(task, EvaluationConfig(), Features())
    assert [list(s.feature_keys) for s in eval_config.slicing_specs] == [[], ["image_size"]]
    assert "MultiClassConfusionMatrixAtThresholds" not in {m.class_name for m in eval_config.metrics_specs[0].metrics}


def test_a_model_with_several_labels_is_compared_with_the_champion_by_macro_f1():
    eval_config = build_eval_config("multilabel", EvaluationConfig(margin=0.02), Features(label="tags"))
    (metric,) = [m for m in eval_config.metrics_specs[0].metrics if m.per_slice_thresholds]
    assert json.loads(metric.config) == {"name": "macro_f1", "label_feature": "tags"}
    assert metric.per_slice_thresholds[0].threshold.change_threshold.absolute.value == -0.02


@pytest.mark.parametrize(
    ("confusion", "labels"),
    [
        ({(0, 0): 5, (-1, 1): 2}, ["a", "b"]),
        ({(0, 0): 5}, [str(i) for i in range(60)]),
        ({(0, 0): 5, (1, 1): 2}, ["$0_$10", "$10_$20"]),
        ({(0, 1): 5, (1, 1): 2}, ["\\frac{", "$\\alpha^$ % & <b>"]),
    ],
    ids=["unknown labels", "many classes", "prices", "markup"],
)
def test_a_confusion_matrix_is_drawn_whatever_the_classes_are_called(tmp_path, confusion, labels):
    draw_confusion_matrix(confusion, labels, str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_confusion_matrix_of_thousands_of_classes_is_drawn_in_bounded_time_and_memory(tmp_path, monkeypatch):
    """It took 24 s for 2,000; the last class and the row of unknown labels are in it as well."""
    images, show = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **given: images.append(image) or show(self, image, **given))
    names = [f"class {i}" for i in range(4000)]
    start = time.perf_counter()
    draw_confusion_matrix({(0, 3999): 1, (3999, 0): 3, (3998, 3999): 1, (-1, 1): 2}, names, str(tmp_path / "x.png"))
    assert time.perf_counter() - start < 10
    assert images[0].shape == (801, 800)
    assert {place: image for place, image in np.ndenumerate(images[0]) if image} == {
        (0, 799): 1.0,
        (799, 0): 0.75,
        (799, 799): 0.25,
        (800, 0): 1.0,
    }


def test_a_run_of_a_compiled_pipeline_changes_the_shorthand_and_no_rule():
    rules = [{"metric": "accuracy", "min": 0.3}, {"metric": "accuracy", "slice": {"label": "a"}, "min": 0.2}]
    config = EvaluationConfig.model_validate({"thresholds": {"accuracy": 0.9}, "rules": rules})
    changed = override_thresholds(build_eval_config("classification", config, Features()), {"accuracy": 0.5})
    (metric,) = [m for m in changed.metrics_specs[0].metrics if m.class_name == "SparseCategoricalAccuracy"]
    assert [p.threshold.value_threshold.lower_bound.value for p in metric.per_slice_thresholds] == [0.5, 0.3, 0.2]


def test_each_kind_of_slice_is_computed_once():
    rules = [
        {"metric": "accuracy", "slice": {"camera": "old", "label": "a"}, "min": 0},
        {"metric": "accuracy", "slice": {"label": "a", "camera": "new"}, "min": 0},
        {"metric": "accuracy", "slice": {"camera": "new"}, "min": 0},
    ]
    config = EvaluationConfig.model_validate({"slices": ["camera", "label"], "rules": rules})
    eval_config = build_eval_config("classification", config, Features())
    assert [list(s.feature_keys) for s in eval_config.slicing_specs] == [
        [],
        ["label"],
        ["image_size"],
        ["camera"],
        ["camera", "label"],
    ]
    assert list_slice_columns(config, Features()) == [["camera"]]


@pytest.fixture
def judge(tmp_path):
    """Returns the outcomes of rules by TFMA's own validation, given the accuracy of each slice by one column."""

    def judge(column, accuracies, rules):
        config = EvaluationConfig.model_validate({"thresholds": {}, "rules": rules})
        demanded = build_eval_config("classification", config, Features())
        values = {(): 0.8} | {((column, value),): accuracy for value, accuracy in accuracies.items()}
        merged, slices = validation_result_pb2.ValidationResult(), {}
        for key, accuracy in values.items():
            metric = MetricKey("accuracy")
            merged.MergeFrom(validate_metrics((key, {metric: accuracy}), demanded))
            columns = {name: str(value) for name, value in key}
            slices[key] = Slice(columns, 9, {"accuracy": MetricValue(accuracy)}, None, {}, None)
        with tf.io.TFRecordWriter(str(tmp_path / "validations.tfrecord")) as writer:
            writer.write(merged.SerializeToString())
        (tmp_path / DEMANDED).write_text(json_format.MessageToJson(demanded))
        return [(r.slice, r.value, r.verdict) for r in read_outcomes(str(tmp_path), slices) if r.slice]

    return judge


@pytest.mark.parametrize("column", ["label", "camera"])
@pytest.mark.parametrize("values", [("7", "007"), ("007", "7"), ("1.0", "1.00"), ("1.00", "1.0"), ("7", "\uff17")])
def test_a_rule_judges_the_slice_that_it_names_and_none_whose_text_is_the_same_number(judge, column, values):
    rules = [{"metric": "accuracy", "slice": {column: value}, "min": 0.9} for value in values]
    good, bad = values
    assert judge(column, {good: 0.95, bad: 0.5}, rules) == [
        ({column: good}, 0.95, "passed"),
        ({column: bad}, 0.5, "refused"),
    ]
    assert judge(column, {good: 0.95}, rules[1:]) == [({column: bad}, None, "refused")]


def test_a_rule_names_a_number_in_any_way_of_writing_it(judge):
    rules = [{"metric": "accuracy", "slice": {"year": text}, "min": 0.9} for text in ("2020", "02020", "1.50")]
    assert judge("year", {2020: 0.95, 1.5: 0.5}, rules) == [
        ({"year": "2020"}, 0.95, "passed"),
        ({"year": "02020"}, 0.95, "passed"),
        ({"year": "1.50"}, 0.5, "refused"),
    ]
