"""The ``deploy`` section of the configuration: the target that serves the models, and how."""

import json
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from imagepipe.base.section import Section, Share

TargetName = Literal["filesystem", "kserve", "vertex", "ml_engine"]
Replicas = Annotated[int, Field(ge=0)]
Quantity = Annotated[  # Kubernetes's; YAML reads cpu: 4 as a number
    str,
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        coerce_numbers_to_str=True,
        json_schema_extra={"type": ["string", "number"]},
    ),
]
Seconds = Annotated[float, Field(gt=0)]
_DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_PROJECT = r"^[a-z][a-z0-9:.-]*[a-z0-9]$"
_PREBUILT = "docker.pkg.dev/vertex-ai/"
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/.*)?")


def is_private(address: str) -> bool:
    """Returns whether credentials may be sent to an address: it is encrypted, or on this machine."""
    return address.startswith("https://") or bool(_LOOPBACK.fullmatch(address))


class GoogleConfig(Section):
    """The keys that all of Google's services have in common."""

    project: Annotated[str, Field(pattern=_PROJECT)] = Field(description="Google Cloud project.")
    region: Annotated[str, Field(pattern=_DNS_LABEL)] = Field(description="Region, such as europe-west4.")
    api: str | None = Field(
        None, description="Another address of the API, such as https://…; by default Google's for the region."
    )

    @field_validator("api")
    @classmethod
    def _check_encryption(cls, api: str | None) -> str | None:
        if api and not is_private(api):
            raise ValueError("an access token goes there: https:// only, or http:// on this machine")
        return api and api.rstrip("/")

    def can_read(self, uri: str) -> bool:
        """Returns whether the service can read a URI: Google's read Cloud Storage only."""
        return uri.startswith("gs://") or bool(self.api and _LOOPBACK.fullmatch(self.api))


class _GoogleServingConfig(GoogleConfig):
    machine_type: str = Field("n1-standard-4", description="Machine type of the servers.")
    timeout: Seconds = Field(1800, description="Seconds that a deployment may take.")


class AcceleratorConfig(Section):
    """GPUs of a server."""

    type: str = Field(description="Name of the GPU at the cloud, such as NVIDIA_TESLA_T4.")
    count: Annotated[int, Field(ge=1)] = Field(1, description="Number of GPUs per server.")


class KServeConfig(Section):
    """An InferenceService on Kubernetes. The cluster is found as kubectl finds it, or from inside a pod."""

    context: str | None = Field(None, description="Context of the kubeconfig; by default its current one.")
    namespace: Annotated[str, Field(pattern=_DNS_LABEL, max_length=63)] = Field(
        "default", description="Namespace of the InferenceService."
    )
    runtime: Literal["tensorflow", "imagepipe"] = Field(
        "tensorflow",
        description="Server: KServe's TensorFlow Serving (tensorflow), or our own from `image` (imagepipe).",
    )
    image: str | None = Field(
        None, description="Container image of our own server (kubeflow/Dockerfile); needed with runtime: imagepipe."
    )
    storage_uri: str | None = Field(
        None,
        description="URI by which the cluster sees deploy.path, such as pvc://models/flowers; by default deploy.path.",
    )
    service_account: str | None = Field(
        None, description="Kubernetes service account of the servers, with the right to read the models."
    )
    min_replicas: Replicas = Field(1, description="Minimum number of servers; 0 scales to none when idle.")
    max_replicas: Annotated[int, Field(ge=1)] = Field(1, description="Maximum number of servers.")
    cpu: Quantity | None = Field(None, description="CPUs of a server, such as 2 or 500m; by default KServe's.")
    memory: Quantity | None = Field(None, description="Memory of a server, such as 4Gi; by default KServe's.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="Number of GPUs per server.")
    ingress: str | None = Field(
        None,
        description="Address of the cluster's gateway, if the host in the service's URL can't be resolved from here.",
    )
    capture: str | None = Field(
        None,
        description="Folder in a store, s3://… or gs://…, to which our own server captures traffic; needs runtime: "
        "imagepipe. By default nothing is captured.",
    )
    capture_rate: Share = Field(0.01, description="Share of the requests that is captured, drawn at random.")
    timeout: Seconds = Field(600, description="Seconds until a new version has to be ready.")

    @field_validator("ingress")
    @classmethod
    def _check_ingress(cls, ingress: str | None) -> str | None:
        if ingress and not ingress.startswith(("http://", "https://")):
            raise ValueError("expected http://… or https://…")
        return ingress and ingress.rstrip("/")

    @field_validator("capture")
    @classmethod
    def _check_capture(cls, capture: str | None) -> str | None:
        if capture and "://" not in capture:
            raise ValueError("expected s3://… or gs://…: a folder in a pod is lost with it")
        return capture

    @model_validator(mode="after")
    def _check_image_and_replicas(self) -> "KServeConfig":
        if self.capture and self.runtime != "imagepipe":
            raise ValueError("capture: needs runtime: imagepipe; TensorFlow Serving captures nothing")
        if self.runtime == "imagepipe" and not self.image:
            raise ValueError("image: has to be given with runtime: imagepipe")
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas, {self.min_replicas}")
        return self


class VertexConfig(_GoogleServingConfig):
    """A model on an endpoint of Vertex AI."""

    image: str = Field(
        "us-docker.pkg.dev/vertex-ai/prediction/tf2-cpu.2-15:latest",
        description="Container image of the server: a prebuilt one of Vertex AI, or our own (kubeflow/Dockerfile).",
    )
    min_replicas: Annotated[int, Field(ge=1)] = Field(1, description="Minimum number of servers.")
    max_replicas: Annotated[int, Field(ge=1)] = Field(1, description="Maximum number of servers.")
    accelerator: AcceleratorConfig | None = Field(None, description="GPUs of a server; by default none.")

    @property
    def is_prebuilt(self) -> bool:
        """Whether the image is one of Vertex AI's own, with TensorFlow Serving."""
        return _PREBUILT in self.image

    @model_validator(mode="after")
    def _check_replicas(self) -> "VertexConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is below min_replicas, {self.min_replicas}")
        return self


