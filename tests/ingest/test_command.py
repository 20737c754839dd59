import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, NothingIngestedError
from imagepipe.ingest import command as command_module
from imagepipe.ingest import dataset, outcomes, policy, steps
from imagepipe.ingest.command import ingest
from tests.photos import HEIC

ROOT = Path(__file__).resolve().parents[2]


def reasons(lines, out):
    return {Path(entry["path"]).name: entry["reason"] for entry in lines(out / "quarantine.jsonl")}


def test_acceptance_every_odd_file_has_its_place_and_the_counts_add_up(photos, encode, records, lines):
    """As an ordinary user, whom permissions stop; as root they would not."""
    photo = photos[0].crop((100, 100, 260, 220))
    upright = encode(photo, "JPEG", quality=95, subsampling=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise, so stored turned the other way
    turned = encode(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    alpha = photo.convert("RGBA")
    alpha.putalpha(128)
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"Dear reader, this is no image.",
        "truncated.jpg": upright[:3000],
        "alpha.png": encode(alpha, "PNG"),
        "gray16.png": encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16), "PNG"),
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "turned.jpg": turned,
        "upright.jpg": upright,
        "animated.gif": encode(photo, "GIF", save_all=True, append_images=[photos[1].crop((0, 0, 160, 120))]),
        "image.webp": encode(photo, "WEBP"),
        "pixel.png": encode(Image.new("RGB", (1, 1), "red"), "PNG"),
        "zz duplicate.jpg": upright,
        "unreadable.jpg": upright + b" ",
        "with spaces and àccénts.jpg": encode(photos[1], "JPEG"),
    }
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o777)
        source, out = folder / "source", folder / "out"
        (source / "class").mkdir(parents=True)
        for name, data in contents.items():
            (source / "class" / name).write_bytes(data)
        (source / "class" / "unreadable.jpg").chmod(0)
        if user == 0:
            "".encode("utf-8-sig")  # imports the codec, as the other user may not read where Python is installed
            os.seteuid(65534)
        try:
            result = ingest(str(source), str(out))
        finally:
            os.seteuid(user)

        assert (result.read, result.new, result.already, result.quarantined, result.duplicates) == (14, 9, 0, 4, 1)
        assert str(result) == "14 records in = 9 written (9 new, 0 were there already) + 4 quarantined + 1 duplicates"
        assert reasons(lines, out) == {
            "empty.jpg": "empty file",
            "text.jpg": "not an image, but text",
            "truncated.jpg": "truncated image",
            "unreadable.jpg": "permission denied",
        }
        assert lines(out / "duplicates.jsonl") == [
            {
                "path": str(source / "class/zz duplicate.jpg"),
                "row": None,
                "same_as": str(source / "class/upright.jpg"),
                "source": str(source),
            }
        ]
        features = {
            feature["metadata"].bytes_list.value[0].decode().partition("/")[2]: feature
            for _, feature in records(out).values()
        }
    formats = {name: feature["format"].bytes_list.value[0].decode() for name, feature in features.items()}
    assert formats == {
        "alpha.png": "png",
        "gray16.png": "png",
        "cmyk.jpg": "jpeg",
        "turned.jpg": "jpeg",
        "upright.jpg": "jpeg",
        "animated.gif": "gif",
        "image.webp": "webp",
        "pixel.png": "png",
        "with spaces and àccénts.jpg": "jpeg",
    }
    import tensorflow as tf

    pixels = {}
    for name, feature in features.items():
        image = tf.io.decode_image(feature["input"].bytes_list.value[0], channels=3, expand_animations=False).numpy()
        size = tuple(feature[side].int64_list.value[0] for side in ("height", "width"))
        assert image.shape == (*size, 3)
        assert feature["label"].bytes_list.value == [b"class"]
        pixels[name] = image.astype(int)
    assert np.abs(pixels["turned.jpg"] - pixels["upright.jpg"]).mean() < 3  # of JPEG; unturned it is 50
    assert features["upright.jpg"]["input"].bytes_list.value[0] == upright


