"""Workdirs with runs that never ran: real summaries, ``run.json`` and ML Metadata, as a run of TFX leaves them."""

import datetime
import json
from pathlib import Path

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import logs
from pipeline.runs import provenance, summary
from pipeline.workdir import Workdir

DAG = {
    "ImportExampleGen": [],
    "StatisticsGen": ["ImportExampleGen"],
    "ImageSchemaGen": ["StatisticsGen"],
    "ExampleValidator": ["ImageSchemaGen", "StatisticsGen"],
    "Transform": ["ImageSchemaGen", "ImportExampleGen"],
    "Trainer": ["ImageSchemaGen", "ImportExampleGen", "Transform"],
    "Champion": ["Trainer"],
    "Evaluator": ["Champion", "ImportExampleGen", "Trainer"],
    "Predictions": ["Champion", "ImportExampleGen", "Trainer"],
    "ServingCheck": ["Evaluator", "ImportExampleGen", "Trainer"],
    "Pusher": ["Evaluator", "ServingCheck", "Trainer"],
}
OUTPUTS = {
    "ImportExampleGen": "examples",
    "StatisticsGen": "statistics",
    "ImageSchemaGen": "schema",
    "ExampleValidator": "anomalies",
    "Transform": "transform_graph",
    "Trainer": "model",
    "Champion": "champion",
    "Evaluator": "blessing",
    "Predictions": "predictions",
    "ServingCheck": "blessing",
    "Pusher": "pushed_model",
}
KINDS = {"Trainer": "Model", "Champion": "Model", "Pusher": "PushedModel", "ImportExampleGen": "Examples"}
_START = datetime.datetime(2026, 1, 1, 2, 0, 0)


def run_id(number: int) -> str:
    """The id of the run of a night; a higher number is a later one."""
    return (_START + datetime.timedelta(days=number)).strftime("%Y%m%d-%H%M%S-000")


class Recorder:
    """Makes runs in a workdir, and writes them into its ML Metadata as TFX does."""

    def __init__(self, root: Path, name: str = "digits"):
        self.workdir, self.name = Workdir(root), name
        root.mkdir(parents=True, exist_ok=True)
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(self.workdir.metadata)
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = metadata_store.MetadataStore(config)
        self.contexts = {
            kind: self.store.put_context_type(mlmd.ContextType(name=kind)) for kind in ("pipeline_run", "node")
        }
        self.executions = {node: self.store.put_execution_type(mlmd.ExecutionType(name=f"x.{node}")) for node in DAG}
        self.artifacts = {
            node: self.store.put_artifact_type(mlmd.ArtifactType(name=KINDS.get(node, f"Of{node}"))) for node in DAG
        }
        there = {context.name: context.id for context in self.store.get_contexts_by_type("node")}
        new = [f"{name}.{node}" for node in DAG if f"{name}.{node}" not in there]
        nodes = [mlmd.Context(type_id=self.contexts["node"], name=context) for context in new]
        there.update(zip(new, self.store.put_contexts(nodes) if nodes else [], strict=True))
        self.nodes = {node: there[f"{name}.{node}"] for node in DAG}

    def record(
        self,
        number: int,
        cached: dict[str, int] | None = None,
        failed: str | None = None,
        running: str | None = None,
        uris: dict[str, str] | None = None,
    ) -> dict[str, int]:
        """Writes a run into ML Metadata.

        Args:
            number: see ``run_id``.
            cached: artifacts by node, of an earlier run, that this one takes from the cache.
            failed: the node that failed.
            running: the node that runs.
            uris: where the artifacts of nodes are, if it matters.

        Returns:
            The artifacts by node.
        """
        contexts = [mlmd.Context(type_id=self.contexts["pipeline_run"], name=f"{self.name}.{run_id(number)}")]
        (run,) = self.store.put_contexts(contexts)
        executions, artifacts, edges, places = [], [], [], {}
        for node, parents in DAG.items():
            at = len(executions)
            state = mlmd.Execution.CACHED if node in (cached or {}) else mlmd.Execution.COMPLETE
            state = mlmd.Execution.FAILED if node == failed else state
            state = mlmd.Execution.RUNNING if node == running else state
            executions.append(mlmd.Execution(type_id=self.executions[node], last_known_state=state))
            for parent in parents:
                if parent in places:
                    edges.append(self._edge(at, places[parent], mlmd.Event.INPUT, OUTPUTS[parent]))
            if node in (failed, running):
                break
            if node in (cached or {}):
                (artifact,) = self.store.get_artifacts_by_id([cached[node]])
            else:
                uri = (uris or {}).get(node, f"{self.workdir.artifacts}/{node}/{OUTPUTS[node]}/{number}-{at}")
                artifact = mlmd.Artifact(type_id=self.artifacts[node], uri=uri)
            places[node] = len(artifacts)
            artifacts.append(artifact)
            edges.append(self._edge(at, places[node], mlmd.Event.OUTPUT, OUTPUTS[node]))
        recorded, ids, _ = self.store.put_lineage_subgraph(executions, artifacts, [], edges)
        # The launcher puts each execution into the contexts of its run and of its node.
        self.store.put_attributions_and_associations(
            [],
            [
                mlmd.Association(execution_id=execution, context_id=context)
                for node, execution in zip(DAG, recorded, strict=False)
                for context in (run, self.nodes[node])
            ],
        )
        return {node: ids[place] for node, place in places.items()}

    @staticmethod
    def _edge(execution: int, artifact: int, kind: "mlmd.Event.Type", key: str):
        event = mlmd.Event(type=kind)
        event.path.steps.add(key=key)
        event.path.steps.add(index=0)
        return execution, artifact, event

    def summarize(self, number: int, log: str = "", **values) -> summary.Summary:
        """Writes the folder of a run: its summary, ``run.json`` and log."""
        folder = self.workdir.runs / run_id(number)
        folder.mkdir(parents=True)
        accuracy = round(0.9 + 0.08 * ((number * 37) % 100) / 100, 4)
        read = summary.Summary(
            **{
                "run_id": run_id(number),
                "name": self.name,
                "status": "done",
                "seconds": 120.5,
                "nodes": [summary.Node(id=node, seconds=10.5, cached=False) for node in DAG],
                "metrics": {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "log_loss": 0.3, "example_count": 178},
                "serving_dir": str(self.workdir.serving(self.name)),
                "log": str(folder / "log.txt"),
            }
            | values
        )
        summary.write_summary(read, folder)
        lines = [f"{logs.MARK}{node}\nwritten by {node}\n" for node in DAG]
        (folder / "log.txt").write_text(log or "".join(lines), encoding="utf-8")
        return read

    def read(self, number: int) -> summary.Summary:
        """The summary of a run."""
        return summary.Summary.model_validate_json((self.workdir.runs / run_id(number) / "summary.json").read_text())

    def originate(self, number: int, config: dict | None = None, packages: dict[str, str] | None = None) -> None:
        """Writes ``run.json`` of a run that has a folder."""
        folder = self.workdir.runs / run_id(number)
        origin = provenance.Origin(
            run_id=run_id(number),
            started="2026-01-01T02:00:00+00:00",
            config=config or {"name": self.name, "trainer": {"epochs": 10}},
            commit=provenance.Commit(id="c0ffee" * 6 + "c0ff", changed=False),
            packages=packages or {"python": "3.11.7", "tfx": "1.21.0"},
            dataset=provenance.DatasetOrigin(path="/data", fingerprint="f" * 64, of="content", records={"train": 10}),
            dag=DAG,
        )
        (folder / provenance.FILENAME).write_text(json.dumps(origin.model_dump()))
