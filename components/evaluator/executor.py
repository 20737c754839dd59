"""Executor of the Evaluator: TFX's, in bounded memory, for a champion that may not exist, with slices by image size."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors import unbatch_extractor
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import constants, executor
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs
from tfx.utils import path_utils, proto_utils
from tfx_bsl.coders import batch_util

from components.evaluator.evaluation_reader import CHAMPION_NOTE, SAVED_MODEL, read_evaluation
from components.evaluator.gate_rules import DEMANDED
from components.evaluator.groups import RECORD_HASH, hash_record
from components.evaluator.metric_names import TOP_K
from components.evaluator.tfma_group_count import GroupCount
from components.evaluator.tfma_jackknife import count_groups
from components.evaluator.tfma_served_model import share_as_served, share_candidate_as_served
from components.served_model import find_form_problem, has_form
from imagepipe.base import filesystem
from imagepipe.base.features import SIZE
from imagepipe.deploy.saved_model import read_labels
from imagepipe.deploy.storage import fetch_assets

THRESHOLD_PREFIX = "threshold_"
"""Prefix of the execution properties that override thresholds, before the metric's name."""

_BASELINE = standard_component_specs.BASELINE_MODEL_KEY
_MODELS = (standard_component_specs.MODEL_KEY, _BASELINE)
_EVAL_CONFIG = standard_component_specs.EVAL_CONFIG_KEY
_EXTRACTORS, _SHARED_MODEL = "custom_extractors", "custom_eval_shared_model"
_BATCH_SIZE = 32  # larger ones make InceptionV3 no faster on a CPU
_SIDES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Executor(executor.Executor):
    """Evaluates and validates the candidate, against the champion if there is one.

    A version that has a form for OpenVINO is evaluated by that, as our server answers, and as the SavedModel, which
    other servers may read from the same folder. It has to pass both.
    """

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the evaluation and the blessing; see TFX's executor for the arguments."""
        champion = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[_BASELINE]))
        note = find_form_problem(champion)
        if not filesystem.exists(champion):
            input_dict = {key: value for key, value in input_dict.items() if key != _BASELINE}
        thresholds = {
            name.removeprefix(THRESHOLD_PREFIX): value
            for name, value in exec_properties.items()
            if name.startswith(THRESHOLD_PREFIX)
        }
        config = proto_utils.json_to_proto(exec_properties[_EVAL_CONFIG], config_pb2.EvalConfig())
        demanded = override_thresholds(config, thresholds)
        models = [artifact_utils.get_single_uri(input_dict[key]) for key in _MODELS if key in input_dict]
        measured = drop_constant_metrics(demanded, min(map(_count_outputs, models)))
        folder = artifact_utils.get_single_uri(output_dict[standard_component_specs.EVALUATION_KEY])
        changed = {
            _EVAL_CONFIG: proto_utils.proto_to_json(measured),
            _EXTRACTORS: f"{__name__}.{build_extractors.__name__}",
        }
        with _fix_batch_size(_BATCH_SIZE), count_groups(_find_group_feature(measured)):
            have_form = [has_form(path_utils.serving_model_path(model)) for model in models]
            if have_form[0]:
                super().Do(input_dict, _make_outputs(f"{folder}/{SAVED_MODEL}"), exec_properties | changed)
                filesystem.write_whole(
                    f"{folder}/{SAVED_MODEL}/{DEMANDED}", proto_utils.proto_to_json(demanded).encode()
                )
            if any(have_form):
                share = share_candidate_as_served if note else share_as_served
                changed[_SHARED_MODEL] = f"{share.__module__}.{share.__name__}"
            super().Do(input_dict, output_dict, exec_properties | changed)
        filesystem.write_whole(f"{folder}/{DEMANDED}", proto_utils.proto_to_json(demanded).encode())
        if note:
            filesystem.write_whole(f"{folder}/{CHAMPION_NOTE}", note.encode())
        blessing = artifact_utils.get_single_instance(output_dict[standard_component_specs.BLESSING_KEY])
        _write_verdict(blessing, read_evaluation(folder).refusals)


def _make_outputs(folder: str) -> dict[str, list[types.Artifact]]:
    """Returns artifacts for a further evaluation."""
    outputs = {
        standard_component_specs.EVALUATION_KEY: standard_artifacts.ModelEvaluation(),
        standard_component_specs.BLESSING_KEY: standard_artifacts.ModelBlessing(),
    }
    for name, artifact in outputs.items():
        artifact.uri = folder if name == standard_component_specs.EVALUATION_KEY else f"{folder}/{name}"
    return {name: [artifact] for name, artifact in outputs.items()}


