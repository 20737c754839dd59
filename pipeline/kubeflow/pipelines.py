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
from pipeline.kubeflow.submit import Asked, Schedule, Submitted
from pipeline.kubeflow_config import KubeflowConfig

TOKEN, COOKIES = "KFP_TOKEN", "KFP_COOKIES"  # environment variables; a command line is seen by everybody

_TIMEOUT = (5, 60)  # seconds to connect, and to answer
_UNAUTHENTICATED = 16  # gRPC's
_LISTED = 10  # experiments, in a message

_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "CANCELING": "running",
    "PAUSED": "pending",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELED": "canceled",
}


def submit(package: Package, settings: KubeflowConfig, asked: Asked) -> Submitted:
    """See ``pipeline.kubeflow.submit.submit``."""
    if any("lifecycle" in each.get("container", {}) for each in package.executors):
        raise ConfigError("this is compiled for Vertex AI: compile it again with --target kubeflow")
    host = settings.host or os.environ.get("KF_PIPELINES_ENDPOINT")
    where = _Where(host, *_secrets(host))
    with where.in_words():
        client = _client(where)
        namespace = _namespace(client, settings)
        experiment = _experiment(client, settings.experiment, namespace, asked.create_experiment)
        reference = _version(client, package, namespace)
        common = {
            "experiment_id": experiment,
            "pipeline_id": reference.pipeline_id,
            "version_id": reference.pipeline_version_id,
            "params": asked.parameters,
            "pipeline_root": settings.pipeline_root,
        }
        pages = os.environ.get("KF_PIPELINES_UI_ENDPOINT", host)
        page = f"{pages.rstrip('/')}/#" if pages else None
        if asked.schedule:
            name = asked.name or package.name
            recurring, replaced = _recurring(client, name, asked.schedule, namespace, common)
            return Submitted(recurring, name, page and f"{page}/recurringrun/details/{recurring}", replaced=replaced)
        name = asked.name or f"{package.name} {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        run = client.run_pipeline(job_name=name, **common).run_id

    def look() -> Progress:
        with where.in_words():
            return _progress(client.runs.run_service_get_run(run, _request_timeout=_TIMEOUT), package.tasks)

    logs = f"kubectl logs -n {namespace or 'kubeflow'} -l pipeline/runid={run} -c main --prefix --tail 50"
    return Submitted(run, name, page and f"{page}/runs/details/{run}", logs, look=look)


