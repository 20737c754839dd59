"""Where a blessed model goes: the ``deploy`` section of the configuration."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TargetName = Literal["filesystem", "kserve", "vertex", "ml_engine"]
Replicas = Annotated[int, Field(ge=0)]
Quantity = Annotated[  # Kubernetes's; YAML reads cpu: 4 as a number
    str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", coerce_numbers_to_str=True)
]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_PROJECT = r"^[a-z][a-z0-9:.-]*[a-z0-9]$"
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/.*)?")


def is_private(address: str) -> bool:
    """Whether a credential can be sent there: encrypted, or on this machine."""
    return address.startswith("https://") or bool(_LOOPBACK.fullmatch(address))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoogleConfig(_Section):
    """What Google's services have in common."""

    project: Annotated[str, Field(pattern=_PROJECT)]
    region: Annotated[str, Field(pattern=_DNS_LABEL)]
    api: str | None = Field(None, description="another address of the API, such as https://…; by default Google's")

    @field_validator("api")
    @classmethod
    def _encrypted(cls, api: str | None) -> str | None:
        if api and not is_private(api):
            raise ValueError("an access token goes there: https:// only, or http:// on this machine")
        return api and api.rstrip("/")

    def reads(self, uri: str) -> bool:
        """Whether the service can read what is there: Google's read Cloud Storage."""
        return uri.startswith("gs://") or bool(self.api and _LOOPBACK.fullmatch(self.api))


class _ServedByGoogle(GoogleConfig):
    machine_type: str = "n1-standard-4"
    timeout: Seconds = Field(1800, description="seconds that a deployment may take")


class AcceleratorConfig(_Section):
    """A GPU, by its name at the cloud, such as NVIDIA_TESLA_T4."""

    type: str
    count: Annotated[int, Field(ge=1)] = 1


class KServeConfig(_Section):
    """An InferenceService on Kubernetes, which is found as kubectl finds it, or from inside the cluster."""

    context: str | None = Field(None, description="of the kubeconfig; by default its current one")
    namespace: Annotated[str, Field(pattern=_DNS_LABEL, max_length=63)] = "default"
    runtime: Literal["tensorflow", "imagepipe"] = Field(
        "tensorflow", description="KServe's TensorFlow Serving | imagepipe's own server, from `image`"
    )
    image: str | None = Field(None, description="of the server, with runtime: imagepipe (kubeflow/Dockerfile)")
    storage_uri: str | None = Field(
        None, description="how the cluster sees deploy.path, such as pvc://models/flowers; by default as it is"
    )
    service_account: str | None = Field(None, description="with the rights to read the models")
    min_replicas: Replicas = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    cpu: Quantity | None = Field(None, description="that a server gets, such as 2 or 500m; by default KServe's")
    memory: Quantity | None = Field(None, description="that a server gets, such as 4Gi; by default KServe's")
    gpus: Annotated[int, Field(ge=0)] = 0
    ingress: str | None = Field(
        None, description="address of the cluster's gateway, where the host in the service's URL is not known here"
    )
    timeout: Seconds = Field(600, description="seconds until a new version has to be ready")

    @field_validator("ingress")
    @classmethod
    def _is_an_address(cls, ingress: str | None) -> str | None:
        if ingress and not ingress.startswith(("http://", "https://")):
            raise ValueError("expected http://… or https://…")
        return ingress and ingress.rstrip("/")

    @model_validator(mode="after")
    def _has_an_image(self) -> "KServeConfig":
        if self.runtime == "imagepipe" and not self.image:
            raise ValueError("image: has to be given with runtime: imagepipe")
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas, {self.min_replicas}")
        return self


class VertexConfig(_ServedByGoogle):
    """A model on an endpoint of Vertex AI."""

    image: str = Field(
        "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest",
        description="of the server: a prebuilt one of Vertex AI, or imagepipe's own (kubeflow/Dockerfile)",
    )
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    accelerator: AcceleratorConfig | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "VertexConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas, {self.min_replicas}")
        return self


class MLEngineConfig(_ServedByGoogle):
    """A version of a model of AI Platform Prediction (ML Engine), which Google has retired in favour of Vertex AI."""

    runtime_version: str = "2.11"
    python_version: str = "3.7"
    min_nodes: Replicas = Field(1, description="0 lets it scale to none, where the machine type can")
    max_nodes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="as many as min_nodes: no scaling; by default as many as the quota allows"
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="images that a batch job gives the model at once")

    @model_validator(mode="after")
    def _ordered(self) -> "MLEngineConfig":
        if self.max_nodes is not None and self.max_nodes < self.min_nodes:
            raise ValueError(f"max_nodes: {self.max_nodes} is below min_nodes, {self.min_nodes}")
        return self


class DeployConfig(_Section):
    """The ``deploy`` section.

    Attributes:
        target: what serves the model; the section of that name says how.
        name: the model's there; by default the pipeline's.
        path: the folder of the version folders, which the target has to be able to read: on this machine, on a volume,
            or ``gs://…``. By default, for the filesystem, ``serving/<name>`` in the workdir.
        traffic: percent of the requests that a model which a run pushes gets; the rest goes on to what was live.
    """

    target: TargetName = "filesystem"
    name: Annotated[str, Field(pattern=_DNS_LABEL, max_length=63)] | None = None
    path: str | None = None
    traffic: Annotated[int, Field(ge=1, le=100)] = 100
    kserve: KServeConfig | None = None
    vertex: VertexConfig | None = None
    ml_engine: MLEngineConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kserve(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("target") == "kserve":
            return {"kserve": {}} | values  # all of its keys have defaults
        return values

    @model_validator(mode="after")
    def _has_what_the_target_needs(self) -> "DeployConfig":
        if self.target == "filesystem":
            if self.traffic != 100:
                raise ValueError("traffic: a folder has no share of the requests; 100 only")
            return self
        if getattr(self, self.target) is None:
            raise ValueError(f"{self.target}: has to be given with target: {self.target}")
        if not self.path:
            raise ValueError(f"path: has to be given with target: {self.target}, which reads the versions from there")
        section = getattr(self, self.target)
        if isinstance(section, GoogleConfig) and not section.reads(self.path):
            raise ValueError(f"path: {self.target} reads from Cloud Storage only: gs://…")
        if self.target == "ml_engine" and self.traffic != 100:
            raise ValueError("traffic: ML Engine can't split the requests; 100 only")
        return self
