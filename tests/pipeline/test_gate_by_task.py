"""The gate's paired tests on real predictions of several labels and of numbers; see ``test_gate`` for classes."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from components.evaluator.evaluation import Evaluation, RuleOutcome
from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.base.names import TaskName
from pipeline.config import EvaluationConfig
from tests import evaluated

pytestmark = pytest.mark.slow  # evaluations of real models


class Setting:
    """A strong model, one that is worse by less than noise, and one that is clearly worse; and data new to them."""

    def __init__(self, root: Path, task: TaskName):
        self.root, self.task = root, task
        if task == "multilabel":
            train, self.data = map(evaluated.label_traits, evaluated.split_digits())
            weights, bias = evaluated.train_on_traits(train)
            little = evaluated.train_on_traits(train.select(slice(850)))
            noise = np.random.default_rng(0).normal(0, 0.5, weights.shape).astype(np.float32)
        else:
            train, self.data = evaluated.split_diabetes()
            weights, bias = evaluated.train_ridge(train)
            little = evaluated.train_ridge(train.select(slice(150)))
            noise = np.random.default_rng(0).normal(0, 500, weights.shape).astype(np.float32)
        self.examples = evaluated.write_examples(root / "examples", self.data)
        self.strong = evaluated.save_model(root / "strong", weights, bias, task)
        self.noisy = evaluated.save_model(root / "noisy", *little, task)
        self.worse = evaluated.save_model(root / "worse", weights + noise, bias, task)

    def evaluate(self, name: str, model, rules: list[dict], intervals="jackknife") -> tuple[Evaluation, bool]:
        config = EvaluationConfig.model_validate({"margin": 1, "rules": rules, "intervals": intervals})
        folder, blessed = evaluated.evaluate(self.root / name, self.examples, model, self.strong, config, self.task)
        return read_evaluation(folder), blessed


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Setting:
    return Setting(tmp_path_factory.mktemp("several"), "multilabel")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Setting:
    return Setting(tmp_path_factory.mktemp("numbers"), "regression")


def make_rules(*metrics: str, margin: float) -> list[dict]:
    return [{"metric": name, "not_worse_than_champion": margin, "significance": 0.05} for name in metrics]


def select_tested(evaluation: Evaluation) -> dict[str, RuleOutcome]:
    return {outcome.metric: outcome for outcome in evaluation.rules if outcome.significance is not None}


def test_a_first_model_of_which_nothing_is_demanded_is_blessed_and_told_that_nothing_was_checked(several, numbers):
    for setting, metric in ((several, "macro_f1"), (numbers, "mean_absolute_error")):
        folder, blessed = evaluated.evaluate(
            setting.root / "first",
            setting.examples,
            setting.noisy,
            None,
            EvaluationConfig(intervals="none"),
            setting.task,
        )
        evaluation = read_evaluation(folder)
        assert blessed
        assert [path.name for path in (setting.root / "first" / "blessing").iterdir()] == ["BLESSED"]
        assert evaluation.refusals == []
        assert evaluation.unchecked == (
            f"The gate checked nothing ({metric}: there is no champion to compare with). "
            "evaluation.thresholds can demand something."
        )


def test_a_model_without_an_error_is_not_worse_than_a_champion_without_one(numbers):
    data = numbers.data.select(slice(20))
    exact = evaluated.Digits(data.pixels, np.full(20, 100, np.float32))
    examples = evaluated.write_examples(numbers.root / "exact", exact)
    bias = np.array([100], np.float32)
    model = evaluated.save_model(
        numbers.root / "right", np.zeros((data.pixels.shape[1], 1), np.float32), bias, "regression"
    )
    config = EvaluationConfig(intervals="none")
    folder, blessed = evaluated.evaluate(numbers.root / "same", examples, model, model, config, "regression")
    (outcome,) = read_evaluation(folder).rules
    assert (outcome.champion, outcome.verdict, blessed) == (0, "passed", True)


def test_there_is_no_auc_of_images_without_any_label(several):
    none = several.data.labels.sum(axis=1) == 0
    assert none.any()
    data = evaluated.Digits(several.data.pixels[none], several.data.labels[none])
    examples = evaluated.write_examples(several.root / "none", data)
    config = EvaluationConfig(intervals="none")
    folder, _ = evaluated.evaluate(several.root / "of none", examples, several.noisy, None, config, several.task)
    assert read_evaluation(folder).whole.metrics["auc"].value is None


SEVERAL = ("macro_f1", "micro_f1", "precision", "recall")
NUMBERS = ("mean_absolute_error", "mean_squared_error", "r_squared")


def test_several_labels_that_are_worse_within_noise_are_not_refused_by_the_test_alone(several):
    untested = {"metric": "macro_f1", "not_worse_than_champion": 0}
    evaluation, blessed = several.evaluate("noisy", several.noisy, [*make_rules(*SEVERAL, margin=0), untested])
    scores = [
        f1_score(several.data.labels, evaluated.predict(model, several.data) > 0.5, average="macro")
        for model in (several.noisy, several.strong)
    ]
    assert 0 < scores[1] - scores[0] < 0.02
    outcome = select_tested(evaluation)["macro_f1"]
    assert (outcome.value, outcome.champion) == pytest.approx(tuple(scores))
    assert (outcome.verdict, outcome.p) == ("passed", evaluation.whole.p_values["macro_f1"])
    assert outcome.p > 0.05
    assert outcome.because == (
        f"macro_f1 is {scores[0]:.4f}, more than 0 below the champion's {scores[1]:.4f}, which may be chance: p is "
        f"{outcome.p:.2g}, not below 0.05"
    )
    assert {outcome.verdict for outcome in select_tested(evaluation).values()} == {"passed"}
    # Without the test it would have been.
    assert [o.metric for o in evaluation.rules if o.verdict == "refused"] == ["macro_f1"]
    assert not blessed


def test_several_labels_that_are_clearly_worse_are_refused_by_the_test_alone(several):
    evaluation, blessed = several.evaluate("worse", several.worse, make_rules(*SEVERAL, margin=0.01), "none")
    assert not blessed
    outcomes = select_tested(evaluation)
    assert outcomes["macro_f1"].difference < -0.08
    scores = evaluated.predict(several.worse, several.data)
    assert evaluation.whole.metrics["auc"].value == pytest.approx(
        roc_auc_score(several.data.labels, scores, average="micro"), abs=1e-3
    )
    for outcome in outcomes.values():
        assert (outcome.verdict, outcome.p < 0.01) == ("refused", True)
        assert ", and not by chance: p is " in outcome.because


def compute_errors(setting: Setting, model) -> np.ndarray:
    return np.abs(evaluated.predict(model, setting.data)[:, 0].astype(float) - setting.data.labels)


def test_errors_that_are_larger_within_noise_are_not_refused_by_the_test_alone(numbers):
    untested = {"metric": "mean_absolute_error", "not_worse_than_champion": 0}
    evaluation, blessed = numbers.evaluate("noisy", numbers.noisy, [*make_rules(*NUMBERS, margin=0), untested])
    candidate, champion = compute_errors(numbers, numbers.noisy), compute_errors(numbers, numbers.strong)
    assert 1 < candidate.mean() / champion.mean() < 1.05
    outcomes = select_tested(evaluation)
    for name, power in (("mean_absolute_error", 1), ("mean_squared_error", 2), ("r_squared", 2)):
        assert outcomes[name].p == pytest.approx(stats.ttest_rel(candidate**power, champion**power).pvalue, 1e-4)
        assert (outcomes[name].verdict, outcomes[name].p > 0.05) == ("passed", True)
    # The intervals change no value.
    assert outcomes["mean_squared_error"].value == pytest.approx((candidate**2).mean())
    outcome = outcomes["mean_absolute_error"]
    assert outcome.because == (
        f"mean_absolute_error is {candidate.mean():.4f}, more than 0% above the champion's {champion.mean():.4f}, "
        f"which may be chance: p is {outcome.p:.2g}, not below 0.05"
    )
    assert [o.metric for o in evaluation.rules if o.verdict == "refused"] == ["mean_absolute_error"]
    assert not blessed


def test_errors_that_are_clearly_larger_are_refused_by_the_test_alone(numbers):
    evaluation, blessed = numbers.evaluate("worse", numbers.worse, make_rules(*NUMBERS, margin=0.01), "none")
    assert not blessed
    candidate, champion = compute_errors(numbers, numbers.worse), compute_errors(numbers, numbers.strong)
    assert candidate.mean() > 1.15 * champion.mean()
    for outcome in select_tested(evaluation).values():
        assert (outcome.verdict, outcome.p < 0.01) == ("refused", True)
        assert ", and not by chance: p is " in outcome.because


def test_the_margin_of_an_error_is_a_share_of_the_champions(numbers):
    candidate, champion = compute_errors(numbers, numbers.worse), compute_errors(numbers, numbers.strong)
    behind = candidate.mean() / champion.mean() - 1
    rules = make_rules("mean_absolute_error", margin=behind + 0.01)
    evaluation, blessed = numbers.evaluate("wide", numbers.worse, rules, "none")
    assert blessed
    outcome = select_tested(evaluation)["mean_absolute_error"]
    assert outcome.p < 0.01
    assert "not more than" in outcome.because
