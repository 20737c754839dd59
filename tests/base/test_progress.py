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


def test_no_time_is_told_before_all_kinds_of_work_have_done_something(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    with progress.show_progress(2_000, "images", lambda: {"read": 1_500, "checked": 0}):
        time.sleep(0.2)
    assert capsys.readouterr().err.splitlines()[0].endswith("/s, 0 checked, 0/s")


def test_outcomes_are_told_apart_from_what_is_done(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    outcomes = {"predicted": 900, "quarantined": 100}
    with progress.show_progress(2_000, "files", lambda: {"done": 1_000}, lambda: outcomes):
        time.sleep(0.2)
    line = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(r"of 2,000 files 1,000 done, .*/s; 900 predicted, 100 quarantined; about 0 min left", line)


def test_a_terminal_gets_a_bar_with_the_rate(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.show_progress(2_000, "images", lambda: {"read": 1_500, "checked": 1_000}, lambda: {"bad": 7}):
        time.sleep(0.5)
    shown = capsys.readouterr().err
    assert "7 bad" in shown
    assert "1500/2000" in shown
    assert "images/s" in shown


def test_a_note_is_one_line_whatever_names_are_in_it(capsys):
    progress.print_note("passed over: a\nforged\x1b[2J")
    assert capsys.readouterr().err == "passed over: a\\nforged\\x1b[2J\n"
