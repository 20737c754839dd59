import re
import time

from imagepipe.base import progress


def test_a_log_gets_a_line_with_the_rate_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    with progress.show_progress(2_000, "images", lambda: {"read": 1_500, "checked": 1_000}):
        time.sleep(0.2)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("of 2,000 images 1,500 read, ")
    assert "/s, 1,000 checked, " in line
    assert line.endswith("/s; about 0 min left")


def test_the_time_left_is_that_of_the_slowest_work(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    with progress.show_progress(5_000_000, "images", lambda: {"read": 5_000_000, "checked": 50}):
        time.sleep(0.2)
    assert re.search(r"; about \d+ h \d+ min left$", capsys.readouterr().err.splitlines()[0])


def test_a_terminal_gets_a_bar_with_the_rate(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.show_progress(2_000, "images", lambda: {"read": 1_500, "checked": 1_000}):
        time.sleep(0.5)
    shown = capsys.readouterr().err
    assert "1500/2000" in shown
    assert "images/s" in shown
