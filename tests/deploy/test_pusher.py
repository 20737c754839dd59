"""The Pusher, for each target: what is blessed is live afterwards, what isn't never gets there.

It is run anew in each run of a pipeline, mostly with the model that it has pushed before.
"""

import itertools
import shutil
from pathlib import Path

import pytest
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils, path_utils

from components.champion.executor import choose_champion
from components.pusher.executor import DEPLOY, OUTCOME, REFERENCE_KEY, VERSION, Executor
from imagepipe.base.names import REFERENCE, REFERENCE_FILE
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import list_models
from imagepipe.deploy.signing import copy_verified
from tests.deploy.test_signing import write_keys
from tests.standins.google import PROJECT, REGION, serve_api
from tests.standins.kubernetes import Cluster
from tests.standins.ml_engine import MLEngine
from tests.standins.vertex import Vertex


@pytest.fixture(params=["filesystem", "kserve", "vertex", "ml_engine"])
def config(request, account, tmp_path, monkeypatch):
    path = str(tmp_path / "there")
    if request.param == "filesystem":
        yield DeployConfig(name="digits", path=path)
        return
    if request.param == "kserve":
        with Cluster("token") as cluster:
            monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
            yield DeployConfig(target="kserve", name="digits", path=path)
        return
    cloud = {"vertex": Vertex, "ml_engine": MLEngine}[request.param](account)
    with serve_api(cloud):
        section = {"project": PROJECT, "region": REGION, "api": cloud.url}
        yield DeployConfig(target=request.param, name="digits", path=path, **{request.param: section})


@pytest.fixture
def push(config, tmp_path):
    """Runs the Pusher as TFX does; returns the PushedModel."""
    numbers = itertools.count()

    def run(
        model: str, blessed: bool = True, references: tuple[Path, ...] = (), **changes
    ) -> standard_artifacts.PushedModel:
        folder = tmp_path / f"run-{next(numbers)}"
        trained = standard_artifacts.Model()
        trained.uri = str(folder / "trained")
        shutil.copytree(model, path_utils.serving_model_path(trained.uri))
        blessing = standard_artifacts.ModelBlessing()
        blessing.uri = str(folder / "blessing")
        blessing.set_int_custom_property("blessed", int(blessed))
        pushed = standard_artifacts.PushedModel()
        pushed.uri = str(folder / "pushed")
        deploy = config.model_copy(update=changes).model_dump(mode="json")
        inputs = {
            standard_component_specs.MODEL_KEY: [trained],
            standard_component_specs.MODEL_BLESSING_KEY: [blessing],
            REFERENCE_KEY: [standard_artifacts.InferenceResult() for _ in references],
        }
        for artifact, reference in zip(inputs[REFERENCE_KEY], references, strict=True):
            artifact.uri = str(reference)
        Executor().Do(
            inputs,
            {standard_component_specs.PUSHED_MODEL_KEY: [pushed]},
            {standard_component_specs.CUSTOM_CONFIG_KEY: json_utils.dumps({DEPLOY: deploy})},
        )
        return pushed

    return run


def describe(pushed: standard_artifacts.PushedModel) -> tuple[str, str]:
    """Outcome, and the version in service; '' if there is none."""
    assert pushed.get_int_custom_property("pushed") == bool(pushed.get_string_custom_property("pushed_version"))
    return pushed.get_string_custom_property(OUTCOME), pushed.get_string_custom_property("pushed_version")


def read_shares(config: DeployConfig) -> dict[str, int]:
    """Percent of the requests by version, of those that get any."""
    return {v.version: v.traffic for v in targets.load_target(config).status(config) if v.traffic}


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> str:
    """Deploys as `imagepipe deploy` does."""
    return targets.load_target(config).deploy(model, config, traffic).version


def test_a_blessed_model_is_live_and_an_unblessed_one_is_not_deployed(config, push, brightness):
    pushed = push(brightness[0])
    (live,) = targets.load_target(config).status(config)
    assert live.traffic == 100
    assert describe(pushed) == ("pushed", live.version)
    assert describe(push(brightness[2], blessed=False)) == ("", "")
    assert targets.load_target(config).status(config) == [live]
    assert [folder.name for folder in Path(str(config.path)).iterdir()] == [live.version]


def test_a_model_that_is_live_is_not_pushed_again(config, push, brightness):
    push(brightness[0])
    _, live = describe(push(brightness[1]))
    versions = targets.load_target(config).status(config)
    assert describe(push(brightness[1])) == ("already_deployed", live)
    assert targets.load_target(config).status(config) == versions


