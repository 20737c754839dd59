"""Recorded results and the page that is made from them."""

import ast
import importlib.util
import json

import pytest

from benchmarks import results
from benchmarks.results import Claim


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def record(
    monkeypatch, *options: str, claims: tuple[Claim, ...] = (Claim("a ratio", "0.90", "at least 0.5", True),)
) -> None:
    monkeypatch.setattr("sys.argv", ["ingest", "--repeats", "3", *options])
    arguments = results.make_parser("").parse_args(list(options))
    results.report(
        arguments, "ingest", ["benchmarks/ingest.py"], {"ratio": 0.9}, ["", "images/s"], [["ours", "9"]], list(claims)
    )


def test_a_result_is_recorded_with_commit_processor_and_date(folder, monkeypatch, capsys):
    record(monkeypatch, "--record")
    assert "a ratio: 0.90 (goal: at least 0.5)" in capsys.readouterr().out
    (row,) = results.read("ingest")
    assert row["commit"]
    assert row["processor"] == results.processor()
    assert row["date"][:2] == "20"
    assert row["command"] == "python -m benchmarks.ingest --repeats 3"
    assert row["claims"] == [{"what": "a ratio", "result": "0.90", "goal": "at least 0.5", "is_met": True}]
    assert row["figures"] == {"ratio": 0.9}


def test_without_the_option_nothing_is_recorded(folder, monkeypatch, capsys):
    record(monkeypatch, "--json")
    assert json.loads(capsys.readouterr().out) == {"benchmark": "ingest", "ratio": 0.9}
    assert not list(folder.iterdir())


def test_a_new_record_replaces_that_of_the_same_processor_only(folder, monkeypatch):
    record(monkeypatch, "--record")
    monkeypatch.setattr(results, "processor", lambda: "another")
    record(monkeypatch, "--record")
    record(monkeypatch, "--record", claims=(Claim("a ratio", "0.40", "at least 0.5", False),))
    assert [row["claims"][0]["result"] for row in results.read("ingest")] == ["0.90", "0.40"]


def test_the_page_marks_what_was_missed_and_what_is_older_than_the_code(folder, monkeypatch):
    record(monkeypatch, "--record", claims=(Claim("a ratio", "0.40", "at least 0.5", False),))
    assert "| a ratio | 0.40 **missed** | at least 0.5 |" in results.render_tables()
    assert "*older than the code*\n" not in results.render_tables()
    monkeypatch.setattr(results, "hash_code", lambda measures: "changed")
    assert f"commit {results.read('ingest')[0]['commit']}, *older than the code*" in results.render_tables()


def test_words_in_comments_and_docstrings_dont_make_a_record_older(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    code = tmp_path / "code.py"

    def hash_text(text: str) -> str:
        code.write_text(text)
        return results.hash_code(["code.py"])

    plain = hash_text("def double(x):\n    return 2 * x\n")
    assert hash_text('"""Module."""\ndef double(x):\n    """Doubles."""  # words\n    return 2 * x\n') == plain
    assert hash_text("def double(x):\n    return 3 * x\n") != plain


def test_every_recorded_benchmark_has_claims_and_what_it_measures_exists():
    for path in results.FOLDER.glob("*.json"):
        assert path.stem == "other" or importlib.util.find_spec(f"benchmarks.{path.stem}"), path
        for row in results.read(path.stem):
            assert row["claims"]
            assert " /" not in row.get("command", ""), path  # it can be called elsewhere
            assert all((results.ROOT / measured).exists() for measured in row["measures"])
    scripts = [path for path in results.FOLDER.parent.glob("*.py") if "\nMEASURES = " in path.read_text()]
    assert len(scripts) >= 10
    for path in scripts:
        (line,) = [line for line in path.read_text().splitlines() if line.startswith("MEASURES = ")]
        measures = ast.literal_eval(line.partition(" = ")[2])
        assert all((results.ROOT / measured).exists() for measured in measures), path
