"""McNemar's test: whether a classifier is right less or more often than another, image by image, for TFMA.

Two accuracies on the same images differ by chance as well. What says something are the images of which only one of the
two models is right: if both were equally good, each of these would be a toss of a coin.

McNemar, Q. (1947): Note on the sampling error of the difference between correlated proportions or percentages.
Psychometrika 12 (2), 153-157. The probability is not the approximation by chi-square that is given there, but the exact
one by the binomial distribution, so that it holds for few images too: Dietterich, T. G. (1998): Approximate statistical
tests for comparing supervised classification learning algorithms. Neural Computation 10 (7), 1895-1923, section 3.1.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from scipy.stats import binomtest
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from components.metrics import label_prediction_weight

MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION = "mcnemar", "only_candidate_right", "only_champion_right"
WORSE = "accuracy_not_worse_by_"
"""Begins the name of a ``WorseThanChance``, which ends with its margin."""


class Pairs(NamedTuple):
    """Images by which of two models is right: only the candidate, only the champion; and all."""

    only_candidate: float = 0
    only_champion: float = 0
    images: float = 0


def p_value(pairs: Pairs) -> float:
    """Two-sided probability that models that are equally good differ by so much or more; 1 without a difference.

    Counts of images, without weights.
    """
    discordant = round(pairs.only_candidate + pairs.only_champion)
    return float(binomtest(round(pairs.only_champion), discordant).pvalue) if discordant else 1.0


def p_if_worse(pairs: Pairs, margin: float) -> float:
    """``p_value`` of a candidate whose accuracy is below the champion's by more than ``margin``; 1 of any other."""
    worse_by = (pairs.only_champion - pairs.only_candidate) / pairs.images if pairs.images else 0.0
    return p_value(pairs) if worse_by > margin else 1.0


class McNemar(tfma.metrics.Metric):
    """The probability of ``p_value``, and beside it the counts ``only_candidate_right`` and ``only_champion_right``.

    TFMA has each as a difference from the baseline; without one there is nothing.
    """

    def __init__(self, name: str = MCNEMAR):
        super().__init__(_mcnemar, name=name)


class WorseThanChance(tfma.metrics.Metric):
    """The probability of ``p_if_worse``, for a gate: it is to be at least the significance that is asked for.

    Args:
        name: of the metric, ``WORSE`` and the margin.
        margin: by so much the candidate's accuracy may be below the champion's, whatever the test says.
    """

    def __init__(self, name: str, margin: float):
        super().__init__(_worse_than_chance, name=name, margin=margin)


def _mcnemar(name: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]) -> list[Any]:
    def figures(pairs: Pairs) -> dict[str, float]:
        return {name: p_value(pairs), ONLY_CANDIDATE: pairs.only_candidate, ONLY_CHAMPION: pairs.only_champion}

    return _of_pairs(figures, [name, ONLY_CANDIDATE, ONLY_CHAMPION], eval_config, model_names)


def _worse_than_chance(
    name: str, margin: float, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]
) -> list[Any]:
    return _of_pairs(lambda pairs: {name: p_if_worse(pairs, margin)}, [name], eval_config, model_names)


def _of_pairs(
    figures: Any, names: Sequence[str], eval_config: config_pb2.EvalConfig, model_names: Sequence[str]
) -> list[Any]:
    """Counts once for all metrics: TFMA knows equal computations by their keys."""
    baseline = model_util.get_baseline_model_spec(eval_config)
    made = []
    for model in model_names if baseline else ():
        if model == baseline.name:
            continue
        counts = metric_types.MetricKey(name="_pairs", model_name=model, is_diff=True)
        keys = {name: metric_types.MetricKey(name=name, model_name=model, is_diff=True) for name in names}

        def result(metrics: dict[Any, Any], counts: Any = counts, keys: dict[str, Any] = keys) -> dict[Any, float]:
            return {keys[name]: value for name, value in figures(metrics[counts]).items()}

        combiner = _PairCounter(counts, baseline.name, eval_config)
        made.append(metric_types.MetricComputation(keys=[counts], preprocessors=None, combiner=combiner))
        made.append(metric_types.DerivedMetricComputation(keys=list(keys.values()), result=result))
    return made


class _PairCounter(beam.CombineFn):
    """Counts images; a model is right if its most probable class is the label, as accuracy has it."""

    def __init__(self, key: Any, baseline: str, eval_config: config_pb2.EvalConfig):
        self._key = key
        self._models = [metric_types.MetricKey(name="", model_name=name) for name in (key.model_name, baseline)]
        self._eval_config = eval_config

    def create_accumulator(self) -> Pairs:
        return Pairs()

    def add_input(self, accumulator: Pairs, element: Any) -> Pairs:
        candidate, champion = (self._is_right(element, model) for model in self._models)
        return Pairs(
            accumulator.only_candidate + (candidate and not champion),
            accumulator.only_champion + (champion and not candidate),
            accumulator.images + 1,
        )

    def _is_right(self, element: Any, model: Any) -> bool:
        label, prediction, _ = label_prediction_weight(element, model, self._eval_config)
        return bool(np.argmax(prediction) == label)

    def merge_accumulators(self, accumulators: Iterable[Pairs]) -> Pairs:
        return Pairs(*map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator: Pairs) -> dict[Any, Pairs]:
        return {self._key: accumulator}


for metric in (McNemar, WorseThanChance):
    metric_types.register_metric(metric)
