"""Stands in for Vertex AI Pipelines' API (v1) on loopback: pipeline jobs and schedules.

Every body is read into the API's own message types, the pipeline into KFP's ``PipelineSpec``, and parameters are
checked against its declarations. A job advances by one step each time that it is read.
"""

import datetime
import re
from collections.abc import Callable
from typing import Any

from google.cloud import aiplatform_v1 as vertex
from google.protobuf import json_format
from google.rpc import status_pb2
from kfp.pipeline_spec import pipeline_spec_pb2 as ir

from tests.standins.google import PROJECT, PROJECT_NUMBER, REGION, Accounts, Api, Json, RefusedError
from tests.standins.kfp import START, STEP, TYPES, order_tasks

LOCATION = f"projects/{PROJECT}/locations/{REGION}"
_NAMED = f"projects/{PROJECT_NUMBER}/locations/{REGION}"  # in answers, Google names projects by their numbers
_PAGE = 1
_State = vertex.PipelineTaskDetail.State


class VertexPipelines(Api):
    """The service's state, for tests to look at and to set.

    Attributes:
        jobs: ``PipelineJob`` messages by id.
        schedules: ``Schedule`` messages by id.
        failing: error messages by task.
        cached: tasks whose results are in the cache.
    """

    def __init__(self, account: Accounts):
        super().__init__(account)
        self.jobs: dict[str, vertex.PipelineJob] = {}
        self.schedules: dict[str, vertex.Schedule] = {}
        self.failing: dict[str, str] = {}
        self.cached: set[str] = set()
        self._reads: dict[str, int] = {}

    def routes(self) -> dict[tuple[str, str], Callable[..., Json]]:
        """See ``Api``."""
        either = f"/v1/(?:{LOCATION}|{_NAMED})"
        return {
            ("POST", f"{either}/pipelineJobs"): self._create_job,
            ("GET", f"{either}/pipelineJobs/([^/]+)"): self._get_job,
            ("POST", f"{either}/schedules"): self._create_schedule,
            ("GET", f"{either}/schedules"): self._list_schedules,
            ("DELETE", f"{either}/schedules/([^/]+)"): self._delete_schedule,
            ("GET", f"/(?:v1|ui)/({_NAMED}/operations/[0-9]+)"): lambda name, query, body: self.operations.get(name),
        }

    def _create_job(self, query: Json, body: Json) -> Json:
        job, id_ = _parse(body, vertex.PipelineJob), query["pipelineJobId"]
        if not re.fullmatch("[a-z][-a-z0-9]{0,127}", id_):
            raise RefusedError(400, f"{id_} is no id of a pipeline job")
        _check(job)
        job.name = f"{_NAMED}/pipelineJobs/{id_}"
        self.jobs[id_], self._reads[id_] = job, 0
        return _to_json(job)

    def _get_job(self, id_: str, query: Json, body: Json) -> Json:
        if id_ not in self.jobs:
            raise RefusedError(404, f"PipelineJob {id_} does not exist.")
        now, job = self._reads[id_], self.jobs[id_]
        self._reads[id_] += 1
        details, ends = [_create_detail(id_, 0, None, now)], dict[str, int | None]()
        spec = _read_spec(job)
        for name, needed in order_tasks(spec):
            ready = [ends[task] for task in needed]
            if None in ready:
                ends[name] = None
                details.append(vertex.PipelineTaskDetail(task_name=name, state=_State.NOT_TRIGGERED))
                continue
            start = max([1, *(end for end in ready if end is not None)])
            ends[name] = None if name in self.failing else start + 1
            detail = _create_detail(name, start, start + 1, now)
            if detail.state == _State.SUCCEEDED and name in self.cached:
                detail.state = _State.SKIPPED
            elif detail.state == _State.SUCCEEDED and name in self.failing:
                detail.state = _State.FAILED
                detail.error = status_pb2.Status(code=9, message=self.failing[name])
            detail.task_name = spec.root.dag.tasks[name].task_info.name  # Vertex AI knows tasks by these
            details.append(detail)
        running = [detail for detail in details[1:] if detail.state in (_State.PENDING, _State.RUNNING)]
        failed = [detail.task_name for detail in details if detail.state == _State.FAILED]
        if now and not running:
            job.state = vertex.PipelineState.PIPELINE_STATE_FAILED if failed else "PIPELINE_STATE_SUCCEEDED"
            if failed:
                job.error = status_pb2.Status(code=9, message=f"The DAG failed because some tasks failed: {failed}")
        else:
            job.state = "PIPELINE_STATE_RUNNING" if now else "PIPELINE_STATE_PENDING"
        listed = [detail for detail in details[::-1] if detail.state != _State.PENDING]
        job.job_detail = vertex.PipelineJobDetail(task_details=listed)
        return _to_json(job)

    def _create_schedule(self, query: Json, body: Json) -> Json:
        schedule = _parse(body, vertex.Schedule)
        if len(schedule.cron.split()) != 5:
            raise RefusedError(400, f"Invalid cron expression: {schedule.cron}")
        if schedule.max_concurrent_run_count < 1 or schedule.create_pipeline_job_request.parent != LOCATION:
            raise RefusedError(400, "max_concurrent_run_count and the job's parent are required.")
        _check(schedule.create_pipeline_job_request.pipeline_job)
        id_ = str(len(self.schedules) + 1000)
        schedule.name = f"{_NAMED}/schedules/{id_}"
        schedule.state = vertex.Schedule.State.ACTIVE
        self.schedules[id_] = schedule
        return _to_json(schedule)

    def _list_schedules(self, query: Json, body: Json) -> Json:
        wanted = re.fullmatch('display_name="(.*)"', query["filter"])
        assert wanted, query
        schedules = [schedule for schedule in self.schedules.values() if schedule.display_name == wanted[1]]
        first = int(query.get("pageToken") or 0)
        listed = vertex.ListSchedulesResponse(schedules=schedules[first : first + _PAGE])
        listed.next_page_token = str(first + _PAGE) if len(schedules) > first + _PAGE else ""
        return _to_json(listed)

    def _delete_schedule(self, id_: str, query: Json, body: Json) -> Json:
        def delete() -> Json:
            del self.schedules[id_]
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self.operations.start(_NAMED, "deleteSchedule", delete, {})


