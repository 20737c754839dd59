"""Settings of training and export: the ``trainer`` and ``serving`` sections, and the arguments that TFX passes."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from imagepipe.base.labels import describe_unknown
from imagepipe.base.section import Section, Share
from trainer import backbones, own_backbone

IMAGENET = "imagenet"
NO_WEIGHTS = "none"
DEFAULT_THRESHOLD = 0.5
HIGHEST_F1 = "highest_f1"
MAX_VIEWS = 5
FINE_TUNING_EPOCHS, SCRATCH_EPOCHS = 10, 20

LabelThresholds = Literal["highest_f1"] | dict[str, Share]
Distribution = Literal["auto", "none", "mirrored"]
Precision = Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"]


class FnArgs(Protocol):
    """The part of TFX's ``FnArgs``, of the Trainer and of the Tuner, that is used here.

    Attributes:
        train_files: patterns of raw Examples to train on.
        eval_files: patterns of raw Examples to evaluate on.
        transform_graph_path: output of the Transform component.
        serving_model_dir: the SavedModel to write; the other results of training go beside it.
        model_run_dir: folder for TensorBoard's logs.
        hyperparameters: keras-tuner's configuration of them, whose values override those of ``trainer``; or None.
        custom_config: ``task``, ``features``, ``image_size``, ``trainer`` and ``serving`` (of a search ``tuner``), as
            dicts of the classes that own them, and ``state_dir``, a local folder in which a training that was killed
            finds its state again, see ``checkpoint.make_state_folder``.
    """

    train_files: list[str]
    eval_files: list[str]
    transform_graph_path: str
    serving_model_dir: str
    model_run_dir: str
    hyperparameters: dict[str, Any] | None
    custom_config: dict[str, Any]


class AugmentationConfig(Section):
    """Random changes to the training images, drawn anew for each image each time it is read.

    The defaults suit photographs of things that have no preferred side. Options at 0 or false cost nothing.
    """

    horizontal_flip: bool = Field(True, description="Mirror half of the images left to right.")
    vertical_flip: bool = Field(False, description="Mirror half of the images top to bottom.")
    rotation: Annotated[float, Field(ge=0, le=90)] = Field(
        10, description="Maximum rotation in degrees, in either direction."
    )
    zoom: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.15, description="Maximum zoom as a share of the size, in or out."
    )
    shift: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="Maximum shift as a share of width and height, in either direction."
    )
    brightness: Share = Field(0.1, description="Maximum change of brightness as a share of full white, up or down.")
    contrast: Share = Field(0.2, description="Maximum change of contrast as a share of it, up or down.")
    blur_sigma: Annotated[float, Field(ge=0, le=5)] = Field(
        0, description="Standard deviation of the strongest Gaussian blur, in pixels."
    )
    rand_augment: Share = Field(0, description="Magnitude of the two RandAugment operations applied to each image.")
    mixup: Annotated[float, Field(ge=0)] = Field(
        0, description="Alpha of the beta distribution of MixUp's share: images are blended in pairs."
    )
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0,
        description="Alpha of the beta distribution of CutMix's share: a box is taken from another image. With mixup "
        "as well, each batch gets one of the two.",
    )

    @property
    def is_on(self) -> bool:
        """Returns whether any change is enabled."""
        return any(self.model_dump().values())


class TrainerConfig(Section):
    """The ``trainer`` section.

    With pretrained weights the head is trained first, on a frozen base; without, all layers are trained at once.
    """

    backbone: str = Field(
        backbones.DEFAULT,
        description=f"Network below the head: {', '.join(backbones.BACKBONES)}; or a function of your own, such as "
        "my_package.networks:build.",
    )
    weights: str = Field(
        IMAGENET,
        description="Weights to start from: imagenet, none (train from scratch), or a file of the backbone's weights: "
        ".h5, .weights.h5, .weights.json or .keras of Keras 2 or 3, or the folder of a SavedModel; a path or URI.",
    )
    normalization: Literal["backbone", "featurewise"] = Field(
        "backbone",
        description="How pixels are normalized: as the backbone was trained, or featurewise, by mean and variance of "
        "each channel of the train split.",
    )
    head_units: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Number of units in the head's hidden layer; 0 for none. By default 1024; with weights, but no "
        "side features, none: the head is linear, and starts from a regression on the frozen base's features.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of what the head's last layer takes that is dropped during training. By default 0.2; in "
        "regression 0, as it changes the scale of numbers.",
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        FINE_TUNING_EPOCHS,
        description="Maximum number of epochs of the whole network or, with weights, of its upper blocks.",
    )
    head_epochs: Annotated[int, Field(ge=1)] = Field(
        5, description="With weights: maximum number of epochs of the head on the frozen base."
    )
    unfreeze_after: str | None = Field(
        None,
        description="With weights: layer of the base above which fine-tuning starts (default: the base's last stage).",
    )
    views: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="With weights: views of each image, itself and augmented ones, of which the outputs of the frozen "
        "layers are kept on disk, so that an epoch runs the other layers only; 0 to run all of them on new views in "
        f"each epoch. By default as many as epochs, {MAX_VIEWS} at most, and 1 without augmentation.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="Images per step, over all devices.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="Optimizer; sgd uses Nesterov momentum.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Peak learning rate of the head or, from scratch, of the whole network."
    )
    fine_tune_learning_rate: Annotated[float, Field(gt=0)] = Field(
        3e-4, description="Peak learning rate while the upper blocks are fine-tuned."
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine",
        description="Learning rate after the warmup: cosine decay to 0, step (divided by 10 at half and at three "
        "quarters of the epochs), or constant.",
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        1, description="Epochs of linearly rising learning rate at the start of each phase."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Weight decay; biases and normalization layers are exempt."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of the optimizer sgd.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Maximum norm of the gradient over all weights; null turns clipping off."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Momentum of an exponential moving average of the weights, which is then evaluated and exported "
        "(default: off).",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of each target that is spread evenly over all classes; not used for regression."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="Weight of each class in the loss: balanced (inverse to its share of the train split), or a number "
        "per class (1 for those not listed). By default all count the same.",
    )
    validation: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.1,
        description="Share of the train split, whole groups where there are any, that is set aside to choose on: the "
        "epoch, when to stop, and a search's best trial.",
    )
    refit: bool = Field(
        False,
        description="Train once more when the epoch is chosen: on the whole train split, for as many steps.",
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        5,
        description="Epochs after which a phase stops early if the validation loss has not become better by more than "
        "chance gives: the standard error of the images' differences.",
    )
    precision: Precision = Field(
        "auto",
        description="Precision of training; auto: mixed_float16 on GPUs with tensor cores, mixed_bfloat16 on TPUs and "
        "on CPUs that are faster in it and if the backbone's convolutions aren't depthwise, else float32. Weights are "
        "always float32.",
    )
    distribution: Distribution = Field(
        "auto",
        description="Devices to train on: none (one device), mirrored (all devices of this machine); auto: mirrored "
        "where there are several GPUs.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        0, description="Seed of the initial weights, shuffling and augmentation."
    )
    augmentation: AugmentationConfig = Field(
        AugmentationConfig(), description="Random changes to the training images; validation sees the originals."
    )
    loss: Literal["mean_squared_error", "huber"] = Field(
        "mean_squared_error",
        description="Loss of a regression, in standard deviations of the train split's target; huber is less sensitive "
        "to errors of more than one.",
    )
    calibration: Literal["temperature", "none"] = Field(
        "temperature",
        description="How probabilities are made to say how often they are right, on the images set aside for "
        "validation: temperature (one for all classes; with several labels a factor and an offset for each), or none.",
    )
    label_thresholds: LabelThresholds = Field(
        {},
        description=f"Decision threshold per label of a multilabel task (default {DEFAULT_THRESHOLD}); or highest_f1: "
        "for each label the one with the highest F1 on the images set aside for validation, if 20 of them have it.",
    )

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, backbone: str) -> str:
        if backbone not in backbones.BACKBONES and ":" not in backbone:
            raise ValueError(
                f"there is no backbone '{backbone}'; known are {', '.join(backbones.BACKBONES)}, and a function of "
                "your own, as my_package.networks:build"
            )
        find_backbone(backbone)
        return backbone

    @model_validator(mode="before")
    @classmethod
    def _train_longer_from_scratch(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("weights") == NO_WEIGHTS:
            return {"epochs": SCRATCH_EPOCHS} | dict(values)
        return values

    @model_validator(mode="after")
    def _refuse_weights_that_nobody_has(self) -> "TrainerConfig":
        if self.weights == IMAGENET and self.backbone not in backbones.BACKBONES:
            raise ValueError(
                f"trainer.weights: imagenet: Keras has none of {self.backbone}. Give a file of them (trainer.weights: "
                "FILE), or train from scratch (trainer.weights: none)"
            )
        return self

    @field_validator("distribution", mode="before")
    @classmethod
    def _refuse_several_machines(cls, distribution: object) -> object:
        if distribution == "multi_worker":
            raise ValueError(
                "multi_worker is no longer supported: a training runs on one machine. Use mirrored (all GPUs of the "
                "machine), or auto"
            )
        return distribution


EXPORT_SETTINGS = {"calibration", "label_thresholds"}
"""Keys of a ``TrainerConfig`` that only the export reads: the weights don't depend on them."""


