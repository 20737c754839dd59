"""The ``kubeflow`` section of the configuration: where and how the pipeline runs on a cluster."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from imagepipe.deploy.config import GoogleConfig, Quantity

_ENVIRONMENT = r"^[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Field(min_length=1, max_length=253)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GPUConfig(_Section):
    """GPUs of the Trainer (and of the Tuner): on Kubernetes a resource, on Vertex AI the accelerator's name."""

    type: str = "nvidia.com/gpu"
    count: Annotated[int, Field(ge=1)] = 1


class ResourcesConfig(_Section):
    """What a component may use, in Kubernetes's units; it gets that much."""

    cpu: Quantity = "2"
    memory: Quantity = "8Gi"


class TolerationConfig(_Section):
    """A taint of nodes that the components bear, as Kubernetes describes it."""

    key: Name | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None
    seconds: int | None = None


class VolumeConfig(_Section):
    """A PersistentVolumeClaim, and where the components find it."""

    claim: Name
    path: Annotated[str, Field(pattern=r"^/.+")]


class SecretConfig(_Section):
    """Keys of a Kubernetes Secret as environment variables of the components."""

    name: Name
    env: dict[Annotated[str, Field(pattern=_ENVIRONMENT)], Name] = Field(description="by variable, the Secret's key")


class VertexPipelinesConfig(GoogleConfig):
    """Where Vertex AI Pipelines runs it."""

    service_account: str | None = Field(None, description="as which components run; by default Compute Engine's")


class KubeflowConfig(_Section):
    """The ``kubeflow`` section.

    Attributes:
        image: the components' container image, see kubeflow/Dockerfile.
        pipeline_root: where artifacts go; by default what the Kubeflow installation says (its own MinIO). On Vertex AI
            a ``gs://`` folder, and needed.
        description: of the pipeline, for people.
        labels: of runs on Vertex AI, and of pods on Kubernetes.
        cache: whether what has not changed is taken from earlier runs.
        gpu: of the Trainer and the Tuner; None for none.
        resources: by component (``Trainer``, ``Evaluator``, …), or ``default``.
        node_selector: labels that a node must have to run a component.
        tolerations: taints that components bear.
        volumes: that components have.
        secrets: that components have as environment.
        host: address of the Kubeflow Pipelines API; by default from inside the cluster.
        namespace: the user's, where Kubeflow has several users.
        experiment: runs are listed under it.
        vertex: where Vertex AI runs it.
    """

    image: str | None = None
    pipeline_root: str | None = None
    description: str = ""
    labels: dict[Name, str] = {}
    cache: bool = True
    gpu: GPUConfig | None = None
    resources: dict[Name, ResourcesConfig] = {}
    node_selector: dict[Name, str] = {}
    tolerations: tuple[TolerationConfig, ...] = ()
    volumes: tuple[VolumeConfig, ...] = ()
    secrets: tuple[SecretConfig, ...] = ()
    host: str | None = None
    namespace: str | None = None
    experiment: str = "Default"
    vertex: VertexPipelinesConfig | None = None

    @field_validator("host")
    @classmethod
    def _address(cls, host: str | None) -> str | None:
        if host and not host.startswith(("https://", "http://")):
            raise ValueError(f"{host} is no address such as https://kubeflow.example/pipeline")
        return host and host.rstrip("/")
