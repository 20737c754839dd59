"""What is measured of a model, by task: for the configuration, the Evaluator and the reports. Imports nothing heavy."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A metric.

    Attributes:
        metric: TFMA's class.
        module: where it is, if it isn't TFMA's own.
        lowest: the least it can be.
        highest: the most it can be.
        lower_is_better: so that its threshold is an upper bound.
    """

    metric: str
    module: str = ""
    lowest: float = 0
    highest: float = 1
    lower_is_better: bool = False


_OURS = "components.metrics"

MEASURES: dict[str, dict[str, Measure]] = {
    "classification": {
        "accuracy": Measure("SparseCategoricalAccuracy"),
        "top_k_accuracy": Measure("SparseTopKCategoricalAccuracy"),
        "macro_f1": Measure("MacroF1", _OURS),
        "log_loss": Measure("LogLoss", _OURS, highest=math.inf, lower_is_better=True),
        "calibration_error": Measure("CalibrationError", "components.curves", lower_is_better=True),
    },
    "multilabel": {
        "macro_f1": Measure("LabelScore", _OURS),
        "micro_f1": Measure("LabelScore", _OURS),
        "precision": Measure("LabelScore", _OURS),
        "recall": Measure("LabelScore", _OURS),
        "auc": Measure("AUC"),
    },
    "regression": {
        "mean_absolute_error": Measure("MeanAbsoluteError", highest=math.inf, lower_is_better=True),
        "mean_squared_error": Measure("MeanSquaredError", highest=math.inf, lower_is_better=True),
        "r_squared": Measure("RSquared", _OURS, lowest=-math.inf),
    },
}
"""By task the metrics by name. A model with several labels is measured by what it says at its own thresholds, but for
``auc``: the area under the ROC curve over all pairs of image and label."""

CHAMPION_METRIC: dict[str, str] = {
    "classification": "accuracy",
    "multilabel": "macro_f1",
    "regression": "mean_absolute_error",
}
"""The metric in which a candidate may not fall behind the champion by more than the margin."""


def is_relative(task: str, metric: str) -> bool:
    """Whether a margin is a share of the champion's figure, which is in the target's unit; else it is a difference."""
    return task == "regression" and MEASURES[task][metric].lower_is_better


DEFAULT_THRESHOLDS: dict[str, dict[str, float]] = {
    "classification": {"accuracy": 0.8},
    "multilabel": {},  # how good is good enough depends on how rare the labels are,
    "regression": {},  # or on the target's unit
}

SHOWN: dict[str, tuple[str, str]] = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("macro_f1", "auc"),
    "regression": ("mean_absolute_error", "r_squared"),
}
"""The two that stand in a list of runs."""
