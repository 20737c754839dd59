"""Splits that the source gives: folders above the class folders, and a manifest's column."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import IngestError
from imagepipe.ingest import dataset
from imagepipe.ingest.command import ingest
from pipeline.cli import app


@pytest.fixture
def split_folders(put, crops, tmp_path):
    """Images in photos/train, photos/val and photos/test, each with the classes cat and dog; and a dataset's path."""
    images = iter(crops(36))
    for split, count in (("train", 10), ("val", 4), ("test", 4)):
        for label in ("cat", "dog"):
            for i in range(count):
                put(f"photos/{split}/{label}/{i}.jpg", next(images))
    return tmp_path / "photos", tmp_path / "out"


def count_labels(out):
    return {name: split.labels for name, split in dataset.load(str(out)).splits.items()}


def test_folders_above_the_class_folders_are_splits_and_that_is_said(split_folders):
    source, out = split_folders
    (source / "README.txt").write_bytes(b"")
    result = ingest(source, out)
    assert count_labels(out) == {
        "train": {"cat": 10, "dog": 10}, "eval": {"cat": 4, "dog": 4}, "test": {"cat": 4, "dog": 4},
    }  # fmt: skip
    assert result.notes == ("Folders gave the splits: test is test (8), train is train (20), val is eval (8).",)


def test_folders_with_a_split_among_their_words_are_splits_too(split_folders):
    source, out = split_folders
    for name in ("train", "val", "test"):
        (source / name).rename(source / f"seg_{name}")
    result = ingest(source, out)
    assert [sum(counts.values()) for counts in count_labels(out).values()] == [20, 8, 8]
    assert result.notes[0] == (
        "Folders gave the splits: seg_test is test (8), seg_train is train (20), seg_val is eval (8)."
    )


def test_on_demand_they_are_classes_now_and_in_later_ingests(split_folders):
    source, out = split_folders
    for split_as in ({"split_folders": False}, {}):
        assert ingest(source, out, **split_as).written == 36
        labels = {label for counts in count_labels(out).values() for label in counts}
        assert labels == {"train", "val", "test"}


def test_a_folder_beside_the_splits_is_doubted_and_rejected_on_demand(split_folders, put, crops, lines):
    source, out = split_folders
    put("photos/more/cat/x.jpg", crops(37)[36])
    result = ingest(source, f"{out}-doubt")
    assert "others are beside them (more)" in result.notes[0]
    result = ingest(source, out, split_folders=True)
    assert (result.new, result.quarantined) == (36, 1)
    [entry] = lines(out / "quarantine.jsonl")
    assert entry["reason"] == "in none of the folders that are splits (test, train, val)"
    # As this source was read before.
    assert ingest(source, out).already == 36


def test_loose_test_images_are_counted_and_left_to_predict(split_folders):
    source, out = split_folders
    shutil.rmtree(source / "test/dog")
    for path in (source / "test/cat").iterdir():
        path.rename(source / "test" / path.name)
    (source / "test/cat").rmdir()
    result = ingest(source, out)
    assert (result.read, result.quarantined) == (28, 0)
    assert result.passed_over == {"without a label in test, for imagepipe predict": 4}


def test_without_eval_it_is_drawn_from_train_and_test_is_kept(split_folders):
    source, out = split_folders
    shutil.rmtree(source / "val")
    result = ingest(source, out, splits={"train": 50, "eval": 50, "test": 0})
    splits = dataset.load(str(out)).splits
    assert splits["test"].labels == {"cat": 4, "dog": 4}
    assert splits["train"].records + splits["eval"].records == 20
    assert splits["eval"].records
    assert result.notes[1] == "No eval split is given, so images of train are drawn for eval, by the shares."


def test_without_test_train_stays_as_given(split_folders):
    source, out = split_folders
    shutil.rmtree(source / "test")
    ingest(source, out)
    assert {name: split.records for name, split in dataset.load(str(out)).splits.items()} == {
        "train": 20, "eval": 8, "test": 0,
    }  # fmt: skip


def test_given_splits_are_kept_when_more_comes_without(split_folders, put, crops, records):
    source, out = split_folders
    ingest(source, out)
    old = {sha256: split for sha256, (split, _) in records(out).items()}
    for i, data in enumerate(crops(60)[36:]):
        put(f"later/train/cat/{i}.jpg", data)
    ingest(source.parent / "later", out)
    new = {sha256: split for sha256, (split, _) in records(out).items()}
    assert old.items() <= new.items()
    assert {split for sha256, split in new.items() if sha256 not in old} == {"train"}  # eval is given already


