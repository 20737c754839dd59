import numpy as np
import pytest
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator import tfma_curves
from components.evaluator.metric_names import CALIBRATION, CURVES

CONFIG = config_pb2.EvalConfig(model_specs=[config_pb2.ModelSpec()])


def make_element(label, scores):
    return metric_types.StandardMetricInputs(
        label=np.asarray(label), prediction=np.asarray(scores, np.float32), example_weight=np.array([1.0])
    )


def count_scores(elements, several: bool = False, parts: int = 3) -> tfma_curves.ScoreCounts:
    """Counts as Beam does: in parts that are merged."""
    counter = tfma_curves._ScoreCounter(metric_types.MetricKey("_score_counts"), several, CONFIG)
    accumulators = []
    for part in range(parts):
        accumulator = counter.create_accumulator()
        for part_element in elements[part::parts]:
            accumulator = counter.add_input(accumulator, part_element)
        accumulators.append(counter.compact(accumulator))
    (counts,) = counter.extract_output(counter.merge_accumulators(accumulators)).values()
    return counts


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(4), 100).astype(np.float32)


def test_counts_are_the_same_whether_examples_are_kept_as_rows_or_folded(scores, monkeypatch):
    elements = [make_element([i % 4], row) for i, row in enumerate(scores)]
    kept = count_scores(elements)
    monkeypatch.setattr(tfma_curves, "_FOLD", 7)
    folded = count_scores(elements, parts=5)
    assert folded.rows == kept.rows == []
    for one, other in zip(folded[1:], kept[1:], strict=True):
        assert one == pytest.approx(other)
    assert kept.above.sum(axis=(0, 2)).tolist() == [100] * 4
    assert kept.above[1].sum(axis=1).tolist() == [25] * 4


def test_several_labels_count_for_each_and_have_no_confidence(scores):
    truth = np.random.default_rng(1).integers(0, 2, scores.shape).astype(np.float32)
    counts = count_scores([make_element(y, row) for y, row in zip(truth, scores, strict=True)], several=True)
    assert counts.above[1].sum(axis=1).tolist() == truth.sum(axis=0).tolist()
    (metric,) = [tfma_curves.ClassCurves(several=True)]
    computed, derived = metric.computations(eval_config=CONFIG, model_names=[""])
    plots = derived.result({computed.keys[0]: counts})
    assert {(key.name, key.sub_key.class_id) for key in plots} == {
        (name, place) for name in (CURVES, CALIBRATION) for place in range(4)
    }


def test_a_label_that_the_model_does_not_know_is_none_of_its_classes_and_never_right():
    counts = count_scores([make_element([-1], [0.9, 0.1]), make_element([0], [0.9, 0.1])])
    assert counts.above.sum(axis=2).tolist() == [[1, 2], [1, 0]]
    assert tfma_curves.compute_calibration_error(counts.confidence) == pytest.approx(0.4)


def test_a_model_with_very_many_classes_has_only_its_confidence_counted():
    rows = np.random.default_rng(0).dirichlet(np.ones(tfma_curves.MAX_CLASSES + 1), 10)
    counts = count_scores([make_element([0], row) for row in rows])
    assert (counts.above, counts.buckets) == (None, None)
    assert counts.confidence[0].sum() == 10


def test_without_images_there_is_no_calibration_error():
    assert np.isnan(tfma_curves.compute_calibration_error(np.zeros((3, tfma_curves.BUCKETS))))
