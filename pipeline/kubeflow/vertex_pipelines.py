"""Submits to Vertex AI Pipelines, through Google's client."""

import datetime
import re
from typing import Any

import requests
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as vertex

from imagepipe.base.errors import ConfigError, DeployError
from imagepipe.deploy import gcp
from pipeline.kubeflow.package import Package
from pipeline.kubeflow.progress import NoAnswerError, Progress, State, Task
from pipeline.kubeflow.submission import Schedule, Submission, SubmittedRun
from pipeline.kubeflow_config import KubeflowConfig

_CONSOLE = "https://console.cloud.google.com/vertex-ai/locations"

_RUN_STATES: dict[str, State] = {
    "PIPELINE_STATE_RUNNING": "running",
    "PIPELINE_STATE_CANCELLING": "running",
    "PIPELINE_STATE_SUCCEEDED": "succeeded",
    "PIPELINE_STATE_FAILED": "failed",
    "PIPELINE_STATE_CANCELLED": "canceled",
}
_TASK_STATES: dict[str, State] = {
    "RUNNING": "running",
    "CANCEL_PENDING": "running",
    "CANCELLING": "running",
    "SUCCEEDED": "succeeded",
    "CANCELLED": "canceled",
    "FAILED": "failed",
    "SKIPPED": "cached",
    "NOT_TRIGGERED": "skipped",
}


def submit(package: Package, settings: KubeflowConfig, submission: Submission) -> SubmittedRun:
    """See ``pipeline.kubeflow.submit.submit``."""
    location = settings.vertex
    if not location:
        raise ConfigError("kubeflow.vertex: has to be given: project and region at least")
    root = settings.pipeline_root or package.spec.default_pipeline_root
    if not root.startswith("gs://"):
        raise ConfigError("kubeflow.pipeline_root: has to be given for Vertex AI: a folder such as gs://bucket/runs")
    if package.for_kubernetes:
        raise ConfigError("this is compiled for Kubeflow: compile it again with --target vertex")
    parent = f"projects/{location.project}/locations/{location.region}"
    arguments: dict[str, Any] = {
        "credentials": gcp.find_credentials(),
        "transport": "rest",
        "client_options": {"api_endpoint": location.api or f"{location.region}-aiplatform.googleapis.com"},
    }
    now = datetime.datetime.now(datetime.UTC)
    job = vertex.PipelineJob(
        display_name=submission.name or f"{package.name} {now:%Y-%m-%d %H:%M:%S}",
        pipeline_spec=package.document,
        runtime_config={"gcs_output_directory": root, "parameter_values": submission.parameters},
        labels=settings.labels,
        service_account=location.service_account or "",
    )
    if submission.schedule:
        job.display_name = name = submission.name or package.name
        with gcp.explain_errors(f"Vertex AI would not run {name} on a schedule", location):
            schedules = vertex.ScheduleServiceClient(**arguments)
            schedule, replaced = _replace_schedule(schedules, parent, job, submission.schedule)
        id_ = _extract_id(schedule)
        page = f"{_CONSOLE}/{location.region}/pipelines/schedules/{id_}?project={location.project}"
        return SubmittedRun(id_, name, page, replaced=tuple(map(_extract_id, replaced)))
    client = vertex.PipelineServiceClient(**arguments)
    job_id = f"{re.sub('[^a-z0-9]+', '-', package.name.lower()).strip('-')}-{now:%Y%m%d%H%M%S%f}"
    with gcp.explain_errors(f"Vertex AI would not run {package.name}", location):
        run = client.create_pipeline_job(parent=parent, pipeline_job=job, pipeline_job_id=job_id).name
    run_id = _extract_id(run)

    def poll() -> Progress:
        try:
            with gcp.explain_errors(f"Vertex AI would not tell how {run_id} goes", location):
                return _parse_progress(client.get_pipeline_job(name=run), package.tasks)
        except DeployError as error:
            if isinstance(error.__cause__, exceptions.ServerError | requests.exceptions.RequestException):
                raise NoAnswerError(str(error)) from error
            raise

    page = f"{_CONSOLE}/{location.region}/pipelines/runs/{run_id}?project={location.project}"
    return SubmittedRun(run_id, job.display_name, page, f"{page}, in the task's logs", poll=poll)


def _extract_id(resource: str) -> str:
    return resource.rpartition("/")[2]


def _replace_schedule(
    client: vertex.ScheduleServiceClient, parent: str, job: vertex.PipelineJob, schedule: Schedule
) -> tuple[str, list[str]]:
    """Creates a schedule in place of those that this pipeline has under the name.

    Returns:
        Its resource name, and the resource names of those that it replaces.
    """
    name, pipeline = job.display_name, _read_pipeline_name(job)
    schedules = client.list_schedules({"parent": parent, "filter": f'display_name="{name}"'})
    replaced = [
        other.name
        for other in schedules
        if _read_pipeline_name(other.create_pipeline_job_request.pipeline_job) == pipeline
    ]
    created = client.create_schedule(
        parent=parent,
        schedule=vertex.Schedule(
            display_name=name,
            cron=schedule.cron or _convert_interval(schedule.seconds or 0),
            create_pipeline_job_request={"parent": parent, "pipeline_job": job},
            max_concurrent_run_count=1,
        ),
    )
    for resource in replaced:  # only now: if the new one is refused, the old one continues
        client.delete_schedule(name=resource).result()
    return created.name, replaced


def _read_pipeline_name(job: vertex.PipelineJob) -> str:
    return str(job.pipeline_spec["pipelineInfo"]["name"]) if "pipelineInfo" in job.pipeline_spec else ""


def _convert_interval(seconds: int) -> str:
    """Returns an interval as a cron schedule.

    Raises:
        ConfigError: if there is none, as the interval doesn't divide an hour or a day.
    """
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds == days * 86400 and days == 1:
        return "0 0 * * *"
    if seconds == hours * 3600 and hours and 24 % hours == 0:
        return f"0 */{hours} * * *"
    if minutes and 60 % minutes == 0:
        return f"*/{minutes} * * * *"
    raise ConfigError("--every: Vertex AI has cron schedules only, and this divides neither hour nor day: give --cron")


def _parse_progress(job: vertex.PipelineJob, tasks: dict[str, str]) -> Progress:
    """Picks the pipeline's tasks out of all that Vertex AI lists, such as the pipeline itself."""
    parsed = []
    for detail in sorted(job.job_detail.task_details, key=lambda task: str(task.start_time or task.create_time)):
        if name := tasks.get(detail.task_name):
            ended = detail.end_time and detail.start_time
            seconds = (detail.end_time - detail.start_time).total_seconds() if ended else None
            parsed.append(Task(name, _TASK_STATES.get(detail.state.name, "pending"), seconds, detail.error.message))
    return Progress(_RUN_STATES.get(job.state.name, "pending"), tuple(parsed), job.error.message)
