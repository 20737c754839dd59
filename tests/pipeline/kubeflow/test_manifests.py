"""The files of ``kubeflow/``: what a team copies, applies to its cluster, compiles and builds."""

import ast
import os
import re
import time
from pathlib import Path

import apache_beam
import kubernetes_validate
import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions
from kserve import KServeClient
from kserve.constants import constants
from typer.main import get_command

from imagepipe.deploy import storage
from imagepipe.serving.client import Client
from pipeline.cli import app
from pipeline.config import Config
from pipeline.config_file import read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from pipeline.kubeflow.package import parse_package
from tests.conftest import make_digit_images
from tests.serving.conftest import model  # noqa: F401 (a fixture)
from tests.standins.kubernetes import Cluster

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "kubeflow"
MANIFESTS = sorted((FOLDER / "manifests").glob("*.yaml"))
NAMESPACE = "team"


def load_manifests() -> list[dict]:
    return [document for file in MANIFESTS for document in yaml.safe_load_all(file.read_text())]


def find_manifest(kind: str) -> dict:
    (manifest,) = (manifest for manifest in load_manifests() if manifest["kind"] == kind)
    return manifest


def find_values(node: object, key: str) -> list:
    """Returns all values of a key, at any depth."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [value for name, child in items for value in ([child] if name == key else find_values(child, key))]


@pytest.mark.parametrize(
    "manifest", [pytest.param(m, id=f"{m['kind']}-{m['metadata']['name']}") for m in load_manifests()]
)
def test_kubernetes_takes_each_manifest(manifest):
    assert manifest["metadata"]["namespace"] == NAMESPACE
    if manifest["apiVersion"] != constants.KSERVE_V1BETA1:  # a test of its own
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_parts_fit_together():
    manifests, config = load_manifests(), read_config(FOLDER / "pipeline.yaml")
    claim = find_manifest("PersistentVolumeClaim")["metadata"]["name"]
    (volume,) = config.kubeflow.volumes
    assert {volume.claim, *find_values(manifests, "claimName")} == {claim}
    assert {path for path in find_values(manifests, "mountPath") if path.startswith("/data")} == {volume.path}
    ours = {image for image in find_values(manifests, "image") if "imagepipe" in image}
    assert {re.sub("-(serve|beam)$", "", image) for image in ours} == {config.kubeflow.image}
    assert config.kubeflow.namespace == NAMESPACE
    server = find_manifest("InferenceService")
    (variable,) = find_values(server, "env")[0]
    assert variable["value"] == f"pvc://{claim}{config.deploy.path.removeprefix(volume.path)}"
    assert config.data.path in find_values(find_manifest("Job"), "command")[0]
    role, binding = find_manifest("Role"), find_manifest("RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_commands_are_understood():
    containers = [container for pod in find_values(load_manifests(), "containers") for container in pod]
    commands = [[*container.get("command", ()), *container.get("args", ())] for container in containers]
    ours = {words[1]: words[2:] for words in commands if words[:1] == ["imagepipe"]}
    assert ours.keys() == {"ingest", "serve", "submit"}
    for command, arguments in ours.items():
        get_command(app).commands[command].make_context(command, arguments)


@pytest.fixture
def with_all_keys(tmp_path) -> Config:
    """The example pipeline, with the keys that are comments in it."""
    text = re.sub(r"^( *)# (?=(  )?\w+:)", r"\1", (FOLDER / "pipeline.yaml").read_text(), flags=re.MULTILINE)
    (tmp_path / "pipeline.yaml").write_text(text)
    return read_config(tmp_path / "pipeline.yaml")


def test_the_example_pipeline_is_compiled_with_its_commented_keys_and_the_secret_of_the_manifests(with_all_keys):
    secret = find_manifest("Secret")
    (key,) = secret["stringData"]
    (declared,) = with_all_keys.kubeflow.secrets
    assert (declared.name, list(declared.env.values())) == (secret["metadata"]["name"], [key])
    package = parse_package(check_and_compile(with_all_keys, "kubeflow"), "example")
    assert package.name == "flowers"
    assert package.for_kubernetes
    assert {executor["container"]["image"] for executor in package.executors} == {"registry.example/team/imagepipe:7"}


def test_kserve_serves_what_is_pushed(model, tmp_path, monkeypatch):  # noqa: F811
    storage.add_version(str(model), str(tmp_path / "serving"))
    service = find_manifest("InferenceService")
    name = service["metadata"]["name"]
    with Cluster(
        "token", namespaces={NAMESPACE}, folders={"pvc://data/flowers/serving": str(tmp_path / "serving")}
    ) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        client = KServeClient(os.environ["KUBECONFIG"])
        client.api_instance.create_namespaced_custom_object(
            constants.KSERVE_GROUP,
            constants.KSERVE_V1BETA1_VERSION,
            NAMESPACE,
            constants.KSERVE_PLURAL_INFERENCESERVICE,
            service,
        )
        deadline = time.monotonic() + 60
        while not client.is_isvc_ready(name, namespace=NAMESPACE):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        url = client.get(name, namespace=NAMESPACE)["status"]["url"]
        with Client(f"{url}/v1/models/{name}") as online:
            (answer,) = online.predict([make_digit_images(1)[0][1]])
    assert answer.label in ("dark", "light")


def test_the_image_gets_our_packages_and_what_builds_them():
    allowed = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    (packages,) = re.findall(r"^PACKAGES = (.*)$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert allowed == {*ast.literal_eval(packages), "LICENSE", "README.md", "pyproject.toml", "setup.py", "uv.lock"}
    assert all((ROOT / name).exists() for name in allowed)
    copies = re.findall(r"^COPY (.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert copies[:2] == ["--from=dependencies /opt/venv /opt/venv", ". ."]


def test_the_containers_user_is_a_number_by_which_kubernetes_sees_that_it_is_not_root():
    users = re.findall(r"^USER (.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users)


def test_the_launcher_is_told_of_the_stores_that_artifacts_may_be_in():
    """Keys as in kubeflow/pipelines, backend/src/v2/objectstore: it passes over those that it does not know."""
    data = find_manifest("ConfigMap")["data"]
    providers = yaml.safe_load(data["providers"])
    assert {f"{name}://" for name in providers} == {"gs://", "s3://"}
    for name, provider in providers.items():
        (settings,) = provider.values()
        place = {"endpoint", "region"} if name == "s3" else set()
        assert settings.keys() == {"credentials", *place}
        credentials = settings["credentials"]
        keys = {"secretName", "accessKeyKey", "secretKeyKey"}
        assert credentials["fromEnv"] or credentials["secretRef"].keys() == keys
        assert provider.keys() == {"default"}


def test_beams_parts_are_of_the_locked_version():
    """Flink's job server, the workers' `boot`, Flink itself, and what the documentation says of them."""
    text = (FOLDER / "manifests" / "beam.yaml").read_text()
    ((server_flink, server_beam),) = re.findall(r"image: apache/beam_flink(.*)_job_server:(.*)", text)
    assert set(re.findall(r"image: flink:(.*)-", text)) == {server_flink}
    assert server_flink in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    (boot,) = re.findall(r"^FROM apache/beam_python3.11_sdk:(\S+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert {server_beam, boot} == {apache_beam.__version__}
    page = (ROOT / "docs" / "beam.md").read_text()
    assert f"| Flink | {', '.join(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS)} |" in page
    assert set(re.findall(r"apache/beam\w+[\d.]*\w*:([\d.]+)`", page)) == {apache_beam.__version__}


def test_workers_are_asked_for_where_the_sidecar_listens(with_all_keys):
    beam = with_all_keys.beam
    assert beam.runner == "portable"
    name, port = beam.options["job_endpoint"].split(":")
    service, deployment = (m for m in load_manifests() if m["metadata"]["name"] == name)
    assert int(port) in find_values(service, "port")
    assert int(port) in find_values(deployment, "containerPort")
    options = PipelineOptions(beam.make_arguments()).view_as(PortableOptions)
    assert (options.environment_type, options.environment_config) == ("EXTERNAL", "localhost:50000")
    assert find_values(load_manifests(), "args").count(["--worker_pool"]) == 1


def test_the_readme_names_each_file():
    names = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file() and path.name != "README.md"}
    assert set(re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(), re.MULTILINE)) == names