def test_what_comes_without_splits_leaves_the_given_ones_as_they_are(split_folders, put, crops):
    source, out = split_folders
    ingest(source, out)
    given = count_labels(out)
    for i, data in enumerate(crops(76)[36:]):
        put(f"later/{('cat', 'dog', 'fox')[i % 3]}/{i}.jpg", data)
    result = ingest(source.parent / "later", out)
    grown = count_labels(out)
    assert (grown["eval"], grown["test"]) == (given["eval"], given["test"])
    assert sum(grown["train"].values()) == 20 + 40
    assert result.notes == (
        "40 images without a split are drawn from train only, as eval and test are given by a source.",
    )


def test_where_test_alone_is_given_the_others_are_drawn(put, crops, tmp_path):
    lines = ["path,label,split"]
    for i, data in enumerate(crops(40)):
        put(f"set/{i}.jpg", data)
        lines.append(f"{i}.jpg,{'ab'[i % 2]},{'test' if i < 6 else ''}")
    ingest(put("set/list.csv", "\n".join(lines).encode()), tmp_path / "out")
    counts = {split: sum(labels.values()) for split, labels in count_labels(tmp_path / "out").items()}
    assert counts["test"] == 6
    assert counts["eval"] >= 2
    assert sum(counts.values()) == 40


def test_of_copies_in_two_splits_the_one_held_out_is_kept(split_folders, lines):
    source, out = split_folders
    shutil.copy(source / "test/cat/0.jpg", source / "train/cat/leak.jpg")
    result = ingest(source, out)
    assert count_labels(out)["train"] == {"cat": 10, "dog": 10}
    assert result.duplicates == 1
    assert result.notes[1].startswith("1 images are given several splits, as copies: each is in the last of them only")
    [entry] = lines(out / "duplicates.jsonl")
    assert (entry["path"], entry["same_as"]) == (str(source / "train/cat/leak.jpg"), str(source / "test/cat/0.jpg"))


def test_an_image_whose_source_gives_another_split_later_stays_and_is_counted(split_folders, records):
    source, out = split_folders
    ingest(source, out)
    old = {sha256: split for sha256, (split, _) in records(out).items()}
    (source / "test/cat/0.jpg").rename(source / "train/cat/moved.jpg")
    result = ingest(source, out)
    assert {sha256: split for sha256, (split, _) in records(out).items()} == old
    assert result.notes[1].startswith("1 images stay in the split that they are in")


def test_a_manifests_column_split(split_folders, lines):
    source, out = split_folders
    manifest = source / "list.csv"
    manifest.write_text(
        "path,label,split\n"
        "train/cat/0.jpg,cat,Train\n"
        "train/cat/1.jpg,cat,holdout\n"
        "train/cat/2.jpg,cat,VALID\n"
        "train/cat/3.jpg,cat, test \n"
        "train/cat/4.jpg,cat,\n"
        "train/cat/5.jpg,cat,NA\n"
    )
    result = ingest(manifest, out)
    description = dataset.load(str(out))
    assert "split" not in description.features
    assert (result.new, result.quarantined) == (5, 1)
    assert [split.records for split in description.splits.values()] == [3, 1, 1]
    [entry] = lines(out / "quarantine.jsonl")
    assert entry["row"] == 3
    assert entry["reason"] == (
        "split is none of train, eval, test, training, val, valid, validation, evaluation, dev, testing: 'holdout'"
    )
    assert result.notes == (
        "The column split gave the splits: Train is train (1), VALID is eval (1), test is test (1).",
        "2 images without a split are drawn from train only, as eval and test are given by a source.",
    )


def test_split_folders_in_a_store(split_folders, memory, tmp_path):
    source, out = split_folders
    for path in source.rglob("*.jpg"):
        memory.put(f"photos/{path.relative_to(source)}", path.read_bytes())
    ingest(f"{memory.uri}/photos", out)
    assert {name: split.records for name, split in dataset.load(str(out)).splits.items()} == {
        "train": 20, "eval": 8, "test": 8,
    }  # fmt: skip


def test_splits_by_folder_are_refused_for_a_manifest(put, tmp_path):
    manifest = put("list.csv", b"path,label\n")
    with pytest.raises(IngestError, match="leave out --splits folders"):
        ingest(manifest, tmp_path / "out", split_folders=True)


def test_the_command_says_what_it_understood_and_takes_words_and_shares(split_folders):
    source, out = split_folders
    run = CliRunner().invoke(app, ["ingest", str(source), "--out", str(out), "--json"])
    [note] = json.loads(run.stdout)["notes"]
    assert note.startswith("Folders gave the splits")
    assert note in run.stderr
    for splits, labels in (("none,50/25/25", {"train", "val", "test"}), ("folders", {"cat", "dog"})):
        folder = f"{out}-{splits[:4]}"
        run = CliRunner().invoke(app, ["ingest", str(source), "--out", folder, "--splits", splits])
        assert run.exit_code == 0, run.output
        assert {label for counts in count_labels(folder).values() for label in counts} == labels
    run = CliRunner().invoke(app, ["ingest", str(source), "--out", str(out), "--splits", "some"])
    assert run.exit_code == 2
