"""The source is right: labels that were corrected, files that were moved, and images that are gone."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import IngestError, NothingIngestedError
from imagepipe.ingest import dataset
from imagepipe.ingest.command import ingest
from pipeline.cli import app
from pipeline.runs.provenance import fingerprint_dataset


@pytest.fixture
def photos_of_two(put, crops, tmp_path):
    """A folder of 12 images in the classes a and b, and the path of a dataset that has them."""
    for i, data in enumerate(crops(12)):
        put(f"photos/{'ab'[i % 2]}/{i:02}.jpg", data)
    ingest(tmp_path / "photos", tmp_path / "out")
    return tmp_path / "photos", tmp_path / "out"


def list_records(records, out):
    """Returns (label, path, split) of each record, by hash."""
    return {
        sha256: (feature["label"].bytes_list.value[0], feature["metadata"].bytes_list.value[0], split)
        for sha256, (split, feature) in records(out).items()
    }


def test_a_photo_that_is_moved_to_another_class_folder_is_relabelled_in_its_split(photos_of_two, records, lines):
    source, out = photos_of_two
    present = list_records(records, out)
    (source / "a/00.jpg").rename(source / "b/moved.jpg")
    result = ingest(source, out)
    assert (result.new, result.relabelled, result.already, result.quarantined, result.gone) == (0, 1, 11, 0, 0)
    assert str(result).startswith("12 records in = 12 written (0 new, 1 relabelled, 11 were there already)")
    now = list_records(records, out)
    [(sha256, record)] = now.items() - present.items()
    assert record == (b"b", b"b/moved.jpg", present[sha256][2])
    assert lines(out / "quarantine.jsonl") == []
    counts = [split.labels for split in dataset.load(str(out)).splits.values()]
    assert [sum(labels.get(label, 0) for labels in counts) for label in "ab"] == [5, 7]
    assert ingest(source, out).already == 12


def test_two_photos_that_change_places_are_both_relabelled(photos_of_two):
    source, out = photos_of_two
    (source / "a/00.jpg").rename(source / "x")
    (source / "b/01.jpg").rename(source / "a/00.jpg")
    (source / "x").rename(source / "b/01.jpg")
    result = ingest(source, out)
    assert (result.relabelled, result.quarantined, result.disputed) == (2, 0, 0)


def test_a_file_that_is_renamed_is_there_already_under_its_new_name(photos_of_two, records):
    source, out = photos_of_two
    (source / "a/00.jpg").rename(source / "a/new name.jpg")
    result = ingest(source, out)
    assert (result.already, result.new, result.duplicates, result.gone) == (12, 0, 0, 0)
    assert b"a/new name.jpg" in {path for _, path, _ in list_records(records, out).values()}


def test_copies_that_are_there_with_different_labels_are_disputed_until_one_is_deleted(photos_of_two, lines):
    source, out = photos_of_two
    shutil.copy(source / "a/00.jpg", source / "b/copy.jpg")
    result = ingest(source, out)
    assert (result.quarantined, result.disputed) == (2, 1)
    (source / "a/00.jpg").unlink()
    result = ingest(source, out)
    assert (result.new, result.quarantined) == (1, 0)
    assert lines(out / "quarantine.jsonl") == []


def test_rows_with_different_labels_are_disputed_until_one_is_deleted_though_its_file_stays(photos_of_two):
    source, _ = photos_of_two
    shutil.copy(source / "a/00.jpg", source / "copy.jpg")
    manifest, out = source / "list.csv", source.parent / "other"
    manifest.write_text("path,label\na/00.jpg,a\ncopy.jpg,b\nb/01.jpg,b\n")
    assert ingest(manifest, out).quarantined == 2
    manifest.write_text("path,label\na/00.jpg,a\nb/01.jpg,b\n")
    result = ingest(manifest, out)
    assert (result.new, result.already, result.quarantined) == (1, 1, 0)


def test_what_is_gone_is_counted_and_taken_out_by_sync(photos_of_two, records):
    source, out = photos_of_two
    (source / "a/00.jpg").unlink()
    result = ingest(source, out)
    assert (result.gone, result.removed) == (1, 0)
    assert "1 in the dataset are gone from the source (--sync takes them out)" in str(result)
    assert len(records(out)) == 12
    result = ingest(source, out, sync=True)
    assert (result.gone, result.removed) == (1, 1)
    assert "1 taken out, as they are gone from the source" in str(result)
    assert len(records(out)) == 11
    assert ingest(source, out, sync=True).gone == 0


def test_lineage_tells_what_was_added_relabelled_and_removed(photos_of_two):
    source, out = photos_of_two
    ingest(source, out)
    (source / "a/00.jpg").unlink()
    (source / "a/02.jpg").rename(source / "b/02.jpg")
    ingest(source, out, sync=True)
    assert fingerprint_dataset(str(out)).ingests == [f"12 new from {source}", f"1 relabelled, 1 removed from {source}"]


def test_sync_touches_only_what_came_from_this_source(photos_of_two, put, crops, records):
    source, out = photos_of_two
    for i, data in enumerate(crops(15)[12:]):
        put(f"other/a/{i}.jpg", data)
    manifest = put("list.csv", b"path,label\nother/a/0.jpg,a\nother/a/1.jpg,a\nother/a/2.jpg,b\n")
    assert ingest(manifest, out, sync=True).new == 3
    assert ingest(source, out, sync=True).gone == 0
    manifest.write_bytes(b"path,label\nother/a/1.jpg,b\n")
    result = ingest(manifest, out, sync=True)
    assert (result.relabelled, result.removed) == (1, 2)
    assert len(records(out)) == 13


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize("is_table", [False, True])
def test_a_source_by_another_path_that_links_lead_to_it_by_is_the_same(photos_of_two, records, has_record, is_table):
    source, out = photos_of_two
    link, out = source.with_name("link"), out.with_name("by link")
    link.symlink_to(source)
    by_link, by_path = link, source
    if is_table:
        (source / "list.csv").write_text("path,label\na/00.jpg,a\na/02.jpg,a\na/04.jpg,a\n")
        by_link, by_path = link / "list.csv", source / "list.csv"
    ingest(by_link, out)
    if not has_record:  # as of earlier versions
        description = json.loads((out / "dataset.json").read_text())
        assert description["sources"].popitem()[1].pop("real") == str(by_path)
        description["sources"] = {str(by_link): {"split_folders": None}}
        (out / "dataset.json").write_text(json.dumps(description))
    count = len(records(out))
    if is_table:
        (source / "list.csv").write_text("path,label\na/02.jpg,a\na/04.jpg,a\n")
    else:
        (source / "a/00.jpg").unlink()
    assert ingest(by_path, out).gone == 1
    result = ingest(by_path, out, sync=True)
    assert result.removed == 1
    assert f"{by_path} is {by_link} by another path, and was read by that one." in result.notes
    assert len(records(out)) == count - 1
    assert list(dataset.load(str(out)).sources) == [str(by_link)]


def test_a_source_that_a_link_led_to_before_and_no_longer_does_is_another_one(photos_of_two, put, crops, records):
    source, out = photos_of_two
    link, other = source.with_name("link"), source.with_name("other")
    for i, data in enumerate(crops(15)[12:]):
        put(f"other/a/{i}.jpg", data)
    link.symlink_to(other)
    assert ingest(link, out).new == 3
    link.unlink()
    link.symlink_to(source.parent)
    assert ingest(other, out, sync=True).gone == 0
    link.unlink()
    link.symlink_to(source.with_name("third"))
    shutil.copytree(source, link.resolve())
    assert ingest(source.with_name("third"), out, sync=True).gone == 0
    assert len(records(out)) == 15


def test_sync_keeps_what_another_source_has_until_that_one_loses_it_too(photos_of_two, records):
    source, out = photos_of_two
    other = source.with_name("other")
    (other / "a").mkdir(parents=True)
    for name in ("00", "02"):
        shutil.copy(source / f"a/{name}.jpg", other / f"a/copy of {name}.jpg")
    manifest = source / "list.csv"
    manifest.write_text("path,label\na/04.jpg,a\n")
    assert ingest(other, out).duplicates == 2
    assert ingest(manifest, out).already == 1
    present = list_records(records, out)
    for name in ("00", "02", "04", "06"):
        (source / f"a/{name}.jpg").unlink()
    result = ingest(source, out, sync=True)
    assert (result.gone, result.removed) == (1, 1)
    assert result.notes == (
        f"3 images are gone from {source}, and stay, as other sources had them at their last ingest: {other}, "
        f"{manifest}.",
    )
    (other / "a/copy of 02.jpg").unlink()
    result = ingest(other, out, sync=True)
    assert (result.already, result.removed, result.notes) == (1, 1, ())
    now = list_records(records, out)
    kept = {path.decode(): split for _, path, split in now.values()}
    assert len(now) == 10
    assert "a/copy of 00.jpg" in kept
    assert all(split == present[sha256][2] for sha256, (_, _, split) in now.items())


def test_an_image_that_two_sources_have_stays_where_one_of_them_can_not_be_read(photos_of_two, records):
    source, out = photos_of_two
    other = source.with_name("other")
    shutil.copytree(source / "a", other / "a")
    ingest(other, out)
    shutil.rmtree(other / "a")
    (other / "a").symlink_to(other / "a")
    (other / "b").mkdir()
    (other / "b/1.jpg").write_bytes((source / "b/01.jpg").read_bytes())
    ingest(other, out, sync=True)
    shutil.rmtree(source / "a")
    result = ingest(source, out, sync=True)
    assert (result.removed, len(result.notes)) == (0, 1)
    assert len(records(out)) == 12


def test_a_disputed_row_that_is_gone_is_forgotten_where_another_source_has_the_image_too(photos_of_two, tmp_path):
    source, _ = photos_of_two
    shutil.copy(source / "a/00.jpg", source / "copy.jpg")
    one, two, out = source / "one.csv", source / "two.csv", tmp_path / "other"
    one.write_text("path,label\na/00.jpg,a\na/02.jpg,a\n")
    two.write_text("path,label\ncopy.jpg,b\nb/01.jpg,b\n")
    ingest(one, out)
    assert ingest(two, out).disputed == 1
    one.write_text("path,label\na/02.jpg,a\n")
    ingest(one, out)
    result = ingest(two, out)
    assert (result.new, result.quarantined) == (1, 0)


def test_a_row_that_is_gone_contradicts_no_other_source_though_its_file_stays(photos_of_two, tmp_path):
    source, _ = photos_of_two
    manifest, other, out = source / "list.csv", tmp_path / "more", tmp_path / "other"
    manifest.write_text("path,label\na/00.jpg,a\nb/01.jpg,b\n")
    for name in "ab":
        (other / name).mkdir(parents=True)
    shutil.copy(source / "a/00.jpg", other / "a/same.jpg")
    for one in (manifest, other):
        ingest(one, out)
    manifest.write_text("path,label\nb/01.jpg,b\n")
    ingest(manifest, out)
    (other / "a/same.jpg").rename(other / "b/same.jpg")
    result = ingest(other, out)
    assert (result.relabelled, result.quarantined, result.disputed) == (1, 0, 0)
    assert ingest(other, out, sync=True).already == 1


@pytest.fixture
def patients(photos_of_two, tmp_path):
    """A manifest of one patient's image in each split, a function that rewrites it, and its dataset."""
    manifest, out = photos_of_two[0] / "list.csv", tmp_path / "other"

    def write(*rows):
        manifest.write_text("\n".join(["path,label,split,patient", *rows]))

    write("a/00.jpg,a,train,p1", "a/02.jpg,a,eval,p2", "b/01.jpg,b,test,p3")
    ingest(manifest, out, group="patient")
    return manifest, write, out


