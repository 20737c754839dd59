import json
import os
import re
from collections import Counter

import pytest

from imagepipe.base.errors import IngestError
from imagepipe.ingest import rows, sources


def read(path, task="classification"):
    return list(sources.read_rows(str(path), task, Counter()))


def reasons(path, task="classification"):
    return [(row["row"], row["reason"]) for row in read(path, task) if row["reason"]]


@pytest.fixture
def csv(put):
    return lambda text: put("set/list.csv", text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def jsonl(put):
    return lambda *rows: put("set/list.jsonl", "\n".join(map(json.dumps, rows)).encode())


def test_folder_labels_are_the_first_folder_and_the_order_is_sorted(put, tmp_path):
    for name in ("b/2.jpg", "a/sub/1.jpg", "a/0.jpg", "B/x y é.jpg"):
        put(f"set/{name}", b"x")
    rows = [(row["metadata"], row["labels"], row["path"], row["row"]) for row in read(tmp_path / "set")]
    assert rows == [
        (name, [label], str(tmp_path / "set" / name), None)
        for name, label in (("B/x y é.jpg", "B"), ("a/0.jpg", "a"), ("a/sub/1.jpg", "a"), ("b/2.jpg", "b"))
    ]


def test_every_file_of_a_folder_is_a_record_save_hidden_ones(put, tmp_path):
    for name in ("a/1.jpg", "a/notes.txt", "a/.DS_Store", ".git/config", "a/Thumbs.db", "top.jpg"):
        put(f"set/{name}", b"x")
    rows = {row["metadata"] or row["path"]: row["reason"] for row in read(tmp_path / "set")}
    assert rows == {"a/1.jpg": None, "a/notes.txt": None, str(tmp_path / "set/top.jpg"): "missing label"}


def test_links_to_folders_are_followed_once(put, tmp_path):
    put("elsewhere/1.jpg", b"x")
    put("set/b/2.jpg", b"x")
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/loop").symlink_to(tmp_path / "set")
    rows = {row["path"]: row["reason"] for row in read(tmp_path / "set")}
    assert rows == {
        str(tmp_path / "set/a/1.jpg"): None,
        str(tmp_path / "set/b/2.jpg"): None,
        str(tmp_path / "set/b/loop"): "folder that links to one above itself",
    }


def test_csv_paths_labels_and_further_columns(csv, tmp_path):
    path = csv(
        "\ufeffpath,label,price,shop\r\nan image.jpg,cat, 1.5 ,\r\n\r\n/abs/b.jpg,dog,,é\r\ngs://b/c.jpg,cat,2,x\r\n"
    )
    rows = [(row["path"], row["metadata"], row["labels"], row["side"], row["row"]) for row in read(path)]
    assert rows == [
        (str(tmp_path / "set/an image.jpg"), "an image.jpg", ["cat"], {"price": "1.5"}, 2),
        ("/abs/b.jpg", "/abs/b.jpg", ["dog"], {"shop": "é"}, 4),
        ("gs://b/c.jpg", "gs://b/c.jpg", ["cat"], {"price": "2", "shop": "x"}, 5),
    ]


def test_unreadable_csv_rows_are_reported_by_line_and_the_rest_is_read(csv):
    path = csv(
        b"path,label,n\na.jpg,x,1\nb.jpg,x\nc.jpg,x,1,2\n\xff.jpg,x,1\n,x,1\nd.jpg,,1\n"
        + b"e.jpg,x,"
        + b"1" * 2**18
        + b"\n"
        + b"f.jpg,x,2"
        + b"2" * 2**20
        + b"\ng.jpg,x,1\n"
        + b'h.jpg,"open,1\ni.jpg,x,1\n'
    )
    assert reasons(path) == [
        (3, "unreadable row: line 3: 2 columns, the header has 3"),
        (4, "unreadable row: line 4: 4 columns, the header has 3"),
        (5, "unreadable row: not UTF-8, or damaged. Save the manifest as UTF-8, as by: iconv -f WINDOWS-1252 -t UTF-8"),
        (6, "unreadable row: no path"),
        (7, "missing label"),
        (8, "unreadable row: line 8: field larger than field limit (131072)"),
        (9, "unreadable row: line 9: longer than 1,048,576 characters"),
        (11, "unreadable row: line 11: a quote opens in it that is not closed as it should be"),
    ]
    assert [row["metadata"] for row in read(path) if not row["reason"]] == ["a.jpg", "g.jpg", "i.jpg"]


def test_unreadable_json_lines_are_reported_by_line_and_the_rest_is_read(put):
    path = put(
        "list.jsonl",
        b'{"path": "a.jpg", "label": 3}\n{"path": \n[1]\n{"label": "x"}\n\n{"path": "b.jpg", "label": ["x"]}\n'
        b'{"path": "c.jpg", "label": "x", "box": [1]}\n{"path": "d.jpg", "label": "x", "n": Infinity}\n'
        b'{"path": "e.jpg", "label": null}\n' + b"[" * 100_000 + b"\n",
    )
    assert [(row, reason.partition(" (")[0].partition(": Exp")[0]) for row, reason in reasons(path)] == [
        (2, "unreadable row"),
        (3, "unreadable row: not a JSON object"),
        (4, "unreadable row: no path"),
        (6, "label is neither text nor a number"),
        (7, "unreadable row: column 'box' is neither text nor a number"),
        (8, "unreadable row: column 'n' is neither text nor a number"),
        (9, "missing label"),
        (10, reasons(path)[-1][1].partition(" (")[0]),
    ]
    assert [row["labels"] for row in read(path) if not row["reason"]] == [["3"]]


def test_multilabel_splits_at_bars(csv):
    path = csv("path,label\na.jpg,dog|cat| dog |\nb.jpg,|\nc.jpg,cat\n")
    assert [row["labels"] for row in read(path, "multilabel")] == [["cat", "dog"], [], ["cat"]]
    assert reasons(path, "multilabel") == [(3, "missing label")]


def test_regression_wants_finite_numbers(csv):
    path = csv("path,label\na.jpg,1.50\nb.jpg,-2e3\nc.jpg,many\nd.jpg,nan\ne.jpg,inf\nf.jpg,1_0\ng.jpg,1e39\n")
    assert [row["labels"] for row in read(path, "regression")][:2] == [["1.5"], ["-2000.0"]]
    assert [reason for _, reason in reasons(path, "regression")] == [
        f"label is not a number: {text}" for text in ("many", "nan", "inf", "1_0", "1e39")
    ]
    path = csv('path,label\na.jpg,"1,5"\nb.jpg,"1,5,0"\n')
    assert [reason for _, reason in reasons(path, "regression")] == [
        "label is not a number: 1,5 (write it with a point in place of the comma)",
        "label is not a number: 1,5,0",
    ]


ENDS_OF_LINES = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""All that ``str.splitlines`` takes for one."""


@pytest.mark.parametrize("character", [*ENDS_OF_LINES, "\t", "\x00", "\x7f", "\ufffd"])
def test_no_source_gives_a_label_with_a_control_character_or_an_end_of_a_line(csv, jsonl, put, tmp_path, character):
    label, wanted = f"golden{character}retriever", f"label can't name a class: 'golden.* \\(U\\+{ord(character):04X}\\)"
    sources_of_one = [csv(f'path,label\n1.jpg,"{label}"\n'), jsonl({"path": "1.jpg", "label": label})]
    if character != "\x00":  # which no folder's name can hold
        put(f"folder/{label}/1.jpg", b"x")
        sources_of_one.append(tmp_path / "folder")
    for source in sources_of_one:
        for task in ("classification", "multilabel"):
            ((_, reason),) = reasons(source, task)
            assert re.match(wanted, reason)


def test_blanks_and_ends_of_lines_around_a_label_are_cut_off(jsonl):
    rows = [{"path": "1.jpg", "label": f"{end}cat{end}"} for end in ENDS_OF_LINES]
    assert [row["labels"] for row in read(jsonl(*rows))] == [["cat"]] * len(rows)


def test_labels_that_differ_in_unicode_form_only_are_one(csv):
    assert [row["labels"] for row in read(csv("path,label\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\n"))] == [["café"]] * 2


@pytest.mark.parametrize(
    ("value", "type_", "as_feature"),
    [
        ("3", "int64", 3),
        ("-0", "int64", 0),
        (3, "int64", 3),
        ("9223372036854775807", "int64", 2**63 - 1),
        ("9223372036854775808", "bytes", b"9223372036854775808"),
        ("9" * 5000, "bytes", b"9" * 5000),
        ("007", "bytes", b"007"),
        ("1_000", "bytes", b"1_000"),
        ("1.5", "float", 1.5),
        ("1e3", "float", 1000.0),
        (2.5, "float", 2.5),
        ("nan", "bytes", b"nan"),
        (".", "bytes", b"."),
        ("é", "bytes", "é".encode()),
    ],
)
def test_side_feature_types(value, type_, as_feature):
    assert rows.infer_type(value) == type_
    assert rows.make_features({"column": value}, {"column": type_}) == {"column": [as_feature]}


def test_a_column_is_as_wide_as_its_widest_value():
    assert rows.widen("int64", "float") == "float"
    assert rows.widen("bytes", "int64") == "bytes"
    assert rows.make_features({"a": "3", "b": 1.5}, {"a": "float", "b": "bytes"}) == {"a": [3.0], "b": [b"1.5"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header row"),
        ("a.jpg,cat\n", "no column 'path'"),
        ("path,kind\na.jpg,x\n", "no column 'label'"),
        ("file_name,Class\n", r"rename 'file_name' to 'path' and 'Class' to 'label'"),
        ("path,label,width,input\na.jpg,x,1,2\n", "can't be called input or width"),
        ("path,label,image_size\na.jpg,x,1\n", "can't be called image_size"),
        ("path,label,a,a\n", "name of its own"),
        ("path,,label\n", "name of its own"),
        (",path,label\nan id,a.jpg,x\n", "name of its own"),
        ("Path,PATH,label\n", "name of its own"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(csv, text, message):
    with pytest.raises(IngestError, match=message):
        read(csv(text))


def test_json_columns_that_cannot_be_used_are_refused(jsonl):
    path = jsonl({"path": "a", "label": "x"}, {"path": "a", "label": "x", "sha256": "1"})
    with pytest.raises(IngestError, match=r"line 2: a column can't be called sha256"):
        read(path)


def test_sources_that_are_none_are_refused(put, tmp_path):
    with pytest.raises(IngestError, match="no such folder or file"):
        read(tmp_path / "nowhere")
    with pytest.raises(IngestError, match="neither a folder nor a manifest"):
        read(put("list.txt", b"x"))


def test_files_and_classes_whose_names_are_not_utf_8_are_refused_by_name(tmp_path):
    for folder in (b"/set/coffee", b"/set/caf\xe9"):
        os.makedirs(os.fsencode(tmp_path) + folder)  # noqa: PTH103 (bytes)
        with open(os.fsencode(tmp_path) + folder + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123
            file.write(b"x")
    rows = read(tmp_path / "set")
    assert [row["reason"] for row in rows] == [
        rf"name is not UTF-8, rename it: b'{folder}/caf\xe9.jpg'" for folder in (r"caf\xe9", "coffee")
    ]
    json.dumps(rows).encode()


def test_a_column_of_groups_is_told_from_those_after_it(csv):
    path = csv("path,label,patient,iso\na.jpg,x,p1,100\nb.jpg,x,p2,200\n")
    rows = list(sources.read_rows(str(path), "classification", Counter(), group="patient"))
    assert [(row["group"], row["side"]) for row in rows] == [("p1", {"iso": "100"}), ("p2", {"iso": "200"})]
