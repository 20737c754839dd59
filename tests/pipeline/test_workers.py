"""Beam workers in their own processes, like those of a cluster: nothing of TFX has been imported there."""

import pytest
from tfx.components.statistics_gen.executor import Executor as StatisticsExecutor
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.evaluator.evaluation_reader import read_evaluation
from components.tfdv import tfdv
from pipeline.config import BeamConfig, EvaluationConfig
from tests import evaluated

pytestmark = pytest.mark.slow  # each worker imports TensorFlow

WORKERS = BeamConfig(options={"direct_running_mode": "multi_processing", "direct_num_workers": 2})


@pytest.fixture(scope="module")
def evaluated_model(tmp_path_factory) -> tuple:
    """The folder, a small model, the images that it does not know, and those as Examples."""
    root = tmp_path_factory.mktemp("workers")
    train, other = evaluated.split_digits()
    few = other.select(slice(100))
    return (
        root,
        evaluated.save_model(root / "model", *evaluated.train_logistic(train)),
        few,
        evaluated.write_examples(root / "examples", few),
    )


def test_statistics_are_computed(evaluated_model):
    root, _, data, examples = evaluated_model
    statistics = evaluated.make_artifact(standard_artifacts.ExampleStatistics, root / "statistics")
    StatisticsExecutor(BaseBeamExecutor.Context(beam_pipeline_args=WORKERS.make_arguments(), unique_id="1")).Do(
        {"examples": [examples]}, {"statistics": [statistics]}, {"exclude_splits": "[]", "stats_options_json": None}
    )
    (split,) = tfdv.load_stats_binary(f"{statistics.uri}/Split-eval/FeatureStats.pb").datasets
    assert split.num_examples == len(data.labels)
    columns = {feature.path.step[0] for feature in split.features}
    assert columns == {"pixels", "label", "camera", "metadata", "width", "height"}


@pytest.mark.long
def test_an_evaluation_is_that_of_one_process(evaluated_model):
    root, model, data, examples = evaluated_model
    config = EvaluationConfig(slices=[], thresholds={"accuracy": 0.5})
    folder, blessed = evaluated.evaluate(root / "evaluated", examples, model, None, config, beam=WORKERS)
    accuracy = float((evaluated.predict(model, data).argmax(axis=1) == data.labels).mean())
    assert blessed
    assert read_evaluation(folder).whole.metrics["accuracy"].value == pytest.approx(accuracy)
