"""`imagepipe monitor` and `feedback` on captured files: figures by hand, what moved, the page."""

import io
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from imagepipe.capture.files import list_parts, write_rows
from imagepipe.monitoring import report, traffic
from imagepipe.monitoring.comparison import Limits
from imagepipe.monitoring.measures import MEASURES
from imagepipe.monitoring.reference import read_reference
from imagepipe.monitoring.reference_rows import write_reference
from pipeline.cli import app

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
RUN = "20260501-120000"


def picture(gray: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24), (gray, gray, gray)).save(content, "JPEG")
    return content.getvalue()


def make_rows(count: int, *, day: int = 0, version: str = "3", brighter: float = 0.0, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    brightness = np.clip(rng.normal(0.4, 0.1, count) + brighter, 0, 1)
    return [
        {
            "time": NOW - timedelta(days=day) + timedelta(seconds=number),
            "request_id": f"r{day}-{version}-{number}",
            "metadata": f"{day}-{version}-{number}".encode(),
            "version": version,
            "sha256": f"hash-{day}-{version}-{number}",
            "label": ["cat", "dog"][int(rng.random() < 0.5)],
            "score": float(rng.beta(5, 2)),
            "novelty": float(rng.random()),
            "embedding": rng.normal(size=4).astype(np.float16),
            "width": 320,
            "height": 240,
            "aspect": 4 / 3,
            "bytes": int(rng.integers(5_000, 9_000)),
            "brightness": float(brightness[number]),
            "contrast": float(rng.uniform(0.1, 0.3)),
            "image": picture(int(255 * brightness[number])) if number % 2 else None,
            "milliseconds": float(number % 10),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("run") / "reference.parquet")
    rows = [row | {"split": split} for seed, split in ((8, "train"), (9, "eval")) for row in make_rows(800, seed=seed)]
    write_reference(path, rows, "classification", "3", RUN)
    return path


@pytest.fixture
def capture(tmp_path) -> str:
    """Two quiet days of version 3, with a few answers of version 4."""
    folder = str(tmp_path / "traffic")
    for number, rows in enumerate([make_rows(300, day=1, seed=1), make_rows(300, seed=2), make_rows(5, version="4")]):
        write_rows(folder, rows, f"p{number}")
    return folder


def ask(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def read_json(*arguments: str) -> tuple[int, dict]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_traffic_like_the_reference_is_quiet_and_counted(capture, reference):
    status, figures = read_json("monitor", capture, "--against", reference)
    assert status == 0
    assert (figures["compared"], figures["moved"]) == (True, [])
    parts = {(part["day"], part["version"]): part for part in figures["parts"]}
    today, yesterday = (f"{NOW - timedelta(days=days):%Y-%m-%d}" for days in (0, 1))
    expected = {(yesterday, "3"): 300, (today, "3"): 300, (today, "4"): 5, ("all days", "3"): 600}
    assert {place: part["images"] for place, part in parts.items()} == expected
    assert parts[today, "4"]["comparisons"] == []
    assert sum(parts[today, "3"]["labels"].values()) == 300
    assert parts[today, "3"]["milliseconds"] == {"median": 4.5, "p95": 9.0}
    measures = {c["measure"]: c["versus"] for c in parts[today, "3"]["comparisons"]}
    answers = dict.fromkeys(("score", "novelty", "label", "embedding"), "eval")
    assert measures == dict.fromkeys(MEASURES, "train") | answers


def test_what_moved_is_named_with_its_images_and_a_status_of_3(capture, reference, tmp_path):
    write_rows(capture, make_rows(200, version="5", brighter=0.2, seed=4), "bright")
    page = tmp_path / "monitor.html"
    status, figures = read_json("monitor", capture, "--against", reference, "--out", str(page))
    assert status == 3
    assert figures["moved"] == ["brightness"]
    moved = [(part["version"], c["measure"]) for part in figures["parts"] for c in part["comparisons"] if c["moved"]]
    assert moved == [("5", "brightness")]
    # Another version's answers are not the reference's.
    (other,) = [part for part in figures["parts"] if part["version"] == "5"]
    assert {c["versus"] for c in other["comparisons"]} == {"train"}
    text = page.read_text()
    assert "The traffic has moved" in text
    assert text.count("data:image/jpeg;base64,") == 8
    status, shown = ask("monitor", capture, "--against", reference, "--max-divergence", "0.9")
    assert (status, "nothing" in shown) == (0, True)


def test_that_only_other_versions_than_the_references_answered_is_said(capture, reference, tmp_path):
    assert "None of these answers" not in ask("monitor", capture, "--against", reference)[1]
    others = str(tmp_path / "others")
    write_rows(others, make_rows(50, version="4"), "p")
    shown = " ".join(ask("monitor", others, "--against", reference)[1].split())
    assert "None of these answers is version 3's, which they are compared with, but 4's" in shown


def test_a_version_that_only_failed_gave_no_answers(reference, tmp_path):
    others = str(tmp_path / "others")
    write_rows(others, make_rows(50, version="4"), "p")
    write_rows(others, [{"time": NOW, "request_id": "f", "version": "3", "error": "too_busy"}], "failed")
    shown = " ".join(ask("monitor", others, "--against", reference)[1].split())
    assert "None of these answers is version 3's, which they are compared with, but 4's" in shown


def test_traffic_that_is_too_little_to_compare_is_not_called_unmoved(reference, tmp_path):
    folder, page = str(tmp_path / "few"), tmp_path / "monitor.html"
    failed = {"time": NOW, "version": "3", "error": "failed"}
    write_rows(folder, [*make_rows(5), *(failed | {"request_id": f"f{number}"} for number in range(100))], "p")
    options = ("monitor", folder, "--against", reference, "--out", str(page))
    status, shown = ask(*options)
    assert (status, "Nothing could be compared" in shown) == (0, True)
    assert read_json(*options)[1]["compared"] is False
    text = page.read_text()
    assert "Nothing could be compared: a day and version needs at least 30 answered images" in text
    assert "Nothing has moved" not in text
    assert 'class="verdict yes"' not in text


def test_a_capture_that_is_not_there_is_refused_and_one_that_is_older_is_not(capture, tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("request_id,label\nr0-3-0,cat\n")
    for arguments in (("feedback", str(truth)), ("compare",)):
        versions = ("1", "2") if arguments[0] == "compare" else ()
        status, shown = ask(*arguments, str(tmp_path / "traffick"), *versions)
        assert (status, "traffick: no captured traffic" in " ".join(shown.split())) == (2, True)
    assert ask("feedback", str(truth), capture, "--since", f"{NOW + timedelta(days=1):%Y-%m-%d}")[0] == 0


def test_answers_with_embeddings_of_another_length_are_another_models(capture, tmp_path):
    short = [row | {"embedding": np.zeros(3, np.float16)} for row in make_rows(50)]
    rows = [row | {"split": split} for split in ("train", "eval") for row in short]
    unnamed = str(tmp_path / "reference.parquet")  # of a run that pushed nothing
    write_reference(unnamed, rows, "classification", "", RUN)
    _, figures = read_json("monitor", capture, "--against", unnamed)
    assert {comparison["versus"] for part in figures["parts"] for comparison in part["comparisons"]} == {"train"}
    write_rows(capture, short, "other")
    status, shown = ask("monitor", capture, "--against", unnamed)
    assert status == 2
    assert "embeddings of version 3 have 3 and 4 numbers: several models" in " ".join(shown.split())


def test_text_of_callers_is_text_on_the_page(capture, reference, tmp_path):
    rows = [row | {"metadata": b"<script>alert(1)</script>", "label": "<b>"} for row in make_rows(100, seed=5)]
    write_rows(capture, rows, "markup")
    page = tmp_path / "monitor.html"
    assert ask("monitor", capture, "--against", reference, "--out", str(page))[0] == 3
    assert "<script" not in page.read_text()
    assert "<b>" in page.read_text().replace("<b>&lt;b&gt;</b>", "<b>")
    assert "&lt;script&gt;" in page.read_text()
    assert "b, code, a, strong, span { unicode-bidi: isolate; }" in page.read_text()  # and turns nothing beside it


def test_what_is_older_is_left_out(capture, reference):
    _, figures = read_json("monitor", capture, "--against", reference, "--since", f"{NOW:%Y-%m-%d}")
    assert sum(part["images"] for part in figures["parts"]) == 305


def test_requests_that_failed_are_counted_by_day_version_and_reason_and_are_no_images(capture, reference, tmp_path):
    reasons = ["broken_image"] * 4 + ["too_busy"]
    failed = [
        {
            "time": NOW - timedelta(days=day, seconds=number),
            "request_id": f"f{number}",
            "version": version,
            "error": why,
        }
        for day, version, number, why in [(day, "3", *one) for day in (0, 1) for one in enumerate(reasons)]
        + [(0, "<9>", 0, "failed")]
    ]
    write_rows(capture, failed, "failed")
    truth, page = tmp_path / "truth.csv", tmp_path / "monitor.html"
    truth.write_text("request_id,label\nf0,cat\nr0-3-0,cat\n")
    options = ("monitor", capture, "--against", reference, "--feedback", str(truth), "--out", str(page))
    status, figures = read_json(*options)
    assert (status, figures["feedback"]["joined"], figures["feedback"]["unmatched"]) == (0, 1, 1)
    parts = {(part["day"], part["version"]): (part["images"], part["errors"]) for part in figures["parts"]}
    today, yesterday = (f"{NOW - timedelta(days=days):%Y-%m-%d}" for days in (0, 1))
    assert parts == {
        (yesterday, "3"): (300, {"broken_image": 4, "too_busy": 1}),
        (today, "3"): (300, {"broken_image": 4, "too_busy": 1}),
        (today, "4"): (5, {}),
        (today, "<9>"): (0, {"failed": 1}),
        ("all days", "3"): (600, {"broken_image": 8, "too_busy": 2}),
    }
    text = " ".join(page.read_text().split())
    assert (
        '<td class="n">10<br><span class="soft">broken_image 8</span><br><span class="soft">too_busy 2</span></td>'
        in text
    )
    told = " ".join(ask(*options)[1].split())
    assert "all days, version 3: requests that were not answered: 8 broken_image, 2 too_busy" in told


def test_files_of_servers_that_kept_no_errors_are_read(capture, reference):
    for part in list_parts(capture):
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["error", "shadow"]), part)
    _, figures = read_json("monitor", capture, "--against", reference)
    assert [(part["images"], part["errors"]) for part in figures["parts"]] == [(300, {}), (300, {}), (5, {}), (600, {})]


def test_a_sample_is_bounded_and_all_are_counted(capture, monkeypatch):
    monkeypatch.setattr(traffic, "MAX_SAMPLE", 100)
    monkeypatch.setattr(traffic, "MAX_VECTORS", 10)
    (_, yesterday), *_ = traffic.read_traffic(capture).items()
    assert yesterday.images == 300
    assert len(yesterday.sample) == 100
    assert yesterday.sample["embedding"].null_count == 90


def test_images_of_one_request_are_drawn_one_by_one(tmp_path, monkeypatch):
    """They have one time, and perhaps no name: all images of few requests would be no sample."""
    monkeypatch.setattr(traffic, "MAX_SAMPLE", 100)
    rows = [
        row | {"request_id": f"r{number // 50}", "time": NOW + timedelta(seconds=number // 50), "metadata": b""}
        for number, row in enumerate(make_rows(1000))
    ]
    write_rows(str(tmp_path), rows, "p")
    (answers,) = traffic.read_traffic(str(tmp_path)).values()
    assert len(set(answers.sample["request_id"].to_pylist())) >= 18  # of 20


def test_all_days_together_are_a_random_mix_of_theirs(tmp_path, reference, monkeypatch):
    """Whatever the number of images: what moved on the last day alone, and each day by its share."""
    monkeypatch.setattr(traffic, "MAX_SAMPLE", 400)
    monkeypatch.setattr(traffic, "MAX_VECTORS", 200)
    for day, count in ((2, 250), (1, 250), (0, 1000)):
        rows = make_rows(count, day=day, seed=day)
        if day == 0:
            rows = [row | {"embedding": row["embedding"] + np.float16(3)} for row in rows]
        write_rows(str(tmp_path), rows, f"p{day}")
    monitored = report.monitor(str(tmp_path), read_reference(reference), Limits())
    assert {moved.comparison.measure for moved in monitored.moved} == {"embedding"}
    assert [moved.part for moved in monitored.moved] == [f"{NOW:%Y-%m-%d}, version 3", "all days, version 3"]
    together = monitored.traffic[traffic.Part("all days", "3")]
    assert (together.images, len(together.sample)) == (1500, 400)
    times = together.sample["time"].to_pylist()
    assert sum(time.date() == NOW.date() for time in times) == pytest.approx(400 * 1000 / 1500, abs=30)
    # The rows that are shown are those whose lift was computed.
    (comparison,) = (m.comparison for m in monitored.moved if m.part.startswith("all"))
    shown = report.list_rows(comparison, together)
    assert len(shown) == len(comparison.difference.lift) == comparison.images == 200
    clearest = shown[comparison.difference.lift == comparison.difference.lift.max()]
    assert np.mean([times[row].date() == NOW.date() for row in clearest]) > 0.85  # and a tenth of the others


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "no captured traffic"),
        (lambda folder: (folder / "part-x.parquet").write_bytes(b"PAR1"), "is no file of captured traffic"),
    ],
)
def test_a_capture_that_cant_be_read_is_refused_in_words(tmp_path, reference, write, words):
    folder = tmp_path / f"date={NOW:%Y-%m-%d}" / "hour=12" / "version=3"
    folder.mkdir(parents=True)
    write(folder)
    status, text = ask("monitor", str(tmp_path), "--against", reference)
    assert status == 2
    assert words in " ".join(text.split())


def test_a_file_that_is_no_reference_is_refused_in_words(tmp_path, capture):
    (tmp_path / "x.parquet").write_bytes(b"text")
    status, text = ask("monitor", capture, "--against", str(tmp_path / "x.parquet"))
    assert status == 2
    assert "is no reference" in " ".join(text.split())


def test_feedback_is_the_accuracy_by_version(capture, reference, tmp_path):
    rows = [make_rows(300, seed=2)[number] for number in range(10)]
    lines = [{"metadata": row["metadata"].decode(), "label": row["label"]} for row in rows]
    lines[0]["label"] = "horse"
    lines += [{"metadata": "never asked", "label": "cat"}, {"metadata": "0-4-1", "label": "horse"}]
    file = tmp_path / "truth.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, figures = read_json("feedback", str(file), capture)
    assert status == 0
    assert [figures[name] for name in ("lines", "joined", "unmatched", "ambiguous")] == [12, 11, 1, 0]
    third, fourth = figures["accuracies"]
    assert (third["version"], third["images"], third["value"]) == ("3", 10, 0.9)
    assert third["interval"] == pytest.approx([0.5958, 0.9821], abs=1e-3)  # Wilson, 9 of 10
    assert (fourth["version"], fourth["images"], fourth["value"]) == ("4", 1, 0)
    page = tmp_path / "monitor.html"
    ask("monitor", capture, "--against", reference, "--feedback", str(file), "--out", str(page))
    assert "0.9000" in page.read_text()


def test_feedback_is_the_accuracy_by_slice_of_true_labels_and_of_further_columns(capture, reference, tmp_path):
    rows = make_rows(300, seed=2)[:40]
    lines = ["metadata,label,camera,serial"]
    for number, row in enumerate(rows):
        wrong = {"cat": "dog", "dog": "cat"}[row["label"]]
        truth = wrong if number % 8 == 0 else row["label"]  # 5 of 40, all by the old camera
        lines.append(f"{row['metadata'].decode()},{truth},{('old', '<new>')[number % 2]},{number:02}")
    lines += ["0-4-1,horse,,40", "never asked,cat,old,41"]
    file, page = tmp_path / "truth.csv", tmp_path / "monitor.html"
    file.write_text("\n".join(lines))
    _, figures = read_json("feedback", str(file), capture)
    slices = {(one["column"], one["slice"], one["version"]): one for one in figures["slices"]}
    old, new = slices["camera", "old", "3"], slices["camera", "<new>", "3"]
    assert (old["images"], old["value"]) == (20, 0.75)
    assert old["interval"] == pytest.approx([0.5313, 0.8881], abs=1e-4)  # Wilson, 15 of 20
    assert (new["images"], new["value"]) == (20, 1)
    assert new["interval"] == pytest.approx([0.8389, 1], abs=1e-4)  # 20 of 20
    assert slices["camera", "", "4"]["images"] == 1
    truths = [line.split(",")[1] for line in lines[1:41]]
    for label in ("cat", "dog"):
        right = sum(row["label"] == truth == label for row, truth in zip(rows, truths, strict=True))
        measured = slices["label", label, "3"]
        assert (measured["images"], measured["value"]) == (truths.count(label), right / truths.count(label))
    assert slices["label", "horse", "4"]["value"] == 0
    assert [one["column"] for one in figures["slices"][:3]] == ["label"] * 3
    assert sum(column == "serial" for column, _, _ in slices) == 20
    assert figures["values_left_out"] == {"serial": 21}
    assert "camera: old" in ask("feedback", str(file), capture)[1]
    ask("monitor", capture, "--against", reference, "--feedback", str(file), "--out", str(page))
    assert "camera: &lt;new&gt;" in page.read_text()
    assert "0.7500" in page.read_text()
    assert "serial: 21 more values" in page.read_text()


def test_feedback_of_a_regression_has_slices_of_further_columns_alone(tmp_path):
    rows = [row | {"label": "5", "score": 5.0} for row in make_rows(3)]
    write_rows(str(tmp_path / "traffic"), rows, "numbers")
    lines = [{"metadata": rows[0]["metadata"].decode(), "label": 1, "room": "a"}]
    lines += [{"metadata": row["metadata"].decode(), "label": 4.5} for row in rows]  # of several lines the last holds
    (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, figures = read_json("feedback", str(tmp_path / "truth.jsonl"), str(tmp_path / "traffic"), "--task", "regression")
    (room,) = figures["slices"]
    assert (room["column"], room["slice"], room["images"], room["value"]) == ("room", "", 3, 0.5)


def test_feedback_by_request_leaves_out_requests_with_several_images(capture, tmp_path):
    rows = make_rows(3, version="6")
    write_rows(capture, [row | {"request_id": f"q{number // 2}"} for number, row in enumerate(rows)], "several")
    file = tmp_path / "truth.csv"
    file.write_text(f"request_id,label\nq0,cat\nq1,{rows[2]['label']}\n")
    status, figures = read_json("feedback", str(file), capture)
    assert status == 0
    assert [figures[name] for name in ("lines", "joined", "unmatched", "ambiguous")] == [2, 1, 0, 1]
    assert [(a["images"], a["value"]) for a in figures["accuracies"]] == [(1, 1)]


def test_feedback_leaves_out_ids_of_several_images_and_takes_an_image_that_was_sent_again(tmp_path):
    again, photo, other = make_rows(3)
    later = {"time": NOW + timedelta(hours=1)}
    rows = [again | {"label": "dog"}, again | later | {"label": "cat"}]
    rows += [photo | {"request_id": "p"}, other | {"metadata": photo["metadata"], "request_id": "o", "version": "4"}]
    write_rows(str(tmp_path / "traffic"), rows, "several")
    for key in ("metadata", "request_id"):
        ids = [again[key], photo[key]] if key == "request_id" else [row[key].decode() for row in (again, photo)]
        (tmp_path / "truth.csv").write_text("\n".join([f"{key},label", *(f"{id_},cat" for id_ in ids)]))
        _, figures = read_json("feedback", str(tmp_path / "truth.csv"), str(tmp_path / "traffic"))
        ambiguous = int(key == "metadata")
        assert [figures[name] for name in ("joined", "unmatched", "ambiguous")] == [1, 1 - ambiguous, ambiguous]
        assert [(a["version"], a["images"], a["value"]) for a in figures["accuracies"]] == [("3", 1, 1)]


def test_feedback_that_lacks_a_column_names_the_row(tmp_path, capture):
    (tmp_path / "truth.csv").write_text("id,label\n1,cat\n")
    status, text = ask("feedback", str(tmp_path / "truth.csv"), capture)
    assert status == 2
    assert "row 1 needs 'metadata' or 'request_id', and 'label'" in " ".join(text.split())


def test_a_reference_is_read_as_it_was_written(reference):
    loaded = read_reference(reference)
    assert (loaded.task, loaded.version, loaded.run) == ("classification", "3", RUN)
    assert len(loaded.evaluated.labels) == 800
    assert loaded.evaluated.embedding.shape == (800, 4)
