import pytest

from components.evaluator import metric_names
from imagepipe.base.metrics import METRICS_BY_NAME

TESTED = [name for name, metric in METRICS_BY_NAME.items() if metric.has_test]


@pytest.mark.parametrize("metric", TESTED)
@pytest.mark.parametrize("margin", [0.0, 0.01, 1e-9, 0.1 + 0.2, 12345.678])
def test_the_name_of_a_margin_test_gives_back_its_metric_and_its_exact_margin(metric, margin):
    assert metric_names.parse_margin_test(metric_names.name_margin_test(metric, margin)) == (metric, margin)


@pytest.mark.parametrize("metric", TESTED)
def test_the_name_of_a_paired_test_gives_back_its_metric(metric):
    assert metric_names.parse_paired_test(metric_names.name_paired_test(metric)) == metric


def test_names_in_evaluations_on_disk_stay_readable():
    assert metric_names.parse_margin_test("accuracy_not_worse_by_0.01") == ("accuracy", 0.01)
    assert metric_names.parse_paired_test("mean_absolute_error_paired_p") == "mean_absolute_error"


@pytest.mark.parametrize("name", [*METRICS_BY_NAME, metric_names.MCNEMAR, metric_names.ONLY_CANDIDATE])
def test_names_of_metrics_are_no_names_of_tests(name):
    assert metric_names.parse_margin_test(name) is None
    assert metric_names.parse_paired_test(name) is None
