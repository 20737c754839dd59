"""Splits as people name them, in folders above the class folders and in manifests, and the draw between them."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imagepipe.base.errors import IngestError

TRAIN, EVAL, TEST = "train", "eval", "test"

NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": EVAL,
    "valid": EVAL,
    "validation": EVAL,
    "eval": EVAL,
    "evaluation": EVAL,
    "dev": EVAL,
    "test": TEST,
    "testing": TEST,
}
"""Lower-case name to the split that it means."""

_BETWEEN_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")
_MAX_ABOVE = 3  # single folders above the split folders; a folder that links to itself would go on for ever


def list_split_words(name: str) -> list[str]:
    """Returns the words of a name that are those of splits, in lower case, as of ``seg_train`` or ``TestSet2``."""
    words = (word.lower() for word in _BETWEEN_WORDS.split(name))
    return [word for word in words if word.removesuffix("set") in NAMES]


def guess_split(name: str) -> str | None:
    """Returns which split a name means: one of the names in any case, or one of the name's words; None if none does."""
    words = list_split_words(name)
    return NAMES[words[0].removesuffix("set")] if len(words) == 1 else None


def are_several(splits: Iterable[str | None]) -> bool:
    """Returns whether one of several splits is for training, and another one is not."""
    return {TRAIN} < set(splits) - {None}


def resolve_split(text: str, splits: Collection[str]) -> str | None:
    """Returns which of a dataset's splits a name means, see ``guess_split``; None if it means none."""
    if text in splits:
        return text
    split = guess_split(text)
    return split if split in splits else None


def list_split_names(splits: Collection[str]) -> list[str]:
    """Returns all names by which a dataset's splits can be called."""
    return list(dict.fromkeys([*splits, *(name for name, split in NAMES.items() if split in splits)]))


@dataclass(frozen=True)
class Draw:
    """From which splits an image is drawn.

    Attributes:
        splits: all splits of the dataset, in order.
        unsplit: weight by split, for images that are given none.
        train: weight by split, for images that are given the training split; {"train": 1} if they stay there.
    """

    splits: Sequence[str]
    unsplit: Mapping[str, int]
    train: Mapping[str, int]

    def weigh(self, given: str | None) -> Mapping[str, int]:
        """Returns the weight by split for an image that is given this one."""
        if given is None:
            return self.unsplit
        return self.train if given == TRAIN else {given: 1}


def plan_draw(splits: Mapping[str, int], given: Collection[str]) -> Draw:
    """Plans the draw where the splits in ``given`` are given.

    What is given for eval or testing stays as it is given: images without a split are drawn from train and the splits
    that are not given. The gate needs eval, so where only train is given, or train and test, images of train are drawn
    in the same way. Where eval is given, train stays unchanged.
    """
    weights = {name: weight for name, weight in splits.items() if name == TRAIN or name not in given}
    if sum(weights.values()) <= 0:
        weights = {TRAIN: 1} if TRAIN in splits else dict(splits)
    is_drawn = TRAIN in given and EVAL in weights
    return Draw(list(splits), weights, weights if is_drawn else {TRAIN: 1})


@dataclass(frozen=True)
class Layout:
    """Which folders of a source are splits and which are classes.

    Attributes:
        root: the folder, relative to the source and ended by a slash, that holds the split folders, or in an archive
            the class folders; empty if the source itself does.
        splits: name of each split folder to what it means; empty if the folders of the source are classes.
        unlabelled: split folders without class folders, whose images have no labels.
        doubled: split folders with nothing but a folder of the same name, which holds the class folders.
        doubt: other folders beside the split-like ones, for which all of them were taken for classes.
        given_by: by what the splits are given that images have, for messages.
        label: the class of all images; None if folders tell the classes.
    """

    root: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    unlabelled: frozenset[str] = frozenset()
    doubled: frozenset[str] = frozenset()
    doubt: tuple[str, ...] = ()
    given_by: str = "The column split"
    label: str | None = None

    def read_path(self, path: str) -> tuple[str | None, str | None]:
        """Returns the split folder and the label that a path relative to the source has; None where it has none."""
        if self.label or not path.startswith(self.root):
            return None, self.label
        if not self.splits:
            folder, slash, _ = path[len(self.root) :].partition("/")
            return None, folder if slash else None
        folder, _, rest = path[len(self.root) :].partition("/")
        if folder not in self.splits:
            return None, None
        if folder in self.doubled:
            rest = rest.removeprefix(f"{folder}/")
        label, slash, _ = rest.partition("/")
        return folder, label if slash else None


