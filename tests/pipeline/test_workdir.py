"""Folders whose paths TFX would take for patterns of names: it reaches the artifacts by a link."""

import pytest

from imagepipe.base.errors import ConfigError
from imagepipe.base.filesystem import is_plain
from pipeline.workdir import Workdir


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_plain_folder_needs_no_link(tmp_path, state):
    workdir = Workdir(tmp_path / "flowers")
    workdir.link_artifacts()
    assert workdir.plain_artifacts == workdir.artifacts
    assert not state.exists()


def test_each_other_folder_has_a_link_of_its_own_which_is_made_again_and_not_named(tmp_path):
    workdirs = [Workdir(tmp_path / name) for name in ("runs [1]", "runs [2]", "runs*?")]
    for workdir in workdirs:
        workdir.link_artifacts()
        assert is_plain(workdir.plain_artifacts)
        (workdir.plain_artifacts / "file").write_text(str(workdir.root))
        text = f"can't read {workdir.plain_artifacts}/file"
        assert workdir.name_artifacts(text) == f"can't read {workdir.artifacts}/file"
    assert [(workdir.artifacts / "file").read_text() for workdir in workdirs] == [str(w.root) for w in workdirs]

    link = workdirs[0].plain_artifacts
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    workdirs[0].link_artifacts()
    assert (link / "file").read_text() == str(workdirs[0].root)


def test_a_link_that_can_not_be_made_is_refused_with_the_remedy(tmp_path, state):
    state.write_text("a file")
    workdir = Workdir(tmp_path / "runs [1]")
    with pytest.raises(ConfigError, match=r"runs \[1\] has .* which can't be made: .*Set XDG_STATE_HOME"):
        workdir.link_artifacts()
    assert not workdir.root.exists()
