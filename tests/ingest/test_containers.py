"""Archives, WebDataset, Parquet with images, COCO's and Label Studio's JSON: from source to a dataset."""

import io
import json
import tarfile
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagepipe.base.errors import IngestError, NothingIngestedError
from imagepipe.ingest.command import ingest
from imagepipe.ingest.sources import find_reader


@pytest.fixture
def labelled(crops):
    """Path to bytes of eight images of two classes."""
    return {f"{'daisy' if i % 2 else 'roses'}/{i}.jpg": data for i, data in enumerate(crops(8))}


@pytest.fixture
def put_tar(tmp_path):
    def put_tar(name, files):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return tmp_path / name

    return put_tar


@pytest.fixture
def put_zip(tmp_path):
    def put_zip(name, files, compression=zipfile.ZIP_DEFLATED):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            for path, data in files.items():
                archive.writestr(path, data)
        return tmp_path / name

    return put_zip


@pytest.fixture
def put_parquet(tmp_path):
    def put_parquet(name, images, names=None, **columns):
        """``images`` is a list of (path, bytes); ``names`` are those of the classes in the column label."""
        values = [{"bytes": data, "path": path} for path, data in images]
        image = pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = pa.table({"image": image, **columns})
        if names:
            features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / name, row_group_size=3)
        return tmp_path / name

    return put_parquet


@pytest.fixture
def read(tmp_path, records):
    """Metadata to (label, split, image) of the records that an ingest of a source writes."""

    def read(source, **options):
        result = ingest(str(source), str(tmp_path / "out"), **options)
        written = {
            feature["metadata"].bytes_list.value[0].decode(): (
                [value.decode() for value in feature["label"].bytes_list.value],
                split,
                feature["input"].bytes_list.value[0],
            )
            for split, feature in records(tmp_path / "out").values()
        }
        assert len(written) == result.written
        return result, written

    return read


@pytest.fixture
def list_rows(tmp_path):
    """The rows of a source, whose files may be no images."""

    def list_rows(source, split_folders=None, passed_over=None, task="classification", group=None):
        read = find_reader(
            str(tmp_path / source), task, split_folders, Counter() if passed_over is None else passed_over, group
        )
        return list(read(str(tmp_path / "staging"))[1])

    return list_rows


def list_reasons(lines, tmp_path):
    return {entry["path"]: entry["reason"] for entry in lines(tmp_path / "out/quarantine.jsonl")}


# --- archives of class folders


@pytest.mark.parametrize("name", ["set.tar", "set.tgz", "set.tar.gz", "set.zip", "stored.zip"])
def test_an_archive_of_class_folders_is_read_as_the_folders_are(
    name, put_tar, put_zip, labelled, read, tmp_path, lines
):
    files = {**labelled, "daisy/notes.txt": b"Dear reader", "__MACOSX/daisy/._1.jpg": b"x", "daisy/.DS_Store": b"x"}
    if name.endswith("zip"):
        source = put_zip(name, files, zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED)
    else:
        source = put_tar(name, files)
    result, written = read(source)
    assert {path: (labels, data) for path, (labels, _, data) in written.items()} == {
        path: ([path.partition("/")[0]], data) for path, data in labelled.items()
    }
    assert (result.read, result.new, result.quarantined) == (9, 8, 1)
    assert result.passed_over == {"hidden": 1, "in __MACOSX": 1}
    assert list_reasons(lines, tmp_path) == {f"{source}/daisy/notes.txt": "not an image, but text"}
    assert not list(tmp_path.glob("out/.staging*"))
    again, _ = read(source)
    assert (again.new, again.already, again.quarantined) == (0, 8, 1)


def test_a_single_folder_above_the_class_folders_is_no_class(put_tar, labelled, read):
    files = {f"./flower_photos/{path}": data for path, data in labelled.items()}
    result, written = read(put_tar("flower_photos.tgz", {**files, "./flower_photos/LICENSE.txt": b"text"}))
    assert {label for (label,), _, _ in written.values()} == {"daisy", "roses"}
    assert set(written) == {f"flower_photos/{path}" for path in labelled}
    assert result.quarantined == 1


