"""What is searched for the best settings of training: the ``tuner`` section of the configuration."""

from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.config import AugmentationConfig, TrainerConfig

# The image size depends on the backbone, and the strategy is made once. Another loss, its smoothing or a lucky seed
# would make the objective smaller and not the model better. The others have no two plain values to choose from.
_SETTLED = {"backbone", "weights", "distribution", "loss", "label_smoothing", "seed", "epochs"}
_NOT_SCALAR = {"augmentation", "class_weights", "label_thresholds"}

SEARCHABLE = (
    *(key for key in TrainerConfig.model_fields if key not in _SETTLED | _NOT_SCALAR),
    *(f"augmentation.{key}" for key in AugmentationConfig.model_fields),
)
"""Keys of the ``trainer`` section, dotted, that a space may have."""

Value = bool | int | float | str
_Number = Annotated[float, Field(allow_inf_nan=False)]


class SpanConfig(BaseModel):
    """What is tried for one key: a range of numbers, or some values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: _Number | None = Field(None, description="the least of a range, itself included")
    max: _Number | None = Field(None, description="the greatest of a range")
    log: bool = Field(False, description="as many trials from 0.001 to 0.01 as from 0.01 to 0.1")
    values: tuple[Any, ...] | None = Field(None, description="two or more, in place of a range")

    @model_validator(mode="after")
    def _range_or_values(self) -> "SpanConfig":
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


class TunerConfig(BaseModel):
    """The ``tuner`` section: with it, trials look for the settings that the model is then trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: Annotated[int, Field(ge=1)] = Field(10, description="trainings, at most")
    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="of a trial; by default trainer.epochs")
    search: Literal["random", "bayesian"] = Field(
        "random", description="bayesian learns from the trials, after three random ones for each key"
    )
    space: Annotated[dict[str, SpanConfig], Field(min_length=1)] = Field(description="by key of the section trainer")


def check(space: Mapping[str, SpanConfig], config: TrainerConfig) -> None:
    """Checks that a configuration can have all values of a space.

    Raises:
        ValueError: if it can't; the message begins with the key.
    """
    for key, span in space.items():
        if key not in SEARCHABLE:
            raise ValueError(f"tuner.space.{key}: can't be searched; what can be is {', '.join(SEARCHABLE)}")
        try:
            found = ends(span, key, config)
        except ValidationError as error:
            (first, *_) = error.errors()
            raise ValueError(f"tuner.space.{key}: {first['msg']} (it is {first['input']!r})") from error
        if None in found:
            raise ValueError(f"tuner.space.{key}: null can't be one of the values that are searched")
        if not span.values and type(found[0]) not in (int, float):
            raise ValueError(f"tuner.space.{key}: a range is for numbers; give values: [...]")


def ends(span: SpanConfig, key: str, config: TrainerConfig) -> list[Any]:
    """All values of a span, or the least and the greatest of its range, as the key has them: whole, or fractions.

    Raises:
        pydantic.ValidationError: if the key can't have one.
    """
    made = (with_values(config, {key: value}) for value in span.values or (span.min, span.max))
    return [reduce(getattr, key.split("."), settings) for settings in made]


def with_values(config: TrainerConfig, values: Mapping[str, Any]) -> TrainerConfig:
    """A configuration with other values, by dotted key such as ``augmentation.rotation``.

    Raises:
        pydantic.ValidationError: if a key can't have its value.
    """
    settings = config.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        reduce(lambda section, name: section[name], sections, settings)[last] = value
    return TrainerConfig(**settings)
