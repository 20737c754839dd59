"""The command label as a program: refusals, and what is left when it ends."""

import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from imagepipe.capture.files import write_rows
from pipeline.cli import app
from tests.pipeline.labelling.test_server import HASHES


@pytest.fixture
def capture(tmp_path):
    row = {"time": datetime(2026, 11, 29, 9, tzinfo=UTC), "version": "1", "metadata": b"1", "label": "a",
           "classes": [0.6, 0.4], "sha256": HASHES[0], "image": bytes([0])}  # fmt: skip
    write_rows(str(tmp_path / "capture"), [row], "one")
    return tmp_path / "capture"


def test_what_it_can_not_serve_is_refused_at_once(capture, tmp_path):
    for arguments, reason in (
        ([str(tmp_path / "nowhere")], "there is no folder"),
        ([str(capture), "--host", "0.0.0.0"], "give --token-file"),  # noqa: S104
        (["memory://capture"], "give the file of decisions"),
        ([str(tmp_path)], "neither runs nor captured answers"),
    ):
        answer = CliRunner().invoke(app, ["label", *arguments])
        assert answer.exit_code in (1, 2)
        assert reason in " ".join(answer.output.replace("│", " ").split())


def test_images_are_not_left_behind_when_it_is_ended(capture, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "imagepipe", "label", str(capture), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"TMPDIR": str(temporary)}) as process:  # noqa: S603
        assert any("until Ctrl+C" in line for line in process.stderr)
        assert len(list(temporary.glob("imagepipe-label-*/*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(temporary.glob("imagepipe-label-*")) == []
    assert (tmp_path / "labels.jsonl").read_bytes() == b""


def test_a_user_without_a_name_decides_by_number(capture, monkeypatch):
    def fail():
        raise KeyError("getpwuid(): uid not found: 12345")

    people = []
    monkeypatch.setattr("getpass.getuser", fail)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    monkeypatch.setattr("pipeline.labelling.server.serve", lambda work, file, by, *rest: people.append(by))
    CliRunner().invoke(app, ["label", str(capture)], catch_exceptions=False)
    assert people == ["uid 12345"]


def test_decisions_go_out_and_come_in(capture, tmp_path):
    (tmp_path / "given.csv").write_text(f"sha256,label\n{HASHES[0]},b\nx,b\n")
    out = str(tmp_path / "tasks.json")
    answer = CliRunner().invoke(app, ["label", str(capture), "--import", str(tmp_path / "given.csv"), "--export", out])
    assert answer.exit_code == 0, answer.output
    assert "Added 1 decisions to" in answer.output
    assert "Not added: 1 without a sha256" in answer.output
    assert "Wrote 1 images to" in answer.output
    assert (tmp_path / "labels.images" / HASHES[0]).read_bytes() == bytes([0])
