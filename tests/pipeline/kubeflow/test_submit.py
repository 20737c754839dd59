"""Submitting, by the command line and the real clients, to stand-ins on loopback."""

import datetime
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kfp import compiler, dsl
from typer.testing import CliRunner

from imagepipe.base.errors import ConfigError
from pipeline import cli
from pipeline.demo import write_config
from pipeline.kubeflow.package import parse_package, parse_parameters
from tests.standins import google, vertex_pipelines
from tests.standins import kfp as kubeflow

TOKEN = "eyJhbGciOiJSUzI1NiJ9.secret.part"  # noqa: S105 (of nobody)
CONFIG = """\
name: digits
data: {path: /data/digits}
kubeflow:
"""


@dsl.container_component
def step(epochs: int, note: str):
    return dsl.ContainerSpec(image="example/imagepipe", command=["echo"], args=[epochs, note])


@dsl.pipeline(name="digits", description="Digits.")
def digits(path: str, epochs: int = 3, rate: float = 0.5, verbose: bool = False, names: list = []):  # noqa: B006
    first = step(epochs=epochs, note=path)
    second = step(epochs=epochs, note=path).after(first)
    step(epochs=epochs, note=path).after(second)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A compiled pipeline: step, step-2 after it, and step-3 after that."""
    path = tmp_path_factory.mktemp("package") / "compiled.yaml"
    compiler.Compiler().compile(digits, str(path))
    return path


@pytest.fixture
def kfp():
    with kubeflow.serve_pipelines() as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch, kfp):
    """A folder with a configuration for the server; nobody else's settings."""
    (tmp_path / "pipeline.yaml").write_text(f"{CONFIG}  host: {kfp.url}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(cli.clusters, "POLL_SECONDS", 0)
    return tmp_path


@pytest.fixture
def submit(project, package):
    """Calls ``imagepipe submit`` with the package."""

    def call(*args: str, status: int = 0):
        result = CliRunner().invoke(cli.app, ["submit", str(package), "--param", "path=/d", *args])
        lines = " ".join(result.stderr.split())
        assert result.exit_code == status, f"{result.exit_code}: {result.output} {result.exception!r}"
        return result.stdout, lines

    return call


def test_a_run_of_a_new_version_is_created_and_its_page_is_printed(kfp, submit):
    output, _ = submit("--param", "epochs=5", "--run-name", "nightly")
    ((run_id, run),) = kfp.runs.items()
    assert output.strip() == f"Run {run_id} (nightly): {kfp.url}/#/runs/details/{run_id}"
    assert run["runtime_config"]["parameters"] == {"path": "/d", "epochs": 5}
    assert [pipeline["display_name"] for pipeline in kfp.pipelines.values()] == ["digits"]
    assert run["pipeline_version_reference"]["pipeline_version_id"] in kfp.versions
    (experiment,) = kfp.experiments.values()
    assert run["experiment_id"] == experiment["experiment_id"]


def test_what_has_not_changed_is_no_new_version_and_what_has_is_one(kfp, submit, package, tmp_path):
    submit()
    submit()
    assert len(kfp.versions) == 1
    changed = tmp_path / "changed.yaml"
    changed.write_text(package.read_text().replace("example/imagepipe", "example/imagepipe:2"))
    assert CliRunner().invoke(cli.app, ["submit", str(changed), "--param", "path=/d"]).exit_code == 0
    assert len(kfp.pipelines) == 1
    assert len(kfp.versions) == 2
    assert len(kfp.runs) == 3


def test_a_compiled_pipeline_needs_no_configuration_beside_it(kfp, submit, project):
    (project / "pipeline.yaml").unlink()
    submit("--host", kfp.url, "--set", "kubeflow.pipeline_root=gs://bucket/runs")
    assert len(kfp.runs) == 1
    _, lines = submit("--host", kfp.url, "--set", "kubeflow.pipeline_root=[a]", status=2)
    assert "--set: kubeflow.pipeline_root: Input should be a valid string" in lines


def test_waiting_shows_each_task_begin_and_end(kfp, submit):
    output = json.loads(submit("--wait", "--json")[0])
    _, lines = submit("--wait")
    assert "step: running step: succeeded, 60 s step-2: running step-2: succeeded, 60 s step-3: running" in lines
    assert "driver" not in lines
    assert "executor" not in lines
    assert output["state"] == "succeeded"
    assert [(task["name"], task["state"], task["seconds"]) for task in output["tasks"]] == [
        ("step", "succeeded", 60),
        ("step-2", "succeeded", 60),
        ("step-3", "succeeded", 60),
    ]
    assert output["id"] in kfp.runs
    assert output["pipeline"] == "digits"


@pytest.mark.parametrize("why", ["driver", "the task"])
def test_a_run_that_fails_says_which_task_and_where_its_log_is(kfp, submit, why):
    kfp.failing["step-2"] = why
    output, lines = submit("--wait", "--json", status=1)
    (run_id,) = kfp.runs
    assert "the run failed: step-2 failed" in lines
    assert f"kubectl logs -n kubeflow -l pipeline/runid={run_id} -c main" in lines
    tasks = {task["name"]: task["state"] for task in json.loads(output)["tasks"]}
    assert tasks == {"step": "succeeded", "step-2": "failed", "step-3": "skipped"}


def test_version_3_shows_its_tasks_those_from_its_cache_and_why_one_failed(kfp, submit):
    kfp.is_version_3 = True
    kfp.cached = {"step"}
    _, lines = submit("--wait")
    assert "step: running step: cached, 60 s step-2: running step-2: succeeded, 60 s step-3: running" in lines
    kfp.failing["step-2"] = "the task"
    _, lines = submit("--wait", status=1)
    assert "the run failed: step-2 failed: OOMKilled" in lines


def test_a_server_that_is_away_for_a_moment_ends_no_wait(kfp, submit):
    kfp.faults = [("GET", "/runs/", 503, "upstream connect error")] * 3
    _, lines = submit("--wait")
    assert "step-3: succeeded" in lines


def test_a_token_that_expires_ends_a_wait_with_a_message(kfp, submit):
    kfp.faults = [("GET", "/runs/", 401, "Jwt is expired")]
    _, lines = submit("--wait", status=1)
    assert "(401: Jwt is expired)" in lines


def test_a_server_that_stays_away_ends_a_wait(kfp, submit, monkeypatch):
    monkeypatch.setattr("pipeline.kubeflow.progress._PATIENCE", 0)
    kfp.faults = [("GET", "/runs/", 503, "upstream connect error")] * 2
    _, lines = submit("--wait", status=1)
    assert "can't answer now (503: upstream connect error)" in lines


def test_recurring_runs_replace_ours_of_the_name_and_no_others(kfp, submit):
    output, _ = submit("--every", "6h")
    ((first, recurring),) = kfp.recurring.items()
    assert recurring["trigger"] == {"periodic_schedule": {"interval_second": 21600}}
    assert (recurring["mode"], recurring["no_catchup"], recurring["max_concurrency"]) == ("ENABLE", True, 1)
    assert f"{kfp.url}/#/recurringrun/details/{first}" in output
    submit("--every", "30m", "--run-name", "often")
    others = {"other": recurring | {"recurring_run_id": "other"}}
    others["other"]["pipeline_version_reference"] = {"pipeline_id": "p", "pipeline_version_id": "v"}
    kfp.recurring.update(others)
    output, _ = submit("--cron", "0 2 * * *", "--json")
    assert json.loads(output)["replaced"] == [first]
    assert sorted((run["display_name"], str(run["trigger"])) for run in kfp.recurring.values()) == [
        ("digits", "{'cron_schedule': {'cron': '0 0 2 * * *'}}"),
        ("digits", "{'periodic_schedule': {'interval_second': 21600}}"),
        ("often", "{'periodic_schedule': {'interval_second': 1800}}"),
    ]
    assert not kfp.runs


def test_a_recurring_run_that_is_refused_leaves_the_last_in_place(kfp, submit):
    submit("--every", "6h")
    original = dict(kfp.recurring)
    kfp.faults = [("POST", "/recurringruns", 400, "quota of recurring runs exceeded")]
    _, lines = submit("--every", "1h", status=1)
    assert "(400: quota of recurring runs exceeded)" in lines
    assert kfp.recurring == original


def test_an_unknown_experiment_is_created_only_on_request(kfp, submit):
    _, lines = submit("--experiment", "nightyl", status=2)
    assert "there is no experiment nightyl; there are Default. --create-experiment makes it" in lines
    assert not kfp.pipelines
    submit("--experiment", "nightly", "--create-experiment")
    submit("--experiment", "nightly")
    assert [experiment["display_name"] for experiment in kfp.experiments.values()] == ["Default", "nightly"]


def test_where_users_have_namespaces_theirs_has_to_be_given(kfp, submit, project):
    kfp.multi_user = True
    kfp.experiments.clear()
    kfp.add_experiment("Default")
    assert "kubeflow.namespace: has to be given" in submit(status=2)[1]
    _, lines = submit("--set", "kubeflow.namespace=else", status=1)
    assert "(403: User 'ann@example.com' is not authorized in namespace 'else')" in lines
    submit("--set", f"kubeflow.namespace={kubeflow.PROFILE}")
    assert len(kfp.runs) == 1
    assert [pipeline["namespace"] for pipeline in kfp.pipelines.values()] == [kubeflow.PROFILE]


def test_a_namespace_is_not_sent_to_a_server_without_users(kfp, submit):
    submit("--set", "kubeflow.namespace=kubeflow")
    assert len(kfp.runs) == 1


def test_the_token_of_the_environment_is_sent_and_never_shown(kfp, submit, monkeypatch):
    kfp.token = TOKEN
    _, lines = submit(status=1)
    assert "does not know the caller" in lines
    assert "Set KFP_TOKEN to a token" in lines
    monkeypatch.setenv("KFP_TOKEN", f"{TOKEN}.old")
    output, lines = submit(status=1)
    assert "KFP_TOKEN is not accepted; it may have expired" in lines
    assert "Jwt verification fails: Bearer …" in lines
    assert TOKEN not in output + lines
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    output, lines = submit("--wait")
    assert TOKEN not in output + lines
    assert len(kfp.runs) == 1


def test_a_token_goes_nowhere_unencrypted(submit, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    _, lines = submit("--host", "http://kubeflow.example/pipeline", status=2)
    assert "kubeflow.host: http://kubeflow.example/pipeline: KFP_TOKEN is set, and would go there unencrypted" in lines


def test_the_token_of_a_pod_is_used_and_read_again(kfp, submit, monkeypatch, tmp_path):
    kfp.token = TOKEN
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    submit("--wait")
    assert len(kfp.runs) == 1
    (tmp_path / "token").write_text(f"{TOKEN}.old")
    output, lines = submit(status=1)
    assert "Jwt verification fails: Bearer …" in lines
    assert TOKEN not in output + lines


def test_a_missing_server_is_reported_at_once(submit, kfp):
    _, lines = submit("--host", "http://127.0.0.1:9", status=1)
    assert "http://127.0.0.1:9 can't be reached" in lines
    assert "Traceback" not in lines
    assert not kfp.calls


def test_an_untrusted_certificate_is_named(submit, tmp_path):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "tls.pem").write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        _, lines = submit("--host", f"https://127.0.0.1:{server.server_port}", status=1)
        server.shutdown()
        thread.join()
    assert "CERTIFICATE_VERIFY_FAILED" in lines
    assert "SSL_CERT_FILE names a file of other authorities to trust" in lines


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("GET", "/healthz", 503, "no healthy upstream"), "can't answer now (503: no healthy upstream)"),
        (("GET", "/experiments", 403, "RBAC: access denied"), "doesn't allow it (403: RBAC: access denied)"),
        (("POST", "/upload_version", 400, "unknown template format"), "refuses (400: unknown template format)"),
        (("POST", "/runs", 500, "workflow quota"), "can't answer now (500: workflow quota)"),
    ],
)
def test_refusals_are_explained(kfp, submit, fault, message):
    kfp.faults = [fault]
    _, lines = submit(status=1)
    assert message in lines
    assert not kfp.runs


