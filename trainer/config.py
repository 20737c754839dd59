"""What can be tuned about training: the ``trainer`` section of the configuration."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

IMAGENET = "imagenet"
NO_WEIGHTS = "none"

Distribution = Literal["auto", "none", "mirrored", "multi_worker"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


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
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="images a step, over all devices")
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="the highest, of the head or from scratch")
    fine_tune_learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="the highest, of upper blocks")
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(1, description="of rising learning rate, in each phase")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="not of biases and normalization")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(1.0, description="longest gradient, over all weights")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="momentum of an average of the weights, which is then what is kept"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = None
    patience: Annotated[int, Field(ge=1)] = Field(5, description="epochs without a better eval loss before it stops")
    precision: Precision = "auto"
    distribution: Distribution = "auto"
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial weights, shuffling and augmentation")
