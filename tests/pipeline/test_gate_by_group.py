"""The gate on images in groups: ten copies of each, which say no more than one; see ``test_gate`` for single images."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from components.evaluator.evaluation import Evaluation
from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.base.names import TaskName
from pipeline.config import EvaluationConfig
from tests import evaluated

pytestmark = pytest.mark.long  # evaluations of real models

COPIES = 10
GROUPS = 120


def compare(
    root: Path, task: TaskName, data: evaluated.Digits, models: list, metric: str, intervals: str = "jackknife"
) -> list[Evaluation]:
    """Evaluates the first model against the second: on the images, on copies with groups, on copies without them."""
    copies, groups = (
        data.repeat(COPIES),
        [f"photo {number}" for number in range(len(data.labels)) for _ in range(COPIES)],
    )
    rule = {"metric": metric, "not_worse_than_champion": 0.0, "significance": 0.05}
    config = EvaluationConfig.model_validate({"margin": 1, "rules": [rule], "intervals": intervals})
    evaluations = []
    for name, given in (("single", (data,)), ("grouped", (copies, groups)), ("ungrouped", (copies,))):
        examples = evaluated.write_examples(root / name / "examples", *given)
        folder, _ = evaluated.evaluate(root / name, examples, *models, config, task)
        evaluations.append(read_evaluation(folder))
    return evaluations


def measure_width(evaluation: Evaluation, metric: str) -> float:
    low, high = evaluation.whole.metrics[metric].interval
    return high - low


def test_copies_of_images_count_as_one_in_intervals_and_paired_tests(tmp_path):
    train, data = evaluated.split_digits()
    noise = np.random.default_rng(1).normal(0, 0.25, (data.pixels.shape[1], len(evaluated.NAMES))).astype(np.float32)
    weights, bias = evaluated.train_logistic(train)
    models = [
        evaluated.save_model(tmp_path / "a", weights + noise, bias),
        evaluated.save_model(tmp_path / "b", weights, bias),
    ]
    single, grouped, ungrouped = compare(tmp_path, "classification", data.select(slice(GROUPS)), models, "accuracy")
    assert single.whole.mcnemar.only_champion > single.whole.mcnemar.only_candidate
    assert grouped.whole.metrics["accuracy"].value == pytest.approx(single.whole.metrics["accuracy"].value)
    for metric in ("accuracy", "macro_f1", "log_loss"):
        widths = [measure_width(evaluation, metric) for evaluation in (single, grouped, ungrouped)]
        assert 0.6 < widths[1] / widths[0] < 1.7
        assert widths[2] < 0.6 * widths[1]
    p = [evaluation.whole.mcnemar.p for evaluation in (single, grouped, ungrouped)]
    assert p[1] == pytest.approx(p[0], abs=0.02)
    assert p[2] < 0.3 * p[1]
    assert (grouped.whole.count, grouped.whole.counted) == (COPIES * GROUPS, f"{GROUPS} groups")
    assert (single.whole.counted, ungrouped.whole.counted) == ("", "")
    (rule,) = (rule for rule in grouped.rules if rule.significance)
    assert f"p is {p[1]:.2g} over {GROUPS} groups" in rule.because
    # A slice counts its own.
    by_class = [part.groups for part in grouped.slices if "label" in part.columns]
    assert sum(by_class) == GROUPS
    assert min(by_class) > 0


def test_copies_of_numbers_and_of_several_labels_count_as_one(tmp_path):
    train, data = evaluated.split_diabetes()
    models = [
        evaluated.save_model(tmp_path / name, *evaluated.train_ridge(train.select(slice(size))), "regression")
        for name, size in (("a", 60), ("b", 200))
    ]
    data = data.select(slice(GROUPS))
    outcomes = compare(tmp_path / "r", "regression", data, models, "mean_absolute_error", "none")
    single, grouped, ungrouped = (evaluation.whole.p_values["mean_absolute_error"] for evaluation in outcomes)
    errors = [np.abs(evaluated.predict(model, data)[:, 0] - data.labels) for model in models]
    assert single == pytest.approx(stats.ttest_rel(*errors).pvalue, 1e-4)
    assert grouped == pytest.approx(single, 1e-4)
    assert ungrouped < 0.5 * grouped

    train, data = map(evaluated.label_traits, evaluated.split_digits())
    models = [
        evaluated.save_model(tmp_path / name, *evaluated.train_on_traits(train.select(slice(size))), "multilabel")
        for name, size in (("c", 500), ("d", 900))
    ]
    outcomes = compare(tmp_path / "m", "multilabel", data.select(slice(GROUPS)), models, "micro_f1", "none")
    single, grouped, ungrouped = (evaluation.whole.p_values["micro_f1"] for evaluation in outcomes)
    assert grouped == pytest.approx(single, abs=0.02)
    assert ungrouped < grouped
    assert outcomes[1].whole.counted == f"{GROUPS} groups"