def test_a_login_page_in_front_of_kubeflow_is_recognised(kfp, submit):
    kfp.login_page = True
    _, lines = submit(status=1)
    assert "answers with a page, not as Kubeflow Pipelines" in lines
    assert "KFP_COOKIES" in lines


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--param", "epoch=5"], "digits has no parameter epoch; it has epochs, names, path, rate, verbose"),
        (["--param", "epochs"], "expected NAME=VALUE"),
        (["--param", "epochs=5.5"], "5.5 is no whole number"),
        (["--param", "rate=nan"], "nan is no number"),
        (["--param", "verbose=1"], "1 is no true or false"),
        (["--param", "names=a,b"], "a,b is no list in JSON"),
        (["--every", "6 hours"], "expected a number of minutes, hours or days"),
        (["--cron", "0 0 2 * * *"], "expected minute, hour, day, month and weekday"),
        (["--cron", "0 2 * * *", "--every", "1d"], "give one of them"),
        (["--every", "1d", "--wait"], "there is no end to wait for"),
        (["--set", "trainer.epochs=5"], "is compiled already"),
        (["--set", "kubeflow.image=x"], "is compiled already"),
        (["--set", "kubeflow.labels.team=blue"], "is compiled already"),
        (["--monitor"], "--monitor: "),
        (["--host", "kubeflow.example"], "kubeflow.example is no address such as https://"),
        (["--config", "no.yaml"], "no.yaml: No such file"),
        (["--target", "vertex", "--host", "http://127.0.0.1"], "are options for Kubeflow"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_created(kfp, submit, args, message):
    _, lines = submit(*args, status=2)
    assert message in lines.replace("│ ", "")
    assert not [call for call in kfp.calls if not call.startswith("GET")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epochs=0", "greater than or equal to 1"),
        ("batch_size=-3", "greater than or equal to 1"),
        ("threshold_accuracy=90", "it can't be reached; it lies between 0 and 1"),
        ("data_path=", "at least 1 character"),
        ("since=week", "match pattern"),
        ("max_share=2", "less than or equal to 1"),
        ("epochs=1", None),
        ("threshold_accuracy=0.9", None),
        ("threshold_log_loss=3", None),
        ("since=12h", None),
    ],
)
def test_a_parameter_that_the_configuration_would_refuse_is_refused(argument, message):
    types = {
        **dict.fromkeys(("epochs", "batch_size"), "NUMBER_INTEGER"),
        **dict.fromkeys(("threshold_accuracy", "threshold_log_loss", "max_share"), "NUMBER_DOUBLE"),
        **dict.fromkeys(("data_path", "since"), "STRING"),
    }
    parameters = {name: {"parameterType": type_, "isOptional": True} for name, type_ in types.items()}
    package = parse_package(json.dumps({"root": {"inputDefinitions": {"parameters": parameters}}}), "compiled.yaml")
    if message is None:
        assert parse_parameters(package, [argument])
        return
    with pytest.raises(ConfigError, match=rf"--param {argument}: .*{message}"):
        parse_parameters(package, [argument])


