"""Components that write to an object store; fsspec's file system in memory stands in for it."""

from pathlib import Path

import pytest
from tfx.types import standard_artifacts

from components.artifacts import local_outputs
from imagepipe.base import filesystem


def make_artifact(uri: str) -> standard_artifacts.Model:
    artifact = standard_artifacts.Model()
    artifact.uri = uri
    return artifact


def test_local_outputs_end_up_in_the_object_store(tmp_path):
    remote, here = make_artifact("memory://bucket/model"), make_artifact(str(tmp_path / "run"))
    filesystem.write_whole("memory://bucket/model/of-an-earlier-try", b"")
    with local_outputs({"model": [remote], "run": [here]}):
        assert "://" not in remote.uri
        assert here.uri == str(tmp_path / "run")
        folder = Path(remote.uri)
        (folder / "Format-Serving").mkdir()
        (folder / "Format-Serving" / "saved_model.pb").write_text("graph")
    assert remote.uri == "memory://bucket/model"
    assert filesystem.read_text("memory://bucket/model/Format-Serving/saved_model.pb") == "graph"
    assert not filesystem.exists("memory://bucket/model/of-an-earlier-try")
    assert not folder.exists()


def test_after_a_failure_nothing_is_copied():
    remote = make_artifact("memory://bucket/failed")

    def fail():
        with local_outputs({"model": [remote]}):
            (Path(remote.uri) / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert remote.uri == "memory://bucket/failed"
    assert not filesystem.exists("memory://bucket/failed")