def test_a_group_whose_images_sync_takes_out_can_go_to_another_split(patients, records):
    manifest, write, out = patients
    write("a/04.jpg,a,test,p1", "a/02.jpg,a,eval,p2", "b/01.jpg,b,test,p3")
    with pytest.raises(IngestError, match=r"p1 \(test, train\)"):
        ingest(manifest, out, group="patient")
    assert ingest(manifest, out, group="patient", sync=True).removed == 1
    assert sorted(split for split, _ in records(out).values()) == ["eval", "test", "test"]


def test_a_group_with_an_image_that_sync_could_not_look_for_stays_in_its_split(patients, tree):
    manifest, write, out = patients
    (manifest.parent / "a/00.jpg").write_bytes(b"")
    write("a/00.jpg,a,train,p1", "a/04.jpg,a,test,p1", "a/02.jpg,a,eval,p2", "b/01.jpg,b,test,p3")
    content = tree(out)
    with pytest.raises(IngestError, match=r"p1 \(test, train\)"):
        ingest(manifest, out, group="patient", sync=True)
    assert tree(out).keys() == content.keys()


def test_what_sync_takes_out_of_a_split_is_drawn_for_it_again(put, crops, tmp_path, records):
    images = crops(40)
    for i, data in enumerate(images[:20]):
        put(f"photos/a/{i:02}.jpg", data)
    source, out = tmp_path / "photos", tmp_path / "out"
    ingest(source, out)
    for _, path, split in list_records(records, out).values():
        if split != "train":
            (source / path.decode()).unlink()
    for i, data in enumerate(images[20:24]):
        put(f"photos/a/new {i}.jpg", data)
    ingest(source, out, sync=True)
    assert {split for split, _ in records(out).values()} == {"train", "eval", "test"}


