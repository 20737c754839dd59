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
        (("test/test", "test/a", "train/train", "train/a"), {"test": "test", "train": "train"}),  # and their classes
        (("Training/cat", "Testing/cat"), {"Training": "train", "Testing": "test"}),
        (("train/cat", "Evaluation/cat"), {"train": "train", "Evaluation": "eval"}),
        (("training_set/cats", "test_set/cats"), {"training_set": "train", "test_set": "test"}),
        (("seg_train/sea", "seg_test/sea"), {"seg_train": "train", "seg_test": "test"}),
        (("TrainSet/a", "valset/a", "test"), {"TrainSet": "train", "valset": "eval", "test": "test"}),
        (("train2017/a", "val2017/a"), {"train2017": "train", "val2017": "eval"}),
        (("My Train Images/a", "My Val Images/a"), {"My Train Images": "train", "My Val Images": "eval"}),
    ],
)
def test_folders_with_the_names_of_splits_are_splits_if_they_hold_folders(folders, splits):
    assert lay_out(*folders).splits == splits


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("cat/train", "dog"),
        ("train/a", "cat/b"),
        (),
        ("train station", "test tube", "bus"),
        ("train station/2023", "bus/2023"),
        ("steam train/2023", "freight train/2023"),
        ("trains/2023", "tests/2023"),
        ("train_test/a", "test_train/a"),
        ("training_set", "test_set"),
        ("constrain/a", "latest/a"),
    ],
)
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
    folders = tuple(f"chest_xray/{folder}" for folder in folders)
    assert lay_out(*folders).doubt == ("extra",)
    assert lay_out(*folders, wanted=True).read_path("chest_xray/val/cat/1.jpg") == ("val", "cat")


def test_folders_with_the_word_of_a_split_beside_others_are_named_and_taken_on_demand():
    folders = ("seg_train/sea", "seg_test/sea", "seg_pred")
    assert lay_out(*folders).doubt == ("seg_pred",)
    assert lay_out(*folders, wanted=True).splits == {"seg_train": "train", "seg_test": "test"}
    folders = ("training_set/cats", "test_set")
    assert lay_out(*folders).doubt == ("test_set",)
    assert lay_out(*folders, wanted=True).unlabelled == {"test_set"}


def test_a_split_folder_that_is_packed_twice_holds_the_classes():
    layout = lay_out("seg_train/seg_train/sea", "seg_test/seg_test/sea", "seg_test/seg_test/seg_test")
    assert layout.read_path("seg_train/seg_train/sea/1.jpg") == ("seg_train", "sea")
    assert layout.read_path("seg_test/seg_test/seg_test/1.jpg") == ("seg_test", "seg_test")
    assert lay_out("train/train", "test/test").read_path("test/test/1.jpg") == ("test", "test")  # classes


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
    assert [resolve_split(name, SPLITS) for name in ("Val", " dev ", "TRAINING", "test_set", "holdout")] == [
        "eval", "eval", "train", "test", None,
    ]  # fmt: skip
    assert resolve_split("fold1", {"fold1": 1}) == "fold1"
    assert resolve_split("val", {"fold1": 1}) is None
