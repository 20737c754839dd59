"""Models that are not on this machine: in an object store."""

import errno
import time
from pathlib import Path

import pytest

from imagepipe.base import filesystem
from imagepipe.base.errors import DeployError, ModelError
from imagepipe.base.in_use import is_in_use
from imagepipe.deploy import saved_model, storage, targets
from imagepipe.deploy.config import DeployConfig
from tests.serving.conftest import save_brightness


@pytest.fixture
def stored(store, model, tmp_path) -> list[str]:
    """Two versions of a model, and one of other classes."""
    other = save_brightness(tmp_path / "other", tmp_path / "assets", ("night", "day"))
    folders = [f"{store.uri}/{name}" for name in ("a", "b", "other")]
    for source, folder in zip((model, model, other), folders, strict=True):
        storage.add_version(str(source), folder)
    return [f"{folder}/{storage.list_versions(folder)[-1]}" for folder in folders]


def test_labels_are_those_that_all_models_have(stored):
    assert storage.read_common_labels(stored[:2]) == ["dark", "light"]
    assert storage.read_common_labels(stored) == []


def test_inputs_are_read_from_the_signature(store, stored, tmp_path):
    assert saved_model.read_inputs(stored[0]) == {"input": "string", "metadata": "string"}
    with pytest.raises(ModelError, match=rf"{store.uri}/none can't be read as a SavedModel"):
        saved_model.read_inputs(f"{store.uri}/none")
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="can't be read as a SavedModel"):
        saved_model.read_inputs(str(tmp_path))


def test_a_fetched_model_is_the_stored_one(stored, model):
    copy = storage.fetch_folder(stored[0])
    names = {path.relative_to(model) for path in Path(model).rglob("*") if path.is_file()}
    assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == names
    assert all((copy / name).read_bytes() == (Path(model) / name).read_bytes() for name in names)


def test_of_versions_the_newest_is_found_and_fetched(stored, store):
    versions, _, number = stored[0].rpartition("/")
    newest = str(int(number) + 1)
    filesystem.copy_folder(stored[1], f"{versions}/{newest}")
    assert storage.find_model(f"{versions}/") == f"{versions}/{newest}"
    assert storage.find_model(stored[0]) == stored[0]
    copy = storage.fetch_newest(f"{versions}/")
    assert [path.name for path in copy.iterdir()] == [newest]
    assert copy.name == versions.rpartition("/")[2]
    filesystem.write_whole(f"{versions}/{int(newest) + 1}/variables/variables.index", b"x")  # one that is on its way
    assert [path.name for path in storage.fetch_newest(versions).iterdir()] == [newest]
    assert (storage.fetch_newest(stored[0]) / saved_model.GRAPH).is_file()
    with pytest.raises(ModelError, match=f"{store.uri}/none is neither a SavedModel nor a folder of its versions"):
        storage.fetch_newest(f"{store.uri}/none")


def test_the_newest_version_is_found_without_a_list_of_all_files(model, s3, monkeypatch):
    for version in ("100", "200", "300/300", "400"):
        s3.put(f"photos/{version}/{saved_model.GRAPH if version != '400' else 'fingerprint.pb'}", b"x")

    def walk(folder):
        raise AssertionError(f"all below {folder} is listed")

    monkeypatch.setattr(filesystem, "walk", walk)
    with pytest.raises(ModelError, match="neither a SavedModel"):
        storage.find_model(s3.uri)
    assert storage.find_newest_version(f"{s3.uri}/photos") == "200"
    assert storage.find_newest_version(f"{s3.uri}/none") is None
    assert storage.list_complete_versions(s3.uri) == []
    assert storage.find_model(f"{s3.uri}/photos") == f"{s3.uri}/photos/300/300"  # as KServe has it


def test_a_model_with_another_form_is_another_model(stored, store):
    assert storage.is_same_model(stored[0], stored[1])
    filesystem.write_whole(f"{stored[0]}/assets.extra/openvino/form.json", b'{"sha256": "1"}')
    assert not storage.is_same_model(stored[0], stored[1])
    assert storage.read_fingerprint(f"{store.uri}/none") == b""


def test_a_missing_model_is_not_fetched(store):
    with pytest.raises(ModelError, match=f"{store.uri}/none: there is nothing"):
        storage.fetch_folder(f"{store.uri}/none")


def test_an_object_is_not_written_beside_the_copy(s3, tmp_path):
    s3.put("model/../outside", b"x")
    with pytest.raises(ModelError, match=r"can't be fetched: \.\./outside leads out of it"):
        storage.fetch_folder(f"{s3.uri}/model")


def test_a_version_that_is_being_copied_is_marked_as_in_use(model, tmp_path, monkeypatch):
    marks = []
    copy = filesystem.copy

    def note(source, target):
        (partial,) = tmp_path.glob(f"{filesystem.PARTIAL}*")
        marks.append(is_in_use(partial))
        copy(source, target)

    monkeypatch.setattr(filesystem, "copy", note)
    version = storage.add_version(str(model), str(tmp_path))
    assert marks
    assert all(marks)
    assert not is_in_use(tmp_path / version)


