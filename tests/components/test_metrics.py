import apache_beam as beam
import numpy as np
import pytest
from sklearn.metrics import f1_score
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from components import metrics


def compute(metric: metrics.MacroF1 | metrics.LogLoss, labels: list[int], probabilities: np.ndarray) -> float:
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
    assert compute(metrics.MacroF1(), labels, probabilities) == pytest.approx(expected)


def test_log_loss_is_the_mean_negative_logarithm_of_the_labels_probability(predictions):
    labels, probabilities = predictions
    expected = -np.log(probabilities[np.arange(200), labels]).mean()
    assert compute(metrics.LogLoss(), labels, probabilities) == pytest.approx(expected)


def test_a_label_the_model_does_not_know_costs_much_and_fails_nothing(predictions):
    _, probabilities = predictions
    assert compute(metrics.LogLoss(), [-1] * 200, probabilities) == pytest.approx(-np.log(1e-7))
    assert compute(metrics.MacroF1(), [-1] * 200, probabilities) == 0


def test_without_examples_there_is_no_figure():
    assert np.isnan(metrics.macro_f1({}))
    combiner = metrics._LogLossCombiner(metric_types.MetricKey("x"), None)
    assert isinstance(combiner, beam.CombineFn)
    assert all(np.isnan(v) for v in combiner.extract_output(combiner.create_accumulator()).values())
