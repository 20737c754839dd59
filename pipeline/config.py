"""The configuration: a model for each section of ``pipeline.yaml``, which ``pipeline.config_file`` reads."""

import keyword
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from components.data_check.config import ValidationConfig
from imagepipe.base.beam_options import OptionValue, RunnerName, check_options, make_arguments
from imagepipe.base.features import IMAGE, MAX_SIDE_FEATURES, SIZE, TARGET, Features
from imagepipe.base.metrics import DEFAULT_THRESHOLDS, METRICS
from imagepipe.base.names import TaskName
from imagepipe.base.section import Section, Share
from imagepipe.deploy.config import DeployConfig, is_service_name
from imagepipe.ingest import dataset
from pipeline.kubeflow_config import KubeflowConfig
from pipeline.monitoring_config import MonitoringConfig
from pipeline.tracking_config import TrackingConfig
from trainer.config import ServingConfig, TrainerConfig, find_backbone
from trainer.search_space import TunerConfig, check_space

_MAX_SIDE = 4096

# "self" is the first argument of TensorFlow's own functions.
_OWN_NAMES = {IMAGE, TARGET, SIZE, "self", *dataset.list_features("classification", has_groups=True)}

Column = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=1, le=_MAX_SIDE)]


def find_side_problems(names: Sequence[str]) -> dict[str, str]:
    """Returns why columns can't be side features, as text by name; nothing for those that can.

    A side feature is an input of the served model's signature, and a key of each request.
    """
    problems = {}
    inputs = {"input": "input", "metadata": "metadata"}  # by what TensorFlow makes of them
    for name in names:
        if name in _OWN_NAMES:
            problems[name] = f"{name}: the pipeline uses this name itself; rename the column"
        elif not name.isascii() or not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
            problems[name] = (
                f"{name}: TensorFlow takes no such name as an input of the served model. Rename the column: ASCII "
                "letters, digits and _, a letter first, and no word of Python's"
            )
        elif (other := inputs.setdefault(name.lower(), name)) != name:
            problems[name] = (
                f"{name}: to TensorFlow the same name as {other}, as only the case differs; rename the column"
            )
    return problems


class FeaturesConfig(Section):
    """Names of the features in the Examples."""

    input: Column = Field("input", description="Feature with the encoded image, JPEG or PNG.")
    label: Column = Field(
        "label",
        description="Feature with the label: text or a whole number; for multilabel any number of them, for regression "
        "one number.",
    )
    label_map: str | None = Field(
        None,
        description="File with the names of labels that are whole numbers: a name on each line, from 0; or "
        "`number:name` on each line; or a label map (`.pbtxt`) of TensorFlow's object detection. By default a number "
        "is its own name.",
    )
    metadata: Column = Field(
        "metadata", description="Feature with the caller's id of the image, which every prediction returns."
    )
    group: Column | None = Field(
        None,
        description="Feature with the group that an image belongs to, such as the patient: text or a whole number; "
        "empty text is none. Intervals and paired tests count groups. TFRecords that aren't split already are split by "
        "it, and an image without one by itself. By default group, where `ingest --group` wrote it.",
    )
    numeric: tuple[Column, ...] = Field(
        (), description="Features with a number that enter the network next to the image."
    )
    categorical: tuple[Column, ...] = Field(
        (), description="Features with text or a whole number that enter the network next to the image."
    )

    @model_validator(mode="after")
    def _check_roles(self) -> "FeaturesConfig":
        groups = [self.group] if self.group else []
        names = [self.input, self.label, self.metadata, *groups, *self.numeric, *self.categorical]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(duplicates)}: a feature has one role")
        if (count := len(self.numeric) + len(self.categorical)) > MAX_SIDE_FEATURES:
            raise ValueError(f"{count} side features, and a model takes at most {MAX_SIDE_FEATURES}; leave some out")
        for problem in find_side_problems([*self.numeric, *self.categorical]).values():
            raise ValueError(problem)
        return self

    def make_features(self) -> Features:
        """Returns the same names as the type that the other packages take."""
        return Features(**self.model_dump(exclude_none=True, exclude={"label_map"}))


