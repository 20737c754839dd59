"""What can be tuned about training: the ``trainer`` section of the configuration."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

IMAGENET = "imagenet"
NO_WEIGHTS = "none"


class TrainerConfig(BaseModel):
    """The ``trainer`` section. With weights, the head is trained first, on a frozen base; without, all at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str = Field(IMAGENET, description="imagenet | none (from scratch) | a file of InceptionV3 weights, no top")
    epochs: Annotated[int, Field(ge=1)] = Field(
        20, description="of the whole network, or with weights of its upper blocks"
    )
    head_epochs: Annotated[int, Field(ge=1)] = Field(5, description="with weights: of the head on the frozen base")
    unfreeze_after: str = Field(
        "mixed8", description="with weights: the layer after which fine-tuning changes the base"
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="images a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Adam's, of the head or from scratch")
    fine_tune_learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Adam's, of the upper blocks")
    patience: Annotated[int, Field(ge=1)] = Field(5, description="epochs without a better eval loss before it stops")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial weights and shuffling")
    loss: Literal["mean_squared_error", "huber"] = Field("mean_squared_error", description="of a regression")
    label_thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="multilabel: from which probability on a label is said of an image, where not from 0.5"
    )
