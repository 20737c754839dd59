"""The gate on real predictions: scikit-learn's digits, small real models, the Evaluator as a run uses it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from components.evaluator.evaluation import CANDIDATE, CHAMPION, Evaluation, RuleOutcome
from components.evaluator.evaluation_reader import read_evaluation
from components.evaluator.executor import name_size_bucket
from pipeline.config import EvaluationConfig
from pipeline.runs.summary import Summary
from tests import evaluated

RULES = [
    {"metric": "accuracy", "slice": {"label": "3"}, "min": 0.99},
    {"metric": "accuracy", "slice": {"camera": "old"}, "max": 1},
    {"metric": "accuracy", "slice": {"camera": "none"}, "min": 0},
    {"metric": "macro_f1", "not_worse_than_champion": 0.0},
    {"metric": "accuracy", "not_worse_than_champion": 0.0, "significance": 0.05},
]


class Setting:
    """A strong model, two that are worse by less than noise and by 10 points, and images that none of them knows."""

    def __init__(self, root: Path):
        self.root = root
        train, self.data = evaluated.split_digits()
        weights, bias = evaluated.train_logistic(train)
        self.examples = evaluated.write_examples(root / "examples", self.data)
        self.strong = evaluated.save_model(root / "strong", weights, bias)
        few = evaluated.Digits(train.pixels[:850], train.labels[:850])
        self.noisy = evaluated.save_model(root / "noisy", *evaluated.train_logistic(few))
        noise = np.random.default_rng(0).normal(0, 0.25, weights.shape).astype(np.float32)
        self.worse = evaluated.save_model(root / "worse", weights + noise, bias)

    def find_right(self, model) -> np.ndarray:
        return evaluated.predict(model, self.data).argmax(axis=1) == self.data.labels

    def evaluate(self, name: str, model, champion, **config) -> tuple[Evaluation, bool, str]:
        demanded = EvaluationConfig.model_validate({"margin": 1} | config)
        folder, blessed = evaluated.evaluate(self.root / name, self.examples, model, champion, demanded)
        return read_evaluation(folder), blessed, folder


pytestmark = pytest.mark.slow  # evaluations of real models; tests/e2e has one among the quick tests


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    return Setting(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def compared(setting) -> tuple[Evaluation, bool, str]:
    """The model that is a little worse, with slices and a rule of each kind."""
    config = {"slices": ["camera"], "rules": RULES, "intervals": "none"}
    return setting.evaluate("compared", setting.noisy, setting.strong, **config)


@pytest.fixture(scope="module")
def with_intervals(setting) -> tuple[Evaluation, bool, str]:
    """The same as a run does it by default."""
    return setting.evaluate("intervals", setting.noisy, setting.strong, slices=["camera"], rules=RULES)


def find_rule(evaluation: Evaluation, **fields) -> RuleOutcome:
    (outcome,) = [r for r in evaluation.rules if all(getattr(r, name) == value for name, value in fields.items())]
    return outcome


def test_a_model_that_is_worse_within_noise_is_not_refused_by_the_paired_test(setting, compared):
    evaluation, _, _ = compared
    candidate, champion = setting.find_right(setting.noisy), setting.find_right(setting.strong)
    only_candidate, only_champion = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
    assert 0.001 < champion.mean() - candidate.mean() < 0.02
    expected = binomtest(only_champion, only_candidate + only_champion).pvalue
    assert expected > 0.05
    mcnemar = evaluation.whole.mcnemar
    assert (mcnemar.only_candidate, mcnemar.only_champion) == (only_candidate, only_champion)
    assert mcnemar.p == pytest.approx(expected)
    outcome = find_rule(evaluation, metric="accuracy", kind="not_worse_than_champion", significance=0.05)
    assert (outcome.verdict, outcome.p) == ("passed", mcnemar.p)
    assert outcome.because == (
        f"accuracy is {candidate.mean():.4f}, more than 0 below the champion's {champion.mean():.4f}, "
        f"which may be chance: p is {expected:.2g}, not below 0.05"
    )
    # Without the test it would have been.
    assert find_rule(evaluation, metric="macro_f1", kind="not_worse_than_champion").verdict == "refused"


def test_a_model_that_is_worse_by_ten_points_is_refused_by_the_paired_test_alone(setting):
    candidate, champion = setting.find_right(setting.worse), setting.find_right(setting.strong)
    assert 0.08 < champion.mean() - candidate.mean() < 0.13
    test = {"metric": "accuracy", "not_worse_than_champion": 0.01, "significance": 0.01}
    evaluation, blessed, _ = setting.evaluate("worse", setting.worse, setting.strong, rules=[test], intervals="none")
    assert not blessed
    (refused,) = [r for r in evaluation.rules if r.verdict == "refused"]
    assert refused.significance == 0.01
    assert refused.p == pytest.approx(
        binomtest(int((champion & ~candidate).sum()), int((champion ^ candidate).sum())).pvalue
    )
    assert refused.difference == pytest.approx(candidate.mean() - champion.mean())
    assert refused.because.startswith(
        f"accuracy is {candidate.mean():.4f}, more than 0.01 below the champion's {champion.mean():.4f}, "
        "and not by chance: p is "
    )


def test_without_a_champion_what_compares_is_skipped_and_the_rest_decides(setting):
    rules = [RULES[3], RULES[4], {"metric": "accuracy", "min": 0.5}]
    evaluation, blessed, _ = setting.evaluate("alone", setting.noisy, None, rules=rules, intervals="none")
    assert blessed
    assert [r.verdict for r in evaluation.rules if r.kind == "not_worse_than_champion"] == ["skipped"] * 3
    assert find_rule(evaluation, kind="min").verdict == "passed"
    assert (evaluation.whole.champion_metrics, evaluation.whole.mcnemar, evaluation.whole.differences) == (
        None,
        None,
        {},
    )
    assert set(evaluation.curves) == {CANDIDATE}
    assert all(metric.interval is None for metric in evaluation.whole.metrics.values())


def test_what_would_always_be_1_is_left_out_and_a_rule_about_it_is_skipped(setting):
    rules = [{"metric": "top_k_accuracy", "min": 0.5}]
    options = {"thresholds": {}, "top_k": len(evaluated.NAMES), "rules": rules, "intervals": "none"}
    evaluation, blessed, _ = setting.evaluate("few", setting.noisy, setting.strong, **options)
    assert all("top_k_accuracy" not in part.metrics for part in evaluation.slices)
    assert blessed
    outcome = find_rule(evaluation, metric="top_k_accuracy")
    assert (outcome.verdict, outcome.value) == ("skipped", None)
    assert outcome.because == ("top_k_accuracy would always be 1: there are no more classes than evaluation.top_k")


def test_rules_hold_for_their_slices_with_figures_of_these(setting, compared):
    evaluation, blessed, _ = compared
    assert not blessed
    right, labels = setting.find_right(setting.noisy), setting.data.labels
    threes = find_rule(evaluation, slice={"label": "3"})
    assert (threes.verdict, threes.value) == ("refused", pytest.approx(right[labels == 3].mean()))
    assert threes.because == f"accuracy of label 3 is {right[labels == 3].mean():.4f}, below the threshold of 0.99"
    old = find_rule(evaluation, slice={"camera": "old"})
    assert (old.verdict, old.value) == ("passed", pytest.approx(right[::3].mean()))
    missing = find_rule(evaluation, slice={"camera": "none"})
    assert (missing.verdict, missing.value) == ("refused", None)
    assert missing.because == "accuracy of camera none is not known: the eval split has no such image"


def test_slices_are_all_images_labels_configured_columns_and_sizes(setting, compared):
    slices = {tuple(part.columns.items()): part for part in compared[0].slices}
    right = setting.find_right(setting.noisy)
    assert compared[0].whole.columns == {}
    assert {key[0][0] for key in slices if key} == {"label", "camera", "image_size"}
    assert slices[(("camera", "new"),)].count == sum(n % 3 != 0 for n in range(len(right)))
    large = slices[(("image_size", "512-1023 px"),)]
    assert (large.count, large.metrics["accuracy"].value) == (len(right) // 2, pytest.approx(right[1::2].mean()))
    assert len([key for key in slices if key and key[0][0] == "label"]) == 10


def test_intervals_are_those_that_theory_expects(setting, compared, with_intervals):
    whole, right = with_intervals[0].whole, setting.find_right(setting.noisy)
    low, high = whole.metrics["accuracy"].interval
    assert low < right.mean() < high
    expected = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert 0.5 * expected < high - low < 2 * expected
    # A difference on the same images is known better than each of the two.
    low, high = whole.differences["accuracy"].interval
    assert low < whole.differences["accuracy"].value < high
    paired = setting.find_right(setting.noisy).astype(int) - setting.find_right(setting.strong)
    assert 0.5 < (high - low) / (2 * 1.96 * paired.std() / np.sqrt(len(paired))) < 2
    # They change nothing else.
    assert [(r.verdict, r.because) for r in with_intervals[0].rules] == [
        (r.verdict, r.because) for r in compared[0].rules
    ]
    assert with_intervals[0].curves == compared[0].curves
    assert [part.columns for part in with_intervals[0].slices] == [part.columns for part in compared[0].slices]


@pytest.mark.long
def test_the_same_model_on_the_same_images_has_the_same_intervals(setting, with_intervals):
    again = setting.evaluate("again", setting.noisy, setting.strong)[0].whole
    for one, other in (
        (again.metrics, with_intervals[0].whole.metrics),
        (again.differences, with_intervals[0].whole.differences),
    ):
        assert one.keys() == other.keys()
        for name, metric in one.items():
            assert metric.interval == (other[name].interval and pytest.approx(other[name].interval, abs=1e-9))


def test_intervals_lie_within_what_a_metric_can_be(with_intervals):
    evaluation, _, folder = with_intervals
    for part in evaluation.slices:
        for metrics, lowest in ((part.metrics, 0), (part.champion_metrics, 0), (part.differences, -1)):
            for name, metric in metrics.items():
                if metric.interval:
                    low, high = metric.interval
                    assert lowest <= low < high
                    assert high <= 1 or name == "log_loss"
    # Where all images are right, TFMA's have no width.
    top_k = [part.metrics["top_k_accuracy"] for part in evaluation.slices]
    assert {metric.interval for metric in top_k if metric.value == 1} == {None}
    # TFMA's own do not.
    theirs = [values[""][""] for _, values in tfma.load_eval_result(folder, model_name=CANDIDATE).slicing_metrics]
    assert any(float(values["accuracy"]["boundedValue"]["upperBound"]) > 1 for values in theirs)


def test_curves_of_each_class_are_those_of_scikit_learn(setting, compared):
    evaluation = compared[0]
    for model, artifact in ((CANDIDATE, setting.noisy), (CHAMPION, setting.strong)):
        scores = evaluated.predict(artifact, setting.data)
        assert sorted(evaluation.curves[model]) == list(range(10))
        for digit, curves in evaluation.curves[model].items():
            truth = setting.data.labels == digit
            assert curves.auc == pytest.approx(roc_auc_score(truth, scores[:, digit]), abs=2e-3)
            assert curves.average_precision == pytest.approx(average_precision_score(truth, scores[:, digit]), abs=0.01)
            for place in (0, 20, 60, 110):
                answers = scores[:, digit] > np.float32(curves.thresholds[place])
                precision, recall, f1, _ = precision_recall_fscore_support(
                    truth, answers, average="binary", zero_division=1
                )
                assert (curves.precision[place], curves.recall[place]) == pytest.approx((precision, recall))
                assert curves.f1[place] == pytest.approx(f1)
            assert max(curves.f1) == curves.f1[curves.thresholds.index(curves.best_threshold)]
            assert sum(bucket.count for bucket in curves.calibration) == len(truth)


def test_calibration_compares_scores_with_the_share_that_is_right(setting, compared):
    scores = evaluated.predict(setting.noisy, setting.data).astype(float)
    best, right = scores.max(axis=1), setting.find_right(setting.noisy)
    error = 0.0
    for bucket in compared[0].confidence[CANDIDATE]:
        inside = (best >= bucket.low) & (best < bucket.high if bucket.high < 1 else True)
        assert bucket.count == inside.sum()
        assert (bucket.mean_score, bucket.share_right) == pytest.approx((best[inside].mean(), right[inside].mean()))
        error += inside.mean() * abs(bucket.mean_score - bucket.share_right)
    assert compared[0].whole.metrics["calibration_error"].value == pytest.approx(error)


def read_tfma_value(value: dict) -> float | None:
    """A number as TFMA's loader gives it: with its bounds if it has an interval."""
    return value["boundedValue"]["value"] if "boundedValue" in value else value.get("doubleValue")