def _find_group_feature(config: config_pb2.EvalConfig) -> str:
    metrics = [metric for specs in config.metrics_specs for metric in specs.metrics]
    (count,) = [metric for metric in metrics if metric.class_name == GroupCount.__name__]
    return json.loads(count.config)["group_feature"]


def _write_verdict(blessing: types.Artifact, refusals: Sequence[str]) -> None:
    """Writes the file and the property by which TFX knows a blessed model.

    TFX's executor writes neither if no threshold could be checked, which the Pusher takes for a refusal. Here a model
    is refused for a reason, or not at all.
    """
    filesystem.delete_folder(blessing.uri)
    name = constants.NOT_BLESSED_FILE_NAME if refusals else constants.BLESSED_FILE_NAME
    filesystem.write_whole(f"{blessing.uri}/{name}", b"")
    value = constants.NOT_BLESSED_VALUE if refusals else constants.BLESSED_VALUE
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)


@contextlib.contextmanager
def _fix_batch_size(size: int) -> Iterator[None]:
    """Makes TFXIO read batches of ``size`` Examples.

    By default Beam lets them grow to 1,000, as long as a batch takes no longer than a second: with photos of some
    megabytes and much larger decoded tensors that is more than a worker's memory. TFX's Evaluator has no argument for
    the size.
    """
    original = batch_util.GetBatchElementsKwargs
    batch_util.GetBatchElementsKwargs = lambda _batch_size, *args: original(size, *args)
    try:
        yield
    finally:
        batch_util.GetBatchElementsKwargs = original


def build_extractors(
    eval_shared_model: Any, eval_config: config_pb2.EvalConfig, tensor_adapter_config: Any
) -> list[Any]:
    """Returns TFMA's steps from Examples to the input of metrics, with one that adds features; TFX calls it."""
    steps = tfma.default_extractors(
        eval_shared_model=eval_shared_model, eval_config=eval_config, tensor_adapter_config=tensor_adapter_config
    )
    names = [step.stage_name for step in steps]
    after_unbatch = names.index(unbatch_extractor.UNBATCH_EXTRACTOR_STAGE_NAME) + 1
    step = tfma.extractors.Extractor("AddFeatures", beam.Map(_add_features))
    return [*steps[:after_unbatch], step, *steps[after_unbatch:]]


def _add_features(extracts: dict[str, Any]) -> dict[str, Any]:
    """Adds ``RECORD_HASH``, and ``SIZE`` where it is known."""
    features = extracts[tfma.FEATURES_KEY]
    added = {RECORD_HASH: np.array([hash_record(np.ravel(extracts[tfma.INPUT_KEY])[0])])}
    sides = [np.ravel(features[name]) for name in ("width", "height") if features.get(name) is not None]
    if len(sides) == 2 and all(len(side) == 1 for side in sides) and SIZE not in features:
        added[SIZE] = np.array([name_size_bucket(int(max(map(max, sides))))])
    return extracts | {tfma.FEATURES_KEY: features | added}


def name_size_bucket(side: int) -> str:
    """Returns the bucket of an image by its longer side in pixels, such as ``128-255 px``."""
    for start, next_start in pairwise(_SIDES):
        if side < next_start:
            return f"{start}-{next_start - 1} px"
    return f"{_SIDES[-1]} px and more"


def override_thresholds(config: config_pb2.EvalConfig, thresholds: Mapping[str, float]) -> config_pb2.EvalConfig:
    """Returns the configuration with other bounds, by metric, for the whole split; bounds of rules stay unchanged."""
    changed = config_pb2.EvalConfig()
    changed.CopyFrom(config)
    for specs in changed.metrics_specs:
        for metric in specs.metrics:
            bound = thresholds.get(json.loads(metric.config or "{}").get("name"))
            if bound is not None and metric.per_slice_thresholds:
                # The bound for the whole split comes first, those of rules after it; see pipeline.eval_config.
                value = metric.per_slice_thresholds[0].threshold.value_threshold
                side = value.upper_bound if value.HasField("upper_bound") else value.lower_bound
                side.value = bound
    return changed


def drop_constant_metrics(config: config_pb2.EvalConfig, outputs: int) -> config_pb2.EvalConfig:
    """Returns the configuration without the metrics that are always 1 for models with so many outputs."""
    changed = config_pb2.EvalConfig()
    changed.CopyFrom(config)
    for specs in changed.metrics_specs:
        metrics = [metric for metric in specs.metrics if json.loads(metric.config or "{}").get(TOP_K, 0) < outputs]
        del specs.metrics[:]
        specs.metrics.extend(metrics)
    return changed


def _count_outputs(model: str) -> int:
    return len(read_labels(fetch_assets(path_utils.serving_model_path(model))))
