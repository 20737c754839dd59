"""The inputs that a user names: the same set of files as ingest takes, and manifests as it reads them."""

import io
import json
import os
import tarfile
import uuid
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, ModelError
from imagepipe.ingest.sources import read_rows
from imagepipe.serving import listing as listing_module
from imagepipe.serving.instances import encode_instance
from imagepipe.serving.listing import Listing, check_inputs, describe_omissions, infer_types, list_inputs
from imagepipe.serving.reading import read_items
from imagepipe.serving.request_files import SUFFIXES, write_requests
from imagepipe.serving.types import Failure, Request
from tests.conftest import encode_image

TYPES = {"iso": "int64", "weight": "float32", "camera": "string"}
PHOTO = encode_image(Image.new("RGB", (8, 8)), "JPEG")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as case 05 has it: names that no suffix tells, a linked folder, and what nobody wants."""
    photos = tmp_path / "photos"
    names = ["a.jpg", "b.jfif", "c", "d.JPE", "e.jpg_large", "sub/g.jpeg", "._a.jpg", "@eaDir/a.jpg/thumb.jpg", "x.csv"]
    for name in [f"photos/{name}" for name in names] + ["elsewhere/z.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PHOTO)
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    return photos


def describe(listing: Listing) -> str:
    return describe_omissions(listing.passed_over, listing.columns)


def list_paths(*names: str) -> list[str]:
    return [item.path for item in list_inputs(names).items]


def test_a_folder_has_the_files_that_ingest_takes_and_the_rest_is_counted(folder):
    listing = list_inputs([str(folder)])
    (folder / "x.csv").unlink()
    taken = [row["path"] for row in read_rows(str(folder), "classification", Counter())]
    assert [item.path for item in listing.items] == taken
    relative = [os.path.relpath(item.path, folder) for item in listing.items if not item.problem]
    assert relative == ["a.jpg", "b.jfif", "c", "d.JPE", "e.jpg_large", "link/z.jpg", "sub/g.jpeg"]
    assert sum(listing.passed_over.values()) == 3
    assert "1 tables, exports or files of requests in folders" in describe(listing)
    assert "1 in @eaDir" in describe(listing)
    *requests, loop = sorted(read_items(listing.items, {}), key=lambda answer: isinstance(answer, Failure))
    assert [request.image for request in requests if isinstance(request, Request)] == [PHOTO] * 7
    assert loop == Failure(f"{folder}/loop", "folder that links to one above itself")


def test_files_folders_and_patterns_are_expanded_in_order(folder):
    everything = [f"{folder}/{name}" for name in ("a.jpg", "sub/g.jpeg")]
    assert list_paths(f"{folder}/a.jpg", f"{folder}/sub") == everything
    assert list_paths(f"{folder}/*.jpg", f"{folder}/s*/*.jpeg", f"{folder}/su*") == [*everything, everything[1]]
    (folder / "[1].png").write_bytes(b"")
    assert list_paths(f"{folder}/[1].png") == [f"{folder}/[1].png"]
    assert list_paths(f"{folder}/missing.png") == [f"{folder}/missing.png"]


@pytest.mark.parametrize("pattern", ["**", "**/", "**/*", "**/**", "**/sub*", "**/sub/", "**/sub/*", "**/*.jpg"])
@pytest.mark.parametrize("place", ["here", "store"])
def test_a_pattern_that_matches_folders_and_what_is_in_them_asks_about_each_image_once(
    tmp_path, place, pattern, request
):
    paths = ["a.jpg", "sub/b.jpg", "sub/deep/sub.jpg", "sub/sub/d.jpg", "sub-c.jpg"]
    root = str(tmp_path) if place == "here" else f"{request.getfixturevalue('memory').uri}/in"
    for path in paths:
        filesystem.write_whole(f"{root}/{path}", b"")
    start = pattern.removesuffix(".jpg").replace("**/", "").strip("*")
    expected = sorted(f"{root}/{path}" for path in paths if path.startswith(start))
    assert sorted(list_paths(f"{root}/{pattern}")) == expected


def test_tables_and_files_of_requests_that_a_pattern_names_in_any_folder_are_read(tmp_path):
    (tmp_path / "sub").mkdir()
    for path in ("a.jsonl", "sub/b.jsonl"):
        (tmp_path / path).write_text('{"metadata": "1", "input": {"b64": ""}}\n')
    listing = list_inputs([f"{tmp_path}/**"])
    assert [item.path for item in listing.items] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/sub/b.jsonl"]
    assert not listing.passed_over


def test_that_a_folder_has_inputs_is_seen_by_its_first_image(folder, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("all of it is listed")

    (folder / "hidden").mkdir()
    (folder / "hidden" / ".a.jpg").touch()
    check_inputs(str(folder.parent), (), False)  # in folders below
    with pytest.raises(ModelError, match="no image there; passed over: 1 hidden"):
        check_inputs(str(folder / "hidden"), (), False)
    monkeypatch.setattr(listing_module, "list_files", fail)
    check_inputs(str(folder), (), False)


def test_a_range_in_braces_stands_for_the_files_that_ingest_takes_for_it(tmp_path):
    for number in range(3):
        (tmp_path / f"photo-{number:02}.jpg").write_bytes(b"")
    assert list_paths(str(tmp_path / "photo-{00..02}.jpg")) == [str(tmp_path / f"photo-0{n}.jpg") for n in range(3)]
    with pytest.raises(IngestError, match=r"photo-03\.jpg: no such file, of the 4 that"):
        list_inputs([str(tmp_path / "photo-{00..03}.jpg")])
    (tmp_path / "photo-{1,2}.jpg").write_bytes(b"")
    assert list_paths(str(tmp_path / "photo-{1,2}.jpg")) == [str(tmp_path / "photo-{1,2}.jpg")]


def test_a_name_that_stands_for_nothing_is_refused_with_what_was_passed_over(folder):
    with pytest.raises(ModelError, match=r"\*\.gif: no image there"):
        list_inputs([f"{folder}/*.gif"])
    (folder / "only").mkdir()
    (folder / "only" / "requests.jsonl").write_text("{}\n")
    with pytest.raises(ModelError, match="no image there; passed over: 1 tables, exports or files of requests"):
        list_inputs([f"{folder}/only"])


TABLES = {
    "a.csv": "path,iso,camera,weight,id\na.jpg,100,Café,1.5,1\na.jpg,200.0,x,2,2\nb.jfif,high,,1,3\nc,NA,y,1,4\n",
    "b.tsv": "Path\tiso\tcamera\tweight\tid\na.jpg\t100\tCafé\t1.5\t1\na.jpg\t200\tx\t2\t2\nb.jfif\thigh\t\t1\t3\n"
    "c\tnan\ty\t1\t4\n",
}
ROWS = [
    {"path": "a.jpg", "iso": 100, "camera": "Café", "weight": 1.5, "id": 1},
    {"path": "a.jpg", "iso": 200, "camera": "x", "weight": 2, "id": 2},
    {"path": "b.jfif", "iso": "high", "camera": None, "weight": 1, "id": 3},
    {"path": "c", "iso": None, "camera": "y", "weight": 1, "id": 4},
]
TABLES["c.jsonl"] = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", [*TABLES, "d.parquet"])
def test_a_manifest_asks_with_its_side_features_in_the_types_of_the_model(folder, name):
    if name == "d.parquet":
        columns = {key: [row[key] for row in ROWS] for key in ROWS[0]} | {"iso": ["100", "200", "high", None]}
        pq.write_table(pa.table(columns), folder / name)
    else:
        (folder / name).write_text(TABLES[name])
    listing = list_inputs([str(folder / name)], TYPES)
    assert describe(listing) == "columns that the model does not take: id"
    first, second, third, fourth = read_items(listing.items, TYPES)
    assert first == Request("a.jpg", PHOTO, {"iso": 100, "camera": "Café", "weight": 1.5})
    assert second == Request("a.jpg", PHOTO, {"iso": 200, "camera": "x", "weight": 2.0})
    line = 1 if name[0] in "cd" else 2
    assert third == Failure("b.jfif", f"line {line + 2}: 'iso' is 'high'; the model needs a whole number there")
    assert fourth == Failure("c", f"line {line + 3}: 'iso' is missing, and the model needs a whole number there")


def test_columns_of_parquet_that_are_neither_text_nor_numbers_are_passed_over_unless_they_are_asked_with(
    folder, monkeypatch
):
    paths = ["a.jpg", "b.jfif"]
    others = {"raw": [b"x" * 5000, b"y" * 5000], "vector": [[0.5], None], "box.x": [{"x": 1}] * 2}
    table = put_parquet(folder / "x.parquet", path=paths, iso=[1, 2], **others, label=[{"a": 1}] * 2)
    monkeypatch.setattr("imagepipe.ingest.manifests._MAX_PAGES", 5000)
    listing = list_inputs([table], ["iso"])
    assert [(item.id, item.side) for item in listing.items] == [("a.jpg", {"iso": 1}), ("b.jfif", {"iso": 2})]
    assert describe(listing) == "columns that the model does not take: raw, vector, box.x, label"
    with pytest.raises(IngestError, match=r"column 'vector' holds list<.*leave it out"):
        list(list_inputs([table], ["vector"]).items)
    with pytest.raises(IngestError, match="column 'raw' holds binary"):
        list(list_inputs([table]).items)
    table = put_parquet(folder / "x.parquet", path=paths, metadata=[b"1", b"2"])
    with pytest.raises(IngestError, match="column 'metadata' holds binary"):
        list(list_inputs([table], []).items)


def test_a_manifest_without_a_feature_of_the_model_is_refused_at_once(folder):
    (folder / "a.csv").write_text("path,iso\na.jpg,100\n")
    with pytest.raises(IngestError, match="no column 'camera'"):
        list_inputs([str(folder / "a.csv")], ["camera", "iso"])


def test_rows_that_can_not_be_read_fail_alone_with_their_line(folder):
    (folder / "a.csv").write_text("path,metadata\na.jpg,id-1\n,x\na.jpg,b,c\ngone.jpg,\n")
    first, *failures = read_items(list_inputs([str(folder / "a.csv")]).items, {})
    assert first == Request("id-1", PHOTO)
    assert [
        failure.error.removeprefix(f"{folder}/a.csv, ") for failure in failures if isinstance(failure, Failure)
    ] == [
        "line 3: no path",
        failures[1].error.removeprefix(f"{folder}/a.csv, "),
        "line 5: No such file or directory",
    ]
    assert "line 4: unreadable row" in failures[1].error


def test_lines_of_json_with_images_are_requests_and_with_paths_a_manifest(folder):
    request, row = json.dumps(encode_instance(Request("1", PHOTO))) + "\n", '{"Path": "a.jpg"}\n'
    for suffix in ("jsonl", "ndjson"):
        (folder / f"asked.{suffix}").write_text(request)
        (folder / f"table.{suffix}").write_text(f"\n \n{row}")
        listing = list_inputs([str(folder / f"asked.{suffix}"), str(folder / f"table.{suffix}")])
        assert list(read_items(listing.items, {})) == [Request("1", PHOTO), Request("a.jpg", PHOTO)]
    (folder / "table.jsonl").write_text(row, "utf-16")
    assert list(read_items(list_inputs([str(folder / "table.jsonl")]).items, {})) == [Request("a.jpg", PHOTO)]


def test_a_row_that_can_not_be_read_makes_no_requests_of_a_manifest_and_no_manifest_of_requests(folder):
    row, request = '{"path": "a.jpg"}', json.dumps(encode_instance(Request("1", PHOTO)))
    for bad in ('{"path": "a.jpg",}', "path", "[]", '{"iso": 1}'):
        (folder / "table.JSONL").write_text(f"{bad}\n{row}\n")
        failure, answer = read_items(list_inputs([str(folder / "table.JSONL")]).items, {})
        assert answer == Request("a.jpg", PHOTO)
        assert isinstance(failure, Failure)
        assert f"{folder}/table.JSONL, line 1: " in failure.error
        (folder / "asked.NDJSON").write_text(f"{bad}\n{request}\n")
        failure, answer = read_items(list_inputs([str(folder / "asked.NDJSON")]).items, {})
        assert answer == Request("1", PHOTO)
        assert isinstance(failure, Failure)
        assert failure.id == f"{folder}/asked.NDJSON:1"


@pytest.mark.parametrize("kind", SUFFIXES)
def test_files_of_requests_are_read_by_uri_and_whatever_the_case_of_their_suffix(tmp_path, kind):
    requests = [Request("1", PHOTO, {"iso": 1}), Request("2", PHOTO, {"iso": 2})]
    path = tmp_path / f"asked{SUFFIXES[kind]}"
    write_requests(requests, path, kind)
    uri = f"memory://{uuid.uuid4()}/ASKED{SUFFIXES[kind].upper()}"
    filesystem.copy(str(path), uri)
    path = path.rename(tmp_path / f"ASKED{SUFFIXES[kind].upper()}")
    for name in (uri, str(path), f"{uri[:-1]}?"):
        assert list(read_items(list_inputs([name]).items, {})) == requests


def test_types_are_inferred_of_whole_columns_where_no_model_says_them(folder):
    (folder / "a.csv").write_text("path,iso,camera,label\na.jpg,100,7,x\na.jpg,1.5,007,y\na.jpg,NA,,z\n")
    listing = list_inputs([str(folder / "a.csv")])
    assert infer_types(listing.items) == {"iso": "float32", "camera": "string"}
    first, second, third = read_items(listing.items, infer_types(listing.items))
    assert first == Request("a.jpg", PHOTO, {"iso": 100.0, "camera": "7"})
    assert second == Request("a.jpg", PHOTO, {"iso": 1.5, "camera": "007"})
    assert third == Request("a.jpg", PHOTO, {"iso": None, "camera": ""})
    (folder / "a.csv").write_text("path,iso\na.jpg,100\na.jpg,NA\n")
    listing = list_inputs([str(folder / "a.csv")])
    assert infer_types(listing.items) == {"iso": "float32"}  # as pandas has it


def test_paths_with_backslashes_are_found_as_ingest_finds_them(folder):
    (folder / "a.csv").write_text("path\nsub\\g.jpeg\n")
    assert list(read_items(list_inputs([str(folder / "a.csv")]).items, {})) == [Request("sub\\g.jpeg", PHOTO)]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_archives_are_read_without_labels_and_without_unpacking_them(tmp_path):
    members = {"a.jpg": PHOTO, "sub/b": PHOTO, "@eaDir/c.jpg": PHOTO, "../d.jpg": PHOTO}
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "a.tgz", members)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for kind in ("tar", "tgz", "zip"):
        listing = list_inputs([f"{tmp_path}/a.{kind}"])
        first, second, third = read_items(listing.items, {})
        assert [first, second] == [Request(f"{tmp_path}/a.{kind}/{name}", PHOTO) for name in ("a.jpg", "sub/b")]
        assert third == Failure(f"{tmp_path}/a.{kind}/../d.jpg", "its path leaves the archive")
        assert describe(listing) == "1 in @eaDir"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "a.tgz", "a.zip"]
    (tmp_path / "bad.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(IngestError, match=r"bad\.tar"):
        list_inputs([f"{tmp_path}/bad.tar"])
    assert list_paths(f"{tmp_path}/gone.tar") == [f"{tmp_path}/gone.tar"]


def test_samples_of_webdataset_are_an_image_each(tmp_path):
    write_tar(tmp_path / "shard-0000.tar", {"1.jpg": PHOTO, "1.cls": b"3", "2.jpg": PHOTO, "2.cls": b"4"})
    requests = list(read_items(list_inputs([f"{tmp_path}/shard-*.tar"]).items, {}))
    assert requests == [Request(f"{tmp_path}/shard-0000.tar/{name}.jpg", PHOTO) for name in "12"]


def test_a_folder_of_archives_or_parquet_is_read_as_ingest_reads_it_unless_images_are_beside_them(tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(2):
        write_tar(tmp_path / f"tars/{number}.tar", {f"{number}.jpg": PHOTO})
    (tmp_path / "tars/README.md").write_text("text")
    listing = list_inputs([f"{tmp_path}/tars"])
    assert [item.id for item in listing.items] == [f"{tmp_path}/tars/{number}.tar/{number}.jpg" for number in range(2)]
    assert describe(listing) == "1 beside archives or Parquet files"
    (tmp_path / "tars/x.jpg").write_bytes(PHOTO)
    assert list(list_answers(f"{tmp_path}/tars")) == [
        f"{tmp_path}/tars/{name}" for name in ("0.tar", "1.tar", "README.md", "x.jpg")
    ]

    (tmp_path / "hub/data").mkdir(parents=True)
    put_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", image=[{"bytes": PHOTO, "path": "a.jpg"}], label=[1])
    listing = list_inputs([f"{tmp_path}/hub"], [])
    assert list(read_items(listing.items, {})) == [Request("a.jpg", PHOTO)]


@pytest.mark.parametrize("images", ["path", "image"])
def test_ids_of_parquet_may_be_numbers_0_too(folder, images):
    column = ["a.jpg"] * 3 if images == "path" else [{"bytes": PHOTO, "path": "a.jpg"}] * 3
    table = folder / "x.parquet"
    for ids, expected in (([0, 1, 2], ["0", "1", "2"]), ([0.0, 1.5, None], ["0", "1.5", "a.jpg"])):
        pq.write_table(pa.table({images: column, "metadata": ids}), table)
        assert [item.id for item in list_inputs([str(table)], []).items] == expected


def test_what_requests_have_and_the_model_does_not_take_is_named(folder):
    requests = [Request(name, PHOTO, {"camera ": "x", "camera": "y", "width": 8}) for name in "ab"]
    for kind, suffix in SUFFIXES.items():
        path = folder / f"asked{suffix}"
        write_requests(requests, path, kind)
        unused = {}
        assert list(read_items(list_inputs([str(path)]).items, {"camera": "string"}, unused)) == requests
        assert list(unused) == ["camera "]


def put_parquet(path: Path, /, **columns: list) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_parquet_with_images_asks_with_its_columns_labelled_or_not(tmp_path):
    images = [{"bytes": PHOTO, "path": "d/a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": PHOTO, "path": None}]
    side = {"iso": [100, 200, 300], "weight": [None, 1.5, 2.5]}
    plain = put_parquet(tmp_path / "x.parquet", image=images, **side)
    labelled = put_parquet(tmp_path / "y.parquet", image=images, label=["x", None, None], **side)
    for table in (plain, labelled):
        listing = list_inputs([table], ["iso", "weight"])
        first, second, third = read_items(listing.items, TYPES)
        assert first == Request("d/a.jpg", PHOTO, {"iso": 100, "weight": None})
        assert second == Failure("b.jpg", "line 2: no bytes of the image in the file")
        assert third == Request(f"{table}/3", PHOTO, {"iso": 300, "weight": 2.5})
    assert describe(listing) == "columns that the model does not take: label"
    kept = [item.kept for item in list_inputs([labelled], [], keep=True).items]
    assert kept[0] == {"label": "x", "iso": 100, "weight": None}


def test_rows_of_parquet_with_images_are_known_again_by_their_content(tmp_path):
    images = [{"bytes": PHOTO, "path": name} for name in ("a.jpg", "b.jpg", "a.jpg", None)]
    table = put_parquet(tmp_path / "x.parquet", image=images, metadata=["1", None, "1", None])
    keys = {item.key: item.id for item in list_inputs([table], []).items}
    assert list(keys.values()) == ["1", "b.jpg", "1", f"{table}/4"]
    put_parquet(tmp_path / "x.parquet", image=[images[1], *images[:3:2]], metadata=[None, "1", "1"])
    again = {item.key: item.id for item in list_inputs([table], []).items}
    assert again.keys() < keys.keys()
    assert list(again.values()) == ["b.jpg", "1", "1"]


def test_parquet_with_images_without_a_feature_of_the_model_is_refused_at_once(tmp_path):
    table = put_parquet(tmp_path / "x.parquet", image=[{"bytes": PHOTO, "path": None}], iso=[1])
    with pytest.raises(IngestError, match="no column 'camera' with text or numbers, only iso"):
        list_inputs([table], ["camera", "iso"])


def list_answers(*names: str) -> dict[str, str]:
    """By id, "asked" or why not."""
    answers = read_items(list_inputs(names).items, {})
    return {answer.id: "asked" if isinstance(answer, Request) else answer.error for answer in answers}


def test_an_export_asks_about_the_images_that_it_names_labelled_or_not(folder):
    images = [{"id": number, "file_name": name} for number, name in enumerate(["a.jpg", "c", "gone.jpg", "../z", ""])]
    images += [{"id": 0, "file_name": "sub/g.jpeg"}, {"file_name": "link/z.jpg"}, {"id": 9, "file_name": "x.npz"}]
    coco = {"images": images, "annotations": [{"image_id": 0, "category_id": 7}], "categories": []}
    (folder / "coco.json").write_text(json.dumps(coco))
    assert list_answers(f"{folder}/coco.json") == {
        "a.jpg": "asked",
        "c": "asked",
        "gone.jpg": "line 3: No such file or directory",
        "../z": f"{folder}/coco.json, image 4: its path leaves the folder of the file (../z)",
        f"{folder}/coco.json/5": f"{folder}/coco.json, image 5: no name of the image",
        "sub/g.jpeg": "asked",
        "link/z.jpg": "asked",
        "x.npz": "line 8: No such file or directory",
    }


def test_tasks_of_label_studio_are_asked_about_whatever_their_annotators_say(folder):
    cat, dog = ({"result": [{"type": "choices", "value": {"choices": [name]}}]} for name in ("cat", "dog"))
    tasks = [
        {"data": {"image": "a.jpg"}, "annotations": [cat]},
        {"data": {"image": "/data/local-files/?d=photos/sub/g.jpeg"}, "annotations": [cat, dog]},
        {"data": {"image": "b.jfif"}},
        {"data": {"image": "c"}, "annotations": [7]},
        {"data": {"image": "https://example.com/d.jpg"}, "annotations": []},
        {},
    ]
    (folder / "Tasks.JSON").write_text(json.dumps(tasks))
    assert list_answers(f"{folder}/T*.JSON") == {
        "a.jpg": "asked",
        "/data/local-files/?d=photos/sub/g.jpeg": "asked",
        "b.jfif": "asked",
        "c": "asked",
        "https://example.com/d.jpg": f"{folder}/Tasks.JSON, image 5: on the web, which is not read: download it "
        "(https://example.com/d.jpg)",
        f"{folder}/Tasks.JSON/6": f"{folder}/Tasks.JSON, image 6: no name of the image",
    }
    keys = [item.key for item in list_inputs([f"{folder}/Tasks.JSON"]).items]
    (folder / "Tasks.JSON").write_text(json.dumps([{"data": {"image": "b.jfif"}}, *tasks, tasks[0]]))
    again = [item.key for item in list_inputs([f"{folder}/Tasks.JSON"]).items]
    assert len(set(again)) == 8
    assert set(again) > set(keys)  # a later run asks about the new ones alone


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tar", ".zip", ".parquet", ".json", ".npz", ".jpg"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (answer,) = read_items(list_inputs([f"{tmp_path}/pipe{suffix}"]).items, {})
    assert isinstance(answer, Failure)
    assert "not an ordinary file" in answer.error


def test_json_that_is_no_export_costs_itself_alone(folder):
    (folder / "a.jpg.json").write_text('{"title": "a.jpg", "views": 3}')  # as Google Takeout writes them
    (folder / "bad.json").write_text('[{"data": {"image": "c"}}')
    answers = list_answers(f"{folder}/a*", f"{folder}/bad.json")
    assert [*answers.values()][::2] == ["asked", "asked"]
    assert "is neither COCO's JSON" in answers[f"{folder}/a.jpg.json"]
    assert "can't be read as JSON" in answers[f"{folder}/bad.json"]
    listing = list_inputs([str(folder)])
    assert "3 tables, exports or files of requests" in describe(listing)
