"""Evaluator: TFX's, for a champion that may not exist, in bounded memory; slices by size, thresholds as parameters."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors import unbatch_extractor
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.dsl.io import fileio
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.types.standard_component_specs import EvaluatorSpec
from tfx.utils import io_utils, path_utils, proto_utils
from tfx_bsl.coders import batch_util

from imagepipe.base.features import SIZE

_BASELINE = standard_component_specs.BASELINE_MODEL_KEY
_EVAL_CONFIG = standard_component_specs.EVAL_CONFIG_KEY
_EXTRACTORS = "custom_extractors"
_THRESHOLD = "threshold_"
_BATCH_SIZE = 32  # from which on InceptionV3 gets no faster on a CPU

DEMANDED = "demanded.json"
"""Beside the evaluation: TFMA's configuration as it was given. TFMA's own copy lacks rules that had no champion."""

_SIDES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@contextlib.contextmanager
def _fixed_batches(size: int) -> Iterator[None]:
    """Makes TFXIO read batches of ``size`` Examples.

    By default Beam grows them to up to 1,000, whatever a second is enough for: with photos of some megabytes and
    decoded tensors of many more that is more than a worker's memory. TFX's Evaluator has no argument for it.
    """
    original = batch_util.GetBatchElementsKwargs
    batch_util.GetBatchElementsKwargs = lambda _batch_size, *args: original(size, *args)
    try:
        yield
    finally:
        batch_util.GetBatchElementsKwargs = original


class Executor(executor.Executor):
    """Evaluates and validates the candidate, against the champion if there is one."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the evaluation and the blessing; see TFX's executor for the arguments."""
        champion = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[_BASELINE]))
        if not fileio.exists(champion):
            input_dict = {key: value for key, value in input_dict.items() if key != _BASELINE}
        thresholds = {
            name.removeprefix(_THRESHOLD): value
            for name, value in exec_properties.items()
            if name.startswith(_THRESHOLD)
        }
        config = proto_utils.json_to_proto(exec_properties[_EVAL_CONFIG], config_pb2.EvalConfig())
        demanded = proto_utils.proto_to_json(with_thresholds(config, thresholds))
        folder = artifact_utils.get_single_uri(output_dict[standard_component_specs.EVALUATION_KEY])
        changed = {_EVAL_CONFIG: demanded, _EXTRACTORS: f"{__name__}.{extractors.__name__}"}
        with _fixed_batches(_BATCH_SIZE):
            super().Do(input_dict, output_dict, exec_properties | changed)
        io_utils.write_string_file(f"{folder}/{DEMANDED}", demanded)


def extractors(eval_shared_model: Any, eval_config: config_pb2.EvalConfig, tensor_adapter_config: Any) -> list[Any]:
    """TFMA's steps from Examples to what metrics see, and one that adds the column ``SIZE``; TFX calls it."""
    steps = tfma.default_extractors(
        eval_shared_model=eval_shared_model, eval_config=eval_config, tensor_adapter_config=tensor_adapter_config
    )
    names = [step.stage_name for step in steps]
    place = names.index(unbatch_extractor.UNBATCH_EXTRACTOR_STAGE_NAME) + 1
    return [*steps[:place], tfma.extractors.Extractor("AddSize", beam.Map(_with_size)), *steps[place:]]


def _with_size(extracts: dict[str, Any]) -> dict[str, Any]:
    features = extracts[tfma.FEATURES_KEY]
    sides = [np.ravel(features[name]) for name in ("width", "height") if features.get(name) is not None]
    if len(sides) < 2 or not all(len(side) == 1 for side in sides) or SIZE in features:
        return extracts
    return extracts | {tfma.FEATURES_KEY: features | {SIZE: np.array([size_bucket(int(max(map(max, sides))))])}}


def size_bucket(side: int) -> str:
    """The bucket of an image whose longer side has so many pixels, as text."""
    for least, next_least in pairwise(_SIDES):
        if side < next_least:
            return f"{least}-{next_least - 1} px"
    return f"{_SIDES[-1]} px and more"


def with_thresholds(config: config_pb2.EvalConfig, thresholds: Mapping[str, float]) -> config_pb2.EvalConfig:
    """A configuration with other bounds of the whole split, by metric. They come first, those of rules after them."""
    changed = config_pb2.EvalConfig()
    changed.CopyFrom(config)
    for specs in changed.metrics_specs:
        for metric in specs.metrics:
            bound = thresholds.get(json.loads(metric.config or "{}").get("name"))
            if bound is not None and metric.per_slice_thresholds:
                value = metric.per_slice_thresholds[0].threshold.value_threshold
                side = value.upper_bound if value.HasField("upper_bound") else value.lower_bound
                side.value = bound
    return changed


class Evaluator(base_component.BaseComponent):
    """Evaluates a model, and blesses it or not.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate.
        baseline_model: channel of the champion; an empty model means that there is none.
        example_splits: which splits.
        eval_config: what to compute and to demand.
        thresholds: the bounds in ``eval_config``, by metric: what a compiled pipeline may be run with anew.
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
        named = {f"{_THRESHOLD}{name}": value for name, value in thresholds.items()}
        parameters = {name: component_spec.ExecutionParameter(type=float) for name in named}
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
                **named,
            )
        )
