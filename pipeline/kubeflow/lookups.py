"""Adds tasks to a compiled pipeline that look at what the cluster's cache can't see.

A cluster's cache key of a task has its image, its command, the values of its parameters and the ids of its input
artifacts, but no files in a folder, and not what is live. So what depends on these takes what a task has found there as
one more parameter. ``pipeline.kubeflow.look`` is what runs in these tasks.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from imagepipe.base.names import DECISIONS_HASH, LIVE_MODELS, LIVE_STATISTICS
from imagepipe.deploy.config import DeployConfig
from pipeline.config import Config
from pipeline.kubeflow.look import DATA, SCHEMA, WEIGHTS
from pipeline.kubeflow.submission import Cluster
from pipeline.source import Source
from trainer.config import list_given

_COMMAND = ["python", "-m", "pipeline.kubeflow.look"]
_STRING = {"parameterType": "STRING"}


@dataclass(frozen=True)
class Lookup:
    """A task that looks something up.

    Attributes:
        name: its name in the compiled pipeline.
        component: its name for people, as components have one.
        arguments: of its command, without outputs.
        takers: components by the output parameter that they take.
        inputs: parameters of the run that it takes.
    """

    name: str
    component: str
    arguments: list[str]
    takers: dict[str, tuple[str, ...]]
    inputs: tuple[str, ...] = field(default=())


def list_lookups(config: Config, source: Source, deploy: DeployConfig, cluster: Cluster) -> list[Lookup]:
    """Returns the tasks that a pipeline needs.

    Args:
        config: the configuration.
        source: the Examples.
        deploy: its section ``deploy``, with name and path.
        cluster: what is to run it. Vertex AI looks at the dataset itself, by ImportExampleGen's driver.
    """
    schema = config.data.curated_schema
    weights = dict(list_given(config.trainer.model_dump())).get("weights")
    examples = {"patterns": source.patterns, "all": source.all, "is_foreign": source.is_foreign}
    files = {"source": examples, "schema": schema, "weights": weights}
    takers: dict[str, tuple[str, ...]] = {DECISIONS_HASH: ("DataCheck",)}
    if cluster == "kubeflow":
        takers[DATA] = ("ImportExampleGen",)
    if schema:
        takers[SCHEMA] = ("ImportSchemaGen",)
    if weights:
        takers[WEIGHTS] = ("Features", "Tuner", "Trainer")
    data_path = ["--data_path", "{{$.inputs.parameters['data_path']}}"]
    data = Lookup(
        "data-lookup", "DataLookup", ["data", "--settings", json.dumps(files), *data_path], takers, ("data_path",)
    )
    target = Lookup(
        "target-lookup",
        "TargetLookup",
        ["target", "--settings", deploy.dump_for_readers()],
        {LIVE_MODELS: ("Champion",), LIVE_STATISTICS: ("DataCheck",)},
    )
    return [data, target]


def add_lookups(spec: dict[str, Any], lookups: Iterable[Lookup], image: str) -> None:
    """Adds tasks to a pipeline, and their outputs to the tasks that take them.

    Args:
        spec: ``PipelineSpec`` as JSON, its tasks named as kfp names them; changed in place.
        lookups: the tasks.
        image: their container image.
    """
    tasks, components = spec["root"]["dag"]["tasks"], spec["components"]
    names = {task["taskInfo"]["name"]: name for name, task in tasks.items()}
    for lookup in lookups:
        name = lookup.name
        arguments = list(lookup.arguments)
        for output, takers in lookup.takers.items():
            arguments += ["--output", output, f"{{{{$.outputs.parameters['{output}'].output_file}}}}"]
            for taker in (names[component] for component in takers if component in names):
                value = {"taskOutputParameter": {"producerTask": name, "outputParameterKey": output}}
                tasks[taker].setdefault("inputs", {}).setdefault("parameters", {})[output] = value
                tasks[taker].setdefault("dependentTasks", []).append(name)
                inputs = components[tasks[taker]["componentRef"]["name"]].setdefault("inputDefinitions", {})
                inputs.setdefault("parameters", {})[output] = _STRING
        tasks[name] = {
            "taskInfo": {"name": lookup.component},
            "componentRef": {"name": f"comp-{name}"},
            "inputs": {"parameters": {key: {"componentInputParameter": key} for key in lookup.inputs}},
        }
        components[f"comp-{name}"] = {
            "executorLabel": f"exec-{name}",
            "inputDefinitions": {"parameters": dict.fromkeys(lookup.inputs, _STRING)},
            "outputDefinitions": {"parameters": dict.fromkeys(lookup.takers, _STRING)},
        }
        container = {"image": image, "command": _COMMAND, "args": arguments}
        spec["deploymentSpec"]["executors"][f"exec-{name}"] = {"container": container}
