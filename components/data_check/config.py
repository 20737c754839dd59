"""What DataCheck demands of the data. Imports neither TFX nor TensorFlow."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SplitName = Literal["train", "eval", "test"]
Kind = Literal["drift", "skew", "anomaly", "near_duplicates"]

_Distance = Annotated[float, Field(gt=0, le=1)]
_MIN_IMAGES: dict[SplitName, int] = {"train": 10, "eval": 1}


class ValidationConfig(BaseModel):
    """The ``data.validation`` section. An unseen label, too few images of a class, a missing column always stop a run.

    Attributes:
        min_images: the fewest that a class or label may have, by split; a curated schema's go over them.
        drift: how far a column may be from what the live model was trained on: of texts the largest difference of a
            value's share, of numbers the Jensen-Shannon divergence of their histograms, as TFDV measures them. What
            chance gives samples of that size is allowed on top. None to not look.
        skew: likewise, how far the other splits may be from the training split.
        stop_on: what else is to stop a run, and not only to be told.
        label_errors: how many images whose label is likely to be wrong are listed at most; 0 to not look for them.
        max_images: how many images are looked at for that, spread over all; so many take about a minute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_images: dict[SplitName, Annotated[int, Field(ge=0)]] = _MIN_IMAGES
    drift: _Distance | None = 0.2
    skew: _Distance | None = 0.2
    stop_on: tuple[Kind, ...] = ()
    label_errors: Annotated[int, Field(ge=0, le=1000)] = 100
    max_images: Annotated[int, Field(ge=100, le=100_000)] = 5000

    @field_validator("min_images", mode="before")
    @classmethod
    def _others_by_default(cls, value: Any) -> Any:
        return _MIN_IMAGES | value if isinstance(value, dict) else value
