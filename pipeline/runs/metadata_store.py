"""Reads ML Metadata's SQLite file while others write it, and records which artifacts were removed.

It queries the tables themselves (schema version 10, since ml-metadata 1.10). ML Metadata's own client waits for three
quarters of a minute for a locked file, and nothing else in its process runs meanwhile; a page should say so and do
without. Writing is left to that client. All queries while a store is open see the same state of it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.workdir import Workdir

Store = sqlite3.Connection

_VERSION = 10
_WAIT = 0.5  # seconds, for a writer: that takes milliseconds, unless somebody keeps the file locked
_STATES = {1: "running", 2: "running", 3: "done", 4: "failed", 5: "cached", 6: "failed"}  # Execution.State
_INPUTS, _OUTPUTS = {2, 3}, {1, 4, 7}  # Event.Type: declared or not, and pending outputs
_CONTEXT = 2  # of Type.type_kind
_DELETED = 4  # Artifact.State


class BusyError(Exception):
    """ML Metadata can't be read now: it is locked, or isn't a database of the supported version."""


@dataclass(frozen=True)
class Artifact:
    """An artifact that a node read or wrote.

    Attributes:
        id: its id in ML Metadata.
        kind: its type, such as ``Model``.
        key: the node's input or output, such as ``model``.
        uri: its location.
        properties: its properties that are plain values, as text.
        removed: whether ``imagepipe clean`` removed it.
    """

    id: int
    kind: str
    key: str
    uri: str
    properties: dict[str, str]
    removed: bool


@dataclass(frozen=True)
class Execution:
    """The execution of a node in a run.

    Attributes:
        id: its id in ML Metadata.
        node: the node's name in the DAG.
        run: the run that it belongs to, by its id.
        state: ``running``, ``done``, ``cached``, ``failed``.
        seconds: between its first and its last record.
        inputs: the artifacts that it read.
        outputs: the artifacts that it wrote, or that the cache had.
    """

    id: int
    node: str
    run: str
    state: str
    seconds: float
    inputs: list[Artifact]
    outputs: list[Artifact]


@contextmanager
def open_store(path: Path) -> Iterator[Store | None]:
    """Opens a store for reading only; yields None if there is no file yet.

    Raises:
        BusyError: if it can't be read now, when it is opened or when it is queried.
    """
    if not path.is_file():
        yield None
        return
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None)) as store:
            store.create_function("NAME_ARTIFACTS", 1, Workdir(path.resolve().parent).name_artifacts)
            store.execute("BEGIN")
            ((version,),) = store.execute("SELECT schema_version FROM MLMDEnv").fetchall()
            if version != _VERSION:
                raise BusyError(
                    f"{path} has ML Metadata's version {version}, and only version {_VERSION} is supported."
                )
            yield store
    except sqlite3.Error as error:
        raise BusyError(f"ML Metadata can't be read now ({path}: {error}).") from error


def read_run_ids(store: Store) -> dict[str, str]:
    """Returns the pipeline's name by run id, of all runs."""
    rows = store.execute(
        "SELECT c.name FROM Context c JOIN Type t ON t.id = c.type_id"
        " WHERE t.type_kind = ? AND t.name = 'pipeline_run'",
        (_CONTEXT,),
    )
    return {run: pipeline for pipeline, run in (_split_context(name) for (name,) in rows)}


def read_executions(store: Store, pipeline: str, run: str) -> list[Execution]:
    """Returns the executions of a run in the order in which they started; none if the run is unknown."""
    rows = store.execute(
        "SELECT a.execution_id FROM Association a JOIN Context c ON c.id = a.context_id JOIN Type t ON t.id = c.type_id"
        " WHERE t.type_kind = ? AND t.name = 'pipeline_run' AND c.name = ?",
        (_CONTEXT, f"{pipeline}.{run}"),
    )
    return _describe_executions(store, [execution for (execution,) in rows])


def read_producers(store: Store, artifacts: Iterable[int]) -> dict[int, Execution]:
    """Returns the execution that wrote each artifact, by artifact id; not those that took it from the cache."""
    rows = store.execute(
        "SELECT artifact_id, MIN(execution_id) FROM Event WHERE artifact_id IN (SELECT value FROM json_each(?))"
        " AND type IN (SELECT value FROM json_each(?)) GROUP BY artifact_id",
        (json.dumps(sorted(artifacts)), json.dumps(sorted(_OUTPUTS))),
    )
    producers = dict(rows.fetchall())
    executions = {execution.id: execution for execution in _describe_executions(store, sorted(set(producers.values())))}
    return {artifact: executions[execution] for artifact, execution in producers.items()}


