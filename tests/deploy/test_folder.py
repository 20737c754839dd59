"""The folder that a model server watches: on this machine, and on an object store."""

import json
import time
from pathlib import Path

import pytest
import tensorflow as tf
import yaml
from typer.testing import CliRunner

from imagepipe.base import filesystem
from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import folder, storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version
from imagepipe.deploy.live import list_models
from imagepipe.deploy.pushing import push_model
from imagepipe.deploy.saved_model import read_labels
from imagepipe.serving.engine import ServedModel
from pipeline.cli import app
from pipeline.cli.deployments import _find_rivals
from tests.deploy.test_signing import write_keys
from tests.serving.conftest import look_twice, save_brightness


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    names = [("dark", "light"), ("black", "white"), ("night", "day")]
    return [str(save_brightness(root / f"{i}", root / f"assets{i}", pair)) for i, pair in enumerate(names)]


@pytest.fixture
def config(tmp_path) -> DeployConfig:
    return DeployConfig(name="digits", path=str(tmp_path / "serving"))


def test_the_newest_version_gets_all_and_the_same_model_is_not_copied_twice(config, models):
    first = folder.deploy(models[0], config)
    assert folder.deploy(models[0], config) == first
    second = folder.deploy(models[1], config)
    assert [(v.version, v.traffic) for v in folder.status(config)] == [(second.version, 100), (first.version, 0)]
    assert read_labels(Path(second.uri)) == ["black", "white"]
    assert not [path for path in Path(str(config.path)).iterdir() if not path.name.isdigit()]


def test_a_rolled_back_version_is_kept_and_the_previous_one_is_live(config, models):
    first, second, third = [folder.deploy(model, config) for model in models]
    assert folder.rollback(config) == second
    assert folder.rollback(config) == first
    assert [(v.version, v.traffic, v.rolled_back) for v in folder.status(config)] == [
        (third.version, 0, True),
        (second.version, 0, True),
        (first.version, 100, False),
    ]
    kept = Path(str(config.path)) / "rolled_back"
    assert sorted(path.name for path in kept.iterdir()) == sorted([second.version, third.version])
    assert read_labels(kept / third.version) == ["night", "day"]
    with pytest.raises(DeployError, match=f"has only version {first.version}: there is nothing to go back to"):
        folder.rollback(config)
    assert Path(first.uri, "saved_model.pb").is_file()