def test_sync_refuses_where_a_folder_could_not_be_listed(photos_of_two, tree, monkeypatch):
    source, out = photos_of_two
    shutil.rmtree(source / "a")
    (source / "a").symlink_to(source / "a")  # as a mount that is away: it is there, and can't be listed
    assert ingest(source, out).gone == 0
    content = tree(out)
    with pytest.raises(IngestError, match=r"/a: link that can't be followed.*6 images of the dataset are gone"):
        ingest(source, out, sync=True)
    assert tree(out) == content


def test_sync_refuses_where_a_row_of_the_manifest_could_not_be_read(photos_of_two, tree):
    source, out = photos_of_two
    manifest = source / "list.csv"
    manifest.write_text("path,label\na/00.jpg,a\nb/01.jpg,b\n")
    out = out.with_name("other")
    ingest(manifest, out)
    manifest.write_text("path,label\na/00.jpg,a\nb/01.jpg\n")
    content = tree(out)
    with pytest.raises(IngestError, match=r"list\.csv: unreadable row.* 1 images of the dataset are gone"):
        ingest(manifest, out, sync=True)
    assert tree(out).keys() == content.keys()


def test_sync_of_an_empty_source_is_refused(photos_of_two, records):
    source, out = photos_of_two
    for folder in "ab":
        shutil.rmtree(source / folder)
    with pytest.raises(IngestError, match="no file or row"):
        ingest(source, out, sync=True)
    assert len(records(out)) == 12


