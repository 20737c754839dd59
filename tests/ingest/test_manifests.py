"""Manifests as people have them: separators, encodings, further columns at the edges, paths of Windows, Parquet."""

import codecs
import csv
import datetime
import gzip
import io
import json
import re
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagepipe.base.errors import IngestError
from imagepipe.ingest import delimited, manifests
from imagepipe.ingest.manifests import read_manifest, read_table

ROWS = [("img/cat 1.jpg", "cat", "1.5"), ("img/dog_2.jpg", "a dog", "-2")]


def lines(separator=",", header="path,label,weight", end="\n", index=None, tail=""):
    rows = [header.split(","), *ROWS]
    numbered = [
        [*([] if index is None else [str(n - 1) if n else ""]), *row] for n, row in enumerate(rows, start=index or 0)
    ]
    return end.join(separator.join(row) + tail for row in numbered) + end


DIALECTS = {
    "commas": lines().encode(),
    "semicolons": lines(";").encode(),
    "tabs": lines("\t").encode(),
    "Excel's sep": b"sep=;\r\n" + lines(";", end="\r\n").encode(),
    "old Mac": lines(end="\r").encode(),
    "UTF-8 with BOM": codecs.BOM_UTF8 + lines().encode(),
    "UTF-16": lines().encode("utf-16"),
    "UTF-16, big": codecs.BOM_UTF16_BE + lines(end="\r\n").encode("utf-16-be"),
    "UTF-16 without BOM": lines().encode("utf-16-le"),
    "UTF-16 with tabs, as Excel's Unicode text": lines("\t", end="\r\n").encode("utf-16"),
    "UTF-32": lines().encode("utf-32"),
    "pandas' index": lines(index=0).encode(),
    "R's row names": lines(index=1).encode(),
    "pandas' index, written twice": lines(index=0).replace(",path", "Unnamed: 0,path", 1).encode(),
    "trailing commas": lines(tail=",,").encode(),
    "trailing commas below the header": lines().replace("\n", ",\n").replace("weight,", "weight").encode(),
    "empty rows at the end, as Excel has them": lines(";").encode() + b";;\n;;\n",
    "blank lines above": b"\n , ,\n" + lines().encode(),
    "blanks": lines(" , ").encode(),
    "capitals": lines(header="Path,LABEL,weight").encode(),
}


@pytest.mark.parametrize("data", DIALECTS.values(), ids=DIALECTS.keys())
def test_tables_are_read_as_programs_write_them(put, data):
    path = put("list.csv", data)
    rows = list(read_manifest(str(path), "classification"))
    assert [row["reason"] for row in rows] == [None, None]
    assert [(row["metadata"], *row["labels"], row["side"]["weight"]) for row in rows] == ROWS


def test_what_was_found_out_is_told(put):
    notes = []
    list(read_table(str(put("list.tsv", lines("\t", index=0).encode("utf-16"))), ("path",), notes.append))
    assert notes == [
        "list.tsv: columns separated by tabs, in UTF-16; the first column only numbers the rows, and is left out"
    ]


def test_rows_keep_their_lines_and_a_longer_one_is_refused(put):
    path = put("list.csv", b'sep=;\npath;label;;\na.jpg;x;;\nb.jpg;x;1;\nc.jpg\nd.jpg;"x\ny"\ne.jpg;x;;;;\n')
    rows = list(read_table(str(path), ("path", "label")))
    assert rows == [
        (3, {"path": "a.jpg", "label": "x"}),
        (4, "unreadable row: line 4: 3 columns, the header has 2"),
        (5, "unreadable row: line 5: 1 columns, the header has 2"),
        (6, {"path": "d.jpg", "label": "x\ny"}),
        (8, {"path": "e.jpg", "label": "x"}),
    ]


