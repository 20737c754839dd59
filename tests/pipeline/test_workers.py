"""Beam's workers in processes of their own, as those of a cluster are: there nothing of TFX is imported yet."""

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
def some(tmp_path_factory) -> tuple:
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


def test_statistics_are_computed(some):
    root, _, data, examples = some
    statistics = evaluated.make_artifact(standard_artifacts.ExampleStatistics, root / "statistics")
    StatisticsExecutor(BaseBeamExecutor.Context(beam_pipeline_args=WORKERS.make_arguments(), unique_id="1")).Do(
        {"examples": [examples]}, {"statistics": [statistics]}, {"exclude_splits": "[]", "stats_options_json": None}
    )
    found = tfdv.load_stats_binary(f"{statistics.uri}/Split-eval/FeatureStats.pb")
    assert found.datasets[0].num_examples == len(data.labels)
    columns = {feature.path.step[0] for feature in found.datasets[0].features}
    assert columns == {"pixels", "label", "camera", "width", "height"}


def test_an_evaluation_is_that_of_one_process(some):
    root, model, data, examples = some
    config = EvaluationConfig(slices=[], thresholds={"accuracy": 0.5})
    folder, blessed = evaluated.evaluate(root / "evaluated", examples, model, None, config, beam=WORKERS)
    accuracy = float((evaluated.predict(model, data).argmax(axis=1) == data.labels).mean())
    assert blessed
    assert read_evaluation(folder).whole.metrics["accuracy"].value == pytest.approx(accuracy)