def test_a_file_that_an_export_names_and_that_is_gone_is_taken_out_by_sync_unless_its_disk_may_be(put, crops, tmp_path):
    for i, data in enumerate(crops(6)):
        put(f"set/{'one' if i < 4 else 'two'}/{i}.jpg", data)
    content = {
        "images": [{"id": i, "file_name": f"{'one' if i < 4 else 'two'}/{i}.jpg"} for i in range(6)],
        "annotations": [{"image_id": i, "category_id": 1} for i in range(6)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    source, out = put("set/labels.json", json.dumps(content).encode()), tmp_path / "out"
    ingest(source, out)
    (tmp_path / "set/one/0.jpg").unlink()
    shutil.rmtree(tmp_path / "set/two")
    (tmp_path / "set/two").mkdir()  # as where nothing is mounted
    result = ingest(source, out)
    assert (result.gone, result.removed, result.quarantined) == (1, 0, 3)
    result = ingest(source, out, sync=True)
    assert (result.gone, result.removed, result.dataset.records) == (1, 1, 5)
    (tmp_path / "set/one").rename(tmp_path / "set/three")
    with pytest.raises(NothingIngestedError):
        ingest(source, out, sync=True)
    assert dataset.load(str(out)).records == 5


def test_a_file_that_can_no_longer_be_read_is_not_gone(photos_of_two, records):
    source, out = photos_of_two
    (source / "a/00.jpg").write_bytes(b"")
    result = ingest(source, out, sync=True)
    assert (result.quarantined, result.gone) == (1, 0)
    assert len(records(out)) == 12


def test_a_dataset_of_an_earlier_version_grows_and_its_labels_are_corrected(photos_of_two, records):
    source, out = photos_of_two
    description = json.loads((out / "dataset.json").read_text())
    for name in ("given", "sources", "history"):
        description.pop(name, None)
    del description["options"]["group"]
    (out / "dataset.json").write_text(json.dumps(description))
    for path in (out / "index").glob("*.jsonl"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: e[k] for k in ("sha256", "copies", "shard")}) + "\n" for e in entries))
    (source / "a/00.jpg").rename(source / "b/moved.jpg")
    (source / "a/02.jpg").unlink()
    result = ingest(source, out)
    assert (result.relabelled, result.already, result.gone) == (1, 10, 1)
    assert ingest(source, out, sync=True).removed == 1
    assert len(records(out)) == 11


