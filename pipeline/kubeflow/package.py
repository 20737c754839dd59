"""Compiled pipelines: the files that Kubeflow Pipelines and Vertex AI are given."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as ir
from pydantic import BaseModel, ValidationError

from imagepipe.base.errors import ConfigError
from imagepipe.base.metrics import METRICS
from pipeline.config import DataConfig
from pipeline.monitoring_config import MonitoringConfig
from pipeline.yaml_text import load_documents
from trainer.config import TrainerConfig

_Types = ir.ParameterType


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        text: the YAML: KFP's IR, and perhaps a second document with settings of Kubernetes.
        document: the IR.
        spec: the IR as a message.
        for_kubernetes: whether there is the second document.
    """

    text: str
    document: dict[str, Any]
    spec: ir.PipelineSpec
    for_kubernetes: bool

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return str(self.spec.pipeline_info.name)

    @property
    def version(self) -> str:
        """A hash: the same pipeline compiled again is the same version."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def executors(self) -> list[dict[str, Any]]:
        """The executors of the tasks, such as containers."""
        return list(self.document.get("deploymentSpec", {}).get("executors", {}).values())

    @property
    def tasks(self) -> dict[str, str]:
        """Name of each task by the names that it may have in a run: its own, and the one for people."""
        tasks = self.spec.root.dag.tasks
        return {task.task_info.name: name for name, task in tasks.items()} | {name: name for name in tasks}


def find_package(path: Path) -> Package | None:
    """Reads a file; None if it is no compiled pipeline, but perhaps a configuration, or can't be read.

    Raises:
        ConfigError: if it is a compiled pipeline that violates KFP's schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        first = next(load_documents(text), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return parse_package(text, str(path)) if isinstance(first, dict) and "pipelineInfo" in first else None


def parse_package(text: str, source: str) -> Package:
    """Parses a compiled pipeline.

    Args:
        text: the YAML.
        source: where it comes from, for messages.

    Raises:
        ConfigError: if it violates KFP's schema.
    """
    try:
        document, *platforms = load_documents(text)
        spec = json_format.ParseDict(document, ir.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, ir.PlatformSpec())
    except (yaml.YAMLError, json_format.ParseError) as error:
        raise ConfigError(f"{source} is no compiled pipeline: {error}. `imagepipe compile` makes one") from error
    return Package(text, document, spec, bool(platforms))


def parse_parameters(package: Package, arguments: Iterable[str]) -> dict[str, Any]:
    """Parses values for a run's parameters.

    Args:
        package: declares the parameters, their types and defaults.
        arguments: ``name=value`` each; lists and structs in JSON.

    Returns:
        The values by name, in the declared types.

    Raises:
        ConfigError: if a name is unknown, a value is not of its type or one that the configuration refuses, or a
            parameter without a default is missing.
    """
    declared = package.spec.root.input_definitions.parameters
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"--param {argument}: expected NAME=VALUE, such as epochs=3")
        if name not in declared:
            names = ", ".join(sorted(declared)) or "none"
            raise ConfigError(f"--param {argument}: {package.name} has no parameter {name}; it has {names}")
        type_ = declared[name].parameter_type
        try:
            values[name] = _PARSERS[type_](text)
        except ValueError as error:
            raise ConfigError(f"--param {argument}: {text} is no {_TYPE_NAMES[type_]}") from error
        if fault := _find_fault(name, values[name]):
            raise ConfigError(f"--param {argument}: {fault}")
    optional = {name for name, spec in declared.items() if spec.is_optional or spec.HasField("default_value")}
    if missing := sorted(set(declared) - optional - set(values)):
        raise ConfigError(f"--param: {', '.join(missing)} has to be given, as it has no default")
    return values


def _find_fault(name: str, value: Any) -> str | None:
    """Returns why the configuration would refuse a parameter's value, None if it would not, or has no such key."""
    thresholds = {f"threshold_{metric}": bounds for metrics in METRICS.values() for metric, bounds in metrics.items()}
    bounds = thresholds.get(name)
    if bounds and not bounds.lowest <= value <= bounds.highest:
        return f"it can't be reached; it lies between {bounds.lowest:g} and {bounds.highest:g}"
    if name in _KEYS:
        section, key = _KEYS[name]
        try:
            section(**{key: value})
        except ValidationError as error:
            return str(error.errors()[0]["msg"])
    return None


# Sections and keys of the configuration that a run's parameters stand for, where these have limits.
_KEYS: dict[str, tuple[type[BaseModel], str]] = {
    "data_path": (DataConfig, "path"),
    "epochs": (TrainerConfig, "epochs"),
    "batch_size": (TrainerConfig, "batch_size"),
    "since": (MonitoringConfig, "since"),
    "max_divergence": (MonitoringConfig, "max_divergence"),
    "max_share": (MonitoringConfig, "max_share"),
}


def _parse_double(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _make_json_parser(type_: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, type_):
            raise ValueError(text)
        return value

    return parse


_PARSERS: dict[int, Callable[[str], Any]] = {
    _Types.STRING: str,
    _Types.NUMBER_INTEGER: int,
    _Types.NUMBER_DOUBLE: _parse_double,
    _Types.BOOLEAN: _parse_boolean,
    _Types.LIST: _make_json_parser(list),
    _Types.STRUCT: _make_json_parser(dict),
}
_TYPE_NAMES = {
    _Types.NUMBER_INTEGER: "whole number",
    _Types.NUMBER_DOUBLE: "number",
    _Types.BOOLEAN: "true or false",
    _Types.LIST: "list in JSON",
    _Types.STRUCT: "object in JSON",
}
