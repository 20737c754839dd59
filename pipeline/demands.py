"""Names of classes, and of other values of columns, that the configuration has and so the data must have."""

from typing import NamedTuple

from imagepipe.base.features import SIZE
from pipeline.config import Config


class Demand(NamedTuple):
    """Values that a split must have.

    Attributes:
        key: of the configuration.
        column: name of the feature.
        values: of the feature, as text.
        split: name of the split.
    """

    key: str
    column: str
    values: list[str]
    split: str


def list_demands(config: Config) -> list[Demand]:
    """Returns the demands of weights and thresholds on the train split, and of rules on the eval split."""
    label = config.data.features.label
    weights = config.trainer.class_weights
    demands = []
    if isinstance(weights, dict):
        demands.append(Demand("trainer.class_weights", label, list(weights), "train"))
    thresholds = config.trainer.label_thresholds
    if thresholds and isinstance(thresholds, dict):
        demands.append(Demand("trainer.label_thresholds", label, list(thresholds), "train"))
    for number, rule in enumerate(config.evaluation.rules):
        for column, value in rule.slice.items():
            if column != SIZE and (column != label or config.task != "regression"):
                demands.append(Demand(f"evaluation.rules.{number}.slice", column, [value], "eval"))
    return demands
