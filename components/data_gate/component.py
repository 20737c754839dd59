"""DataGate: stops the run if DataCheck found an error.

It is a node of its own, as the outputs of a node that fails are deleted: the findings are still there to be read.
"""

import json

from tfx.dsl.component.experimental.annotations import InputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts

from imagepipe.base import filesystem
from imagepipe.base.errors import DataError
from imagepipe.base.names import FINDINGS

_MAX_MESSAGES = 10


@component
def DataGate(findings: InputArtifact[standard_artifacts.ExampleAnomalies]) -> None:  # noqa: N802 (makes a component)
    """Stops the run if DataCheck found an error. Nodes that are to wait for it name it upstream.

    Args:
        findings: channel of DataCheck's output.

    Raises:
        DataError: if any finding is an error.
    """
    content = json.loads(filesystem.read_text(f"{findings.uri}/{FINDINGS}"))
    errors = [finding["message"] for finding in content["findings"] if finding["severity"] == "error"]
    if errors:
        more = len(errors) - _MAX_MESSAGES
        lines = [*errors[:_MAX_MESSAGES], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("\n- ".join(["the data can't be used for training.", *lines]))
