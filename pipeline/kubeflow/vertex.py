"""Submits to Vertex AI Pipelines, through Google's client."""

import datetime
import re
from typing import Any

import requests
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as vertex
from google.cloud.aiplatform_v1.types import PipelineTaskDetail

from imagepipe.base.errors import ConfigError, DeployError
from imagepipe.deploy import gcp
from pipeline.kubeflow.package import Package
from pipeline.kubeflow.progress import NoAnswerError, Progress, State, Task
from pipeline.kubeflow.submit import Asked, Schedule, Submitted
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


def submit(package: Package, settings: KubeflowConfig, asked: Asked) -> Submitted:
    """See ``pipeline.kubeflow.submit.submit``."""
    place = settings.vertex
    if not place:
        raise ConfigError("kubeflow.vertex: has to be given: project and region at least")
    root = settings.pipeline_root or package.spec.default_pipeline_root
    if not root.startswith("gs://"):
        raise ConfigError("kubeflow.pipeline_root: has to be given for Vertex AI: a folder such as gs://bucket/runs")
    if package.for_kubernetes:
        raise ConfigError("this is compiled for Kubeflow: compile it again with --target vertex")
    parent = f"projects/{place.project}/locations/{place.region}"
    host = f"{place.region}-aiplatform.googleapis.com"
    given: dict[str, Any] = {
        "credentials": gcp.find_credentials(),
        "transport": "rest",
        "client_options": {"api_endpoint": place.api or host},
    }
    now = datetime.datetime.now(datetime.UTC)
    job = vertex.PipelineJob(
        display_name=asked.name or f"{package.name} {now:%Y-%m-%d %H:%M:%S}",
        pipeline_spec=package.document,
        runtime_config={"gcs_output_directory": root, "parameter_values": asked.parameters},
        labels=settings.labels,
        service_account=place.service_account or "",
    )
    if asked.schedule:
        job.display_name = name = asked.name or package.name
        with gcp.explain_errors(f"Vertex AI would not run {name} on a schedule", place):
            made, replaced = _schedule(vertex.ScheduleServiceClient(**given), parent, job, asked.schedule)
        page = f"{_CONSOLE}/{place.region}/pipelines/schedules/{_id(made)}?project={place.project}"
        return Submitted(_id(made), name, page, replaced=tuple(map(_id, replaced)))
    client = vertex.PipelineServiceClient(**given)
    job_id = f"{re.sub('[^a-z0-9]+', '-', package.name.lower()).strip('-')}-{now:%Y%m%d%H%M%S%f}"
    with gcp.explain_errors(f"Vertex AI would not run {package.name}", place):
        run = client.create_pipeline_job(parent=parent, pipeline_job=job, pipeline_job_id=job_id).name

    def look() -> Progress:
        try:
            with gcp.explain_errors(f"Vertex AI would not tell how {_id(run)} goes", place):
                return _progress(client.get_pipeline_job(name=run), package.tasks)
        except DeployError as error:
            if isinstance(error.__cause__, exceptions.ServerError | requests.exceptions.RequestException):
                raise NoAnswerError(str(error)) from error
            raise

    page = f"{_CONSOLE}/{place.region}/pipelines/runs/{_id(run)}?project={place.project}"
    return Submitted(_id(run), job.display_name, page, f"{page}, in the task's logs", look=look)


def _id(resource: str) -> str:
    return resource.rpartition("/")[2]


def _schedule(
    client: vertex.ScheduleServiceClient, parent: str, job: vertex.PipelineJob, when: Schedule
) -> tuple[str, list[str]]:
    """Makes a schedule in the place of those that this pipeline has under the name.

    Returns:
        Its resource name, and the others'.
    """
    name, pipeline = job.display_name, _pipeline(job)
    listed = client.list_schedules({"parent": parent, "filter": f'display_name="{name}"'})
    before = [each.name for each in listed if _pipeline(each.create_pipeline_job_request.pipeline_job) == pipeline]
    made = client.create_schedule(
        parent=parent,
        schedule=vertex.Schedule(
            display_name=name,
            cron=when.cron or _cron(when.seconds or 0),
            create_pipeline_job_request={"parent": parent, "pipeline_job": job},
            max_concurrent_run_count=1,
        ),
    )
    for each in before:  # only now: if this one is refused, the last goes on
        client.delete_schedule(name=each).result()
    return made.name, before


def _pipeline(job: vertex.PipelineJob) -> str:
    return str(job.pipeline_spec["pipelineInfo"]["name"]) if "pipelineInfo" in job.pipeline_spec else ""


def _cron(seconds: int) -> str:
    """An interval as a cron schedule.

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


def _progress(job: vertex.PipelineJob, tasks: dict[str, str]) -> Progress:
    """Of all that Vertex AI lists, such as the pipeline itself, its tasks."""
    seen = []
    for each in sorted(job.job_detail.task_details, key=lambda task: str(task.start_time or task.create_time)):
        if name := tasks.get(each.task_name):
            state = _TASK_STATES.get(each.state.name, "pending")
            seen.append(Task(name, state, _seconds(each), each.error.message))
    return Progress(_RUN_STATES.get(job.state.name, "pending"), tuple(seen), job.error.message)


def _seconds(task: PipelineTaskDetail) -> float | None:
    return (task.end_time - task.start_time).total_seconds() if task.end_time and task.start_time else None
