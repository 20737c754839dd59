import numpy as np
import pytest
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator import tfma_curves

CONFIG = config_pb2.EvalConfig(model_specs=[config_pb2.ModelSpec()])


def element(label, scores):
    return metric_types.StandardMetricInputs(
        label=np.asarray(label), prediction=np.asarray(scores, np.float32), example_weight=np.array([1.0])
    )


def counted(elements, several: bool = False, parts: int = 3) -> tfma_curves.Counts:
    """Counts as Beam does it, in parts that are merged."""
    counter = tfma_curves._ScoreCounter(metric_types.MetricKey("_score_counts"), several, CONFIG)
    accumulators = []
    for part in range(parts):
        accumulator = counter.create_accumulator()
        for each in elements[part::parts]:
            accumulator = counter.add_input(accumulator, each)
        accumulators.append(counter.compact(accumulator))
    (counts,) = counter.extract_output(counter.merge_accumulators(accumulators)).values()
    return counts


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(4), 100).astype(np.float32)


def test_counts_are_the_same_whether_examples_are_held_or_folded(scores, monkeypatch):
    elements = [element([i % 4], row) for i, row in enumerate(scores)]
    held = counted(elements)
    monkeypatch.setattr(tfma_curves, "_FOLD", 7)
    folded = counted(elements, parts=5)
    assert folded.rows == held.rows == []
    for one, other in zip(folded[1:], held[1:], strict=True):
        assert one == pytest.approx(other)
    assert held.above.sum(axis=(0, 2)).tolist() == [100] * 4
    assert held.above[1].sum(axis=1).tolist() == [25] * 4


def test_several_labels_count_for_each_and_have_no_confidence(scores):
    truth = np.random.default_rng(1).integers(0, 2, scores.shape).astype(np.float32)
    found = counted([element(y, row) for y, row in zip(truth, scores, strict=True)], several=True)
    assert found.above[1].sum(axis=1).tolist() == truth.sum(axis=0).tolist()
    (metric,) = [tfma_curves.ClassCurves(several=True)]
    computed, derived = metric.computations(eval_config=CONFIG, model_names=[""])
    plots = derived.result({computed.keys[0]: found})
    assert {(key.name, key.sub_key.class_id) for key in plots} == {
        (name, place) for name in (tfma_curves.CURVES, tfma_curves.CALIBRATION) for place in range(4)
    }


def test_a_label_that_the_model_does_not_know_is_none_of_its_classes_and_never_right():
    found = counted([element([-1], [0.9, 0.1]), element([0], [0.9, 0.1])])
    assert found.above.sum(axis=2).tolist() == [[1, 2], [1, 0]]
    assert tfma_curves.calibration_error(found.confidence) == pytest.approx(0.4)


def test_of_very_many_classes_only_the_confidence_is_kept():
    rows = np.random.default_rng(0).dirichlet(np.ones(tfma_curves.MOST_CLASSES + 1), 10)
    found = counted([element([0], row) for row in rows])
    assert (found.above, found.buckets) == (None, None)
    assert found.confidence[0].sum() == 10


def test_without_images_there_is_no_calibration_error():
    assert np.isnan(tfma_curves.calibration_error(np.zeros((3, tfma_curves.BUCKETS))))
