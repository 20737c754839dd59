import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imagepipe.deploy import storage
from imagepipe.deploy.saved_model import GRAPH
from imagepipe.serving import listing
from imagepipe.serving.types import Prediction
from pipeline import logs
from pipeline.cli import app, models, shared
from pipeline.runs.summary import Summary, write_summary
from tests.conftest import make_digit_images

runner = CliRunner()


def test_help_needs_nothing_heavy():
    heavy = "{'tensorflow', 'tfx', 'apache_beam', 'keras', 'pydantic', 'numpy'}"
    code = f"import sys, pipeline.cli; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


@pytest.mark.parametrize(
    "command",
    [
        "ingest",
        "init",
        "run",
        "runs",
        "predict",
        "requests",
        "clean",
        "batch-predict",
        "serve",
        "export",
        "demo",
        "train",
        "weights",
    ],
)
def test_every_command_has_help(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_wrong_use_is_a_message_with_status_2(tmp_path):
    for arguments in (
        ["run", str(tmp_path / "none.yaml")],
        ["init", str(tmp_path)],
        ["ingest", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
        ["ingest", str(tmp_path), "--out", str(tmp_path / "out"), "--splits", "80/20"],
        ["predict", str(tmp_path), "x.jpg"],
        ["predict", str(tmp_path)],
        ["predict", "--endpoint", "no url", "x.jpg"],
        ["batch-predict", str(tmp_path), "x.jpg", "--out", str(tmp_path / "out")],
        ["ingest", "a", "b", "--out", str(tmp_path / "out")],  # what a shell makes of a pattern without quotes
        ["export", str(tmp_path), "--out", str(tmp_path / "x.tflite")],
        ["requests", str(tmp_path), "--out", str(tmp_path / "x.jsonl")],
        ["requests", "x.jpg", "--format", "npy", "--out", str(tmp_path / "x.jsonl")],
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x.yaml", "--workdir", "s3://bucket/work"],
        ["run", "s3://bucket/x.yaml"],
        ["runs", "s3://bucket/work"],
        ["demo", "--workdir", "gs://bucket/demo"],
        ["requests", "x.jpg", "--out", "file:///x.jsonl"],
        ["dashboard", "--export", "s3://bucket/pages"],
        ["export", "runs/x", "--format", "saved_model", "--out", "s3://bucket/m"],
        ["export", "runs/x", "--format", "onnx", "--out", "s3://bucket/m.onnx"],
        ["track", "runs/x", "s3://bucket/runs/y"],
    ],
)
def test_a_uri_for_a_path_of_this_machine_is_refused_and_makes_no_folder_by_the_name_of_its_scheme(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "expected a path of this machine" in result.output
    assert not list(tmp_path.iterdir())


def test_requests_for_a_model_have_the_columns_that_it_takes_in_its_types(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "find_model", str)
    monkeypatch.setattr(listing, "read_side_features", {"flowers": {"iso": "float32"}}.get)
    (tmp_path / "1.png").write_bytes(make_digit_images(1)[0][1])
    (tmp_path / "all.csv").write_text("path,label,id,iso\n1.png,cat,17,100\n")
    source, out = str(tmp_path / "all.csv"), tmp_path / "x.jsonl"
    result = runner.invoke(app, ["requests", source, "--out", str(out), "--model", "flowers"])
    assert result.exit_code == 0, result.output
    instance = json.loads(out.read_text())
    assert instance.keys() - {"input", "metadata"} == {"iso"}
    assert isinstance(instance["iso"], float)
    assert "columns that the model does not take: label, id" in result.stderr
    runner.invoke(app, ["requests", source, "--out", str(out)])
    assert json.loads(out.read_text()).keys() - {"input", "metadata"} == {"id", "iso"}


def test_an_ingest_of_nothing_ends_with_status_1_and_the_remedy(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(b"x")
    result = runner.invoke(app, ["ingest", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Put those of each class into a folder of its own" in result.output


def test_train_goes_from_ingest_to_init_to_run_and_keeps_what_is_there(tmp_path):
    for number, (label, png) in enumerate(make_digit_images(30)):
        path = tmp_path / "photos" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    # A column that the run refuses before it loads TFX: all that comes before has been done by then.
    command = ["train", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--set", "data.features.numeric=[x]"]
    first = runner.invoke(app, command)
    assert "30 records in = 30 written (30 new" in first.stdout
    assert (tmp_path / "out/dataset/overview.png").exists()
    config = tmp_path / "out/pipeline.yaml"
    assert "data.features.numeric: no record" in first.output
    assert first.exit_code == 2
    config.write_text(config.read_text() + "# edited\n")
    second = runner.invoke(app, command)
    assert "30 records in = 30 written (0 new" in second.stdout
    assert "It was there, and is kept." in second.stderr
    assert config.read_text().endswith("# edited\n")


def test_train_refuses_a_folder_that_no_run_can_use_before_it_reads_any_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/1.jpg").write_bytes(b"x")
    result = runner.invoke(app, ["train", "photos", "--out", "gs://bucket/x"])
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("command", ["serve", "dashboard"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token-file", "{empty}"], "is empty"),
        (["--token-file", "{folder}/none"], "can't be read: No such file"),
        (["--key", "{empty}"], "needs the certificate of this key"),
        (["--certificate", "{empty}"], "don't fit together"),
        (["--allow-host", "https://a.example"], "expected a name"),
        (["--allow-origin", "a.example"], "expected an origin"),
    ],
)
def test_access_that_cannot_be_had_is_refused_before_anything_is_loaded(tmp_path, command, options, words):
    (tmp_path / "empty").touch(0o600)
    values = {"empty": tmp_path / "empty", "folder": tmp_path}
    result = runner.invoke(app, [command, str(tmp_path), *(option.format(**values) for option in options)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert words in result.stderr


def make_run(workdir, run_id: str, **values) -> None:
    folder = workdir / "runs" / run_id
    folder.mkdir(parents=True)
    serving = str(workdir / "serving" / "x")
    write_summary(Summary(run_id=run_id, name="x", serving_dir=serving, log="log.txt", **values), folder)


def test_runs_are_listed_newest_first_with_what_is_live(tmp_path):
    make_run(tmp_path, "20260101-000000-000", status="done", pushed_version="1", metrics={"accuracy": 0.5})
    make_run(tmp_path, "20260102-000000-000", status="done", pushed_version="2")
    refused = {"metrics": {"log_loss": None}, "not_blessed_because": ["log_loss is not a number"]}
    make_run(tmp_path, "20260103-000000-000", status="done", **refused)
    make_run(tmp_path, "20260104-000000-000", status="failed", error="Trainer failed")
    for version in ("1", "2"):
        (tmp_path / "serving" / "x" / version).mkdir(parents=True)
        (tmp_path / "serving" / "x" / version / GRAPH).touch()
    rows = json.loads(runner.invoke(app, ["runs", str(tmp_path), "--json"]).stdout)
    assert [row["run_id"][:8] for row in rows] == ["20260104", "20260103", "20260102", "20260101"]
    assert [row["live"] for row in rows] == [False, False, True, False]
    assert [row["blessed"] for row in rows] == [None, False, None, True]
    shutil.rmtree(tmp_path / "serving" / "x" / "2")  # rolled back by hand
    rows = json.loads(runner.invoke(app, ["runs", str(tmp_path), "--json"]).stdout)
    assert [row["live"] for row in rows] == [False, False, False, True]
    table = runner.invoke(app, ["runs", str(tmp_path)])
    assert "0.5000" in table.stdout
    assert table.stdout.count("live") == 2  # the heading and one run


def test_runs_of_no_folder_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nope", "file"):
        result = runner.invoke(app, ["runs", str(tmp_path / name)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert "there is no folder" in result.stderr
    assert runner.invoke(app, ["runs", str(tmp_path), "--json"]).stdout == "[]\n"


def test_runs_show_the_metrics_of_their_task(tmp_path):
    make_run(tmp_path, "1", status="done", task="regression", metrics={"mean_absolute_error": 2.5, "r_squared": None})
    table = runner.invoke(app, ["runs", str(tmp_path)]).stdout
    assert "mean absolute error" in table
    assert "2.5000" in table
    assert "accuracy" not in table


def test_an_empty_workdir_has_no_runs(tmp_path):
    assert json.loads(runner.invoke(app, ["runs", str(tmp_path), "--json"]).stdout) == []


def test_what_native_code_prints_goes_to_the_log_and_the_terminal_stays_usable(tmp_path, capfd):
    log = tmp_path / "log.txt"
    with contextlib.suppress(KeyError), logs.redirect_output(log) as terminal:
        os.write(1, b"native out\n")
        os.write(2, b"native err\n")
        terminal.write("for a person\n")
        raise KeyError
    os.write(1, b"after\n")
    captured = capfd.readouterr()
    assert captured.out == "after\n"
    assert captured.err == "for a person\n"
    assert "native out" in log.read_text()
    assert "native err" in log.read_text()


@pytest.mark.parametrize("command", ["runs {} --json", "runs {}", "--version"])
def test_results_that_cannot_be_printed_are_one_line_and_status_1(tmp_path, command):
    make_run(tmp_path, "20260101-000000-000", status="done", pushed_version="1")
    program = [sys.executable, "-m", "imagepipe", *command.format(tmp_path).split()]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert "No space left on device" in ended.stderr
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, check=False)  # noqa: S603
    os.close(writer)
    assert ended.stderr == b""


def test_closed_streams_are_no_reason_to_fail(tmp_path):
    code = "from pipeline import logs; logs.open_closed_streams()\nwith logs.hide_output(): print(1)\nprint(2, end='')"
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "" if ">&-" in closed.split() else "2", "")
        command = ["sh", "-c", f'exec "$0" -m imagepipe runs "$1" {closed}', sys.executable, str(tmp_path)]
        assert subprocess.run(command, check=False).returncode == 0  # noqa: S603


def test_a_folder_for_the_metrics_of_another_program_is_not_the_servers(tmp_path):
    (tmp_path / GRAPH).write_bytes(b"none")
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")}
    command = [sys.executable, "-m", "imagepipe", "serve", str(tmp_path), "--port", "0"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    output = ended.stdout + ended.stderr
    assert (ended.returncode, "Traceback" in ended.stderr, "missing" in output) == (2, False, False), output
    assert f"{tmp_path} can't be" in output


def test_an_unknown_file_system_is_a_message_with_status_1(tmp_path):
    for arguments in (["foo://images", "--out", str(tmp_path / "out")], [str(tmp_path), "--out", "foo://dataset"]):
        result = runner.invoke(app, ["ingest", *arguments])
        assert result.exit_code == 1
        assert "foo:// is not supported" in result.stderr


def test_a_server_that_is_not_there_is_a_message_with_status_1():
    result = runner.invoke(app, ["predict", "--endpoint", "http://127.0.0.1:9", "x.jpg"])
    assert result.exit_code == 1
    assert "no answer" in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_pattern_that_the_shell_has_expanded_loses_no_image(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").touch()
    result = runner.invoke(
        app, ["batch-predict", str(tmp_path / "model"), "a.jpg", "b.jpg", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert "b.jpg is a second one" in " ".join(result.output.replace("│", " ").split())


def test_a_page_is_in_utf_8_whatever_the_locale_is(tmp_path):
    code = (
        "import sys; from unittest import mock; from pipeline.cli import app\n"
        "with mock.patch('pipeline.runs.report_page.load_page', lambda run: '\\u2026'): app(sys.argv[1:])"
    )
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, "report", str(tmp_path)]
    subprocess.run(command, env=os.environ | locale, check=True)  # noqa: S603 (our own command)
    assert (tmp_path / "report.html").read_bytes() == "…".encode()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_prediction_is_one_line_whatever_its_image_is_called(capsys, as_json):
    name = "a\nrose 0.9999  b\x1b[2J.jpg"
    assert models._show_result(
        Prediction(name, "animal:cat:", 0.5, {"animal:cat:": 0.5}, ("animal:cat:",)), None, as_json
    )
    shown = capsys.readouterr().out
    assert shown.splitlines() == [shown.removesuffix("\n")]
    assert "\x1b" not in shown
    assert "animal:cat:" in shown
    assert (json.loads(shown)["id"] == name) if as_json else (r"a\nrose 0.9999  b\x1b[2J.jpg" in shown)


def test_a_refused_image_is_one_line_whatever_it_is_called(tmp_path):
    folder = tmp_path / "evil:cat:"
    folder.mkdir()
    (folder / "a\n[red]\x1b[2J.jpg").write_bytes(b"no image")
    result = runner.invoke(app, ["requests", str(folder), "--out", str(tmp_path / "out.jsonl")])
    (line,) = [line for line in result.output.splitlines() if "2J" in line]
    assert r"evil:cat:/a\n[red]\x1b[2J.jpg: " in line


def test_json_has_null_for_numbers_that_it_lacks(capsys):
    models._show_result(Prediction("a", "x", math.nan, {"x": math.inf}, ("x",)), None, as_json=True)
    shared.print_json({"a": (1.5, math.nan), "b": [{"c": -math.inf}], "d": "\udc80"})  # a name that is no text
    line, _, text = capsys.readouterr().out.partition("\n")
    assert json.loads(line) == {"id": "a", "label": "x", "score": None, "classes": {"x": None}}
    assert text.isascii()
    assert json.loads(text) == {"a": [1.5, None], "b": [{"c": None}], "d": "\udc80"}
