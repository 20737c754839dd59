"""The pipeline that monitors the live model: a cluster runs it on a schedule, beside the one that trains."""

from collections.abc import Callable
from typing import Any

from tfx.orchestration.pipeline import Pipeline

from components.monitor_gate.component import MonitorGate
from components.serving_monitor.component import ServingMonitor
from imagepipe.deploy.config import DeployConfig
from pipeline.monitoring_config import MonitoringConfig

MONITORS = ("ServingMonitor", "MonitorGate")
"""Names of its components."""


def create_monitor_pipeline(
    name: str,
    settings: MonitoringConfig,
    deploy: DeployConfig,
    pipeline_root: str,
    parameter: Callable[[str, Any], Any],
    metadata: Any = None,
) -> Pipeline:
    """Builds the pipeline. Nothing in it is taken from the cache: traffic is never the same.

    Args:
        name: the pipeline's name.
        settings: the traffic and the limits.
        deploy: where models are deployed to, with name and path.
        pipeline_root: folder for artifacts.
        parameter: see ``pipeline.dag.create_pipeline``.
        metadata: likewise.

    Returns:
        The pipeline, for any TFX runner.
    """
    # The page and its figures, whatever they say.
    monitor = ServingMonitor(
        deploy=deploy.dump_for_readers(),
        capture=parameter("capture", settings.capture or ""),
        since=parameter("since", settings.since),
        feedback=parameter("feedback", settings.feedback or ""),
        max_divergence=parameter("max_divergence", settings.max_divergence),
        max_share=parameter("max_share", settings.max_share),
    )

    # Fails if the traffic has moved: that is what a person, or an alert on failed runs, sees.
    gate = MonitorGate(figures=monitor.outputs["figures"])
    return Pipeline(
        pipeline_name=name,
        pipeline_root=pipeline_root,
        components=[monitor, gate],
        enable_cache=False,
        metadata_connection_config=metadata,
    )