def test_folders_that_are_splits_are_so_in_archives(put_zip, labelled, read):
    files = {f"set/{'val' if '1.' in path else 'train'}/{path}": data for path, data in labelled.items()}
    files["set/test/loose.jpg"] = b"x"
    result, written = read(put_zip("set.zip", files))
    assert {(label, split) for (label,), split, _ in written.values()} == {
        ("daisy", "train"),
        ("roses", "train"),
        ("daisy", "eval"),
    }
    assert result.notes == ("Folders gave the splits: train is train (7), val is eval (1).",)
    assert result.passed_over == {"without a label in test, for imagepipe predict": 1}


@pytest.mark.parametrize("source", ["set/a.tar", "set"])
def test_an_archive_is_right_about_labels_and_about_what_is_gone(source, put_tar, labelled, read, tmp_path):
    (tmp_path / "set").mkdir()
    put_tar("set/a.tar", labelled)
    read(tmp_path / source)
    files = {path.replace("daisy/1", "roses/1"): data for path, data in labelled.items() if path != "roses/2.jpg"}
    put_tar("set/a.tar", files)
    result, written = read(tmp_path / source, sync=True)
    assert (result.relabelled, result.disputed, result.gone, result.removed) == (1, 0, 1, 1)
    assert sorted(data for *_, data in written.values()) == sorted(files.values())
    ((label,), _, _) = written["a.tar/roses/1.jpg" if source == "set" else "roses/1.jpg"]
    assert label == "roses"


def test_an_archive_on_an_object_store_is_read(memory, put_tar, put_zip, labelled, tmp_path):
    for source in (put_tar("set.tar", labelled), put_zip("set.zip", labelled)):
        uri = memory.put(f"in/{source.name}", source.read_bytes())
        for out in (f"{memory.uri}/out-{source.name}", str(tmp_path / f"out-{source.name}")):
            assert ingest(uri, out).new == 8


# --- one archive per class


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["daisy.zip:", "roses.zip:"], ["daisy", "roses"]),
        (["Daisy 2.tar.gz:", "roses.tar:"], ["Daisy 2", "roses"]),
        (["daisy.zip:images/", "roses.zip:images/"], ["daisy", "roses"]),
        (["daisy.zip:photos/2024/", "roses.zip:"], ["daisy", "roses"]),
        (["train/daisy.zip:", "train/roses.zip:", "val/roses.zip:"], ["daisy", "roses", "roses"]),
        (["1.zip:roses/", "2.zip:daisy/"], ["roses", "daisy"]),
        (["a.zip:roses/2023/", "b.zip:daisy/2024/"], ["roses", "daisy"]),
        (["set-1.zip:set-1/roses/", "set-2.zip:set-2/daisy/"], ["roses", "daisy"]),
        (["a-1.zip:roses/", "a-2.zip:roses/", "b.zip:daisy/"], ["roses", "roses", "daisy"]),
    ],
)
def test_archives_of_one_class_each_tell_it_by_folders_or_by_names(names, classes, put_zip, put_tar, list_rows):
    for number, name in enumerate(names):
        archive, folder = name.split(":")
        put_archive = put_zip if archive.endswith("zip") else put_tar
        put_archive(f"set/{archive}", {f"{folder}{number}.jpg": b"x"})
    assert [row["labels"] for row in list_rows("set")] == [[label] for label in classes]
    if "/" in names[0].partition(":")[0]:
        assert [row["split"] for row in list_rows("set")] == ["train", "train", "val"]


@pytest.mark.parametrize(
    "names", [["part-1.zip", "part-2.zip"], ["train.zip", "val.zip"], ["roses (1).zip", "roses.zip"]]
)
def test_names_of_archives_that_can_not_be_classes_are_taken_for_none(names, put_zip, list_rows, tmp_path, capfd):
    for name in names:
        put_zip(f"set/{name}", {"1.jpg": b"x"})
    assert [row["reason"] for row in list_rows("set")] == ["missing label"] * 2
    message = " ".join(capfd.readouterr().err.split())
    assert f"{', '.join(f'{tmp_path}/set/{name}' for name in names)}. Pack the images of each class" in message


def test_an_archive_without_folders_beside_one_of_classes_is_named(put_zip, labelled, list_rows, capfd):
    put_zip("set/a.zip", labelled)
    put_zip("set/tulips.zip", {"1.jpg": b"x"})
    assert [row["reason"] for row in list_rows("set")] == [None] * 8 + ["missing label"]
    assert "set/tulips.zip. Pack" in " ".join(capfd.readouterr().err.split())


