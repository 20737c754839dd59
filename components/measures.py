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
        relative: whether a margin is a share of the champion's figure, which is in the target's unit; else it is a
            difference.
        has_test: whether a paired test tells a difference between two models from chance, see ``components.paired``.
    """

    metric: str
    module: str = ""
    lowest: float = 0
    highest: float = 1
    lower_is_better: bool = False
    relative: bool = False
    has_test: bool = False


_OURS = "components.metrics"


def _error() -> Measure:
    return Measure("RegressionScore", _OURS, highest=math.inf, lower_is_better=True, relative=True, has_test=True)


MEASURES: dict[str, dict[str, Measure]] = {
    "classification": {
        "accuracy": Measure("SparseCategoricalAccuracy", has_test=True),
        "top_k_accuracy": Measure("SparseTopKCategoricalAccuracy"),
        "macro_f1": Measure("MacroF1", _OURS),
        "log_loss": Measure("LogLoss", _OURS, highest=math.inf, lower_is_better=True),
        "calibration_error": Measure("CalibrationError", "components.curves", lower_is_better=True),
    },
    "multilabel": {
        "macro_f1": Measure("LabelScore", _OURS, has_test=True),
        "micro_f1": Measure("LabelScore", _OURS, has_test=True),
        "precision": Measure("LabelScore", _OURS, has_test=True),
        "recall": Measure("LabelScore", _OURS, has_test=True),
        "auc": Measure("AUC"),
    },
    "regression": {
        "mean_absolute_error": _error(),
        "mean_squared_error": _error(),
        "r_squared": Measure("RegressionScore", _OURS, lowest=-math.inf, has_test=True),
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

BY_NAME: dict[str, Measure] = {name: measure for measures in MEASURES.values() for name, measure in measures.items()}
"""The same whatever the task: of one that two tasks have, the values mean the same."""

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
