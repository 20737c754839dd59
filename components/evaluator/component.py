"""Evaluator: TFX's, with thresholds as parameters; see ``components.evaluator.executor``."""

import json
from collections.abc import Mapping

from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import component_spec, standard_artifacts
from tfx.types.standard_component_specs import EvaluatorSpec

from components.evaluator.executor import THRESHOLD_PREFIX, Executor


class Evaluator(base_component.BaseComponent):
    """Evaluates a model, and blesses it or not.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate.
        baseline_model: channel of the champion; an empty model means that there is none.
        example_splits: names of the splits to evaluate.
        eval_config: metrics and thresholds.
        thresholds: the bounds in ``eval_config``, by metric, as parameters that a run of a compiled pipeline can set.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel,
        example_splits: list[str],
        eval_config: config_pb2.EvalConfig,
        thresholds: Mapping[str, float | RuntimeParameter],
    ):
        properties = {f"{THRESHOLD_PREFIX}{name}": value for name, value in thresholds.items()}
        parameters = {name: component_spec.ExecutionParameter(type=float) for name in properties}
        spec = type("_Spec", (EvaluatorSpec,), {"PARAMETERS": EvaluatorSpec.PARAMETERS | parameters})
        super().__init__(
            spec=spec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                example_splits=json.dumps(example_splits),
                eval_config=eval_config,
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
                **properties,
            )
        )