class UnknownConfig(Section):
    """Which images get no label."""

    novelty: Annotated[float, Field(gt=0, le=1)] = Field(
        description="The novelty from which on the label is '': 0.99 leaves about one in a hundred images of the kinds "
        "that were trained on without a label."
    )


class ServingConfig(Section):
    """The ``serving`` section, as far as it concerns the exported model."""

    optimize: Literal["auto", "off"] = Field(
        "auto",
        description="How the exported network is optimized; auto: weights become constants and BatchNormalization is "
        "folded into the convolutions.",
    )
    engine: Literal["auto", "tensorflow", "openvino"] = Field(
        "tensorflow",
        description="What computes the network behind a server of ours: tensorflow; openvino (the extra of that name), "
        "for which a form of the network is written beside the SavedModel; auto: openvino where it is installed, "
        "accepted and faster on the machine that trains.",
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="Precision of what serves; auto: the fastest that is shown to give the network's answers. int8 is "
        "OpenVINO's alone, and needs nncf. One that is named is refused only if it is shown to do harm; then "
        "the run ends.",
    )
    max_loss: Share = Field(
        0.005,
        description="Loss of the main metric (accuracy; macro F1; of a regression, a share of its mean absolute error) "
        "up to which a faster form is not refused, on the images set aside for validation.",
    )
    min_agreement: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99,
        description="Minimum share of new images that get the answer of the network in float32: the lower end of its "
        "95 % interval, by the images set aside and up to 4,096 of those that it was trained on; by the former alone "
        "if they change more often.",
    )
    max_difference: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Maximum change of any probability, or of a regression's value in standard deviations of its "
        "target. By default there is none.",
    )
    unknown: UnknownConfig | None = Field(
        None, description="Which images get no label, as the model has seen nothing like them. By default all get one."
    )

    @model_validator(mode="after")
    def _refuse_what_no_engine_computes(self) -> "ServingConfig":
        if self.precision == "int8" and self.engine == "tensorflow":
            raise ValueError("precision: int8 is OpenVINO's: set engine: openvino, or auto")
        if self.optimize == "off" and (self.engine == "openvino" or self.precision in ("bfloat16", "int8")):
            raise ValueError("optimize: off exports the network itself, by TensorFlow in float32")
        return self

    @field_validator("optimize", mode="before")
    @classmethod
    def _accept_yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads an unquoted off as false


