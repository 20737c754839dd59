"""The end of a run: what became of the model, what is live, and the exit status."""

import pytest

from pipeline.cli import runs
from pipeline.runs.push_outcome import describe_push, describe_traffic
from pipeline.runs.summary import Push
from tests.pipeline.runs.workdirs import Recorder

METRICS = {"accuracy": 0.9, "example_count": 10.0}


@pytest.fixture
def end(tmp_path, capsys):
    """Prints the end of a run; returns the exit status and what was printed."""

    def run(outcome: str | None, traffic: dict[str, int] | None, **values):
        in_service = outcome in ("pushed", "already_deployed")
        push = outcome and Push(outcome=outcome, version="7")
        summary = Recorder(tmp_path / "my work").summarize(
            0, metrics=METRICS, push=push, pushed_version="7" if in_service else None, traffic=traffic, **values
        )
        return runs.print_outcome(summary), capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("outcome", "traffic", "status", "phrase", "last"),
    [
        ("pushed", {"7": 100}, 0, "and pushed as version 7", "version 7 is live"),
        ("already_deployed", {"7": 100}, 0, "it is version 7 already", "version 7 is live"),
        ("pushed", {"3": 90, "7": 10}, 0, "It is a canary", "version 3 gets 90%, version 7 gets 10% of the requests"),
        ("pushed", {"3": 100, "7": 0}, 0, "It is in shadow", "version 3 is live, version 7 in shadow"),
        ("pushed", {"3": 100}, 3, "and pushed as version 7", "version 3 is live; version 7 gets none now"),
        ("pushed", None, 0, "and pushed as version 7", "could not be asked what is live"),
        ("rolled_back", {"3": 100}, 3, "which was rolled back", "version 3 is live"),
        ("replaced", {"9": 100}, 3, "which another version has replaced", "version 9 is live"),
        ("rolled_back", {}, 3, "which was rolled back", "nothing is live"),
    ],
)
def test_the_last_line_is_what_the_target_says_and_the_status_fits_it(end, outcome, traffic, status, phrase, last):
    actual, lines = end(outcome, traffic)
    assert (actual, lines[-1]) == (status, f"filesystem: {last}")
    assert phrase in "\n".join(lines)


def test_a_refused_model_says_what_stays_live(end):
    status, lines = end(None, {"3": 100}, not_blessed_because=["accuracy is 0.9, below the threshold of 0.95"])
    assert (status, lines[-1]) == (3, "filesystem: version 3 is live")
    assert lines[-2].startswith("Not blessed, not pushed: accuracy is 0.9")


def test_a_run_that_fails_after_the_push_says_what_it_made_live(end):
    failed = {"status": "failed", "error": "ModelReport failed: the disk is full"}
    status, lines = end("pushed", {"7": 100}, **failed)
    assert (status, lines[-1]) == (1, "filesystem: version 7 is live")
    assert lines[-2] == "Before it failed, the model was pushed as version 7."


def test_a_run_that_fails_before_the_push_says_nothing_of_it(end):
    status, lines = end(None, None, status="failed", error="Trainer failed: the disk is full")
    assert (status, "pushed" in "".join(lines), "live" in "".join(lines)) == (1, False, False)


def test_a_run_of_an_earlier_version_of_imagepipe_is_described_as_it_was(tmp_path):
    summary = Recorder(tmp_path).summarize(0, pushed_version="7")
    assert describe_push(summary) == "pushed as version 7"
    assert describe_traffic(summary) == "could not be asked what is live"