def test_a_loop_of_links_and_junk_cost_no_image_and_are_counted(folders, put, lines):
    source, out = folders
    (source / "a/self.jpg").symlink_to("self.jpg")
    shutil.copy(source / "a/00.jpg", put("source/a/@eaDir/00.jpg/SYNOPHOTO_THUMB_M.jpg", b""))
    put("source/b/._01.jpg", b"Mac OS X")
    os.mkfifo(source / "c/pipe.jpg")
    result = ingest(str(source), str(out))
    assert reasons(lines, out) == {"self.jpg": "link that can't be followed: Too many levels of symbolic links"}
    assert result.passed_over == {"hidden": 1, "in @eaDir": 1, "not files (pipes, sockets, devices)": 1}
    assert str(result) == (
        "31 records in = 30 written (30 new, 0 were there already) + 1 quarantined + 0 duplicates; "
        "passed over: 1 hidden, 1 in @eaDir, 1 not files (pipes, sockets, devices)"
    )


def test_the_same_command_twice_changes_no_file(folders, tree):
    source, out = folders
    (source / "a" / "bad.jpg").write_bytes(b"no image")
    shutil.copy(source / "a" / "00.jpg", source / "a" / "copy.jpg")
    first = ingest(str(source), str(out))
    files = tree(out)
    second = ingest(str(source), str(out))
    assert tree(out) == files
    assert (first.new, first.already, first.quarantined, first.duplicates) == (30, 0, 1, 1)
    assert (second.new, second.already, second.quarantined, second.duplicates) == (0, 30, 1, 1)


def test_new_images_are_added_and_old_ones_stay_in_their_split(folders, crops, put, records):
    source, out = folders
    ingest(str(source), str(out))
    old = {sha256: split for sha256, (split, _) in records(out).items()}
    for i, data in enumerate(crops(60)[30:]):
        put(f"source/new/{i}.jpg", data)
    result = ingest(str(source), str(out))
    new = {sha256: split for sha256, (split, _) in records(out).items()}
    assert (result.new, result.already) == (30, 30)
    assert len(new) == 60
    assert old.items() <= new.items()
    description = dataset.load(str(out))
    labels = {label for split in description.splits.values() for label in split.labels}
    assert labels == {"a", "b", "c", "new"}
    assert description.records == sum(sum(split.labels.values()) for split in description.splits.values()) == 60


def test_the_same_images_give_the_same_tree_wherever_they_are(folders, tmp_path, tree):
    source, out = folders
    ingest(str(source), str(out), workers=1)
    shutil.copytree(source, tmp_path / "elsewhere")
    ingest(str(tmp_path / "elsewhere"), str(tmp_path / "other"), workers=3)

    def shards(folder):
        return {name: data for name, (data, _) in tree(folder).items() if name.endswith(".tfrecord")}

    assert shards(out) == shards(tmp_path / "other")
    assert len(shards(out)) == 3


def test_a_disputed_label_takes_the_image_out_and_its_correction_brings_it_back(folders, records, lines, tree):
    source, out = folders
    shutil.copy(source / "a" / "00.jpg", source / "b" / "copy.jpg")
    sha256 = hashlib.sha256((source / "a" / "00.jpg").read_bytes()).hexdigest()
    (source / "b" / "copy.jpg").rename(source / "copy")
    (source / "copy").rename(source.parent / "copy")
    ingest(str(source), str(out))
    assert sha256 in records(out)

    (source.parent / "copy").rename(source / "b" / "copy.jpg")
    result = ingest(str(source), str(out))
    assert (result.already, result.new, result.quarantined, result.disputed) == (29, 0, 2, 1)
    assert sha256 not in records(out)
    assert reasons(lines, out) == dict.fromkeys(
        ("00.jpg", "copy.jpg"), "copies of one file carry different labels: a, b"
    )
    files = tree(out)
    assert ingest(str(source), str(out)).quarantined == 2
    assert tree(out) == files

    manifest = source.parent / "corrected.csv"
    manifest.write_text("path,label\nsource/b/copy.jpg,a\nsource/a/00.jpg,a\n")
    result = ingest(str(manifest), str(out))
    assert (result.new, result.duplicates) == (1, 1)
    assert sha256 in records(out)
    assert lines(out / "quarantine.jsonl") == []


