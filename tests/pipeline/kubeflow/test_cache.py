"""Kubeflow's cache: compiled runs with its real key, without the executors that cost much."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import yaml
from kfp import components, local
from tfx.utils import path_utils

from imagepipe.base.names import TRAIN_STATISTICS
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.pushing import push_model
from pipeline.config_file import read_config
from pipeline.kubeflow import look
from pipeline.kubeflow.compilation_check import check_and_compile
from pipeline.kubeflow.entrypoint import stage_input
from tests.pipeline.kubeflow import containers
from tests.stores import s3, s3_server  # noqa: F401 (fixtures)

CONFIG = """\
name: digits
data: {path: dataset}
trainer: {weights: none}
deploy: {path: serving}
kubeflow: {image: example/imagepipe}
"""

LOOKS = {"data-lookup", "target-lookup"}
NIGHTLY = {*LOOKS, "pusher"}  # which ask what has changed
COMPARING = {*NIGHTLY, "data-check", "data-gate", "champion", "predictions", "evaluator", "model-report"}
AFTER_TRAINING = {"trainer", "champion", "predictions", "evaluator", "serving-check", "model-report"}


class Cluster:
    """Runs a compiled pipeline. Tasks that look do so; the Trainer writes a model, and Pusher pushes it.

    Attributes:
        root: the folder of all that it has; by default of the dataset and the deployed models, too.
        compiled: the compiled pipeline.
        commands: of the containers, by task, as they were last started.
        examples: folder in which ImportExampleGen's container has a dataset that TFX can't open.
    """

    def __init__(self, root: Path, **paths: str):
        (root / "pipeline.yaml").write_text(CONFIG)
        overrides = [f"{key}.path={path}" for key, path in paths.items()]
        config = read_config(root / "pipeline.yaml", overrides)
        self.compiled = check_and_compile(config, "kubeflow")
        self.root = root
        self.examples = root / "examples"
        self.commands: dict[str, list[str]] = {}
        self._serving = config.deploy.path
        self._numbers = itertools.count()
        self._ran: set[str] = set()
        executors = next(yaml.safe_load_all(self.compiled))["deploymentSpec"]["executors"]
        self._names = {e["container"]["args"][1]: name.removeprefix("exec-") for name, e in executors.items()}

    def run(self, **parameters) -> set[str]:
        """Returns the tasks that were not taken from the cache."""
        self._ran = set()
        file = self.root / "compiled.yaml"
        file.write_text(self.compiled)
        with containers.replace_docker(self._launch):
            root = str(self.root / f"run-{next(self._numbers)}")
            cache = str(self.root / "cache")
            local.init(local.DockerRunner(), pipeline_root=root, enable_caching=True, cache_root=cache)
            components.load_component_from_file(str(file))(**parameters)
        return self._ran

    def _launch(self, command: list[str]) -> int:
        if command[2] == "pipeline.kubeflow.look":
            self._start(f"{command[3]}-lookup", command)
            look.main(command[3:])
            return 0
        task = self._names[command[4]]
        self._start(task, command)
        invocation = json.loads(command[command.index("--json_serialized_invocation_args") + 1])
        outputs = invocation["outputs"].get("artifacts", {})
        stage_input(invocation, self.examples)
        if task == "trainer":
            self._write_model(Path(path_utils.serving_model_path(outputs["model"]["artifacts"][0]["uri"])))
        if task == "pusher":
            model = path_utils.serving_model_path(invocation["inputs"]["artifacts"]["model"]["artifacts"][0]["uri"])
            push_model(model, DeployConfig(path=self._serving, name="digits"))
        written = {
            key: {"artifacts": [{"uri": entry["artifacts"][0]["uri"], "metadata": {}}]}
            for key, entry in outputs.items()
        }
        output_file = Path(invocation["outputs"]["outputFile"])
        output_file.parent.mkdir(parents=True, exist_ok=True)
        output_file.write_text(json.dumps({"artifacts": written}))
        return 0

    def _start(self, task: str, command: list[str]) -> None:
        self._ran.add(task)
        self.commands[task] = command

    def _write_model(self, folder: Path) -> None:
        number = str(next(self._numbers))
        for name in ("saved_model.pb", "fingerprint.pb", TRAIN_STATISTICS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(number)


def write_dataset(root: Path) -> None:
    """Writes what looks like a dataset, as no executor reads it."""
    for split in ("train", "eval"):
        (root / "dataset" / split).mkdir(parents=True)
        (root / "dataset" / split / "0.tfrecord").write_bytes(b"first")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    """A cluster that has run the pipeline three times, on unchanged data. Each test leaves it with nothing to do."""
    root = tmp_path_factory.mktemp("cache")
    cluster = Cluster(root)
    write_dataset(root)
    assert len(cluster.run()) == 16
    assert cluster.run() == COMPARING  # with the version that the first has pushed
    assert cluster.run() == NIGHTLY
    return cluster


def test_new_data_is_trained_on(cluster):
    (cluster.root / "dataset" / "train" / "1.tfrecord").write_bytes(b"second")
    assert len(cluster.run()) == 16
    assert cluster.run() == COMPARING
    assert cluster.run() == NIGHTLY


def test_after_a_change_of_what_is_live_models_are_compared_and_nothing_is_trained(cluster):
    version = max((cluster.root / "serving").iterdir())
    other = shutil.copytree(version, version.with_name(str(int(version.name) + 9)))
    for name in ("fingerprint.pb", TRAIN_STATISTICS):
        (other / name).write_text("from elsewhere")
    assert cluster.run() == COMPARING
    assert cluster.run() == NIGHTLY
    (other / "fingerprint.pb").write_text("of the same name")
    assert cluster.run() == COMPARING - {"data-check", "data-gate"}
    assert cluster.run() == NIGHTLY


def test_a_new_image_runs_everything_and_another_parameter_what_takes_it(cluster):
    assert cluster.run(epochs=2) == {*NIGHTLY, *AFTER_TRAINING}
    cluster.compiled = cluster.compiled.replace("example/imagepipe", "example/imagepipe:2")
    assert len(cluster.run()) == 16
    assert cluster.run() == COMPARING
    assert cluster.run() == NIGHTLY


def test_dataset_and_versions_may_both_be_in_s3(s3, tmp_path):  # noqa: F811
    cluster = Cluster(tmp_path, data=f"{s3.uri}/dataset", deploy=f"{s3.uri}/serving")
    for split in ("train", "eval"):
        s3.put(f"dataset/{split}/0.tfrecord", split.encode())
    assert len(cluster.run()) == 16
    assert (cluster.examples / "train" / "0.tfrecord").read_bytes() == b"train"
    assert {name.partition("/")[2] for name in s3.content("serving")} >= {"saved_model.pb", TRAIN_STATISTICS}
    assert cluster.run() == COMPARING
    s3.put("dataset/train/1.tfrecord", b"more")
    assert len(cluster.run()) == 16
    assert (cluster.examples / "train" / "1.tfrecord").read_bytes() == b"more"
