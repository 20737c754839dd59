"""Settings of each component of a compiled pipeline: resources, retries, and those of Kubernetes."""

from typing import Any, TypeAlias

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec import pipeline_spec_pb2 as ir
from kubernetes.utils.quantity import parse_quantity

from pipeline.kubeflow_config import KubeflowConfig, ResourcesConfig

_ON_GPU = ("Features", "Trainer", "Tuner")
_ASKING = ("DataLookup", "TargetLookup", "Champion", "Pusher")  # quick, and what they ask may be away for a moment
_RETRIES = 2

_ResourceSpec: TypeAlias = ir.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec


def find_settings(settings: KubeflowConfig, component: str) -> ResourcesConfig:
    """Returns the settings of a component: its own, else those of ``default``, else those of the whole pipeline."""
    chosen: dict[str, Any] = {
        "gpu": settings.gpu if component in _ON_GPU else None,
        "node_selector": settings.node_selector,
        "tolerations": settings.tolerations,
        "retries": _RETRIES if component in _ASKING else 0,
    }
    for name in ("default", component):
        if given := settings.resources.get(name):
            chosen |= {key: getattr(given, key) for key in given.model_fields_set}
    return ResourcesConfig(**chosen)


def build_resources(resources: ResourcesConfig) -> dict[str, Any]:
    """Returns a ``ResourceSpec`` as JSON; also as numbers in the old fields, as Vertex AI reads those."""
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
    if resources.gpu:
        type_, count = resources.gpu.type, resources.gpu.count
        spec.accelerator.CopyFrom(
            _ResourceSpec.AcceleratorConfig(type=type_, count=count, resource_type=type_, resource_count=str(count))
        )
    return json_format.MessageToDict(spec)


def build_retry_policy(retries: int) -> dict[str, Any]:
    """Returns a ``RetryPolicy`` as JSON."""
    return {"maxRetryCount": retries, "backoffDuration": "30s", "backoffFactor": 2.0}


def build_platform(settings: KubeflowConfig, components: dict[str, str]) -> ir.PlatformSpec:
    """Returns the settings of Kubernetes, as kfp-kubernetes's messages; empty if there are none.

    Names of claims and secrets are in the fields that all versions read. kfp's newer ones, ``…_parameter``, are an
    error for Kubeflow 2.3.0 and 2.4.0.

    Args:
        settings: the section ``kubeflow``.
        components: names of components by executor.
    """
    by_executor = {
        executor: json_format.MessageToDict(_build_config(settings, find_settings(settings, component)))
        for executor, component in sorted(components.items())
    }
    given = {executor: config for executor, config in by_executor.items() if config}
    if not given:
        return ir.PlatformSpec()
    platforms = {"kubernetes": {"deploymentSpec": {"executors": given}}}
    return json_format.ParseDict({"platforms": platforms}, ir.PlatformSpec())


def _build_config(settings: KubeflowConfig, resources: ResourcesConfig) -> kubernetes.KubernetesExecutorConfig:
    config = kubernetes.KubernetesExecutorConfig(
        tolerations=[
            kubernetes.Toleration(toleration_seconds=toleration.seconds, **toleration.model_dump(exclude={"seconds"}))
            for toleration in resources.tolerations or ()
        ],
        pvc_mount=[kubernetes.PvcMount(constant=volume.claim, mount_path=volume.path) for volume in settings.volumes],
        secret_as_env=[
            kubernetes.SecretAsEnv(
                secret_name=secret.name,
                key_to_env=[
                    kubernetes.SecretAsEnv.SecretKeyToEnvMap(secret_key=key, env_var=variable)
                    for variable, key in secret.env.items()
                ],
            )
            for secret in settings.secrets
        ],
        image_pull_secret=[kubernetes.ImagePullSecret(secret_name=name) for name in settings.pull_secrets],
    )
    if resources.node_selector:
        config.node_selector.labels.update(resources.node_selector)
    if settings.labels:
        config.pod_metadata.labels.update(settings.labels)
    return config
