"""Compiles the pipeline for Kubeflow Pipelines and for Vertex AI: KFP's IR, from the one DAG."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from google.protobuf import json_format
from kfp.compiler import pipeline_spec_builder
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec import pipeline_spec_pb2 as ir
from kubernetes.utils.quantity import parse_quantity
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner as runner

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from pipeline import source
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.kubeflow_config import KubeflowConfig, ResourcesConfig
from pipeline.source import Source
from trainer.config import IMAGENET, NO_WEIGHTS

TargetName = Literal["kubeflow", "vertex"]

_COMMAND = ["python", "-m", "pipeline.kubeflow.entrypoint"]
_ON_GPU = ("Trainer", "Tuner")
_STATE = "/tmp/imagepipe"  # noqa: S108 (in a container of its own)

# What their results depend on is not among their inputs: what is live; and on Kubeflow, which has no drivers to look
# before the cache does, the files in a folder.
_NOT_CACHED: dict[TargetName, tuple[str, ...]] = {
    "kubeflow": ("ImportExampleGen", "DataCheck", "Champion"),
    "vertex": ("DataCheck", "Champion"),
}


def compile_pipeline(config: Config, target: TargetName) -> str:
    """Compiles a pipeline.

    Args:
        config: the configuration. Its paths are those that components see: on a volume, or ``gs://``.
        target: what is to run it.

    Returns:
        YAML: the pipeline as KFP's IR (schema 2.1.0), and for Kubeflow where needed a second document with what is
        Kubernetes's. The same configuration gives the same text. The parameters ``data_path``, ``epochs``,
        ``batch_size`` and ``threshold_<metric>`` have the configuration's values as defaults.

    Raises:
        ConfigError: if it can't run there.
    """
    _check(config, target)
    settings = config.kubeflow
    defaults: dict[str, Any] = {}

    def parameter(name: str, value: Any) -> RuntimeParameter:
        defaults[name] = value
        return RuntimeParameter(name=name, default=value, ptype=type(value))

    pipeline = create_pipeline(
        config,
        _source(config),
        pipeline_root=settings.pipeline_root or "",
        state_dir=_STATE,
        deploy=config.make_deployment(""),
        beam_args=config.beam.make_arguments(),
        enable_cache=settings.cache,
        parameter=parameter,
    )
    known = ["default", *(component.id for component in pipeline.components)]
    if unknown := set(settings.resources) - set(known):
        raise ConfigError(f"kubeflow.resources: there is no component {min(unknown)}; known are {', '.join(known)}")
    compiler = runner.KubeflowV2DagRunner(
        runner.KubeflowV2DagRunnerConfig(
            default_image=settings.image, default_commands=_COMMAND, use_pipeline_spec_2_1=True
        )
    )
    compiled = _renamed(compiler.run(pipeline, write_out=False)["pipelineSpec"])
    executors = compiled["deploymentSpec"]["executors"]
    for name, task in compiled["root"]["dag"]["tasks"].items():
        component, container = task["taskInfo"]["name"], executors[f"exec-{name}"]["container"]
        container["resources"] = json_format.MessageToDict(_resources(settings, component))
        if component in _NOT_CACHED[target]:
            task.pop("cachingOptions", None)
        if target == "kubeflow":
            container.pop("lifecycle", None)  # which only Vertex AI has; see pipeline.kubeflow.entrypoint
    for component in compiled["components"].values():
        for output in component.get("outputDefinitions", {}).get("artifacts", {}).values():
            output["artifactType"] = _shown(output["artifactType"])
    for name, definition in compiled["root"]["inputDefinitions"]["parameters"].items():
        definition.update(defaultValue=defaults[name], isOptional=True)  # TFX's compiler leaves them out
    spec = json_format.ParseDict(compiled, ir.PipelineSpec())
    spec.pipeline_info.description = settings.description
    spec.default_pipeline_root = settings.pipeline_root or ""
    return _text(spec, _platform(settings, sorted(executors)) if target == "kubeflow" else ir.PlatformSpec())


def _shown(artifact_type: dict[str, Any]) -> dict[str, Any]:
    """The type of an output; as kfp itself writes it, if it is one of kfp's: by those, a page knows what to show.

    TFX's compiler writes all types as schemas. See ``components.model_report.component``.
    """
    title = yaml.safe_load(artifact_type["instanceSchema"])["title"]
    return {"schemaTitle": title, "schemaVersion": "0.0.1"} if title.startswith("system.") else artifact_type


_Resources: TypeAlias = ir.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec


def _check(config: Config, target: TargetName) -> None:
    settings = config.kubeflow
    if not settings.image:
        raise ConfigError("kubeflow.image: has to be given: the components' container image, which `make image` builds")
    if "_" in config.name:
        raise ConfigError(f"name: {config.name}: names of pipelines have no underscores there")
    if not config.deploy.path:
        raise ConfigError("deploy.path: has to be given: a folder that components see, on a volume or gs://…")
    if target == "vertex" and not _is_google(settings.pipeline_root):
        raise ConfigError("kubeflow.pipeline_root: has to be given for Vertex AI: a folder such as gs://bucket/runs")
    if target == "kubeflow" and config.beam.runner != "direct" and not _is_google(settings.pipeline_root):
        raise ConfigError(
            f"beam.runner: {config.beam.runner}: its workers reach neither volumes nor Kubeflow's own store. "
            "Give kubeflow.pipeline_root, a folder such as gs://bucket/runs"
        )
    weights = config.trainer.weights
    paths = {
        "data.path": config.data.path,
        "data.curated_schema": config.data.curated_schema,
        "deploy.path": config.deploy.path,
        "trainer.weights": None if weights in (IMAGENET, NO_WEIGHTS) else weights,
    }
    for key, path in paths.items():
        scheme = re.match(r"([a-z0-9+]+)://", path or "")
        if scheme and scheme[1] != "gs":
            raise ConfigError(
                f"{key}: {path}: components read no {scheme[0]}. Use a volume (kubeflow.volumes), or gs://"
            )
        if path and target == "vertex" and not scheme:
            raise ConfigError(f"{key}: {path}: on Vertex AI it has to be in Cloud Storage: gs://…")


def _is_google(path: str | None) -> bool:
    return bool(path and path.startswith("gs://"))


def _source(config: Config) -> Source:
    """The dataset's files, if they can be seen from here; else those of a dataset that ``imagepipe ingest`` made."""
    path = config.data.path.rstrip("/")
    with contextlib.suppress(OSError):  # of a bucket that can't be reached
        if filesystem.exists(path) or filesystem.glob(path):
            return source.find_examples(config)
    return Source(path, {split: f"{split}/*.tfrecord*" for split in ("train", "eval")})


