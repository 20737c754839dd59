"""Submits a pipeline to Kubeflow Pipelines or to Vertex AI, for a run now or for runs on a schedule."""

from pathlib import Path

from imagepipe.base.errors import ConfigError
from pipeline.config_file import parse_config, read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from pipeline.kubeflow.package import Package, find_package, parse_package
from pipeline.kubeflow.submission import Cluster, Submission, SubmittedRun
from pipeline.kubeflow_config import KubeflowConfig

# Keys of the section kubeflow that still have an effect once a pipeline is compiled. Labels of pods are compiled.
_AT_SUBMISSION: dict[Cluster, tuple[str, ...]] = {
    "kubeflow": ("host", "namespace", "experiment", "pipeline_root"),
    "vertex": ("pipeline_root", "labels", "vertex"),
}

_CONFIG = Path("pipeline.yaml")


def prepare_package(
    file: Path, config: Path | None, cluster: Cluster, overrides: tuple[str, ...], monitor: bool = False
) -> tuple[Package, KubeflowConfig]:
    """Reads or compiles the pipeline that is to be submitted, and reads where it goes.

    Args:
        file: a configuration, which is compiled, or a compiled pipeline.
        config: with a compiled pipeline, the configuration, for its section ``kubeflow``. By default ``pipeline.yaml``
            in the current folder, if there is one; else all of it is in the overrides.
        cluster: what is to run it.
        overrides: overrides of the configuration, see ``pipeline.config_file.read_config``.
        monitor: whether the pipeline that monitors is compiled, instead of the one that trains.

    Raises:
        ConfigError: if there is no such file, or an override would have no effect.
    """
    if package := find_package(file):
        for override in overrides:
            if not counts_at_submission(override, cluster):
                raise ConfigError(
                    f"--set {override}: {file} is compiled already; on {cluster} the keys of kubeflow that still count "
                    f"are {', '.join(_AT_SUBMISSION[cluster])}. Compile it again, or see --param"
                )
        if monitor:
            raise ConfigError(
                f"--monitor: {file} is compiled already. `imagepipe compile --monitor` makes that pipeline"
            )
        return package, _read_settings(config, overrides)
    settings = read_config(file, overrides)
    return parse_package(check_and_compile(settings, cluster, monitor), str(file)), settings.kubeflow


def counts_at_submission(override: str, cluster: Cluster) -> bool:
    """Returns whether an override, ``key.path=value``, has an effect on what is compiled already."""
    section, _, key = override.partition("=")[0].partition(".")
    return section == "kubeflow" and key.partition(".")[0] in _AT_SUBMISSION[cluster]


def _read_settings(config: Path | None, overrides: tuple[str, ...]) -> KubeflowConfig:
    if config or _CONFIG.exists():
        return read_config(config or _CONFIG, overrides).kubeflow
    needed = {"name": "compiled", "data": {"path": "compiled"}}  # to be a configuration, and of no effect here
    return parse_config(needed, overrides, "--set", Path.cwd()).kubeflow


def submit(package: Package, settings: KubeflowConfig, cluster: Cluster, submission: Submission) -> SubmittedRun:
    """Submits a pipeline.

    Args:
        package: the compiled pipeline.
        settings: where it goes.
        cluster: what runs it.
        submission: parameters, name and schedule of the run.

    Raises:
        ConfigError: if it can't be done with these settings.
        UnavailableError: if the cluster doesn't answer, or refuses.
    """
    if cluster == "kubeflow":
        from pipeline.kubeflow import kubeflow_pipelines

        return kubeflow_pipelines.submit(package, settings, submission)
    from pipeline.kubeflow import vertex_pipelines

    return vertex_pipelines.submit(package, settings, submission)
