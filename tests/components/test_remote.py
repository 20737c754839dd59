"""Components that write to an object store; TensorFlow's file system in memory plays it."""

import pytest
import tensorflow as tf
from tfx.dsl.io import filesystem_registry
from tfx.dsl.io.plugins.tensorflow_gfile import TensorflowFilesystem
from tfx.types import standard_artifacts

from components.remote import local_outputs


class InMemory(TensorflowFilesystem):
    SUPPORTED_SCHEMES = ("ram://",)


@pytest.fixture(autouse=True)
def object_store():
    filesystem_registry.DEFAULT_FILESYSTEM_REGISTRY.register(InMemory, priority=0)


def artifact(uri: str) -> standard_artifacts.Model:
    made = standard_artifacts.Model()
    made.uri = uri
    return made


def test_what_is_written_here_ends_up_in_the_object_store(tmp_path):
    remote, here = artifact("ram://bucket/model"), artifact(str(tmp_path / "run"))
    with local_outputs({"model": [remote], "run": [here]}):
        assert "://" not in remote.uri
        assert here.uri == str(tmp_path / "run")
        tf.io.gfile.makedirs(f"{remote.uri}/Format-Serving")
        tf.io.gfile.GFile(f"{remote.uri}/Format-Serving/saved_model.pb", "w").write("graph")
        folder = remote.uri
    assert remote.uri == "ram://bucket/model"
    assert tf.io.gfile.GFile("ram://bucket/model/Format-Serving/saved_model.pb").read() == "graph"
    assert not tf.io.gfile.exists(folder)


def test_of_what_failed_nothing_is_copied():
    remote = artifact("ram://bucket/failed")

    def fail():
        with local_outputs({"model": [remote]}):
            tf.io.gfile.GFile(f"{remote.uri}/half", "w").write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert remote.uri == "ram://bucket/failed"
    assert not tf.io.gfile.exists("ram://bucket/failed")
