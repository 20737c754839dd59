"""Stands in for Kubeflow Pipelines' API server (v2beta1) on loopback, as far as ``kfp.Client`` and we use it.

It checks what it is sent against the API's own types: bodies against the models of ``kfp_server_api``, packages
against ``PipelineSpec`` and ``PlatformSpec``, parameters against the package's declarations. A run advances by one step
each time that it is read, and lists what the real server lists: the root, drivers, tasks and their pods, in no order,
without errors of tasks (kubeflow/pipelines #14007). As version 3 it lists tasks only, and only on request.
"""

import contextlib
import datetime
import email.parser
import email.policy
import json
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as ir

from tests.standins.google import RefusedError, run_server

PROFILE = "vision-team"
STEP = 60  # seconds that a step takes, by the clock of this server
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_NEVER = "0001-01-01T00:00:00Z"  # the server's way to write an unknown time
_INT64 = ("max_concurrency", "interval_second")  # strings or numbers, in the JSON of protocol buffers
_CRON_FIELDS = 6
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 503: 14}  # gRPC's


class KubeflowPipelines:
    """The server's state, for tests to look at and to set.

    Attributes:
        url: its address.
        token: the token that it accepts; None for no authentication.
        multi_user: whether users have namespaces; there is one, ``PROFILE``.
        failing: what fails, the driver or the task, by task.
        cached: tasks whose results are in the cache, which version 3 says.
        faults: ``(method, part of the path, status, message)``: refusals, one per request that matches.
        is_version_3: whether its API is that of 3.0.
        login_page: whether it sends everybody to a login page, as an identity-aware proxy does.
        calls: methods and paths of the requests, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.token: str | None = None
        self.multi_user = False
        self.login_page = False
        self.is_version_3 = False
        self.failing: dict[str, str] = {}
        self.cached: set[str] = set()
        self.faults: list[tuple[str, str, int, str]] = []
        self.calls: list[str] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, ir.PipelineSpec] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.recurring: dict[str, dict[str, Any]] = {}
        self.steps: dict[str, int] = {}
        self.lock = threading.Lock()

    def add_experiment(self, name: str) -> None:
        experiment = {"experiment_id": _id(), "display_name": name, "namespace": PROFILE if self.multi_user else ""}
        self.experiments[experiment["experiment_id"]] = experiment

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Any:
        with self.lock:
            self.calls.append(f"{method} {path}")
            if self.login_page:
                return "<html>Log in to Kubeflow</html>"
            if self.token and headers.get("Authorization") != f"Bearer {self.token}":
                # Servers do repeat what they were sent.
                raise RefusedError(401, f"Jwt verification fails: {headers.get('Authorization')}")
            for fault in self.faults:
                if fault[0] == method and fault[1] in path:
                    self.faults.remove(fault)
                    raise RefusedError(*fault[2:])
            for (wanted, pattern), (handler, kind) in self._routes().items():
                if wanted == method and (match := re.fullmatch(f"/apis/v2beta1/{pattern}", path)):
                    uploaded = "multipart" in headers.get("Content-Type", "")
                    content = _read_upload(headers, body) if uploaded else json.loads(body) if body else {}
                    answer = handler(*match.groups(), query, content)
                    check_type(answer, kind)
                    return answer
        raise RefusedError(404, f"no {method} {path}")

    def _routes(self) -> dict[tuple[str, str], tuple[Callable[..., Any], str]]:
        """Returns the handlers by method and path, with the types of their answers."""
        return {
            ("GET", "healthz"): (self._healthz, "V2beta1GetHealthzResponse"),
            ("GET", "experiments"): (self._list_experiments, "V2beta1ListExperimentsResponse"),
            ("POST", "experiments"): (self._create_experiment, "V2beta1Experiment"),
            ("GET", "pipelines"): (self._list_pipelines, "V2beta1ListPipelinesResponse"),
            ("POST", "pipelines"): (self._create_pipeline, "V2beta1Pipeline"),
            ("GET", "pipelines/([^/]+)/versions"): (self._list_versions, "V2beta1ListPipelineVersionsResponse"),
            ("POST", "pipelines/upload_version"): (self._upload_version, "V2beta1PipelineVersion"),
            ("POST", "runs"): (self._create_run, "V2beta1Run"),
            ("GET", "runs/([^/]+)"): (self._get_run, "object" if self.is_version_3 else "V2beta1Run"),
            ("GET", "recurringruns"): (self._list_recurring, "V2beta1ListRecurringRunsResponse"),
            ("POST", "recurringruns"): (self._create_recurring, "V2beta1RecurringRun"),
            ("DELETE", "recurringruns/([^/]+)"): (self._delete_recurring, "object"),
        }

    def _healthz(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def _check_namespace(self, request: dict[str, Any]) -> str:
        namespace = str(request.get("namespace") or "")
        if self.multi_user and namespace != PROFILE:
            raise RefusedError(403, f"User 'ann@example.com' is not authorized in namespace '{namespace}'")
        if not self.multi_user and namespace:
            raise RefusedError(400, "In single-user mode, ListExperiment cannot filter by namespace.")
        return namespace

    def _list(self, name: str, all_entries: dict[str, dict[str, Any]], query: dict[str, str], namespace: str) -> Any:
        entries = [entry for entry in all_entries.values() if entry.get("namespace", namespace) == namespace]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] in (1, "EQUALS"), predicate
            entries = [entry for entry in entries if entry[predicate["key"]] == predicate["stringValue"]]
        first, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
        page = {name: entries[first : first + size], "total_size": len(entries)} if entries else {}
        return page | ({"next_page_token": str(first + size)} if len(entries) > first + size else {})

    def _list_experiments(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._list("experiments", self.experiments, query, self._check_namespace(query))

    def _list_pipelines(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._list("pipelines", self.pipelines, query, self._check_namespace(query))

    def _list_recurring(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._list("recurringRuns", self.recurring, query, self._check_namespace(query))

    def _create_experiment(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        check_type(body, "V2beta1Experiment")
        self._check_namespace(body)
        self.add_experiment(body["display_name"])
        return list(self.experiments.values())[-1]

    def _create_pipeline(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        check_type(body, "V2beta1Pipeline")
        namespace = self._check_namespace(body)
        if any(pipeline["display_name"] == body["display_name"] for pipeline in self.pipelines.values()):
            raise RefusedError(409, f"the pipeline {body['display_name']} exists")
        pipeline = {"name": body["display_name"], "pipeline_id": _id()} | body | {"namespace": namespace}
        self.pipelines[pipeline["pipeline_id"]] = pipeline
        return pipeline

    def _list_versions(self, pipeline: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        versions = {id_: version for id_, version in self.versions.items() if version["pipeline_id"] == pipeline}
        return self._list("pipeline_versions", versions, query, "")

    def _upload_version(self, query: dict[str, str], text: str) -> Any:
        if query["pipelineid"] not in self.pipelines:
            raise RefusedError(404, "pipeline not found")
        versions = [v for v in self.versions.values() if v["pipeline_id"] == query["pipelineid"]]
        if any(version["display_name"] == query["name"] for version in versions):
            raise RefusedError(409, "Failed to create a pipeline version")
        document, *platforms = yaml.safe_load_all(text)
        try:
            spec = json_format.ParseDict(document, ir.PipelineSpec())
            for platform in platforms:
                json_format.ParseDict(platform, ir.PlatformSpec())
        except json_format.ParseError as error:
            raise RefusedError(400, f"unknown template format: {error}") from error
        if any("lifecycle" in e.get("container", {}) for e in document["deploymentSpec"]["executors"].values()):
            raise RefusedError(400, "lifecycle is not implemented")
        version = {"pipeline_version_id": _id(), "pipeline_id": query["pipelineid"], "display_name": query["name"]}
        self.versions[version["pipeline_version_id"]] = version
        self.packages[version["pipeline_version_id"]] = spec
        return version

    def _find_package(self, body: dict[str, Any]) -> ir.PipelineSpec:
        """Returns the package of a run or a recurring run, after a check of its parameters."""
        reference = body["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_version_id"], {})
        if version.get("pipeline_id") != reference["pipeline_id"] or body["experiment_id"] not in self.experiments:
            raise RefusedError(404, "no such version of the pipeline, or no such experiment")
        spec = self.packages[version["pipeline_version_id"]]
        declared = spec.root.input_definitions.parameters
        values = body.get("runtime_config", {}).get("parameters", {})
        for name, value in values.items():
            if name not in declared or not isinstance(value, TYPES[declared[name].parameter_type]):
                raise RefusedError(400, f"input parameter {name} is of the wrong type, or unknown: {value!r}")
        for name, parameter in declared.items():
            if not parameter.is_optional and not parameter.HasField("default_value") and name not in values:
                raise RefusedError(400, f"parameter {name} is not optional, yet has neither default value nor value")
        return spec

    def _create_run(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        check_type(body, "V2beta1Run")
        self._find_package(body)
        run = body | {"run_id": _id(), "state": "PENDING", "created_at": _format_time(0)}
        self.runs[run["run_id"]] = run
        self.steps[run["run_id"]] = 0
        return run

    def _get_run(self, run: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        if run not in self.runs:
            raise RefusedError(404, f"Run {run} not found")
        step = self.steps[run]
        self.steps[run] += 1
        spec = self.packages[self.runs[run]["pipeline_version_reference"]["pipeline_version_id"]]
        nodes, state = self._list_nodes(spec, step)
        if self.is_version_3:
            names = spec.root.dag.tasks
            tasks = [_describe_task(node, self.cached) for node in nodes if node["display_name"] in names]
            return self.runs[run] | {"state": state} | ({"tasks": tasks} if query.get("view") == "FULL" else {})
        return self.runs[run] | {"state": state, "run_details": {"task_details": nodes}}

    def _list_nodes(self, spec: ir.PipelineSpec, now: int) -> tuple[list[dict[str, Any]], str]:
        """Returns the nodes of a run at a step, and its state. A task takes one step, after its driver's one."""
        ends: dict[str, int | None] = {}
        nodes = [_node("root-driver", 0, 1, now)]
        for name, needed in order_tasks(spec):
            ready = [ends[task] for task in needed]
            if None in ready:
                ends[name] = None
                nodes.append(_node(name, None, None, now) | {"state": "SKIPPED"})
                continue
            start = max([1, *(end for end in ready if end is not None)])
            failing = self.failing.get(name)
            nodes.append(_node(f"{name}-driver", start, start + 1, now, failed=failing == "driver"))
            ends[name] = None if failing else start + 2
            if failing != "driver":
                nodes.append(_node(name, start + 1, start + 2, now, failed=bool(failing)))
                nodes.append(_node("executor", start + 1, start + 2, now, failed=bool(failing)))
        running = [node for node in nodes if node["state"] in ("RUNNING", "PENDING")]
        failed = any(node["state"] == "FAILED" for node in nodes)
        state = ("PENDING" if now == 0 else "RUNNING") if running else "FAILED" if failed else "SUCCEEDED"
        nodes.append(_node("root", 0, None if running else now, now, failed=failed))
        started = [node for node in nodes if node["state"] != "PENDING"]
        return sorted(started, key=lambda node: node["task_id"]), state

    def _create_recurring(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        check_type(body, "V2beta1RecurringRun")
        self._find_package(body)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise RefusedError(400, "Max concurrency of a recurring run must be at least 1 and at most 10")
        cron = body["trigger"].get("cron_schedule", {}).get("cron")
        if cron and len(cron.split()) != _CRON_FIELDS:
            raise RefusedError(400, "Schedule cron is not a supported format: seconds come first")
        recurring = body | {"recurring_run_id": _id(), "namespace": PROFILE if self.multi_user else ""}
        self.recurring[recurring["recurring_run_id"]] = recurring
        return recurring

    def _delete_recurring(self, recurring: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        del self.recurring[recurring]
        return {}


TYPES: dict[int, tuple[type, ...]] = {
    ir.ParameterType.STRING: (str,),
    ir.ParameterType.NUMBER_INTEGER: (int,),
    ir.ParameterType.NUMBER_DOUBLE: (int, float),
    ir.ParameterType.BOOLEAN: (bool,),
    ir.ParameterType.LIST: (list,),
    ir.ParameterType.STRUCT: (dict,),
}
"""Python types of a parameter's value in JSON, by its declared type."""


def check_type(value: Any, kind: str, where: str = "") -> None:
    """Refuses JSON that doesn't fit the API's type.

    Args:
        value: the JSON.
        kind: the type as ``kfp_server_api`` names it: a model, ``str``, ``list[…]``, ``dict(str, …)``.
        where: place of the value in the body, for messages.
    """
    if inner := re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind):
        values = value if inner[1] else value.values()
        for item in values:
            check_type(item, inner[1] or inner[2], where)
        return
    simple = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
    if kind in simple:
        if where.rpartition(".")[2] in _INT64 and str(value).isdigit():
            return
        if not isinstance(value, simple[kind]):
            raise RefusedError(400, f"{where}: {value!r} is no {kind}")
        return
    model = getattr(kfp_server_api, kind)
    if not model.openapi_types:
        if value not in model.allowable_values:
            raise RefusedError(400, f"{where}: {value!r} is none of {model.allowable_values}")
        return
    attributes = {key: model.openapi_types[attribute] for attribute, key in model.attribute_map.items()}
    for key, inside in value.items():
        if key not in attributes:
            raise RefusedError(400, f"{where}: {kind} has no {key}")
        check_type(inside, attributes[key], f"{where}.{key}")


def order_tasks(spec: ir.PipelineSpec) -> Iterator[tuple[str, list[str]]]:
    """Yields the tasks, each after those that it depends on, and the names of these."""
    left = dict(spec.root.dag.tasks)
    while left:
        for name in [name for name, task in left.items() if not set(task.dependent_tasks) & set(left)]:
            yield name, list(left.pop(name).dependent_tasks)


def _node(name: str, start: int | None, end: int | None, now: int, failed: bool = False) -> dict[str, Any]:
    started, over = start is not None and now >= start, end is not None and now >= end
    state = ("FAILED" if failed else "SUCCEEDED") if over else "RUNNING" if started else "PENDING"
    return {
        "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}{start}")),
        "display_name": name,
        "create_time": _format_time(0),
        "start_time": _format_time(start) if started and start is not None else _NEVER,
        "end_time": _format_time(end) if over and end is not None else _NEVER,
        "state": state,
    }


