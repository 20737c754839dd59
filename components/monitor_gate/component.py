"""MonitorGate: fails the run if the traffic has moved, so that its status tells.

It is a node of its own, as the outputs of a node that fails are deleted: ServingMonitor's page is still there to be
read.
"""

import json

from tfx.dsl.component.experimental.annotations import InputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts

from imagepipe.base import filesystem
from imagepipe.base.errors import DataError
from imagepipe.base.names import MONITORED


@component
def MonitorGate(figures: InputArtifact[standard_artifacts.ExampleAnomalies]) -> None:  # noqa: N802 (makes a component)
    """Fails if a measure has moved.

    Args:
        figures: channel of ServingMonitor's output.

    Raises:
        DataError: if any has; it names them.
    """
    moved = json.loads(filesystem.read_text(f"{figures.uri}/{MONITORED}"))["moved"]
    if moved:
        raise DataError(f"the traffic has moved: {', '.join(moved)}. ServingMonitor's page shows it")
