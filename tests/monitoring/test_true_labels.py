"""Files of true labels: which are refused, how the others are read and compared with answers."""

import json
from datetime import UTC, datetime

import pytest

from imagepipe.base.errors import ModelError
from imagepipe.capture.files import write_rows
from imagepipe.monitoring.feedback import join_feedback, measure_error, read_truths
from imagepipe.monitoring.pairs import compare_versions


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("regression", "metadata,label\na,1\nb,nan\n", "row 2: label is not a number: nan"),
        ("regression", '{"metadata": "a", "label": true}\n', "row 1: label is not a number: True"),
        ("classification", "metadata,label\na,cat\nb,\n", "row 2: the label is empty"),
        ("classification", '{"metadata": "a", "label": NaN}\n', "row 1: the label is empty"),
        ("classification", '{"metadata": "a", "label": null}\n', "row 1: the label is empty"),
        ("classification", "metadata,label\na,  \n", "row 1: the label is empty"),
        ("classification", '{"metadata": "a", "label": ["x", "y"]}\n', "row 1: label is neither text nor a number"),
        ("classification", '[{"metadata": "a", "label": "x"}]\n', "is one JSON array"),
        ("classification", "metadata,request_id,label\n,r1,x\nm2,,x\n", "some rows have no 'metadata'"),
        ("classification", 'metadata,label\n"12 inch.jpg,x\nb,y\n', "is no CSV"),
        ("classification", 'metadata,label\n"12 inch.jpg,x\n' + "b,y\n" * 50_000, "is no CSV"),
    ],
)
def test_true_labels_that_can_not_be_are_refused_with_their_place(task, text, words, tmp_path):
    (tmp_path / "truth").write_text(text)
    with pytest.raises(ModelError, match=words):
        read_truths(str(tmp_path / "truth"), task)


def test_true_labels_are_known_by_the_column_that_all_rows_have(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("metadata,request_id,label\n,r1,x\nm2,r2,y\n")
    assert read_truths(str(file), "classification")[:2] == ("request_id", {"r1": "x", "r2": "y"})
    file.write_text('{"metadata": 0, "label": "x"}\n')
    assert read_truths(str(file), "classification")[:2] == ("metadata", {"0": "x"})
    file.write_text("metadata,label\na,\n")
    assert read_truths(str(file), "multilabel").labels == {"a": ""}  # of none of the classes


@pytest.mark.parametrize(
    ("task", "line", "label"),
    [
        ("classification", "m, daisy", "daisy"),
        ("classification", "m,rose\u0301", "ros\u00e9"),  # macOS decomposes accents
        ("classification", {"label": 7.0}, "7"),  # pandas
        ("multilabel", "m,rain | night", "night|rain"),
        ("multilabel", {"label": ["rain ", 7.0, None]}, "7|rain"),
        ("multilabel", "m, ", ""),
        ("regression", "m, 4.50", "4.5"),
    ],
)
def test_true_labels_are_read_by_the_rules_of_ingest(task, line, label, tmp_path):
    text = f"metadata,label\n{line}\n" if isinstance(line, str) else json.dumps({"metadata": "m"} | line)
    (tmp_path / "truth").write_text(text)
    assert read_truths(str(tmp_path / "truth"), task).labels == {"m": label}


def test_labels_of_a_model_are_compared_by_the_same_rules():
    for answer in ("ros\u00e9", "rose\u0301", " ros\u00e9"):  # classes of TFRecords made elsewhere
        assert measure_error(answer, 0.5, "ros\u00e9", "classification") == 0
    assert measure_error("rain|night", 0.5, "night|rain", "multilabel") == 0
    assert measure_error("rain", 0.5, "night|rain", "multilabel") == 1


@pytest.mark.parametrize(("label", "times"), [("Cat", 2), ("cat", 0)])
def test_true_labels_none_of_which_was_answered_are_told(label, times, tmp_path, capsys):
    capture, truth = str(tmp_path / "traffic"), str(tmp_path / "truth.csv")
    row = {"time": datetime.now(UTC), "metadata": b"m", "label": "cat", "score": 0.9, "sha256": "a"}
    write_rows(capture, [row | {"version": version} for version in "12"], "p")
    (tmp_path / "truth.csv").write_text(f"metadata,label\nm,{label}\n")
    join_feedback(truth, capture, "classification")
    compare_versions(capture, ("1", "2"), "classification", truth)
    assert capsys.readouterr().err.count("(Cat) is among the labels that were answered (cat)") == times


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_feedback_has_a_row_for_each_line_whatever_ends_it_and_whatever_is_in_it(end, tmp_path):
    ids = ("a\u2028b", "c\u0085d")  # at which str.splitlines would end a line
    for name, rows in (
        ("truth.jsonl", [json.dumps({"metadata": id_, "label": "x"}, ensure_ascii=False) for id_ in ids]),
        ("truth.csv", ["metadata,label", *(f"{id_},x" for id_ in ids)]),
    ):
        (tmp_path / name).write_bytes("".join(row + end for row in rows).encode())
        assert read_truths(str(tmp_path / name), "classification").labels == dict.fromkeys(ids, "x")
