"""Runs a pipeline on this machine, one node at a time, on TFX's portable launcher.

TFX's LocalDagRunner does the same, but reports nothing to its caller and buries it in thousands of lines of logs.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any

from absl import logging
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import launcher, runtime_parameter_utils

from imagepipe.base.errors import describe_error
from imagepipe.base.full_disk import find_full_file, is_full_disk
from imagepipe.base.process import release_memory
from imagepipe.base.signals import Stopped

_OUTPUT_EVENTS = {metadata_store_pb2.Event.OUTPUT, metadata_store_pb2.Event.DECLARED_OUTPUT}
_FULL_DISK = "No space left on device. Make room for {}, or for temporary files in {}"


@dataclass(frozen=True)
class NodeResult:
    """The result of a node.

    Attributes:
        id: the node's name in the DAG.
        seconds: its duration.
        cached: whether its outputs were taken from an earlier run.
        outputs: its artifacts, by output key.
    """

    id: str
    seconds: float
    cached: bool
    outputs: dict[str, list[types.Artifact]]


class NodeError(RuntimeError):
    """A node failed. Results of the nodes before it are kept, and the next run continues from there."""

    def __init__(self, node: str, cause: str):
        super().__init__(f"{node} failed: {cause}")


def run_nodes(
    pipeline: Pipeline,
    run_id: str,
    never_cached: Collection[str],
    on_start: Callable[[str], None],
    on_end: Callable[[NodeResult], None],
) -> None:
    """Runs all nodes of a pipeline in order.

    Args:
        pipeline: the pipeline.
        run_id: name of the run in ML Metadata.
        never_cached: nodes that are run each time; TFX's components have no such option, only its launcher has.
        on_start: called with a node's name when it starts.
        on_end: called with its result when it has ended.

    Raises:
        NodeError: if a node fails; no node after it is run.
        Stopped: if a signal comes, see ``imagepipe.base.signals.end_on_signals``.
    """
    ir = compiler.Compiler().compile(pipeline)
    runtime_parameter_utils.substitute_runtime_parameter(ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(ir)
    connection, root = pipeline.metadata_connection_config, pipeline.pipeline_info.pipeline_root
    for node in (node.pipeline_node for node in ir.nodes):
        node_id = node.node_info.id
        if node_id in never_cached:
            node.execution_options.caching_options.enable_cache = False
        on_start(node_id)
        start = time.monotonic()
        try:
            info = launcher.Launcher(
                pipeline_node=node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=ir.pipeline_info,
                pipeline_runtime_spec=ir.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
            ).launch()
        except Stopped as stopped:
            raise Stopped(stopped.number, f"{node_id}; the next run continues from there") from stopped
        except Exception as error:
            logging.exception("%s failed", node_id)
            raise NodeError(node_id, _explain(error, root)) from error
        cached, outputs = _read_outputs(connection, info.execution_id)
        on_end(NodeResult(node_id, time.monotonic() - start, cached, outputs))
        if not cached:
            release_memory()


def _explain(error: Exception, root: str) -> str:
    """Returns why a node failed; if the disk is full, with the file that has no room, or else with the folders."""
    if not is_full_disk(error):
        return describe_error(error)
    full = find_full_file(error)
    return describe_error(full) if full else _FULL_DISK.format(root, gettempdir())


def _read_outputs(connection: Any, execution_id: int) -> tuple[bool, dict[str, list[types.Artifact]]]:
    """Returns whether an execution was taken from the cache, and its output artifacts from ML Metadata."""
    with metadata.Metadata(connection) as handle:
        store = handle.store
        (execution,) = store.get_executions_by_id([execution_id])
        events = [e for e in store.get_events_by_execution_ids([execution_id]) if e.type in _OUTPUT_EVENTS]
        artifacts = {a.id: a for a in store.get_artifacts_by_id([e.artifact_id for e in events])}
        artifact_types = {t.id: t for t in store.get_artifact_types()}
    outputs: dict[str, list[types.Artifact]] = {}
    for event in events:
        raw = artifacts[event.artifact_id]
        artifact = types.Artifact(artifact_types[raw.type_id])
        artifact.set_mlmd_artifact(raw)
        outputs.setdefault(event.path.steps[0].key, []).append(artifact)
    return execution.last_known_state == metadata_store_pb2.Execution.CACHED, outputs
