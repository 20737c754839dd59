"""Into which splits images are drawn."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.base.splits import plan_draw
from imagepipe.ingest import policy

SPLITS = {"train": 80, "eval": 10, "test": 10}


class Dataset:
    """Which labels and groups a dataset has in which split; images are added as ingest does it, in buckets."""

    def __init__(self, buckets=3, task="classification"):
        self.buckets, self.task = buckets, task
        self.splits, self.labels, self.groups = {}, {}, {}
        self.torn = []

    def add(self, images, given_splits=()):
        """Adds images: name to (labels, group, split)."""
        draw = plan_draw(SPLITS, given_splits)
        rows = defaultdict(list)
        facts = defaultdict(list)
        for name, (labels, group, split) in images.items():
            sha256 = hashlib.sha256(name.encode()).hexdigest()
            row = {"sha256": sha256, "path": name, "labels": list(labels), "group": group, "split": split}
            row |= {"weights": dict(draw.weigh(split)), "change": "new"}
            rows[self.choose_bucket(sha256, group)].append(row)
        for name, group in self.groups.items():
            fact = {"group": group, "present": self.splits[name]}
            facts[self.choose_bucket("", group)].append(fact)
        cells = defaultdict(list)
        for key, count in self.count().items():
            cells[key].append(policy.Cell(count))
        drawn = []
        for bucket, some in rows.items():
            placed, added, torn = policy.draw_rows(some, facts[bucket], self.task)
            drawn += placed
            self.torn += torn
            for key, cell in added.items():
                cells[key].append(cell)
        moves = dict(policy.plan_moves({key: policy.add_cells(some) for key, some in cells.items()}, list(SPLITS)))
        for row in drawn:
            self.splits[row["path"]] = moves.get(policy.find_unit(row["sha256"], row["group"]), row["split"])
            self.labels[row["path"]] = policy.list_classes(row["labels"], self.task)
            if row["group"]:
                self.groups[row["path"]] = row["group"]

    def choose_bucket(self, sha256, group):
        return int(policy.find_unit(sha256, group)[-8:], 16) % self.buckets

    def count(self):
        return Counter((label, split) for name, split in self.splits.items() for label in self.labels[name])

    def list_splits(self, label):
        counts = self.count()
        return [split for split in SPLITS if counts[label, split]]


def images(count, label, prefix="", group=None, split=None):
    return {f"{prefix}{label}-{i}": ([label], group, split) for i in range(count)}


def test_ten_classes_of_twenty_images_are_in_each_split_in_each_of_100_sets():
    for seed in range(100):
        dataset = Dataset()
        dataset.add({name: row for c in range(10) for name, row in images(20, f"class{c}", f"{seed}-").items()})
        counts = dataset.count()
        assert all(counts[f"class{c}", split] for c in range(10) for split in SPLITS)


def test_most_images_are_where_their_hash_puts_them():
    dataset = Dataset()
    dataset.add({name: row for c in range(10) for name, row in images(100, f"class{c}").items()})
    moved = sum(
        split != policy.choose_split(hashlib.sha256(name.encode()).hexdigest(), SPLITS)
        for name, split in dataset.splits.items()
    )
    assert moved <= 2


def test_a_class_of_few_images_is_in_the_first_splits():
    for count in (1, 2, 3):
        for seed in range(20):
            dataset = Dataset()
            dataset.add(images(count, "rare", f"{seed}-"))
            assert dataset.list_splits("rare") == list(SPLITS)[:count]


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.sampled_from("abcd"), max_size=12), min_size=1, max_size=6), seed=st.integers(0, 999)
)
def test_an_image_stays_in_its_split_as_the_dataset_grows_and_each_class_is_in_as_many_as_it_can_be(batches, seed):
    dataset = Dataset()
    for number, labels in enumerate(batches):
        earlier = dict(dataset.splits)
        dataset.add({f"{seed}-{number}-{i}": ([label], None, None) for i, label in enumerate(labels)})
        assert earlier.items() <= dataset.splits.items()
        totals = Counter(label for some in dataset.labels.values() for label in some)
        for label, total in totals.items():
            assert len(dataset.list_splits(label)) == min(total, 3)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqrstuvw")), max_size=12), min_size=1, max_size=5
    )
)
def test_a_group_is_never_in_two_splits_in_several_ingests(batches):
    dataset = Dataset()
    for number, some in enumerate(batches):
        earlier = dict(dataset.splits)
        dataset.add({f"{number}-{i}": ([label], group, None) for i, (label, group) in enumerate(some)})
        assert earlier.items() <= dataset.splits.items()
        by_group = defaultdict(set)
        for name, group in dataset.groups.items():
            by_group[group].add(dataset.splits[name])
        assert all(len(splits) == 1 for splits in by_group.values())
    assert not dataset.torn


def test_groups_are_moved_as_a_whole_so_that_each_class_is_in_each_split():
    for seed in range(30):
        dataset = Dataset()
        dataset.add(
            {
                name: row
                for patient in range(8)
                for name, row in images(5, f"class{patient % 2}", f"{seed}-{patient}-", f"{seed}-{patient}").items()
            }
        )
        assert [dataset.list_splits(f"class{c}") for c in (0, 1)] == [list(SPLITS)] * 2


def test_a_group_follows_the_split_that_one_of_its_images_is_given_or_has():
    dataset = Dataset()
    dataset.add({**images(3, "a", group="p"), **images(1, "a", "given-", "p", "test")}, ["test"])
    assert set(dataset.splits.values()) == {"test"}
    dataset.add(images(3, "a", "later-", "p"))
    assert set(dataset.splits.values()) == {"test"}


def test_a_group_that_is_given_two_splits_is_torn():
    dataset = Dataset()
    dataset.add({**images(1, "a", "1-", "p", "train"), **images(1, "a", "2-", "p", "test")}, ["train", "eval", "test"])
    assert [(outcome["group"], outcome["splits"]) for outcome in dataset.torn] == [("p", ["test", "train"])]
    dataset = Dataset()
    dataset.add(images(1, "a", "1-", "p", "train"), ["train", "eval", "test"])
    dataset.add(images(1, "a", "2-", "p", "test"), ["train", "eval", "test"])
    assert [(outcome["group"], outcome["splits"]) for outcome in dataset.torn] == [("p", ["test", "train"])]


def test_given_splits_are_never_moved():
    dataset = Dataset()
    dataset.add(images(9, "a", split="train"), ["train", "eval"])
    assert set(dataset.splits.values()) == {"train"}


def test_each_label_of_several_is_in_each_split():
    labels = "abcdefgh"
    for seed in range(30):
        generator = np.random.default_rng(seed)
        dataset = Dataset(task="multilabel")
        dataset.add(
            {
                f"{seed}-{i}": (sorted(map(str, generator.choice(list(labels), 2, replace=False))), None, None)
                for i in range(60)
            }
        )
        assert all(dataset.list_splits(label) == list(SPLITS) for label in labels)


def test_each_split_of_a_regression_has_an_image():
    for seed in range(30):
        dataset = Dataset(task="regression")
        dataset.add(images(5, "3.5", f"{seed}-"))
        assert set(dataset.splits.values()) == set(SPLITS)
