"""Submits to Kubeflow Pipelines, through kfp's client."""

import contextlib
import datetime
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials

from imagepipe.base.errors import ConfigError, UnavailableError
from imagepipe.deploy.config import is_private
from pipeline.kubeflow.package import Package
from pipeline.kubeflow.progress import NoAnswerError, Progress, State, Task
from pipeline.kubeflow.submission import Schedule, Submission, SubmittedRun
from pipeline.kubeflow_config import KubeflowConfig

TOKEN, COOKIES = "KFP_TOKEN", "KFP_COOKIES"  # environment variables; a command line is visible to everybody

_TIMEOUT = (5, 60)  # seconds to connect, and to answer
_UNAUTHENTICATED = 16  # gRPC's
_MAX_EXPERIMENTS = 10  # in a message

_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "CANCELING": "running",
    "PAUSED": "pending",
    "SUCCEEDED": "succeeded",
    "CACHED": "cached",  # which 3.0 says, and 2 does not
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELED": "canceled",
}


def submit(package: Package, settings: KubeflowConfig, submission: Submission) -> SubmittedRun:
    """See ``pipeline.kubeflow.submit.submit``."""
    if any("lifecycle" in executor.get("container", {}) for executor in package.executors):
        raise ConfigError("this is compiled for Vertex AI: compile it again with --target kubeflow")
    host = settings.host or os.environ.get("KF_PIPELINES_ENDPOINT")
    api = _Api(host, *_read_secrets(host))
    with api.explain_errors():
        client = _connect(api)
        namespace = _find_namespace(client, settings)
        experiment = _find_experiment(client, settings.experiment, namespace, submission.create_experiment)
        reference = _upload_version(client, package, namespace)
        job = {
            "experiment_id": experiment,
            "pipeline_id": reference.pipeline_id,
            "version_id": reference.pipeline_version_id,
            "params": submission.parameters,
            "pipeline_root": settings.pipeline_root,
        }
        pages = os.environ.get("KF_PIPELINES_UI_ENDPOINT", host)
        page = f"{pages.rstrip('/')}/#" if pages else None
        if submission.schedule:
            name = submission.name or package.name
            recurring, replaced = _replace_recurring_run(client, name, submission.schedule, namespace, job)
            return SubmittedRun(recurring, name, page and f"{page}/recurringrun/details/{recurring}", replaced=replaced)
        name = submission.name or f"{package.name} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        run = client.run_pipeline(job_name=name, **job).run_id

    def poll() -> Progress:
        with api.explain_errors():
            return _parse_progress(_get_run(client, run), package.tasks)

    logs = f"kubectl logs -n {namespace or 'kubeflow'} -l pipeline/runid={run} -c main --prefix --tail 50"
    return SubmittedRun(run, name, page and f"{page}/runs/details/{run}", logs, poll=poll)


class _Client(kfp.Client):
    """kfp's client, which asks for the server's health only once: the original asks five times, 5 s apart."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)


@dataclass(frozen=True)
class _Api:
    """A Kubeflow Pipelines API, and the caller's secrets.

    Attributes:
        host: its address; None for that of this cluster, or of the kubeconfig's.
        token: a bearer token; None if there is none.
        cookies: cookies of a login's session; None if there are none.
    """

    host: str | None
    token: str | None = field(repr=False)
    cookies: str | None = field(repr=False)

    def __str__(self) -> str:
        return self.host or "Kubeflow Pipelines (kubeflow.host is not set: of this cluster, or the kubeconfig's)"

    @contextlib.contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turns errors into messages for the user, and hides what kfp prints: links, shown at the end, and warnings."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except kfp_server_api.ApiException as error:
            raise self._explain_refusal(error) from None
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            message = f"{self} can't be reached: {self._remove_secrets(str(reason))}"
            if isinstance(reason, urllib3.exceptions.SSLError):
                raise UnavailableError(f"{message}. SSL_CERT_FILE names a file of other authorities to trust") from None
            raise NoAnswerError(
                f"{message}. Is the address right (kubeflow.host, --host), and a port-forward to it running?"
            ) from None

    def _explain_refusal(self, error: kfp_server_api.ApiException) -> UnavailableError:
        try:
            body = json.loads(error.body)
        except (TypeError, ValueError):
            body = None
        body = body if isinstance(body, dict) else {}
        reason = body.get("message") or body.get("error_message") or body.get("error") or error.reason
        message = self._remove_secrets(str(reason))
        if error.status == 401 or body.get("code") == _UNAUTHENTICATED:
            variable = TOKEN if self.token else COOKIES if self.cookies else ""
            advice = f"{variable} is not accepted; it may have expired" if variable else f"Set {TOKEN} to a token"
            return UnavailableError(f"{self} does not know the caller (401: {message}). {advice}")
        if error.status == 403:
            return UnavailableError(f"{self} doesn't allow it (403: {message}). Is kubeflow.namespace one of yours?")
        if error.status >= 500:
            return NoAnswerError(f"{self} can't answer now ({error.status}: {message})")
        return UnavailableError(f"{self} refuses ({error.status}: {message})")

    def _remove_secrets(self, message: str) -> str:
        """Removes the caller's secrets from a message: some servers repeat them."""
        message = re.sub(r"(?i)\b(bearer) \S+", r"\1 …", message)
        for secret in (self.token, self.cookies):
            message = message.replace(secret, "…") if secret else message
        return message.rstrip(".")


