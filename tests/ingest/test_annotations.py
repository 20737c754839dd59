"""COCO's and Label Studio's JSON: which image is of which class."""

import contextlib
import json
import tracemalloc
from collections import Counter

import pytest

from imagepipe.base.errors import IngestError
from imagepipe.ingest import json_items
from imagepipe.ingest.annotations import read_annotations
from imagepipe.ingest.json_items import read_items


@pytest.fixture
def read(put):
    """Path below the folder to labels or to the reason, of an export that is written into a folder."""

    def read(name, content, task="classification"):
        path = put(name, content if isinstance(content, bytes) else json.dumps(content).encode())
        folder = str(path.parent)
        passed_over = Counter()
        rows = list(read_annotations(str(path), task, passed_over))
        assert [row["row"] for row in rows] == list(range(1, len(rows) + 1))
        read.passed_over = passed_over
        return [(row["path"].removeprefix(f"{folder}/"), row["reason"] or row["labels"]) for row in rows]

    return read


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotate(*pairs):
    return [{"id": number, "image_id": image, "category_id": of} for number, (image, of) in enumerate(pairs)]


def test_coco_names_an_image_and_its_category(read, put):
    put("set/images/b.jpg", b"x")
    content = {
        "info": {"year": 2024},
        "annotations": annotate((10, 1), (10, 1), (11, 7), (12, 1), (12, 7), (13, 9), (99, 1)),
        "images": [{"id": 10 + number, "file_name": f"{name}.jpg"} for number, name in enumerate("abcde")],
        "categories": CATEGORIES,
    }
    assert read("set/labels.json", content) == [
        ("a.jpg", ["cat"]),
        ("images/b.jpg", ["dog"]),
        ("c.jpg", "several classes: cat, dog (--task multilabel takes them)"),
        ("d.jpg", "its category has no name in the file: 9"),
        ("e.jpg", "missing label"),
    ]
    assert read.passed_over == {"annotated images that are not listed": 1}
    assert read("set/labels.json", content, "multilabel")[2] == ("c.jpg", ["cat", "dog"])


def test_repeated_and_missing_ids_of_coco_cost_their_rows_and_are_counted(read):
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg"},
            {"id": 2, "file_name": "b.jpg"},
            {"id": 1, "file_name": "c.jpg"},
            {"id": 3, "file_name": "d.jpg"},
            {"id": 3, "file_name": "d.jpg"},
            {"file_name": "e.jpg"},
            7,
            {"id": 4.0, "file_name": "f.jpg"},
            {"id": 5, "file_name": ["g.jpg"]},
            {"id": 6, "file_name": "h.jpg"},
        ],
        "annotations": [
            *({**one, "id": 5} for one in annotate((1, 1), (2, 8), (3, 7), (4, 1), (6, 6))),
            {"image_id": 1},
            {"category_id": 7},
            None,
        ],
        "categories": [*CATEGORIES, {"id": 8, "name": "cat"}, {"id": 8, "name": "cow"}, {"id": 6}],
    }
    assert read("set/labels.json", content) == [
        ("a.jpg", "its id is that of other images too: 1"),
        ("b.jpg", "its category has several names: 8 is cat or cow"),
        ("c.jpg", "its id is that of other images too: 1"),
        ("d.jpg", ["dog"]),
        ("d.jpg", ["dog"]),
        ("e.jpg", "image without an id"),
        ("labels.json", "image without an id"),
        ("f.jpg", ["cat"]),
        ("labels.json", "no name of the image"),
        ("h.jpg", "its category has no name in the file: 6"),
    ]
    assert read.passed_over == {"annotations without an image or a category": 3}
    content |= {"categories": [*CATEGORIES, {"id": 9, "name": "dog"}], "annotations": annotate((4, 7), (4, 9))}
    assert read("set/labels.json", content)[7] == ("f.jpg", ["dog"])


def test_coco_images_lie_beside_its_folder_annotations(read, put):
    put("set/val2017/a.jpg", b"x")
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotate((1, 1)), "categories": CATEGORIES}
    ((path, labels),) = read("set/annotations/instances_val2017.json", content)
    assert path.endswith("set/val2017/a.jpg")
    assert labels == ["cat"]


def make_task(image, *choices, **annotation):
    result = [{"type": "choices", "from_name": "kind", "value": {"choices": list(choices)}}]
    return {"data": {"image": image}, "annotations": [{"result": result, **annotation}]}