class DataConfig(Section):
    """The Examples to learn from, and what they must be like."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="Folder that `imagepipe ingest` wrote, or TFRecords made elsewhere: a folder (with folders, or "
        "files, called train and validation, if they are split), a pattern or a file; on this machine, or s3://…, gs://…."
    )
    features: FeaturesConfig = Field(FeaturesConfig(), description="Names of the features in the Examples.")
    split: dict[Literal["train", "eval", "test"], Annotated[int, Field(ge=1)]] = Field(
        {"train": 8, "eval": 1, "test": 1},
        description="Weights by which TFRecords made elsewhere are split, if they aren't split already.",
    )
    curated_schema: str | None = Field(
        None,
        description="File with a schema that a person has corrected (`imagepipe schema DATASET --freeze FILE`). By "
        "default the schema is inferred from the data.",
    )
    validation: ValidationConfig = Field(
        ValidationConfig(), description="What DataCheck looks for, and which findings stop the run."
    )

    @model_validator(mode="after")
    def _check_splits(self) -> "DataConfig":
        if missing := sorted({"train", "eval"} - set(self.split)):
            raise ValueError(f"split: the pipeline needs the splits train and eval; {' and '.join(missing)} is missing")
        return self


class ImageConfig(Section):
    """The images as the network sees them."""

    size: tuple[Side, Side] = Field(
        description="Height and width in pixels; by default those at which the backbone was trained."
    )


class RuleConfig(Section):
    """A rule of the gate: a metric with one of ``min``, ``max`` and ``not_worse_than_champion``."""

    metric: str = Field(description="Name of the metric, one of those of the task.")
    slice: dict[Column, str] = Field(
        {}, description="Images that the rule is about, by column and value, such as {label: tulips}; by default all."
    )
    min: float | None = Field(None, description="Minimum of the metric.")
    max: float | None = Field(None, description="Maximum of the metric.")
    not_worse_than_champion: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="How much worse the metric may be than the live model's: a difference, or a share for the "
        "errors of a regression.",
    )
    significance: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Level of significance. A model that is worse by more than not_worse_than_champion is refused only "
        "if a test of the paired predictions gives a lower p-value: McNemar's test for accuracy, a paired t-test for "
        "the errors of a regression, a randomization test for the metrics of a multilabel task's decisions.",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> "RuleConfig":
        bounds = [bound for bound in (self.min, self.max, self.not_worse_than_champion) if bound is not None]
        if len(bounds) != 1:
            raise ValueError("one of min, max and not_worse_than_champion has to be given")
        if self.significance is not None and self.not_worse_than_champion is None:
            raise ValueError("significance: goes with not_worse_than_champion")
        return self


class EvaluationConfig(Section):
    """How a model is measured, and the gate: what it must reach to be pushed."""

    rules: tuple[RuleConfig, ...] = Field((), description="Rules that a model must keep to be pushed.")
    thresholds: dict[str, float] = Field(
        {},
        description="Shorthand for rules on all images, by metric: a minimum, or for errors and losses a maximum. By "
        "default {accuracy: 0.8} for a classification, none for the other tasks.",
    )
    margin: Share = Field(
        0.01,
        description="Shorthand for not_worse_than_champion on all images, in the metric that sums up the task: "
        "accuracy, macro F1, or the mean absolute error of a regression, of which it is a share.",
    )
    slices: tuple[Column, ...] = Field(
        (),
        description="Columns: the metrics are computed for the images with each of their values as well. The label and "
        "buckets of the images' size are always among them. Others, and those of rules, may have up to 200 values; "
        "DataCheck stops a run with more before anything is trained.",
    )
    intervals: Literal["jackknife", "none"] = Field(
        "jackknife", description="Method for the metrics' 95 % confidence intervals."
    )
    top_k: Annotated[int, Field(ge=2)] = Field(
        5,
        description="Number of classes that count in a classification's top_k_accuracy. There is no such metric unless "
        "there are more classes: it would always be 1.",
    )

    @field_validator("slices")
    @classmethod
    def _refuse_duplicates(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if duplicates := sorted({name for name in slices if slices.count(name) > 1}):
            raise ValueError(f"{', '.join(duplicates)}: given twice")
        return slices

    @model_validator(mode="after")
    def _check_columns(self) -> "EvaluationConfig":
        # TFMA takes these from the transform graph: pixels, and the label's index.
        columns = {*self.slices, *(column for rule in self.rules for column in rule.slice)}
        if reserved := sorted({IMAGE, TARGET} & columns):
            raise ValueError(f"{', '.join(reserved)}: no slices by this column, as the pipeline uses the name itself")
        return self


class ServedConfig(ServingConfig):
    """The graph that is exported for serving, and how fast it has to answer."""

    latency_budget_ms: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Maximum time of a request with one image in milliseconds: 95th percentile, on the machine that "
        "runs the pipeline. By default there is none.",
    )


class BeamConfig(Section):
    """How Beam does the data work: in the pipeline, in ``ingest`` and in ``batch-predict``."""

    runner: RunnerName = Field(
        "direct",
        description="Beam's runner: direct is this machine, or the component's container; portable is any job server "
        "(Flink's, Spark's, …) at options.job_endpoint.",
    )
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], OptionValue | list[OptionValue]] = Field(
        {},
        description="Beam's options for that runner, such as {project: …, region: …, temp_location: gs://…}; a list "
        "gives an option several times.",
    )

    @model_validator(mode="after")
    def _check_options(self) -> "BeamConfig":
        check_options(self.runner, self.options)
        return self

    def make_arguments(self) -> list[str]:
        """Returns the same as Beam's arguments, for TFX's components."""
        # Only Dataflow reads it, but without it each component packs TFX for workers that may lack it: 52 MB that are
        # never removed.
        unread = ["--sdk_container_image=none"] if self.runner != "dataflow" else []
        # Worker processes import tfx first, so that they can unpickle TFDV's functions: see components.tfdv.
        return [*unread, "--beam_plugins=tfx", *make_arguments(self.runner, self.options)]


class RunConfig(Section):
    """Runs on this machine."""

    keep: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Number of runs, and of versions of the model, that are kept: each run that ends without an error "
        "then removes what older ones left, as `imagepipe clean` does. By default nothing is removed.",
    )


MACHINE_SECTIONS = ("monitoring", "run", "tracking", "beam", "kubeflow")
"""Sections about machines and services: not what a model is made from."""


class Config(Section):
    """The whole configuration.

    Paths are absolute once it is read: relative ones in the file are relative to the file, those of ``--set`` to the
    current folder.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)] = Field(
        description="Name of the pipeline and of the model that it serves: lower-case letters, digits, - and _."
    )
    task: TaskName = Field(
        "classification",
        description="What is learned: one of several classes, any number of labels (multilabel), or a number "
        "(regression).",
    )
    data: DataConfig = Field(description="The Examples to learn from, and what they must be like.")
    trainer: TrainerConfig = Field(TrainerConfig(), description="The network and its training.")
    tuner: TunerConfig | None = Field(
        None, description="A search for better settings of the section trainer; by default there is none."
    )
    image: ImageConfig = Field(  # after trainer, on which it depends
        {}, validate_default=True, description="The images as the network sees them."
    )
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="How a model is measured, and what it must reach to be pushed."
    )
    serving: ServedConfig = Field(
        ServedConfig(), description="The graph that is exported for serving, and how fast it has to answer."
    )
    deploy: DeployConfig = Field(DeployConfig(), description="Where a blessed model goes.")
    monitoring: MonitoringConfig = Field(MonitoringConfig(), description="How the live model is monitored.")
    run: RunConfig = Field(RunConfig(), description="How runs on this machine are kept.")
    tracking: TrackingConfig = Field(
        TrackingConfig(), description="Where runs on this machine are recorded besides their own folders."
    )
    beam: BeamConfig = Field(BeamConfig(), description="How Beam does the data work.")
    kubeflow: KubeflowConfig = Field(
        KubeflowConfig(), description="Where and how the pipeline runs on Kubeflow Pipelines or Vertex AI."
    )

    @field_validator("image", mode="before")
    @classmethod
    def _fill_in_size(cls, image: Any, info: ValidationInfo) -> Any:
        if isinstance(image, dict) and image.get("size") is None:
            return image | {"size": find_backbone(_get_backbone(info)).size}
        return image

    @field_validator("image")
    @classmethod
    def _check_size(cls, image: ImageConfig, info: ValidationInfo) -> ImageConfig:
        backbone = _get_backbone(info)
        minimum = find_backbone(backbone).min_side
        if min(image.size) < minimum:
            raise ValueError(
                f"size: {list(image.size)} is too small; {backbone} takes {minimum} pixels or more per side"
            )
        return image

    @model_validator(mode="before")
    @classmethod
    def _fill_in_thresholds(cls, values: Any) -> Any:
        given = values.get("evaluation", {}) if isinstance(values, dict) else None
        given = given.model_dump(exclude_unset=True) if isinstance(given, EvaluationConfig) else given
        if not isinstance(given, dict):
            return values  # which is then refused
        default = DEFAULT_THRESHOLDS.get(str(values.get("task", "classification")), {})
        return values | {"evaluation": {"thresholds": default} | given}

    @model_validator(mode="after")
    def _check_task(self) -> "Config":
        metrics = METRICS[self.task]
        if self.task == "regression" and self.data.features.label_map:
            raise ValueError(
                "data.features.label_map: a regression's labels are values, which have no names; leave it out"
            )
        for name, value in self.evaluation.thresholds.items():
            self._check_bound(f"evaluation.thresholds.{name}", name, value)
        for number, rule in enumerate(self.evaluation.rules):
            key = f"evaluation.rules.{number}"
            self._check_bound(f"{key}.metric", rule.metric, rule.min if rule.min is not None else rule.max)
            if rule.significance is not None and not metrics[rule.metric].has_test:
                tested = ", ".join(name for name, metric in metrics.items() if metric.has_test)
                raise ValueError(
                    f"{key}.significance: {rule.metric} has no paired test; of the metrics of a {self.task} {tested} "
                    f"{'have' if ',' in tested else 'has'} one"
                )
        owners = {"loss": "regression", "label_thresholds": "multilabel", "class_weights": "classification"}
        for key, task in owners.items():
            if self.task != task and getattr(self.trainer, key) != TrainerConfig.model_fields[key].default:
                raise ValueError(f"trainer.{key}: is for task: {task}, and the task is {self.task}")
        return self

    def _check_bound(self, key: str, name: str, bound: float | None) -> None:
        metrics = METRICS[self.task]
        if name not in metrics:
            raise ValueError(f"{key}: a {self.task} has {', '.join(metrics)}")
        lowest, highest = metrics[name].lowest, metrics[name].highest
        if bound is not None and not lowest <= bound <= highest:
            raise ValueError(f"{key}: {bound} can't be reached; it lies between {lowest:g} and {highest:g}")

    @model_validator(mode="after")
    def _check_deployed_name(self) -> "Config":
        if self.deploy.target != "filesystem" and not self.deploy.name and not is_service_name(self.name):
            raise ValueError(f"deploy.name: has to be given, as {self.deploy.target} takes no '{self.name}'")
        return self

    @model_validator(mode="after")
    def _check_search(self) -> "Config":
        if self.tuner:
            check_space(self.tuner.space, self.trainer)
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> "Config":
        if not self.deploy.is_served_by_us and (self.serving.engine == "openvino" or self.serving.precision == "int8"):
            raise ValueError(
                f"serving.engine: deploy.target {self.deploy.target} takes TensorFlow's SavedModel, which is in "
                "float32 or bfloat16"
            )
        return self

    def dump_export_settings(self) -> dict[str, Any]:
        """Returns the keys of ``serving`` that concern the Trainer, as JSON values."""
        settings = self.serving.model_dump(mode="json", include=set(ServingConfig.model_fields))
        return settings if self.deploy.is_served_by_us else settings | {"engine": "tensorflow"}

    def make_deployment(self, path: str) -> DeployConfig:
        """Returns the section ``deploy``; the pipeline's name and ``path`` fill in a name and a path if not given."""
        return self.deploy.complete(self.name, path)


def _get_backbone(info: ValidationInfo) -> str:
    trainer: TrainerConfig = info.data.get("trainer", TrainerConfig())  # not there if it is wrong itself
    return trainer.backbone