def _read_secrets(host: str | None) -> tuple[str | None, str | None]:
    """Returns token and cookies from the environment.

    Raises:
        ConfigError: if they would be sent unencrypted.
    """
    token, cookies = os.environ.get(TOKEN), os.environ.get(COOKIES)
    if token or cookies:
        name = TOKEN if token else COOKIES
        if not host:
            raise ConfigError(f"kubeflow.host: has to be given, as {name} is set")
        if not is_private(host):
            raise ConfigError(f"kubeflow.host: {host}: {name} is set, and would go there unencrypted. Give an https://")
    return token, cookies


def _connect(api: _Api) -> kfp.Client:
    """Returns a client with the caller's secrets from the environment, or in a pod its service account's token.

    Raises:
        UnavailableError: if the answer is not Kubeflow Pipelines'.
    """
    mounted = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    in_pod = api.host and not api.token and mounted.is_file() and is_private(api.host)
    with contextlib.redirect_stdout(sys.stderr):  # kfp can log in by a browser, and prints what to do
        client = _Client(
            host=api.host,
            existing_token=api.token,
            cookies=api.cookies,
            credentials=ServiceAccountTokenVolumeCredentials(str(mounted)) if in_pod else None,
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
        )
    answer = client.healthzs.healthz_service_get_healthz(_preload_content=False, _request_timeout=_TIMEOUT)
    try:
        json.loads(answer.data)
    except ValueError:
        raise UnavailableError(
            f"{api} answers with a page, not as Kubeflow Pipelines: a login's, or of another service. "
            f"Set {TOKEN} or {COOKIES}; the API's address often ends in /pipeline"
        ) from None
    return client


def _find_namespace(client: kfp.Client, settings: KubeflowConfig) -> str | None:
    """Returns the user's namespace; None if this Kubeflow has none per user, as it would refuse one.

    Raises:
        ConfigError: if one is needed and not given.
    """
    if not client.get_kfp_healthz().multi_user:
        return None
    namespace = settings.namespace or client.get_user_namespace()
    if not namespace:
        raise ConfigError("kubeflow.namespace: has to be given, as this Kubeflow has one for each user")
    return str(namespace)


def _find_experiment(client: kfp.Client, name: str, namespace: str | None, create: bool) -> str:
    """Returns the id of an experiment.

    Raises:
        ConfigError: if there is none of that name, and it is not to be created.
    """
    experiments = client.list_experiments(filter=_filter_by_name(name), namespace=namespace).experiments
    if experiments:
        return str(experiments[0].experiment_id)
    if create:
        return str(client.create_experiment(name, namespace=namespace).experiment_id)
    page = client.list_experiments(page_size=_MAX_EXPERIMENTS, sort_by="created_at desc", namespace=namespace)
    names = ", ".join(experiment.display_name for experiment in page.experiments or ()) or "none"
    raise ConfigError(
        f"kubeflow.experiment: there is no experiment {name}; there are {names}. --create-experiment makes it"
    )