def test_quoted_values_may_hold_the_separator_blanks_before_them_and_ends_of_lines(put):
    path = put("list.csv", b'path, label, caption\r\na.jpg, cat, "a cat, sitting"\r\nb.jpg, dog, "two\r\nlines"\r\n')
    assert [cells["caption"] for _, cells in read_table(str(path), ("path",))] == ["a cat, sitting", "two\r\nlines"]


def test_blanks_after_quotes_are_as_if_they_were_not_there(put):
    rows = [b'"a.jpg" , "cat" ,"a ""b"" c" ', b'"b.jpg"\t,"dog"x, y', b'"c.jpg" ,dog,"open']
    path = put("list.csv", b'"path" ,"label" , "caption" \r\n' + b"\r\n".join(rows) + b"\r\n")
    read = list(read_table(str(path), ("path",)))
    assert read[0] == (2, {"path": "a.jpg", "label": "cat", "caption": 'a "b" c'})
    assert [(number, cells[:32]) for number, cells in read[1:]] == [
        (3, "unreadable row: line 3: ',' expe"),
        (4, "unreadable row: line 4: ',' expe"),
    ]


OPEN = "a quote opens in it that is not closed as it should be"


@pytest.mark.parametrize(
    "last",
    ["d.jpg,dog,x", 'd.jpg,dog,"a note"', '"d.jpg",dog,x', 'd.jpg,dog,5"', 'd.jpg",dog,x', 'd.jpg,"dog","two\nlines"'],
)
@pytest.mark.parametrize("first", ['"a.jpg,cat,x', 'a.jpg,"cat,x', 'a.jpg,cat,"x', 'a.jpg,"cat" x,y'])
def test_a_quote_that_is_not_closed_costs_its_own_line_only(first, last, put):
    def read(line):
        table = f"path,label,note\n{line}\nb.jpg,cat,x\nc.jpg,dog,y\n{last}\ne.jpg,dog,z\n"
        return list(read_table(str(put("list.csv", table.encode())), ("path",)))

    row, *others = read(first)
    assert row[0] == 2
    assert row[1].startswith("unreadable row: line 2: ")
    assert others == read("a.jpg,cat,x")[1:]
    assert len(others) == 4