def _describe_task(node: dict[str, Any], cached: Collection[str]) -> dict[str, Any]:
    """Returns a task as 3.0 does: with the reason of a failure, and a state of its own if it is from the cache."""
    name, state = node["display_name"], node["state"]
    if state == "SUCCEEDED" and name in cached:
        state = "CACHED"
    reason = {"status_metadata": {"message": "OOMKilled"}} if state == "FAILED" else {}
    return node | {"name": name, "state": state} | reason


def _format_time(step: int) -> str:
    return (START + datetime.timedelta(seconds=STEP * step)).isoformat().replace("+00:00", "Z")


def _id() -> str:
    return str(uuid.uuid4())


def _read_upload(headers: Any, body: bytes) -> str:
    """Returns the file in a multipart body."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    (part,) = message.iter_parts()
    disposition = part["Content-Disposition"].params
    if disposition["name"] != "uploadfile" or not disposition["filename"].endswith((".yaml", ".yml")):
        raise RefusedError(400, f"Failed to read pipeline from file: {disposition}")
    return part.get_payload(decode=True).decode()


@contextlib.contextmanager
def serve_pipelines() -> Iterator[KubeflowPipelines]:
    """Serves a Kubeflow Pipelines on loopback, with an experiment ``Default``."""
    state = KubeflowPipelines()
    state.add_experiment("Default")

    def refusal(error: RefusedError) -> tuple[int, dict[str, Any]]:
        code = _CODES.get(error.status, 13)
        return error.status, {"error": error.message, "code": code, "message": error.message}

    with run_server(state.answer, refusal) as state.url:
        yield state
