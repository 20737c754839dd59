"""The ``monitoring`` section of the configuration: the traffic that is compared with what a model was trained on.

It is for the pipeline of ``compile --monitor``, whose runs can override each of these values. ``imagepipe monitor`` has
options instead, with the same defaults.

The measures, and what "moved" means, are in ``imagepipe.monitoring.comparison``.
"""

from typing import Annotated

from pydantic import Field

from imagepipe.base.periods import PERIOD
from imagepipe.base.section import Section, Share


class MonitoringConfig(Section):
    """The traffic that the pipeline which monitors the live model reads, and from when on a measure has moved."""

    capture: str | None = Field(
        None,
        description="Folder that `serve --capture` writes: a path, or s3://…, gs://…. `compile --monitor` needs it.",
    )
    since: Annotated[str, Field(pattern=PERIOD)] = Field(
        "7d", description="What is compared: the traffic of so many days or hours, such as 7d or 12h."
    )
    feedback: str | None = Field(
        None, description="File with true labels that came later, see `imagepipe feedback`. By default none."
    )
    max_divergence: Share = Field(0.02, description="Divergence of a number or embedding up to which it has not moved.")
    max_share: Share = Field(0.05, description="Change of a label's share up to which it has not moved.")
