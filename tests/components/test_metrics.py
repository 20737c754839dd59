import apache_beam as beam
import numpy as np
import pytest
from sklearn.metrics import (
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
)
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator import tfma_label_metrics, tfma_metrics


def compute_metric(
    metric: tfma_metrics.MacroF1 | tfma_metrics.LogLoss | tfma_metrics.RegressionScore,
    labels: list[float],
    probabilities: np.ndarray,
) -> float:
    """Runs a metric's computations as TFMA does: combine over examples on Beam, then derive."""
    config = config_pb2.EvalConfig(model_specs=[config_pb2.ModelSpec()])
    (combined, *derived) = metric.computations(eval_config=config, model_names=[""], example_weighted=False)
    inputs = [
        metric_types.StandardMetricInputs(label=np.array([y]), prediction=p, example_weight=np.array([1.0]))
        for y, p in zip(labels, probabilities, strict=True)
    ]
    combiner = combined.combiner
    halves = []
    for part in (inputs[::2], inputs[1::2]):
        accumulator = combiner.create_accumulator()
        for element in part:
            accumulator = combiner.add_input(accumulator, element)
        halves.append(accumulator)
    results = combiner.extract_output(combiner.merge_accumulators(halves))
    for computation in derived:
        results = computation.result(results)
    (value,) = results.values()
    return float(value)


@pytest.fixture
def predictions() -> tuple[list[int], np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 200)
    labels = [int(rng.choice(5, p=p)) for p in probabilities]
    return labels, probabilities


def test_macro_f1_is_that_of_scikit_learn(predictions):
    labels, probabilities = predictions
    expected = f1_score(labels, probabilities.argmax(axis=1), average="macro")
    assert compute_metric(tfma_metrics.MacroF1(), labels, probabilities) == pytest.approx(expected)


def test_log_loss_is_the_mean_negative_logarithm_of_the_labels_probability(predictions):
    labels, probabilities = predictions
    expected = -np.log(probabilities[np.arange(200), labels]).mean()
    assert compute_metric(tfma_metrics.LogLoss(), labels, probabilities) == pytest.approx(expected)


def test_a_label_the_model_does_not_know_costs_much_and_fails_nothing(predictions):
    _, probabilities = predictions
    assert compute_metric(tfma_metrics.LogLoss(), [-1] * 200, probabilities) == pytest.approx(-np.log(1e-7))
    assert compute_metric(tfma_metrics.MacroF1(), [-1] * 200, probabilities) == 0


def test_without_examples_metrics_are_not_a_number():
    assert np.isnan(tfma_metrics.compute_macro_f1({}))
    combiner = tfma_metrics._LogLossCombiner(metric_types.MetricKey("x"), None)
    assert isinstance(combiner, beam.CombineFn)
    assert all(np.isnan(v) for v in combiner.extract_output(combiner.create_accumulator()).values())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mean_absolute_error", mean_absolute_error),
        ("mean_squared_error", mean_squared_error),
        ("r_squared", r2_score),
    ],
)
def test_metrics_of_a_regression_are_those_of_scikit_learn(name, theirs):
    rng = np.random.default_rng(0)
    targets = rng.normal(50, 3, 200)
    values = targets + rng.normal(1, 2, 200)
    computed = compute_metric(tfma_metrics.RegressionScore(name), list(targets), values[:, None])
    assert computed == pytest.approx(theirs(targets, values))


@pytest.mark.parametrize("targets", [[2.0] * 4, [0.1] * 7, [346.7]])
def test_targets_without_variation_have_no_r_squared(targets):
    predictions = np.ones((len(targets), 1))
    assert np.isnan(compute_metric(tfma_metrics.RegressionScore("r_squared"), targets, predictions))


TRUE = [{"a", "b"}, {"a"}, set(), {"c"}, {"b", "new"}]
PREDICTED = [{"a"}, {"a", "b"}, {"c"}, {"c"}, {"b"}]


def count_labels(make_features) -> tfma_label_metrics.LabelCounts:
    key = metric_types.MetricKey("_label_counts")
    counter = tfma_label_metrics._LabelCounter(key, "tags")
    accumulators = []
    for true, predicted in zip(TRUE, PREDICTED, strict=True):
        features, answer = make_features(true, predicted)
        element = metric_types.StandardMetricInputs(features=features, predictions={"label": answer})
        accumulators.append(counter.add_input(counter.create_accumulator(), element))
    (counts,) = counter.extract_output(counter.merge_accumulators(accumulators)).values()
    return counts


def make_arrays(true: set[str], predicted: set[str]):
    return {"tags": np.array([x.encode() for x in sorted(true)])}, np.array("|".join(sorted(predicted)).encode())


def test_predicted_labels_are_scored_as_scikit_learn_does():
    names = ["a", "b", "c", "new"]
    true, predicted = ([[int(name in row) for name in names] for row in rows] for rows in (TRUE, PREDICTED))
    counts = count_labels(make_arrays)
    for name, function, average in (
        ("precision", precision_score, "micro"),
        ("recall", recall_score, "micro"),
        ("micro_f1", f1_score, "micro"),
        ("macro_f1", f1_score, "macro"),
    ):
        expected = function(true, predicted, average=average, zero_division=0)
        assert tfma_label_metrics.compute_label_score(name, counts) == pytest.approx(expected), name
    assert tfma_label_metrics.compute_label_metrics(counts["a"]) == {
        "example_count": 2,
        "precision": 1,
        "recall": 1,
        "f1": 1,
    }


def test_a_label_that_the_model_does_not_know_counts_as_missed():
    counts = count_labels(make_arrays)
    assert counts["new"] == tfma_label_metrics.LabelCount(missed=1)
    assert tfma_label_metrics.compute_label_metrics(counts["new"]) == {
        "example_count": 1,
        "precision": None,
        "recall": 0,
        "f1": 0,
    }


def test_an_example_without_the_feature_has_no_labels_and_whole_numbers_are_names():
    counts = count_labels(lambda true, predicted: ({"tags": None}, b"7"))
    assert counts == {"7": tfma_label_metrics.LabelCount(wrong=5)}
    counts = count_labels(lambda true, predicted: ({"tags": np.array([7])}, b"7"))
    assert counts == {"7": tfma_label_metrics.LabelCount(right=5)}


def test_without_labels_scores_are_not_a_number():
    assert all(np.isnan(tfma_label_metrics.compute_label_score(name, {})) for name in tfma_label_metrics.LABEL_SCORES)