def _upload_version(client: kfp.Client, package: Package, namespace: str | None) -> Any:
    """Uploads a version of the pipeline of this name, which is created if missing; unless the version exists."""
    pipelines = client.list_pipelines(filter=_filter_by_name(package.name), namespace=namespace).pipelines
    if pipelines:
        pipeline = pipelines[0]
    else:
        description = kfp_server_api.V2beta1Pipeline(
            display_name=package.name, description=package.spec.pipeline_info.description, namespace=namespace
        )
        pipeline = client.pipelines.pipeline_service_create_pipeline(description)
    page = client.list_pipeline_versions(pipeline.pipeline_id, filter=_filter_by_name(package.version))
    if page.pipeline_versions:
        return page.pipeline_versions[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_text(package.text, encoding="utf-8")
        return client.upload_pipeline_version(str(file), package.version, pipeline_id=pipeline.pipeline_id)


def _replace_recurring_run(
    client: kfp.Client, name: str, schedule: Schedule, namespace: str | None, job: dict[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Creates a recurring run in place of those that this pipeline has under the name.

    Returns:
        Its id, and the ids of those that it replaces.
    """
    replaced = [
        run.recurring_run_id
        for run in _list_recurring_runs(client, name, namespace)
        if run.pipeline_version_reference and run.pipeline_version_reference.pipeline_id == job["pipeline_id"]
    ]
    created = client.create_recurring_run(
        job_name=name,
        interval_second=schedule.seconds,
        cron_expression=f"0 {schedule.cron}" if schedule.cron else None,  # Kubeflow's have seconds first
        no_catchup=True,
        **job,
    )
    for run_id in replaced:  # only now: if the new one is refused, the old one continues
        client.delete_recurring_run(run_id)
    return str(created.recurring_run_id), tuple(replaced)


def _list_recurring_runs(client: kfp.Client, name: str, namespace: str | None) -> Iterator[Any]:
    filter_, token = _filter_by_name(name), ""
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=100, namespace=namespace, filter=filter_)
        yield from page.recurring_runs or ()
        if not (token := page.next_page_token):
            return


def _filter_by_name(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _get_run(client: kfp.Client, run: str) -> dict[str, Any]:
    """Returns a run as the server describes it, with its tasks.

    kfp's client knows neither the view, without which 3.0 leaves the tasks out, nor these. Earlier servers pass over
    the view.
    """
    answer = client.runs.api_client.call_api(
        "/apis/v2beta1/runs/{run_id}",
        "GET",
        path_params={"run_id": run},
        query_params=[("view", "FULL")],
        header_params={"Accept": "application/json"},
        response_type="object",
        auth_settings=["Bearer"],
        _return_http_data_only=True,
        _request_timeout=_TIMEOUT,
    )
    return dict(answer)


def _parse_progress(run: dict[str, Any], tasks: dict[str, str]) -> Progress:
    """Picks the pipeline's tasks out of all that Kubeflow lists, such as drivers and pods."""
    details = run.get("tasks") or (run.get("run_details") or {}).get("task_details") or []
    parsed: dict[str, Task] = {}
    for detail in sorted(details, key=lambda detail: str(detail.get("start_time") or detail.get("create_time"))):
        state, shown = _STATES.get(detail.get("state", ""), "pending"), detail.get("display_name", "")
        name = tasks.get(shown) or tasks.get(detail.get("name", ""))
        if not name and state == "failed":
            name = tasks.get(shown.removesuffix("-driver"))
        if name:
            error = detail.get("error") or detail.get("status_metadata") or {}
            parsed[name] = Task(name, state, _measure_duration(detail), error.get("message", ""))
    error = (run.get("error") or {}).get("message", "")
    return Progress(_STATES.get(run.get("state", ""), "pending"), tuple(parsed.values()), error)


def _measure_duration(task: dict[str, Any]) -> float | None:
    """Returns how many seconds a task took; None while it runs, when its end is missing or in the year 1."""
    if not task.get("start_time") or not task.get("end_time"):
        return None
    start, end = (datetime.datetime.fromisoformat(task[key]) for key in ("start_time", "end_time"))
    return (end - start).total_seconds() if end >= start else None