def test_folders_of_several_archives_may_be_splits(labelled, put_zip, list_rows):
    for number, path in enumerate(sorted(labelled)):
        put_zip(f"set/{number}.zip", {f"{'val' if number < 2 else 'train'}/{path}": b"x"})
    for wanted in (None, True):
        rows = list_rows("set", wanted)
        assert [row["labels"] for row in rows] == [["daisy"]] * 4 + [["roses"]] * 4
        assert [row["split"] for row in rows] == ["val"] * 2 + ["train"] * 6


def test_an_archive_that_gives_nothing_says_so_of_an_archive(put_zip, tmp_path):
    source = put_zip("set.zip", {"1.jpg": b"x"})
    with pytest.raises(NothingIngestedError) as caught:
        ingest(str(source), str(tmp_path / "out"))
    message = str(caught.value)
    assert f"1.jpg lies in no class folder of {source}, so it has no class. Pack the images of each class in" in message
    assert "The images lie in" not in message
    (tmp_path / "unpacked.zip").mkdir()
    (tmp_path / "unpacked.zip/1.jpg").write_bytes(b"x")
    with pytest.raises(NothingIngestedError, match=r"The images lie in .*unpacked.zip itself"):
        ingest(str(tmp_path / "unpacked.zip"), str(tmp_path / "out"))


# --- WebDataset


def make_samples(images, labels, kind):
    files = {}
    for number, (data, label) in enumerate(zip(images, labels, strict=True)):
        files[f"{number:04}.jpg"] = data
        files[f"{number:04}.{kind}"] = label
    return files


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        ("cls", [b"0", b"1\n"], ["0", "1"]),
        ("txt", [b" daisy ", "\ufeffrösle\n".encode()], ["daisy", "rösle"]),
        ("json", [b'{"label": "daisy", "width": 3}', b'{"class_name": 7}'], ["daisy", "7"]),
        ("json", [b'"daisy"', b"7"], ["daisy", "7"]),
    ],
)
def test_samples_of_webdataset_have_the_label_beside_the_image(kind, labels, expected, crops, put_tar, read):
    result, written = read(put_tar("set.tar", make_samples(crops(2), labels, kind)))
    assert result.read == 2
    assert [written[f"{number:04}.jpg"][0] for number in range(2)] == [[label] for label in expected]


def test_samples_lie_in_a_folder_of_shards_whose_names_are_splits(crops, put_tar, read, tmp_path):
    images = crops(6)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/README.md").write_text("text")
    for number, name in enumerate(["train-0000.tar", "train-0001.tar", "val-0000.tar"]):
        some = images[2 * number : 2 * number + 2]
        put_tar(f"set/{name}", make_samples(some, [b"0", b"1"], "cls"))
    result, written = read(tmp_path / "set")
    assert {name: split for name, (_, split, _) in written.items()} == {
        "train-0000.tar/0000.jpg": "train",
        "train-0000.tar/0001.jpg": "train",
        "train-0001.tar/0000.jpg": "train",
        "train-0001.tar/0001.jpg": "train",
        "val-0000.tar/0000.jpg": "eval",
        "val-0000.tar/0001.jpg": "eval",
    }
    assert result.notes == ("The files' names gave the splits: train is train (4), val is eval (2).",)
    assert result.passed_over == {"beside archives or Parquet files": 1}


@pytest.mark.parametrize("pattern", ["set-{0000..0001}.tar", "set-*.tar", "set-000{0,1}.tar", "set-000[01].tar"])
def test_shards_are_named_by_a_pattern(pattern, crops, put_tar, read, tmp_path):
    images = crops(4)
    for number in range(2):
        some = images[2 * number : 2 * number + 2]
        put_tar(f"set-{number:04}.tar", make_samples(some, [b"0", b"1"], "cls"))
    _, written = read(tmp_path / pattern)
    assert len(written) == 4


@pytest.mark.parametrize("folder", ["data [v1]", "a{b,c}", "who?", "*", "[0-9]"])
def test_a_folder_in_a_pattern_may_be_called_like_one(folder, put_zip, list_rows):
    put_zip("7/s-0.zip", {"other/1.jpg": b"x"})
    for number, label in enumerate(["daisy", "roses"]):
        put_zip(f"{folder}/s-{number}.zip", {f"{label}/1.jpg": b"x"})
    for pattern in ("s-{0..1}.zip", "s-*.zip", "s-[01].zip", "s-{0,1}.zip"):
        assert [row["labels"] for row in list_rows(f"{folder}/{pattern}")] == [["daisy"], ["roses"]]


