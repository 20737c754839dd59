"""The configuration: one YAML file, checked when it is read."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from components.data_check.config import ValidationConfig
from imagepipe.base.beam_options import OptionValue, RunnerName, check_options, make_arguments
from imagepipe.base.errors import ConfigError
from imagepipe.base.features import IMAGE, TARGET, Features
from imagepipe.base.metrics import DEFAULT_THRESHOLDS, METRICS
from imagepipe.base.names import TaskName
from imagepipe.deploy.config import DeployConfig
from pipeline.kubeflow.config import KubeflowConfig
from trainer import space
from trainer.backbones import BACKBONES
from trainer.config import IMAGENET, NO_WEIGHTS, ServingConfig, TrainerConfig
from trainer.space import TunerConfig

_MOST_SIDE = 4096

Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Column = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=1, le=_MOST_SIDE)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturesConfig(_Section):
    """Names of the features in the Examples, see ``imagepipe.base.features.Features``."""

    input: Column = "input"
    label: Column = "label"
    metadata: Column = "metadata"
    numeric: tuple[Column, ...] = ()
    categorical: tuple[Column, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> "FeaturesConfig":
        names = [self.input, self.label, self.metadata, *self.numeric, *self.categorical]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: a feature has one role")
        reserved = sorted({IMAGE, TARGET} & {*self.numeric, *self.categorical})
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: the pipeline uses this name itself; rename the column")
        return self

    def names(self) -> Features:
        """The same, for those who don't know the configuration."""
        return Features(**self.model_dump())


class DataConfig(_Section):
    """Where the Examples are."""

    path: Annotated[str, Field(min_length=1)]
    features: FeaturesConfig = FeaturesConfig()
    split: dict[Literal["train", "eval", "test"], Annotated[int, Field(ge=1)]] = {"train": 8, "eval": 1, "test": 1}
    curated_schema: str | None = None
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _train_and_eval(self) -> "DataConfig":
        missing = sorted({"train", "eval"} - set(self.split))
        if missing:
            raise ValueError(f"split: the pipeline needs the splits train and eval; {' and '.join(missing)} is missing")
        return self


class ImageConfig(_Section):
    """What the model sees: (height, width) in pixels, where none is given those of the backbone."""

    size: tuple[Side, Side]


