"""Compiles the pipeline for Kubeflow Pipelines and for Vertex AI: KFP's IR, from the one DAG."""

import re
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from google.protobuf import json_format
from kfp.compiler import pipeline_spec_builder
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec import pipeline_spec_pb2 as ir
from kubernetes.utils.quantity import parse_quantity
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner as runner

from imagepipe.base.errors import ConfigError
from pipeline.config import Config
from pipeline.dag import NEVER_CACHED, create_pipeline
from pipeline.kubeflow.lookups import add_lookups, list_lookups
from pipeline.kubeflow.submission import Cluster
from pipeline.kubeflow_config import KubeflowConfig, ResourcesConfig
from pipeline.source import Source

_COMMAND = ["python", "-m", "pipeline.kubeflow.entrypoint"]
_ON_GPU = ("Features", "Trainer", "Tuner")
_STATE = "/tmp/imagepipe"  # noqa: S108 (in a container of its own)

_ResourceSpec: TypeAlias = ir.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec


def compile_pipeline(config: Config, cluster: Cluster, source: Source) -> str:
    """Compiles a pipeline.

    Args:
        config: the configuration. Its paths are those that components see: on a volume, or ``gs://``.
        cluster: what is to run it.
        source: the Examples.

    Returns:
        YAML: the pipeline as KFP's IR (schema 2.1.0), and for Kubeflow, if needed, a second document with the settings
        of Kubernetes. The same configuration gives the same text. The parameters ``data_path``, ``epochs``,
        ``batch_size`` and ``threshold_<metric>`` have the configuration's values as defaults.

    Raises:
        ConfigError: if it has settings for a component that the pipeline lacks.
    """
    settings = config.kubeflow
    defaults: dict[str, Any] = {}

    def create_parameter(name: str, value: Any) -> RuntimeParameter:
        defaults[name] = value
        return RuntimeParameter(name=name, default=value, ptype=type(value))

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
        parameter=create_parameter,
    )
    names = ["default", *(component.id for component in pipeline.components), *(x.component for x in lookups)]
    if unknown := set(settings.resources) - set(names):
        raise ConfigError(f"kubeflow.resources: there is no component {min(unknown)}; known are {', '.join(names)}")
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
        container["resources"] = json_format.MessageToDict(_build_resources(settings, component))
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
    platform = _build_platform(settings, sorted(executors)) if cluster == "kubeflow" else ir.PlatformSpec()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        pipeline_spec_builder.write_pipeline_spec_to_file(spec, spec.pipeline_info.description, platform, str(file))
        return file.read_text()


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

    TFX's compiler writes all types as schemas. See ``components.model_report.component``.
    """
    title = yaml.safe_load(artifact_type["instanceSchema"])["title"]
    return {"schemaTitle": title, "schemaVersion": "0.0.1"} if title.startswith("system.") else artifact_type


def _build_resources(settings: KubeflowConfig, component: str) -> _ResourceSpec:
    """Returns the resources of a component; also as numbers in the old fields, as Vertex AI reads those."""
    resources = settings.resources.get(component, settings.resources.get("default", ResourcesConfig()))
    cpu, memory = float(parse_quantity(resources.cpu)), float(parse_quantity(resources.memory)) / 1e9
    spec = _ResourceSpec(
        cpu_limit=cpu,
        cpu_request=cpu,
        memory_limit=memory,
        memory_request=memory,
        resource_cpu_limit=resources.cpu,
        resource_cpu_request=resources.cpu,
        resource_memory_limit=resources.memory,
        resource_memory_request=resources.memory,
    )
    if settings.gpu and component in _ON_GPU:
        type_, count = settings.gpu.type, settings.gpu.count
        spec.accelerator.CopyFrom(
            _ResourceSpec.AcceleratorConfig(type=type_, count=count, resource_type=type_, resource_count=str(count))
        )
    return spec


def _build_platform(settings: KubeflowConfig, executors: list[str]) -> ir.PlatformSpec:
    """Returns the settings of Kubernetes for all components, as kfp-kubernetes's messages; empty if there are none."""
    config = kubernetes.KubernetesExecutorConfig(
        tolerations=[
            kubernetes.Toleration(toleration_seconds=toleration.seconds, **toleration.model_dump(exclude={"seconds"}))
            for toleration in settings.tolerations
        ],
        pvc_mount=[
            kubernetes.PvcMount(
                constant=volume.claim, pvc_name_parameter=_build_constant(volume.claim), mount_path=volume.path
            )
            for volume in settings.volumes
        ],
        secret_as_env=[
            kubernetes.SecretAsEnv(
                secret_name=secret.name,
                secret_name_parameter=_build_constant(secret.name),
                key_to_env=[
                    kubernetes.SecretAsEnv.SecretKeyToEnvMap(secret_key=key, env_var=variable)
                    for variable, key in secret.env.items()
                ],
            )
            for secret in settings.secrets
        ],
    )
    if settings.node_selector:
        config.node_selector.labels.update(settings.node_selector)
    if settings.labels:
        config.pod_metadata.labels.update(settings.labels)
    if not config.ByteSize():
        return ir.PlatformSpec()
    by_executor = dict.fromkeys(executors, json_format.MessageToDict(config))
    platforms = {"kubernetes": {"deploymentSpec": {"executors": by_executor}}}
    return json_format.ParseDict({"platforms": platforms}, ir.PlatformSpec())


def _build_constant(value: str) -> ir.TaskInputsSpec.InputParameterSpec:
    parameter = ir.TaskInputsSpec.InputParameterSpec()
    parameter.runtime_value.constant.string_value = value
    return parameter
