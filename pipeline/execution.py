"""Executes the DAG of one run: shows its progress, keeps its summary up to date, and collects its results."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from tfx import types
from tfx.orchestration import metadata as mlmd
from tfx.utils import path_utils

from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.base import filesystem
from imagepipe.base.beam_options import add_setup_file
from imagepipe.base.names import OPTIMIZED, SERVING_REPORT, TRAINING_FOLDER
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.saved_model import read_labels
from imagepipe.serving.types import CheckReport
from pipeline import local_runner, logs
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.runs import provenance, run_metrics
from pipeline.runs.report_page import PAGE
from pipeline.runs.summary import Node, Served, Summary, write_summary
from pipeline.source import Source, compute_fingerprint
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
    pipeline = create_pipeline(
        config,
        source,
        pipeline_root=str(workdir.artifacts),
        state_dir=str(workdir.training),
        deploy=deploy,
        beam_args=add_setup_file(config.beam.make_arguments()),
        metadata=mlmd.sqlite_metadata_connection_config(str(workdir.metadata)),
    )
    provenance.write_origin(
        run_dir,
        config.model_dump(mode="json"),
        code=Path(__file__).parent,
        data=compute_fingerprint(config.data.path, source),
        dag={node.id: sorted(upstream.id for upstream in node.upstream_nodes) for node in pipeline.components},
    )

    console.print(f"run {summary.run_id}, its log: {summary.log}")
    with (
        console.status("") as status,
        logs.show_training(
            line=lambda text: console.print(f"    {escape(text)}"),
            moment=lambda text: status.update(f"{current_node} … {escape(text)}"),
        ),
    ):

        def on_start(node: str) -> None:
            nonlocal current_node
            current_node = node
            logs.mark_node(node)
            status.update(f"{node} …")

        def on_end(node: local_runner.NodeResult) -> None:
            outputs[node.id] = node.outputs
            if node.id == "DataCheck":  # not at the end: what it finds may stop the run
                summary.data_dir = _get_artifact(outputs, node.id, "findings").uri
            summary.nodes.append(Node(id=node.id, seconds=round(node.seconds, 2), cached=node.cached))
            summary.seconds = round(time.monotonic() - start, 2)
            write_summary(summary, run_dir)
            console.print(f"  {node.id:<20} {'cached' if node.cached else f'{node.seconds:6.1f} s'}")

        try:
            local_runner.run_nodes(pipeline, f"{config.name}.{summary.run_id}", on_start, on_end)
            _collect_results(summary, outputs, config.data.features.label, run_dir)
            summary.status = "done"
        except local_runner.NodeError as error:
            summary.status, summary.error = "failed", str(error)
        finally:
            summary.seconds = round(time.monotonic() - start, 2)
            write_summary(summary, run_dir)


def _collect_results(summary: Summary, outputs: Outputs, label: str, run_dir: Path) -> None:
    """Copies into the summary and the run's folder what the nodes have written about the model."""
    model = Path(path_utils.serving_model_path(_get_artifact(outputs, "Trainer", "model").uri))
    summary.model_dir = str(model)
    if "Tuner" in outputs:
        tuned = _get_artifact(outputs, "Tuner", "best_hyperparameters").uri
        summary.hyperparameters = run_metrics.read_best_hyperparameters(tuned)
    evaluation = read_evaluation(_get_artifact(outputs, "Evaluator", "evaluation").uri)
    summary.metrics = run_metrics.collect_candidate_metrics(evaluation.whole)
    summary.intervals = {name: value.interval for name, value in evaluation.whole.metrics.items() if value.interval}
    summary.champion_metrics = run_metrics.collect_champion_metrics(evaluation.whole)
    summary.metrics_by_class = run_metrics.collect_metrics_by_class(evaluation, label)
    summary.rules = evaluation.rules
    summary.not_blessed_because = evaluation.refusals
    summary.unchecked = evaluation.unchecked
    report = filesystem.read_text(f"{_get_artifact(outputs, 'ServingCheck', 'blessing').uri}/{SERVING_REPORT}")
    summary.serving = CheckReport(**json.loads(report))
    pushed = _get_artifact(outputs, "Pusher", "pushed_model")
    summary.pushed_version = pushed.get_string_custom_property("pushed_version") or None

    if evaluation.confusion:
        picture = str(run_dir / "confusion_matrix.png")
        run_metrics.draw_confusion_matrix(evaluation.confusion, read_labels(model), picture)
    (run_dir / PAGE).write_bytes(Path(_get_artifact(outputs, "ModelReport", "report").uri).read_bytes())
    training = model.parent / TRAINING_FOLDER
    (run_dir / "curves.png").write_bytes((training / "curves.png").read_bytes())
    summary.served = Served.model_validate_json((training / OPTIMIZED).read_text())


def _get_artifact(outputs: Outputs, node: str, key: str) -> types.Artifact:
    (artifact,) = outputs[node][key]
    return artifact