def test_label_studio_names_an_image_by_what_it_calls_it(read, put):
    for name in ("a.jpg", "photos/b c.jpg", "upload/3/1a2b3c4d-d.jpg", "e.jpg"):
        put(f"set/{name}", b"x")
    tasks = [
        make_task("a.jpg", "cat"),
        make_task("/data/local-files/?d=project/photos/b%20c.jpg", "dog"),
        make_task("/data/upload/3/1a2b3c4d-d.jpg", "cat"),
        make_task("/data/upload/3/5a2b3c4d-e.jpg", "dog"),
        make_task("http://localhost:8080/data/local-files/?d=photos/b%20c.jpg", "dog"),
        make_task("missing.jpg", "dog"),
        make_task("x" * 5000, "dog"),
    ]
    assert read("set/export.json", tasks) == [
        ("a.jpg", ["cat"]),
        ("photos/b c.jpg", ["dog"]),
        ("upload/3/1a2b3c4d-d.jpg", ["cat"]),
        ("e.jpg", ["dog"]),
        ("photos/b c.jpg", ["dog"]),
        ("missing.jpg", ["dog"]),
        ("x" * 5000, ["dog"]),
    ]


@pytest.mark.parametrize("order", [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")])
def test_which_file_a_name_means_does_not_depend_on_the_images_before_it(order, read, put):
    for name in ("b.jpg", "images/a.jpg", "images/b.jpg"):
        put(f"set/{name}", b"x")
    images = [{"id": number, "file_name": name} for number, name in enumerate(order)]
    content = {"images": images, "annotations": annotate((0, 1), (1, 1)), "categories": CATEGORIES}
    assert sorted(read("set/coco.json", content)) == [("b.jpg", ["cat"]), ("images/a.jpg", ["cat"])]
    for name in ("p/q/c.jpg", "q/d.jpg", "d.jpg"):
        put(f"set/{name}", b"x")
    tasks = [make_task(f"/data/local-files/?d=p/q/{name}", "cat") for name in ("d.jpg", "c.jpg", "d.jpg")]
    assert read("set/export.json", tasks) == [(name, ["cat"]) for name in ("q/d.jpg", "p/q/c.jpg", "q/d.jpg")]


def test_annotators_that_disagree_and_cancelled_ones(read):
    one, other = make_task("a.jpg", "cat")["annotations"][0], make_task("a.jpg", "dog")["annotations"][0]
    tasks = [
        {"data": {"image": "a.jpg"}, "annotations": [one, one]},
        {"data": {"image": "b.jpg"}, "annotations": [one, other]},
        {"data": {"image": "c.jpg"}, "annotations": [one, {**other, "was_cancelled": True}]},
        {"data": {"image": "d.jpg"}, "completions": [other]},  # as earlier versions called them
        {"data": {"image": "e.jpg"}, "annotations": []},
        make_task("f.jpg", "cat", "dog"),
    ]
    assert read("set/export.json", tasks) == [
        ("a.jpg", ["cat"]),
        ("b.jpg", "annotators disagree: cat; dog"),
        ("c.jpg", ["cat"]),
        ("d.jpg", ["dog"]),
        ("e.jpg", "missing label"),
        ("f.jpg", "several classes: cat, dog (--task multilabel takes them)"),
    ]
    assert read("set/export.json", tasks, "multilabel")[5] == ("f.jpg", ["cat", "dog"])


def test_the_image_of_a_task_may_be_called_otherwise(read):
    (task,) = [make_task("a.jpg", "cat")]
    tasks = [
        {**task, "data": {"photo": "a.jpg", "note": "sunny"}},
        {**task, "data": {"photo": "/data/local-files/?d=b.JPG"}},
        {**task, "data": {"left": "a.jpg", "right": "b.jpg"}},
        {**task, "data": {"text": "sunny"}},
    ]
    assert read("set/export.json", tasks) == [
        ("a.jpg", ["cat"]),
        ("b.JPG", ["cat"]),
        *[("export.json", "not a task with an image under data, and annotations")] * 2,
    ]


def test_an_export_without_tasks_says_which_one_is_read(read):
    rows = [{"image": "/data/upload/3/1a2b3c4d-d.jpg", "id": 1, "choice": "cat"}]
    assert read("set/export.json", rows) == [("export.json", 'of an export as "JSON-MIN": export as "JSON"')]


def test_choices_of_several_controls_are_named(read):
    task = make_task("a.jpg", "cat")
    results = task["annotations"][0]["result"]
    results.append({"type": "choices", "from_name": "quality", "value": {"choices": ["blurry"]}})
    assert read("set/export.json", [task]) == [
        ("a.jpg", "several classes: blurry, cat, of the controls kind, quality (--task multilabel takes them)")
    ]


@pytest.mark.parametrize(
    "image",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/passwd",
        "/data/local-files/?d=../../etc/passwd",
        "file:///etc/passwd",
        "a\0b",
        "s3://somebodys/secret.jpg",
        "hdfs://10.0.0.5:8020/x.jpg",
    ],
)
def test_no_image_is_read_from_outside_of_the_folder(read, image):
    leaves = f"its path leaves the folder of the file ({image})"
    assert read("set/export.json", [make_task(image, "cat")]) == [("export.json", leaves)]
    content = {"images": [{"id": 1, "file_name": image}], "annotations": annotate((1, 1)), "categories": CATEGORIES}
    ((_, reason),) = read("set/coco.json", content)
    assert reason in (leaves, "missing label") or image.startswith("/data")


def test_images_on_the_web_are_not_read(read):
    ((_, reason),) = read("set/export.json", [make_task("https://example.com/a.jpg", "cat")])
    assert reason == "on the web, which is not read: download it (https://example.com/a.jpg)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read as JSON: it is cut short|'{' is expected"),
        (b"[", "can't be read as JSON"),
        (b'{"images": [', "can't be read as JSON"),
        (b'{"images": []', "can't be read as JSON: ',' is expected|cut short"),
        (b"[] []", "there is more after its end"),
        (b"[]", "lists no image"),
        (b"\xff\xfe\xff", "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b'{"features": []}', "neither COCO's JSON .* nor Label Studio's|lists no image"),
        (b'{"images": ["a.jpg"], "categories": [1]}', "its keys are categories, images"),
        (b'{"type": "FeatureCollection", "features": [1]}', "its keys are features, type"),
    ],
)
def test_json_that_is_no_export_is_one_message(read, content, message):
    with pytest.raises(IngestError, match=message):
        read("set/export.json", content)


