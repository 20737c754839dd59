import pytest
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems

from imagepipe.base.errors import ConfigError
from pipeline.layouts import find_pattern, find_patterns


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
        paths = tf.io.gfile.glob(f"{folder}/{pattern}")
        assert matches[split] == sorted(path.removeprefix(f"{folder}/") for path in paths)
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


@pytest.mark.parametrize(
    "names",
    [
        ("part-0", "part-1"),
        ("part-0",),
        ("a.tfrecord", "b.tfrecord"),
        ("a.tfrecord-00000-of-00002", "a.tfrecord-00001-of-00002"),
        ("train-0.gz", "train-1.gz"),
        ("[1]-0", "[1]-1"),
    ],
)
def test_files_that_programs_leave_beside_records_are_none(tmp_path, names):
    for folder in ("train", "val"):
        put(tmp_path / folder, *names, "zzz.crc", "labels.txt", *(f"{name}.crc" for name in names))
    assert list_matches(tmp_path) == {
        split: [f"{folder}/{name}" for name in sorted(names)] for split, folder in (("train", "train"), ("eval", "val"))
    }
    matches = tf.io.gfile.glob(f"{tmp_path}/train/{find_pattern(str(tmp_path / 'train'))}")
    assert sorted(matches) == [f"{tmp_path}/train/{name}" for name in sorted(names)]


@pytest.mark.parametrize(
    "names",
    [("train-0", "val-0"), ("train-0", "train-1", "val-0"), ("train.tfrecord", "val.tfrecord")],
)
def test_files_beside_records_with_a_split_in_their_names_are_none(tmp_path, names):
    put(tmp_path, *names, *(f"{name}.crc" for name in names), "train.txt")
    assert sorted(name for files in list_matches(tmp_path).values() for name in files) == sorted(names)


def test_files_that_no_pattern_tells_from_records_are_named(tmp_path):
    put(tmp_path, "a", "b", "a.txt", "b.txt")
    with pytest.raises(ConfigError, match=r"move a\.txt, b\.txt out of it"):
        find_pattern(str(tmp_path))


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
    ],
)
def test_splits_that_no_pattern_tells_are_not_put_together(tmp_path, names):
    put(tmp_path, *names)
    with pytest.raises(ConfigError, match=r"tell splits .* give each split a folder of its own"):
        find_patterns(str(tmp_path))
