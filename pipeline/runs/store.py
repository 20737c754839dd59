"""Reads ML Metadata's SQLite file while others write it. Imports nothing heavy.

It asks the tables themselves (schema version 10, since ml-metadata 1.10). ML Metadata's own client keeps who finds the
file locked waiting for three quarters of a minute, in which nothing else in its process runs; a page is to say so and
go on without. What is asked while a store is open is one state of it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

Store = sqlite3.Connection

_VERSION = 10
_WAIT = 0.5  # seconds, for whoever writes: that takes milliseconds, unless somebody keeps it locked
_STATES = {1: "running", 2: "running", 3: "done", 4: "failed", 5: "cached", 6: "failed"}  # Execution.State
_INPUTS, _OUTPUTS = {2, 3}, {1, 4, 7}  # Event.Type: declared or not, and those that are to come
_CONTEXT = 2  # the kind of a type


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


@contextmanager
def opened(path: Path) -> Iterator[Store | None]:
    """A store that only reads; None where there is no file yet.

    Raises:
        BusyError: it can't be read now, be it when it is opened or when it is asked.
    """
    if not path.is_file():
        yield None
        return
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None)) as store:
            store.execute("BEGIN")
            ((version,),) = store.execute("SELECT schema_version FROM MLMDEnv").fetchall()
            if version != _VERSION:
                raise BusyError(f"{path} has ML Metadata's version {version}, and version {_VERSION} is known here.")
            yield store
    except sqlite3.Error as error:
        raise BusyError(f"ML Metadata can't be read now ({path}: {error}).") from error


def run_ids(store: Store) -> dict[str, str]:
    """The pipeline's name by run id, of all runs."""
    found = store.execute(
        "SELECT c.name FROM Context c JOIN Type t ON t.id = c.type_id"
        " WHERE t.type_kind = ? AND t.name = 'pipeline_run'",
        (_CONTEXT,),
    )
    return {run: pipeline for pipeline, run in (_split(name) for (name,) in found)}


def executions(store: Store, pipeline: str, run: str) -> list[Execution]:
    """What became of the nodes of a run, in the order in which they began; empty if it is not known."""
    found = store.execute(
        "SELECT a.execution_id FROM Association a JOIN Context c ON c.id = a.context_id JOIN Type t ON t.id = c.type_id"
        " WHERE t.type_kind = ? AND t.name = 'pipeline_run' AND c.name = ?",
        (_CONTEXT, f"{pipeline}.{run}"),
    )
    return _described(store, [execution for (execution,) in found])


def makers(store: Store, artifacts: Iterable[int]) -> dict[int, Execution]:
    """The execution that made each of some artifacts, by the artifact's id: not those that found it in the cache."""
    found = store.execute(
        "SELECT artifact_id, MIN(execution_id) FROM Event WHERE artifact_id IN (SELECT value FROM json_each(?))"
        " AND type IN (SELECT value FROM json_each(?)) GROUP BY artifact_id",
        (json.dumps(sorted(artifacts)), json.dumps(sorted(_OUTPUTS))),
    )
    made = dict(found.fetchall())
    known = {each.id: each for each in _described(store, sorted(set(made.values())))}
    return {artifact: known[execution] for artifact, execution in made.items()}


def upstream(store: Store, artifacts: Iterable[int]) -> list[Execution]:
    """All that some artifacts come from: the executions that made them, what those took, and so on; the first first."""
    found: dict[int, Execution] = {}
    wanted = set(artifacts)
    while wanted:
        new = {each.id: each for each in makers(store, wanted).values() if each.id not in found}
        found |= new
        wanted = {artifact.id for each in new.values() for artifact in each.inputs}
    return [found[key] for key in sorted(found)]


def _described(store: Store, ids: list[int]) -> list[Execution]:
    asked = json.dumps(ids)
    contexts: dict[int, dict[str, str]] = {each: {} for each in ids}
    for execution, kind, name in store.execute(
        "SELECT a.execution_id, t.name, c.name FROM Association a JOIN Context c ON c.id = a.context_id"
        " JOIN Type t ON t.id = c.type_id WHERE a.execution_id IN (SELECT value FROM json_each(?))",
        (asked,),
    ):
        contexts[execution][kind] = name

    taken: dict[int, list[Artifact]] = {each: [] for each in ids}
    made: dict[int, list[Artifact]] = {each: [] for each in ids}
    events = store.execute(
        "SELECT e.execution_id, e.type, a.id, a.uri, t.name, (SELECT step_key FROM EventPath p WHERE p.event_id = e.id"
        " AND NOT p.is_index_step LIMIT 1) FROM Event e JOIN Artifact a ON a.id = e.artifact_id"
        " JOIN Type t ON t.id = a.type_id WHERE e.execution_id IN (SELECT value FROM json_each(?)) ORDER BY e.id",
        (asked,),
    ).fetchall()
    properties = _properties(store, {event[2] for event in events})
    for execution, kind, artifact, uri, name, key in events:
        into = taken if kind in _INPUTS else made if kind in _OUTPUTS else None
        if into is not None:
            into[execution].append(Artifact(artifact, name, key or "", uri or "", properties[artifact]))

    found = store.execute(
        "SELECT id, last_known_state, last_update_time_since_epoch - create_time_since_epoch FROM Execution"
        " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
        (asked,),
    )
    return [
        Execution(
            id=each,
            node=_split(contexts[each].get("node", ""))[1],
            run=_split(contexts[each].get("pipeline_run", ""))[1],
            state=_STATES.get(state, "running"),
            seconds=max(0, milliseconds) / 1000,
            inputs=taken[each],
            outputs=made[each],
        )
        for each, state, milliseconds in found
    ]


_TFXS_OWN = {"tfx_version", "is_external"}
_STRUCT = "mlmd-struct::"  # before what is no plain value, but a whole message in base64


def _properties(store: Store, artifacts: set[int]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {each: {} for each in artifacts}
    rows = store.execute(
        "SELECT artifact_id, name, COALESCE(string_value, int_value, double_value) FROM ArtifactProperty"
        " WHERE artifact_id IN (SELECT value FROM json_each(?)) ORDER BY name",
        (json.dumps(sorted(artifacts)),),
    )
    for artifact, name, value in rows:
        if value not in (None, "") and name not in _TFXS_OWN and not str(value).startswith(_STRUCT):
            found[artifact][name] = str(value)
    return found


def _split(context: str) -> tuple[str, str]:
    """The pipeline, and the run or node, of a context's name; a pipeline's name has no dot in it."""
    pipeline, _, rest = context.partition(".")
    return pipeline, rest
