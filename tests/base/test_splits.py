"""Which folders are splits."""

import pytest

from imagepipe.base.errors import IngestError
from imagepipe.base.splits import find_layout, resolve_split

SPLITS = {"train": 80, "eval": 10, "test": 10}


def lay_out(*paths, wanted=None):
    """Returns the layout of a source with these folders."""

    def list_folders(folder):
        below = [path[len(folder) :] for path in paths if path.startswith(folder)]
        return sorted({path.partition("/")[0] for path in below})

    return find_layout(list_folders, wanted)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train/cat", "val/cat"), {"train": "train", "val": "eval"}),
        (("Train/cat", "VALID/cat", "Test/cat"), {"Train": "train", "VALID": "eval", "Test": "test"}),
        (("training/a", "valid/a", "validation/a"), {"training": "train", "valid": "eval", "validation": "eval"}),
        (("train/cat",), {"train": "train"}),
        (("train/cat", "test"), {"train": "train", "test": "test"}),
        (("test/test", "train/train"), {"test": "test", "train": "train"}),  # classes of these names
    ],
)
def test_folders_with_the_names_of_splits_are_splits_if_they_hold_folders(folders, splits):
    assert lay_out(*folders).splits == splits


@pytest.mark.parametrize("folders", [("train", "test"), ("cat/train", "dog"), ("train/a", "cat/b"), ()])
def test_other_folders_are_classes(folders):
    assert not lay_out(*folders).splits


def test_split_folders_may_lie_in_a_single_folder():
    layout = lay_out("flowers/data/train/rose", "flowers/data/val/rose")
    assert layout.read_path("flowers/data/val/rose/1.jpg") == ("val", "rose")
    assert layout.read_path("flowers/readme.txt") == (None, None)


def test_a_folder_that_links_to_itself_ends_the_search():
    assert not find_layout(lambda _: ["again"], None).splits


def test_a_folder_beside_the_splits_is_named_and_taken_on_demand_only():
    folders = ("train/cat", "val/cat", "extra/cat")
    assert lay_out(*folders).doubt == ("extra",)
    assert lay_out(*folders, wanted=True).splits.keys() == {"train", "val"}
    assert not lay_out("train/cat", "val/cat", wanted=False).splits


def test_splits_that_are_wanted_and_not_there_are_an_error():
    with pytest.raises(IngestError, match="give --splits none"):
        lay_out("cat", "dog", wanted=True)


def test_labels_and_splits_of_paths():
    layout = lay_out("train/cat", "val/cat", "test")
    assert layout.unlabelled == {"test"}
    assert layout.read_path("train/cat/deep/1.jpg") == ("train", "cat")
    assert layout.read_path("train/1.jpg") == ("train", None)
    assert layout.read_path("readme.txt") == (None, None)
    assert lay_out("cat", "dog").read_path("cat/1.jpg") == (None, "cat")


def test_names_of_splits_are_read_in_any_case_and_as_the_dataset_calls_them():
    assert [resolve_split(name, SPLITS) for name in ("Val", " dev ", "TRAINING", "test", "holdout")] == [
        "eval", "eval", "train", "test", None,
    ]  # fmt: skip
    assert resolve_split("fold1", {"fold1": 1}) == "fold1"
    assert resolve_split("val", {"fold1": 1}) is None