def test_a_copy_that_comes_alone_takes_out_the_image_and_names_both_files(folders, records, lines):
    source, out = folders
    ingest(str(source), str(out))
    manifest = source.parent / "more.csv"
    manifest.write_text("path,label\nsource/a/00.jpg,a\nsource/b/01.jpg,zebra\nalone.jpg,zebra\n")
    shutil.copy(source / "a" / "03.jpg", source.parent / "alone.jpg")
    result = ingest(str(manifest), str(out))
    # 01.jpg has one label, which was corrected; 03.jpg has two.
    assert (result.already, result.relabelled, result.quarantined, result.disputed) == (1, 1, 1, 1)
    assert reasons(lines, out) == dict.fromkeys(
        ("03.jpg", "alone.jpg"), "copies of one file carry different labels: a, zebra"
    )
    description = dataset.load(str(out))
    assert description.records == len(records(out)) == 29
    counts = [sum(split.labels.get(label, 0) for split in description.splits.values()) for label in ("a", "b", "zebra")]
    assert counts == [9, 9, 1]


def test_manifest_rows_become_features_and_bad_ones_are_named(folders, records, lines):
    source, out = folders
    manifest = source / "list.csv"
    manifest.write_text(
        "path,label,price,count,shop\n"
        "a/00.jpg,cat,1,1,é\n"
        f"{source}/b/01.jpg,dog,2.5,2,\n"
        "c/02.jpg,,1,1,x\n"
        "nowhere.jpg,cat,1,1,x\n"
        "a,cat,1,1,x\n"
        "a/03.jpg,cat\n"
        f"unknown://x.jpg,cat,1,1,x\n"
    )
    result = ingest(str(manifest), str(out))
    assert (result.read, result.new, result.quarantined) == (7, 2, 5)
    quarantine = {(entry["row"], entry["path"]): entry["reason"] for entry in lines(out / "quarantine.jsonl")}
    assert quarantine == {
        (4, str(source / "c/02.jpg")): "missing label",
        (5, str(source / "nowhere.jpg")): "missing file",
        (6, str(source / "a")): "can't be read: not an ordinary file",
        (7, str(manifest)): "unreadable row: line 7: 2 columns, the header has 5",
        (8, "unknown://x.jpg"): "can't be read: unknown:// is not supported: give a local path, or a URI that begins "
        "with gs://, gcs://, s3://, s3a://, az://, abfs://, abfss://, hdfs://, oss://",
    }
    by_path = {feature["metadata"].bytes_list.value[0].decode(): feature for _, feature in records(out).values()}
    one, other = by_path["a/00.jpg"], by_path[f"{source}/b/01.jpg"]
    assert (one["price"].float_list.value, one["count"].int64_list.value) == ([1.0], [1])
    assert one["shop"].bytes_list.value == ["é".encode()]
    assert "shop" not in other
    features = dataset.load(str(out)).features
    assert [features[name] for name in ("price", "count", "shop")] == ["float", "int64", "bytes"]

    manifest.write_text("path,label,count\nc/05.jpg,cat,many\n")
    with pytest.raises(IngestError, match=r"Column 'count' is int64 in the dataset, and line \d+ has 'many' now"):
        ingest(str(manifest), str(out))


def test_quarantine_holds_what_was_last_seen(folders, lines):
    source, out = folders
    bad = source / "a" / "bad.jpg"
    bad.write_bytes(b"no image")
    ingest(str(source), str(out))
    assert set(reasons(lines, out)) == {"bad.jpg"}
    shutil.copy(source / "a" / "00.jpg", bad)
    ingest(str(source), str(out))
    assert reasons(lines, out) == {}
    assert [entry["path"] for entry in lines(out / "duplicates.jsonl")] == [str(bad)]