def test_parameters_have_the_types_that_the_pipeline_declares(kfp, submit):
    submit("--param", "rate=1", "--param", "verbose=TRUE", "--param", 'names=["x", "y"]', "--param", "path=7")
    (run,) = kfp.runs.values()
    assert run["runtime_config"]["parameters"] == {"path": "7", "rate": 1.0, "verbose": True, "names": ["x", "y"]}


def test_a_parameter_without_a_default_has_to_be_given(project, package, kfp):
    result = CliRunner().invoke(cli.app, ["submit", str(package)])
    assert result.exit_code == 2
    assert "--param: path has to be given, as it has no default" in " ".join(result.stderr.split())


def test_what_is_compiled_for_vertex_ai_is_not_given_to_kubeflow(kfp, project, package):
    text = package.read_text().replace("      container:\n", "      container:\n        lifecycle: {}\n")
    (project / "vertex.yaml").write_text(text)
    result = CliRunner().invoke(cli.app, ["submit", "vertex.yaml", "--param", "path=/d"])
    assert result.exit_code == 2
    assert "compile it again with --target kubeflow" in " ".join(result.stderr.split())


def test_a_package_that_kfp_can_not_read_is_refused(project, package):
    (project / "odd.yaml").write_text(package.read_text() + "surplus: 1\n")
    result = CliRunner().invoke(cli.app, ["submit", "odd.yaml"])
    assert result.exit_code == 2
    assert "odd.yaml is no compiled pipeline" in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    with google.run_token_endpoint(tmp_path_factory.mktemp("google")) as account:
        yield account