def test_a_model_that_was_rolled_back_is_not_pushed_again_until_somebody_deploys_it(config, push, brightness, caplog):
    _, first = describe(push(brightness[0]))
    _, second = describe(push(brightness[1]))
    targets.load_target(config).rollback(config)
    assert not any("not pushed" in record.message for record in caplog.records)
    pushed = push(brightness[1])
    (warning,) = [record for record in caplog.records if "not pushed" in record.message]
    assert warning.levelname == "WARNING"
    assert f"it is version {second} at the target, which was rolled back" in warning.message
    assert "To deploy it: imagepipe deploy " in warning.message
    assert describe(pushed) == ("rolled_back", "")
    assert pushed.get_string_custom_property(VERSION) == second
    assert read_shares(config) == {first: 100}
    again = deploy(brightness[1], config)
    assert describe(push(brightness[1])) == ("already_deployed", again)
    assert read_shares(config) == {again: 100}


def test_a_model_that_somebody_has_replaced_by_another_one_does_not_come_back_by_itself(config, push, brightness):
    describe(push(brightness[0]))
    describe(push(brightness[1]))
    by_hand = deploy(brightness[0], config)  # an older model, as the quickest remedy
    outcome, version = describe(push(brightness[1]))
    assert outcome in ("rolled_back", "replaced")
    assert version == ""
    assert read_shares(config) == {by_hand: 100}


def test_a_model_that_was_lost_is_pushed_again(config, push, brightness):
    push(brightness[0])
    shutil.rmtree(str(config.path))
    outcome, version = describe(push(brightness[0]))
    assert outcome == "pushed"
    assert read_shares(config) == {version: 100}
    assert (Path(str(config.path)) / version).is_dir()


@pytest.mark.parametrize("config", ["filesystem"], indirect=True)
def test_a_night_puts_a_model_in_shadow_once_and_leaves_it_there_until_it_is_promoted(config, push, brightness):
    _, first = describe(push(brightness[0], traffic=0))
    outcome, second = describe(push(brightness[1], traffic=0))
    assert (outcome, read_shares(config)) == ("pushed", {first: 100})
    assert describe(push(brightness[1])) == ("already_deployed", second)
    assert read_shares(config) == {first: 100}
    assert deploy(f"{config.path}/shadow/{second}", config) == second
    assert describe(push(brightness[1], traffic=0)) == ("already_deployed", second)
    assert read_shares(config) == {second: 100}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["kserve", "vertex"], indirect=True)
def test_a_canary_keeps_the_share_that_somebody_has_given_it(config, push, brightness):
    _, first = describe(push(brightness[0]))
    outcome, canary = describe(push(brightness[1], traffic=10))
    assert (outcome, read_shares(config)) == ("pushed", {first: 90, canary: 10})
    assert describe(push(brightness[1], traffic=10)) == ("already_deployed", canary)
    deploy(brightness[1], config, 50)
    assert describe(push(brightness[1], traffic=10)) == ("already_deployed", canary)
    assert read_shares(config) == {first: 50, canary: 50}
    deploy(brightness[1], config)
    assert describe(push(brightness[1], traffic=10)) == ("already_deployed", canary)
    assert read_shares(config) == {canary: 100}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["kserve", "vertex"], indirect=True)
@pytest.mark.parametrize("end", ["rollback", "older_takes_all"])
def test_a_canary_that_was_ended_does_not_come_back_by_itself(config, push, brightness, end):
    push(brightness[0])
    push(brightness[1], traffic=10)
    if end == "rollback":
        targets.load_target(config).rollback(config)
    else:
        deploy(brightness[0], config)
    shares = read_shares(config)
    outcome, version = describe(push(brightness[1], traffic=10))
    assert outcome in ("rolled_back", "replaced")
    assert (version, read_shares(config)) == ("", shares)


def test_a_rolled_back_model_is_no_champion(config, push, brightness):
    push(brightness[0])
    push(brightness[2])

    def find_champion(candidate: str) -> str:
        return choose_champion([model for model, _ in list_models(config)], candidate)

    first = find_champion(brightness[2])
    targets.load_target(config).rollback(config)
    assert find_champion(brightness[2]) == first
    assert find_champion(brightness[0]) == ""


def test_a_version_is_signed_on_every_target_and_one_that_was_not_is_pushed_again(push, config, brightness, tmp_path):
    key = str(write_keys(tmp_path, "signing"))
    (tmp_path / REFERENCE_FILE).write_bytes(b"reference")
    unsigned = describe(push(brightness[0]))
    signed = describe(push(brightness[0], sign=key, references=(tmp_path,)))
    assert (unsigned[0], signed[0]) == ("pushed", "pushed")
    assert read_shares(config) == {signed[1]: 100}
    (live,) = [version for version in targets.load_target(config).status(config) if version.traffic]
    with copy_verified(Path(live.uri), tmp_path / "signing.pub") as copy:
        assert (copy / REFERENCE).read_bytes() == b"reference"  # which the signature covers
    assert describe(push(brightness[0], sign=key)) == ("already_deployed", signed[1])