def _check(job: vertex.PipelineJob) -> None:
    """Refuses a job that Vertex AI would not run."""
    spec = _read_spec(job)
    if not job.runtime_config.gcs_output_directory.startswith("gs://"):
        raise RefusedError(400, "runtime_config.gcs_output_directory has to be a folder of Cloud Storage.")
    if spec.schema_version < "2.1.0" or not job.display_name:
        raise RefusedError(400, "parameter_values need schema version 2.1.0; the display name is required.")
    if not all(re.fullmatch("[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}", f"{k}={v}") for k, v in job.labels.items()):
        raise RefusedError(400, f"labels are invalid: {dict(job.labels)}")
    declared = spec.root.input_definitions.parameters
    values = json_format.MessageToDict(job._pb.runtime_config).get("parameterValues", {})
    for name, value in values.items():
        if name not in declared or not isinstance(value, TYPES[declared[name].parameter_type] + (float,)):
            raise RefusedError(400, f"the parameter {name} is of the wrong type, or unknown: {value!r}")
    for name, parameter in declared.items():
        if not (parameter.is_optional or parameter.HasField("default_value") or name in values):
            raise RefusedError(400, f"the parameter {name} has neither a value nor a default")


def _read_spec(job: vertex.PipelineJob) -> ir.PipelineSpec:
    document = json_format.MessageToDict(job._pb.pipeline_spec)
    for executor in document["deploymentSpec"]["executors"].values():
        executor["container"].pop("lifecycle", None)  # Vertex AI's own
    try:
        return json_format.ParseDict(document, ir.PipelineSpec())
    except json_format.ParseError as error:
        raise RefusedError(400, f"pipeline_spec is invalid: {error}") from error


def _create_detail(name: str, start: int, end: int | None, now: int) -> vertex.PipelineTaskDetail:
    detail = vertex.PipelineTaskDetail(task_name=name, state=_State.PENDING, create_time=START)
    if now >= start:
        detail.state, detail.start_time = _State.RUNNING, START + datetime.timedelta(seconds=STEP * start)
    if end is not None and now >= end:
        detail.state, detail.end_time = _State.SUCCEEDED, START + datetime.timedelta(seconds=STEP * end)
    return detail


def _parse(body: Json, kind: Any) -> Any:
    try:
        return kind.wrap(json_format.ParseDict(body, kind.pb()()))
    except json_format.ParseError as error:
        raise RefusedError(400, f"Invalid JSON payload received. {error}") from error


def _to_json(message: Any) -> Json:
    return json_format.MessageToDict(type(message).pb(message))
