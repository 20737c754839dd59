"""Models that are not on this machine: in an object store."""

from pathlib import Path

import pytest

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.in_use import is_in_use
from imagepipe.deploy import saved_model, storage
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
