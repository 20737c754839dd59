"""The base of all sections of the configuration, wherever they are defined.

A section belongs to what it configures (``trainer.config``, ``imagepipe.deploy.config``, …); ``pipeline.config`` puts
them together.

What all of them refuse is refused here, once.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of all, 0 to 1."""


class Section(BaseModel):
    """A section of the file, or of another section of it.

    Unknown keys are refused, as are numbers that are not finite: YAML has ``.inf`` and ``.nan``, which no key can mean.
    Nothing changes once it is read.

    Example:
        >>> class WindowConfig(Section):
        ...     width: float = Field(1, gt=0, description="Width of the window.")
        >>> WindowConfig(width=float("inf"))
        Traceback (most recent call last):
        pydantic_core._pydantic_core.ValidationError: 1 validation error for WindowConfig
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