@pytest.fixture
def vertex(account, project, monkeypatch):
    """Vertex AI Pipelines, and a configuration for it."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account.key_file))
    api = vertex_pipelines.VertexPipelines(account)
    with google.serve_api(api):
        text = f"""{CONFIG}\
  pipeline_root: gs://bucket/runs
  labels: {{team: vision}}
  vertex: {{project: {google.PROJECT}, region: {google.REGION}, service_account: sa@x, api: "{api.url}"}}
"""
        (project / "pipeline.yaml").write_text(text)
        yield api


@pytest.fixture
def submit_to_vertex(vertex, submit, account):
    def call(*args: str, status: int = 0):
        output, lines = submit("--target", "vertex", *args, status=status)
        assert not any(secret in output + lines for secret in account.secrets)
        return output, lines

    return call


def test_vertex_ai_gets_a_job_of_the_package_and_its_page_is_printed(vertex, submit_to_vertex):
    output, _ = submit_to_vertex("--param", "epochs=5", "--run-name", "nightly")
    ((job_id, job),) = vertex.jobs.items()
    console = "https://console.cloud.google.com/vertex-ai/locations"
    assert (
        output.strip()
        == f"Run {job_id} (nightly): {console}/{google.REGION}/pipelines/runs/{job_id}?project={google.PROJECT}"
    )
    assert dict(job.runtime_config.parameter_values) == {"path": "/d", "epochs": 5}
    assert job.runtime_config.gcs_output_directory == "gs://bucket/runs"
    assert (dict(job.labels), job.service_account) == ({"team": "vision"}, "sa@x")
    assert job.pipeline_spec["pipelineInfo"]["name"] == "digits"


def test_vertex_ai_reports_cached_tasks_and_how_each_task_ends(vertex, submit_to_vertex):
    vertex.cached = {"step"}
    vertex.faults = [("GET", "/pipelineJobs/", 503, "The service is currently unavailable.")]
    output, lines = submit_to_vertex("--wait", "--json")
    assert "step: running step: cached, 60 s step-2: running step-2: succeeded, 60 s" in lines
    assert [(t["name"], t["state"]) for t in json.loads(output)["tasks"]] == [
        ("step", "cached"),
        ("step-2", "succeeded"),
        ("step-3", "succeeded"),
    ]


def test_vertex_ai_reports_which_task_failed_and_why(vertex, submit_to_vertex):
    vertex.failing["step-2"] = "The replica workerpool0-0 ran out-of-memory"
    _, lines = submit_to_vertex("--wait", status=1)
    assert "the run failed: step-2 failed: The replica workerpool0-0 ran out-of-memory" in lines
    assert "/pipelines/runs/digits-" in lines


@pytest.mark.parametrize(
    ("args", "cron"),
    [
        (["--every", "6h"], "0 */6 * * *"),
        (["--cron", "0 2 * * *"], "0 2 * * *"),
    ],
)
def test_vertex_ai_gets_a_schedule_in_place_of_ours_of_the_name(vertex, submit_to_vertex, args, cron):
    submit_to_vertex("--every", "1h")
    submit_to_vertex("--every", "1h", "--run-name", "often")
    other = type(vertex.schedules["1000"])(vertex.schedules["1000"])
    other.create_pipeline_job_request.pipeline_job.pipeline_spec["pipelineInfo"]["name"] = "other"
    vertex.schedules["7"] = other
    output = json.loads(submit_to_vertex(*args, "--json")[0])
    assert output["replaced"] == ["1000"]
    assert sorted((s.display_name, s.cron) for s in vertex.schedules.values()) == sorted(
        [("digits", cron), ("often", "0 */1 * * *"), ("digits", "0 */1 * * *")]
    )
    assert not vertex.jobs


def test_intervals_are_cron_schedules_at_vertex_ai(vertex, submit_to_vertex):
    for every in ("1d", "15m", "1h"):
        submit_to_vertex("--every", every, "--run-name", every)
    assert [schedule.cron for schedule in vertex.schedules.values()] == ["0 0 * * *", "*/15 * * * *", "0 */1 * * *"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--every", "7h"], "Vertex AI has cron schedules only"),
        (["--set", "kubeflow.vertex=null"], "kubeflow.vertex: has to be given"),
        (["--set", "kubeflow.pipeline_root=null"], "kubeflow.pipeline_root: has to be given for Vertex AI"),
        (["--set", "kubeflow.vertex.api=http://example.com"], "an access token goes there: https:// only"),
    ],
)
def test_what_vertex_ai_can_not_do_is_refused_by_key(vertex, submit_to_vertex, args, message):
    assert message in submit_to_vertex(*args, status=2)[1]
    assert not vertex.schedules


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "Permission 'aiplatform.pipelineJobs.create' denied"), (429, "Quota exceeded"), (404, "Region not found")],
)
def test_refusals_of_vertex_ai_are_explained(vertex, submit_to_vertex, status, message):
    vertex.faults = [("POST", "/pipelineJobs", status, message)]
    _, lines = submit_to_vertex(status=1)
    assert f"Vertex AI would not run digits: {message}" in lines
    assert not vertex.jobs


def test_without_credentials_google_is_not_asked(vertex, submit_to_vertex, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "gcloud auth application-default login" in submit_to_vertex(status=1)[1]
    assert not vertex.calls


def test_what_is_compiled_for_kubeflow_is_not_given_to_vertex_ai(vertex, project, package):
    (project / "kubernetes.yaml").write_text(f"{package.read_text()}---\nplatforms: {{kubernetes: {{}}}}\n")
    args = ["submit", "kubernetes.yaml", "--target", "vertex", "--param", "path=/d"]
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 2
    assert "compile it again with --target vertex" in " ".join(result.stderr.split())


@pytest.fixture
def demo(project):
    """The demo's configuration in place of the package: it is compiled before it is submitted."""
    (project / "demo").mkdir()
    path = write_config(project / "demo")

    def call(config: str, *args: str):
        path.write_text(f"{path.read_text()}deploy: {{path: gs://bucket/serving}}\n{config}")
        return CliRunner().invoke(cli.app, ["submit", str(path), *args])

    return call


