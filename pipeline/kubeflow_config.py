"""The ``kubeflow`` section of the configuration: where and how the pipeline runs on a cluster."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from imagepipe.base.section import Section
from imagepipe.deploy.config import GoogleConfig, Quantity

_ENVIRONMENT = r"^[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Field(min_length=1, max_length=253)]


class GPUConfig(Section):
    """GPUs of the Trainer and of the Tuner."""

    type: str = Field(
        "nvidia.com/gpu",
        description="On Kubernetes the resource's name; on Vertex AI the accelerator's, such as NVIDIA_TESLA_T4.",
    )
    count: Annotated[int, Field(ge=1)] = Field(1, description="Number of GPUs.")


class TolerationConfig(Section):
    """A taint of nodes that the components tolerate, as Kubernetes describes it."""

    key: Name | None = Field(None, description="The taint's key; by default any.")
    operator: Literal["Equal", "Exists"] | None = Field(
        None,
        validate_default=True,
        description="Whether the taint's value must be equal to value, or the key only has to exist; by default Equal, "
        "or without a key Exists.",
    )
    value: str | None = Field(None, description="The taint's value, with operator: Equal.")
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = Field(
        None, description="The taint's effect; by default any."
    )
    seconds: int | None = Field(
        None, description="With effect: NoExecute, seconds that a component stays on the node; by default for good."
    )

    @field_validator("operator")
    @classmethod
    def _fill_in_operator(cls, operator: str | None, info: ValidationInfo) -> str:
        return operator or ("Equal" if info.data.get("key") else "Exists")

    @model_validator(mode="after")
    def _check_combination(self) -> "TolerationConfig":
        # As Kubernetes does, which would refuse each pod of the run.
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator: Equal needs a key; without one, only Exists can be")
        if self.operator == "Exists" and self.value:
            raise ValueError("value: goes with operator: Equal")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("seconds: goes with effect: NoExecute")
        return self


class ResourcesConfig(Section):
    """Settings of a component. A key that is not given is taken from the component ``default``."""

    cpu: Quantity = Field("2", description="CPUs in Kubernetes's units, as request and limit, such as 4 or 500m.")
    memory: Quantity = Field("8Gi", description="Memory in Kubernetes's units, as request and limit, such as 16Gi.")
    gpu: GPUConfig | None = Field(
        None, description="GPUs; by default kubeflow.gpu for Features, Trainer and Tuner, none for others."
    )
    node_selector: dict[Name, str] | None = Field(
        None, description="Labels that a node must have to run it; by default kubeflow.node_selector."
    )
    tolerations: tuple[TolerationConfig, ...] | None = Field(
        None, description="Taints of nodes that it tolerates; by default kubeflow.tolerations."
    )
    retries: Annotated[int, Field(ge=0, le=10)] | None = Field(
        None,
        description="How many times it is run again if it fails, after 30 seconds, then after twice as long each "
        "time; by default 2 for DataLookup, TargetLookup, Champion and Pusher, which ask others, and 0 for what costs "
        "more or refuses data.",
    )

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Read again, as from runs/RUN/config.yaml, a default would count as given, before the component ``default``.
        return {key: value for key, value in serialize(self).items() if key in self.model_fields_set}


class VolumeConfig(Section):
    """A PersistentVolumeClaim that is mounted in the components."""

    claim: Name = Field(description="Name of the claim.")
    path: Annotated[str, Field(pattern=r"^/.+")] = Field(description="Absolute path at which it is mounted.")


class SecretConfig(Section):
    """Keys of a Kubernetes Secret as environment variables of the components."""

    name: Name = Field(description="Name of the Secret.")
    env: dict[Annotated[str, Field(pattern=_ENVIRONMENT)], Name] = Field(
        description="Key of the Secret by name of the environment variable."
    )


class VertexPipelinesConfig(GoogleConfig):
    """Where Vertex AI Pipelines runs the pipeline."""

    service_account: str | None = Field(
        None, description="Service account that the components run as; by default Compute Engine's."
    )


class KubeflowConfig(Section):
    """Where and how the pipeline runs on Kubeflow Pipelines or Vertex AI Pipelines."""

    image: str | None = Field(
        None,
        description="Container image of the components (kubeflow/Dockerfile); needed to compile. The cluster's cache "
        "knows it by this name: give each build a tag of its own.",
    )
    pipeline_root: str | None = Field(
        None,
        description="Folder of the artifacts; by default the one that the Kubeflow installation sets (its own MinIO). "
        "On Vertex AI a gs:// folder, which has to be given.",
    )
    description: str = Field("", description="Description of the pipeline, for people.")
    labels: dict[Name, str] = Field({}, description="Labels of the runs on Vertex AI and of the pods on Kubernetes.")
    cache: bool = Field(True, description="Whether unchanged results are taken from earlier runs.")
    gpu: GPUConfig | None = Field(None, description="GPUs of Features, Trainer and Tuner; by default none.")
    resources: dict[Name, ResourcesConfig] = Field(
        {},
        description="Resources, nodes and retries by component (Trainer, Evaluator, …), or default for all others. On "
        "Vertex AI nodes have no effect.",
    )
    node_selector: dict[Name, str] = Field({}, description="Labels that a node must have to run any component.")
    tolerations: tuple[TolerationConfig, ...] = Field(
        (), description="Taints of nodes that all components tolerate; of some only: kubeflow.resources."
    )
    volumes: tuple[VolumeConfig, ...] = Field((), description="Volumes that are mounted in the components.")
    secrets: tuple[SecretConfig, ...] = Field(
        (), description="Secrets that the components have as environment variables."
    )
    pull_secrets: tuple[Name, ...] = Field(
        (), description="Names of Kubernetes Secrets by which the image is pulled from a private registry."
    )
    host: str | None = Field(
        None, description="Address of the Kubeflow Pipelines API; by default the one inside the cluster."
    )
    namespace: str | None = Field(None, description="The user's namespace, if Kubeflow has several users.")
    experiment: str = Field("Default", description="Experiment that the runs are listed under.")
    vertex: VertexPipelinesConfig | None = Field(
        None, description="Project and region of Vertex AI, for --target vertex."
    )

    @property
    def has_mutable_image(self) -> bool:
        """Whether the image's name may stand for another image tomorrow: it has neither a digest nor a tag of its own.

        The clusters' caches know a container by the name of its image, not by the content.
        """
        name = (self.image or "").rpartition("/")[2]
        return bool(name) and "@" not in name and name.partition(":")[2] in ("", "latest")

    @field_validator("host")
    @classmethod
    def _check_address(cls, host: str | None) -> str | None:
        if host and not host.startswith(("https://", "http://")):
            raise ValueError(f"{host} is no address such as https://kubeflow.example/pipeline")
        return host and host.rstrip("/")
