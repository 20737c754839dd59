"""Checks before a run: finds in seconds, without TensorFlow, what would fail it after minutes."""

import os
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError, TrainingError, WeightsError
from imagepipe.base.features import Features
from imagepipe.base.names import TaskName
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic
from imagepipe.deploy.saved_model import read_task
from imagepipe.deploy.signing import check_private_key
from pipeline.config import Config
from pipeline.runs.tracking import check_tracking
from pipeline.source import Source, find_examples, list_label_types
from trainer.config import NO_WEIGHTS, ServingConfig
from trainer.pretrained import check_weights
from trainer.unfreezing import check_layers

_SCHEMA_TYPES = {"bytes": "BYTES", "int64": "INT", "float": "FLOAT"}


def check_run(config: Config, deploy: DeployConfig) -> Source:
    """Checks that the runner, the data, the live model, the weights and the schema are what the configuration says.

    Args:
        config: the configuration.
        deploy: its section ``deploy``, with name and path.

    Returns:
        The Examples.

    Raises:
        ConfigError: if they aren't.
        UnavailableError: if the target that serves the live model can't be asked.
    """
    if config.beam.runner == "dataflow":
        raise ConfigError(
            "beam.runner: dataflow: its workers can't open the workdir, which is on this machine. Leave it out for "
            "`imagepipe run`, or run the pipeline on a cluster (`imagepipe submit`)"
        )
    check_tracking(config.tracking)
    source = find_examples(config)
    _check_serving_folder(str(deploy.path))
    if deploy.sign:
        check_private_key(deploy.sign)
    check_pretrained(config)
    check_unfreezing(config)
    _check_engine(config.serving)
    if config.data.curated_schema:
        _check_schema(config.data.curated_schema, config.data.features.make_features(), config.task)
    _check_live_model(deploy, config)  # last, as the client of a cluster or a cloud takes seconds to import
    return source


def check_pretrained(config: Config) -> None:
    """Checks that the weights to start from are there, and the backbone's.

    Raises:
        ConfigError: if they aren't.
    """
    try:
        check_weights(config.trainer.weights, config.trainer.backbone)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


def check_unfreezing(config: Config) -> None:
    """Checks that a built-in backbone has the layers above which fine-tuning starts, also those of a search.

    Raises:
        ConfigError: if it lacks one.
    """
    if config.trainer.weights == NO_WEIGHTS:
        return
    layer, span = config.trainer.unfreeze_after, config.tuner and config.tuner.space.get("unfreeze_after")
    try:
        check_layers("trainer.unfreeze_after", [layer] if layer else [], config.trainer.backbone)
        check_layers("tuner.space.unfreeze_after", (span.values or ()) if span else (), config.trainer.backbone)
    except TrainingError as error:
        raise ConfigError(str(error)) from error


def _check_engine(serving: ServingConfig) -> None:
    """Refuses an engine or a precision that this machine lacks."""
    if serving.engine == "tensorflow":
        return
    from trainer.devices import check_engine  # only now, as it takes TensorFlow

    try:
        check_engine(serving)
    except TrainingError as error:
        raise ConfigError(str(error)) from error


def _check_serving_folder(path: str) -> None:
    """Refuses a folder of versions that can't be made, written or loaded from; of a store only a push tells."""
    if filesystem.is_uri(path) and not filesystem.is_plain(path):
        raise ConfigError(f"deploy.path: {path} has [, * or ? in it, which a store takes for a pattern of names")
    folder = Path(path)
    while not filesystem.is_uri(path) and not folder.exists():
        folder = folder.parent
    if not filesystem.is_uri(path) and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"deploy.path: no model can be written into {path}: {folder} is no folder, or is read-only")


def _check_live_model(deploy: DeployConfig, config: Config) -> None:
    """Refuses a live model of another task: a candidate is compared with it, and takes its place."""
    live = sort_by_traffic(targets.load_target(deploy).status(deploy))[:1]
    if live and (task := read_task(storage.fetch_assets(live[0].uri))) != config.task:
        raise ConfigError(
            f"task: {config.task}, but {live[0].uri}, which is live, does {task}. "
            "Give the pipeline another name, or remove the live model."
        )


def _check_schema(path: str, features: Features, task: TaskName) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"data.curated_schema: there is no file {path}")
    try:
        schema = text_format.Parse(Path(path).read_text(encoding="utf-8"), schema_pb2.Schema())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.curated_schema: {path} is not a schema: {error}") from error
    columns = {column.name: column for column in schema.feature}
    if missing := sorted({features.input, features.label, *features.side} - set(columns)):
        raise ConfigError(
            f"data.curated_schema: {path} lacks {', '.join(missing)}. One to start from is written by "
            "`imagepipe schema DATASET --freeze FILE`."
        )
    kind = schema_pb2.FeatureType.Name(columns[features.label].type)
    allowed = [_SCHEMA_TYPES[name] for name in list_label_types(task)]
    if kind not in allowed:
        raise ConfigError(
            f"data.curated_schema: in {path} the label '{features.label}' has the type {kind}; "
            f"task: {task} needs {' or '.join(allowed)}"
        )
