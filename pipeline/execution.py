"""Executes the DAG of one run: shows its progress, keeps its summary up to date, and collects its results."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from tfx import types
from tfx.orchestration import metadata as mlmd
from tfx.utils import path_utils

from components.evaluator.evaluation import Evaluation
from components.evaluator.evaluation_reader import read_evaluation
from components.pusher.executor import OUTCOME, VERSION
from imagepipe.base import filesystem
from imagepipe.base.console import quote
from imagepipe.base.errors import ModelError, describe_error
from imagepipe.base.full_disk import is_full_disk
from imagepipe.base.names import FINDERS, OPTIMIZED, SERVING_REPORT, TRAINING_FOLDER
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import rank_by_traffic
from imagepipe.deploy.saved_model import read_labels
from imagepipe.serving.types import CheckReport
from pipeline import local_runner, logs
from pipeline.config import Config
from pipeline.dag import NEVER_CACHED, create_pipeline
from pipeline.runs import provenance, run_metrics
from pipeline.runs.report_page import PAGE
from pipeline.runs.summary import Node, Push, Served, Summary, write_summary
from pipeline.source import Source, compute_fingerprint
from pipeline.staging import stage_examples
from pipeline.workdir import Workdir

Outputs = dict[str, dict[str, list[types.Artifact]]]
"""Artifacts by node and output key."""


def execute_dag(
    config: Config, source: Source, deploy: DeployConfig, workdir: Workdir, summary: Summary, console: Console
) -> None:
    """Executes all nodes of a run.

    Args:
        config: the configuration.
        source: its Examples.
        deploy: its section ``deploy``, with name and path.
        workdir: the pipeline's folders.
        summary: the run's summary, filled in as nodes end, and written each time. Its status becomes ``failed`` if a
            node fails; other errors are raised.
        console: shows a line per node.
    """
    start = time.monotonic()
    outputs: Outputs = {}
    current_node = ""
    run_dir = workdir.runs / summary.run_id
    data = compute_fingerprint(config.data.path, source)
    workdir.link_artifacts()
    pipeline = create_pipeline(
        config,
        stage_examples(source, workdir.data),
        pipeline_root=str(workdir.plain_artifacts),
        state_dir=str(workdir.plain_artifacts / workdir.training.name),
        deploy=deploy,
        beam_args=config.beam.make_arguments(),
        metadata=mlmd.sqlite_metadata_connection_config(str(workdir.metadata)),
    )
    provenance.write_origin(
        run_dir,
        config.model_dump(mode="json"),
        code=Path(__file__).parent,
        data=data,
        dag={node.id: sorted(upstream.id for upstream in node.upstream_nodes) for node in pipeline.components},
    )

    console.print(f"run {summary.run_id}, its log: {quote(summary.log)}")
    with (
        console.status("") as status,
        logs.show_training(
            line=lambda text: console.print(f"    {escape(workdir.name_artifacts(text))}"),
            moment=lambda text: status.update(Text(f"{current_node} … {text}")),
        ),
    ):

        def on_start(node: str) -> None:
            nonlocal current_node
            current_node = node
            logs.mark_node(node)
            status.update(f"{node} …")

        def on_end(node: local_runner.NodeResult) -> None:
            for artifact in (artifact for artifacts in node.outputs.values() for artifact in artifacts):
                artifact.uri = workdir.name_artifacts(artifact.uri)
            outputs[node.id] = node.outputs
            if node.id in FINDERS:  # not at the end: what they find may stop the run
                summary.data_dir = _get_artifact(outputs, node.id, FINDERS[node.id]).uri
            if node.id == "Pusher":  # nor this: it is live even if a node after it fails
                _record_push(summary, _get_artifact(outputs, node.id, "pushed_model"))
            summary.nodes.append(Node(id=node.id, seconds=round(node.seconds, 2), cached=node.cached))
            summary.seconds = round(time.monotonic() - start, 2)
            write_summary(summary, run_dir)
            console.print(f"  {node.id:<20} {'cached' if node.cached else f'{node.seconds:6.1f} s'}")
            # A run does not hold the dataset: an ingest may have changed what the lineage says was trained on.
            if node.id == "ImportExampleGen" and compute_fingerprint(config.data.path, source) != data:
                problem = f"the data at {config.data.path} changed while it was read, as by an ingest. Run again"
                raise local_runner.NodeError(node.id, problem)

        try:
            local_runner.run_nodes(pipeline, f"{config.name}.{summary.run_id}", NEVER_CACHED, on_start, on_end)
            _collect_results(summary, outputs, config.data.features.label, run_dir)
            summary.traffic = _ask_target(deploy)
            summary.status = "done"
        except local_runner.NodeError as error:
            summary.status, summary.error = "failed", workdir.name_artifacts(str(error))
            if summary.push:  # a node after the Pusher failed
                summary.traffic = _ask_target(deploy)
        finally:
            summary.seconds = round(time.monotonic() - start, 2)
            write_summary(summary, run_dir)


def _record_push(summary: Summary, pushed: types.Artifact) -> None:
    summary.pushed_version = pushed.get_string_custom_property("pushed_version") or None
    if outcome := pushed.get_string_custom_property(OUTCOME):
        summary.push = Push(outcome=outcome, version=pushed.get_string_custom_property(VERSION))


def _collect_results(summary: Summary, outputs: Outputs, label: str, run_dir: Path) -> None:
    """Copies into the summary and the run's folder what the nodes have written about the model.

    Raises:
        NodeError: if the results of one of them can't be read.
        OSError: if the run's folder can't be written.
    """
    if "Tuner" in outputs:
        with _read(outputs, "Tuner", "best_hyperparameters") as folder:
            summary.hyperparameters = run_metrics.read_best_hyperparameters(folder)
    with _read(outputs, "Evaluator", "evaluation") as folder:
        evaluation = read_evaluation(folder)
    summary.metrics = run_metrics.collect_candidate_metrics(evaluation.whole)
    summary.intervals = {name: value.interval for name, value in evaluation.whole.metrics.items() if value.interval}
    summary.groups = evaluation.whole.counted
    summary.champion_metrics = run_metrics.collect_champion_metrics(evaluation.whole)
    summary.champion_note = evaluation.champion_note
    summary.metrics_by_class = run_metrics.collect_metrics_by_class(evaluation, label)
    summary.rules = evaluation.rules
    summary.not_blessed_because = evaluation.refusals
    summary.unchecked = evaluation.unchecked
    with _read(outputs, "ServingCheck", "blessing") as folder:
        summary.serving = CheckReport(**json.loads(filesystem.read_text(f"{folder}/{SERVING_REPORT}")))
    with _read(outputs, "Trainer", "model") as folder:
        model = Path(path_utils.serving_model_path(folder))
        summary.model_dir = str(model)
        labels, training = read_labels(model), model.parent / TRAINING_FOLDER
        curves = (training / "curves.png").read_bytes()
        summary.served = Served.model_validate_json((training / OPTIMIZED).read_text(encoding="utf-8"))
    with _read(outputs, "ModelReport", "report") as file:
        page = Path(file).read_bytes()
    # The run's folder is written outside of _read: its errors are not the artifacts', which must not be deleted then.
    (run_dir / "curves.png").write_bytes(curves)
    (run_dir / PAGE).write_bytes(page)
    if evaluation.confusion:
        _draw_confusion_matrix(evaluation, labels, run_dir / "confusion_matrix.png")


def _draw_confusion_matrix(evaluation: Evaluation, labels: list[str], path: Path) -> None:
    """Draws it, or logs why not: the model is live by now, and the next run would fail likewise."""
    try:
        run_metrics.draw_confusion_matrix(evaluation.confusion, labels, str(path))
    except OSError:
        raise
    except Exception:  # of the fonts, of their rasters, of memory: matplotlib has many kinds
        logging.exception("the confusion matrix can't be drawn")


@contextmanager
def _read(outputs: Outputs, node: str, key: str) -> Iterator[str]:
    """Yields where a node's output is; if it can't be read, says how it is made anew.

    It was perhaps written by an earlier run, and damaged since: TFX only looks whether it is there.
    """
    uri = _get_artifact(outputs, node, key).uri
    try:
        yield uri
    except Exception as error:  # each of the libraries that read it has its own
        if is_full_disk(error):
            raise
        logging.exception("%s of %s can't be read", key, node)
        problem = f"its {key} can't be read ({describe_error(error)}). Delete {uri}, and run again: it is made anew"
        raise local_runner.NodeError(node, problem) from error


def _ask_target(deploy: DeployConfig) -> dict[str, int] | None:
    """Returns the percentage of the requests by version, 0 of one in shadow; None if the target can't be asked."""
    try:
        versions = targets.load_target(deploy).status(deploy)
    except (ModelError, OSError):
        logging.exception("the target can't be asked what is live")
        return None
    shown = [version for version in versions if version.traffic or version.in_shadow]
    return {version.version: version.traffic for version in sorted(shown, key=rank_by_traffic)}


def _get_artifact(outputs: Outputs, node: str, key: str) -> types.Artifact:
    (artifact,) = outputs[node][key]
    return artifact