def test_groups_stay_together_and_are_in_the_records(put, crops, tmp_path, records):
    for i, data in enumerate(crops(24)):
        put(f"photos/{'ab'[i % 2]}/patient{i // 3}_{i}.jpg", data)
    source, out = tmp_path / "photos", tmp_path / "out"
    result = ingest(source, out, group=r"(patient\d+)_")
    assert "24 images have groups." in result.notes
    assert dataset.load(str(out)).features["group"] == "bytes"
    splits = {}
    for split, feature in records(out).values():
        splits.setdefault(feature["group"].bytes_list.value[0], set()).add(split)
    assert len(splits) == 8
    assert all(len(some) == 1 for some in splits.values())
    assert {split for some in splits.values() for split in some} == {"train", "eval", "test"}

    # Later images of a patient follow.
    for i, data in enumerate(crops(28)[24:]):
        put(f"photos/a/patient{i}_new.jpg", data)
    assert ingest(source, out, group=r"(patient\d+)_").new == 4
    for split, feature in records(out).values():
        assert splits[feature["group"].bytes_list.value[0]] == {split}
    with pytest.raises(IngestError, match="was made with --group"):
        ingest(source, out)


def test_a_column_tells_groups_and_is_no_side_feature(photos_of_two, records):
    source, out = photos_of_two
    out = out.with_name("grouped")
    manifest = source / "list.csv"
    manifest.write_text("path,label,patient,group\na/00.jpg,a,p1,x\na/02.jpg,a,p1,x\nb/01.jpg,b,,x\n")
    with pytest.raises(IngestError, match="can't be called group"):
        ingest(manifest, out, group="patient")
    manifest.write_text("path,label,patient\na/00.jpg,a,p1\na/02.jpg,a,p1\nb/01.jpg,b,\n")
    result = ingest(manifest, out, group="patient")
    assert "2 images have groups, 1 have none." in result.notes
    (source / "a/cut.jpg").write_bytes((source / "a/06.jpg").read_bytes()[:-100])
    shutil.copy(source / "a/cut.jpg", source / "a/cut too.jpg")
    bad = "a/04.jpg,,\na/none.jpg,a,p1\na/cut.jpg,a,p1\na/cut too.jpg,a,\nb/none.jpg,b,\n"
    manifest.write_text("path,label,patient\na/00.jpg,a,p1\na/02.jpg,a,p1\nb/01.jpg,b,\n" + bad)
    result = ingest(manifest, out, group="patient")
    assert "2 images have groups, 1 have none." in result.notes
    assert (result.grouped, result.quarantined) == (2, 5)
    assert "patient" not in dataset.load(str(out)).features
    groups = [feature["group"].bytes_list.value[0] for _, feature in records(out).values() if "group" in feature]
    assert groups == [b"p1", b"p1"]