def test_a_version_is_newer_than_one_that_was_rolled_back(config, models, monkeypatch):
    """Also within a second: a server, a log and a person have to be able to tell them apart."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    first = folder.deploy(models[0], config)
    second = folder.deploy(models[1], config)
    folder.rollback(config)
    third = folder.deploy(models[2], config)
    assert int(first.version) < int(second.version) < int(third.version)


def test_a_running_server_follows_a_rollback(config, models):
    first = folder.deploy(models[0], config)
    second = folder.deploy(models[1], config)
    served_model = ServedModel(Path(str(config.path)), "digits", lambda _: None)
    asked = served_model.engine
    assert asked.version == second.version
    folder.rollback(config)
    assert asked.model.labels == ["black", "white"]  # who has it already gets its answer
    look_twice(served_model)
    assert (served_model.engine.version, served_model.engine.model.labels) == (first.version, ["dark", "light"])


def test_a_version_in_shadow_is_live_nowhere_until_it_is_deployed_again_and_keeps_its_number(config, models):
    first = folder.deploy(models[0], config, 0)  # the first one has nothing to be in the shadow of
    served_model = ServedModel(Path(str(config.path)), "digits", lambda _: None)
    second = folder.deploy(models[1], config, 0)
    assert folder.deploy(models[1], config, 0) == second
    assert folder.status(config) == [
        Version(second.version, f"{config.path}/shadow/{second.version}", 0, "in shadow", in_shadow=True),
        Version(first.version, f"{config.path}/{first.version}", 100),
    ]
    look_twice(served_model)
    assert served_model.engine.version == first.version
    assert [uri for uri, _ in list_models(config)] == [first.uri]  # nor is it the champion
    with pytest.raises(DeployError, match="there is nothing to go back to"):
        folder.rollback(config)
    with pytest.raises(ModelError, match=f"is version {first.version}, and live"):
        folder.deploy(models[0], config, 0)
    folder.deploy(models[1], config)  # by its run: a copy of the same model is meant
    look_twice(served_model)
    assert served_model.engine.version == second.version
    assert [(v.version, v.traffic) for v in folder.status(config)] == [(second.version, 100), (first.version, 0)]
    assert folder.rollback(config) == first
    assert [v.in_shadow for v in folder.status(config)] == [False, False]


def test_a_version_in_shadow_that_a_newer_live_one_has_passed_over_gets_a_number_above_that(config, models):
    folder.deploy(models[0], config)
    passed_over = folder.deploy(models[1], config, 0)
    live = folder.deploy(models[2], config)
    assert [(v.version, v.state, v.in_shadow) for v in folder.status(config)][:2] == [
        (live.version, "ready", False),
        (passed_over.version, "was in shadow", False),
    ]
    again = folder.deploy(passed_over.uri, config)
    assert int(again.version) > int(live.version) > int(passed_over.version)
    assert folder.status(config)[0] == again


def test_a_version_in_shadow_without_the_signature_goes_live_as_a_signed_copy(config, models, tmp_path):
    folder.deploy(models[0], config)
    unsigned = folder.deploy(models[1], config, 0)
    signing = config.model_copy(update={"sign": str(write_keys(tmp_path, "signing"))})
    signed = folder.deploy(unsigned.uri, signing)
    assert storage.is_deployed(models[1], signed.uri, signing.sign)
    assert (folder.status(config)[0], [v.in_shadow for v in folder.status(config)]) == (signed, [False] * 3)
    again = folder.deploy(models[2], signing, 0)
    assert folder.deploy(again.uri, signing).version == again.version


def test_where_nothing_is_deployed_nothing_is_rolled_back(config):
    assert folder.status(config) == []
    with pytest.raises(DeployError, match="has no version: there is nothing to go back to"):
        folder.rollback(config)


def test_a_folder_splits_no_requests_and_answers_nobody(config, models):
    with pytest.raises(ModelError, match="a folder has no share of the requests"):
        folder.deploy(models[0], config, 10)
    assert folder.status(config) == []
    with pytest.raises(ModelError, match=r"answers nobody online.*imagepipe serve.*--endpoint"):
        folder.find_address(config)


def test_the_command_line_deploys_shows_and_rolls_back(models, tmp_path):
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"name": "digits", "data": {"path": "data"}}))
    serving_dir = tmp_path / "serving" / "digits"  # where `imagepipe run` pushes to

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments, "--config", str(file)])
        return result.exit_code, result.output

    code, output = run("deploy", models[0])
    (first,) = serving_dir.iterdir()
    assert (code, output) == (0, f"Version {first.name} gets 100% of the requests: {first}\n")
    code, output = run("deploy", models[1], "--json")
    second = json.loads(output)
    assert (code, second["traffic"], second["uri"]) == (0, 100, f"{serving_dir}/{second['version']}")
    rows = [line.split() for line in run("status")[1].splitlines() if line.strip()[:1].isdigit()]
    assert rows == [[second["version"], "100%", "ready", second["uri"]], [first.name, "0%", "ready", str(first)]]
    assert [version["version"] for version in json.loads(run("status", "--json")[1])] == [second["version"], first.name]
    assert run("rollback") == (0, f"Version {first.name} is live: {first}\n")
    code, output = run("rollback")
    assert code == 1
    assert "there is nothing to go back to" in output
    code, output = run("deploy", models[1], "--traffic", "10")
    assert code == 2
    assert "a folder has no share" in output
    code, output = run("deploy", models[1], "--traffic", "0")
    assert (code, "gets 0% of the requests" in output, f"{serving_dir}/shadow/" in output) == (0, True, True)
    cluster = ("--target", "kserve", "--set", f"deploy.path={tmp_path}")
    code, output = run("deploy", models[1], "--traffic", "0", *cluster)
    assert (code, "needs target: filesystem" in " ".join(output.split())) == (2, True)
    code, output = run("deploy", str(tmp_path / "nothing"))
    assert code == 2
    assert "neither a SavedModel" in output


@pytest.mark.parametrize(("inner", "uri"), [("", "{v}"), ("{version}", "{v}/{v}")])
def test_an_object_store_holds_versions_as_a_folder_does(store, models, inner, uri):
    root = f"{store.uri}/digits"
    assert storage.list_versions(root) == []
    first = storage.add_version(models[0], root, inner)
    assert storage.add_version(models[0], root, inner) == first
    second = storage.add_version(models[1], root, inner)
    assert storage.list_versions(root) == [first, second]
    model = f"{root}/{uri.format(v=second)}"
    assert storage.is_same_model(models[1], model)
    assert not storage.is_same_model(models[0], model)
    assert read_labels(storage.fetch_assets(model)) == ["black", "white"]
    assert tf.saved_model.load(str(storage.fetch_folder(model))).signatures["serving_default"]


def test_on_an_object_store_the_graph_comes_last(store, models, monkeypatch):
    """Until it is there a server sees no model; without this it could load one without its weights."""
    written = []
    copy = filesystem.copy
    monkeypatch.setattr(filesystem, "copy", lambda source, target: (written.append(target), copy(source, target)))
    version = storage.add_version(models[0], f"{store.uri}/order")
    files = {str(path.relative_to(models[0])) for path in Path(models[0]).rglob("*") if path.is_file()}
    assert written[-1] == f"{store.uri}/order/{version}/saved_model.pb"
    assert {file.removeprefix(f"{store.uri}/order/{version}/") for file in written} == files
    assert len(written) == len(files)


def test_a_rollback_on_an_object_store_keeps_the_version(store, models):
    config = DeployConfig(name="digits", path=f"{store.uri}/digits")
    first, second = folder.deploy(models[0], config), folder.deploy(models[1], config)
    assert folder.rollback(config) == first
    assert [(v.version, v.state) for v in folder.status(config)] == [
        (second.version, "rolled back"),
        (first.version, "ready"),
    ]
    assert read_labels(storage.fetch_assets(f"{config.path}/rolled_back/{second.version}")) == ["black", "white"]


class KilledError(BaseException):
    """Stands for the end of a process."""


def kill_while_copying_weights(monkeypatch, act) -> None:
    copy = filesystem.copy

    def die(source, target):
        if "/variables/" in source:
            raise KilledError
        copy(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(filesystem, "copy", die)
        with pytest.raises(KilledError):
            act()


def test_a_push_to_a_store_that_was_killed_is_done_again(store, models, monkeypatch):
    config = DeployConfig(name="digits", path=f"{store.uri}/digits")
    first = folder.deploy(models[0], config)
    kill_while_copying_weights(monkeypatch, lambda: push_model(models[1], config))
    killed = storage.list_versions(str(config.path))[-1]
    assert int(killed) > int(first.version)
    assert storage.read_fingerprint(f"{config.path}/{killed}") == b""
    assert folder.deploy(models[0], config) == first  # which is live, and not copied again
    assert [(v.version, v.traffic, v.state) for v in folder.status(config)] == [
        (killed, 0, "incomplete"),
        (first.version, 100, "ready"),
    ]
    pushed = push_model(models[1], config)
    assert (pushed.outcome, pushed.version.traffic) == ("pushed", 100)
    assert int(pushed.version.version) > int(killed)
    served = storage.fetch_newest(str(config.path)) / pushed.version.version
    assert read_labels(served) == ["black", "white"]
    assert push_model(models[1], config).outcome == "already_deployed"


def test_for_kserve_too_a_version_that_was_killed_is_copied_again(store, models, monkeypatch):
    root = f"{store.uri}/digits"
    kill_while_copying_weights(monkeypatch, lambda: storage.add_version(models[0], root, "{version}"))
    (killed,) = storage.list_versions(root)
    version = storage.add_version(models[0], root, "{version}")
    assert int(version) > int(killed)
    assert storage.add_version(models[0], root, "{version}") == version
    assert storage.is_same_model(models[0], f"{root}/{version}/{version}")


@pytest.mark.parametrize("place", ["folder", "memory://bucket-of-copies"])
def test_a_copy_under_way_is_neither_live_nor_champion_and_a_rollback_leaves_it_alone(place, tmp_path):
    root = str(tmp_path) if place == "folder" else place
    for version in ("100", "200", "300", "shadow/250"):
        filesystem.write_whole(f"{root}/{version}/fingerprint.pb", version.encode())
        if version in ("100", "200"):
            filesystem.write_whole(f"{root}/{version}/saved_model.pb", b"graph")
    config = DeployConfig(name="digits", path=root)
    states = [(v.version, v.traffic, v.state, v.in_shadow) for v in folder.status(config)]
    copies = [("300", 0, "incomplete", False), ("250", 0, "incomplete", False)]
    assert states == [*copies, ("200", 100, "ready", False), ("100", 0, "ready", False)]
    assert [uri for uri, _ in list_models(config)] == [f"{root}/200", f"{root}/100"]
    assert storage.find_model(root) == f"{root}/200"
    assert folder.rollback(config) == Version("100", f"{root}/100", 100)
    assert filesystem.exists(f"{root}/300/fingerprint.pb")
    assert not filesystem.exists(f"{root}/200")
    with pytest.raises(DeployError, match="has only version 100: there is nothing to go back to"):
        folder.rollback(config)
    filesystem.delete_folder(root)


def test_a_version_that_was_never_live_is_compared_with_nothing(tmp_path):
    for version in ("100", "shadow/150", "200"):
        for file in ("fingerprint.pb", "saved_model.pb"):
            filesystem.write_whole(f"{tmp_path}/{version}/{file}", version.encode())
    config = DeployConfig(name="digits", path=str(tmp_path))
    newest, other = _find_rivals(folder.status(config), is_tried=False)
    assert (newest.version, other.version) == ("200", "100")
    assert [uri for uri, _ in list_models(config)] == [f"{tmp_path}/200", f"{tmp_path}/100"]
    assert folder.rollback(config) == Version("100", other.uri, 100)


def test_what_can_not_be_written_is_reported(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"file/digits can't be written"):
        folder.deploy(models[0], DeployConfig(name="digits", path=str(tmp_path / "file" / "digits")))
