"""Catalogue of the metrics, by task: for the configuration, the Evaluator and the reports."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        metric: name of the class that TFMA computes it with.
        module: the class's module, if it isn't one of TFMA's own.
        lowest: its minimum.
        highest: its maximum.
        lower_is_better: whether lower values are better, so that its threshold is an upper bound.
        relative: whether a margin is a fraction of the champion's value, which is in the target's unit; else it is a
            difference.
        has_test: whether a paired test can tell a difference between two models from chance.
    """

    metric: str
    module: str = ""
    lowest: float = 0
    highest: float = 1
    lower_is_better: bool = False
    relative: bool = False
    has_test: bool = False


TOP_K_METRIC = "top_k_accuracy"
"""The metric that there is only for more classes than ``evaluation.top_k``."""

_TFMA_METRICS = "components.evaluator.tfma_metrics"
_TFMA_LABEL_METRICS = "components.evaluator.tfma_label_metrics"


def _make_error_metric() -> Metric:
    return Metric(
        "RegressionScore", _TFMA_METRICS, highest=math.inf, lower_is_better=True, relative=True, has_test=True
    )


METRICS: dict[str, dict[str, Metric]] = {
    "classification": {
        "accuracy": Metric("SparseCategoricalAccuracy", has_test=True),
        TOP_K_METRIC: Metric("SparseTopKCategoricalAccuracy"),
        "macro_f1": Metric("MacroF1", _TFMA_METRICS),
        "log_loss": Metric("LogLoss", _TFMA_METRICS, highest=math.inf, lower_is_better=True),
        "calibration_error": Metric("CalibrationError", "components.evaluator.tfma_curves", lower_is_better=True),
    },
    "multilabel": {
        "macro_f1": Metric("LabelScore", _TFMA_LABEL_METRICS, has_test=True),
        "micro_f1": Metric("LabelScore", _TFMA_LABEL_METRICS, has_test=True),
        "precision": Metric("LabelScore", _TFMA_LABEL_METRICS, has_test=True),
        "recall": Metric("LabelScore", _TFMA_LABEL_METRICS, has_test=True),
        "auc": Metric("RocAuc", _TFMA_LABEL_METRICS),
    },
    "regression": {
        "mean_absolute_error": _make_error_metric(),
        "mean_squared_error": _make_error_metric(),
        "r_squared": Metric("RegressionScore", _TFMA_METRICS, lowest=-math.inf, has_test=True),
    },
}
"""Metrics by name, by task. A multilabel model is measured on its answers at its own decision thresholds, except for
``auc``: the area under the ROC curve over all pairs of image and label."""

CHAMPION_METRIC: dict[str, str] = {
    "classification": "accuracy",
    "multilabel": "macro_f1",
    "regression": "mean_absolute_error",
}
"""Metric, by task, in which a candidate may not fall behind the champion by more than the margin."""

METRICS_BY_NAME: dict[str, Metric] = {name: metric for metrics in METRICS.values() for name, metric in metrics.items()}
"""Metrics of all tasks; one that two tasks have in common has the same limits and meaning in both."""

DEFAULT_THRESHOLDS: dict[str, dict[str, float]] = {
    "classification": {"accuracy": 0.8},
    "multilabel": {},  # what is good enough depends on how rare the labels are,
    "regression": {},  # or on the target's unit
}
"""Thresholds of the gate, by task and metric."""

HEADLINE_METRICS: dict[str, tuple[str, str]] = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("macro_f1", "auc"),
    "regression": ("mean_absolute_error", "r_squared"),
}
"""The two metrics, by task, in a list of runs."""
