"""Columns of numbers with values that are missing, in manifests as R, pandas and spreadsheets write them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import IngestError
from imagepipe.ingest.command import ingest
from imagepipe.ingest.dataset import load
from pipeline.cli import app

MISSING = ["", "NA", "NaN", "nan", "null", "NULL", "None", "N/A", "n/a", "#N/A", "<NA>"]


@pytest.fixture
def grow(put, crops, records, tmp_path):
    """Ingests rows of new images with values of columns; returns the features of all records, by path."""
    images = iter(crops(60))

    def grow(name, **columns):
        lines = [",".join(["path", "label", *columns])]
        for number, values in enumerate(zip(*columns.values(), strict=True)):
            put(f"img/{name}{number}.jpg", next(images))
            lines.append(",".join([f"img/{name}{number}.jpg", "ab"[number % 2], *values]))
        ingest(put(f"{name}.csv", "\n".join(lines).encode()), tmp_path / "out", workers=1)
        by_path = {f["metadata"].bytes_list.value[0].decode(): f for _, f in records(tmp_path / "out").values()}
        return lambda column, kind: {
            path: list(getattr(f[column], f"{kind}_list").value) if column in f else [] for path, f in by_path.items()
        }

    return grow


def test_na_in_a_column_of_numbers_is_a_missing_value_and_text_elsewhere(grow, tmp_path, capsys):
    values = [str(n) for n in range(len(MISSING))]
    read = grow(
        "first",
        age=[*(f"{value}.5" for value in values[1:]), "3"],
        count=[*values[1:], "4"],
        gap=[*MISSING[:-1], "7"],
        country=["Chad", "NA", *["Peru"] * (len(MISSING) - 2)],
        empty=["", *["NA"] * (len(MISSING) - 1)],
    )
    features = load(str(tmp_path / "out")).features
    assert {name: features.get(name) for name in ("age", "count", "gap", "country", "empty")} == {
        "age": "float",
        "count": "int64",
        "gap": "int64",
        "country": "bytes",
        "empty": None,
    }
    gap = read("gap", "int64")
    assert [path for path, value in gap.items() if value] == [f"img/first{len(MISSING) - 1}.jpg"]
    assert read("country", "bytes")["img/first1.jpg"] == [b"NA"]
    assert "is text" not in capsys.readouterr().err


def test_a_dataset_with_whole_numbers_takes_missing_ones_and_pandas_spelling_of_the_others(grow, tmp_path):
    grow("first", age=["3", "4"], shop=["x", "y"])
    read = grow("second", age=["NA", "5.0"], shop=["NA", "1"])
    assert read("age", "int64") == {
        "img/first0.jpg": [3],
        "img/first1.jpg": [4],
        "img/second0.jpg": [],
        "img/second1.jpg": [5],
    }
    assert read("shop", "bytes")["img/second0.jpg"] == [b"NA"]
    with pytest.raises(IngestError, match=r"Column 'age' is int64 in the dataset, and line 3 has '5\.5' now"):
        grow("third", age=["1", "5.5", "many"], shop=["x", "x", "x"])
    grow("fourth", age=["NA", ""], shop=["x", "x"])
    assert load(str(tmp_path / "out")).features["age"] == "int64"


def test_a_value_that_makes_a_column_of_numbers_one_of_text_is_named_with_its_line(grow, tmp_path, capsys):
    grow("first", age=["3", "4", "unknown", "5", "NA"])
    assert load(str(tmp_path / "out")).features["age"] == "bytes"
    assert (
        "Column 'age' is text, as line 4 has 'unknown', though 3 of its values are numbers." in capsys.readouterr().err
    )


def test_a_number_that_32_bits_do_not_hold_is_named_and_not_written_as_infinity(grow):
    read = grow("first", largest=["3.4028235e38", "-3.4028235e38"], beyond=["1.5", "-1e39"])
    assert read("largest", "float")["img/first0.jpg"] == [float(np.finfo(np.float32).max)]
    assert read("beyond", "bytes")["img/first1.jpg"] == [b"-1e39"]
    grow("second", largest=["1", "2"], beyond=["1", "2"])
    with pytest.raises(IngestError, match=r"Column 'largest' is float in the dataset, and line 3 has '1e39' now"):
        grow("third", largest=["1", "1e39"])


def test_numbers_with_a_decimal_comma_are_named_with_the_remedy(grow, capsys):
    grow("first", price=['"3,5"', '"-10,25"', "NA", "4"], pair=['"1,2"', "x", "y", "z"])
    notes = capsys.readouterr().err
    assert "Column 'price' is text, as line 2 has '3,5', whose comma is no point." in notes
    assert "'pair'" not in notes


def test_a_class_by_a_name_for_missing_values_is_told(put, crops, tmp_path, capsys):
    for number, data in enumerate(crops(4)):
        put(f"{number}.jpg", data)
    rows = "0.jpg,NA\n1.jpg,NA\n2.jpg,Na\n3.jpg,\n"
    result = ingest(put("list.csv", f"path,label\n{rows}".encode()), tmp_path / "out", workers=1)
    assert (result.new, result.quarantined) == (3, 1)
    assert "2 images have the label 'NA', which is taken for a class of that name." in capsys.readouterr().err


def test_what_became_of_rows_is_told_as_json_by_reason(put, crops, tmp_path):
    for number, data in enumerate(crops(2)):
        put(f"{number}.jpg", data)
    source = put("list.csv", b"path,label\n0.jpg,a\n1.jpg,b\nnowhere.jpg,a\n2.jpg,\n")
    run = CliRunner().invoke(app, ["ingest", str(source), "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(run.stdout)["reasons"] == {"missing file": 1, "missing label": 1}