def test_rows_that_were_deleted_from_a_manifest_leave_the_lists(folders, lines, tmp_path):
    source, out = folders
    (source / "a" / "copy.jpg").write_bytes((source / "a" / "00.jpg").read_bytes())
    rows = "path,label\na/00.jpg,a\na/gone.jpg,a\na/copy.jpg,a\n"
    first, second = source / "first.csv", source / "second.csv"
    first.write_text(rows)
    second.write_text(rows.replace("gone", "lost"))
    for manifest in (first, second):
        ingest(str(manifest), str(out))
    first.write_text("path,label\na/00.jpg,a\n")
    ingest(str(first), str(out))
    assert reasons(lines, out) == {"lost.jpg": "missing file"}
    second.write_text("path,label\na/00.jpg,a\n")
    ingest(str(second), str(out))
    assert lines(out / "quarantine.jsonl") == lines(out / "duplicates.jsonl") == []


def test_multilabel_and_regression_labels(folders, records):
    source, out = folders
    manifest = source / "list.jsonl"
    rows = [
        {"path": "a/00.jpg", "label": "x|y"},
        {"path": "b/01.jpg", "label": "2.5"},
        {"path": "c/02.jpg", "label": 4},
    ]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    ingest(str(manifest), f"{out}-m", task="multilabel")
    labels = sorted(list(feature["label"].bytes_list.value) for _, feature in records(f"{out}-m").values())
    assert labels == [[b"2.5"], [b"4"], [b"x", b"y"]]
    result = ingest(str(manifest), f"{out}-r", task="regression")
    assert result.quarantined == 1
    assert sorted(feature["label"].float_list.value[0] for _, feature in records(f"{out}-r").values()) == [2.5, 4.0]
    assert dataset.load(f"{out}-r").features["label"] == "float"


def test_shards_are_of_about_the_size_that_is_asked_for(folders, monkeypatch, records):
    source, out = folders
    monkeypatch.setattr(steps, "SHARD_BYTES", 6_000)
    ingest(str(source), str(out), splits={"all": 1})
    shards = dataset.load(str(out)).splits["all"].shards
    assert len(shards) > 3
    assert len(records(out)) == 30


def test_gzip_shards_are_read_back_and_can_lose_a_record(folders, records):
    source, out = folders
    ingest(str(source), str(out), compress="gzip")
    assert all(shard.file.endswith(".gz") for shard in dataset.load(str(out)).splits["train"].shards)
    assert len(records(out)) == 30
    shutil.copy(source / "a" / "00.jpg", source / "b" / "copy.jpg")
    ingest(str(source), str(out), compress="gzip")
    assert len(records(out)) == 29


def test_max_side_and_max_pixels_reach_the_images(folders, records, lines, photos):
    source, out = folders
    photos[0].save(source / "a" / "large.png")
    photos[1].crop((0, 0, 640, 400)).save(source / "a" / "huge.bmp")
    result = ingest(str(source), str(out), max_side=20, max_pixels=640 * 400)
    assert result.quarantined == 1
    assert reasons(lines, out) == {"large.png": "over the limit of 0.256 megapixels: it has 0.3"}
    sides = [max(f[side].int64_list.value[0] for side in ("width", "height")) for _, f in records(out).values()]
    assert set(sides) == {20}


