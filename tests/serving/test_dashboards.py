"""The dashboard and the alerts that are shipped ask for metrics that the server has, in the forms of their programs."""

import json
import re
import shutil
import subprocess
from http import HTTPStatus

import grpc
import pytest
import yaml
from jsonschema import validate
from prometheus_client.metrics import MetricWrapperBase

from imagepipe.serving import telemetry
from imagepipe.serving.answered import Recorder
from imagepipe.serving.grpc_methods import build_methods
from imagepipe.serving.handler import Handler
from imagepipe.serving.server import build_routes
from tests.docs.documents import ROOT

ALERTS, DASHBOARD = ROOT / "kubeflow/monitoring/alerts.yaml", ROOT / "kubeflow/monitoring/dashboard.json"
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": r"^\d+[smhd]$"}
RULE = {  # Prometheus: rulefmt.go
    "type": "object",
    "required": ["alert", "expr"],
    "properties": {
        "alert": {"type": "string"},
        "expr": {"type": "string"},
        "for": _DURATION,
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "additionalProperties": False,
}
GROUP = {
    "type": "object",
    "required": ["name", "rules"],
    "properties": {"name": {"type": "string"}, "rules": {"type": "array", "minItems": 1, "items": RULE}},
    "additionalProperties": False,
}

_SOURCE = {  # a data source of Prometheus, which whoever imports the dashboard chooses
    "type": "object",
    "properties": {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}},
    "required": ["type", "uid"],
    "additionalProperties": False,
}
_TARGET = {
    "type": "object",
    "properties": {
        "datasource": _SOURCE,
        "expr": {"type": "string", "minLength": 1},
        "legendFormat": {"type": "string"},
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
    },
    "required": ["datasource", "expr", "refId"],
    "additionalProperties": False,
}
_PANEL = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat", "gauge", "bargauge", "table", "heatmap", "histogram"]},
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "datasource": _SOURCE,
        "gridPos": {
            "type": "object",
            "properties": {
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "h": {"type": "integer", "minimum": 1},
            },
            "required": ["x", "y", "w", "h"],
            "additionalProperties": False,
        },
        "targets": {"type": "array", "minItems": 1, "items": _TARGET},
        "fieldConfig": {
            "type": "object",
            "properties": {"defaults": {"type": "object"}, "overrides": {"type": "array"}},
            "required": ["defaults", "overrides"],
        },
        "options": {"type": "object"},
    },
    "required": ["id", "type", "title", "description", "datasource", "gridPos", "targets", "fieldConfig", "options"],
    "additionalProperties": False,
}
_VARIABLE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": r"^\w+$"},
        "type": {"enum": ["datasource", "query"]},
        "datasource": _SOURCE,
    },
    "required": ["name", "type", "query"],
    "if": {"properties": {"type": {"const": "query"}}},
    "then": {"required": ["datasource"], "properties": {"query": {"required": ["query", "refId"]}}},
    "else": {"properties": {"query": {"type": "string"}}},
}
GRAFANA = {  # the part of Grafana's dashboard model that it can't do without: kinds/dashboard/dashboard_kind.cue
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "version": {"type": "integer"},
        "panels": {"type": "array", "minItems": 1, "items": _PANEL},
        "templating": {
            "type": "object",
            "properties": {"list": {"type": "array", "items": _VARIABLE}},
            "required": ["list"],
        },
        "time": {"type": "object", "required": ["from", "to"]},
        "id": {"type": "null"},  # of the Grafana that it would overwrite a dashboard of
    },
    "required": ["title", "uid", "schemaVersion", "panels", "templating", "time"],
}


METRICS = {metric._name: metric for metric in vars(telemetry).values() if isinstance(metric, MetricWrapperBase)}
ENDINGS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def list_series() -> dict[str, set[str]]:
    """Names of the series that the server exposes, with their labels."""
    series = {}
    for name, metric in METRICS.items():
        for ending in ENDINGS[metric._type]:
            series[name + ending] = {*metric._labelnames, *(["le"] if ending == "_bucket" else [])}
    (memory,) = telemetry.PRIVATE_MEMORY.describe()
    return series | {memory.name: {*memory._labelnames}}


def list_shown() -> list[str]:
    """The expressions of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def list_expressions() -> list[str]:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    return [rule["expr"] for rule in rules] + list_shown()


@pytest.mark.parametrize("expression", list_expressions())
def test_an_expression_asks_for_series_and_labels_that_there_are(expression):
    series = list_series()
    asked = re.findall(r"(imagepipe_\w+)(?:\{([^}]*)\})?", expression)
    assert asked
    for name, selectors in asked:
        assert name in series, name
        labels = set(re.findall(r"(\w+)\s*[=!]~?", re.sub(r'"[^"]*"', "", selectors)))
        assert labels <= series[name] | {"job", "instance"}, name
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def list_routes() -> set[str]:
    """Values of the label ``route``, by both protocols."""
    handler = Handler(None, "flowers", Recorder())  # type: ignore[arg-type]
    by_grpc = {f"/{service.full_name}/{name}" for service, names in build_methods(handler).items() for name in names}
    return by_grpc | {getattr(route, "path", "") for route in build_routes(handler).routes} | {"other"}


OF_THE_MODEL = {  # routes that ask it about images
    *(
        f"/v1/{path}/{{name}}{rest}"
        for path in ("models", "projects/{project}/models")
        for rest in (":predict", "/versions/{version}:predict")
    ),
    *(f"/v2/models/{{name}}{rest}/infer" for rest in ("", "/versions/{version}")),
    "/inference.GRPCInferenceService/ModelInfer",
    "/tensorflow.serving.PredictionService/Predict",
}
FAILED = {"INTERNAL", "UNAVAILABLE"}  # that the server records by gRPC, and that are not the caller's fault
STATUSES = {str(code.value) for code in HTTPStatus} | {code.name for code in grpc.StatusCode}


def list_patterns(label: str) -> list[str]:
    """The regular expressions that expressions hold a label against, as a whole."""
    return re.findall(rf'{label}=~"([^"]*)"', " ".join(list_expressions()))


def test_what_is_asked_of_the_model_is_in_the_expressions_by_both_protocols(monkeypatch):
    monkeypatch.delenv("AIP_PREDICT_ROUTE", raising=False)  # of other tests
    patterns = list_patterns("route")
    assert len(patterns) == 4
    for pattern in patterns:
        assert {route for route in list_routes() if re.fullmatch(pattern, route)} == OF_THE_MODEL


def test_what_the_server_could_not_answer_is_in_the_expressions_by_both_protocols():
    (pattern,) = list_patterns("status")
    matched = {status for status in STATUSES if re.fullmatch(pattern, status)}
    assert matched == {status for status in STATUSES if status.startswith("5")} | FAILED


def test_the_alerts_have_the_form_of_prometheus():
    validate(
        yaml.safe_load(ALERTS.read_text()),
        {"type": "object", "required": ["groups"], "properties": {"groups": {"type": "array", "items": GROUP}}},
    )
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "rules", ALERTS], check=True)  # noqa: S603


def test_the_dashboard_has_the_form_of_grafana_and_its_variables_are_declared():
    dashboard = json.loads(DASHBOARD.read_text())
    validate(dashboard, GRAFANA)
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", DASHBOARD.read_text()))
    assert used == declared


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_shown_on_the_dashboard(name):
    asked = set(re.findall(r"imagepipe_\w+", " ".join(list_shown())))
    assert asked & {name + ending for ending in ENDINGS[METRICS[name]._type]}


def test_the_dashboard_has_panels_that_dont_overlap():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