def test_two_deploys_at_once_take_two_numbers_and_each_version_is_of_one_model(model, tmp_path, monkeypatch):
    other = str(save_brightness(tmp_path / "other", tmp_path / "assets", ("night", "day")))
    root = tmp_path / "serving"
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    copy, versions = filesystem.copy, []

    def let_the_other_go_first(source, target):
        if not versions:
            versions.append("")
            versions[0] = storage.add_version(other, str(root))
        copy(source, target)

    monkeypatch.setattr(filesystem, "copy", let_the_other_go_first)
    versions.append(storage.add_version(str(model), str(root)))
    assert sorted(versions) == sorted(path.name for path in root.iterdir())
    assert len(set(versions)) == 2
    for source, version in zip((other, str(model)), versions, strict=True):
        names = {path.relative_to(source): path.read_bytes() for path in Path(source).rglob("*") if path.is_file()}
        folder = root / version
        assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == names


def test_a_deploy_in_shadow_takes_another_number_than_one_to_be_live_that_is_under_way(model, tmp_path, monkeypatch):
    names = ("night", "day"), ("black", "white")
    live, shadowed = (str(save_brightness(tmp_path / pair[0], tmp_path / "assets", pair)) for pair in names)
    config = DeployConfig(name="digits", path=str(tmp_path / "serving"))
    target = targets.load_target(config)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    target.deploy(str(model), config)
    copy, versions = filesystem.copy, []

    def let_the_other_go_first(*paths):
        if not versions:
            versions.append(None)
            versions[0] = target.deploy(shadowed, config, 0)
        copy(*paths)

    monkeypatch.setattr(filesystem, "copy", let_the_other_go_first)
    versions.append(target.deploy(live, config))
    assert [version.version for version in versions] == ["1700000002", "1700000001"]
    assert target.status(config)[:2] == versions
    assert [storage.is_same_model(shadowed, versions[0].uri), storage.is_same_model(live, versions[1].uri)] == [
        True
    ] * 2


def test_a_number_of_a_version_that_was_rolled_back_meanwhile_is_not_used_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    (tmp_path / "rolled_back" / "1700000000").mkdir(parents=True)
    monkeypatch.setattr(storage, "list_versions", lambda folder: [])  # as it was listed before that
    assert storage.add_version(str(model), str(tmp_path)) == "1700000001"


def test_a_move_that_the_system_refuses_blames_no_other_process(model, tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filesystem, "rename", refuse)
    with pytest.raises(DeployError, match=r"Permission denied$"):
        storage.move_model(str(model), f"{tmp_path}/target")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_fails_is_deleted_and_nothing_else_is(model, tmp_path, monkeypatch, error):
    root = f"{tmp_path}/serving"
    leftover = f"{root}/{filesystem.PARTIAL}1/variables/stray"
    filesystem.write_whole(leftover, b"of another process")
    copy = filesystem.copy

    def fail_at_the_graph(source, target):
        if target.endswith(saved_model.GRAPH):
            raise error
        copy(source, target)

    monkeypatch.setattr(filesystem, "copy", fail_at_the_graph)
    with pytest.raises((ModelError, KeyboardInterrupt)):
        storage.add_version(str(model), root)
    assert [path for path, _ in filesystem.walk(root)] == [leftover]
    assert len(filesystem.list_folder(root)) == 1


def test_a_number_that_another_deploy_has_taken_meanwhile_is_passed_over(model, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    version = storage.add_version(str(model), str(tmp_path))
    monkeypatch.setattr(storage, "list_versions", lambda folder: [])  # as it was listed before that
    assert storage.add_version(str(model), str(tmp_path)) == str(int(version) + 1)
    assert storage.read_fingerprint(f"{tmp_path}/{version}")


def test_the_leftovers_of_a_killed_copy_get_into_no_version(model, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    leftover = tmp_path / f"{filesystem.PARTIAL}1700000000" / "variables" / "stray"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of another model")
    version = storage.add_version(str(model), str(tmp_path))
    assert not (tmp_path / version / "variables" / "stray").exists()
    assert leftover.exists()  # until `imagepipe clean`: it may be another's that is under way


def test_a_move_deletes_no_version_that_another_process_has_moved_or_put_there(model, tmp_path):
    version = storage.add_version(str(model), str(tmp_path))
    source, target = f"{tmp_path}/{version}", f"{tmp_path}/rolled_back/{version}"
    storage.move_model(source, target)
    with pytest.raises(DeployError, match=rf"{source} can't be moved to {target}: No such file"):
        storage.move_model(source, target)
    assert storage.is_same_model(str(model), target)
    filesystem.copy_folder(target, source)
    with pytest.raises(DeployError, match=rf"{target}: Directory not empty.*`imagepipe status`"):
        storage.move_model(source, target)
    assert storage.is_same_model(source, target)


def test_a_move_in_a_store_that_another_process_has_done_fails_and_keeps_the_version(store, stored):
    target = f"{store.uri}/rolled_back/1"
    storage.move_model(stored[0], target)
    with pytest.raises(DeployError, match=f"{stored[0]} can't be moved"):
        storage.move_model(stored[0], target)
    assert storage.is_same_model(stored[1], target)
