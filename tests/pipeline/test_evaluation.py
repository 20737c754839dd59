from pipeline.config import EvaluationConfig
from pipeline.evaluation import eval_config
from pipeline.results import draw_confusion_matrix
from transform.features import Features


def thresholds(config: EvaluationConfig, task="classification"):
    (spec,) = eval_config(task, config, Features()).metrics_specs
    return {metric.class_name: metric.per_slice_thresholds for metric in spec.metrics if metric.per_slice_thresholds}


def test_thresholds_hold_for_the_whole_split_only_and_log_loss_is_an_upper_bound():
    found = thresholds(EvaluationConfig(thresholds={"accuracy": 0.9, "log_loss": 0.5}, margin=0.02))
    assert set(found) == {"SparseCategoricalAccuracy", "LogLoss"}
    for (per_slice,) in found.values():
        assert [len(s.feature_keys) for s in per_slice.slicing_specs] == [0]
    accuracy = found["SparseCategoricalAccuracy"][0].threshold
    assert accuracy.value_threshold.lower_bound.value == 0.9
    assert accuracy.change_threshold.absolute.value == -0.02
    assert found["LogLoss"][0].threshold.value_threshold.upper_bound.value == 0.5


def test_without_thresholds_the_champion_is_still_compared_with():
    ((per_slice,),) = thresholds(EvaluationConfig(thresholds={})).values()
    assert not per_slice.threshold.HasField("value_threshold")
    assert per_slice.threshold.HasField("change_threshold")


def test_a_confusion_matrix_is_drawn_with_unknown_labels_and_many_classes(tmp_path):
    draw_confusion_matrix({(0, 0): 5, (-1, 1): 2}, ["a", "b"], str(tmp_path / "few.png"))
    draw_confusion_matrix({(0, 0): 5}, [str(i) for i in range(60)], str(tmp_path / "many.png"))
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("few", "many"))
