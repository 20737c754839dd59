"""The configuration of DataCheck: the ``data.validation`` section."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from imagepipe.base.section import Section

SplitName = Literal["train", "eval", "test"]
StoppingKind = Literal["drift", "skew", "anomaly", "near_duplicates", "groups", "leak"]
"""Kinds of findings that stop the run if the configuration says so."""

_MIN_IMAGES: dict[SplitName, int] = {"train": 10, "eval": 1}


class ValidationConfig(Section):
    """The ``data.validation`` section.

    Images without a label, labels and categories that no model can hold, unseen labels, classes with too few images
    and missing columns stop the run whatever it says.
    """

    min_images: dict[SplitName, Annotated[int, Field(ge=0)]] = Field(
        _MIN_IMAGES,
        description="Minimum number of images of a class or label, by split. A curated schema's minima override these.",
    )
    drift: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.2,
        description="How far a column may be from what the live model was trained on, as TFDV measures it: for text "
        "the largest difference of a value's share, for numbers the Jensen-Shannon divergence of the histograms. What "
        "chance gives samples of that size is allowed on top. null switches the check off.",
    )
    skew: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.2, description="The same for the other splits, against the training split."
    )
    leak: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.9,
        description="How much a column that enters the network may tell about the label by itself: the share of the "
        "label's entropy, by mutual information beyond what chance gives. null switches the check off.",
    )
    stop_on: tuple[StoppingKind, ...] = Field(
        (), description="Kinds of findings that stop the run too; otherwise they are only reported."
    )
    label_errors: Annotated[int, Field(ge=0, le=1000)] = Field(
        100, description="Maximum number of likely label errors that are listed; 0 switches the check off."
    )
    max_images: Annotated[int, Field(ge=100, le=100_000)] = Field(
        5000,
        description="Maximum number of images that are checked for label errors, evenly spread over all. 5,000 take "
        "about a minute.",
    )

    @field_validator("min_images", mode="before")
    @classmethod
    def _add_defaults(cls, value: Any) -> Any:
        """Keeps the defaults of the splits that aren't given."""
        return _MIN_IMAGES | value if isinstance(value, dict) else value
