"""The server of the page for labels: what it shows, writes and refuses."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from imagepipe.base.decisions import Decision, append_decision, parse_decision, read_decisions
from imagepipe.base.errors import ModelError
from imagepipe.capture.files import write_rows
from pipeline.labelling import server
from pipeline.labelling.capture_work import read_capture_work
from pipeline.labelling.class_names import AnsweredScores
from pipeline.labelling.work import Item, Ledger, Queue, Work

HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]


def make_work(folder, task="classification", label="daisy") -> Work:
    folder.mkdir(exist_ok=True)
    for number, sha256 in enumerate(HASHES):
        (folder / sha256).write_bytes(bytes([number]))
    guesses = (("roses", 0.9), ("daisy", 0.1))
    items = [Item(sha256, f"daisy/{n}.jpg", label, guesses, "looks odd", "run-1") for n, sha256 in enumerate(HASHES)]
    queue = Queue("errors", "Likely label errors", "Odd ones.", items)
    return Work("run-1", task, ["daisy", "roses"], [queue], folder, originals={HASHES[5]})


@pytest.fixture
def client(tmp_path) -> TestClient:
    app = server.make_app(make_work(tmp_path / "pictures"), tmp_path / "labels.jsonl", "ann")
    return TestClient(app, base_url="http://127.0.0.1")


def decide(client, sha256, **values):
    return client.post("/decisions", json={"sha256": sha256, **values})


def list_lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]


def test_a_decision_is_a_line_with_what_was_known_of_the_image(client, tmp_path):
    answer = decide(client, HASHES[0], label="roses")
    assert answer.json() == {"seen": 1, "decided": {HASHES[0]: {"label": "roses", "by": "ann"}}}
    (line,) = list_lines(tmp_path)
    assert line.pop("at")[:2] == "20"
    assert line == {
        "sha256": HASHES[0], "metadata": "daisy/0.jpg", "label": "roses", "was": "daisy", "by": "ann",
        "model": "run-1", "source": "run-1",
    }  # fmt: skip
    assert decide(client, HASHES[0], label="roses").json()["seen"] == 1  # as when the answer got lost
    decide(client, HASHES[1], label=None, by="bob")
    decide(client, HASHES[0], undone=True)
    assert client.get("/decisions?since=1").json() == {
        "seen": 3,
        "decided": {HASHES[1]: {"label": None, "by": "bob"}, HASHES[0]: None},
    }
    assert read_decisions(str(tmp_path / "labels.jsonl")).newest.keys() == {HASHES[1]}
    assert not (tmp_path / "labels.images").exists()
    decide(client, HASHES[5], label="tulips")
    assert (tmp_path / "labels.images" / HASHES[5]).read_bytes() == bytes([5])
    assert client.get("/work").json()["classes"] == ["daisy", "roses", "tulips"]


def test_what_another_process_decides_is_seen(client, tmp_path):
    other = TestClient(
        server.make_app(make_work(tmp_path / "pictures"), tmp_path / "labels.jsonl", "bob"), base_url="http://127.0.0.1"
    )
    decide(client, HASHES[0], label="roses")
    decide(other, HASHES[0], label="daisy")
    decide(other, HASHES[1], label="daisy")
    assert client.get("/decisions").json()["decided"] == {
        sha256: {"label": "daisy", "by": "bob"} for sha256 in HASHES[:2]
    }
    assert len(list_lines(tmp_path)) == 3


@pytest.mark.parametrize("way", ["removed", "emptied", "replaced"])
def test_a_file_that_is_another_one_by_now_is_read_again(client, tmp_path, way):
    labels = tmp_path / "labels.jsonl"
    decide(client, HASHES[0], label="roses")
    decide(client, HASHES[1], label="roses")
    if way == "removed":
        labels.unlink()
    else:
        labels.write_bytes(b"")
    if way == "replaced":  # by a longer one
        for sha256 in HASHES[2:]:
            append_decision(labels, Decision(sha256, "daisy", by="bob", at="2026-11-01"))
    now = client.get("/decisions?since=2").json()
    bob = {"label": "daisy", "by": "bob"}
    assert now["decided"] == {
        sha256: bob if way == "replaced" and number > 1 else None
        for number, sha256 in enumerate(HASHES)
        if way == "replaced" or number < 2
    }
    answer = decide(client, HASHES[0], label="roses", seen=now["seen"])
    assert answer.json()["decided"] == {HASHES[0]: {"label": "roses", "by": "ann"}}
    assert read_decisions(str(labels)).newest[HASHES[0]].label == "roses"


def test_an_undo_leaves_the_decisions_of_others(client, tmp_path):
    decide(client, HASHES[0], label="roses")
    decide(client, HASHES[0], label="daisy", by="bob")
    assert decide(client, HASHES[0], undone=True).json()["decided"] == {HASHES[0]: {"label": "daisy", "by": "bob"}}
    assert read_decisions(str(tmp_path / "labels.jsonl")).newest[HASHES[0]].by == "bob"
    decide(client, HASHES[0], undone=True)  # there is none of hers any more
    decide(client, HASHES[1], undone=True)
    assert len(list_lines(tmp_path)) == 3
    decide(client, HASHES[0], label="roses")
    assert decide(client, HASHES[0], undone=True).json()["decided"] == {HASHES[0]: {"label": "daisy", "by": "bob"}}


@pytest.mark.parametrize(
    "body",
    [
        {"sha256": "0" * 64, "label": "a"},
        {"sha256": HASHES[0]},
        {"sha256": HASHES[0], "label": ""},
        {"sha256": HASHES[0], "label": 3},
        {"sha256": HASHES[0], "label": ["daisy"]},
        {"sha256": HASHES[0], "label": "a\nb"},
        {"sha256": HASHES[0], "label": "x" * 201},
        {"sha256": [HASHES[0]], "label": "a"},
        [],
        "x",
        {"sha256": HASHES[0], "label": "a", "seen": float("inf")},
        {"sha256": HASHES[0], "label": "a", "seen": float("nan")},
    ],
)
def test_what_is_no_decision_is_refused_and_writes_nothing(client, tmp_path, body):
    content = json.dumps(body).replace("Infinity", "1e999")
    headers = {"Content-Type": "application/json"}
    assert client.post("/decisions", content=content, headers=headers).status_code == 400
    assert not (tmp_path / "labels.jsonl").exists()


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(client, tmp_path):
    body = json.dumps({"sha256": HASHES[0], "label": "roses"})
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert client.post("/decisions", content=body, headers=headers).status_code == 403
    assert client.post("/decisions", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/decisions", json={"sha256": HASHES[0], "label": "x" * 2**17}).status_code == 413
    for path in ("/work", "/decisions", f"/images/{HASHES[0]}"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400
    assert not (tmp_path / "labels.jsonl").exists()
    image = client.get(f"/images/{HASHES[0]}")
    assert (image.content, image.headers["content-type"]) == (bytes([0]), "application/octet-stream")
    assert image.headers["x-content-type-options"] == "nosniff"
    assert [client.get(f"/images/{name}").status_code for name in ("..%2flabels.jsonl", "x")] == [404, 404]


def test_several_labels_and_numbers(tmp_path):
    assert server.read_label(["b", "a", "b "], "multilabel") == ["a", "b"]
    assert server.read_label(3, "regression") == 3.0
    for value, task in (([], "multilabel"), ("a", "multilabel"), (["a", 1], "multilabel"), ("3", "regression")):
        with pytest.raises(ValueError, match="the label has to be"):
            server.read_label(value, task)
    with pytest.raises(ValueError, match=r"holds a \|, which separates several"):
        server.read_label(["a|b"], "multilabel")
    assert server.read_label("a|b", "classification") == "a|b"
    for value in (True, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a number"):
            server.read_label(value, "regression")


def capture(folder, **columns) -> None:
    rows = [
        {"time": datetime(2026, 11, 29, 9, number, tzinfo=UTC), "request_id": "r", "metadata": f"id-{number}".encode(),
         "version": "7", **dict(zip(columns, values, strict=True))}
        for number, values in enumerate(zip(*columns.values(), strict=True))
    ]  # fmt: skip
    write_rows(str(folder), rows, "one")


def test_a_capture_has_queues_of_uncertain_and_novel_images(tmp_path):
    scores = [[0.9, 0.1], [0.45, 0.55], [0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.49, 0.51]]
    capture(
        tmp_path / "capture",
        classes=scores,
        label=["cat", "dog", "cat", "dog", "cat", "dog"],
        novelty=[0.99, 0.2, None, 0.96, None, None],
        sha256=[*HASHES[:4], HASHES[2], HASHES[1]],
        image=[bytes([0]), b"a thumbnail", None, bytes([3]), None, None],
        shadow=[False, None, False, False, False, True],  # what the served model did not say
    )
    (tmp_path / "pictures").mkdir()
    work = read_capture_work(str(tmp_path / "capture"), tmp_path / "pictures")
    assert [queue.name for queue in work.queues] == ["uncertain", "novel"]
    assert [item.sha256 for item in work.queues[0].items] == [HASHES[1], HASHES[3], HASHES[0]]
    assert [item.id for item in work.queues[1].items] == ["id-3", "id-0"]  # the newest first
    first = work.queues[0].items[0]
    assert [(name, round(score, 2)) for name, score in first.guesses] == [("dog", 0.55), ("cat", 0.45)]
    assert (work.task, work.classes, work.originals) == ("classification", ["cat", "dog"], {HASHES[0], HASHES[3]})
    assert "Of 1 images the capture has no picture" in work.notes[0]
    assert "Of 1 images the capture has a thumbnail only" in work.notes[1]
    with pytest.raises(ModelError, match="neither runs nor captured answers"):
        read_capture_work(str(tmp_path), tmp_path / "pictures")


def test_an_image_that_is_asked_about_all_the_time_takes_no_place_from_others(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.labelling.capture_work.MAX_ITEMS", 2)
    scores = [[0.5, 0.5]] * 20 + [[0.45, 0.55], [0.4, 0.6], *([1 - n / 100, n / 100] for n in range(11))]
    hashes = [HASHES[0]] * 20 + HASHES[1:3] + [f"{number:064x}" for number in range(11)]
    capture(tmp_path / "capture", classes=scores, label=["a"] * 33, sha256=hashes, image=[b"a"] * 33)
    (tmp_path / "pictures").mkdir()
    work = read_capture_work(str(tmp_path / "capture"), tmp_path / "pictures")
    assert [item.sha256 for item in work.queues[0].items] == HASHES[:2]


def test_what_no_json_can_carry_is_not_shown(client, tmp_path):
    nan = float("nan")
    scores = [[0.6, 0.4], [nan, nan], [0.4, 0.6]]
    capture(tmp_path / "capture", classes=scores, label=["a", "b", "b"], sha256=HASHES[:3], image=[b"a"] * 3)
    (tmp_path / "captured").mkdir()
    work = read_capture_work(str(tmp_path / "capture"), tmp_path / "captured")
    assert [item.sha256 for item in work.queues[0].items] == [HASHES[0], HASHES[2]]
    line = {"sha256": HASHES[0], "label": "roses", "by": "\ud800", "metadata": "\ud800"}
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps(line | more) + "\n" for more in ({}, {"label": nan}, {"label": "\ud800"}))
    )
    assert client.get("/decisions").json()["decided"] == {HASHES[0]: {"label": "roses", "by": "?"}}
    assert client.get("/work").json()["classes"] == ["daisy", "roses"]


def test_a_capture_has_a_queue_of_what_the_version_in_shadow_answers_otherwise(tmp_path):
    folder = tmp_path / "capture"
    live = [[0.9, 0.1], [0.1, 0.9]] * 2
    capture(folder, classes=live, label=["cat", "dog"] * 2, sha256=HASHES[:4], image=[b"a"] * 4)
    other = {"version": "8", "shadow": True}
    answers = ["cat", "cat", "bird", ""]
    shadows = [{"time": datetime(2026, 11, 29, 10, tzinfo=UTC), "classes": [0.1, 0.9], "label": label, "sha256": sha256}
               for label, sha256 in zip(answers, HASHES[:4], strict=True)]  # fmt: skip
    earlier = [row | {"version": "6", "shadow": True, "time": row["time"].replace(hour=8)} for row in shadows[:1]]
    earlier[0]["label"] = "dog"
    write_rows(str(folder), [row | other for row in shadows] + earlier, "two")
    (tmp_path / "pictures").mkdir()
    work = read_capture_work(str(folder), tmp_path / "pictures")
    (disputed,) = [queue for queue in work.queues if queue.name == "disputed"]
    assert [(item.sha256, item.why, item.model) for item in disputed.items] == [
        (HASHES[3], "version 8, in shadow, says nothing", "version 7"),
        (HASHES[2], "version 8, in shadow, says bird", "version 7"),
        (HASHES[1], "version 8, in shadow, says cat", "version 7"),
    ]
    assert work.classes == ["bird", "cat", "dog"]


def test_a_class_that_no_answer_has_named_can_not_be_taken_for_a_label(tmp_path):
    scores = [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.2, 0.7, 0.1]]
    labels = ["cat", "", "dog"]  # the second is too novel for a label (serving.unknown)
    capture(tmp_path / "one", classes=scores, label=labels, sha256=HASHES[:3], image=[b"a", b"b", b"c"])
    (tmp_path / "pictures").mkdir()
    work = read_capture_work(str(tmp_path / "one"), tmp_path / "pictures")
    names = {item.sha256: [name for name, _ in item.guesses] for item in work.queues[0].items}
    assert names == {HASHES[0]: ["cat", "dog"], HASHES[1]: [], HASHES[2]: ["dog", "cat"]}


def test_of_several_labels_with_own_thresholds_names_are_on_their_scores_and_the_answer_is_proposed(tmp_path):
    (tmp_path / "pictures").mkdir()
    # Of night, rain and sun, from 0.9, 0.2 and 0.5 on.
    scores = [[0.6, 0.3, 0.1], [0.95, 0.4, 0.2], [0.1, 0.1, 0.9], [0.92, 0.1, 0.1], [0.85, 0.05, 0.3]]
    labels = ["rain", "night|rain", "sun", "night", ""]
    images = [bytes([number]) for number in range(5)]
    capture(tmp_path / "all", classes=scores, label=labels, sha256=HASHES[:5], image=images)
    work = read_capture_work(str(tmp_path / "all"), tmp_path / "pictures")
    items = {HASHES.index(item.sha256): item for item in work.queues[0].items}
    assert work.classes == ["night", "rain", "sun"]
    assert [name for name, _ in items[0].guesses] == ["night", "rain", "sun"]
    assert {number: item.answer for number, item in items.items()} == {
        0: ("rain",), 1: ("night", "rain"), 2: ("sun",), 3: ("night",), 4: (),
    }  # fmt: skip
    # Of these two answers nobody can tell which score is whose.
    capture(tmp_path / "few", classes=scores[:2], label=labels[:2], sha256=HASHES[:2], image=images[:2])
    work = read_capture_work(str(tmp_path / "few"), tmp_path / "pictures")
    assert work.classes == ["night", "rain"]
    assert {item.sha256: (item.guesses, item.answer) for item in work.queues[0].items} == {
        HASHES[0]: ((), ("rain",)), HASHES[1]: ((), ("night", "rain")),
    }  # fmt: skip


def test_of_many_different_answers_some_are_enough_for_the_names(monkeypatch):
    monkeypatch.setattr("pipeline.labelling.class_names._MAX_TEXTS", 2)
    answers = AnsweredScores()
    for text, scores in (
        ("a", [0.9, 0.1, 0.1]),
        ("b", [0.1, 0.2, 0.1]),
        ("a|c", [0.8, 0.3, 0.7]),
        ("a", [0.7, 0.1, 0]),
    ):
        answers.add(text, scores)
    assert (answers.name_places("multilabel"), answers.texts) == ({0: "a", 1: "b"}, {"a", "b", "a|c"})


def test_a_class_whose_name_holds_a_bar_is_named(tmp_path):
    scores, labels = [[0.6, 0.4], [0.3, 0.7]], ["a|b", "c"]
    capture(tmp_path / "one", classes=scores, label=labels, sha256=HASHES[:2], image=[b"a", b"b"])
    (tmp_path / "pictures").mkdir()
    work = read_capture_work(str(tmp_path / "one"), tmp_path / "pictures")
    assert work.classes == ["a|b", "c"]
    assert [item.guesses[0][0] for item in work.queues[0].items] == ["a|b", "c"]


def test_threads_that_look_at_once_read_each_line_once(tmp_path, monkeypatch):
    def parse(line):
        time.sleep(0.001)  # another thread's turn
        return parse_decision(line)

    monkeypatch.setattr("pipeline.labelling.work.parse_decision", parse)
    ledger = Ledger(tmp_path / "labels.jsonl", make_work(tmp_path / "pictures"))
    for number in range(20):
        append_decision(tmp_path / "labels.jsonl", Decision(f"{number:064x}", "a"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ledger.refresh(), range(4)))
    assert ledger.changed == [f"{number:064x}" for number in range(20)]
