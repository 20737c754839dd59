"""The Pusher, for each target but the folder: what is blessed is live afterwards, what isn't never gets there."""

import shutil
from pathlib import Path

import pytest
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils, path_utils

from components.pusher.executor import DEPLOY, Executor
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from tests.standins.google import PROJECT, REGION, serve_api
from tests.standins.kubernetes import Cluster
from tests.standins.ml_engine import MLEngine
from tests.standins.vertex import Vertex


@pytest.fixture(params=["kserve", "vertex", "ml_engine"])
def config(request, account, tmp_path, monkeypatch):
    path = str(tmp_path / "there")
    if request.param == "kserve":
        with Cluster("token") as cluster:
            monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
            yield DeployConfig(target="kserve", name="digits", path=path)
        return
    cloud = {"vertex": Vertex, "ml_engine": MLEngine}[request.param](account)
    with serve_api(cloud):
        section = {"project": PROJECT, "region": REGION, "api": cloud.url}
        yield DeployConfig(target=request.param, name="digits", path=path, **{request.param: section})


def push(model: str, blessed: bool, config: DeployConfig, folder: Path) -> standard_artifacts.PushedModel:
    """Runs the Pusher as TFX does."""
    trained = standard_artifacts.Model()
    trained.uri = str(folder / "trained")
    shutil.copytree(model, path_utils.serving_model_path(trained.uri))
    blessing = standard_artifacts.ModelBlessing()
    blessing.uri = str(folder / "blessing")
    blessing.set_int_custom_property("blessed", int(blessed))
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(folder / "pushed")
    executor = Executor()
    executor.Do(
        {standard_component_specs.MODEL_KEY: [trained], standard_component_specs.MODEL_BLESSING_KEY: [blessing]},
        {standard_component_specs.PUSHED_MODEL_KEY: [pushed]},
        {standard_component_specs.CUSTOM_CONFIG_KEY: json_utils.dumps({DEPLOY: config.model_dump(mode="json")})},
    )
    return pushed


def test_a_blessed_model_is_live_and_an_unblessed_one_is_not_deployed(config, brightness, tmp_path):
    pushed = push(brightness[0], True, config, tmp_path / "first")
    (live,) = targets.load_target(config).status(config)
    assert (live.traffic, live.version) == (100, pushed.get_string_custom_property("pushed_version"))
    unpushed = push(brightness[2], False, config, tmp_path / "second")
    assert targets.load_target(config).status(config) == [live]
    assert unpushed.get_int_custom_property("pushed") == 0
    assert [folder.name for folder in Path(config.path).iterdir()] == [live.version]