def test_a_file_that_changes_meanwhile_is_quarantined(folders, monkeypatch, lines, records):
    source, out = folders
    victim = source / "a" / "00.jpg"
    content = victim.read_bytes()
    decide = policy.decide

    def change(*arguments):
        victim.write_bytes(content + b"more")
        return decide(*arguments)

    monkeypatch.setattr(policy, "decide", change)
    result = ingest(str(source), str(out))
    assert (result.new, result.quarantined) == (29, 1)
    assert reasons(lines, out) == {"00.jpg": "changed while it was ingested"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_side": 100}, "made with max_side None, and now it is 100"),
        ({"splits": {"train": 1}}, "made with splits train 80/eval 10/test 10, and now it is train 1"),
        ({"task": "multilabel"}, "made with task classification"),
        ({"compress": "gzip"}, "made with compress None"),
    ],
)
def test_other_options_than_the_dataset_was_made_with_are_refused(small_dataset, options, message, tree):
    source, out = small_dataset
    files = tree(out)
    with pytest.raises(IngestError, match=message):
        ingest(str(source), str(out), **options)
    assert tree(out) == files


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory, crops):
    """A dataset of three images that tests only look at."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "source/a").mkdir(parents=True)
    for i, data in enumerate(crops(3)):
        (folder / f"source/a/{i}.jpg").write_bytes(data)
    ingest(str(folder / "source"), str(folder / "out"))
    return folder / "source", folder / "out"


def test_what_cannot_be_ingested_is_one_clear_error_and_nothing_is_written(tmp_path, put):
    put("empty/.hidden", b"")
    put("full/notes.txt", b"mine")
    put("source/a/1.jpg", b"x")
    put("headless.csv", b"a,b\n")
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(tmp_path / "source")
    for source, target, options, message in (
        ("nowhere", out, {}, "no such folder or file"),
        ("empty", out, {}, "no file or row"),
        ("headless.csv", out, {}, "no column 'path'"),
        ("source", tmp_path / "full", {}, "is not a dataset, and not empty"),
        ("source", tmp_path / "source/out", {}, "must not contain one another"),
        ("source", tmp_path / "link/out", {}, "must not contain one another"),
        ("link", tmp_path / "source/out", {}, "must not contain one another"),
        ("link/a", tmp_path / "source", {}, "must not contain one another"),
        ("source", out, {"splits": {"train": 0}}, "weights"),
        ("source", out, {"splits": {"../up": 1}}, "can't name a split"),
        ("source", out, {"max_side": 0}, "max_side is 0"),
        ("source", out, {"workers": 0}, "workers is 0"),
        ("source", out, {"task": "sorting"}, "task is 'sorting'"),
        ("source", out, {"compress": "zip"}, "compress is 'zip'"),
    ):
        with pytest.raises(IngestError, match=message):
            ingest(str(tmp_path / source), str(target), **options)
        assert {path.name for path in out.glob("*")} <= {".lock"}
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["notes.txt"]


def ingest_nothing(source, out):
    """Returns the message of an ingest that has nothing to write."""
    with pytest.raises(NothingIngestedError) as caught:
        ingest(str(source), str(out))
    return str(caught.value)


def test_a_folder_without_class_folders_ends_with_the_remedy(put, crops, tmp_path, lines):
    for i, data in enumerate(crops(3)):
        put(f"source/{i}.jpg", data)
    source = put("source/b/notes.txt", b"no image").parents[1]
    assert ingest_nothing(source, tmp_path / "out") == (
        f"{source}: nothing to ingest, as all of 4 are quarantined: missing label (3), "
        "not an image, but text (1). "
        f"The images lie in {source} itself, so they have no classes. Put those of each class into a folder of its own "
        f"({source}/CLASS/0.jpg), or give a manifest with the columns path and label."
    )
    assert len(lines(tmp_path / "out/quarantine.jsonl")) == 4


def test_what_lies_in_the_class_folders_tells_the_remedy_not_a_file_beside_them(put, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
    for name in ("cat/1.jpg", "dog/2.jpg"):
        put(f"source/{name}", pointer)
    source = put("source/README.md", b"# Photos").parent
    message = ingest_nothing(source, tmp_path / "out")
    assert "Git LFS pointer: run git lfs pull (2), missing label (1)" in message
    assert "The images lie in" not in message


def test_a_manifest_whose_files_are_elsewhere_ends_with_the_first_path_and_the_remedy(put, tmp_path):
    manifest = put("set/labels.csv", b"path,label\nz/2.jpg,a\na/1.jpg,b\n")
    message = ingest_nothing(manifest, tmp_path / "out")
    assert "all of 2 are quarantined: missing file (2)." in message
    assert f"the first that was looked for is {tmp_path}/set/z/2.jpg. " in message
    assert f"relative to its own folder, {tmp_path}/set: correct them" in message


def test_files_that_are_all_quarantined_end_with_the_reasons_and_the_list(put, tmp_path):
    put("source/a/1.jpg", b"")
    put("source/b/2.jpg", b"")
    message = ingest_nothing(tmp_path / "source", tmp_path / "out")
    assert message.endswith(
        f"all of 2 are quarantined: empty file (2). Each has its reason in {tmp_path}/out/quarantine.jsonl."
    )


def test_of_many_reasons_what_they_have_in_common_is_told(put, tmp_path):
    rows = "".join(f"{i}.jpg,many{i}\n" for i in range(5))
    manifest = put("list.csv", f"path,label\n{rows}".encode())
    with pytest.raises(NothingIngestedError, match=r"all of 5 are quarantined: label is not a number \(5\)\. Each has"):
        ingest(str(manifest), str(tmp_path / "out"), task="regression")


def test_reasons_are_counted_without_what_is_of_one_file_only(put, photos, encode, tmp_path):
    for i in range(2):
        put(f"large{i}.png", encode(photos[0].crop((0, 0, 200 + i, 100)), "PNG"))
    put("good.png", encode(photos[0].crop((0, 0, 20, 20)), "PNG"))
    rows = ["path,label,split", "good.png,x,train", "large0.png,x,", "large1.png,x,", "a.png,x", "b.png", "a.png,x,one"]
    rows += ["b.png,x,two", "a.png,x\x01,", "b.png,\x02,", "missing0.png,x,", "missing1.png,x,", "gone\x00.png,x,"]
    manifest = put("list.csv", "\n".join(rows).encode())
    result = ingest(manifest, tmp_path / "out", max_pixels=1000)
    assert result.reasons == {
        "over the limit of 0.001 megapixels": 2,
        "unreadable row": 2,
        "split is none of train, eval, test, training, val, valid, validation, evaluation, dev, testing": 2,
        "label can't name a class": 2,
        "missing file": 2,
        "can't be read": 1,
    }


def test_a_folder_of_junk_ends_with_what_was_passed_over(put, tmp_path):
    put("source/a/@eaDir/1.jpg", b"x")
    assert ingest_nothing(tmp_path / "source", tmp_path / "out") == (
        f"{tmp_path}/source holds no file or row to ingest; passed over: 1 in @eaDir."
    )


def test_after_an_ingest_of_nothing_the_folder_can_be_used_with_other_options(put, crops, tmp_path):
    put("source/1.jpg", crops(1)[0])
    ingest_nothing(tmp_path / "source", tmp_path / "out")
    manifest = put("source/list.csv", b"path,label\n1.jpg,3.5\n")
    assert ingest(str(manifest), str(tmp_path / "out"), task="regression").new == 1
    assert dataset.load(str(tmp_path / "out")).options.task == "regression"


def test_copies_of_what_is_there_are_no_ingest_of_nothing(folders, tmp_path):
    source, out = folders
    ingest(str(source), str(out))
    shutil.copytree(source, tmp_path / "again")
    assert ingest(str(tmp_path / "again"), str(out)).duplicates == 30


def test_what_is_odd_about_the_labels_is_in_the_result(put, crops, tmp_path):
    for i, data in enumerate(crops(6)):
        put(f"source/photos/{i}.jpg", data)
    result = ingest(str(tmp_path / "source"), str(tmp_path / "out"))
    assert [warning.partition(",")[0] for warning in result.warnings] == ["All images have the label photos"]


def test_what_killed_attempts_left_is_neither_read_nor_kept(tmp_path, put, crops, monkeypatch):
    put("source/a/1.png", crops(1)[0])
    leftover = filesystem.PARTIAL + "0" * 32
    put(f"out/{leftover}", b'{"moves"')  # of a journal

    def apply(out, staging, *rest, apply=outcomes.apply_outcomes):
        filesystem.write_whole(f"{staging}/outcomes/{leftover}", b'{"kind": "quarant')
        return apply(out, staging, *rest)

    monkeypatch.setattr(command_module, "apply_outcomes", apply)
    assert ingest(tmp_path / "source", tmp_path / "out").new == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if leftover in path.name]


@pytest.mark.parametrize(("module", "name"), [(command_module, "_run_steps"), (outcomes, "encode")])
def test_an_ingest_that_has_lost_its_store_commits_nothing(module, name, put, crops, tmp_path, memory, monkeypatch):
    put("source/a/1.png", crops(1)[0])
    do = getattr(module, name)

    def take_over(*args):
        memory.put("out/.lock", b"another one")
        return do(*args)

    monkeypatch.setattr(module, name, take_over)
    with pytest.raises(IngestError, match=r"Another ingest has taken over memory://.*/out: .*Nothing was written"):
        ingest(tmp_path / "source", f"{memory.uri}/out")
    assert memory.content("out") == {".lock": b"another one"}


def test_load_refuses_what_is_missing_damaged_or_newer(small_dataset, tmp_path):
    _, out = small_dataset
    with pytest.raises(IngestError, match="holds no dataset"):
        dataset.load(str(tmp_path))
    for change, message in (
        (lambda copy: next(copy.glob("*/*.tfrecord")).unlink(), "in an inconsistent state"),
        (lambda copy: next(copy.glob("*/*.tfrecord")).open("ab").write(b"x"), "in an inconsistent state"),
        (lambda copy: (copy / "train" / "more.tfrecord").write_bytes(b""), "in an inconsistent state"),
        (lambda copy: (copy / "journal.json").write_text("{}"), "in an inconsistent state"),
        (lambda copy: (copy / "dataset.json").write_text("{"), "is damaged"),
        (lambda copy: (copy / "dataset.json").write_text('{"version": 1}'), "is damaged"),
        (lambda copy: (copy / "dataset.json").write_text('{"version": 2}'), "has version 2"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        (copy / "train").mkdir(exist_ok=True)
        dataset.load(str(copy))
        change(copy)
        with pytest.raises(IngestError, match=message):
            dataset.load(str(copy))


def without(keys):
    *parents, last = keys

    def remove(description):
        for key in parents:
            description = description[key]
        del description[last]

    return remove


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: d["options"].update(task="sorting"), "options.task: Input should be 'classification', "),
        (lambda d: d["splits"]["train"].update(records="7"), "splits.train.records: Input should be a valid integer"),
        (without(["splits", "train", "shards", 0, "bytes"]), "splits.train.shards.0.bytes: Field required"),
        (lambda d: d["splits"].update({"../up": {}}), "'../up' can't name a split"),
    ],
)
def test_a_damaged_description_names_the_key(damage, reason, small_dataset, tmp_path):
    description = json.loads((small_dataset[1] / "dataset.json").read_text())
    damage(description)
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(IngestError) as error:
        dataset.load(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/dataset.json is damaged ({reason}")
    assert "http" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "line", "where"),
    [
        ("index/[a-z]*-*.jsonl", '{"sha256": "12', ", line 2"),
        ("index/[a-z]*-*.jsonl", '{"sha256": 7, "copies": {}}', ", line 2"),
        ("index/refused.jsonl", "[]", ", line 1"),
        ("quarantine.jsonl", '{"row": 1}', ", line 1"),
        ("duplicates.jsonl", "\x00\x00", ", line 1"),
        ("journal.json", "{", ""),
    ],
)
def test_a_damaged_file_of_a_dataset_is_named_with_its_line(pattern, line, where, folders):
    source, out = folders
    ingest(str(source), str(out))
    path = next(iter(sorted(out.glob(pattern))), out / pattern)
    kept = path.read_text().splitlines()[:1] if path.exists() else []
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(IngestError) as raised:
        ingest(str(source), str(out))
    assert re.fullmatch(rf"{re.escape(str(path))}{where} is damaged: restore .* into a new folder\.", str(raised.value))


@pytest.mark.parametrize(
    "file", ["train/..", "train/", "train", "eval/0.tfrecord", "train/a/0.tfrecord", "../0.tfrecord", "train/.tfrecord"]
)
def test_a_description_names_shards_of_its_splits_only(file, small_dataset, tmp_path):
    description = json.loads((small_dataset[1] / "dataset.json").read_text())
    description["splits"]["train"]["shards"][0]["file"] = file
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(IngestError, match=re.escape(f"({file!r} is no file of the split train)")):
        dataset.load(str(tmp_path))


KILLED = """
import os, signal, sys, time
from imagepipe.base import filesystem
from imagepipe.ingest import commit, records, shards
from imagepipe.ingest.command import ingest
where, source, out = sys.argv[1:]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
rename = filesystem.rename
moved = []
def third(*paths):
    moved.append(paths)
    kill() if len(moved) == 3 else rename(*paths)
