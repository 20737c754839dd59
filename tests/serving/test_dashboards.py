"""The dashboard and the alerts that are shipped ask for metrics that the server has, in the forms of their programs."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from jsonschema import validate
from prometheus_client.metrics import MetricWrapperBase

from imagepipe.serving import telemetry
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


def list_series() -> dict[str, set[str]]:
    """Names of the series that the server exposes, with their labels."""
    metrics = [m for m in vars(telemetry).values() if isinstance(m, MetricWrapperBase)]
    series = {}
    for metric in metrics:
        endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[metric._type]
        for ending in endings:
            series[metric._name + ending] = {*metric._labelnames, *(["le"] if ending == "_bucket" else [])}
    return series


def list_expressions() -> list[str]:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


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


def test_the_alerts_have_the_form_of_prometheus():
    validate(
        yaml.safe_load(ALERTS.read_text()),
        {"type": "object", "required": ["groups"], "properties": {"groups": {"type": "array", "items": GROUP}}},
    )
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "rules", ALERTS], check=True)  # noqa: S603


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
