"""One run: checks what can be checked before, runs the DAG, and leaves a summary and pictures."""

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from rich.console import Console
from rich.markup import escape
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.orchestration import metadata as mlmd
from tfx.utils import io_utils, path_utils

from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.base.beam_options import add_setup_file
from imagepipe.base.errors import ConfigError, WeightsError
from imagepipe.base.features import Features
from imagepipe.base.filesystem import lock_folder
from imagepipe.base.names import OPTIMIZED, SERVING_REPORT, TRAINING_FOLDER, TaskName
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic
from imagepipe.deploy.saved_model import read_labels, read_task
from imagepipe.serving.types import CheckReport
from pipeline import local_runner, logs, source
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.runs import provenance, run_metrics, summary
from pipeline.runs.report_page import PAGE
from pipeline.workdir import Workdir
from trainer import weights

Outputs = dict[str, dict[str, list[types.Artifact]]]

_SCHEMA_TYPES = {"bytes": "BYTES", "int64": "INT", "float": "FLOAT"}


def check(config: Config, deploy: DeployConfig) -> source.Source:
    """Finds what would fail a run after minutes, in seconds.

    Raises:
        ConfigError: if the data, the model that is live or the weights aren't what the configuration says.
    """
    found = source.find_examples(config)
    _check_live(deploy, config)
    try:
        weights.check(config.trainer.weights, config.trainer.backbone)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    if config.data.curated_schema:
        _check_schema(config.data.curated_schema, config.data.features.make_features(), config.task)
    return found


def _check_live(deploy: DeployConfig, config: Config) -> None:
    """A candidate is held against what is live, and takes its place: that must do the same task."""
    live = sort_by_traffic(targets.load_target(deploy).status(deploy))[:1]
    if live and (task := read_task(storage.fetch_assets(live[0].uri))) != config.task:
        raise ConfigError(
            f"task: {config.task}, but {live[0].uri}, which is live, does {task}. "
            "Give the pipeline another name, or remove what is live."
        )


def _check_schema(path: str, features: Features, task: TaskName) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"data.curated_schema: there is no file {path}")
    try:
        known = {feature.name: feature for feature in io_utils.SchemaReader().read(path).feature}
    except text_format.ParseError as error:
        raise ConfigError(f"data.curated_schema: {path} is not a schema: {error}") from error
    if missing := sorted({features.input, features.label, *features.side} - set(known)):
        raise ConfigError(
            f"data.curated_schema: {path} lacks {', '.join(missing)}. One to start from is written by "
            "`imagepipe schema DATASET --freeze FILE`."
        )
    kind = schema_pb2.FeatureType.Name(known[features.label].type)
    allowed = [_SCHEMA_TYPES[name] for name in source.label_types(task)]
    if kind not in allowed:
        raise ConfigError(
            f"data.curated_schema: in {path} the label '{features.label}' has the type {kind}; "
            f"task: {task} needs {' or '.join(allowed)}"
        )


def run(config: Config, workdir: Workdir, console: Console) -> summary.Summary:
    """Runs the pipeline once.

    Args:
        config: the configuration.
        workdir: where it keeps what it makes; made if missing.
        console: shows a line a node.

    Returns:
        The summary, which is in ``runs/<run_id>/summary.json`` as well. Its status is ``failed`` if a node failed.

    Raises:
        ConfigError: if it can't be run; nothing is left behind.
    """
    busy = ConfigError(f"another run is using {workdir.root}; wait for it, or give another --workdir")
    with lock_folder(workdir.root, busy), _run_dir(workdir) as run_dir:
        _close_killed_runs(workdir)
        log = run_dir / "log.txt"
        deploy = config.make_deployment(str(workdir.serving(config.name)))
        state = summary.Summary(
            run_id=run_dir.name,
            name=config.name,
            task=config.task,
            status="running",
            target=deploy.target,
            serving_dir=str(deploy.path),
            log=str(log),
        )
        with logs.redirect_output(log) as terminal:
            shown = Console(
                file=terminal, force_terminal=console.is_terminal, width=console.width, highlight=False, soft_wrap=True
            )
            return _run(config, deploy, workdir, state, run_dir, shown)


