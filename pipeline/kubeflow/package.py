"""A compiled pipeline: what Kubeflow Pipelines and Vertex AI are given."""

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

from imagepipe.base.errors import ConfigError

_Types = ir.ParameterType


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        text: as YAML: KFP's IR, and perhaps a second document with what is Kubernetes's.
        document: the IR.
        spec: the same as a message.
        for_kubernetes: whether there is the second document.
    """

    text: str
    document: dict[str, Any]
    spec: ir.PipelineSpec
    for_kubernetes: bool

    @property
    def name(self) -> str:
        """The pipeline's."""
        return str(self.spec.pipeline_info.name)

    @property
    def version(self) -> str:
        """A hash: what is compiled again and is the same is the same version."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def executors(self) -> list[dict[str, Any]]:
        """What runs the tasks, such as containers."""
        return list(self.document.get("deploymentSpec", {}).get("executors", {}).values())

    @property
    def tasks(self) -> dict[str, str]:
        """Names of the tasks, by what they may be called in a run: by that, or by the name for people."""
        tasks = self.spec.root.dag.tasks
        return {task.task_info.name: name for name, task in tasks.items()} | {name: name for name in tasks}


def find(path: Path) -> Package | None:
    """Reads a file; None if it is no compiled pipeline, but perhaps a configuration, or can't be read.

    Raises:
        ConfigError: if it is one, but not as KFP's schema says.
    """
    try:
        text = path.read_text()
        first = next(iter(yaml.safe_load_all(text)), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return parse(text, str(path)) if isinstance(first, dict) and "pipelineInfo" in first else None


def parse(text: str, where: str) -> Package:
    """Reads a compiled pipeline.

    Args:
        text: its YAML.
        where: it is from, for messages.

    Raises:
        ConfigError: if it isn't as KFP's schema says.
    """
    try:
        document, *rest = yaml.safe_load_all(text)
        spec = json_format.ParseDict(document, ir.PipelineSpec())
        for each in rest:
            json_format.ParseDict(each, ir.PlatformSpec())
    except (yaml.YAMLError, json_format.ParseError) as error:
        raise ConfigError(f"{where} is no compiled pipeline: {error}. `imagepipe compile` makes one") from error
    return Package(text, document, spec, bool(rest))


def parameters(package: Package, given: Iterable[str]) -> dict[str, Any]:
    """Values for a run's parameters.

    Args:
        package: declares the parameters, their types and defaults.
        given: ``name=value`` each; lists and structs in JSON.

    Returns:
        The values that were given, in the declared types.

    Raises:
        ConfigError: if a name is unknown, a value is none of its type, or one without a default is not given.
    """
    declared = package.spec.root.input_definitions.parameters
    values: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise ConfigError(f"--param {each}: expected NAME=VALUE, such as epochs=3")
        if name not in declared:
            known = ", ".join(sorted(declared)) or "none"
            raise ConfigError(f"--param {each}: {package.name} has no parameter {name}; it has {known}")
        kind = declared[name].parameter_type
        try:
            values[name] = _READ[kind](text)
        except ValueError as error:
            raise ConfigError(f"--param {each}: {text} is no {_NAMES[kind]}") from error
    optional = {name for name, each in declared.items() if each.is_optional or each.HasField("default_value")}
    if missing := sorted(set(declared) - optional - set(values)):
        raise ConfigError(f"--param: {', '.join(missing)} has to be given, as it has no default")
    return values


def _double(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _json(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return read


_READ: dict[int, Callable[[str], Any]] = {
    _Types.STRING: str,
    _Types.NUMBER_INTEGER: int,
    _Types.NUMBER_DOUBLE: _double,
    _Types.BOOLEAN: _boolean,
    _Types.LIST: _json(list),
    _Types.STRUCT: _json(dict),
}
_NAMES = {
    _Types.NUMBER_INTEGER: "whole number",
    _Types.NUMBER_DOUBLE: "number",
    _Types.BOOLEAN: "true or false",
    _Types.LIST: "list in JSON",
    _Types.STRUCT: "object in JSON",
}
