"""What is read of models that are not on this machine; TensorFlow's file system in memory plays the object store."""

import pytest

from imagepipe.base.errors import ModelError
from imagepipe.deploy import storage
from tests.serving.conftest import save_brightness


@pytest.fixture
def stored(model, tmp_path) -> list[str]:
    """Two versions of a model, and one of other classes."""
    other = save_brightness(tmp_path / "other", tmp_path / "assets", ("night", "day"))
    folders = ["ram://bucket/a", "ram://bucket/b", "ram://bucket/other"]
    for source, folder in zip((model, model, other), folders, strict=True):
        storage.add_version(str(source), folder)
    return [f"{folder}/{storage.version_names(folder)[-1]}" for folder in folders]


def test_names_are_those_that_all_have(stored):
    assert storage.common_labels(stored[:2]) == ["dark", "light"]
    assert storage.common_labels(stored) == []


def test_what_a_model_takes_is_read_from_its_signature(stored, tmp_path):
    assert storage.inputs(stored[0]) == ["input", "metadata"]
    with pytest.raises(ModelError, match=r"ram://bucket/none can't be read as a SavedModel"):
        storage.inputs("ram://bucket/none")
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="can't be read as a SavedModel"):
        storage.inputs(str(tmp_path))
