"""What can be tuned about training: the ``trainer`` section of the configuration."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trainer import backbones

IMAGENET = "imagenet"
NO_WEIGHTS = "none"

Distribution = Literal["auto", "none", "mirrored", "multi_worker"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


class AugmentationConfig(BaseModel):
    """Random changes to the images of training, drawn anew for each image each time it is seen.

    The defaults suit photographs of things that have no preferred side. What is 0 or false costs nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizontal_flip: bool = Field(True, description="mirrors half of the images left to right")
    vertical_flip: bool = Field(False, description="mirrors half of the images top to bottom")
    rotation: Annotated[float, Field(ge=0, le=90)] = Field(10, description="degrees, each way")
    zoom: Annotated[float, Field(ge=0, le=0.9)] = Field(0.15, description="share, larger or smaller")
    shift: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="share of the width and height, each way")
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of full white, added or taken away")
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(0.2, description="share, more or less of it")
    blur_sigma: Annotated[float, Field(ge=0, le=5)] = Field(0, description="pixels, of the strongest Gaussian blur")
    rand_augment: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="magnitude of two RandAugment operations on each image"
    )
    mixup: Annotated[float, Field(ge=0)] = Field(0, description="alpha of MixUp's share: images blend in pairs")
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0, description="alpha of CutMix's share: a box comes from another image; with mixup, one of them for each batch"
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is changed at all."""
        return any(self.model_dump().values())


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
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="of the images of training only")
    loss: Literal["mean_squared_error", "huber"] = Field("mean_squared_error", description="of a regression")
    label_thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="multilabel: from which probability on a label is said of an image, where not from 0.5"
    )

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: str) -> str:
        if backbone not in backbones.BACKBONES:
            raise ValueError(f"there is no backbone '{backbone}'; known are {', '.join(backbones.BACKBONES)}")
        return backbone


class ServingConfig(BaseModel):
    """The ``serving`` section: what of the trained network is exported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimize: Literal["auto", "off"] = Field(
        "auto", description="auto: weights become constants, BatchNormalization part of the convolutions"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the optimised graph; auto: bfloat16 where this machine's processor is faster in it, "
        "unless it differs too much",
    )
    max_difference: Annotated[float, Field(gt=0)] = Field(
        0.05,
        description="most that optimising may change of a probability, or of a regression's value in standard "
        "deviations of its target, on the eval split",
    )

    @field_validator("optimize", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads an off without quotes


DEFAULT_THRESHOLD = 0.5


def list_thresholds(labels: Sequence[str], label_thresholds: Mapping[str, float]) -> list[float]:
    """Returns the decision thresholds of a multilabel task in the order of ``labels``.

    Raises:
        ValueError: if ``label_thresholds`` names a label that is not among ``labels``.
    """
    if unknown := sorted(set(label_thresholds) - set(labels)):
        raise ValueError(
            f"trainer.label_thresholds: {', '.join(unknown)}: not among the labels of the training split, "
            f"which are {', '.join(labels)}"
        )
    return [label_thresholds.get(label, DEFAULT_THRESHOLD) for label in labels]
