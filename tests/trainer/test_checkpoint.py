"""States on disk: those that are read back, and all kinds of files that are none."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from trainer.checkpoint import (
    STATE,
    Progress,
    State,
    StateError,
    check_shapes,
    load_state,
    make_state_folder,
    read_kept,
    save_state,
)

IDENTITY = {"keras": "3.1.4", "configuration": {"epochs": 2, "clip_norm": None}}
ROW = {"epoch": 1, "phase": "all", "val_loss": 0.1 + 0.2}
PROGRESS = Progress(phase=1, epoch=1, step=5, seconds=1.5, waiting=0.25, history=[ROW])
ARRAYS = {"weights": [np.ones((3, 2), np.float32), np.zeros((2,), np.float32)], "optimizer": [np.array(7, np.int32)]}


@pytest.fixture
def folder(tmp_path):
    save_state(tmp_path, State(IDENTITY, PROGRESS, ARRAYS))
    return tmp_path


def test_a_state_is_read_back_to_the_last_bit(folder):
    state = load_state(folder, IDENTITY)
    assert state is not None
    assert (state.identity, state.progress) == (IDENTITY, PROGRESS)
    assert state.arrays.keys() == ARRAYS.keys()
    for name, group in ARRAYS.items():
        for ours, theirs in zip(state.arrays[name], group, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
    assert [file.name for file in folder.iterdir()] == [STATE]


def test_without_a_file_there_is_no_state(tmp_path):
    assert load_state(tmp_path, IDENTITY) is None


def replace(**members):
    """Returns a function that replaces members of the archive, or removes those that are None."""

    def apply(path: Path) -> None:
        stored = dict(np.load(path)) | {name.replace("__", "/"): value for name, value in members.items()}
        np.savez(path, **{name: value for name, value in stored.items() if value is not None})

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def save_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not a state"),
    "the start of an archive": lambda path: path.write_bytes(b"PK\3\4 and no more"),
    "a pickle": lambda path: path.write_bytes(b"\x80\4K\1."),
    "half": cut,
    "a flipped byte": flip,
    "one array": save_one_array,
    "a folder": make_folder,
    "another archive": lambda path: np.savez(path, a=np.zeros(3)),
    "an array with objects": replace(weights__0=np.array([{}])),
    "no progress": replace(progress=None),
    "progress that is no JSON": replace(progress=np.array("{")),
    "progress that is a list": replace(progress=np.array("[]")),
    "progress of another version": replace(progress=np.array('{"phase": 0, "lap": 3}')),
    "progress of other types": replace(progress=np.array('{"phase": "first"}')),
    "a negative step": replace(progress=np.array('{"step": -1}')),
    "an identity that is a list": replace(identity=np.array("[]")),
    "no identity": replace(identity=None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_whatever_is_no_state_is_refused_with_a_reason(folder, damage):
    damage(folder / STATE)
    with pytest.raises(StateError, match=r"damaged, or not a state: \w+"):
        load_state(folder, IDENTITY)


def test_a_state_of_another_version_is_refused_before_the_rest_is_read(folder):
    replace(progress=np.array("of another form"))(folder / STATE)
    with pytest.raises(StateError, match=r"another training: keras was 3\.1\.4 and is 3\.2\.0"):
        load_state(folder, IDENTITY | {"keras": "3.2.0"})


def test_a_state_of_a_version_that_had_another_identity_is_refused(folder):
    replace(identity=np.array(json.dumps({"keras": "3.1.4"})))(folder / STATE)
    with pytest.raises(StateError, match="another training: configuration was None and is"):
        load_state(folder, IDENTITY)


def variables(*arrays: np.ndarray) -> list[keras.Variable]:
    return [keras.Variable(array, dtype=array.dtype.name) for array in arrays]


FITTING = {name: variables(*group) for name, group in ARRAYS.items()}


def test_arrays_fit_the_variables_that_they_were_copied_from():
    check_shapes(ARRAYS, FITTING)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"weights": variables(np.ones((3, 2), np.float32))}, "2 arrays of weights don't fit the 1 variables"),
        ({"weights": variables(*[np.ones(2, np.float32)] * 2)}, "arrays of weights don't fit"),
        ({"optimizer": variables(np.array(7, np.int64))}, "arrays of optimizer don't fit"),
        ({"trackers": variables()}, "groups optimizer, weights in place of optimizer, trackers, weights"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, reason):
    with pytest.raises(StateError, match=reason):
        check_shapes(ARRAYS, FITTING | changed)


@pytest.fixture
def make_arguments(tmp_path):
    """Returns a function that makes TFX's arguments, with a learning rate and other settings."""
    for name in ("train.gz", "eval.gz", "graph/saved_model.pb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"one")

    def make(learning_rate: float = 0.1, serving: dict | None = None, **trainer) -> SimpleNamespace:
        custom = {"task": "regression", "features": {}, "image_size": [8, 8], "state_dir": str(tmp_path / "states")}
        return SimpleNamespace(
            train_files=[str(tmp_path / "train*")],
            eval_files=[str(tmp_path / "eval*")],
            transform_graph_path=str(tmp_path / "graph"),
            hyperparameters=None,
            custom_config=custom
            | {"trainer": {"learning_rate": learning_rate} | trainer, "serving": serving or {"precision": "int8"}},
        )

    return make


def list_folders(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_dir()}


def test_the_same_training_finds_its_state_and_its_pixels(make_arguments):
    folder = make_state_folder(make_arguments(), "trainer.run_fn")
    (folder / STATE).write_bytes(b"state")
    (folder.parent / "train.pixels").write_bytes(b"pixels")
    assert make_state_folder(make_arguments(), "trainer.run_fn") == folder
    assert (folder / STATE).read_bytes() == b"state"
    assert (folder.parent / "train.pixels").read_bytes() == b"pixels"


def test_another_configuration_uses_the_pixels_again_and_the_state_that_nothing_continues_is_removed(
    make_arguments, tmp_path
):
    first = make_state_folder(make_arguments(), "trainer.run_fn")
    (first / STATE).write_bytes(b"state")
    (first.parent / "train.pixels").write_bytes(b"pixels")
    second = make_state_folder(make_arguments(0.2), "trainer.run_fn")
    assert second != first
    assert (second.parent / "train.pixels").read_bytes() == b"pixels"
    assert list_folders(tmp_path / "states") == {second, second.parent}


@pytest.mark.parametrize(
    "changed",
    [{"serving": {"precision": "auto"}}, {"calibration": "none"}, {"label_thresholds": {"rain": 0.3}}],
    ids=lambda changed: "".join(changed),
)
def test_what_only_the_export_reads_costs_no_state(make_arguments, changed):
    """So that whoever follows a refusal's advice after hours of training need not train again."""
    first = make_state_folder(make_arguments(), "trainer.run_fn")
    (first / STATE).write_bytes(b"state")
    assert make_state_folder(make_arguments(**changed), "trainer.run_fn") == first
    assert (first / STATE).exists()
    assert make_state_folder(make_arguments(0.2, **changed), "trainer.run_fn") != first


@pytest.mark.parametrize("name", ["train.gz", "eval.gz", "graph/saved_model.pb"])
@pytest.mark.parametrize("content", [b"two", b"longer"])
def test_of_other_data_nothing_is_used_again_even_if_its_files_have_the_same_names(
    make_arguments, tmp_path, name, content
):
    first = make_state_folder(make_arguments(), "trainer.run_fn")
    (first.parent / "train.pixels").write_bytes(b"pixels")
    (tmp_path / name).write_bytes(content)
    os.utime(tmp_path / name, (1, 1))
    second = make_state_folder(make_arguments(), "trainer.run_fn")
    assert second.parent != first.parent
    assert list_folders(tmp_path / "states") == {second, second.parent}


def test_other_code_or_another_version_of_keras_does_not_continue_a_state(make_arguments, tmp_path, monkeypatch):
    first = make_state_folder(make_arguments(), "trainer.run_fn")
    info = tmp_path / "packages" / "keras-99.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 99\n")
    (info / "RECORD").write_text("keras/__init__.py,,\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(info.parent)
        assert make_state_folder(make_arguments(), "trainer.run_fn") != first
    assert make_state_folder(make_arguments(), "trainer.run_fn") == first
    assert make_state_folder(make_arguments(), "trainer.tuner_fn") != first
    assert make_state_folder(make_arguments(), "trainer.tuner_fn").parent == first.parent  # with the same pixels
    code = {"trainer.data": "the same", "trainer.run_fn": "new"}
    monkeypatch.setattr("trainer.checkpoint.hash_code", lambda modules: code[modules[0]])
    second = make_state_folder(make_arguments(), "trainer.run_fn")
    code["trainer.data"] = "new"
    assert make_state_folder(make_arguments(), "trainer.run_fn").parent != second.parent


def test_what_a_state_keeps_counts_for_its_own_training_alone(tmp_path):
    save_state(tmp_path, State({"devices": 1, "kept": ["features"]}, Progress(), {}))
    assert read_kept(tmp_path, {"devices": 1}) == ["features"]
    assert read_kept(tmp_path, {"devices": 2}) is None