def test_the_folders_of_a_pattern_give_the_splits_and_not_those_above_it(put_zip, list_rows):
    for split in ("train", "valid"):
        put_zip(f"train/set/{split}/s.zip", {f"{split[0]}/1.jpg": b"x"})
    rows = list_rows("train/set/*/s.zip")
    assert [(row["split"], row["metadata"]) for row in rows] == [
        ("train", "train/s.zip/t/1.jpg"),
        ("valid", "valid/s.zip/v/1.jpg"),
    ]


def test_what_lies_beside_archives_is_passed_over_by_a_pattern_too(put, put_zip, list_rows, tmp_path):
    put_zip("set/a.zip", {"daisy/1.jpg": b"x", "roses/2.jpg": b"x"})
    put("set/README.md", b"text")
    put("set/a_stats.json", b"{}")
    put("set/more/b.zip", b"text")
    passed_over = Counter()
    rows = list(find_reader(f"{tmp_path}/set/*", "classification", None, passed_over)(str(tmp_path / "staging"))[1])
    assert [row["labels"] for row in rows] == [["daisy"], ["roses"]]
    assert passed_over == {"beside archives or Parquet files": 2}


def test_archives_in_class_folders_are_named_with_the_remedy(put, tmp_path):
    for name in ("daisy", "roses"):
        put(f"set/{name}/1.zip", b"PK\3\4 and so on")
    with pytest.raises(NothingIngestedError, match=r"Unpack .* or put one per class into a folder of nothing else"):
        ingest(str(tmp_path / "set"), str(tmp_path / "out"))