@pytest.mark.parametrize("which", ["compared", "with_intervals"])
def test_values_are_tfmas_own_to_the_last_digit(which, request):
    evaluation, _, folder = request.getfixturevalue(which)
    for model in (CANDIDATE, CHAMPION):
        for key, values in tfma.load_eval_result(folder, model_name=model).slicing_metrics:
            columns = {column: str(value) for column, value in key}
            (part,) = [part for part in evaluation.slices if part.columns == columns]
            read = part.metrics if model == CANDIDATE else part.champion_metrics
            theirs = {n: read_tfma_value(v) for n, v in values[""][""].items()}
            assert {n: metric.value for n, metric in read.items()} == {n: theirs[n] for n in read}
            assert theirs["example_count"] == part.count
            if model == CANDIDATE:
                assert {n: f.value for n, f in part.differences.items()} == {
                    n: theirs[f"{n}_diff"] for n in part.differences
                }
    assert [r.verdict for r in evaluation.rules].count("refused") == sum(
        len(part.failures) for part in tfma.load_validation_result(folder).metric_validations_per_slice
    ) + len(tfma.load_validation_result(folder).missing_slices)


def test_outcomes_survive_the_summary(compared):
    rules = compared[0].rules
    text = Summary(run_id="1", name="x", status="done", serving_dir="x", log="x", rules=rules).model_dump_json()
    assert json.loads(text)["rules"][0]["metric"] == rules[0].metric
    assert Summary.model_validate_json(text).rules == rules


@pytest.mark.parametrize(
    ("side", "bucket"),
    [(1, "0-31 px"), (31, "0-31 px"), (32, "32-63 px"), (4095, "2048-4095 px"), (4096, "4096 px and more")],
)
def test_sizes_are_put_into_buckets_by_the_longer_side(side, bucket):
    assert name_size_bucket(side) == bucket
