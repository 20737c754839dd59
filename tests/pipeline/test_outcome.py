"""How `imagepipe run` ends: the last lines and the exit status."""

import pytest

from imagepipe.serving.types import CheckReport
from pipeline.cli.runs import print_outcome
from pipeline.runs.summary import Summary


def make_summary(**values) -> Summary:
    metrics = {"mean_absolute_error": 2.5, "example_count": 8.0}
    values = {"run_id": "1", "name": "x", "status": "done", "task": "regression", "metrics": metrics} | values
    return Summary(**values, serving_dir="serving/x", log="log.txt")


@pytest.mark.parametrize("reason", [[], ["mean_absolute_error is 2.5000, above the threshold of 2"]])
def test_a_model_is_blessed_exactly_if_there_is_no_reason_against_it(reason):
    assert make_summary(not_blessed_because=reason).blessed is not bool(reason)
    assert make_summary(metrics={}, not_blessed_because=reason).blessed is None


def test_not_blessed_is_printed_with_a_reason_only(capsys):
    assert print_outcome(make_summary(not_blessed_because=["it is too low"])) == 3
    assert "Not blessed, not pushed: it is too low\n" in capsys.readouterr().err
    assert print_outcome(make_summary(serving=CheckReport(["the server failed"]))) == 3
    assert "Not blessed, not pushed: the server failed\n" in capsys.readouterr().err
    assert print_outcome(make_summary()) == 3
    error = capsys.readouterr().err
    assert "Blessed, but not pushed: the Pusher left no result\n" in error
    assert "Not blessed" not in error


def test_groups_that_intervals_count_are_printed(capsys):
    interval = {"mean_absolute_error": (2.0, 3.0)}
    print_outcome(make_summary(groups="4 groups", intervals=interval))
    assert "eval split of 8, intervals over 4 groups: mean_absolute_error 2.5" in capsys.readouterr().err
    print_outcome(make_summary(intervals=interval))
    assert "eval split of 8: mean_absolute_error 2.5" in capsys.readouterr().err


def test_how_the_champion_was_judged_is_printed(capsys):
    print_outcome(make_summary(champion_note="judged by [its] SavedModel"))
    assert "champion: judged by [its] SavedModel" in capsys.readouterr().err


def test_a_gate_that_checked_nothing_says_so(capsys):
    note = "The gate checked nothing (mean_absolute_error: there is no champion to compare with)."
    assert print_outcome(make_summary(unchecked=note, pushed_version="7")) == 0
    assert note in capsys.readouterr().err
    print_outcome(make_summary(pushed_version="7"))
    assert "checked nothing" not in capsys.readouterr().err