class RuleConfig(_Section):
    """What a model must reach in a metric to be pushed: one of ``min``, ``max`` and ``not_worse_than_champion``.

    Attributes:
        metric: see ``imagepipe.base.metrics``.
        slice: the images that it is about, by column and value, such as ``{label: tulips}``; by default all.
        min: the least that it may be.
        max: the most that it may be.
        not_worse_than_champion: by how much it may be behind the live model's; of an error in a regression a share.
        significance: what is worse by more than that is refused only if a test of the paired predictions says that
            chance is less probable than this. For accuracy (McNemar's test), the errors of a regression (a paired
            t-test), and figures of what is said of several labels (a randomization test).
    """

    metric: str
    slice: dict[Column, str] = {}
    min: Number | None = None
    max: Number | None = None
    not_worse_than_champion: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    significance: Annotated[float, Field(gt=0, lt=1)] | None = None

    @field_validator("slice", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        # In YAML the class 7 is a number; in the data it may be text as well, and is written alike.
        return {k: str(v) if type(v) is int else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _demands_one_thing(self) -> "RuleConfig":
        given = [each for each in (self.min, self.max, self.not_worse_than_champion) if each is not None]
        if len(given) != 1:
            raise ValueError("one of min, max and not_worse_than_champion has to be given")
        if self.significance is not None and self.not_worse_than_champion is None:
            raise ValueError("significance: goes with not_worse_than_champion")
        return self


class EvaluationConfig(_Section):
    """What is measured of a model, and what it must reach to be pushed.

    Attributes:
        rules: what it must reach.
        thresholds: shorthand for rules with ``min``, of errors ``max``, on all images, by metric; a classification's
            accuracy has one by default.
        margin: shorthand for ``not_worse_than_champion`` on all images, of the metric that says most of the task:
            accuracy, macro F1, of a regression the mean absolute error, of which it is a share.
        slices: columns: what is measured of all images is measured of those with each value as well. The label and
            buckets of the images' size are always among them. Others, and those of rules, may have up to 200 values:
            DataCheck stops a run with more before anything is trained.
        intervals: how sure the figures are, by TFMA's method: ``jackknife``, which takes some 20 s more, or
            ``bootstrap``, which takes 20 times what the metrics take, or ``none``.
        top_k: so many classes count in a classification's top_k_accuracy.
    """

    rules: tuple[RuleConfig, ...] = ()
    thresholds: dict[str, Number] = {}
    margin: Share = 0.01
    slices: tuple[Column, ...] = ()
    intervals: Literal["jackknife", "bootstrap", "none"] = "jackknife"
    top_k: Annotated[int, Field(ge=2)] = 5

    @field_validator("slices")
    @classmethod
    def _each_once(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in slices if slices.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: is there twice")
        return slices


class ServedConfig(ServingConfig):
    """The ``serving`` section: what of the network is exported, see ``trainer.config``, and how fast it has to be.

    Attributes:
        latency_budget_ms: most that a request of one image may take, 95th percentile on the machine that runs the
            pipeline, in milliseconds; None for any.
    """

    latency_budget_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def exported(self) -> dict[str, Any]:
        """What of it concerns the Trainer."""
        return self.model_dump(mode="json", include=set(ServingConfig.model_fields))


class BeamConfig(_Section):
    """How Beam does the data work, in the pipeline, in ``ingest`` and in ``batch-predict``.

    Attributes:
        runner: what does it; ``direct`` is this machine, or the component's container.
        options: Beam's for that runner, such as ``{project: …, region: …, temp_location: gs://…}``; a list repeats one.
    """

    runner: RunnerName = "direct"
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], OptionValue | list[OptionValue]] = {}

    @model_validator(mode="after")
    def _can_run(self) -> "BeamConfig":
        check_options(self.runner, self.options)
        return self

    def args(self) -> list[str]:
        """The same as Beam's arguments, for TFX's components."""
        # Without these two, Beam may hand the work to a runner that it downloads as a binary.
        local = ["--direct_running_mode=in_memory", "--direct_num_workers=1"] if self.runner == "direct" else []
        # Workers in processes of their own import this first: it stands in for a module that TFDV and TFMA, of which
        # they are sent functions, miss in tfx-bsl's wheel.
        return [*local, "--beam_plugins=tfx.components", *make_arguments(self.runner, self.options)]


class Config(_Section):
    """All of the configuration.

    Paths are absolute once it is read: relative ones in the file are relative to the file.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]
    task: TaskName = "classification"
    data: DataConfig
    trainer: TrainerConfig = TrainerConfig()
    tuner: TunerConfig | None = None
    image: ImageConfig = Field({}, validate_default=True)  # after trainer, on which it depends
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServedConfig = ServedConfig()
    deploy: DeployConfig = DeployConfig()
    beam: BeamConfig = BeamConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()

    @field_validator("image", mode="before")
    @classmethod
    def _size_of_backbone(cls, image: Any, info: ValidationInfo) -> Any:
        if isinstance(image, dict) and image.get("size") is None:
            return image | {"size": BACKBONES[_backbone(info)].size}
        return image

    @field_validator("image")
    @classmethod
    def _large_enough(cls, image: ImageConfig, info: ValidationInfo) -> ImageConfig:
        backbone = _backbone(info)
        least = BACKBONES[backbone].least
        if min(image.size) < least:
            raise ValueError(f"size: {list(image.size)} is too small, {backbone} takes {least} and more a side")
        return image

    @model_validator(mode="before")
    @classmethod
    def _thresholds_of_the_task(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("evaluation", {}), dict):
            return values  # which is then refused
        default = DEFAULT_THRESHOLDS.get(str(values.get("task", "classification")), {})
        return values | {"evaluation": {"thresholds": default} | values.get("evaluation", {})}

    @model_validator(mode="after")
    def _fits_the_task(self) -> "Config":
        for name, value in self.evaluation.thresholds.items():
            self._check_bound(f"evaluation.thresholds.{name}", name, value)
        for number, rule in enumerate(self.evaluation.rules):
            key = f"evaluation.rules.{number}"
            self._check_bound(f"{key}.metric", rule.metric, rule.min if rule.min is not None else rule.max)
            measures = METRICS[self.task]
            if rule.significance is not None and not measures[rule.metric].has_test:
                tested = ", ".join(name for name, measure in measures.items() if measure.has_test)
                raise ValueError(
                    f"{key}.significance: {rule.metric} has no paired test; of the metrics of a {self.task} {tested} "
                    f"{'have' if ',' in tested else 'has'} one"
                )
        for key, task in (
            ("loss", "regression"),
            ("label_thresholds", "multilabel"),
            ("class_weights", "classification"),
        ):
            if self.task != task and getattr(self.trainer, key) != TrainerConfig.model_fields[key].default:
                raise ValueError(f"trainer.{key}: is for task: {task}, and the task is {self.task}")
        return self

    def _check_bound(self, key: str, metric: str, bound: float | None) -> None:
        measures = METRICS[self.task]
        if metric not in measures:
            raise ValueError(f"{key}: a {self.task} has {', '.join(measures)}")
        if bound is not None and not measures[metric].lowest <= bound <= measures[metric].highest:
            raise ValueError(
                f"{key}: {bound} can't be reached; "
                f"it lies between {measures[metric].lowest:g} and {measures[metric].highest:g}"
            )

    @model_validator(mode="after")
    def _has_a_name_there(self) -> "Config":
        if self.deploy.target != "filesystem" and not self.deploy.name:
            try:
                DeployConfig(name=self.name)
            except ValidationError as error:
                raise ValueError(
                    f"deploy.name: has to be given, as {self.deploy.target} takes no '{self.name}'"
                ) from error
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> "Config":
        if self.tuner:
            space.check(self.tuner.space, self.trainer)
        return self

    def deployment(self, path: str) -> DeployConfig:
        """The ``deploy`` section, its name and path given, where needed by the pipeline's name and by ``path``."""
        deploy = self.deploy
        return deploy.model_copy(update={"name": deploy.name or self.name, "path": deploy.path or path})


def _backbone(info: ValidationInfo) -> str:
    trainer: TrainerConfig = info.data.get("trainer", TrainerConfig())  # not there if it is wrong itself
    return trainer.backbone


def read(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Reads a configuration file.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` each, the value in YAML; they replace what the file says.

    Returns:
        The configuration, its paths absolute.

    Raises:
        ConfigError: if the file or an override can't be read, or says what can't be.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. 'imagepipe init DATASET' writes a configuration.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values such as 'name: flowers'")
    for override in overrides:
        _set(values, override)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join([f"{path}:", *(f"  {_describe(e)}" for e in error.errors())])) from error
    return _with_absolute_paths(config, path.parent)


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as trainer.batch_size=64")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {section} has no keys of its own")
        values = inner
    values[last] = value


def _describe(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            if part in section.model_fields:  # or it is a key of a dict of sections
                annotation = section.model_fields[part].annotation
                inner = [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")]
                section = inner[0] if inner else section
        return f"{key}: unknown key; known are {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: has to be given"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # it is about several keys, and names them
        return message
    return f"{key}: {message}" + ("" if error["type"] == "value_error" else f" (it is {error['input']!r})")


def _with_absolute_paths(config: Config, root: Path) -> Config:
    def absolute(value: str) -> str:
        return value if "://" in value else str((root / Path(value).expanduser()).resolve())

    def update(section: _Section | TrainerConfig | DeployConfig, **paths: str | None) -> Any:
        return section.model_copy(update={key: absolute(value) for key, value in paths.items() if value is not None})

    weights = config.trainer.weights
    return config.model_copy(
        update={
            "data": update(config.data, path=config.data.path, curated_schema=config.data.curated_schema),
            "deploy": update(config.deploy, path=config.deploy.path),
            "trainer": update(config.trainer, weights=None if weights in (IMAGENET, NO_WEIGHTS) else weights),
        }
    )