def test_a_quote_that_is_never_closed_takes_neither_memory_nor_rows(put, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_LINE", 1000)
    lines = ["a.jpg,x", '"b.jpg,x', *["c.jpg,x"] * 600, '"d.jpg,x', "e.jpg,x"]
    path = put("list.csv", "\n".join(["path,label", *lines]).encode())
    rows = list(read_table(str(path), ("path",)))
    assert [number for number, _ in rows] == list(range(2, 2 + len(lines)))
    assert {number: cells for number, cells in rows if isinstance(cells, str)} == {
        number: f"unreadable row: line {number}: {OPEN}" for number in (3, 604)
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("length", [98, 99, 100, 101, 199, 200, 201, 250])
def test_a_line_that_is_too_long_costs_its_own_row_only(length, end, put, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_LINE", 100)
    lines = ["path,label", "a.jpg,x", f"b.jpg,{'x' * (length - 6)}", "", "c.jpg,x"]
    rows = dict(read_table(str(put("list.csv", end.join([*lines, ""]).encode())), ("path",)))
    assert "x" * 80 in rows[3]["label"] if length < 100 else rows[3].endswith("line 3: longer than 100 characters")
    del rows[3]
    assert rows == {number: {"path": f"{name}.jpg", "label": "x"} for number, name in ((2, "a"), (5, "c"))}


@pytest.mark.parametrize("line", ["a.jpg,x", 'a.jpg,5"'])
def test_a_quote_that_is_not_closed_in_the_header_is_one_short_message(line, put):
    table = 'path,"label\n' + "b.jpg,y\n" * 1000 + f"{line}\n"
    with pytest.raises(IngestError, match=r"its header row (can't be read|has more than one line)") as caught:
        list(read_table(str(put("list.csv", table.encode())), ("path",)))
    assert len(str(caught.value)) < 300


def test_messages_about_many_columns_are_short(put):
    for header, message in (
        (f"image,{'x,' * 9999}x", "these are none: 'x'"),
        (f"image,{','.join(map(str, range(9999)))}", "and 9,990 more"),
    ):
        with pytest.raises(IngestError, match=message) as caught:
            list(read_table(str(put("list.csv", f"{header}\n".encode())), ("path",)))
        assert len(str(caught.value)) < 500


def test_quotes_that_open_in_each_line_take_little_time(put):
    path = put("list.csv", b"path,label\n" + b'x","\n' * 100_000)
    start = time.process_time()
    rows = list(read_table(str(path), ("path",)))
    assert len(rows) == 100_000
    assert time.process_time() - start < 10  # were each read until its end: hours


def test_several_labels_may_be_a_list(put, tmp_path):
    text = [json.dumps({"path": "a.jpg", "label": label}) for label in (["b", 7, "b"], [], "b|c", [True], [["b"]])]
    rows = list(read_manifest(str(put("list.jsonl", "\n".join(text).encode())), "multilabel"))
    assert [row["labels"] for row in rows] == [["7", "b"], [], ["b", "c"], ["True"], []]
    assert [row["reason"] for row in rows][1:] == [
        "missing label", None, None, "label is neither text nor a number"
    ]  # fmt: skip
    table = write_parquet(tmp_path, path=["a.jpg", "b.jpg"], label=[["y", "x"], None])
    assert [row["labels"] for row in read_manifest(table, "multilabel")] == [["x", "y"], []]
    assert next(read_manifest(table, "classification"))["reason"] == "label is neither text nor a number"


def test_true_and_false_are_classes_as_a_csv_of_pandas_has_them(put, tmp_path):
    text = "".join(json.dumps({"path": "a.jpg", "label": label}) + "\n" for label in (True, False, None))
    table = write_parquet(tmp_path, path=["a.jpg"] * 3, label=[True, False, None])
    for manifest in (put("list.jsonl", text.encode()), table):
        rows = list(read_manifest(str(manifest), "classification"))
        assert [row["labels"] for row in rows] == [["True"], ["False"], []]


def test_a_table_of_another_encoding_says_how_to_save_it(put):
    path = put("list.csv", "path,label\na.jpg,café\nb.jpg,tea\n".encode("cp1252"))
    first, second = read_manifest(str(path), "classification")
    assert "not UTF-8, or damaged. Save the manifest as UTF-8, as by: iconv -f WINDOWS-1252 -t UTF-8" in first["reason"]
    assert (first["row"], second["labels"]) == (2, ["tea"])
    with pytest.raises(IngestError, match=r"in UTF-8.*Save the manifest as UTF-8, as by: iconv"):
        list(read_table(str(put("header.csv", "path,größe\n".encode("cp1252"))), ("path",)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("column", ["path", "label", "split", "camera"])
def test_bytes_that_are_no_text_in_the_tables_encoding_cost_their_row(column, encoding, put):
    good = {"path": "a.jpg", "label": "tea", "split": "", "camera": "y"}
    table = [good, {**good, column: "x\udcff"}, good]
    texts = {
        "list.csv": "".join(",".join(row) + "\n" for row in (good, *(row.values() for row in table))),
        "list.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table),
    }
    for name, text in texts.items():
        path = put(name, text.encode(encoding, "surrogateescape" if encoding == "utf-8" else "surrogatepass"))
        above, row, below = read_manifest(str(path), "classification")
        assert "unreadable row: not UTF-8" in row["reason"]
        assert above["labels"] == below["labels"] == ["tea"]


def test_paths_of_windows_are_read_where_there_are_such_files(put, tmp_path):
    put("img/cat/1.jpg", b"x")
    put("img/dog\\2.jpg", b"x")
    table = put(
        "list.csv", rb"path,label" + b"\nimg\\dog\\2.jpg,x\nimg\\cat\\1.jpg,x\nimg/dog\\2.jpg,x\nimg\\3.jpg,x\n"
    )
    rows = list(read_manifest(str(table), "classification"))
    assert [row["path"].removeprefix(f"{tmp_path}/") for row in rows][:2] == [r"img\dog\2.jpg", "img/cat/1.jpg"]
    assert [row["metadata"] for row in rows][1] == r"img\cat\1.jpg"


def test_numbers_of_json_keep_their_text_and_nan_is_no_value(put):
    text = """{"Path": " a.jpg ", "label": 7, "n": 1e3, "big": %s, "no": NaN, "none": null, "is": true}""" % (
        "9" * 5000
    )
    (row,) = read_manifest(str(put("list.jsonl", text.encode("utf-16"))), "classification")
    assert (row["metadata"], row["labels"]) == ("a.jpg", ["7"])
    assert row["side"] == {"n": "1e3", "big": "9" * 5000, "is": 1}


@pytest.mark.parametrize("label", ["007", "7.0", "no", "12:30", "0x1F", "1e3", "null", "NA", "NaN", "true", "1_0", "~"])
def test_a_label_stays_as_it_is_written(put, label):
    sources = [put("list.csv", f"path,label\na.jpg,{label}\n".encode())]
    sources.append(put("list.jsonl", json.dumps({"path": "a.jpg", "label": label}).encode()))
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [label]}), sources[0].with_name("list.parquet"))
    for source in [*sources, sources[0].with_name("list.parquet")]:
        assert [row["labels"] for row in read_manifest(str(source), "classification")] == [[label]]


def write_parquet(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "list.parquet", row_group_size=2)
    return str(tmp_path / "list.parquet")


def test_a_parquet_table_is_a_manifest(tmp_path):
    path = write_parquet(
        tmp_path,
        Path=["a.jpg", "b.jpg", "c.jpg", None],
        label=pa.array(["cat", "dog", None, "cat"]).dictionary_encode(),
        age=pa.array([1, None, 3, 4], pa.int64()),
        lat=[1.5, float("nan"), -2.0, 0.1],
        day=[datetime.date(2024, 1, 2)] * 4,
        __index_level_0__=[5, 6, 7, 8],
    )
    rows = list(read_manifest(path, "classification"))
    assert [(row["row"], row["reason"]) for row in rows] == [
        (1, None),
        (2, None),
        (3, "missing label"),
        (4, "unreadable row: no path"),
    ]
    assert rows[0]["side"] == {"age": 1, "lat": 1.5, "day": "2024-01-02"}
    assert rows[1]["side"] == {"day": "2024-01-02"}


def test_classes_and_splits_that_hugging_face_numbers_have_their_names(tmp_path):
    path = write_parquet(
        tmp_path,
        path=["a.jpg", "b.jpg", "c.jpg"],
        Label=[1, -1, 0],
        split=[0, 0, 1],
        kind=[1.0, None, 0.0],
        n=[0, 1, 2],
    )
    features = {
        "Label": {"names": ["cat", "007"]},
        "split": {"names": ["train", "test"]},
        "kind": {"names": ["x", "y"]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    rows = list(read_manifest(path, "classification"))
    assert [row["labels"] for row in rows] == [["007"], [], ["cat"]]
    assert [row["split"] for row in rows if not row["reason"]] == ["train", "test"]
    assert [row["side"] for row in rows if not row["reason"]] == [{"kind": "y", "n": 0}, {"kind": "x", "n": 2}]


def test_whole_numbers_that_parquet_has_as_floats_are_labels_and_groups_as_text(tmp_path):
    values = [1.0, float("nan"), 2.5, -0.0]
    path = write_parquet(tmp_path, path=["a.jpg", "b.jpg", "c.jpg", "d.jpg"], label=values, unit=values, n=values)
    rows = list(read_manifest(path, "classification", "unit"))
    assert [row["labels"] for row in rows] == [["1"], [], ["2.5"], ["0"]]
    assert [row["group"] for row in rows if not row["reason"]] == ["1", "2.5", "0"]
    assert rows[0]["side"] == {"n": 1.0}
    assert [row["labels"] for row in read_manifest(path, "regression", "unit")][::2] == [["1.0"], ["2.5"]]


def test_a_parquet_table_that_can_not_be_used_is_refused_by_name(tmp_path, put, monkeypatch):
    with pytest.raises(IngestError, match="can't be read as Parquet"):
        list(read_manifest(str(put("list.parquet", b"PAR1 and no more")), "classification"))
    with pytest.raises(IngestError, match=r"column 'box' holds list<.*neither text nor a number: leave it out"):
        list(read_manifest(write_parquet(tmp_path, path=["a"], label=["x"], box=[[1, 2]]), "classification"))
    with pytest.raises(IngestError, match=re.escape("rename 'image' to 'path'")):
        list(read_manifest(write_parquet(tmp_path, image=["a"], label=["x"]), "classification"))
    monkeypatch.setattr(manifests, "_MAX_PAGES", 1000)
    with pytest.raises(IngestError, match="Write it with smaller row groups"):
        list(read_manifest(write_parquet(tmp_path, path=["a" * 999, "b" * 999], label=["x", "y"]), "classification"))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(',;\t"\n \\'), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT).filter(lambda row: "".join(row).strip()), max_size=6),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    is_numbered=st.booleans(),
)
def test_what_pythons_csv_writes_is_read_back(rows, separator, encoding, end, quoting, is_numbered):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    table = [("path", "label", "größe"), *rows]
    writer.writerows(
        [str(number - 1) if number else "", *row] if is_numbered else row for number, row in enumerate(table)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        path.write_bytes(text.getvalue().encode(encoding))
        read = [cells for _, cells in read_table(str(path), ("path",))]
    assert read == [dict(zip(table[0], map(str.strip, row), strict=True)) for row in rows]


def test_a_path_of_windows_that_is_too_long_costs_its_row_only(put):
    put("x/1.jpg", b"data")
    long = "ab" * 200 + "\\1.jpg"
    table = put("list.csv", f"path,label\n{long},a\nx\\1.jpg,b\n".encode())
    assert [Path(row["path"]).name for row in read_manifest(str(table), "classification")] == [long, "1.jpg"]


def test_a_key_that_is_there_twice_in_a_line_makes_it_unreadable(put):
    text = b'{"path": "a.jpg", "label": "a", "label": "b"}\n{"path": "a.jpg", "label": "a"}\n'
    first, second = read_manifest(str(put("list.jsonl", text)), "classification")
    assert (first["reason"], second["reason"]) == ("unreadable row: the key 'label' is there twice", None)


@pytest.mark.parametrize("key", ["", "a\nb", "\ud800", "Path"])
def test_a_key_that_can_not_name_a_column_costs_its_line_only(key, put):
    good = {"path": "a.jpg", "label": "a"}
    bad = {"PATH" if key == "Path" else "path": "b.jpg", "label": "b", key: 1}
    text = "".join(json.dumps(row) + "\n" for row in (good, bad, good))
    rows = list(read_manifest(str(put("list.jsonl", text.encode())), "classification"))
    assert [row["labels"] for row in rows] == [["a"], [], ["a"]]
    assert rows[1]["row"] == 2
    assert rows[1]["reason"].startswith("unreadable row: every column needs a name of its own")


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv"])
def test_a_table_that_is_packed_is_refused_as_a_whole(put, name):
    for data, packed in ((gzip.compress(b"path,label\n"), "gzip"), (b"PK\3\4" + bytes(99), "ZIP")):
        with pytest.raises(IngestError, match=rf"{name} is packed by {packed}: unpack it first"):
            list(read_manifest(str(put(name, data)), "classification"))
