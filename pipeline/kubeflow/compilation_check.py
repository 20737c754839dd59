"""Checks, before TFX is loaded, that a configuration can be compiled for a cluster, and compiles it."""

import contextlib
import logging
import re
from pathlib import Path

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.label_map import read_label_map
from pipeline.config import Config
from pipeline.config_file import list_paths
from pipeline.kubeflow.submission import Cluster
from pipeline.logs import hide_output
from pipeline.preflight import check_pretrained, check_unfreezing
from pipeline.source import Source, find_examples

_log = logging.getLogger(__name__)


def check_and_compile(config: Config, cluster: Cluster, monitor: bool = False) -> str:
    """Compiles a pipeline that can run on a cluster, see ``pipeline.kubeflow.compile``.

    Args:
        config: the configuration.
        cluster: what is to run it.
        monitor: whether it is the pipeline that monitors the live model, instead of the one that trains.

    Raises:
        ConfigError: if it can't run there; TFX is not loaded for that.
    """
    if monitor:
        return _compile_monitor(config, cluster)
    source = _check_compilation(config, cluster)
    if config.tracking.mlflow:
        _log.warning("tracking.mlflow: only runs on this machine are recorded there; those of a cluster are not")
    with hide_output():
        from pipeline.kubeflow.compile import compile_pipeline

        return compile_pipeline(config, cluster, source)


def _compile_monitor(config: Config, cluster: Cluster) -> str:
    if not config.monitoring.capture:
        raise ConfigError(
            "monitoring.capture: has to be given: the folder of `imagepipe serve --capture`, as components see it"
        )
    _check_settings(config, cluster)
    with hide_output():
        from pipeline.kubeflow.compile import compile_monitor

        return compile_monitor(config, cluster)


# Others than gs:// only where our components read and write, and not TensorFlow: by fsspec.
_STORES = dict.fromkeys(
    ("data.path", "deploy.path", "monitoring.capture", "monitoring.feedback", "trainer.weights"), ("gs://", "s3://")
)


def _check_compilation(config: Config, cluster: Cluster) -> Source:
    """Checks that a configuration can run on a cluster.

    Args:
        config: the configuration.
        cluster: what is to run it.

    Returns:
        The Examples.

    Raises:
        ConfigError: if it can't run there.
    """
    _check_settings(config, cluster)
    _check_beam(config)
    check_unfreezing(config)
    weights = list_paths(config).get("trainer.weights")
    if weights and Path(weights).exists():  # or it is where only the components see it
        check_pretrained(config)
    return _find_source(config)


def _check_settings(config: Config, cluster: Cluster) -> None:
    settings = config.kubeflow
    if not settings.image:
        raise ConfigError("kubeflow.image: has to be given: the components' container image, which `make image` builds")
    if "_" in config.name:
        raise ConfigError(f"name: {config.name}: names of pipelines have no underscores there")
    if not config.deploy.path:
        raise ConfigError("deploy.path: has to be given: a folder that components see, on a volume or gs://…")
    if cluster == "vertex" and not _is_google(settings.pipeline_root):
        raise ConfigError("kubeflow.pipeline_root: has to be given for Vertex AI: a folder such as gs://bucket/runs")
    paths = list_paths(config)
    paths.pop("data.features.label_map", None)  # which is read here
    for key, path in paths.items():
        scheme = re.match(r"([a-z0-9+]+)://", path)
        if key == "deploy.sign" and (scheme or cluster == "vertex"):
            raise ConfigError(f"{key}: {path}: components read a key from a volume only, of which Vertex AI has none")
        if cluster == "vertex" and not _is_google(path):
            raise ConfigError(f"{key}: {path}: on Vertex AI it has to be in Cloud Storage: gs://…")
        stores = _STORES.get(key, ("gs://",))
        if scheme and scheme[0] not in stores:
            raise ConfigError(
                f"{key}: {path}: components read no {scheme[0]}. Use a volume (kubeflow.volumes), or "
                f"{' or '.join(stores)}"
            )
        if not scheme and not any(Path(path).is_relative_to(volume.path) for volume in settings.volumes):
            _log.warning(  # no error: the image may have it, or the cluster mounts volumes by itself
                "%s: %s is on none of kubeflow.volumes: unless it is in the image, components don't find it, and what "
                "they write there is gone with the pod",
                key,
                path,
            )


def _check_beam(config: Config) -> None:
    """Refuses data and artifacts that the containers can open, and Beam's workers elsewhere can't."""
    runner, path = config.beam.runner, config.data.path
    if runner == "direct":
        return
    if not _is_google(config.kubeflow.pipeline_root):
        raise ConfigError(
            f"beam.runner: {runner}: its workers read and write artifacts, and reach none in Kubeflow's own store. "
            "Give kubeflow.pipeline_root, a folder such as gs://bucket/runs"
        )
    if not _is_google(path) and (runner == "dataflow" or filesystem.is_uri(path)):
        volume = ", or on a volume that they mount at the same path" if runner == "portable" else ""
        raise ConfigError(f"data.path: {path}: for the workers of beam.runner: {runner} it has to be in gs://{volume}")


def _is_google(path: str | None) -> bool:
    return bool(path and path.startswith("gs://"))


def _find_source(config: Config) -> Source:
    """Returns the dataset's files if they are visible from here; else those that ``imagepipe ingest`` would write.

    With a label map they are taken for TFRecords made elsewhere, in files that are called alike.
    """
    path = config.data.path.rstrip("/")
    with contextlib.suppress(OSError):  # of a bucket that can't be reached
        if filesystem.exists(path) or filesystem.glob(path):
            return find_examples(config)
    label_map = config.data.features.label_map
    names = read_label_map(label_map) if label_map else None
    patterns = {split: f"{split}/*.tfrecord*" for split in ("train", "eval")}
    return Source(path, patterns, is_foreign=names is not None, label_names=names)
