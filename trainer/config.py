"""What can be tuned about training: the ``trainer`` section of the configuration."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trainer import backbones

IMAGENET = "imagenet"
NO_WEIGHTS = "none"


class TrainerConfig(BaseModel):
    """The ``trainer`` section. With weights, the head is trained first, on a frozen base; without, all at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str = Field(
        backbones.DEFAULT, description="the network below the head: " + ", ".join(backbones.BACKBONES)
    )
    weights: str = Field(IMAGENET, description="imagenet | none (from scratch) | a file of the backbone's weights")
    normalization: Literal["backbone", "featurewise"] = Field(
        "backbone",
        description="of pixels: as the backbone was trained | by mean and variance of each channel of the train split",
    )
    head_units: Annotated[int, Field(ge=1)] = Field(1024, description="of the head's hidden layer")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="share of the hidden layer, while training")
    epochs: Annotated[int, Field(ge=1)] = Field(
        20, description="of the whole network, or with weights of its upper blocks"
    )
    head_epochs: Annotated[int, Field(ge=1)] = Field(5, description="with weights: of the head on the frozen base")
    unfreeze_after: str | None = Field(
        None,
        description="with weights: the layer after which fine-tuning changes the base; by default its last stage is",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="images a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Adam's, of the head or from scratch")
    fine_tune_learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Adam's, of the upper blocks")
    patience: Annotated[int, Field(ge=1)] = Field(5, description="epochs without a better eval loss before it stops")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial weights and shuffling")

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: str) -> str:
        if backbone not in backbones.BACKBONES:
            raise ValueError(f"there is no backbone '{backbone}'; known are {', '.join(backbones.BACKBONES)}")
        return backbone
