"""Vertex AI: Google's own clients and ours, against the stand-in."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.cloud import aiplatform_v1
from typer.testing import CliRunner

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import vertex
from imagepipe.deploy.config import DeployConfig
from imagepipe.serving.types import Failure, Prediction, Request
from pipeline.cli import app
from tests.deploy.conftest import DIGITS, connect
from tests.standins.google import PROJECT, REGION, serve_api
from tests.standins.vertex import LOCATION, Vertex

QUOTA = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_serving_cpus"


@pytest.fixture
def cloud(account, monkeypatch):
    cloud = Vertex(account)
    monkeypatch.setattr(vertex, "_FIRST_POLL", 0.02)
    with serve_api(cloud):
        yield cloud


@pytest.fixture
def config(cloud, tmp_path) -> DeployConfig:
    section = {"project": PROJECT, "region": REGION, "api": cloud.url}
    return DeployConfig(target="vertex", name="digits", path=str(tmp_path / "versions"), vertex=section)


def changed(config: DeployConfig, **settings) -> DeployConfig:
    return config.model_copy(update={"vertex": config.vertex.model_copy(update=settings)})


def shares(config: DeployConfig) -> list[tuple[int, str]]:
    return [(version.traffic, version.state) for version in vertex.status(config)]


def test_a_pushed_model_predicts_online_as_it_does_here(cloud, config, brightness, expected, no_secrets):
    version = vertex.deploy(brightness[0], config)
    assert version.uri == f"{config.path}/{version.version}"
    assert vertex.status(config) == [version]
    (registered,) = cloud.models["digits"]
    assert registered.labels == {"imagepipe_version": version.version}
    assert set(registered.version_aliases) == {f"v{version.version}", "default"}
    assert list(connect(vertex.find_address(config)).predict_requests(DIGITS)) == [
        dataclasses.replace(answer, classes=pytest.approx(answer.classes), score=pytest.approx(answer.score))
        for answer in expected
    ]


def test_googles_own_client_predicts_with_it(cloud, config, brightness, expected):
    vertex.deploy(brightness[0], config)
    client = aiplatform_v1.PredictionServiceClient(
        credentials=vertex.gcp.find_credentials(), transport="rest", client_options={"api_endpoint": cloud.url}
    )
    (endpoint,) = cloud.endpoints
    instances = [vertex_instance(request) for request in DIGITS]
    answer = client.predict(endpoint=endpoint, instances=instances)
    assert [row["label"] for row in answer.predictions] == [prediction.label for prediction in expected]
    assert [row["metadata"] for row in answer.predictions] == [request.id for request in DIGITS]


def vertex_instance(request: Request):
    from google.protobuf import json_format, struct_pb2

    from imagepipe.serving.instances import encode_instance

    return json_format.ParseDict(encode_instance(request), struct_pb2.Value())


def test_a_canary_gets_its_share_then_more_then_all_and_the_old_one_goes(cloud, config, brightness):
    first = vertex.deploy(brightness[0], config)
    canary = vertex.deploy(brightness[1], config, 10)
    assert (canary.traffic, int(canary.version) > int(first.version)) == (10, True)
    assert shares(config) == [(10, "ready"), (90, "ready")]
    assert not [
        answer
        for answer in connect(vertex.find_address(config)).predict_requests(DIGITS * 5)
        if isinstance(answer, Failure)
    ]
    assert sorted(cloud.answered.values()) == [10, 90]
    cloud.calls.clear()
    assert vertex.deploy(brightness[1], config, 40).version == canary.version
    assert shares(config) == [(40, "ready"), (60, "ready")]
    assert not [call for call in cloud.calls if "deploy" in call or "upload" in call]
    assert vertex.deploy(brightness[1], config).traffic == 100
    assert shares(config) == [(100, "ready"), (0, "not deployed")]
    assert "default" in cloud.models["digits"][1].version_aliases
    assert len(list(Path(config.path).iterdir())) == 2


def test_live_versions_keep_their_proportions_beside_a_third(config, brightness):
    vertex.deploy(brightness[0], config)
    vertex.deploy(brightness[1], config, 50)
    vertex.deploy(brightness[2], config, 25)
    assert [share for share, _ in shares(config)] == [25, 37, 38]
    assert vertex._split_traffic({"1": 34, "2": 33, "3": 33}, "4", 1) == {"1": 33, "2": 33, "3": 33, "4": 1}
    assert vertex._split_traffic({"1": 100}, "2", 99) == {"1": 1, "2": 99}
    assert vertex._split_traffic({}, "2", 10) == {"2": 100}


def test_a_canary_is_rolled_back_without_anything_being_deployed(cloud, config, brightness):
    first = vertex.deploy(brightness[0], config)
    vertex.deploy(brightness[1], config, 10)
    cloud.calls.clear()
    assert vertex.rollback(config) == first
    assert shares(config) == [(0, "rolled back"), (100, "ready")]
    assert not [call for call in cloud.calls if ":deployModel" in call]
    assert len(next(iter(cloud.endpoints.values())).deployed_models) == 1


def test_a_replaced_version_comes_back_from_the_registry_once_it_is_ready(cloud, config, brightness):
    first = vertex.deploy(brightness[0], config)
    vertex.deploy(brightness[2], config)
    cloud.calls.clear()
    assert vertex.rollback(config) == first
    assert shares(config) == [(0, "rolled back"), (100, "ready")]
    steps = [c.rpartition(":")[2] for c in cloud.calls if "eployModel" in c] + [c for c in cloud.calls if "upload" in c]
    assert steps == ["deployModel", "undeployModel"]
    moved = next(i for i, call in enumerate(cloud.calls) if call.startswith("PATCH") and "endpoints" in call)
    assert cloud.calls.index(next(c for c in cloud.calls if "undeploy" in c)) > moved
    assert [answer.label for answer in connect(vertex.find_address(config)).predict_requests(DIGITS)] == ["dark"] * 20


def test_a_rolled_back_version_is_skipped_by_rollbacks_but_can_be_deployed_again(config, brightness):
    first, bad = vertex.deploy(brightness[0], config), vertex.deploy(brightness[1], config)
    vertex.rollback(config)
    vertex.deploy(brightness[2], config)
    assert vertex.rollback(config) == first
    with pytest.raises(DeployError, match=f"no version of digits before {first.version} to go back to"):
        vertex.rollback(config)
    again = vertex.deploy(brightness[1], config)
    assert (again.traffic, int(again.version) > int(bad.version)) == (100, True)
    assert shares(config) == [(100, "ready"), (0, "rolled back"), (0, "rolled back"), (0, "not deployed")]


def test_a_canary_that_was_rolled_back_is_tried_once_more_under_its_own_version(config, brightness):
    vertex.deploy(brightness[0], config)
    canary = vertex.deploy(brightness[1], config, 10)
    vertex.rollback(config)
    assert vertex.deploy(brightness[1], config, 20) == dataclasses.replace(canary, traffic=20)
    assert shares(config) == [(20, "ready"), (80, "ready")]
    vertex.rollback(config)
    assert shares(config) == [(0, "rolled back"), (100, "ready")]


def test_scores_have_no_names_while_versions_of_other_classes_share_the_requests(config, brightness):
    vertex.deploy(brightness[0], config)
    vertex.deploy(brightness[2], config, 50)
    answers = list(connect(vertex.find_address(config)).predict_requests(DIGITS))
    assert {answer.label for answer in answers} == {"dark", "night"}
    assert all(set(answer.classes) == {answer.label, "1"} for answer in answers)


@pytest.mark.parametrize(("is_call", "status"), [(True, 429), (False, 429), (False, 503), (True, 403)])
def test_a_deployment_that_fails_leaves_the_live_version_and_gives_advice(
    cloud, config, brightness, is_call, status, no_secrets
):
    live = vertex.deploy(brightness[0], config)
    if is_call:
        cloud.faults.append(("POST", ":deployModel", status, QUOTA))
    else:
        cloud.operations.failing.append(("DeployModel", status, QUOTA))
    with pytest.raises(DeployError) as failed:
        vertex.deploy(brightness[1], config)
    output = str(failed.value)
    assert QUOTA in output
    assert {429: "Ask for more quota", 503: "Do it again later", 403: "needs the right"}[status] in output
    assert f"Live as before: version {live.version} (100% of the requests)" in output
    assert vertex.status(config) == [live]
    assert [answer.label for answer in connect(vertex.find_address(config)).predict_requests(DIGITS)] == ["dark"] * 20
    assert vertex.deploy(brightness[1], config).traffic == 100


def test_the_first_deployment_that_fails_leaves_no_model(cloud, config, brightness):
    cloud.operations.failing.append(("DeployModel", 429, QUOTA))
    with pytest.raises(DeployError, match="Live as before: nothing"):
        vertex.deploy(brightness[0], config)
    assert (cloud.models, vertex.status(config)) == ({}, [])
    with pytest.raises(DeployError, match="no version of digits is live at Vertex AI: `imagepipe deploy` one"):
        vertex.find_address(config)


def test_what_can_not_be_cleaned_up_is_reported_too(cloud, config, brightness):
    cloud.operations.failing += [("DeployModel", 429, QUOTA), ("DeleteModel", 403, "no right to delete")]
    with pytest.raises(DeployError, match=r"quota.*Besides, .* stays in the registry.*no right to delete"):
        vertex.deploy(brightness[0], config)


def test_a_deployment_that_takes_too_long_changes_nothing_and_is_continued(cloud, config, brightness, monkeypatch):
    live = vertex.deploy(brightness[0], config)
    cloud.operations.endless.append("DeployModel")
    cloud.calls.clear()
    with monkeypatch.context() as patch:
        # The time is up once the version is being deployed, and not while it is uploaded, however busy the machine is.
        clock = SimpleNamespace(monotonic=lambda: 100.0 * any(":deployModel" in call for call in cloud.calls))
        patch.setattr(vertex, "time", clock)
        with pytest.raises(DeployError) as failed:
            vertex.deploy(brightness[1], changed(config, timeout=60))
    assert "within deploy.vertex.timeout, 60 seconds" in str(failed.value)
    assert f"Live as before: version {live.version} (100% of the requests)" in str(failed.value)
    assert shares(config) == [(0, "not deployed"), (100, "ready")]
    cloud.operations.endless.clear()
    cloud.calls.clear()
    assert vertex.deploy(brightness[1], config).traffic == 100
    assert not [call for call in cloud.calls if ":upload" in call]
    assert shares(config) == [(100, "ready"), (0, "not deployed")]


def test_a_rollback_that_fails_keeps_both_versions_in_the_registry(cloud, config, brightness):
    vertex.deploy(brightness[0], config)
    live = vertex.deploy(brightness[1], config)
    cloud.operations.failing.append(("DeployModel", 429, QUOTA))
    with pytest.raises(DeployError, match=f"Ask for more quota.*Live as before: version {live.version} "):
        vertex.rollback(config)
    assert shares(config) == [(100, "ready"), (0, "not deployed")]


def test_an_old_version_that_can_not_be_retired_is_reported_and_retired_the_next_time(cloud, config, brightness):
    vertex.deploy(brightness[0], config)
    cloud.operations.failing.append(("UndeployModel", 503, "try later"))
    with pytest.raises(DeployError, match="is live and gets all requests, but Vertex AI would not retire the others"):
        vertex.deploy(brightness[1], config)
    assert shares(config) == [(100, "ready"), (0, "ready")]
    vertex.deploy(brightness[1], config)
    assert shares(config) == [(100, "ready"), (0, "not deployed")]


def test_what_somebody_else_changes_meanwhile_is_not_overwritten(cloud, config, brightness):
    vertex.deploy(brightness[0], config)
    vertex.deploy(brightness[1], config, 10)
    cloud.faults.append(("PATCH", "endpoints", 409, "its etag does not match"))
    with pytest.raises(DeployError, match="Somebody else is changing it at the moment"):
        vertex.deploy(brightness[1], config, 50)
    assert shares(config) == [(10, "ready"), (90, "ready")]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "The credentials are not accepted: run `gcloud auth"),
        (403, "The account of the credentials needs the right to do it in project pictures"),
        (404, "See whether project pictures, region europe-west4 is right"),
    ],
)
def test_a_refusal_gives_advice(cloud, config, status, words):
    cloud.faults += [("GET", "endpoints", status, "refused so")] * 5
    with pytest.raises(DeployError, match=f"would not list the endpoints: refused so. {words}"):
        vertex.status(config)


def test_a_service_that_is_away_for_a_moment_is_asked_again(cloud, config, brightness):
    version = vertex.deploy(brightness[0], config)
    cloud.faults += [("GET", "endpoints", 503, "away"), ("GET", "models", 503, "away")]
    assert vertex.status(config) == [version]


def test_no_answer_is_reported(config):
    with pytest.raises(DeployError, match=r"there is no answer from http://127.0.0.1:9 \("):
        vertex.status(changed(config, api="http://127.0.0.1:9"))


def test_without_credentials_it_says_where_they_come_from(config, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(DeployError, match="no credentials for Google Cloud: run `gcloud auth"):
        vertex.status(config)


def test_an_expired_token_is_renewed_and_a_deleted_account_is_reported(
    account, config, brightness, expected, no_secrets
):
    vertex.deploy(brightness[0], config)
    endpoint = connect(vertex.find_address(config))
    assert [answer.label for answer in endpoint.predict_requests(DIGITS)] == [answer.label for answer in expected]
    issued = account.issued
    account.expire()
    assert [answer.label for answer in endpoint.predict_requests(DIGITS)] == [answer.label for answer in expected]
    assert account.issued == issued + 1  # not one per image
    account.expire()
    account.revoked = True
    with pytest.raises(DeployError, match="Google gives no access token for the credentials: invalid_grant"):
        list(endpoint.predict_requests(DIGITS))


def test_our_own_image_is_told_its_routes_and_a_prebuilt_one_needs_none(cloud, config, brightness):
    gpu = {"image": "registry.example/serve:1", "min_replicas": 2, "max_replicas": 5}
    vertex.deploy(brightness[0], changed(config, **gpu))
    own = cloud.models["digits"][0].container_spec
    assert (own.image_uri, own.predict_route, own.health_route) == ("registry.example/serve:1", "/predict", "/health")
    assert [port.container_port for port in own.ports] == [8080]
    (endpoint,) = cloud.endpoints.values()
    resources = endpoint.deployed_models[0].dedicated_resources
    assert (resources.min_replica_count, resources.max_replica_count) == (2, 5)
    vertex.deploy(brightness[1], config)
    prebuilt = cloud.models["digits"][1].container_spec
    assert (prebuilt.predict_route, list(prebuilt.ports)) == ("", [])


def test_an_accelerator_is_asked_for_by_name_and_an_unknown_one_refused(cloud, config, brightness):
    def with_gpu(kind: str) -> DeployConfig:
        section = config.vertex.model_dump() | {"accelerator": {"type": kind, "count": 2}}
        return DeployConfig(**config.model_dump() | {"vertex": section})

    with pytest.raises(ModelError, match=r"deploy.vertex.accelerator.type: T4 is unknown; known are .*NVIDIA_TESLA_T4"):
        vertex.deploy(brightness[0], with_gpu("T4"))
    vertex.deploy(brightness[0], with_gpu("NVIDIA_TESLA_T4"))
    (endpoint,) = cloud.endpoints.values()
    machine = endpoint.deployed_models[0].dedicated_resources.machine_spec
    assert (machine.accelerator_type.name, machine.accelerator_count) == ("NVIDIA_TESLA_T4", 2)


def test_what_others_have_in_the_registry_and_at_other_endpoints_is_left_alone(cloud, config, brightness):
    other = config.model_copy(update={"name": "faces"})
    theirs = vertex.deploy(brightness[2], other)
    vertex.deploy(brightness[0], config)
    cloud.models["digits"].append(aiplatform_v1.Model(name=f"{LOCATION}/models/digits", version_id="7"))
    assert len(vertex.status(config)) == 1
    vertex.deploy(brightness[1], config)
    vertex.rollback(config)
    assert vertex.status(other) == [theirs]


def test_two_endpoints_of_the_name_are_not_chosen_between(cloud, config, brightness):
    vertex.deploy(brightness[0], config)
    name = f"{LOCATION}/endpoints/99"
    cloud.endpoints[name] = aiplatform_v1.Endpoint(name=name, display_name="digits")
    with pytest.raises(DeployError, match="2 endpoints of the name digits"):
        vertex.status(config)


def test_the_command_line_deploys_asks_and_rolls_back(cloud, config, brightness, tmp_path):
    settings = tmp_path / "pipeline.yaml"
    settings.write_text(
        f"name: digits\ndata: {{path: {tmp_path}}}\n"
        f"deploy: {{path: {config.path}, vertex: {{project: {PROJECT}, region: {REGION}, api: '{cloud.url}'}}}}\n"
    )
    image = tmp_path / "digit.png"
    image.write_bytes(DIGITS[0].image)
    given = ["--target", "vertex", "--config", str(settings)]
    runner = CliRunner()
    assert runner.invoke(app, ["deploy", brightness[0], *given]).exit_code == 0
    asked = runner.invoke(app, ["predict", *given, str(image)])
    assert (asked.exit_code, asked.stdout.split()[0]) == (0, "dark")
    assert "gets 10% of the requests" in runner.invoke(app, ["deploy", brightness[1], *given, "--traffic", "10"]).output
    assert " is live: " in runner.invoke(app, ["rollback", *given]).output
    again = runner.invoke(app, ["rollback", *given])
    assert again.exit_code == 1
    assert "imagepipe: there is no version of digits before" in again.output


def test_credentials_are_in_no_log_even_where_googles_libraries_log_everything(config, brightness, no_secrets):
    vertex.deploy(brightness[0], config)
    assert isinstance(next(iter(connect(vertex.find_address(config)).predict_requests(DIGITS))), Prediction)
