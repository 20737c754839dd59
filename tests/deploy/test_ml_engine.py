"""ML Engine: plain REST and our client, against the stand-in."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from google.auth.transport.requests import AuthorizedSession
from typer.testing import CliRunner

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp, ml_engine, ml_engine_api, ml_engine_jobs
from imagepipe.deploy.config import DeployConfig
from imagepipe.serving.instances import encode_instance
from imagepipe.serving.request_files import write_requests
from imagepipe.serving.types import Request
from pipeline.cli import app
from tests.deploy.conftest import DIGITS, connect
from tests.standins.google import PROJECT, REGION, serve_api
from tests.standins.ml_engine import MLEngine

QUOTA = "The request for 1 node of n1-standard-4 exceeds the quota"


@pytest.fixture
def cloud(account, monkeypatch):
    cloud = MLEngine(account)
    monkeypatch.setattr(ml_engine_api, "_FIRST_PAUSE", 0.01)
    ml_engine_api._warn.cache_clear()
    with serve_api(cloud):
        yield cloud


@pytest.fixture
def config(cloud, tmp_path) -> DeployConfig:
    section = {"project": PROJECT, "region": REGION, "api": cloud.url}
    return DeployConfig(target="ml_engine", name="test-digits", path=str(tmp_path / "versions"), ml_engine=section)


def changed(config: DeployConfig, **settings) -> DeployConfig:
    return config.model_copy(update={"ml_engine": config.ml_engine.model_copy(update=settings)})


def states(config: DeployConfig) -> list[tuple[int, str]]:
    return [(version.traffic, version.state) for version in ml_engine.status(config)]


def labels(config: DeployConfig) -> set[str]:
    return {answer.label for answer in connect(ml_engine.find_address(config)).predict_requests(DIGITS)}


def test_a_pushed_model_predicts_online_as_it_does_here(cloud, config, brightness, expected, no_secrets, caplog):
    version = ml_engine.deploy(brightness[0], config)
    assert ml_engine.status(config) == [version]
    assert version.uri == f"{config.path}/{version.version}"
    assert list(connect(ml_engine.find_address(config)).predict_requests(DIGITS)) == [
        dataclasses.replace(answer, classes=pytest.approx(answer.classes), score=pytest.approx(answer.score))
        for answer in expected
    ]
    warnings = [record.getMessage() for record in caplog.records if record.name == "imagepipe.deploy"]
    assert [words for words in warnings if "has retired" in words and "Vertex AI" in words] == warnings
    assert len(warnings) == 1


def test_plain_rest_predicts_with_it(cloud, config, brightness, expected):
    ml_engine.deploy(brightness[0], config)
    url = f"{cloud.url}/v1/projects/{PROJECT}/models/test_digits:predict"
    body = {"instances": [encode_instance(request) for request in DIGITS]}
    answer = AuthorizedSession(gcp.find_credentials()).post(url, json=body).json()
    assert [row["label"] for row in answer["predictions"]] == [prediction.label for prediction in expected]


def test_a_version_is_created_as_configured(cloud, config, brightness):
    version = ml_engine.deploy(brightness[0], changed(config, min_nodes=2, max_nodes=5))
    created = cloud.versions["test_digits"][f"v{version.version}"]
    assert (created["deploymentUri"], created["machineType"]) == (version.uri, "n1-standard-4")
    assert (created["framework"], created["runtimeVersion"], created["pythonVersion"]) == ("TENSORFLOW", "2.11", "3.7")
    assert created["autoScaling"] == {"minNodes": 2, "maxNodes": 5}
    fixed = ml_engine.deploy(brightness[1], changed(config, min_nodes=3, max_nodes=3))
    assert cloud.versions["test_digits"][f"v{fixed.version}"]["manualScaling"] == {"nodes": 3}
    with pytest.raises(DeployError, match=r"autoScaling.minNodes: N1 needs one at least"):
        ml_engine.deploy(brightness[2], changed(config, min_nodes=0))


def test_a_version_becomes_the_default_once_it_is_ready_and_is_rolled_back(cloud, config, brightness):
    first = ml_engine.deploy(brightness[0], config)
    cloud.calls.clear()
    second = ml_engine.deploy(brightness[2], config)
    assert cloud.calls[-1].endswith(f"v{second.version}:setDefault")
    assert states(config) == [(100, "ready"), (0, "ready")]
    assert labels(config) == {"night"}
    assert ml_engine.rollback(config) == first
    assert states(config) == [(0, "rolled back"), (100, "ready")]
    assert labels(config) == {"dark"}
    with pytest.raises(DeployError, match=f"no version of test-digits before {first.version} that is ready"):
        ml_engine.rollback(config)


def test_a_rolled_back_version_is_skipped_by_rollbacks_unless_it_is_deployed_again(config, brightness):
    first, second = (ml_engine.deploy(model, config) for model in brightness[:2])
    ml_engine.rollback(config)
    ml_engine.deploy(brightness[2], config)
    assert ml_engine.rollback(config) == first
    assert ml_engine.deploy(brightness[1], config) == second
    assert states(config) == [(0, "rolled back"), (100, "ready"), (0, "ready")]
    assert len(list(Path(config.path).iterdir())) == 3


def test_shares_are_refused(config, brightness):
    with pytest.raises(ModelError, match="can't divide the requests between versions"):
        ml_engine.deploy(brightness[0], config, 10)
    with pytest.raises(ValueError, match="ML Engine can't split the requests"):
        DeployConfig(**config.model_dump() | {"traffic": 10})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("POST", "/versions", 429, QUOTA), f"{QUOTA}. Ask for more quota"),
        (("CREATE_VERSION", 429, QUOTA), f"{QUOTA}. Ask for more quota"),
        (("CREATE_VERSION", 503, "internal"), "internal. Do it again later"),
        (QUOTA, f"it is failed: {QUOTA}"),
        (("POST", ":setDefault", 403, "no right"), "no right. The account of the credentials needs the right"),
    ],
)
def test_a_deployment_that_fails_leaves_the_live_version_and_can_be_done_again(cloud, config, brightness, fault, words):
    live = ml_engine.deploy(brightness[0], config)
    if isinstance(fault, str):
        cloud.failing_versions.append(fault)
    else:
        (cloud.faults if len(fault) == 4 else cloud.operations.failing).append(fault)
    with pytest.raises(DeployError) as failed:
        ml_engine.deploy(brightness[2], config)
    assert words in str(failed.value)
    assert f"Live as before: version {live.version} (100% of the requests)" in str(failed.value)
    assert labels(config) == {"dark"}
    assert [v for v in ml_engine.status(config) if v.traffic or v.state != "ready"] == [live]
    assert ml_engine.deploy(brightness[2], config).traffic == 100
    assert labels(config) == {"night"}


def test_a_deployment_that_takes_too_long_changes_nothing_and_is_continued(cloud, config, brightness):
    ml_engine.deploy(brightness[0], config)
    cloud.operations.endless.append("CREATE")
    with pytest.raises(DeployError, match=r"within deploy.ml_engine.timeout, 0.3 seconds.*(?s:.)*100% of the requests"):
        ml_engine.deploy(brightness[2], changed(config, timeout=0.3))
    assert states(config) == [(0, "creating"), (100, "ready")]
    # It got ready after all, when nobody looked any more.
    cloud.operations.endless.clear()
    (unready,) = (v for v in cloud.versions["test_digits"].values() if v["state"] == "CREATING")
    for _ in range(3):
        cloud.operations.get(f"projects/{PROJECT}/operations/2")
    assert unready["state"] == "READY"
    cloud.calls.clear()
    assert ml_engine.deploy(brightness[2], config).traffic == 100
    assert not [call for call in cloud.calls if call.endswith("/versions") and call.startswith("POST")]
    assert labels(config) == {"night"}


def test_a_version_of_unknown_state_is_not_deleted(cloud, config, brightness, monkeypatch):
    monkeypatch.setattr(gcp, "RETRY", gcp.RETRY.with_timeout(0.1))
    ml_engine.deploy(brightness[0], config)
    cloud.faults += [("GET", "operations", 503, "away")] * 20
    with pytest.raises(DeployError, match=r"not make version .*: away\. Do it again later\. Live as before: version"):
        ml_engine.deploy(brightness[2], config)
    cloud.faults.clear()
    assert states(config) == [(0, "creating"), (100, "ready")]


def test_a_failed_version_of_an_earlier_attempt_is_replaced(cloud, config, brightness):
    ml_engine.deploy(brightness[0], config)
    cloud.failing_versions.append(QUOTA)
    cloud.faults.append(("DELETE", "versions", 403, "no right to delete"))
    with pytest.raises(DeployError, match=r"Besides, ML Engine would not delete version .*no right to delete"):
        ml_engine.deploy(brightness[2], config)
    assert states(config) == [(0, f"failed: {QUOTA}"), (100, "ready")]
    ml_engine.deploy(brightness[2], config)
    assert states(config) == [(100, "ready"), (0, "ready")]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ". The credentials are not accepted: run `gcloud auth"),
        (403, ". The account of the credentials needs the right to do it in project pictures"),
        (400, "$"),
    ],
)
def test_a_refusal_gives_advice(cloud, config, status, words):
    cloud.faults += [("GET", "versions", status, "refused so")] * 5
    with pytest.raises(DeployError, match=f"ML Engine would not list the versions: refused so{words}"):
        ml_engine.status(config)


def test_no_answer_and_nothing_deployed_are_reported(config):
    assert ml_engine.status(config) == []
    with pytest.raises(DeployError, match="no version is live at ML Engine"):
        ml_engine.find_address(config)
    with pytest.raises(DeployError, match="nothing to take out"):
        ml_engine.rollback(config)
    with pytest.raises(DeployError, match=r"there is no answer from http://127.0.0.1:9 \("):
        ml_engine.status(changed(config, api="http://127.0.0.1:9"))


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    written = {}
    for name, kind in (("digits.jsonl", "jsonl"), ("digits.tfrecord.gz", "tfrecord")):
        written[name] = tmp_path / name
        write_requests(DIGITS, tmp_path / name, kind)
    written["digits.tfrecord"] = tmp_path / "digits.tfrecord"
    written["digits.tfrecord"].write_bytes(gzip.decompress(written["digits.tfrecord.gz"].read_bytes()))
    return written


def results(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for file in out.glob("prediction.results-*") for line in file.read_text().splitlines()]
    return {row["metadata"]: row["label"] for row in rows}


@pytest.mark.parametrize("name", ["digits.jsonl", "digits.tfrecord", "digits.tfrecord.gz"])
def test_a_job_predicts_files_of_each_kind(cloud, config, brightness, expected, files, tmp_path, name, no_secrets):
    version = ml_engine.deploy(brightness[0], config)
    seen = []
    job = ml_engine_jobs.start_job([str(files[name])], str(tmp_path / "out"), changed(config, batch_size=8), workers=3)
    done = ml_engine_jobs.wait_for_job(job.id, config, lambda now: seen.append(now.state))
    assert (done.state, done.predicted, done.errors) == ("SUCCEEDED", 20, 0)
    assert seen == ["PREPARING", "RUNNING", "SUCCEEDED"]
    assert results(tmp_path / "out") == {answer.id: answer.label for answer in expected}
    asked = cloud.jobs[job.id]["predictionInput"]
    assert (asked["batchSize"], asked["maxWorkerCount"], asked["region"]) == ("8", "3", REGION)
    assert asked["versionName"] == f"projects/{PROJECT}/models/test_digits/versions/v{version.version}"
    assert labels(config) == {"dark"}


def test_failed_predictions_of_a_job_are_counted(config, brightness, tmp_path):
    ml_engine.deploy(brightness[0], config)
    write_requests([DIGITS[0], Request("broken", b"no image")], tmp_path / "a.jsonl", "jsonl")
    started = ml_engine_jobs.start_job([str(tmp_path / "*.jsonl")], str(tmp_path / "out"), config)
    job = ml_engine_jobs.wait_for_job(started.id, config, lambda _: None)
    assert (job.predicted, job.errors) == (1, 1)
    assert "1 predicted, 1 errors" in str(job)


def test_a_job_that_fails_or_is_cancelled_says_why(cloud, config, brightness, files, tmp_path):
    ml_engine.deploy(brightness[0], config)
    cloud.failing_jobs.append("The replica master 0 ran out of memory")
    given = ([str(files["digits.jsonl"])], str(tmp_path / "out"), config)
    started = ml_engine_jobs.start_job(*given)
    with pytest.raises(DeployError, match=f"the job {started.id} failed: The replica master 0 ran out of memory"):
        ml_engine_jobs.wait_for_job(started.id, config, lambda _: None)
    started = ml_engine_jobs.start_job(*given)
    cloud.jobs[started.id]["state"] = "CANCELLING"
    with pytest.raises(DeployError, match=f"the job {started.id} cancelled: ML Engine doesn't say why"):
        ml_engine_jobs.wait_for_job(started.id, config, lambda _: None)
    with pytest.raises(DeployError, match=r"would not say how the job none goes: .* was not found"):
        ml_engine_jobs.find_job("none", config)


@pytest.mark.parametrize("inputs", [["a.npz"], ["a.jsonl", "b.tfrecord"], ["photos/"]])
def test_a_job_takes_one_kind_of_file(config, inputs):
    with pytest.raises(ModelError, match=r"a job takes files of one kind, \.jsonl, \.tfrecord, \.tfrecord\.gz"):
        ml_engine_jobs.start_job(inputs, "out", config)


def test_googles_own_service_reads_cloud_storage_only(config):
    google = changed(config, api=None)
    with pytest.raises(ModelError, match=r"a\.jsonl: ML Engine reads and writes Cloud Storage only"):
        ml_engine_jobs.start_job(["gs://bucket/b.jsonl", "a.jsonl"], "gs://bucket/out", google)
    with pytest.raises(ValueError, match=r"path: ml_engine reads from Cloud Storage only: gs://"):
        DeployConfig(**google.model_dump())


def test_the_command_line_deploys_asks_and_runs_jobs(cloud, config, brightness, files, tmp_path):
    settings = tmp_path / "pipeline.yaml"
    settings.write_text(
        f"name: digits\ndata: {{path: {tmp_path}}}\n"
        f"deploy: {{path: {config.path}, ml_engine: {{project: {PROJECT}, region: {REGION}, api: '{cloud.url}'}}}}\n"
    )
    given = ["--target", "ml_engine", "--config", str(settings)]
    runner = CliRunner()
    assert runner.invoke(app, ["deploy", brightness[0], *given]).exit_code == 0
    asked = runner.invoke(app, ["predict", *given, str(files["digits.jsonl"])])
    assert (asked.exit_code, asked.stdout.count("dark ")) == (0, 20)
    batch = ["batch-predict", *given]
    source = [str(files["digits.jsonl"]), "--out", str(tmp_path / "out")]
    done = runner.invoke(app, [*batch, *source, "--json"])
    assert json.loads(done.stdout)["predicted"] == 20
    assert "RUNNING" in done.stderr
    started = json.loads(runner.invoke(app, [*batch, *source, "--no-wait", "--json"]).stdout)
    assert started["state"] == "QUEUED"
    looked = runner.invoke(app, [*batch, "--job", started["id"], "--no-wait"])
    assert f"job {started['id']}: PREPARING" in looked.stdout
    assert "SUCCEEDED; 20 predicted, 0 errors" in runner.invoke(app, [*batch, "--job", started["id"]]).stdout
    for wrong in ([], source[:1], [*source, "--job", "x"], [*source, "--format", "parquet"]):
        assert runner.invoke(app, [*batch, *wrong]).exit_code == 2
    cloud.failing_jobs.append("out of memory")
    failed = runner.invoke(app, [*batch, *source])
    assert (failed.exit_code, "failed: out of memory" in failed.output) == (1, True)