def slow(*_):
    print("working", flush=True)
    time.sleep(0.1)
    return records.images.BadImage("never seen")
if where == "before the journal": commit.commit = kill
if where == "while moving": filesystem.rename = third
if where == "while working":
    from pipeline.cli import app
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in a shell's background ignores it
    records.encode_row = slow
    app(["ingest", source, "--out", out, "--workers", "2"])
ingest(source, out, workers=2)
"""


def command(where, source, out):
    return [sys.executable, "-c", KILLED, where, str(source), str(out)]


@pytest.mark.parametrize("where", ["before the journal", "while moving"])
def test_a_killed_ingest_is_not_taken_for_a_dataset_and_the_next_one_makes_it_whole(where, folders, tree, tmp_path):
    source, out = folders
    killed = subprocess.run(command(where, source, out), cwd=ROOT, check=False)  # noqa: S603
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(IngestError):
        dataset.load(str(out))
    ingest(str(source), str(out))
    ingest(str(source), str(tmp_path / "undisturbed"))
    present, expected = tree(out), tree(tmp_path / "undisturbed")
    assert {name: data for name, (data, _) in present.items()} == {name: data for name, (data, _) in expected.items()}
    assert not list(out.glob(".staging-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_and_leaves_nothing(number, folders):
    source, out = folders
    with subprocess.Popen(  # noqa: S603
        command("while working", source, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"working")  # two processes may print at once
        start = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.decode().splitlines()[-1] == f"imagepipe: stopped by {number.name}"
    assert time.monotonic() - start < 10
    assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_the_picture_of_the_dataset_grows_with_it_and_only_then(compress, put, crops, tmp_path):
    for i, data in enumerate(crops(12)):
        put(f"source/{'ab'[i % 2]}/{i}.jpg", data)
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    picture = tmp_path / "out/overview.png"
    assert ingest(source, out, compress=compress).overview == str(picture)
    first = picture.read_bytes()
    assert Image.open(picture).height < 300
    ingest(source, out, compress=compress)
    assert picture.read_bytes() == first
    put("source/c/new.jpg", crops(13)[12])
    ingest(source, out, compress=compress)
    assert Image.open(picture).height > 300
    dataset.load(out)


def test_a_picture_that_was_deleted_is_drawn_again_also_beside_a_damaged_shard(small_dataset):
    source, out = small_dataset
    (out / "overview.png").unlink()
    shard = next(out.glob("*/*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert ingest(str(source), str(out)).overview == str(out / "overview.png")
    with Image.open(out / "overview.png") as picture:
        picture.load()  # which checks that it is whole
        assert picture.height > 100


def test_numbers_have_a_picture_in_a_store_too(put, crops, tmp_path, memory):
    for i, data in enumerate(crops(3)):
        put(f"set/{i}.jpg", data)
    manifest = put("set/list.csv", b"path,label\n0.jpg,1\n1.jpg,2\n2.jpg,3\n")
    result = ingest(str(manifest), f"{memory.uri}/out", task="regression")
    assert result.overview == f"{memory.uri}/out/overview.png"
    Image.open(io.BytesIO(memory.content("out")["overview.png"])).load()


def test_what_lies_among_photos_is_read_or_named_for_what_it_is(put, photos, encode, lines, records, tmp_path):
    contents = {
        "phone.HEIC": HEIC,
        "a.avif": encode(photos[0].crop((0, 0, 64, 48)), "AVIF"),
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n",
        "broken.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
        "broken.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    }
    for name, data in contents.items():
        put(f"source/daisy/{name}", data)
    result = ingest(str(tmp_path / "source"), str(tmp_path / "out"))
    assert (result.read, result.new, result.quarantined) == (6, 2, 4)
    named = reasons(lines, tmp_path / "out")
    assert named["page.jpg"] == "not an image, but an HTML page"
    assert named["pointer.jpg"] == "not an image, but a Git LFS pointer: run git lfs pull"
    assert named["broken.avif"].startswith("broken image: ")
    assert named["broken.HEIC"].startswith("broken image: ")
    formats = {feature["format"].bytes_list.value[0] for _, feature in records(tmp_path / "out").values()}
    assert formats == {b"heif", b"avif"}