def test_text_for_a_missing_value_is_no_group(photos_of_two, records, tmp_path, capfd):
    manifest = photos_of_two[0] / "list.csv"
    rows = [f"{'ab'[i % 2]}/{i:02}.jpg,{'ab'[i % 2]},{('p1', 'p1', 'NA', 'NA', 'nan', '')[i]}" for i in range(6)]
    manifest.write_text("\n".join(["path,label,patient", *rows]))
    result = ingest(manifest, tmp_path / "other", group="patient")
    assert "2 images have groups, 4 have none." in result.notes
    assert sum("group" in feature for _, feature in records(tmp_path / "other").values()) == 2
    assert "2 images have the group 'NA', which is taken for none" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("group", "message"),
    [("patient", "one group in parentheses"), ("(", "no regular expression"), ("(x+)", "No image of .* has a group")],
)
def test_a_pattern_that_tells_no_groups_is_refused(group, message, photos_of_two, tmp_path):
    with pytest.raises(IngestError, match=message):
        ingest(photos_of_two[0], tmp_path / "other", group=group)


def test_groups_in_two_given_splits_are_refused_by_name(photos_of_two, tmp_path):
    manifest = photos_of_two[0] / "list.csv"
    manifest.write_text("path,label,split,patient\na/00.jpg,a,train,p1\na/02.jpg,a,test,p1\nb/01.jpg,b,train,p2\n")
    with pytest.raises(IngestError, match=r"1 groups would lie in several splits.*: p1 \(test, train\)"):
        ingest(manifest, tmp_path / "other", group="patient")
    assert not (tmp_path / "other/dataset.json").exists()