class MLEngineConfig(_GoogleServingConfig):
    """A version of a model of AI Platform Prediction (ML Engine), which Google has retired in favour of Vertex AI."""

    runtime_version: str = Field("2.11", description="Runtime version of the servers, which is TensorFlow's.")
    python_version: str = Field("3.7", description="Python version of the servers.")
    min_nodes: Replicas = Field(
        1, description="Minimum number of nodes; 0 scales to none when idle, if the machine type can."
    )
    max_nodes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Maximum number of nodes; the same as min_nodes switches scaling off. By default the quota's.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        64, description="Number of images that a batch job gives the model at once."
    )

    @model_validator(mode="after")
    def _check_nodes(self) -> "MLEngineConfig":
        if self.max_nodes is not None and self.max_nodes < self.min_nodes:
            raise ValueError(f"max_nodes: {self.max_nodes} is below min_nodes, {self.min_nodes}")
        return self


def is_service_name(name: str) -> bool:
    """Returns whether a service takes a model's name: Kubernetes takes DNS labels only."""
    return re.fullmatch(_DNS_LABEL, name) is not None


class DeployConfig(Section):
    """Where models are deployed to, and how they are served there."""

    target: TargetName = Field(
        "filesystem", description="What serves the model; the section of that name configures it."
    )
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)] | None = Field(
        None,
        description="Name of the model at the target; by default the pipeline's. Services take lower-case letters, "
        "digits and -, a letter first.",
    )
    path: str | None = Field(
        None,
        description="Folder of the version folders, which the target has to be able to read: on this machine, on a "
        "volume, or s3://…, gs://…. By default, with target: filesystem, serving/NAME in the workdir.",
    )
    traffic: Annotated[int, Field(ge=0, le=100)] = Field(
        100,
        description="Percent of the requests that a model pushed by a run gets; the rest stays with the live version. "
        "Of a folder 100, or 0: in shadow/ there only imagepipe serve --shadow asks it, until it is promoted.",
    )
    sign: str | None = Field(
        None,
        description="File in PEM with a private key (elliptic curve) that signs each version that is pushed or "
        "deployed, for imagepipe serve --verify. By default none; needs the extra sign.",
    )
    kserve: KServeConfig | None = Field(None, description="InferenceService of target: kserve.")
    vertex: VertexConfig | None = Field(None, description="Endpoint of target: vertex; needed there.")
    ml_engine: MLEngineConfig | None = Field(None, description="Model of target: ml_engine; needed there.")

    @property
    def is_served_by_us(self) -> bool:
        """Whether a server of ours may serve from the target, which takes a version's other forms too."""
        if self.target == "kserve":
            return bool(self.kserve and self.kserve.runtime == "imagepipe")
        if self.target == "vertex":
            return bool(self.vertex and not self.vertex.is_prebuilt)
        return self.target == "filesystem"

    def dump_for_readers(self) -> str:
        """Returns it as JSON, for those who read versions: they need no key."""
        return json.dumps(self.model_dump(mode="json", exclude={"sign"}))

    def complete(self, name: str, path: str) -> "DeployConfig":
        """Returns it with the pipeline's name and its folder of versions, where none are given."""
        return self.model_copy(update={"name": self.name or name, "path": self.path or path})

    @model_validator(mode="before")
    @classmethod
    def _add_kserve_section(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("target") == "kserve":
            return {"kserve": {}} | values  # all of its keys have defaults
        return values

    @model_validator(mode="after")
    def _check_target(self) -> "DeployConfig":
        if self.target == "filesystem":
            if self.traffic not in (0, 100):
                raise ValueError("traffic: a folder has no share of the requests; 100, or 0 for in shadow")
            return self
        if self.traffic == 0:
            raise ValueError("traffic: 0, for in shadow, needs target: filesystem; elsewhere at least 1")
        if self.name and not is_service_name(self.name):
            raise ValueError(f"name: {self.target} takes no '{self.name}', but lower-case letters, digits and -")
        section = getattr(self, self.target)
        if section is None:
            raise ValueError(f"{self.target}: has to be given with target: {self.target}")
        if not self.path:
            raise ValueError(f"path: has to be given with target: {self.target}, which reads the versions from there")
        if isinstance(section, GoogleConfig) and not section.can_read(self.path):
            raise ValueError(f"path: {self.target} reads from Cloud Storage only: gs://…")
        if self.target == "ml_engine" and self.traffic != 100:
            raise ValueError("traffic: ML Engine can't split the requests; 100 only")
        return self