@pytest.mark.parametrize("depth", [900, 950, 1000])
def test_values_that_are_deep_are_one_message_or_cost_their_row(depth, read):
    deep = "[" * depth + "]" * depth
    tasks = (
        f'{{"data": {{"image": {deep}}}, "annotations": []}}, {{"data": {{"image": "a.jpg"}}, "annotations": {deep}}}'
    )
    image = f'"images": [{{"id": 1, "file_name": {deep}}}, {{"id": {deep}, "file_name": "a.jpg"}}]'
    category = f'"categories": [{{"id": 1, "name": {deep}}}]'
    for content in (f"[{tasks}]", f'{{{image}, "annotations": [{deep}], {category}}}', f'{{"images": {deep}}}'):
        with contextlib.suppress(IngestError):  # by how deep Python reads
            assert all(isinstance(reason, str) for _, reason in read("set/export.json", content.encode()))


def test_rows_that_are_no_tasks_are_quarantined(read):
    tasks = [7, {}, {"data": {"image": 7}, "annotations": []}, {"data": {"image": "a.jpg"}, "annotations": [7]}]
    tasks += [{"data": {"image": "[::"}, "annotations": [{"result": [{"type": "choices"}]}]}, None, [[]]]
    assert {reason for _, reason in read("set/export.json", tasks)} == {
        "not a task with an image under data, and annotations",
    }


def test_numbers_are_no_classes(read):
    with pytest.raises(IngestError, match="classes, not numbers"):
        read("set/export.json", [make_task("a.jpg", "1")], "regression")


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_a_document_is_read_item_by_item_wherever_it_is_cut(chunk, put, monkeypatch):
    monkeypatch.setattr(json_items, "_CHUNK", chunk)
    content = {"a": [1, 23, -4.5e3, "é€😀", {"b": [1]}], "c": {"d": 12345}, "e": [], "f": [[]], "g": True, "h": 67}
    path = str(put("a.json", json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8-sig")))
    expected = [("a", item) for item in content["a"]]
    assert list(read_items(path)) == [*expected, ("c", {"d": 12345}), ("f", []), ("g", True), ("h", 67)]
    path = str(put("b.json", json.dumps(content["a"]).encode()))
    assert list(read_items(path)) == [("", item) for item in content["a"]]


def test_an_item_that_is_far_too_long_is_refused(put, monkeypatch):
    monkeypatch.setattr(json_items, "_MAX_ITEM", 1000)
    monkeypatch.setattr(json_items, "_CHUNK", 100)
    with pytest.raises(IngestError, match="more than 1,000 characters"):
        list(read_items(str(put("a.json", b'["' + b"x" * 10_000 + b'"]'))))


def test_a_path_of_thousands_of_folders_takes_little_memory(read):
    tracemalloc.start()
    try:
        read("set/export.json", [make_task("/data/local-files/?d=" + "a/" * 20_000 + "x.jpg", "cat")])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_an_export_in_a_store_names_images_in_its_bucket(memory):
    memory.put("exports/export.json", json.dumps([make_task(f"{memory.uri}/images/a.jpg", "cat")]).encode())
    (row,) = read_annotations(f"{memory.uri}/exports/export.json", "classification", Counter())
    assert (row["path"], row["reason"]) == (f"{memory.uri}/images/a.jpg", None)
