import pytest
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems

from imagepipe.base.errors import ConfigError
from pipeline.layouts import find_patterns


def put(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def list_matches(folder) -> dict[str, list[str]]:
    """The files by split, as Beam finds them, which is to find the same as TensorFlow."""
    matches = {}
    for split, pattern in find_patterns(str(folder)).items():
        (match,) = FileSystems.match([f"{folder}/{pattern}"])
        matches[split] = sorted(file.path.removeprefix(f"{folder}/") for file in match.metadata_list)
        assert matches[split] == [path.removeprefix(f"{folder}/") for path in tf.io.gfile.glob(f"{folder}/{pattern}")]
    return matches


@pytest.mark.parametrize(("train", "evaluation"), [("train", "validation"), ("Training", "val"), ("train", "dev")])
def test_folders_of_splits_are_read_without_what_lies_beside_the_records(tmp_path, train, evaluation):
    put(tmp_path, f"{train}/part-0", f"{train}/_SUCCESS", f"{train}/.part-0.crc", f"{evaluation}/part-0")
    put(tmp_path, "test/part-0", "_SUCCESS", ".hidden/x", "README", "other/part-0")
    assert list_matches(tmp_path) == {
        "train": [f"{train}/part-0"],
        "eval": [f"{evaluation}/part-0"],
        "test": ["test/part-0"],
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"),
        ("flowers-train.tfrecord-00000-of-00001", "flowers-val.tfrecord-00000-of-00001"),
        ("train.tfrecord", "val.tfrecord", "test.tfrecord"),
    ],
)
def test_files_with_a_split_in_their_names_are_read_by_split(tmp_path, names):
    put(tmp_path, *names, "_SUCCESS", ".train-00000-of-00002.crc", "dataset_info.json", "label.labels.txt")
    matches = list_matches(tmp_path)
    assert sorted(name for files in matches.values() for name in files) == sorted(names)
    assert all("train" in name for name in matches["train"])
    assert all("val" in name for name in matches["eval"])


def test_train_alone_is_one_set_and_names_without_splits_are_none(tmp_path):
    put(tmp_path / "one", "train-0.tfrecord")
    put(tmp_path / "none", "part-0.tfrecord", "part-1.tfrecord")
    assert list_matches(tmp_path / "one") == {"train": ["train-0.tfrecord"]}
    assert find_patterns(str(tmp_path / "none")) == {}


def test_a_split_that_lacks_or_is_there_twice_is_named(tmp_path):
    put(tmp_path / "lacks", "train/0", "test/0")
    put(tmp_path / "twice", "train/0", "val/0", "validation/0")
    with pytest.raises(ConfigError, match=r"has records for train and test, but none for eval: .* called val or valid"):
        find_patterns(str(tmp_path / "lacks"))
    with pytest.raises(ConfigError, match="two folders for eval, val and validation"):
        find_patterns(str(tmp_path / "twice"))


@pytest.mark.parametrize(
    "names",
    [
        ("train-0", "val-0", "validation-0"),
        ("train-0", "train_extra-0", "val-0"),
        ("train.tfrecord", "train.txt", "val.tfrecord"),
    ],
)
def test_splits_that_no_pattern_tells_are_not_put_together(tmp_path, names):
    put(tmp_path, *names)
    with pytest.raises(ConfigError, match=r"tell splits .* give each split a folder of its own"):
        find_patterns(str(tmp_path))