def _run(
    config: Config, deploy: DeployConfig, workdir: Workdir, state: summary.Summary, run_dir: Path, console: Console
) -> summary.Summary:
    start = time.monotonic()
    outputs: Outputs = {}
    running = ""
    found = check(config, deploy)
    pipeline = create_pipeline(
        config,
        found,
        pipeline_root=str(workdir.artifacts),
        state_dir=str(workdir.artifacts / ".training"),
        deploy=deploy,
        beam_args=add_setup_file(config.beam.make_arguments()),
        metadata=mlmd.sqlite_metadata_connection_config(str(workdir.metadata)),
    )
    provenance.write_origin(
        run_dir,
        config.model_dump(mode="json"),
        code=Path(__file__).parent,
        data=source.compute_fingerprint(config.data.path, found),
        dag={node.id: sorted(upstream.id for upstream in node.upstream_nodes) for node in pipeline.components},
    )

    console.print(f"run {state.run_id}, its log: {state.log}")
    with (
        console.status("") as status,
        logs.show_training(
            line=lambda text: console.print(f"    {escape(text)}"),
            moment=lambda text: status.update(f"{running} … {escape(text)}"),
        ),
    ):

        def started(node: str) -> None:
            nonlocal running
            running = node
            logs.mark_node(node)
            status.update(f"{node} …")

        def done(node: local_runner.NodeResult) -> None:
            outputs[node.id] = node.outputs
            if node.id == "DataCheck":  # not at the end: after what it finds, a run may stop
                state.data_dir = _only(outputs, node.id, "findings").uri
            state.nodes.append(summary.Node(id=node.id, seconds=round(node.seconds, 2), cached=node.cached))
            state.seconds = round(time.monotonic() - start, 2)
            summary.write_summary(state, run_dir)
            console.print(f"  {node.id:<20} {'cached' if node.cached else f'{node.seconds:6.1f} s'}")

        summary.write_summary(state, run_dir)
        try:
            local_runner.run(pipeline, f"{config.name}.{state.run_id}", started, done)
            _add_results(state, outputs, config.data.features.label, run_dir)
            state.status = "done"
        except local_runner.NodeError as error:
            state.status, state.error = "failed", str(error)
        except BaseException as error:
            state.status, state.error = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            state.seconds = round(time.monotonic() - start, 2)
            summary.write_summary(state, run_dir)
    return state


def _add_results(state: summary.Summary, outputs: Outputs, label: str, run_dir: Path) -> None:
    model = Path(path_utils.serving_model_path(_only(outputs, "Trainer", "model").uri))
    state.model_dir = str(model)
    if "Tuner" in outputs:
        state.hyperparameters = run_metrics.read_best_hyperparameters(_only(outputs, "Tuner", "best_hyperparameters").uri)
    evaluation = read_evaluation(_only(outputs, "Evaluator", "evaluation").uri)
    state.metrics = run_metrics.candidate_metrics(evaluation.whole)
    state.intervals = {name: each.interval for name, each in evaluation.whole.metrics.items() if each.interval}
    state.champion_metrics = run_metrics.champion_metrics(evaluation.whole)
    state.metrics_by_class = run_metrics.metrics_by_class(evaluation, label)
    state.rules = evaluation.rules
    state.blessed = _only(outputs, "Evaluator", "blessing").get_int_custom_property("blessed") == 1
    state.not_blessed_because = [rule.because for rule in evaluation.rules if rule.verdict == "refused"]
    report = io_utils.read_string_file(f"{_only(outputs, 'ServingCheck', 'blessing').uri}/{SERVING_REPORT}")
    state.serving = CheckReport(**json.loads(report))
    state.pushed_version = _only(outputs, "Pusher", "pushed_model").get_string_custom_property("pushed_version") or None

    if evaluation.confusion:
        run_metrics.draw_confusion_matrix(evaluation.confusion, read_labels(model), str(run_dir / "confusion_matrix.png"))
    (run_dir / PAGE).write_bytes(Path(_only(outputs, "ModelReport", "report").uri).read_bytes())
    training = model.parent / TRAINING_FOLDER
    (run_dir / "curves.png").write_bytes((training / "curves.png").read_bytes())
    state.served = summary.Served.model_validate_json((training / OPTIMIZED).read_text())


def _only(outputs: Outputs, node: str, key: str) -> types.Artifact:
    (artifact,) = outputs[node][key]
    return artifact


def _close_killed_runs(workdir: Workdir) -> None:
    """Says of runs that never came to an end that they were killed: with the lock held, none is running."""
    for killed in summary.read_all(workdir.runs):
        if killed.status == "running":
            closed = killed.model_copy(update={"status": "failed", "error": "the run was killed"})
            summary.write_summary(closed, workdir.runs / killed.run_id)


@contextmanager
def _run_dir(workdir: Workdir) -> Iterator[Path]:
    """A new folder for the run, which is taken away again if it doesn't get as far as a summary."""
    folder = workdir.runs / datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder.mkdir(parents=True)
    try:
        yield folder
    except ConfigError:
        if not (folder / summary.FILENAME).exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        raise
