"""ServingCheck: lets through only what a server can serve, and as fast as it has to be.

TFX's own InfraValidator starts TensorFlow Serving in Docker or on Kubernetes, and looks at whether it answers at all.
This component needs neither: it runs our server, in a fresh process, and holds its answers against the graph that the
Evaluator evaluated. Its InfraBlessing is of the same kind, and the Pusher obeys it in the same way.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import io_utils, path_utils

from imagepipe.base.features import Features, parse_features
from imagepipe.base.images import BadImage, normalize
from imagepipe.base.names import SERVING_REPORT
from imagepipe.base.process import release_memory
from imagepipe.deploy.storage import fetch_model
from imagepipe.serving.check import Expected, check_model
from imagepipe.serving.limits import MAX_IMAGES_BYTES, MAX_ONLINE_PIXELS
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.request_files import parse_example
from imagepipe.serving.types import CheckReport, Failure
from transform import datasets

_EXAMPLES, _MODEL = standard_component_specs.EXAMPLES_KEY, standard_component_specs.MODEL_KEY
_BLESSING, _FEATURES, _BUDGET, _CODE = "blessing", "features", "latency_budget_ms", "code"
_SPLIT = "eval"
_IMAGES = 32
_LOOKED_AT = 1000  # Examples, to find so many that can be asked about


class Executor(base_executor.BaseExecutor):
    """Runs the check."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the report and the blessing, which has the property ``blessed`` and one of TFX's two files."""
        self._log_startup(input_dict, output_dict, exec_properties)
        model = fetch_model(path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[_MODEL])))
        split = artifact_utils.get_split_uri(input_dict[_EXAMPLES], _SPLIT)
        expected = expectations(model, split, parse_features(json.loads(exec_properties[_FEATURES])))
        if expected:
            release_memory()  # what the model took here, before a server has it in memory too
            report = check_model(model, expected, exec_properties.get(_BUDGET))
        else:
            report = CheckReport([f"no Example of the split '{_SPLIT}' can be asked about as it is"])
        blessing = artifact_utils.get_single_instance(output_dict[_BLESSING])
        blessing.set_int_custom_property("blessed", int(not report.problems))
        name = "INFRA_NOT_BLESSED" if report.problems else "INFRA_BLESSED"
        io_utils.write_string_file(f"{blessing.uri}/{name}", "")
        io_utils.write_string_file(f"{blessing.uri}/{SERVING_REPORT}", json.dumps(asdict(report), indent=1))


def expectations(model: Path, split: str, features: Features) -> list[Expected]:
    """Real requests, and what the graph says of their Examples.

    Args:
        model: the SavedModel's folder.
        split: the folder of a split's Examples.
        features: which feature of an Example is what.

    Returns:
        Up to 32 of those that the graph and the server see alike: with all side features, and with an image that is
        decoded as it is and is not too large for a server. In Examples from elsewhere a photo may lie on its side.
    """
    loaded = LoadedModel(model)
    found = []
    records = datasets.examples(split).take(_LOOKED_AT)
    for number, record in enumerate(records.as_numpy_iterator()):
        request = parse_example(record, f"{_SPLIT}/{number}", features)
        if isinstance(request, Failure) or loaded.find_problem(request) or not _as_it_is(request.image):
            continue
        side = {name: request.side[name] for name in loaded.side}
        found.append((replace(request, side=side), record))
        if len(found) == _IMAGES:
            break
    if not found:
        return []
    answers = loaded.predict_examples([record for _, record in found])
    return [Expected(request, classes, label) for (request, _), (classes, label) in zip(found, answers, strict=True)]


def _as_it_is(image: bytes) -> bool:
    try:
        return len(image) <= MAX_IMAGES_BYTES and normalize(image, max_pixels=MAX_ONLINE_PIXELS).data == image
    except BadImage:
        return False


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        _FEATURES: component_spec.ExecutionParameter(type=str),
        _BUDGET: component_spec.ExecutionParameter(type=float, optional=True),
        _CODE: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        _MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model),
        _EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {_BLESSING: component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing)}  # noqa: RUF012


class ServingCheck(base_component.BaseComponent):
    """Checks that a model can be served; its output ``blessing`` is an InfraBlessing.

    Args:
        model: channel of the model.
        examples: channel of the Examples, of whose split ``eval`` some are asked about.
        features: which feature of an Example is what, as JSON.
        latency_budget_ms: most that an image may take, 95th percentile, in milliseconds; None for any.
        code: hash of the server's sources: another one makes the check anew.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        features: str,
        latency_budget_ms: float | None,
        code: str,
    ):
        blessing = types.Channel(type=standard_artifacts.InfraBlessing)
        super().__init__(
            spec=_Spec(
                model=model,
                examples=examples,
                features=features,
                latency_budget_ms=latency_budget_ms,
                code=code,
                blessing=blessing,
            )
        )