def test_a_configuration_is_compiled_and_run_on_kubeflow(kfp, demo):
    volumes = "image: example/imagepipe, volumes: [{claim: data, path: /data}]"
    result = demo(f"kubeflow: {{host: '{kfp.url}', {volumes}}}\n", "--param", "epochs=2", "--wait")
    assert result.exit_code == 0, result.output
    (run,) = kfp.runs.values()
    assert run["runtime_config"]["parameters"] == {"epochs": 2}
    assert "import-example-gen: succeeded, 60 s" in result.stderr
    assert "pusher: succeeded, 60 s" in result.stderr
    assert "kubeflow.image: example/imagepipe may be another image after the next build" in result.stderr


def test_a_configuration_is_compiled_and_run_on_vertex_ai(vertex, demo, project):
    place = (project / "pipeline.yaml").read_text().partition("kubeflow:")[2]
    data = ("--set", "data.path=gs://bucket/dataset")
    result = demo(f"kubeflow:{place}  image: example/imagepipe\n", "--target", "vertex", "--wait", *data)
    assert result.exit_code == 0, result.output
    assert "trainer: succeeded, 60 s" in result.stderr
    (job,) = vertex.jobs.values()
    assert job.pipeline_spec["pipelineInfo"]["name"] == "digits"


def test_without_an_image_nothing_is_submitted(kfp, demo):
    result = demo(f"kubeflow: {{host: '{kfp.url}'}}\n")
    assert result.exit_code == 2
    assert "kubeflow.image: has to be given" in result.stderr
    assert not kfp.calls
