"""Workdirs of many nightly runs with real ML Metadata and real files, but of a few bytes: no network is trained."""

import shutil
import subprocess
from pathlib import Path

from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd

from imagepipe.deploy.config import DeployConfig
from pipeline.runs.metadata_store import Artifact, Execution, open_store, read_executions, read_run_ids
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir
from tests.pipeline.runs.workdirs import DAG, OUTPUTS, Recorder, run_id


def version_of(number: int) -> str:
    """The version that a night pushes."""
    return str(1_795_000_000 + number)


class Nights(Recorder):
    """A recorder whose runs leave files: artifacts and, if they push, a version."""

    def add(self, number: int, cached: dict[str, int] | None = None, pushes: bool = True, **values) -> dict[str, int]:
        """Adds a night's run, compared with the version that was the newest; returns its artifacts by node.

        Args:
            number: of the night, see ``run_id``.
            cached: see ``record``.
            pushes: whether it pushes its model.
            values: of its summary.
        """
        places = {
            node: f"{self.workdir.artifacts}/{node}/{OUTPUTS[node]}/{number * 100 + at}" for at, node in enumerate(DAG)
        }
        artifacts = self.record(number, cached, uris=places)
        stored = {artifact.uri: artifact for artifact in self.store.get_artifacts_by_id(list(artifacts.values()))}
        serving = self.workdir.serving(self.name)
        for node in DAG.keys() - (cached or {}).keys():
            folder = Path(places[node])
            self.write_model(folder / "Format-Serving" if node == "Trainer" else folder, number)
            stored[places[node]].state = mlmd.Artifact.LIVE
        if pushes and "Pusher" not in (cached or {}):
            self.write_model(serving / version_of(number), number)
            properties = stored[places["Pusher"]].custom_properties
            properties["pushed_version"].string_value = version_of(number)
            properties["pushed_destination"].string_value = str(serving / version_of(number))
        self.store.put_artifacts(list(stored.values()))
        self.summarize(number, pushed_version=version_of(number) if pushes else None, **values)
        self.originate(number, {"name": self.name, "deploy": DeployConfig().model_dump(mode="json")})
        return artifacts

    @staticmethod
    def write_model(folder: Path, number: int) -> None:
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"graph" * 1000)
        (folder / "fingerprint.pb").write_text(f"model of night {number}")
        (folder / "variables" / "data").write_bytes(bytes(number * 100))

    def compare(self, number: int, with_version: str) -> None:
        """Records with which version a night's model was compared, as the component Champion does."""
        (context,) = [c for c in self.store.get_contexts_by_type("pipeline_run") if c.name.endswith(run_id(number))]
        executions = self.store.get_executions_by_context(context.id)
        (champion,) = [e for e in executions if e.type_id == self.executions["Champion"]]
        live = self.workdir.serving(self.name) / with_version
        champion.custom_properties["live"].string_value = str(live)
        self.store.put_executions([champion])


def read_artifacts(workdir: Workdir, number: int, name: str = "digits") -> dict[str, Artifact]:
    """The artifacts of a night by node, as ML Metadata has them now."""
    with open_store(workdir.metadata) as store:
        executions: list[Execution] = read_executions(store, name, run_id(number))
    return {execution.node: output for execution in executions for output in execution.outputs}


def count_bytes(root: Path, *further: Path) -> int:
    """Bytes on disk of a workdir's results, as ``du`` counts them."""
    folders = [folder for name in ("artifacts", "serving") if (folder := root / name).exists()]
    command = ["du", "-cs", "-B1", *folders, *further]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout.splitlines()[-1].split()[0])


def list_files(workdir: Workdir) -> list[Path]:
    """All files and folders of artifacts."""
    return sorted(workdir.artifacts.rglob("*"))


def list_lies(workdir: Workdir, files: list[Path]) -> set[str]:
    """Artifacts that ML Metadata calls live although one of the files that they had is gone."""
    with open_store(workdir.metadata) as store:
        live = {
            output.uri
            for run, pipeline in read_run_ids(store).items()
            for execution in read_executions(store, pipeline, run)
            for output in execution.outputs
            if not output.removed
        }
    gone = [path for path in files if not path.exists()]
    return {uri for uri in live for path in gone if path.is_relative_to(uri)}


def repeat_run(workdir: Workdir, run: Summary, numbers: range) -> None:
    """Adds nights as if a real run had been made on each of them, with images of its own, and had pushed its model.

    Files are cut to 100 kB, as the weights of thirty networks would fill a disk.
    """
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(workdir.metadata)
    store = MetadataStore(config)
    (context,) = [c for c in store.get_contexts_by_type("pipeline_run") if c.name == f"{run.name}.{run.run_id}"]
    executions = store.get_executions_by_context(context.id)
    events = store.get_events_by_execution_ids([execution.id for execution in executions])
    artifacts = store.get_artifacts_by_id(sorted({event.artifact_id for event in events}))
    # Not into those of the cache: these nights had other images.
    contexts = {e.id: [c.id for c in store.get_contexts_by_execution(e.id) if c.type == "node"] for e in executions}
    for number in numbers:
        version = workdir.serving(run.name) / version_of(number)
        _copy_cut(Path(run.serving_dir) / str(run.pushed_version), version, number)
        copies = []
        for artifact in artifacts:
            node, key, execution, *rest = artifact.uri.removeprefix(f"{workdir.artifacts}/").split("/")
            folder = workdir.artifacts / node / key / str(1_000_000 + number)
            _copy_cut(workdir.artifacts / node / key / execution, folder, number)
            copy = mlmd.Artifact()
            copy.CopyFrom(artifact)
            copy.ClearField("id")
            copy.ClearField("name")
            copy.uri = "/".join([str(folder), *rest])
            if "pushed_version" in copy.custom_properties:
                copy.custom_properties["pushed_version"].string_value = version.name
                copy.custom_properties["pushed_destination"].string_value = str(version)
            copies.append(copy)
        repeated = []
        for execution in executions:
            again = mlmd.Execution()
            again.CopyFrom(execution)
            again.ClearField("id")
            again.ClearField("name")
            repeated.append(again)
        edges = []
        for event in events:
            edge = mlmd.Event(type=event.type, path=event.path)
            at = [execution.id for execution in executions].index(event.execution_id)
            edges.append((at, [artifact.id for artifact in artifacts].index(event.artifact_id), edge))
        ids, _, _ = store.put_lineage_subgraph(repeated, copies, [], edges)
        (night,) = store.put_contexts([mlmd.Context(type_id=context.type_id, name=f"{run.name}.{run_id(number)}")])
        pairs = [(new, c) for e, new in zip(executions, ids, strict=True) for c in (night, *contexts[e.id])]
        store.put_attributions_and_associations([], [mlmd.Association(execution_id=e, context_id=c) for e, c in pairs])
        shutil.copytree(workdir.runs / run.run_id, workdir.runs / run_id(number))
        for file in (workdir.runs / run_id(number)).glob("*.json"):
            text = file.read_text().replace(run.run_id, run_id(number))
            file.write_text(text.replace(str(run.pushed_version), version.name))


def _copy_cut(source: Path, target: Path, number: int) -> None:
    def copy(one: str, other: str) -> None:
        with Path(one).open("rb") as file:
            Path(other).write_bytes(file.read(100_000))

    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy)
        for file in target.rglob("fingerprint.pb"):
            file.write_text(f"model of night {number}")
