"""The ``tuner`` section of the configuration: which settings are searched, and in which ranges."""

from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from imagepipe.base.section import Section
from trainer.config import EXPORT_SETTINGS, AugmentationConfig, TrainerConfig, override_settings

# The image size depends on the backbone, and the strategy is created once. Another loss, its smoothing or a lucky seed
# would improve the objective and not the model; and loss and smoothing are part of the task, which is made once for all
# trials, as are the images that they are judged on. A refit and the export come after all trials, so that chance would
# choose. The others have no two plain values to choose from.
_FIXED = {"backbone", "weights", "distribution", "loss", "label_smoothing", "seed", "epochs", "validation", "refit"}
_NOT_SCALAR = {"augmentation", "class_weights"}

SEARCHABLE = (
    *(key for key in TrainerConfig.model_fields if key not in _FIXED | _NOT_SCALAR | EXPORT_SETTINGS),
    *(f"augmentation.{key}" for key in AugmentationConfig.model_fields),
)
"""Dotted keys of the ``trainer`` section that a search space may contain."""

Value = bool | int | float | str


class SpanConfig(Section):
    """The values that are tried for one key: a range of numbers, or a list."""

    min: float | None = Field(None, description="Minimum of the range, inclusive.")
    max: float | None = Field(None, description="Maximum of the range, inclusive.")
    log: bool = Field(
        False, description="Sample the range logarithmically: as many trials from 0.001 to 0.01 as from 0.01 to 0.1."
    )
    values: tuple[Any, ...] | None = Field(None, description="Two or more values to choose from, instead of a range.")

    @model_validator(mode="after")
    def _check_range_or_values(self) -> "SpanConfig":
        if self.values is not None:
            if self.min is not None or self.max is not None or self.log:
                raise ValueError("give either values, or min and max (and log)")
            if len(self.values) < 2:
                raise ValueError("values: give two or more; one alone belongs into the section trainer")
        elif self.min is None or self.max is None:
            raise ValueError("give min and max, or values: [...]")
        elif self.min >= self.max:
            raise ValueError(f"min has to be less than max ({self.min:g} is not less than {self.max:g})")
        elif self.log and self.min <= 0:
            raise ValueError(f"log needs a min above 0 (it is {self.min:g})")
        return self


class TunerConfig(Section):
    """The ``tuner`` section: if given, trials search for the settings with which the model is then trained."""

    trials: Annotated[int, Field(ge=1)] = Field(10, description="Maximum number of trials; each is a whole training.")
    epochs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Maximum number of epochs of a trial (default: trainer.epochs)."
    )
    search: Literal["random", "bayesian"] = Field(
        "random",
        description="How values are picked; bayesian learns from earlier trials, after three random ones per key.",
    )
    space: Annotated[dict[str, SpanConfig], Field(min_length=1)] = Field(
        description="Values to try, by key of the section trainer, such as augmentation.rotation."
    )


def check_space(space: Mapping[str, SpanConfig], config: TrainerConfig) -> None:
    """Checks that all values of a search space are valid in the configuration.

    Raises:
        ValueError: if one isn't; the message starts with the key.
    """
    for key, span in space.items():
        if key not in SEARCHABLE:
            raise ValueError(f"tuner.space.{key}: can't be searched; what can be is {', '.join(SEARCHABLE)}")
        try:
            limits = parse_span(span, key, config)
        except ValidationError as error:
            (first, *_) = error.errors()
            raise ValueError(f"tuner.space.{key}: {first['msg']} (it is {first['input']!r})") from error
        if None in limits:
            raise ValueError(f"tuner.space.{key}: null can't be one of the values that are searched")
        if not span.values and type(limits[0]) not in (int, float):
            raise ValueError(f"tuner.space.{key}: a range is for numbers; give values: [...]")


def parse_span(span: SpanConfig, key: str, config: TrainerConfig) -> list[Any]:
    """Returns all values of a span, or minimum and maximum of its range, in the type of the key.

    Raises:
        pydantic.ValidationError: if one of them is not valid for the key.
    """
    trial_configs = (override_settings(config, {key: value}) for value in span.values or (span.min, span.max))
    return [reduce(getattr, key.split("."), trial_config) for trial_config in trial_configs]
