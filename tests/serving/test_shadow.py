"""A version in shadow: asked behind the live one, dropped where it is slow, and left alone where it fails."""

import contextlib
import logging
import os
import socket
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

import numpy as np
import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from imagepipe.deploy import openvino_form
from imagepipe.deploy.versions import find_shadow_folder
from imagepipe.serving import shadow, shadow_follower
from imagepipe.serving.shadow import Question, Shadow
from imagepipe.serving.shadow_follower import ShadowFollower
from imagepipe.serving.shadow_process import Failed, Ready, Reply, ShadowVersion, find_shadow_version
from imagepipe.serving.types import Answers, Request
from pipeline.cli import app, serve


class Process:
    """A thread in place of the process with a model, as one takes a second to start."""

    exitcode = 7

    def __init__(self, target, args, **options):
        connection, *others = args
        self._end = Connection(os.dup(connection.fileno()))
        self._thread = threading.Thread(target=target, args=(self._end, *others), daemon=True)

    def start(self):
        self._thread.start()

    def join(self, seconds):
        self._thread.join(seconds)

    def kill(self):
        if not self._end.closed:
            with socket.socket(fileno=os.dup(self._end.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)


def answer_as_told(connection, version, environment):
    """Does what the version's name says."""
    if version.version == "damaged":
        connection.send(Failed("its graph is damaged"))
        return
    connection.send(Ready("TensorFlow", ""))
    while True:
        try:
            requests = connection.recv()
        except EOFError:
            return
        if version.version == "dying":
            connection.close()
            return
        if version.version == "stuck":
            return
        if requests[0].id == "unknown":
            connection.send(Failed("'iso' is missing"))
            continue
        classes, scores = np.full((len(requests), 2), 0.5, np.float32), np.full(len(requests), 0.5, np.float32)
        labels, ids = ["a"] * len(requests), [request.id for request in requests]
        connection.send(Reply(Answers(classes, labels, scores, None, ids, "m", version.version), 0.25))


@pytest.fixture
def start(monkeypatch, tmp_path, caplog):
    """Starts shadows, which end with the test; yields a function that takes the version and what keeps its answers."""
    monkeypatch.setattr(shadow, "answer_forever", answer_as_told)
    monkeypatch.setattr(SpawnContext, "Process", Process)
    caplog.set_level(logging.INFO, "imagepipe")
    started = []

    def start(version, keep=lambda *kept: None):
        started.append(Shadow(ShadowVersion(tmp_path, "m", version), keep))
        return started[-1]

    yield start
    for one in started:
        one.close()


def ask(number: str = "1", images: int = 1, size: int = 10) -> Question:
    return Question([Request(number, b"x" * size)] * images, ["a", *["b"] * (images - 1)], "classification", "r")


def count(version: str) -> dict[str, float]:
    outcomes = ("answered", "dropped", "failed")
    values = {
        o: REGISTRY.get_sample_value("imagepipe_shadow_images_total", {"version": version, "outcome": o})
        for o in outcomes
    }
    return {outcome: value for outcome, value in values.items() if value}


def wait_until(is_done):
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_asked_what_the_live_version_answered_and_its_answers_are_kept_and_counted(start, caplog):
    kept = []
    running = start("2", lambda *answer: kept.append(answer))
    questions = [ask(images=3), ask("unknown"), ask("unknown"), ask()]
    for question in questions:
        running.offer(question, "1")
    running.offer(ask(), "2")  # by now it is live itself
    wait_until(lambda: len(kept) == 2)
    assert [(question, answers.labels, seconds) for question, answers, seconds in kept] == [
        (questions[0], ["a"] * 3, 0.25),
        (questions[3], ["a"], 0.25),
    ]
    assert count("2") == {"answered": 4, "failed": 2}
    assert REGISTRY.get_sample_value("imagepipe_shadow_agreed_images_total", {"version": "2"}) == 2
    assert REGISTRY.get_sample_value("imagepipe_shadow_seconds_sum", {"version": "2"}) == 0.5
    assert caplog.text.count("version 2 can't answer in shadow: 'iso' is missing") == 1


@pytest.mark.parametrize(
    ("version", "reason"), [("damaged", "its graph is damaged"), ("dying", "its process has ended (exit status 7)")]
)
def test_one_that_fails_is_said_once_and_counted_and_nothing_else_happens(start, caplog, version, reason):
    running = start(version)
    running.offer(ask(images=2), "1")
    wait_until(lambda: "not asked in shadow any more" in caplog.text)
    running.offer(ask(), "1")
    wait_until(lambda: count(version) == {"failed": 3})
    assert caplog.text.count(f"version {version} is not asked in shadow any more: {reason}") == 1


def test_what_it_is_too_slow_for_is_dropped_and_nobody_waits_and_its_end_neither(start, caplog, monkeypatch):
    monkeypatch.setattr(shadow, "_MAX_REQUESTS", 5)
    monkeypatch.setattr(shadow, "_MAX_BYTES", 1000)
    monkeypatch.setattr(shadow, "_CLOSE_SECONDS", 60)
    running = start("stuck")
    begin = time.monotonic()
    for _ in range(20):
        running.offer(ask(), "1")
    running.offer(ask(size=2000), "1")
    assert count("stuck") == {"dropped": 16}
    running.close()
    assert time.monotonic() - begin < shadow._CLOSE_SECONDS
    assert count("stuck") == {"dropped": 21}
    assert "not asked" not in caplog.text


def test_the_version_in_shadow_is_followed_until_it_is_live(start, monkeypatch, tmp_path):
    monkeypatch.setattr(shadow_follower, "_FOLLOW_SECONDS", 0.01)
    serving, kept = tmp_path / "cats", []

    def add(version):
        (serving / version).mkdir(parents=True)
        (serving / version / "saved_model.pb").touch()

    add("7")
    find = partial(find_shadow_version, serving, "newest", "cats", None)
    follower = ShadowFollower(find, lambda _, answers, seconds: kept.append(answers.version))
    try:
        follower.offer(ask(), "7")  # of nobody
        for version in ("8", "9"):
            add(f"shadow/{version}")
            wait_until(lambda version=version: follower.offer(ask(), "7") or version in kept)
        (serving / "shadow" / "9").rename(serving / "9")  # 8 is passed over now, though it still lies there
        wait_until(lambda: follower._shadow is None)
    finally:
        follower.close()
    assert sorted(set(kept)) == ["8", "9"]
    assert count("9").keys() <= {"answered", "dropped"}


def test_a_folder_without_a_graph_is_passed_over_and_that_is_said_once(start, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(shadow_follower, "_FOLLOW_SECONDS", 0.01)
    serving, kept = tmp_path / "cats", []
    for version in ("7", "shadow/8", "shadow/9"):
        (serving / version).mkdir(parents=True)
        if version != "shadow/9":
            (serving / version / "saved_model.pb").touch()
    find = partial(find_shadow_version, serving, "newest", "cats", None)
    follower = ShadowFollower(find, lambda _, answers, seconds: kept.append(answers.version))
    try:
        wait_until(lambda: follower.offer(ask(), "7") or "8" in kept)
        (serving / "shadow" / "9" / "saved_model.pb").touch()
        wait_until(lambda: follower.offer(ask(), "7") or "9" in kept)
    finally:
        follower.close()
    assert caplog.text.count("shadow/9 has no graph yet") == 1
    assert "Traceback" not in caplog.text


def test_one_that_failed_is_tried_again_when_its_files_have_changed(start, monkeypatch, tmp_path):
    looks, states, started = [], [1], []
    monkeypatch.setattr(shadow_follower, "_FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(shadow_follower, "describe_files", lambda folder: looks.append(folder) or states[-1])

    def fail(connection, *_):
        started.append(1)
        connection.send(Failed("its graph is damaged"))

    monkeypatch.setattr(shadow, "answer_forever", fail)

    def look_again(times: int) -> None:
        count = len(looks)
        wait_until(lambda: len(looks) >= count + times)

    follower = ShadowFollower(lambda: ShadowVersion(tmp_path, "m", "8"), lambda *kept: None)
    try:
        look_again(5)
        assert len(started) == 1
        states.append(2)
        look_again(5)
        assert len(started) == 2
    finally:
        follower.close()


@pytest.mark.parametrize("is_usable", [True, False])
def test_one_whose_form_for_openvino_comes_later_is_loaded_again(start, monkeypatch, tmp_path, is_usable):
    monkeypatch.setattr(shadow_follower, "_FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(openvino_form, "has_exact_int8", lambda: is_usable)
    started = []

    def load(connection, version, environment):
        form = openvino_form.find_form(version.folder)
        engine = "OpenVINO, int8" if form and is_usable else "TensorFlow"
        started.append(engine)
        connection.send(Ready(engine, "other answers" if form and not is_usable else ""))
        with contextlib.suppress(EOFError, OSError):  # when it is closed
            connection.recv()

    monkeypatch.setattr(shadow, "answer_forever", load)
    follower = ShadowFollower(lambda: ShadowVersion(tmp_path, "m", "8"), lambda *kept: None)
    try:
        time.sleep(0.1)
        assert started == ["TensorFlow"]
        folder = tmp_path / openvino_form.FOLDER
        folder.mkdir(parents=True)
        for name in ("network.xml", "network.bin"):
            (folder / name).touch()
        form = {"precision": "int8", "inputs": ["x"], "outputs": ["y"], "exact_int8": True}
        openvino_form.write_form(folder, form)
        wait_until(lambda: len(started) == 2)
        time.sleep(0.1)
        assert started == ["TensorFlow", "OpenVINO, int8" if is_usable else "TensorFlow"]
    finally:
        follower.close()


@pytest.mark.parametrize(
    ("version", "expected"), [("newest", "9"), ("8", "8"), ("5", "5"), ("6", "6"), ("7", None), ("4", None)]
)
def test_a_shadow_is_any_version_but_the_live_one_and_the_newest_one_of_those_in_shadow(tmp_path, version, expected):
    for folder in ("5", "7", "shadow/6", "shadow/8", "shadow/9", "rolled_back/10"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "saved_model.pb").touch()
    for folder in ("8", "shadow/10"):  # copies under way
        (tmp_path / folder).mkdir()
    folder = find_shadow_folder(tmp_path, version)
    assert (folder and folder.name) == expected


def test_a_server_starts_beside_copies_that_are_under_way(tmp_path, monkeypatch):
    """A pod that is restarted at that moment serves the version before."""
    served = []
    monkeypatch.setattr(serve, "_serve", lambda *arguments: served.append(arguments))
    for version in ("1", "5", "shadow/9"):
        (tmp_path / "cats" / version).mkdir(parents=True)
    options = ["serve", str(tmp_path / "cats"), "--shadow", "newest", "--capture", str(tmp_path / "traffic")]
    assert CliRunner().invoke(app, options).exit_code == 2
    (tmp_path / "cats" / "1" / "saved_model.pb").touch()
    CliRunner().invoke(app, options)
    assert [arguments[0] for arguments in served] == [tmp_path / "cats"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shadow", "8"], "--shadow needs --capture"),
        (["--shadow", "9", "--capture", "traffic"], "there is no version 9; it has 7, 8"),
        (["--shadow", "8", "--capture", "traffic"], "version 8 is live. `imagepipe deploy MODEL --traffic 0` puts one"),
    ],
)
def test_a_shadow_that_cant_be_is_refused_before_anything_is_loaded(tmp_path, options, words):
    for version in ("7", "8"):
        (tmp_path / "cats" / version).mkdir(parents=True)
        (tmp_path / "cats" / version / "saved_model.pb").touch()
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "cats"), *options])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", "").split())
