"""Reads ML Metadata's SQLite file while others write it. Imports neither TFX nor TensorFlow.

Each call is a short transaction of its own, so that a run that is in progress never waits long for a reader.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_metadata import errors, metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

RUN = "pipeline_run"
_NODE = "node"
_OUTPUTS = {mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT, mlmd.Event.PENDING_OUTPUT}
_INPUTS = {mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT}
_STATES = {
    mlmd.Execution.NEW: "running",
    mlmd.Execution.RUNNING: "running",
    mlmd.Execution.COMPLETE: "done",
    mlmd.Execution.CACHED: "cached",
    mlmd.Execution.FAILED: "failed",
    mlmd.Execution.CANCELED: "failed",
}


class BusyError(Exception):
    """ML Metadata can't be read now: somebody has locked it, or it isn't a database of this version."""


@dataclass(frozen=True)
class Artifact:
    """What a node made.

    Attributes:
        id: in ML Metadata.
        kind: its type, such as ``Model``.
        key: the output of the node that it is, or the input, such as ``model``.
        uri: where it is.
        properties: what the node noted about it in plain values, as text.
    """

    id: int
    kind: str
    key: str
    uri: str
    properties: dict[str, str]


@dataclass(frozen=True)
class Execution:
    """What became of a node in a run.

    Attributes:
        id: in ML Metadata.
        node: the node's name in the DAG.
        run: the run that it belongs to, by its id.
        state: ``running``, ``done``, ``cached``, ``failed``.
        seconds: between its first and its last record.
        inputs: what it took.
        outputs: what it made, or found in the cache.
    """

    id: int
    node: str
    run: str
    state: str
    seconds: float
    inputs: list[Artifact]
    outputs: list[Artifact]


def opened(path: Path) -> metadata_store.MetadataStore | None:
    """A store that only reads; None where there is no file yet.

    Raises:
        BusyError: it can't be read now.
    """
    if not path.is_file():
        return None
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READONLY
    return _asked(metadata_store.MetadataStore, config)


def run_ids(store: metadata_store.MetadataStore) -> dict[str, str]:
    """The pipeline's name by run id, of all runs.

    Raises:
        BusyError: it can't be read now.
    """
    contexts = _asked(store.get_contexts_by_type, RUN)
    return {run: pipeline for pipeline, run in (_split(context.name) for context in contexts)}


def executions(store: metadata_store.MetadataStore, pipeline: str, run: str) -> list[Execution]:
    """What became of the nodes of a run, in the order in which they began; empty if it is not known.

    Raises:
        BusyError: it can't be read now.
    """
    context = _asked(store.get_context_by_type_and_name, RUN, f"{pipeline}.{run}")
    found = _asked(store.get_executions_by_context, context.id) if context else []
    return _described(store, sorted(found, key=lambda each: each.id))


def makers(store: metadata_store.MetadataStore, artifacts: Iterable[int]) -> dict[int, Execution]:
    """The execution that made each of some artifacts, by the artifact's id: not those that found it in the cache.

    Raises:
        BusyError: it can't be read now.
    """
    made: dict[int, int] = {}
    wanted = list(artifacts)
    for event in _asked(store.get_events_by_artifact_ids, wanted) if wanted else []:
        if event.type in _OUTPUTS:
            made[event.artifact_id] = min(event.execution_id, made.get(event.artifact_id, event.execution_id))
    raw = _asked(store.get_executions_by_id, sorted(set(made.values()))) if made else []
    known = {each.id: each for each in _described(store, raw)}
    return {artifact: known[execution] for artifact, execution in made.items()}


def at(store: metadata_store.MetadataStore, uri: str) -> list[int]:
    """The ids of the artifacts at a place.

    Raises:
        BusyError: it can't be read now.
    """
    return [artifact.id for artifact in _asked(store.get_artifacts_by_uri, uri)]


def upstream(store: metadata_store.MetadataStore, artifacts: Iterable[int]) -> list[Execution]:
    """All that some artifacts come from: the executions that made them, what those took, and so on; the first first.

    Raises:
        BusyError: it can't be read now.
    """
    found: dict[int, Execution] = {}
    wanted = set(artifacts)
    while wanted:
        made = {each.id: each for each in makers(store, wanted).values()}
        new = [each for each in made.values() if each.id not in found]
        found |= {each.id: each for each in new}
        wanted = {artifact.id for each in new for artifact in each.inputs}
    return [found[key] for key in sorted(found)]


def _described(store: metadata_store.MetadataStore, raw: list[Any]) -> list[Execution]:
    ids = [each.id for each in raw]
    events = _asked(store.get_events_by_execution_ids, ids) if ids else []
    artifacts = {
        each.id: each
        for each in (_asked(store.get_artifacts_by_id, sorted({e.artifact_id for e in events})) if events else [])
    }
    taken: dict[int, list[Artifact]] = {each: [] for each in ids}
    made: dict[int, list[Artifact]] = {each: [] for each in ids}
    for event in events:
        into = taken if event.type in _INPUTS else made if event.type in _OUTPUTS else None
        if into is not None and event.artifact_id in artifacts:
            key = event.path.steps[0].key if event.path.steps else ""
            into[event.execution_id].append(_artifact(artifacts[event.artifact_id], key))
    described = []
    for each in raw:
        node = run = ""
        for context in _asked(store.get_contexts_by_execution, each.id):
            if context.type == _NODE:
                node = context.name.partition(".")[2]
            elif context.type == RUN:
                run = _split(context.name)[1]
        seconds = max(0, each.last_update_time_since_epoch - each.create_time_since_epoch) / 1000
        state = _STATES.get(each.last_known_state, "running")
        described.append(Execution(each.id, node, run, state, seconds, taken[each.id], made[each.id]))
    return described


def _split(context: str) -> tuple[str, str]:
    """Pipeline and run of a context's name; neither has a dot in it."""
    pipeline, _, run = context.partition(".")
    return pipeline, run


_TFXS_OWN = {"tfx_version", "is_external"}


def _artifact(raw: Any, key: str) -> Artifact:
    properties = {**raw.properties, **raw.custom_properties}
    told = {name: _text(value) for name, value in sorted(properties.items()) if name not in _TFXS_OWN}
    return Artifact(raw.id, raw.type, key, raw.uri, {name: text for name, text in told.items() if text})


def _text(value: Any) -> str:
    kind = value.WhichOneof("value")
    return str(getattr(value, kind)).strip() if kind in ("int_value", "double_value", "string_value") else ""


def _asked(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (errors.StatusError, ConnectionError) as error:
        raise BusyError(f"ML Metadata can't be read now: {error}") from error
