"""The check before a push, on real servers in processes of their own."""

import dataclasses
import subprocess
import sys

import httpx
import numpy as np
import psutil
import pytest
import tensorflow as tf

from imagepipe.serving import check
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.types import Request
from tests.serving.test_server import gray

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(model) -> list[check.Expected]:
    requests = [Request(f"id-{value}", gray(value)) for value in range(0, 250, 12)]
    names = LoadedModel(model).labels
    answers = LoadedModel(model).predict(requests)
    return [
        check.Expected(request, np.float32([answer.classes[name] for name in names]), answer.label, answer.novelty)
        for request, answer in zip(requests, answers, strict=True)
    ]


def test_a_model_that_is_served_as_its_graph_answers_has_no_problem(model, expected):
    report = check.check_model(model, expected, budget_ms=None)
    assert report.problems == []
    assert (report.images, report.refusals) == (21, 9)
    assert report.median_ms is not None
    assert report.p95_ms is not None
    assert 0 < report.median_ms <= report.p95_ms


def test_other_answers_and_a_latency_over_the_budget_are_problems(model, expected):
    other = dataclasses.replace(expected[3], classes=expected[3].classes[::-1].copy())
    mislabelled = dataclasses.replace(expected[4], label="light")
    novel = dataclasses.replace(expected[5], novelty=expected[5].novelty + 0.02)
    unmeasured = dataclasses.replace(expected[6], novelty=None)
    report = check.check_model(model, [*expected[:3], other, mislabelled, novel, unmeasured], budget_ms=0.01)
    wrong = [problem for problem in report.problems if "the server says" in problem]
    assert [problem.split(":")[0] for problem in wrong] == [
        name for name in ("rows", "columns", "Open Inference Protocol") for _ in range(4)
    ]
    asked = [next(word for word in problem.split() if word.startswith("id-")) for problem in wrong]
    assert asked == 3 * ["id-36", "id-48", "id-60", "id-72"]
    assert "more than the budget of 0.01 ms" in report.problems[-1]
    assert len(report.problems) == 13


def test_either_of_two_equally_probable_classes_may_be_the_best(expected):
    tie = dataclasses.replace(expected[0], classes=np.float32([0.4999, 0.5001]), label="light")
    assert check._is_same("dark", np.float32([0.5001, 0.4999]), tie)
    clear = dataclasses.replace(tie, classes=np.float32([0.4, 0.6]))
    assert not check._is_same("dark", np.float32([0.4, 0.6]), clear)
    value = check.Expected(tie.request, np.float32([3.1415927]), "3.141593", None)
    assert check._is_same("3.141592", np.float32([3.1415918]), value)


def test_large_photos_are_asked_about_in_several_requests(expected, monkeypatch):
    monkeypatch.setattr(check, "MAX_IMAGES_BYTES", 2 * len(expected[0].request.image) + 9)
    batches = list(check._split_batches(expected))
    assert [image for batch in batches for image in batch] == expected
    assert len(batches) > 9


def test_a_model_that_cannot_be_loaded_is_a_problem_with_the_servers_log(expected, tmp_path):
    module = tf.Module()
    module.serve = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.serve})
    report = check.check_model(tmp_path / "model", expected, budget_ms=None)
    (problem,) = report.problems
    assert "did not start" in problem
    assert "can't be loaded as a model of this pipeline" in problem
    assert report.p95_ms is None


def test_the_server_ends_with_a_process_that_is_killed(model, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from imagepipe.serving.check import run_server\n"
        "with run_server(Path(sys.argv[1]), 'candidate', Path(sys.argv[2])) as url:\n"
        "    print(url, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        url = process.stdout.readline().strip()
        (server,) = psutil.Process(process.pid).children()
        assert httpx.get(f"{url}/v2/health/live").is_success
        process.kill()
    assert psutil.wait_procs([server], timeout=60)[1] == []
