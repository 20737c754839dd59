"""ServingMonitor: what the live model is asked, against what it was trained on and what it said of the eval split.

In a pipeline of its own, ``pipeline.monitor_dag``, which a cluster runs on a schedule. ``imagepipe monitor`` does the
same on this machine.
"""

import json

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts

from components.kfp_artifacts import HTML, Metrics
from components.serving_monitor.page import render_page
from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.names import MONITORED
from imagepipe.base.periods import parse_start
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import list_models
from imagepipe.monitoring.comparison import Limits
from imagepipe.monitoring.feedback import join_feedback
from imagepipe.monitoring.reference import Reference, find_own_reference
from imagepipe.monitoring.report import ALL_DAYS, Monitored, monitor, to_json


@component
def ServingMonitor(  # noqa: N802 (makes a component)
    page: OutputArtifact[HTML],
    figures: OutputArtifact[standard_artifacts.ExampleAnomalies],
    metrics: OutputArtifact[Metrics],
    deploy: Parameter[str],
    capture: Parameter[str],
    since: Parameter[str],
    feedback: Parameter[str],
    max_divergence: Parameter[float],
    max_share: Parameter[float],
) -> None:
    """Compares captured traffic with the reference of the live model.

    It does not fail if the traffic has moved: MonitorGate does, so that page and figures are still there to be read.

    Args:
        page: the output with the page; its URI is the page's.
        figures: the output with the file MONITORED, all figures as JSON.
        metrics: the output whose properties are the number of images, of requests that were not answered and of
            measures that have moved, and the largest distance of each measure.
        deploy: where models are deployed to, a ``DeployConfig`` as JSON; of several versions with requests, the one
            with the most is monitored.
        capture: folder of captured traffic, a path or URI.
        since: leaves out what was answered before, such as 7d or 12h before now.
        feedback: file with true labels, see ``imagepipe.monitoring.feedback``; '' for none.
        max_divergence: see ``imagepipe.monitoring.comparison.Limits``.
        max_share: likewise.

    Raises:
        ModelError: if nothing is live, the live version has no reference, or there is no traffic.
    """
    reference, start = _find_live_reference(DeployConfig(**json.loads(deploy))), parse_start(since)
    joined = join_feedback(feedback, capture, reference.task, start) if feedback else None
    limits = Limits(divergence=max_divergence, share=max_share)
    monitored = monitor(capture, reference, limits, start, joined)
    filesystem.write_whole(page.uri, render_page(monitored).encode())
    filesystem.write_whole(f"{figures.uri}/{MONITORED}", json.dumps(to_json(monitored), indent=1).encode())
    for name, value in _collect_metrics(monitored).items():
        metrics.set_float_custom_property(name, value)


def _find_live_reference(deploy: DeployConfig) -> Reference:
    live = next((model for model, _ in list_models(deploy)), None)
    if live is None:
        raise ModelError(f"{deploy.path}: no version of {deploy.name} is live, so there is nothing to monitor")
    reference = find_own_reference(live)
    if reference is None:
        raise ModelError(
            f"{live} has no reference to compare with, as it was not pushed by the pipeline, or long ago. Have the "
            "pipeline push a model"
        )
    return reference


def _collect_metrics(monitored: Monitored) -> dict[str, float]:
    values = {"images": 0.0, "errors": 0.0, "moved": float(len({m.comparison.measure for m in monitored.moved}))}
    for part, traffic in monitored.traffic.items():
        if part.day != ALL_DAYS:
            values["images"] += traffic.images
            values["errors"] += traffic.errors.total()
        for comparison in monitored.comparisons[part]:
            name = f"{comparison.measure}_distance"
            values[name] = max(values.get(name, 0.0), comparison.difference.distance)
    return values