def find_backbone(name: str) -> backbones.Backbone:
    """Returns what is known of a backbone, a built-in one or one of the user's own.

    Raises:
        ValueError: there is no such one.
    """
    return backbones.BACKBONES.get(name) or own_backbone.read_backbone(name)


def override_settings(config: TrainerConfig, values: Mapping[str, Any]) -> TrainerConfig:
    """Returns the configuration with other values, given by dotted key such as ``augmentation.rotation``.

    Raises:
        pydantic.ValidationError: if a value is not valid for its key.
    """
    settings = config.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        reduce(lambda section, name: section[name], sections, settings)[last] = value
    return TrainerConfig(**settings)


def list_given(settings: Mapping[str, Any]) -> list[tuple[Literal["backbone", "weights"], str]]:
    """Returns those keys of a ``TrainerConfig`` that name something of the user's own, and its name."""
    backbone, weights = settings.get("backbone", backbones.DEFAULT), settings.get("weights", IMAGENET)
    given: list[tuple[Literal["backbone", "weights"], str]] = []
    if backbone not in backbones.BACKBONES:
        given.append(("backbone", backbone))
    if weights not in (IMAGENET, NO_WEIGHTS):
        given.append(("weights", weights))
    return given


def list_thresholds(labels: Sequence[str], label_thresholds: LabelThresholds) -> list[float]:
    """Returns the decision threshold of each label of a multilabel task, in the order of ``labels``.

    Args:
        labels: all labels.
        label_thresholds: thresholds by label; labels that are not listed get the default of 0.5, as do all of them
            until theirs are chosen.

    Raises:
        ValueError: if ``label_thresholds`` names a label that is not among ``labels``.
    """
    given = {} if isinstance(label_thresholds, str) else label_thresholds
    if message := describe_unknown(given, labels, "labels of the split train"):
        raise ValueError(f"trainer.label_thresholds: {message}")
    return [given.get(label, DEFAULT_THRESHOLD) for label in labels]
