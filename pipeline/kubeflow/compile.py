"""Compiles the pipelines for Kubeflow Pipelines and for Vertex AI: KFP's IR, from the same DAGs as everywhere."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.compiler import pipeline_spec_builder
from kfp.pipeline_spec import pipeline_spec_pb2 as ir
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner as runner
from tfx.orchestration.pipeline import Pipeline

from imagepipe.base.errors import ConfigError
from pipeline.config import Config
from pipeline.dag import NEVER_CACHED, create_pipeline
from pipeline.kubeflow.component_settings import build_platform, build_resources, build_retry_policy, find_settings
from pipeline.kubeflow.lookups import Lookup, add_lookups, list_lookups
from pipeline.kubeflow.submission import Cluster
from pipeline.kubeflow_config import KubeflowConfig
from pipeline.monitor_dag import MONITORS, create_monitor_pipeline
from pipeline.source import Source

_COMMAND = ["python", "-m", "pipeline.kubeflow.entrypoint"]
_STATE = "/tmp/imagepipe"  # noqa: S108 (in a container of its own)


def compile_pipeline(config: Config, cluster: Cluster, source: Source) -> str:
    """Compiles the pipeline that trains.

    Args:
        config: the configuration. Its paths are those that components see: on a volume, or ``gs://``.
        cluster: what is to run it.
        source: the Examples.

    Returns:
        YAML: the pipeline as KFP's IR (schema 2.1.0), and for Kubeflow, if needed, a second document with the settings
        of Kubernetes. The same configuration gives the same text. The parameters ``data_path``, ``epochs``,
        ``batch_size`` and ``threshold_<metric>`` have the configuration's values as defaults.

    Raises:
        ConfigError: if it has settings for a component that neither pipeline has.
    """
    settings = config.kubeflow
    defaults: dict[str, Any] = {}
    deploy = config.make_deployment("")
    lookups = list_lookups(config, source, deploy, cluster)
    pipeline = create_pipeline(
        config,
        source,
        pipeline_root=settings.pipeline_root or "",
        state_dir=_STATE,
        deploy=deploy,
        beam_args=config.beam.make_arguments(),
        enable_cache=settings.cache,
        is_compiled=True,
        parameter=_record_in(defaults),
    )
    names = ["default", *(component.id for component in pipeline.components), *(x.component for x in lookups)]
    names += MONITORS
    if unknown := set(settings.resources) - set(names):
        raise ConfigError(f"kubeflow.resources: there is no component {min(unknown)}; known are {', '.join(names)}")
    return _compile(pipeline, settings, cluster, defaults, lookups)


def compile_monitor(config: Config, cluster: Cluster) -> str:
    """Compiles the pipeline that monitors the live model, see ``compile_pipeline``.

    Its parameters are ``capture``, ``since``, ``feedback``, ``max_divergence`` and ``max_share``.
    """
    settings = config.kubeflow
    defaults: dict[str, Any] = {}
    pipeline = create_monitor_pipeline(
        f"{config.name}-monitor",
        config.monitoring,
        config.make_deployment(""),
        pipeline_root=settings.pipeline_root or "",
        parameter=_record_in(defaults),
    )
    return _compile(pipeline, settings, cluster, defaults, [])


def _record_in(defaults: dict[str, Any]) -> Callable[[str, Any], RuntimeParameter]:
    """Returns the function that creates parameters of the runs; their defaults, by name, are kept in a dictionary."""

    def create(name: str, value: Any) -> RuntimeParameter:
        defaults[name] = value
        return RuntimeParameter(name=name, default=value, ptype=type(value))

    return create


def _compile(
    pipeline: Pipeline, settings: KubeflowConfig, cluster: Cluster, defaults: dict[str, Any], lookups: list[Lookup]
) -> str:
    compiler = runner.KubeflowV2DagRunner(
        runner.KubeflowV2DagRunnerConfig(
            default_image=settings.image, default_commands=_COMMAND, use_pipeline_spec_2_1=True
        )
    )
    compiled = _rename_as_kfp(compiler.run(pipeline, write_out=False)["pipelineSpec"])
    executors = compiled["deploymentSpec"]["executors"]
    for executor in executors.values():
        executor["container"]["args"] += ["--cluster", cluster]
    add_lookups(compiled, lookups, str(settings.image))
    for name, task in compiled["root"]["dag"]["tasks"].items():
        component, container = task["taskInfo"]["name"], executors[f"exec-{name}"]["container"]
        resources = find_settings(settings, component)
        container["resources"] = build_resources(resources)
        if resources.retries:
            task["retryPolicy"] = build_retry_policy(resources.retries)
        if component in NEVER_CACHED:
            task.pop("cachingOptions", None)
        if cluster == "kubeflow":
            container.pop("lifecycle", None)  # which only Vertex AI has; see pipeline.kubeflow.entrypoint
    for component in compiled["components"].values():
        for output in component.get("outputDefinitions", {}).get("artifacts", {}).values():
            output["artifactType"] = _convert_type(output["artifactType"])
    for name, definition in compiled["root"]["inputDefinitions"]["parameters"].items():
        definition.update(defaultValue=defaults[name], isOptional=True)  # TFX's compiler leaves them out
    spec = json_format.ParseDict(compiled, ir.PipelineSpec())
    spec.pipeline_info.description = settings.description
    spec.default_pipeline_root = settings.pipeline_root or ""
    platform = ir.PlatformSpec()
    if cluster == "kubeflow":
        named = {f"exec-{name}": task["taskInfo"]["name"] for name, task in compiled["root"]["dag"]["tasks"].items()}
        platform = build_platform(settings, named)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        pipeline_spec_builder.write_pipeline_spec_to_file(spec, spec.pipeline_info.description, platform, str(file))
        return file.read_text(encoding="utf-8")


def _rename_as_kfp(spec: dict[str, Any]) -> dict[str, Any]:
    """Names parts as kfp's own compiler does, whose runners split the names: ``comp-x``, ``exec-x``, task ``x``."""

    def hyphenate(name: str) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()

    def rename_task(task: dict[str, Any]) -> dict[str, Any]:
        changed = task | {"componentRef": {"name": f"comp-{hyphenate(task['componentRef']['name'])}"}}
        if "dependentTasks" in task:
            changed["dependentTasks"] = [hyphenate(name) for name in task["dependentTasks"]]
        for artifact in task.get("inputs", {}).get("artifacts", {}).values():
            artifact["taskOutputArtifact"]["producerTask"] = hyphenate(artifact["taskOutputArtifact"]["producerTask"])
        return changed

    tasks = {hyphenate(name): rename_task(task) for name, task in spec["root"]["dag"]["tasks"].items()}
    return spec | {
        "components": {
            f"comp-{hyphenate(name)}": component | {"executorLabel": f"exec-{hyphenate(name)}"}
            for name, component in spec["components"].items()
        },
        "deploymentSpec": {
            "executors": {
                f"exec-{hyphenate(name.removesuffix('_executor'))}": executor
                for name, executor in spec["deploymentSpec"]["executors"].items()
            }
        },
        "root": spec["root"] | {"dag": {"tasks": tasks}},
    }


def _convert_type(artifact_type: dict[str, Any]) -> dict[str, Any]:
    """Returns an output's type; one of kfp's own types as kfp writes it, by which Kubeflow's page knows what to show.

    TFX's compiler writes all types as schemas. See ``components.kfp_artifacts``.
    """
    title = yaml.safe_load(artifact_type["instanceSchema"])["title"]
    return {"schemaTitle": title, "schemaVersion": "0.0.1"} if title.startswith("system.") else artifact_type