CLASSES = Layout()
"""The folders of a source are classes."""


def find_layout(list_folders: Callable[[str], list[str]], wanted: bool | None) -> Layout:
    """Finds out whether the top folders of a source are splits.

    By default they are where all of them have the names of splits and one holds folders in turn, which are the classes.
    Names of which only a word says so (``training_set``, ``seg_train``) count by default where they hold folders, and
    of all names one is for training and one isn't: ``train station`` is a class.
    They may lie in a single folder of the source, as archives unpack.

    Args:
        list_folders: returns the names of the folders in a folder that is given relative to the source, ended by a
            slash or empty.
        wanted: True if they must be splits, False if they are classes whatever they are called, None to find out.

    Raises:
        IngestError: they are wanted, and there are none.
    """
    if wanted is False:
        return CLASSES
    root, folders = "", list_folders("")
    for _ in range(_MAX_ABOVE):
        if len(folders) != 1 or folders[0].lower() in NAMES:
            break
        root = f"{root}{folders[0]}/"
        folders = list_folders(root)
    inside = {folder: list_folders(f"{root}{folder}/") for folder in folders if guess_split(folder)}
    named = _choose_names(inside, wanted)
    unlabelled = frozenset(folder for folder in named if not inside[folder])
    doubled = frozenset(
        folder for folder in named if inside[folder] == [folder] and list_folders(f"{root}{folder}/{folder}/")
    )
    others = tuple(folder for folder in folders if folder not in named)
    if len(unlabelled) == len(named):
        if wanted:
            raise IngestError(
                "No top folder is called as a split is (train, val, test, …) and holds class folders, though they were "
                "to be splits by --splits folders, or were when this source was read before. If they are classes, give "
                "--splits none."
            )
        is_doubtful = are_several(map(guess_split, inside)) and any(inside.values())
        return Layout(doubt=tuple(folder for folder in folders if not inside.get(folder))) if is_doubtful else CLASSES
    if others and not wanted:
        return Layout(doubt=others)
    return Layout(root, named, unlabelled, doubled, given_by="Folders")


def _choose_names(inside: Mapping[str, Sequence[str]], wanted: bool | None) -> dict[str, str]:
    """Returns which folders are splits, by name what each means; ``inside`` has the folders in those that may be."""
    splits = {folder: str(guess_split(folder)) for folder in inside}
    if wanted:
        return splits
    names_in_full = {folder: split for folder, split in splits.items() if folder.lower() in NAMES}
    likely = {folder: split for folder, split in splits.items() if folder in names_in_full or inside[folder]}
    return likely if are_several(likely.values()) else names_in_full


def describe_surprises(counts: Mapping[str, int]) -> Iterator[str]:
    """Yields what may surprise of the splits of images, a sentence each.

    Args:
        counts: number of images that are ``held_out`` as they are given several splits, and of those that are given
            another split than they have, and ``stays`` in it.
    """
    if count := counts["held_out"]:
        yield (
            f"{count:,} images are given several splits, as copies: each is in the last of them only, so that none is "
            "both trained and tested on."
        )
    if count := counts["stays"]:
        yield (
            f"{count:,} images stay in the split that they are in, though the source gives them another one now: to "
            "split anew, ingest into a new folder."
        )


def describe_torn(splits_by_group: Mapping[str, Sequence[str]]) -> str:
    """Returns the message about groups that would lie in several splits."""
    named = [f"{group} ({', '.join(splits)})" for group, splits in sorted(splits_by_group.items())]
    listed = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
    return (
        f"{len(named):,} groups would lie in several splits, by what the source gives and what the dataset has: "
        f"{listed}. Give all images of a group one split, or none. Nothing was written."
    )