def test_a_pattern_that_names_a_missing_shard_is_refused(put_tar, tmp_path):
    put_tar("set-0.tar", {"a/1.jpg": b"x"})
    with pytest.raises(IngestError, match=r"set-1.tar: no such file, of the 2 that .* stands for"):
        ingest(str(tmp_path / "set-{0..1}.tar"), str(tmp_path / "out"))
    with pytest.raises(IngestError, match="stands for more than"):
        ingest(str(tmp_path / "set-{0..999999999}.tar"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_samples_that_are_none_are_quarantined_with_their_reason(crops, put_tar, read, lines, tmp_path):
    one, two, three, four = crops(4)
    files = {
        "a.jpg": one,
        "a.cls": b"0",
        "b.cls": b"1",
        "c.left.jpg": two,
        "c.right.jpg": three,
        "c.cls": b"1",
        "d.jpg": four,
        "e.jpg": four,
        "e.json": b"{",
    }
    source = put_tar("set.tar", files)
    result, _ = read(source)
    assert (result.read, result.new, result.quarantined) == (5, 1, 4)
    reasons = list_reasons(lines, tmp_path)
    assert reasons[f"{source}/b.cls"] == "sample without exactly one image: b has 0 (cls)"
    assert reasons[f"{source}/c.left.jpg"].startswith("sample without exactly one image: c has 2")
    assert reasons[f"{source}/d.jpg"] == "missing label"
    assert "its label can't be read: e.json: " in reasons[f"{source}/e.jpg"]


def test_json_beside_images_in_class_folders_is_no_label(put_tar, labelled, read):
    files = {}
    for path, data in labelled.items():
        files |= {path: data, f"{path[:-4]}.json": b'{"label": "other"}'}
    result, written = read(put_tar("set.tar", files))
    assert {label for (label,), _, _ in written.values()} == {"daisy", "roses"}
    assert result.quarantined == 8


@pytest.mark.parametrize("kind", ["json", "cls"])
def test_samples_may_lie_in_a_folder_or_in_folders_of_splits(kind, put_tar, list_rows):
    def make_files(folder):
        data = {"json": b'{"label": "%s", "width": 3}', "cls": b"%s"}[kind]
        return {
            f"{folder}/{number}.{end}": part
            for number, label in enumerate([b"daisy", b"roses"])
            for end, part in (("jpg", b"x"), (kind, data % label))
        }

    for name, files, splits in (
        ("one.tar", {"README.txt": b"x"} | make_files("set"), [None] * 2),
        ("split.tar", make_files("set/train") | make_files("set/val"), ["train"] * 2 + ["val"] * 2),
    ):
        put_tar(name, files)
        rows = [row for row in list_rows(name) if "README" not in row["path"]]
        assert [(row["labels"], row["split"]) for row in rows] == [
            ([label], split) for split, label in zip(splits, ["daisy", "roses"] * 2, strict=False)
        ]
        assert {row["split"] for row in list_rows(name, split_folders=False)} == {None}
    with pytest.raises(IngestError, match="by folders, if any, without --splits folders"):
        list_rows("one.tar", split_folders=True)


def test_a_sample_may_call_its_image_by_a_kind_of_two_words(put_tar, list_rows):
    put_tar("set.tar", {"0001.input.jpg": b"x", "0001.cls": b"3", "0002.input.jpg": b"x", "0002.cls": b"4"})
    assert [row["labels"] for row in list_rows("set.tar")] == [["3"], ["4"]]


def test_json_without_a_label_in_a_single_folder_is_no_sample(put_tar, list_rows):
    put_tar("set.tar", {"roses/1.jpg": b"x", "roses/1.json": b'{"camera": "x"}'})
    assert [row["labels"] for row in list_rows("set.tar")] == [["roses"], ["roses"]]


def test_samples_with_several_labels(crops, put_tar, read):
    labels = [b'{"labels": ["b", "a|c"]}', b'{"labels": ["b"]}']
    _, written = read(put_tar("set.tar", make_samples(crops(2), labels, "json")), task="multilabel")
    assert [written[f"{number:04}.jpg"][0] for number in range(2)] == [["a|c", "b"], ["b"]]


# --- Parquet


def test_parquet_of_hugging_face_has_images_class_names_and_splits(crops, put_parquet, read, tmp_path, capfd):
    images = [(f"{i}.png", data) for i, data in enumerate(crops(6))]
    names = ["daisy", "roses"]
    embedding = [[0.5]] * 4
    put_parquet(
        "set/data/train-00000-of-00001.parquet", images[:4], names, label=[0, 1, 1, 0], iso=[1, 2, 3, 4], v=embedding
    )
    put_parquet("set/data/validation-00000-of-00001.parquet", images[4:], names, label=[0, -1], iso=[1, None])
    (tmp_path / "set/README.md").write_text("text")
    result, written = read(tmp_path / "set")
    assert {name: (labels, split) for name, (labels, split, _) in written.items()} == {
        "data/train-00000-of-00001.parquet/1/0.png": (["daisy"], "train"),
        "data/train-00000-of-00001.parquet/2/1.png": (["roses"], "train"),
        "data/train-00000-of-00001.parquet/3/2.png": (["roses"], "train"),
        "data/train-00000-of-00001.parquet/4/3.png": (["daisy"], "train"),
        "data/validation-00000-of-00001.parquet/1/4.png": (["daisy"], "eval"),
    }
    assert {data for *_, data in written.values()} == {data for _, data in images[:5]}
    assert (result.read, result.quarantined) == (6, 1)  # -1 is Hugging Face's sign for no label
    assert "columns that are passed over: v" in capfd.readouterr().err
    again, _ = read(tmp_path / "set")
    assert (again.new, again.already) == (0, 5)


def test_a_folder_for_a_configuration_of_hugging_faces_is_no_class(crops, put_parquet, read, tmp_path):
    images = [(f"{i}.png", data) for i, data in enumerate(crops(4))]
    put_parquet("set/plain_text/train-00000-of-00001.parquet", images[:2], label=["daisy", "roses"])
    put_parquet("set/plain_text/test/0000.parquet", images[2:], label=["daisy", "roses"])
    (tmp_path / "set/README.md").write_text("text")
    result, written = read(tmp_path / "set")
    assert {name: (labels, split) for name, (labels, split, _) in written.items()} == {
        "plain_text/train-00000-of-00001.parquet/1/0.png": (["daisy"], "train"),
        "plain_text/train-00000-of-00001.parquet/2/1.png": (["roses"], "train"),
        "plain_text/test/0000.parquet/1/2.png": (["daisy"], "test"),
        "plain_text/test/0000.parquet/2/3.png": (["roses"], "test"),
    }
    assert result.passed_over == {"beside archives or Parquet files": 1}


def test_folders_of_archives_may_have_a_split_among_their_words(put_tar, list_rows):
    for split in ("training_set", "test_set"):
        put_tar(f"set/{split}/0001.tar", {"cat/1.jpg": b"x", "dog/2.jpg": b"x"})
    rows = list_rows("set")
    assert [(row["split"], row["labels"]) for row in rows] == [
        ("test", ["cat"]), ("test", ["dog"]), ("training", ["cat"]), ("training", ["dog"])
    ]  # fmt: skip


def test_of_several_configurations_one_is_to_be_given(crops, put_parquet, read, tmp_path):
    for name in ("coarse", "fine"):
        put_parquet(f"set/{name}/train-00000-of-00001.parquet", [("0.png", crops(1)[0])], label=["daisy"])
    with pytest.raises(NothingIngestedError, match=f"give one, such as {tmp_path}/set/coarse"):
        read(tmp_path / "set")


def test_a_single_class_folder_with_an_archive_among_its_images_stays_one(list_rows, put_tar, tmp_path):
    put_tar("set/cat/all.tar", {"1.jpg": b"x"})
    (tmp_path / "set/cat/2.jpg").write_bytes(b"x")
    assert [row["labels"] for row in list_rows("set")] == [["cat"], ["cat"]]


def test_one_parquet_file_without_hugging_faces_metadata(crops, put_parquet, read, lines, tmp_path):
    source = put_parquet(
        "set.parquet",
        [(None, data) for data in crops(3)] + [("a/b.jpg", None)],
        label=["a", "b", "a", "a"],
        split=["train", "test", "train", "train"],
    )
    _, written = read(source)
    assert {name: (labels, split) for name, (labels, split, _) in written.items() if split == "test"} == {
        "2": (["b"], "test")
    }
    assert list_reasons(lines, tmp_path) == {f"{source}/4/b.jpg": "no bytes of the image in the file"}


def test_a_split_of_hugging_face_may_be_a_number_and_a_whole_label_a_float(
    put_parquet, list_rows, tmp_path, read, crops
):
    images = [(f"{i}.jpg", data) for i, data in enumerate(crops(4))]
    source = put_parquet("set.parquet", images, kind=[1.0, 0.0, float("nan"), -1.0], split=[0, 1, 0, -1])
    features = {"kind": {"names": ["daisy", "roses"]}, "split": {"names": ["train", "validation"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pq.read_table(source).replace_schema_metadata(metadata), source)
    rows = list_rows("set.parquet")
    assert [(row["labels"], row["split"]) for row in rows[:2]] == [(["roses"], "train"), (["daisy"], "validation")]
    assert [row["reason"] for row in rows[2:]] == ["missing label"] * 2
    result, _ = read(source)
    assert result.notes == ("The column split gave the splits: train is train (1), validation is eval (1).",)
    put_parquet("plain.parquet", images, label=[1.0, float("nan"), 2.5, 2.0])
    assert [row["labels"] for row in list_rows("plain.parquet")] == [["1"], [], ["2.5"], ["2"]]


def test_which_column_of_parquet_is_meant_has_to_be_plain(crops, put_parquet, tmp_path):
    images = [("1.jpg", crops(1)[0])]
    with pytest.raises(IngestError, match="has no column 'label', only image, kind: rename"):
        ingest(str(put_parquet("a.parquet", images, kind=["a"])), str(tmp_path / "out"))
    features = {name: {"names": ["a"], "_type": "ClassLabel"} for name in ("fine", "coarse")}
    table = pq.read_table(put_parquet("b.parquet", images, fine=[0], coarse=[0]))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "b.parquet")
    with pytest.raises(IngestError, match=r"several columns that could be 'label' \(fine, coarse\)"):
        ingest(str(tmp_path / "b.parquet"), str(tmp_path / "out"))


# --- exports of annotations


def test_exports_of_annotations_name_images_beside_them(put, labelled, read, lines, tmp_path):
    tasks, images, annotations = [], [], []
    for number, (path, data) in enumerate(labelled.items()):
        label, _, name = path.partition("/")
        put(f"set/photos/{name}", data)
        put(f"set/photos/not {name}", data)
        result = [{"type": "choices", "value": {"choices": [label]}}]
        image = f"/data/local-files/?d=project/photos/{name}"
        tasks.append({"data": {"image": image}, "annotations": [{"result": result}]})
        images.append({"id": number, "file_name": f"photos/{name}"})
        annotations.append({"image_id": number, "category_id": int(label == "daisy")})
    tasks.append({"data": {"image": "/data/local-files/?d=../../etc/passwd"}, "annotations": tasks[0]["annotations"]})
    categories = [{"id": 0, "name": "roses"}, {"id": 1, "name": "daisy"}]
    studio = put("set/tasks.json", json.dumps(tasks).encode())
    put("set/photos/.hidden.jpg", b"")
    coco = {"images": images, "annotations": annotations, "categories": categories}
    result, written = read(studio)
    assert (result.read, result.new, result.quarantined) == (9, 8, 1)
    assert result.passed_over == {"among the images of an export, which does not name them": 8, "hidden": 1}
    assert {data: label for (label,), _, data in written.values()} == {
        data: path.partition("/")[0] for path, data in labelled.items()
    }
    assert list(list_reasons(lines, tmp_path)) == [str(studio)]
    result, _ = read(put("set/coco.json", json.dumps(coco).encode()))
    assert (result.new, result.already) == (0, 8)


def test_a_pattern_on_the_names_in_an_export_tells_groups(put, list_rows, tmp_path):
    put("set/a.json", json.dumps({
        "images": [{"id": i, "file_name": f"patient{i // 2}/{i}.jpg"} for i in range(4)],
        "annotations": [{"image_id": i, "category_id": 1} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}],
    }).encode())  # fmt: skip
    assert [row["group"] for row in list_rows("set/a.json", group=r"(patient\d+)/")] == ["patient0"] * 2 + [
        "patient1"
    ] * 2


@pytest.mark.parametrize("name", ["train/extra.zip", "test.zip"])
def test_an_archive_beside_class_folders_is_not_the_source(name, put, put_zip, crops, tmp_path):
    for number, data in enumerate(crops(12)):
        put(f"set/{'val' if number % 3 == 0 else 'train'}/{'ab'[number % 2]}/{number}.jpg", data)
    put_zip(f"set/{name}", {"a/x.jpg": crops(13)[-1]})
    result = ingest(str(tmp_path / "set"), str(tmp_path / "out"))
    assert (result.new, result.quarantined) == (12, 1)


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (
            ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
            "annotations/instances_*.json",
        ),
        (["train.json", "val.json"], "{train,val}.json"),
        (["train/_annotations.coco.json", "val/_annotations.coco.json"], "*/_annotations.coco.json"),  # Roboflow's
    ],
)
def test_several_exports_give_the_splits_by_their_names(names, source, put, list_rows):
    for name, label in zip(names, ("cat", "dog"), strict=True):
        content = {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "category_id": 1}],
            "categories": [{"id": 1, "name": label}],
        }
        put(f"set/{name}", json.dumps(content).encode())
    assert [
        (row["labels"], row["split"], row["metadata"].rpartition("/")[2]) for row in list_rows(f"set/{source}")
    ] == [
        (["cat"], "train", "1.jpg"),
        (["dog"], "val", "1.jpg"),
    ]
    assert len({row["metadata"] for row in list_rows(f"set/{source}")}) == 2
    assert [row["split"] for row in list_rows(f"set/{source}", split_folders=False)] == [None, None]


@pytest.mark.parametrize(
    ("exports", "folders"),
    [
        (["annotations/instances_train2017.json", "annotations/instances_val2017.json"], ["train2017", "val2017"]),
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], ["train", "valid"]),
    ],
)
def test_a_folder_as_coco_and_roboflow_lay_it_out_is_read_by_its_exports(exports, folders, put, crops, read, tmp_path):
    images = crops(6)
    for number, (export, folder) in enumerate(zip(exports, folders, strict=True)):
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
            "annotations": [{"image_id": i, "category_id": i % 2} for i in range(3)],
            "categories": [{"id": 0, "name": "daisy"}, {"id": 1, "name": "roses"}],
        }
        put(f"set/{export}", json.dumps(content).encode())
        put("set/annotations/captions_train2017.json", b"{}")
        for i in range(3):
            put(f"set/{folder}/{i}.jpg", images[3 * number + i])
    result, written = read(tmp_path / "set")
    assert (result.new, result.quarantined) == (6, 0)
    assert sorted((label, split) for (label,), split, _ in written.values()) == [
        ("daisy", "eval"),
        ("daisy", "eval"),
        ("daisy", "train"),
        ("daisy", "train"),
        ("roses", "eval"),
        ("roses", "train"),
    ]
