"""Records of answered requests: metrics by version, and captured rows."""

import asyncio
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import REGISTRY

from imagepipe.capture import files
from imagepipe.capture.rows import CaptureOptions
from imagepipe.serving import engine
from imagepipe.serving.answered import Recorder, choose_request_id
from imagepipe.serving.handler import Handler
from imagepipe.serving.limits import MAX_WAITING
from imagepipe.serving.types import Answers, Request, RequestError
from tests.serving.test_server import gray


def make_answers(version: str, labels: list[str]) -> Answers:
    count = len(labels)
    classes = np.linspace(0.1, 0.9, 2 * count, dtype=np.float32).reshape(count, 2)
    novelty = np.linspace(0.05, 0.995, count, dtype=np.float32)
    embedding = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    ids = [str(number) for number in range(count)]
    return Answers(classes, labels, classes.max(axis=1), novelty, ids, "m", version, embedding)


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_rows_are_what_was_asked_and_answered_image_by_image(tmp_path):
    requests = [Request(str(number), gray(100 + number)) for number in range(3)]
    answers = make_answers("41", ["a", "b", ""])
    recorder = Recorder(CaptureOptions(str(tmp_path), rate=1.0, images="original"))
    recorder.record(requests, requests, answers, "classification", "request-1", 0.25)
    recorder.close()
    (part,) = files.list_parts(str(tmp_path))
    rows = pq.read_table(part, partitioning=None).to_pylist()
    assert [row["metadata"] for row in rows] == [b"0", b"1", b"2"]
    assert [row["label"] for row in rows] == answers.labels
    assert [row["image"] for row in rows] == [request.image for request in requests]
    assert {(row["request_id"], row["version"], row["milliseconds"]) for row in rows} == {("request-1", "41", 250.0)}
    for name, expected in {
        "classes": answers.classes,
        "score": answers.scores,
        "novelty": answers.novelty,
        "embedding": answers.embedding,
    }.items():
        np.testing.assert_array_equal([row[name] for row in rows], expected, name)


@pytest.mark.parametrize(("rate", "rows"), [(1.0, 4), (0.0, 0)])
def test_a_request_that_fails_is_a_row_without_an_image_if_it_is_drawn(tmp_path, rate, rows):
    def fail(error):
        def raise_it(_):
            raise error

        return raise_it

    async def ask_all() -> None:
        broken = RequestError("broken_image", "instance 0: no image")
        for number, (parse, check) in enumerate(
            [
                (fail(RequestError("bad_base64", "'input' is not valid base64")), None),
                (parse_one, fail(broken)),
                (parse_one, fail(MemoryError())),
                (lambda _: ([Request("", b"")] * (MAX_WAITING + 1), None), None),
            ]
        ):
            engine = SimpleNamespace(version="41", check=check, model=SimpleNamespace(has_novelty=True))
            with pytest.raises(Exception, match=r"input|instance|waiting|^$"):
                await handler.answer(b"body", parse, engine, f"request-{number}")  # type: ignore[arg-type]

    def parse_one(_):
        return [Request("mine", gray(100))], None

    recorder = Recorder(CaptureOptions(str(tmp_path), rate=rate, images="original"))
    handler = Handler(SimpleNamespace(engine=None), "m", recorder)  # type: ignore[arg-type]
    asyncio.run(ask_all())
    recorder.close()
    written = [
        row for part in files.list_parts(str(tmp_path)) for row in pq.read_table(part, partitioning=None).to_pylist()
    ]
    assert len(written) == rows
    kept = [{name: value for name, value in row.items() if value is not None and name != "time"} for row in written]
    reasons = ["bad_base64", "broken_image", "failed", "too_busy"][:rows]
    assert kept == [
        {"request_id": f"request-{number}", "version": "41", "error": reason} for number, reason in enumerate(reasons)
    ]


def test_an_answer_that_is_no_number_is_a_failure_and_spoils_no_sum(tmp_path):
    requests = [Request("mine", gray(100))]
    recorder = Recorder(CaptureOptions(str(tmp_path), rate=1.0, images="none"))
    handler = Handler(SimpleNamespace(engine=None), "m", recorder)  # type: ignore[arg-type]
    for field in ("classes", "score", "novelty"):
        outputs = {"classes": np.ones((1, 1)), "label": [b"a"], "score": np.ones(1), "novelty": np.ones(1)}
        outputs[field][0] = np.nan
        model = SimpleNamespace(
            has_novelty=True,
            task="classification",
            preprocess=lambda requests: requests,
            answer_alone=lambda _, outputs=outputs: outputs,
        )
        served = SimpleNamespace(model=model, name="m", version="nan", check=lambda requests: requests)
        served._observe = lambda count: None
        served.answer = partial(engine.Engine.answer, served)
        with pytest.raises(ArithmeticError):
            asyncio.run(handler.ask(requests, served, "request"))  # type: ignore[arg-type]
    recorder.close()
    (part,) = files.list_parts(str(tmp_path))
    assert pq.read_table(part, partitioning=None)["error"].to_pylist() == ["failed"] * 3
    assert sample("imagepipe_score_sum", version="nan") is None


@pytest.mark.parametrize(
    ("task", "labels", "counted"),
    [
        ("classification", ["x|y", ""], {"x|y": 1, "": 1}),
        ("multilabel", ["x|y", "x"], {"x": 2, "y": 1}),
        ("regression", ["1.5", "2"], {}),
    ],
)
def test_metrics_count_answers_by_version_and_class(task, labels, counted):
    version = f"of-{task}"
    Recorder().record([], [], make_answers(version, labels), task, "", 0)
    names = {"x", "y", "x|y", "", "1.5"}
    totals = {name: sample("imagepipe_answers_total", version=version, label=name) for name in names}
    assert {name: total for name, total in totals.items() if total} == counted
    assert sample("imagepipe_novelty_count", version=version) == 2
    assert sample("imagepipe_novelty_bucket", version=version, le="0.1") == 1
    assert sample("imagepipe_score_count", version=version) == (None if task == "regression" else 2)


def test_series_of_versions_that_are_no_longer_served_are_removed(tmp_path, monkeypatch):
    def load(folder, name, version, *_):
        return SimpleNamespace(model=SimpleNamespace(folder=folder, engine="TensorFlow", note=""), version=version)

    def push(version: str) -> None:
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "saved_model.pb").write_bytes(b"")

    def answer(version: str) -> list[float | None]:
        Recorder().record([], [], make_answers(version, ["a"]), "classification", "", 0)
        names = ("imagepipe_answers_total", "imagepipe_score_count", "imagepipe_novelty_count")
        return [sample(name, version=version, **({"label": "a"} if "answers" in name else {})) for name in names]

    monkeypatch.setattr(engine, "Engine", load)
    push("9001")
    served = engine.ServedModel(tmp_path, "m", lambda *_: None)
    assert answer("9001") == [1, 1, 1]
    for version, earlier in (("9002", 2), ("9003", 1)):  # the version before may still answer, without a jump
        push(version)
        served.refresh()
        served.refresh()
        assert served.engine.version == version
        assert answer("9001") == [earlier] * 3
        assert answer(version) == [1, 1, 1]


def test_a_callers_request_id_is_kept_if_it_is_short_and_printable(served):
    assert choose_request_id("trace-1") == "trace-1"
    for unusable in (None, "", "a\nb", "x" * 200, "é"):
        assert len(choose_request_id(unusable)) == 32
    image = {"content": gray(9), "headers": {"content-type": "image/png", "x-request-id": "trace-2"}}
    answer = served.http.post("/v1/models/brightness:predict", **image)
    assert answer.headers["x-request-id"] == "trace-2"