def test_an_edited_image_that_can_not_be_written_any_more_is_told_and_leaves(photos_of_two, records, tmp_path):
    manifest, out = photos_of_two[0] / "list.csv", tmp_path / "other"
    names = [f"{'ab'[i % 2]}/{i:02}.jpg,{'ab'[i % 2]}" for i in range(6)]
    manifest.write_text("path,label,iso\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    ingest(manifest, out)
    manifest.write_text("path,label,iso\n" + "".join(f"{name},{i or 400}\n" for i, name in enumerate(names)))
    result = ingest(manifest, out, max_pixels=10)
    assert (result.already, result.quarantined, len(records(out))) == (5, 1, 5)
    assert "1 edited images can't be written any more, and left the dataset." in str(result.notes)
    assert fingerprint_dataset(str(out)).ingests[-1] == f"1 removed from {manifest}"
    assert ingest(manifest, out, max_pixels=10**8).new == 1


def test_an_edited_column_is_written_anew_in_its_split_and_told(photos_of_two, records, tmp_path):
    manifest, out = photos_of_two[0] / "list.csv", tmp_path / "other"
    names = [f"{'ab'[i % 2]}/{i:02}.jpg,{'ab'[i % 2]}" for i in range(6)]
    manifest.write_text("path,label,iso\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    ingest(manifest, out)
    present = {sha256: split for sha256, (split, _) in records(out).items()}
    manifest.write_text("path,label,iso\n" + "".join(f"{name},{i or 400}\n" for i, name in enumerate(names)))
    result = ingest(manifest, out)
    assert (result.edited, result.already, result.relabelled) == (1, 5, 0)
    assert str(result).startswith(
        "6 records in = 6 written (0 new, 1 with edited columns or groups, 5 were there already) + 0"
    )
    now = records(out)
    assert sorted(feature["iso"].int64_list.value[0] for _, feature in now.values()) == [1, 2, 3, 4, 5, 400]
    assert {sha256: split for sha256, (split, _) in now.items()} == present
    assert fingerprint_dataset(str(out)).ingests[-1] == f"1 edited from {manifest}"
    assert ingest(manifest, out).already == 6
    assert not any("no longer" in note for note in result.notes)
    other = manifest.with_name("others.csv")
    other.write_text(f"path,label,site\n{names[0]},3\n")
    (note,) = (note for note in ingest(other, out).notes if "no longer" in note)
    assert note.startswith("The 1 images with edited columns or groups no longer have iso: ")
    assert ingest(manifest, out).edited == 1
    assert ingest(photos_of_two[0], out).edited == 0  # the folder says nothing about columns
    assert sorted(feature["iso"].int64_list.value[0] for _, feature in records(out).values() if "iso" in feature) == [
        1, 2, 3, 4, 5, 400,
    ]  # fmt: skip


def test_a_group_that_is_corrected_is_written_anew(photos_of_two, records, tmp_path):
    manifest, out = photos_of_two[0] / "list.csv", tmp_path / "other"
    rows = "path,label,patient\na/00.jpg,a,p1\na/02.jpg,a,p2\nb/01.jpg,b,{}\n"
    manifest.write_text(rows.format("p3"))
    ingest(manifest, out, group="patient")
    manifest.write_text(rows.format("p4"))
    result = ingest(manifest, out, group="patient")
    assert (result.edited, result.already) == (1, 2)
    groups = {feature["group"].bytes_list.value[0] for _, feature in records(out).values()}
    assert groups == {b"p1", b"p2", b"p4"}


def test_the_table_is_of_this_ingest_though_another_one_has_begun(photos_of_two, monkeypatch):
    source, out = photos_of_two

    def ingest_before_another(*arguments, **options):
        result = ingest(*arguments, **options)
        (out / dataset.JOURNAL).write_text('{"moves": [], "deletions": []}')
        (out / dataset.DESCRIPTION).unlink()
        return result

    monkeypatch.setattr("imagepipe.ingest.command.ingest", ingest_before_another)
    run = CliRunner().invoke(app, ["ingest", str(source), "--out", str(out), "--json"])
    assert run.exit_code == 0
    output = json.loads(run.stdout)
    assert sum(split["images"] for split in output["splits"].values()) == output["written"] == 12
    assert "dataset" not in output


def test_the_command_takes_groups_and_sync(photos_of_two):
    source, out = photos_of_two
    (source / "a/00.jpg").unlink()
    (source / "a/broken.jpg").write_bytes(b"")
    run = CliRunner().invoke(app, ["ingest", str(source), "--out", str(out), "--sync", "--json"])
    output = json.loads(run.stdout)
    assert output["removed"] == 1
    assert output["reasons"] == {"empty file": 1}
    assert output["columns"]["label"] == {"type": "bytes", "role": "target"}
    assert sum(split["labels"]["a"] for split in output["splits"].values()) == 5
    tables = [line.split() for line in run.stderr.splitlines()]
    assert ["label", "train", "eval", "test", "all"] in tables
    assert ["images", *(str(split["images"]) for split in output["splits"].values()), "11"] in tables
    assert ["empty", "file", "1"] in tables
