"""Damaged files of captured traffic: each command that reads them says which it is."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import ModelError
from imagepipe.capture.files import list_parts, write_rows
from imagepipe.monitoring.traffic import explain_damage
from pipeline.cli import app


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:-2000] = b"\xff" * len(content[4:-2000])
    path.write_bytes(content)


def write_foreign(path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"]}), path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), damage_pages, write_foreign])
@pytest.mark.parametrize(
    "command",
    [["label", "CAPTURE", "--port", "0"], ["feedback", "truth.csv", "CAPTURE"], ["compare", "CAPTURE", "1", "2"]],
)
def test_a_damaged_file_is_named(command, damage, tmp_path):
    folder = tmp_path / "traffic"
    rows = [
        {
            "time": datetime.now(UTC),
            "metadata": b"m",
            "version": "1",
            "label": "cat",
            "score": 0.9,
            "sha256": f"{n:064}",
        }
        for n in range(3000)
    ]
    write_rows(str(folder), [row | {"classes": [0.9, 0.1]} for row in rows], "p")
    (file,) = list_parts(str(folder))
    damage(Path(file))
    (tmp_path / "truth.csv").write_text("metadata,label\nm,cat\n")
    places = {"CAPTURE": str(folder), "truth.csv": str(tmp_path / "truth.csv")}
    result = CliRunner().invoke(app, [places.get(word, word) for word in command])
    assert isinstance(result.exception, SystemExit)
    text = "".join(result.output.split())
    assert "part-p.parquetisnofileofcapturedtraffic" in text


def test_a_file_that_can_not_be_reached_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError), explain_damage("x"):
        (tmp_path / "x").read_bytes()
    with pytest.raises(ModelError, match="x is no file"), explain_damage("x"):
        raise OSError("Couldn't deserialize thrift")