def read_upstream(store: Store, artifacts: Iterable[int]) -> list[Execution]:
    """Returns all executions that some artifacts depend on, directly or not, the earliest first."""
    executions: dict[int, Execution] = {}
    pending = set(artifacts)
    while pending:
        producers = read_producers(store, pending).values()
        new = {execution.id: execution for execution in producers if execution.id not in executions}
        executions |= new
        pending = {artifact.id for execution in new.values() for artifact in execution.inputs}
    return [executions[key] for key in sorted(executions)]


def read_parameters(store: Store, executions: Iterable[int]) -> list[str]:
    """Returns the values of all parameters of some executions that are text."""
    rows = store.execute(
        "SELECT string_value FROM ExecutionProperty WHERE execution_id IN (SELECT value FROM json_each(?))"
        " AND string_value IS NOT NULL",
        (json.dumps(sorted(executions)),),
    )
    return [value for (value,) in rows]


def record_removal(path: Path, artifacts: Iterable[int]) -> None:
    """Records that artifacts are removed, all or none: TFX no longer takes an output of theirs from its cache.

    Raises:
        BusyError: if it can't be recorded now.
    """
    from ml_metadata import errors, metadata_store  # readers do without
    from ml_metadata.proto import metadata_store_pb2 as mlmd

    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE
    try:
        store = metadata_store.MetadataStore(config)
        removed = store.get_artifacts_by_id(sorted(artifacts))
        for artifact in removed:
            artifact.state = mlmd.Artifact.DELETED
        store.put_artifacts(removed)
    except (errors.StatusError, RuntimeError) as error:  # the second if it can't be opened
        raise BusyError(f"ML Metadata can't be written now ({path}: {error}).") from error


def _describe_executions(store: Store, ids: list[int]) -> list[Execution]:
    ids_json = json.dumps(ids)
    contexts: dict[int, dict[str, str]] = {execution: {} for execution in ids}
    for execution, kind, name in store.execute(
        "SELECT a.execution_id, t.name, c.name FROM Association a JOIN Context c ON c.id = a.context_id"
        " JOIN Type t ON t.id = c.type_id WHERE a.execution_id IN (SELECT value FROM json_each(?))",
        (ids_json,),
    ):
        contexts[execution][kind] = name

    inputs: dict[int, list[Artifact]] = {execution: [] for execution in ids}
    outputs: dict[int, list[Artifact]] = {execution: [] for execution in ids}
    events = store.execute(
        "SELECT e.execution_id, e.type, a.id, NAME_ARTIFACTS(COALESCE(a.uri, '')), a.state, t.name,"
        " (SELECT step_key FROM EventPath p WHERE p.event_id = e.id AND NOT p.is_index_step LIMIT 1)"
        " FROM Event e JOIN Artifact a ON a.id = e.artifact_id"
        " JOIN Type t ON t.id = a.type_id WHERE e.execution_id IN (SELECT value FROM json_each(?)) ORDER BY e.id",
        (ids_json,),
    ).fetchall()
    properties = _read_properties(store, {event[2] for event in events})
    for execution, kind, artifact, uri, state, name, key in events:
        artifacts = inputs if kind in _INPUTS else outputs if kind in _OUTPUTS else None
        if artifacts is not None:
            removed = state == _DELETED
            artifacts[execution].append(Artifact(artifact, name, key or "", uri, properties[artifact], removed))

    rows = store.execute(
        "SELECT id, last_known_state, last_update_time_since_epoch - create_time_since_epoch FROM Execution"
        " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
        (ids_json,),
    )
    return [
        Execution(
            id=execution,
            node=_split_context(contexts[execution].get("node", ""))[1],
            run=_split_context(contexts[execution].get("pipeline_run", ""))[1],
            state=_STATES.get(state, "running"),
            seconds=max(0, milliseconds) / 1000,
            inputs=inputs[execution],
            outputs=outputs[execution],
        )
        for execution, state, milliseconds in rows
    ]


_TFXS_OWN = {"tfx_version", "is_external"}
_STRUCT = "mlmd-struct::"  # prefix of whole messages in base64


def _read_properties(store: Store, artifacts: set[int]) -> dict[int, dict[str, str]]:
    properties: dict[int, dict[str, str]] = {artifact: {} for artifact in artifacts}
    rows = store.execute(
        "SELECT artifact_id, name, IIF(string_value IS NULL, COALESCE(int_value, double_value), NAME_ARTIFACTS("
        "string_value)) FROM ArtifactProperty"
        " WHERE artifact_id IN (SELECT value FROM json_each(?)) ORDER BY name",
        (json.dumps(sorted(artifacts)),),
    )
    for artifact, name, value in rows:
        if value not in (None, "") and name not in _TFXS_OWN and not str(value).startswith(_STRUCT):
            properties[artifact][name] = str(value)
    return properties


def _split_context(context: str) -> tuple[str, str]:
    """Splits a context's name into the pipeline and the run or node; a pipeline's name has no dot in it."""
    pipeline, _, rest = context.partition(".")
    return pipeline, rest