class _Client(kfp.Client):
    """kfp's client, but it asks whether the server is there once: the original does so five times, 5 s apart."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)


class _Where:
    """A Kubeflow Pipelines API, with what proves who asks.

    Attributes:
        host: its address; None for that of this cluster, or of the kubeconfig's.
        token: a bearer token, if there is one.
        cookies: of a login's session, if there are any.
    """

    def __init__(self, host: str | None, token: str | None, cookies: str | None):
        self.host, self.token, self.cookies = host, token, cookies

    def __str__(self) -> str:
        return self.host or "Kubeflow Pipelines (kubeflow.host is not set: of this cluster, or the kubeconfig's)"

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Turns refusals into words, and keeps back what kfp prints: links, which are told at the end, and warnings."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except kfp_server_api.ApiException as error:
            raise self._refusal(error) from None
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            said = f"{self} can't be reached: {self._clean(str(reason))}"
            if isinstance(reason, urllib3.exceptions.SSLError):
                raise UnavailableError(f"{said}. SSL_CERT_FILE names a file of other authorities to trust") from None
            raise NoAnswerError(
                f"{said}. Is the address right (kubeflow.host, --host), and a port-forward to it running?"
            ) from None

    def _refusal(self, error: kfp_server_api.ApiException) -> UnavailableError:
        try:
            body = json.loads(error.body)
        except (TypeError, ValueError):
            body = None
        body = body if isinstance(body, dict) else {}
        message = body.get("message") or body.get("error_message") or body.get("error") or error.reason
        said = self._clean(str(message))
        if error.status == 401 or body.get("code") == _UNAUTHENTICATED:
            known = f"What {TOKEN} says" if self.token else f"What {COOKIES} says" if self.cookies else ""
            todo = f"{known} is not accepted; it may have expired" if known else f"Set {TOKEN} to a token"
            return UnavailableError(f"{self} doesn't know who asks (401: {said}). {todo}")
        if error.status == 403:
            return UnavailableError(f"{self} doesn't allow it (403: {said}). Is kubeflow.namespace one of yours?")
        if error.status >= 500:
            return NoAnswerError(f"{self} can't answer now ({error.status}: {said})")
        return UnavailableError(f"{self} refuses ({error.status}: {said})")

    def _clean(self, message: str) -> str:
        """A message without what proves who asks: servers do repeat it."""
        message = re.sub(r"(?i)\b(bearer) \S+", r"\1 …", message)
        for secret in (self.token, self.cookies):
            message = message.replace(secret, "…") if secret else message
        return message.rstrip(".")


def _secrets(host: str | None) -> tuple[str | None, str | None]:
    """Token and cookies of the environment.

    Raises:
        ConfigError: if they would be sent where others can read them.
    """
    token, cookies = os.environ.get(TOKEN), os.environ.get(COOKIES)
    if token or cookies:
        name = TOKEN if token else COOKIES
        if not host:
            raise ConfigError(f"kubeflow.host: has to be given, as {name} is set")
        if not is_private(host):
            raise ConfigError(f"kubeflow.host: {host}: {name} is set, and would go there unencrypted. Give an https://")
    return token, cookies


def _client(where: _Where) -> kfp.Client:
    """A client that knows who asks: by the environment, or in a pod by its service account's token.

    Raises:
        UnavailableError: if what answers is something else.
    """
    mounted = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    of_pod = where.host and not where.token and mounted.is_file() and is_private(where.host)
    with contextlib.redirect_stdout(sys.stderr):  # a login by a browser, which kfp can do, tells what to do
        client = _Client(
            host=where.host,
            existing_token=where.token,
            cookies=where.cookies,
            credentials=ServiceAccountTokenVolumeCredentials(str(mounted)) if of_pod else None,
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
        )
    answer = client.healthzs.healthz_service_get_healthz(_preload_content=False, _request_timeout=_TIMEOUT)
    try:
        json.loads(answer.data)
    except ValueError:
        raise UnavailableError(
            f"{where} answers with a page, not as Kubeflow Pipelines: a login's, or of another service. "
            f"Set {TOKEN} or {COOKIES}; the API's address often ends in /pipeline"
        ) from None
    return client


def _namespace(client: kfp.Client, settings: KubeflowConfig) -> str | None:
    """The user's namespace, where users have their own; other servers refuse one.

    Raises:
        ConfigError: if none is given and there has to be.
    """
    if not client.get_kfp_healthz().multi_user:
        return None
    namespace = settings.namespace or client.get_user_namespace()
    if not namespace:
        raise ConfigError("kubeflow.namespace: has to be given, as this Kubeflow has one for each user")
    return str(namespace)


def _experiment(client: kfp.Client, name: str, namespace: str | None, create: bool) -> str:
    """The id of an experiment.

    Raises:
        ConfigError: if there is none of that name, and it is not to be created.
    """
    found = client.list_experiments(filter=_named(name), namespace=namespace).experiments
    if found:
        return str(found[0].experiment_id)
    if create:
        return str(client.create_experiment(name, namespace=namespace).experiment_id)
    there = client.list_experiments(page_size=_LISTED, sort_by="created_at desc", namespace=namespace).experiments
    known = ", ".join(each.display_name for each in there or ()) or "none"
    raise ConfigError(
        f"kubeflow.experiment: there is no experiment {name}; there are {known}. --create-experiment makes it"
    )


def _version(client: kfp.Client, package: Package, namespace: str | None) -> Any:
    """Uploads a pipeline as a new version of the one of its name, which is made if missing; unless it is there."""
    listed = client.list_pipelines(filter=_named(package.name), namespace=namespace).pipelines
    if listed:
        pipeline = listed[0]
    else:
        described = kfp_server_api.V2beta1Pipeline(
            display_name=package.name, description=package.spec.pipeline_info.description, namespace=namespace
        )
        pipeline = client.pipelines.pipeline_service_create_pipeline(described)
    known = client.list_pipeline_versions(pipeline.pipeline_id, filter=_named(package.version)).pipeline_versions
    if known:
        return known[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_text(package.text)
        return client.upload_pipeline_version(str(file), package.version, pipeline_id=pipeline.pipeline_id)


def _recurring(
    client: kfp.Client, name: str, schedule: Schedule, namespace: str | None, common: dict[str, Any]
) -> tuple[str, tuple[str, ...]]:
    """Makes a recurring run in the place of those that this pipeline has under the name.

    Returns:
        Its id, and the others'.
    """
    before = [
        each.recurring_run_id
        for each in _all_recurring(client, name, namespace)
        if each.pipeline_version_reference and each.pipeline_version_reference.pipeline_id == common["pipeline_id"]
    ]
    made = client.create_recurring_run(
        job_name=name,
        interval_second=schedule.seconds,
        cron_expression=f"0 {schedule.cron}" if schedule.cron else None,  # Kubeflow's have seconds first
        no_catchup=True,
        **common,
    )
    for each in before:  # only now: if this one is refused, the last goes on
        client.delete_recurring_run(each)
    return str(made.recurring_run_id), tuple(before)


def _all_recurring(client: kfp.Client, name: str, namespace: str | None) -> Iterator[Any]:
    token = ""
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=100, namespace=namespace, filter=_named(name))
        yield from page.recurring_runs or ()
        if not (token := page.next_page_token):
            return


def _named(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _progress(run: Any, tasks: dict[str, str]) -> Progress:
    """Of all that Kubeflow lists, such as drivers and pods, the pipeline's tasks."""
    details = run.run_details.task_details if run.run_details else None
    seen: dict[str, Task] = {}
    for each in sorted(details or (), key=lambda detail: str(detail.start_time or detail.create_time)):
        state = _STATES.get(each.state, "pending")
        name = tasks.get(each.display_name)
        if not name and state == "failed":
            name = tasks.get(each.display_name.removesuffix("-driver"))
        if name:
            seen[name] = Task(name, state, _seconds(each), each.error.message if each.error else "")
    return Progress(_STATES.get(run.state, "pending"), tuple(seen.values()), run.error.message if run.error else "")


def _seconds(task: Any) -> float | None:
    """How long a task took; one that goes on has no end, or one in the year 1."""
    if not task.start_time or not task.end_time or task.end_time < task.start_time:
        return None
    return float((task.end_time - task.start_time).total_seconds())