def _renamed(spec: dict[str, Any]) -> dict[str, Any]:
    """Names as kfp's own compiler makes them, of which its runners take parts: ``comp-x``, ``exec-x``, task ``x``."""

    def lower(name: str) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()

    def task(task: dict[str, Any]) -> dict[str, Any]:
        changed = task | {"componentRef": {"name": f"comp-{lower(task['componentRef']['name'])}"}}
        if "dependentTasks" in task:
            changed["dependentTasks"] = [lower(name) for name in task["dependentTasks"]]
        for artifact in task.get("inputs", {}).get("artifacts", {}).values():
            artifact["taskOutputArtifact"]["producerTask"] = lower(artifact["taskOutputArtifact"]["producerTask"])
        return changed

    executors = spec["deploymentSpec"]["executors"]
    tasks = spec["root"]["dag"]["tasks"]
    return spec | {
        "components": {
            f"comp-{lower(name)}": component | {"executorLabel": f"exec-{lower(name)}"}
            for name, component in spec["components"].items()
        },
        "deploymentSpec": {
            "executors": {f"exec-{lower(name.removesuffix('_executor'))}": e for name, e in executors.items()}
        },
        "root": spec["root"] | {"dag": {"tasks": {lower(name): task(each) for name, each in tasks.items()}}},
    }


def _resources(settings: KubeflowConfig, component: str) -> _Resources:
    """What a component asks for; in the old fields, numbers, as well, since Vertex AI reads those."""
    given = settings.resources.get(component, settings.resources.get("default", ResourcesConfig()))
    cpu, memory = float(parse_quantity(given.cpu)), float(parse_quantity(given.memory)) / 1e9
    made = _Resources(
        cpu_limit=cpu,
        cpu_request=cpu,
        memory_limit=memory,
        memory_request=memory,
        resource_cpu_limit=given.cpu,
        resource_cpu_request=given.cpu,
        resource_memory_limit=given.memory,
        resource_memory_request=given.memory,
    )
    if settings.gpu and component in _ON_GPU:
        kind, count = settings.gpu.type, settings.gpu.count
        made.accelerator.CopyFrom(
            _Resources.AcceleratorConfig(type=kind, count=count, resource_type=kind, resource_count=str(count))
        )
    return made


def _platform(settings: KubeflowConfig, executors: list[str]) -> ir.PlatformSpec:
    """What Kubernetes does for the components, made of kfp-kubernetes's messages; empty if nothing is asked for."""
    asked = kubernetes.KubernetesExecutorConfig(
        tolerations=[
            kubernetes.Toleration(toleration_seconds=each.seconds, **each.model_dump(exclude={"seconds"}))
            for each in settings.tolerations
        ],
        pvc_mount=[
            kubernetes.PvcMount(constant=each.claim, pvc_name_parameter=_constant(each.claim), mount_path=each.path)
            for each in settings.volumes
        ],
        secret_as_env=[
            kubernetes.SecretAsEnv(
                secret_name=each.name,
                secret_name_parameter=_constant(each.name),
                key_to_env=[
                    kubernetes.SecretAsEnv.SecretKeyToEnvMap(secret_key=key, env_var=variable)
                    for variable, key in each.env.items()
                ],
            )
            for each in settings.secrets
        ],
    )
    if settings.node_selector:
        asked.node_selector.labels.update(settings.node_selector)
    if settings.labels:
        asked.pod_metadata.labels.update(settings.labels)
    if not asked.ByteSize():
        return ir.PlatformSpec()
    config = json_format.MessageToDict(asked)
    platforms = {"kubernetes": {"deploymentSpec": {"executors": dict.fromkeys(executors, config)}}}
    return json_format.ParseDict({"platforms": platforms}, ir.PlatformSpec())


def _constant(value: str) -> ir.TaskInputsSpec.InputParameterSpec:
    made = ir.TaskInputsSpec.InputParameterSpec()
    made.runtime_value.constant.string_value = value
    return made


def _text(spec: ir.PipelineSpec, platform: ir.PlatformSpec) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        pipeline_spec_builder.write_pipeline_spec_to_file(spec, spec.pipeline_info.description, platform, str(file))
        return file.read_text()
