"""KServe: deployments against a stand-in for the cluster, which says what of KServe is real in it."""

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from kserve import InferenceRESTClient, KServeClient, RESTConfig
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from imagepipe.base.errors import DeployError
from imagepipe.capture.files import write_rows
from imagepipe.deploy import kserve
from imagepipe.deploy.config import DeployConfig, KServeConfig
from imagepipe.deploy.deployment import Version
from imagepipe.serving.predictor import load
from imagepipe.serving.types import Request
from pipeline.cli import app
from tests.conftest import make_digit_images
from tests.deploy.conftest import connect
from tests.monitoring.test_pairs import make_row, write_truth
from tests.serving.conftest import save_brightness
from tests.standins.kubernetes import Cluster

TOKEN = "token-that-nobody-may-see"  # noqa: S105
DIGITS = [png for _, png in make_digit_images(20)]
WHERE = ("serving.kserve.io", "v1beta1", "default", "inferenceservices")
NAMES = [("dark", "light"), ("black", "white"), ("night", "day")]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Three models with the same answers under different labels."""
    root = tmp_path_factory.mktemp("models")
    return [str(save_brightness(root / f"{i}", root / f"assets{i}", names)) for i, names in enumerate(NAMES)]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with Cluster(TOKEN) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setattr(kserve, "_POLL_SECONDS", 0.01)
        yield cluster


@pytest.fixture
def config(tmp_path) -> DeployConfig:
    return DeployConfig(target="kserve", name="digits", path=str(tmp_path / "pushed"), kserve={"timeout": 10})


def settings(config: DeployConfig, **changed) -> DeployConfig:
    return DeployConfig(**config.model_dump(exclude={"kserve"}), kserve=config.kserve.model_dump() | changed)


def predictor(cluster: Cluster) -> dict:
    return cluster.services["default", "digits"]["spec"]["predictor"]


def revisions(cluster: Cluster) -> int:
    return len(cluster.deployed["default", "digits"].revisions)


def percents(cluster: Cluster) -> list[int | None]:
    """Returns the share that each manifest gives to the newest revision."""
    return [manifest["spec"]["predictor"].get("canaryTrafficPercent") for manifest in cluster.manifests]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def give_up(cluster: Cluster) -> None:
    """Makes the newest revision fail to start."""
    cluster.deployed["default", "digits"].revisions[-1].failure = "Back-off"


def count_answers(config: DeployConfig, count: int = 100) -> dict[str, int]:
    """Returns how many requests each version answered."""
    requests = [Request(str(number), DIGITS[number % len(DIGITS)]) for number in range(count)]
    labels = [answer.label for answer in connect(kserve.find_address(config)).predict_requests(requests)]
    shares = {f"v{i + 1}": sum(label in names for label in labels) for i, names in enumerate(NAMES)}
    return {version: share for version, share in shares.items() if share}


def test_a_pushed_model_answers_kserves_client_and_ours_as_it_does_here(cluster, config, models):
    version = kserve.deploy(models[0], config)
    assert version == Version(version.version, f"{config.path}/{version.version}/{version.version}", 100)
    assert kserve.status(config) == [version]
    here = list(load(version.uri).predict_requests([Request(str(i), png) for i, png in enumerate(DIGITS)]))

    ours = list(
        connect(kserve.find_address(config)).predict_requests([Request(str(i), png) for i, png in enumerate(DIGITS)])
    )
    assert [(a.label, a.classes) for a in ours] == [(a.label, pytest.approx(a.classes, abs=1e-6)) for a in here]

    cluster_client = KServeClient(os.environ["KUBECONFIG"])
    assert cluster_client.is_isvc_ready("digits", namespace="default")
    service = cluster_client.get("digits", namespace="default")
    instances = [{"input": {"b64": base64.b64encode(png).decode()}, "metadata": ""} for png in DIGITS]
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    theirs = asyncio.run(client.infer(service["status"]["url"], {"instances": instances}, model_name="digits"))
    assert [row["label"] for row in theirs["predictions"]] == [a.label for a in here]


def test_a_canary_gets_its_share_then_all_and_can_be_rolled_back(cluster, config, models):
    first = kserve.deploy(models[0], config)
    second = kserve.deploy(models[1], config, 10)
    assert [(v.version, v.traffic) for v in kserve.status(config)] == [(second.version, 10), (first.version, 90)]
    assert count_answers(config) == {"v1": 90, "v2": 10}

    assert kserve.deploy(models[1], config, 40).version == second.version
    assert count_answers(config) == {"v1": 60, "v2": 40}
    assert kserve.deploy(models[1], config, 100).version == second.version
    assert count_answers(config) == {"v2": 100}
    assert revisions(cluster) == 2  # shares alone start no pods
    assert "canaryTrafficPercent" not in predictor(cluster)

    assert kserve.rollback(config) == first
    assert count_answers(config) == {"v1": 100}
    assert predictor(cluster)["model"]["storageUri"] == f"{config.path}/{first.version}"
    assert [(v.version, v.traffic, v.state) for v in kserve.status(config)] == [
        (second.version, 0, "rolled back"),
        (first.version, 100, "ready"),
    ]
    with pytest.raises(DeployError, match=r"only version .*: there is nothing to go back to"):
        kserve.rollback(config)


def test_a_rollback_during_a_canary_gives_all_to_the_previous_version_at_once(cluster, config, models):
    first = kserve.deploy(models[0], config)
    kserve.deploy(models[1], config, 10)
    cluster.failing[3] = ""  # it has to be started anew, which takes its time
    with ThreadPoolExecutor(1) as pool:
        rolled_back = pool.submit(kserve.rollback, config)
        wait_for(lambda: revisions(cluster) == 3)
        assert count_answers(config) == {"v1": 100}
        _, now = kserve.status(config)
        assert (now.version, now.traffic) == (first.version, 100)
        assert "waiting for a Revision" in now.state
        give_up(cluster)
        assert "Back-off" in str(rolled_back.exception())
    assert count_answers(config) == {"v1": 90, "v2": 10}
    assert kserve.rollback(config).version == first.version
    assert count_answers(config) == {"v1": 100}
    assert "canaryTrafficPercent" not in predictor(cluster)


def test_until_the_previous_version_runs_again_the_rolled_back_one_answers(cluster, config, models):
    deployed = [kserve.deploy(model, config) for model in models]
    cluster.failing[4] = ""
    with ThreadPoolExecutor(1) as pool:
        rolled_back = pool.submit(kserve.rollback, config)
        wait_for(lambda: revisions(cluster) == 4)
        assert count_answers(config) == {"v3": 100}
        assert [(v.version, v.traffic) for v in kserve.status(config) if v.traffic] == [(deployed[2].version, 100)]
        give_up(cluster)
        assert f"Back-off. As before, version {deployed[2].version} gets 100%" in str(rolled_back.exception())
    assert count_answers(config) == {"v3": 100}
    assert [v.traffic for v in kserve.status(config)] == [100, 0, 0]


def test_rollbacks_go_back_version_by_version(cluster, config, models):
    deployed = [kserve.deploy(model, config) for model in models]
    assert [v.state for v in kserve.status(config)] == ["ready", "replaced", "replaced"]
    assert kserve.rollback(config) == deployed[1]
    assert kserve.rollback(config) == deployed[0]
    assert count_answers(config) == {"v1": 100}
    assert kserve.deploy(models[2], config).version == deployed[2].version  # it was there, and is not copied again
    assert count_answers(config) == {"v3": 100}


def test_a_canary_that_another_replaces_gets_no_more_than_it_had(cluster, config, models):
    for model, traffic in zip(models, (100, 10, 50), strict=True):
        kserve.deploy(model, config, traffic)
    assert percents(cluster) == [None, 10, 10, 50]
    assert count_answers(config) == {"v1": 50, "v3": 50}
    kserve.rollback(config)
    assert count_answers(config) == {"v1": 100}


def test_a_version_with_all_requests_is_given_no_share(cluster, config, models):
    assert kserve.deploy(models[0], config, 10).traffic == 100  # there is nothing for the rest
    with pytest.raises(DeployError, match="gets all requests already"):
        kserve.deploy(models[0], config, 10)
    assert kserve.deploy(models[0], config) == kserve.status(config)[0]
    assert revisions(cluster) == 1


@pytest.mark.parametrize(
    ("why", "timeout", "words"),
    [
        ("pods are forbidden: exceeded quota: nvidia.com/gpu=1", 10, r"does not get ready: .*exceeded quota: nvidia"),
        ("", 0.3, r"was not ready after 0\.3 s: .*waiting for a Revision"),
    ],
)
@pytest.mark.parametrize("traffic", [10, 100])
def test_a_version_that_does_not_start_leaves_what_was_live(cluster, config, models, why, timeout, words, traffic):
    first = kserve.deploy(models[0], config)
    cluster.failing[2] = why
    with pytest.raises(DeployError, match=words) as error:
        kserve.deploy(models[1], settings(config, timeout=timeout), traffic)
    assert str(error.value).endswith(f". As before, version {first.version} gets 100% of the requests")
    assert kserve.status(config) == [first]
    assert count_answers(config) == {"v1": 100}
    assert predictor(cluster)["model"]["storageUri"].endswith(first.version)
    second = kserve.deploy(models[1], config, traffic)
    assert [v.traffic for v in kserve.status(config)] == ([10, 90] if traffic == 10 else [100, 0])
    assert int(second.version) > int(first.version)


def test_a_version_that_starts_too_late_gets_no_requests(cluster, config, models):
    first = kserve.deploy(models[0], config)
    cluster.failing |= {2: "", 3: ""}
    with ThreadPoolExecutor(1) as pool:
        deployed = pool.submit(kserve.deploy, models[1], settings(config, timeout=2))
        wait_for(lambda: revisions(cluster) == 3)  # the time is up, what was live is put back
        late, back = cluster.deployed["default", "digits"].revisions[1:]
        late.failure = None
        wait_for(lambda: late.model)
        assert count_answers(config) == {"v1": 100}
        back.failure = None
        assert "was not ready after 2 s" in str(deployed.exception())
    assert kserve.status(config) == [first]
    assert count_answers(config) == {"v1": 100}


def test_a_canary_stays_unchanged_if_its_successor_does_not_start(cluster, config, models):
    first, second = kserve.deploy(models[0], config), kserve.deploy(models[1], config, 20)
    cluster.failing[3] = "Back-off pulling image"
    with pytest.raises(DeployError, match="Back-off pulling image") as error:
        kserve.deploy(models[2], config)
    ending = f"As before, version {second.version} gets 20% and version {first.version} gets 80% of the requests"
    assert str(error.value).endswith(ending)
    assert count_answers(config) == {"v1": 80, "v2": 20}
    assert kserve.deploy(models[1], config, 30) == Version(second.version, second.uri, 30)
    assert count_answers(config) == {"v1": 70, "v2": 30}


def test_a_first_version_that_does_not_start_leaves_nothing_behind(cluster, config, models):
    cluster.failing[1] = "Back-off pulling image"
    with pytest.raises(DeployError, match=r"Back-off pulling image.*Nothing was live, and the new service is deleted"):
        kserve.deploy(models[0], config)
    assert not cluster.services
    assert kserve.status(config) == []


def test_a_missing_runtime_is_named(cluster, config, models):
    kserve.deploy(models[0], config)
    cluster.formats.clear()
    with pytest.raises(DeployError, match="No runtime found to support"):
        kserve.deploy(models[1], settings(config, timeout=0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "another"}, r"does not take the credentials \(401\): log in"),
        ({"forbids": True}, r"refuses .* \(403\): .*cannot get resource"),
        ({"refuses": "exceeded quota: models"}, r"refuses .* \(403\): exceeded quota: models.*As before, .* gets 100%"),
        ({"has_kserve": False}, "has no InferenceServices .*: install KServe"),
    ],
)
def test_what_kubernetes_refuses_is_reported_and_changes_nothing(cluster, config, models, change, words):
    first = kserve.deploy(models[0], config)
    originals = {name: getattr(cluster, name) for name in change}
    for name, value in change.items():
        setattr(cluster, name, value)
    with pytest.raises(DeployError, match=words) as error:
        kserve.deploy(models[1], config)
    assert TOKEN not in str(error.value)
    for name, value in originals.items():
        setattr(cluster, name, value)
    assert kserve.status(config) == [first]
    assert count_answers(config) == {"v1": 100}
    assert revisions(cluster) == 1


def test_a_missing_namespace_is_named(cluster, config, models):
    with pytest.raises(DeployError, match=r"no namespace elsewhere .*kubectl create namespace elsewhere"):
        kserve.deploy(models[0], settings(config, namespace="elsewhere"))


@pytest.mark.parametrize(
    ("kubeconfig", "words"),
    [
        ({"server": "http://127.0.0.1:1"}, r"Kubernetes at http://127\.0\.0\.1:1 does not answer: .*refused"),
        ({"server": "http://192.0.2.1"}, r"is http://192\.0\.2\.1: credentials go to https:// only"),
    ],
)
def test_a_cluster_that_does_not_answer_is_named(cluster, config, models, kubeconfig, words):
    cluster.kubeconfig(Path(os.environ["KUBECONFIG"]), **kubeconfig)
    with pytest.raises(DeployError, match=words):
        kserve.deploy(models[0], config)


@pytest.mark.parametrize("content", [None, "", ": no\n  - YAML: ]"])
def test_without_a_kubeconfig_it_says_what_is_missing(config, tmp_path, monkeypatch, content):
    file = tmp_path / "kubeconfig"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(DeployError, match=r"no way to a Kubernetes cluster: .*Set KUBECONFIG"):
        kserve.status(config)
    with pytest.raises(DeployError, match="no way to a Kubernetes cluster"):
        kserve.status(settings(config, context="production"))


@pytest.mark.parametrize("mode", ["RawDeployment", "Standard"])
def test_without_knative_there_are_no_shares_but_all_else(cluster, config, models, mode):
    cluster.mode = mode
    first = kserve.deploy(models[0], config)
    with pytest.raises(DeployError, match=f"mode {mode}, without Knative.*--traffic 100"):
        kserve.deploy(models[1], config, 10)
    cluster.failing[2] = "OOMKilled"
    with pytest.raises(DeployError, match=f"OOMKilled.*As before, version {first.version} gets 100%"):
        kserve.deploy(models[1], settings(config, timeout=0.3))
    assert count_answers(config) == {"v1": 100}
    second = kserve.deploy(models[1], config)
    assert count_answers(config) == {"v2": 100}
    assert [(v.version, v.traffic) for v in kserve.status(config)] == [(second.version, 100), (first.version, 0)]
    assert kserve.rollback(config).version == first.version
    assert count_answers(config) == {"v1": 100}


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
@pytest.mark.parametrize("change", ["deploy", "rollback"])
def test_the_state_of_the_previous_revision_is_not_taken_for_the_new_one(cluster, config, models, mode, change):
    cluster.mode = mode
    kserve.deploy(models[0], config)
    if change == "rollback":
        kserve.deploy(models[1], config)
    cluster.paused = True  # the status still says that the previous revision is ready
    with ThreadPoolExecutor(1) as pool:
        count = len(cluster.manifests)
        changed = pool.submit(
            lambda: kserve.deploy(models[1], config) if change == "deploy" else kserve.rollback(config)
        )
        wait_for(lambda: len(cluster.manifests) > count)
        with pytest.raises(TimeoutError):
            changed.result(timeout=0.3)
        cluster.paused = False
        version = changed.result()
    assert [v.version for v in kserve.status(config) if v.traffic] == [version.version]


def test_what_someone_else_changes_meanwhile_stays(cluster, config, models):
    kserve.deploy(models[0], config)
    cluster.failing[2] = ""
    with ThreadPoolExecutor(1) as pool:
        deployed = pool.submit(kserve.deploy, models[1], config)
        wait_for(lambda: revisions(cluster) == 2)
        change = {"spec": {"predictor": {"maxReplicas": 7}}}
        KServeClient(os.environ["KUBECONFIG"]).api_instance.patch_namespaced_custom_object(*WHERE, "digits", change)
        assert "was changed by someone else meanwhile" in str(deployed.exception())
    assert predictor(cluster)["maxReplicas"] == 7


def test_what_others_have_set_and_what_the_configuration_says_now_are_both_kept(cluster, config, models):
    kserve.deploy(models[0], config)
    tolerations = [{"key": "gpu", "operator": "Exists"}]
    predictor(cluster)["tolerations"] = tolerations
    kserve.deploy(models[0], settings(config, cpu=2, memory="3Gi", gpus=1, max_replicas=4, service_account="reader"))
    now = predictor(cluster)
    assert (now["tolerations"], now["maxReplicas"], now["serviceAccountName"]) == (tolerations, 4, "reader")
    assert now["model"]["resources"]["limits"] == {"cpu": "2", "memory": "3Gi", "nvidia.com/gpu": "1"}
    kserve.deploy(models[0], settings(config, cpu=2))
    assert predictor(cluster)["model"]["resources"]["limits"] == {"cpu": "2", "memory": "2Gi"}
    assert "serviceAccountName" not in predictor(cluster)


def test_our_own_server_finds_the_version_and_is_started_with_arguments_that_it_takes(cluster, config, models):
    cluster.folders["pvc://models/digits"] = config.path
    own = settings(config, runtime="imagepipe", image="registry/serve:1", storage_uri="pvc://models/digits")
    version = kserve.deploy(models[0], own)
    (container,) = predictor(cluster)["containers"]
    assert container["env"] == [{"name": "STORAGE_URI", "value": f"pvc://models/digits/{version.version}"}]
    program, command = container["command"]
    assert program == "imagepipe"
    parameters = get_command(app).commands[command].make_context(command, container["args"]).params
    assert (str(parameters["model"]), parameters["name"], parameters["host"]) == ("/mnt/models", "digits", "0.0.0.0")  # noqa: S104
    assert parameters["port"] == container["ports"][0]["containerPort"]
    assert count_answers(own) == {"v1": 100}

    kserve.deploy(models[1], settings(config, storage_uri="pvc://models/digits"))
    assert "containers" not in predictor(cluster)
    kserve.rollback(config)
    assert predictor(cluster)["containers"] == [container]  # as it was, not as the configuration is now


def test_a_canary_of_our_own_server_captures_what_promotes_it(cluster, config, models, tmp_path):
    traffic = {"capture": "memory://traffic", "capture_rate": 0.25}
    own = settings(config, runtime="imagepipe", image="registry/serve:1", **traffic)
    first, second = kserve.deploy(models[0], own), kserve.deploy(models[1], own, 10)
    (container,) = predictor(cluster)["containers"]
    parameters = get_command(app).commands["serve"].make_context("serve", container["args"]).params
    assert {name: parameters[name] for name in traffic} == traffic
    rows = [make_row(n, first.version, "dark" if n < 80 else "light") for n in range(100)]
    rows += [make_row(n, second.version, "dark") for n in range(100)]
    write_rows(traffic["capture"], rows, "a")
    file = tmp_path / "pipeline.yaml"
    deploy = own.model_dump(exclude_none=True)
    file.write_text(yaml.safe_dump({"name": "digits", "data": {"path": "data"}, "deploy": deploy}))
    truth = write_truth(tmp_path / "truth.csv", [(f"id-{n}", "dark") for n in range(100)])
    arguments = ["--if-better", traffic["capture"], "--feedback", truth, "--config", str(file)]
    result = CliRunner().invoke(app, ["promote", *arguments])
    assert result.exit_code == 0, result.output
    assert kserve.status(own)[0] == Version(second.version, second.uri, 100)


def test_a_server_that_captures_nothing_is_refused_with_capture():
    with pytest.raises(ValidationError, match="capture: needs runtime: imagepipe"):
        KServeConfig(capture="s3://bucket/traffic")
    with pytest.raises(ValidationError, match="expected s3://"):
        KServeConfig(capture="traffic", runtime="imagepipe", image="registry/serve:1")


def test_a_gateway_finds_the_service_by_its_host(cluster, config, models):
    cluster.by_host = True
    kserve.deploy(models[0], config)
    assert count_answers(settings(config, ingress=cluster.url)) == {"v1": 100}


def test_a_version_whose_files_are_gone_is_not_rolled_back_to(cluster, config, models):
    first = kserve.deploy(models[0], config)
    second = kserve.deploy(models[1], config)
    Path(first.uri, "saved_model.pb").unlink()
    with pytest.raises(DeployError, match=f"version {first.version} can't run again"):
        kserve.rollback(config)
    assert kserve.status(config)[0] == second


def test_an_inference_service_of_someone_else_is_left_alone(cluster, config, models):
    kserve.deploy(models[0], config)
    cluster.services["default", "digits"]["metadata"]["annotations"].clear()
    for call in (
        kserve.status,
        kserve.rollback,
        kserve.find_address,
        lambda config: kserve.deploy(models[1], config),
    ):
        with pytest.raises(DeployError, match="was not made by imagepipe"):
            call(config)


def test_nothing_deployed_is_reported(cluster, config):
    assert kserve.status(config) == []
    with pytest.raises(DeployError, match="does not exist: there is nothing to roll back"):
        kserve.rollback(config)
    with pytest.raises(DeployError, match="does not exist: deploy a model first"):
        kserve.find_address(config)


def test_no_token_gets_into_manifests_or_logs(cluster, config, models, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    kserve.deploy(models[0], config)
    cluster.failing[2] = "Back-off"
    with pytest.raises(DeployError):
        kserve.deploy(models[1], config)
    count_answers(config, 5)
    printed = capfd.readouterr()
    written = [path.read_bytes() for path in Path(config.path).rglob("*") if path.is_file()]
    everything = [printed.out, printed.err, caplog.text, json.dumps(cluster.manifests), str(b"".join(written))]
    assert caplog.text
    assert not [text for text in everything if TOKEN in text]
    assert base64.b64encode(DIGITS[0]).decode() not in caplog.text


def test_the_command_line_deploys_shows_and_rolls_back(cluster, config, models, tmp_path):
    file = tmp_path / "pipeline.yaml"
    deploy = {"target": "kserve", "path": config.path}
    file.write_text(yaml.safe_dump({"name": "digits", "data": {"path": "data"}, "deploy": deploy}))

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments, "--config", str(file)])
        return result.exit_code, result.output

    assert run("deploy", models[0])[0] == 0
    code, output = run("deploy", models[1], "--traffic", "10", "--json")
    version = json.loads(output)["version"]
    assert (code, json.loads(output)["traffic"]) == (0, 10)
    assert run("status")[1].split("\n")[3].split()[:3] == [version, "10%", "ready"]
    assert "is live" in run("rollback")[1]
    assert count_answers(config) == {"v1": 100}
    cluster.token = "another"  # noqa: S105
    code, output = run("status")
    assert code == 1
    assert "log in to the cluster again" in output
    assert "Traceback" not in output


def test_kserve_is_imported_without_the_command_line():
    """KServe parses ``sys.argv`` when it is imported, and would print its own help."""
    code = "import sys; sys.argv = ['imagepipe', '--help']; import imagepipe.deploy.kserve_library; print(sys.argv)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert result.stdout == "['imagepipe', '--help']\n"
