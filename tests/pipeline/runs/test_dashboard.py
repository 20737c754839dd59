import gzip
import html
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from imagepipe.base import tfrecord
from imagepipe.deploy.saved_model import GRAPH
from imagepipe.serving import page_server
from imagepipe.serving.access import EVERYBODY
from imagepipe.serving.connections import Connection
from pipeline import logs
from pipeline.cli import app
from pipeline.runs.dashboard import data, graph, metric_history, pages, server
from pipeline.workdir import Workdir
from tests.conftest import make_digit_images
from tests.pipeline.runs.workdirs import DAG, Recorder, run_id


def client(root: Path) -> TestClient:
    return TestClient(server.make_app(Workdir(root), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")


def page(root: Path, path: str = "") -> str:
    answer = client(root).get(f"/{path}")
    assert answer.status_code == 200, answer.text
    return answer.text


def text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def rows(markup: str) -> list[str]:
    return [text(row) for row in re.findall(r'<tr role="row".*?</tr>', markup, re.DOTALL)][1:]


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(tmp_path / "work")


@pytest.fixture
def root(recorder) -> Path:
    return recorder.workdir.root


def test_an_empty_workdir_says_how_a_run_is_started(tmp_path):
    assert "There is no run yet. imagepipe run pipeline.yaml" in text(page(tmp_path))
    assert client(tmp_path).get(f"/runs/{run_id(0)}/index.html").status_code == 404
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


@pytest.mark.slow
def test_five_hundred_runs_are_listed_newest_first_in_under_a_second(recorder, root, frozen_garbage):
    artifacts: dict[str, int] = {}
    for number in range(500):
        cached = {node: artifacts[node] for node in artifacts if node not in ("Evaluator", "Pusher")}
        artifacts = recorder.record(number, cached=cached if number % 3 else None)
        recorder.summarize(number, pushed_version=str(1000 + number))
        recorder.originate(number)
        version = recorder.workdir.serving("digits") / str(1000 + number)
        version.mkdir(parents=True)
        (version / GRAPH).touch()
    asked = client(root)
    last, previous = run_id(499), run_id(498)
    asked.get("/missing")  # compiles the templates
    for path in (
        "",
        f"runs/{last}/index.html",
        f"compare/{previous}/{last}/index.html",
        "versions/digits/1499/index.html",
    ):
        start = time.process_time()  # it answers in this process; who else works on this machine doesn't count
        answer = asked.get(f"/{path}")
        assert answer.status_code == 200
        assert time.process_time() - start < 1, path
    listed = re.findall(r'<th role="rowheader".*?runs/([^/]+)/', page(root))
    assert listed == [run_id(number) for number in reversed(range(500))]
    assert [row for row in rows(page(root)) if "live" in row] == [rows(page(root))[0]]


def test_a_run_in_progress_shows_what_runs_and_what_waits(recorder, root):
    recorder.record(0)
    recorder.summarize(0)
    recorder.record(1, running="Trainer")
    done = [{"id": node, "seconds": 1, "cached": node == "Transform"} for node in list(DAG)[:5]]
    recorder.summarize(1, status="running", nodes=done, metrics={})
    recorder.originate(1)
    assert "data-running" in page(root)
    shown = page(root, f"runs/{run_id(1)}/index.html")
    assert "data-running" in shown
    states = dict(re.findall(r'aria-label="(\w+), ([a-z ]+)"', shown))
    assert states == {
        **dict.fromkeys(list(DAG)[:4], "done"),
        "Transform": "cached",
        "Trainer": "running",
        **dict.fromkeys(list(DAG)[6:], "waiting"),
    }
    assert "data-running" not in page(root, f"runs/{run_id(0)}/index.html")


def test_a_killed_runs_unfinished_node_counts_as_failed_and_the_rest_as_not_reached(recorder, root):
    recorder.record(0, running="Trainer")
    done = [{"id": node, "seconds": 1, "cached": False} for node in list(DAG)[:5]]
    recorder.summarize(0, status="failed", error="the run was killed", nodes=done)
    recorder.originate(0)
    shown = page(root, f"runs/{run_id(0)}/index.html")
    states = dict(re.findall(r'aria-label="(\w+), ([a-z ]+)"', shown))
    assert (states["Transform"], states["Trainer"], states["Champion"]) == ("done", "failed", "not reached")
    assert "the run was killed" in text(shown)


def test_a_run_that_failed_after_its_push_shows_what_it_pushed(recorder, root):
    push = {"outcome": "pushed", "version": "7"}
    recorder.summarize(0, status="failed", error="no space is left", push=push, pushed_version="7")
    recorder.originate(0)
    assert "no space is left Before it failed, the model was pushed as version 7." in text(
        page(root, f"runs/{run_id(0)}/index.html")
    )


def test_the_log_of_a_failed_node_is_its_part_of_the_whole(recorder, root):
    recorder.record(0, failed="Trainer")
    log = f"before\n{logs.MARK}Transform\nfine\n{logs.MARK}Trainer\nTraceback <b>\nValueError: broken\n"
    nodes = [{"id": node, "seconds": 1, "cached": False} for node in list(DAG)[:5]]
    recorder.summarize(0, log, status="failed", error="Trainer failed: broken", nodes=nodes, metrics={})
    shown = page(root, f"runs/{run_id(0)}/index.html")
    assert 'href="log-Trainer.html"' in shown
    part = page(root, f"runs/{run_id(0)}/log-Trainer.html")
    assert "Traceback &lt;b&gt;\nValueError: broken" in part
    assert "fine" not in part
    assert page(root, f"runs/{run_id(0)}/log.txt") == log
    assert "Trainer failed: broken" in rows(shown)[5] or "Trainer failed: broken" in text(shown)


def test_of_a_long_log_the_end_is_shown(recorder, root):
    recorder.summarize(0, f"{logs.MARK}Trainer\n" + "".join(f"line {i}\n" for i in range(10_000)) + "x" * 10**6)
    part = page(root, f"runs/{run_id(0)}/log-Trainer.html")
    assert "line 9999" in part
    assert "line 6\n" not in part
    assert "lines; the whole log has all" in text(part)
    assert len(part) < 2 * 10**6


def test_cached_nodes_are_marked_and_lead_to_the_run_that_made_their_artifacts(recorder, root):
    artifacts = recorder.record(0)
    recorder.summarize(0)
    recorder.record(1, cached={"ImportExampleGen": artifacts["ImportExampleGen"]})
    nodes = [{"id": node, "seconds": 3, "cached": node == "ImportExampleGen"} for node in DAG]
    recorder.summarize(1, nodes=nodes)
    shown = page(root, f"runs/{run_id(1)}/index.html")
    assert 'aria-label="ImportExampleGen, cached"' in shown
    first, second = rows(shown)[:2]
    assert first.startswith("ImportExampleGen cached")
    assert f"made by {run_id(0)}" in first
    assert "made by" not in second


def test_runs_that_only_ml_metadata_knows_and_damaged_ones_hide_no_other(recorder, root):
    recorder.record(0)
    recorder.summarize(1)
    (recorder.workdir.runs / run_id(1) / "summary.json").write_text('{"run_id": ')
    recorder.record(1)
    recorder.summarize(2)
    listed = rows(page(root))
    assert [("damaged" in row, "only ML Metadata" in row) for row in listed] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert "Trainer done" in " ".join(rows(page(root, f"runs/{run_id(0)}/index.html")))


def test_what_another_process_has_locked_is_said_and_the_summaries_are_shown(recorder, root):
    recorder.record(0)
    recorder.summarize(0)
    recorder.originate(0)
    lock = (
        "import sqlite3, sys; store = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "store.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", lock, str(root / "metadata.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locking:  # noqa: S603
        assert locking.stdout.readline() == b"locked\n"
        start = time.monotonic()
        listed, shown = page(root), page(root, f"runs/{run_id(0)}/index.html")
        assert time.monotonic() - start < 5
        locking.stdin.close()
    for markup in (listed, shown):
        assert "ML Metadata can't be read now" in text(markup)
    assert len(rows(listed)) == 1
    assert "Trainer done" in " ".join(rows(shown))
    assert "can't be read" not in page(root)


def test_a_run_that_is_recorded_is_not_disturbed_by_those_who_look_on(recorder, root):
    problems: list[Exception] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                page(root)
                page(root, f"runs/{run_id(0)}/index.html")
            except Exception as error:
                problems.append(error)

    recorder.record(0)
    recorder.summarize(0)
    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    # In a process of its own, as a run is: SQLite's locks mean nothing within a process.
    script = (
        "import sys; from pathlib import Path; from tests.pipeline.runs.workdirs import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]))\n"
        "for number in range(1, 40): recorder.record(number); recorder.summarize(number)"
    )
    try:
        subprocess.run([sys.executable, "-c", script, str(root)], check=True, timeout=60)  # noqa: S603
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
    assert problems == []
    assert len(rows(page(root))) == 40


NASTY = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def test_names_of_strangers_are_text_and_nothing_else(recorder, root):
    recorder.record(0, uris={"Trainer": NASTY})
    for number in (0, 1):
        recorder.summarize(
            number,
            name=NASTY,
            error=NASTY,
            status="failed" if number else "done",
            not_blessed_because=[NASTY],
            metrics={NASTY: 0.5, "accuracy": 0.1},
            pushed_version=NASTY,
            nodes=[{"id": NASTY, "seconds": 1, "cached": False}],
            log=f"{logs.MARK}{NASTY}\n{NASTY}",
        )
        recorder.originate(number, config={NASTY: {NASTY: f"{NASTY}{number}"}}, packages={NASTY: NASTY})
        (recorder.workdir.runs / run_id(number) / "log.txt").write_text(f"{logs.MARK}{NASTY}\n{NASTY}\n")
    paths = [
        "",
        *(f"runs/{run_id(number)}/index.html" for number in (0, 1)),
        f"compare/{run_id(0)}/{run_id(1)}/index.html",
        f"runs/{run_id(0)}/log-Trainer.html",
        f"runs/{NASTY.replace('/', '%2F')}/index.html",
    ]
    for path in paths:
        shown = client(root).get(f"/{path}").text
        assert "<script>alert" not in shown, path
        assert "<img src=x" not in shown, path
        assert "alert(1)" in shown or "Not found" in shown or "Trainer" in path, path


def test_nothing_outside_the_workdir_is_served(recorder, root, tmp_path):
    recorder.summarize(0)
    folder = recorder.workdir.runs / run_id(0)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "log.txt").unlink()
    (folder / "log.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "notes.txt").write_text("secret, too")
    (recorder.workdir.runs / "sub").symlink_to(tmp_path)
    asked = client(root)
    names = ("log.txt", "log-Trainer.html", "notes.txt", "..%2f..%2f..%2fsecret.txt", "%2e%2e/%2e%2e/%2e%2e/secret.txt")
    paths = [f"runs/{run_id(0)}/{name}" for name in names]
    paths += [
        "runs/../../secret.txt",
        "runs/%2e%2e/%2e%2e/secret.txt",
        "runs/..%2f..%2fsecret.txt/index.html",
        "..%2fsecret.txt",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "templates/base.html",
        "pages.py",
        "runs/sub/secret.txt",
        f"compare/{run_id(0)}/{run_id(0)}/..%2f..%2fsecret.jpg",
        "versions/..%2f..%2f/secret.txt/index.html",
    ]
    for path in paths:
        answer = asked.get(f"/{path}")
        assert answer.status_code == 404, path
        assert "secret, too" not in answer.text, path
        assert answer.text.count("secret") == 0, path


def test_it_answers_questions_only_and_only_to_its_own_name(recorder, root):
    recorder.summarize(0)
    asked = client(root)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert asked.request(method, f"/runs/{run_id(0)}/index.html").status_code == 405
    assert asked.head("/").status_code == 200
    assert asked.get("/", headers={"Host": "rebound.example"}).status_code == 400
    policy = asked.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert asked.get("/").headers["X-Content-Type-Options"] == "nosniff"


def test_a_report_is_shown_without_a_share_in_the_server(recorder, root):
    recorder.summarize(0)
    (recorder.workdir.runs / run_id(0) / "report.html").write_text("<h1>Report</h1>")
    assert f'href="runs/{run_id(0)}/report.html"' in page(root)
    answer = client(root).get(f"/runs/{run_id(0)}/report.html")
    assert answer.text == "<h1>Report</h1>"
    assert "sandbox allow-scripts" in answer.headers["Content-Security-Policy"]
    assert "allow-same-origin" not in answer.headers["Content-Security-Policy"]


def test_two_runs_are_compared_by_figures_configuration_and_packages(recorder, root):
    recorder.summarize(0, metrics={"accuracy": 0.9, "log_loss": 0.5, "example_count": 178})
    recorder.originate(0, {"name": "digits", "trainer": {"epochs": 10, "ema": None}}, {"tfx": "1.20.0", "keras": "3"})
    recorder.summarize(1, metrics={"accuracy": 0.875, "log_loss": 0.25, "example_count": 178})
    recorder.originate(1, {"name": "digits", "trainer": {"epochs": 20, "ema": 0.9}}, {"tfx": "1.21.0", "keras": "3"})
    chosen = client(root).get(f"/compare?one={run_id(0)}&other={run_id(1)}", follow_redirects=True)
    assert chosen.url.path == f"/compare/{run_id(0)}/{run_id(1)}/index.html"
    assert rows(chosen.text) == [
        "accuracy 0.9000 0.8750 -0.0250 worse",
        "log loss 0.5000 0.2500 -0.2500 better",
        "example count 178 178 none",
        "Key First Second",
        "trainer.epochs 10 20",
        "trainer.ema null 0.9",
        "Key First Second",
        "tfx 1.20.0 1.21.0",
    ]
    assert client(root).get(f"/compare?one={run_id(0)}&other=none").status_code == 404


def write_predictions(folder: Path, answers: list[str], scores: list[float]) -> None:
    folder.mkdir(parents=True)
    pngs = make_digit_images(len(answers))
    table = pa.table(
        {
            "index": list(range(len(answers))),
            "id": [f"{label}/{i}.png" for i, (label, _) in enumerate(pngs)],
            "sha256": [f"{i:064}" for i in range(len(answers))],
            "labels": [[label] for label, _ in pngs],
            "target": pa.array([None] * len(answers), pa.float64()),
            "candidate": [[score, 1 - score] for score in scores],
            "candidate_label": answers,
        }
    )
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")


@pytest.fixture
def disagreeing(recorder, root) -> Path:
    """Two runs on the digits 0 to 5: the second is wrong about 2, right about 3, wrong about 4 as the first is."""
    split = root / "artifacts" / "examples" / "Split-eval"
    split.mkdir(parents=True)
    with gzip.open(split / "data-00000.gz", "wb") as file:
        for _, png in make_digit_images(6):
            file.write(tfrecord.frame_record(tfrecord.encode_example({"input": [png]})))
    write_predictions(root / "artifacts" / "p0", ["0", "1", "2", "9", "8", "5"], [0.9, 0.8, 0.7, 0.6, 0.95, 0.5])
    write_predictions(root / "artifacts" / "p1", ["0", "1", "7", "3", "1", "5"], [0.9, 0.8, 0.7, 0.6, 0.95, 0.99])
    for number in (0, 1):
        places = {"ImportExampleGen": str(split.parent), "Predictions": f"{root}/artifacts/p{number}"}
        recorder.record(number, uris=places)
        recorder.summarize(number)
    return root


def test_images_where_two_runs_disagree_are_shown_surest_first(disagreeing, monkeypatch):
    monkeypatch.setattr("pipeline.runs.dashboard.disagreements._ROWS", 2)  # read in several parts
    path = f"compare/{run_id(0)}/{run_id(1)}"
    shown = page(disagreeing, f"{path}/index.html")
    words = text(shown)
    assert "They disagree on 3 of the 6 images that both predicted" in words
    assert "on 1 only the first is right, on 1 only the second is right, on 1 neither is" in words
    assert re.findall(r'src="(\d+)\.jpg"', shown) == ["4", "2", "3"]
    assert "is 3 first: 9 0.600 second: 3 0.600 ✓" in words
    thumbnail = client(disagreeing).get(f"/{path}/2.jpg")
    assert thumbnail.headers["Content-Type"] == "image/jpeg"
    assert thumbnail.content[:2] == b"\xff\xd8"
    assert client(disagreeing).get(f"/{path}/0.jpg").status_code == 404  # of it they say the same


def test_predictions_outside_the_workdir_or_damaged_are_not_read(disagreeing, tmp_path):
    path = f"compare/{run_id(0)}/{run_id(1)}/index.html"
    (disagreeing / "artifacts" / "p0").rename(tmp_path / "p0")
    (disagreeing / "artifacts" / "p0").symlink_to(tmp_path / "p0")
    assert "One of them has kept no predictions" in text(page(disagreeing, path))
    (disagreeing / "artifacts" / "p0").unlink()
    (disagreeing / "artifacts" / "p0").mkdir()
    (disagreeing / "artifacts" / "p0" / "predictions.parquet").write_bytes(b"no parquet")
    assert "Their predictions can't be read" in text(page(disagreeing, path))


def test_exported_pages_are_whole_and_link_to_nothing_that_is_not_there(disagreeing, tmp_path):
    out = tmp_path / "site"
    done = CliRunner().invoke(app, ["dashboard", str(disagreeing), "--export", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    files = [file for file in out.rglob("*") if file.is_file() and file.name != ".imagepipe-dashboard"]
    assert f"Wrote {len(files)} files" in done.stdout
    for file in files:
        if file.suffix != ".html":
            continue
        markup = file.read_text()
        assert "<form" not in markup
        for link in re.findall(r'(?:href|src)="([^"#]+)"', markup):
            if not link.startswith("data:"):
                assert (file.parent / link).is_file(), (file, link)
    assert (out / "compare" / run_id(0) / run_id(1) / "4.jpg").is_file()
    assert CliRunner().invoke(app, ["dashboard", str(disagreeing), "--export", str(out)]).exit_code == 0  # again


def test_an_export_reads_the_runs_once(root, recorder, tmp_path, monkeypatch):
    for number in range(3):
        recorder.summarize(number)
    reads = []
    read_runs = data.read_runs
    monkeypatch.setattr(data, "read_runs", lambda workdir: reads.append(workdir) or read_runs(workdir))
    assert CliRunner().invoke(app, ["dashboard", str(root), "--export", str(tmp_path / "site")]).exit_code == 0
    assert len(reads) == 1


def test_names_that_turn_their_direction_turn_nothing_beside_them(root):
    assert "b, code, a, strong, span { unicode-bidi: isolate; }" in pages.find_page(Workdir(root), "style.css").content


def test_pages_are_exported_into_no_folder_of_somebody_else(root, recorder, tmp_path):
    recorder.summarize(0)
    for name in ("thesis.txt", "script.js", "index.html"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text("mine")
        refused = CliRunner().invoke(app, ["dashboard", str(root), "--export", str(other)])
        assert refused.exit_code == 2
        assert "has something else in it" in refused.stderr
        assert [(file.name, file.read_text()) for file in other.iterdir()] == [(name, "mine")]
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # what it wrote itself is written anew
        done = CliRunner().invoke(app, ["dashboard", str(root), "--export", str(tmp_path / "empty")])
        assert done.exit_code == 0, done.output
    (tmp_path / "empty" / "index.html").unlink()  # as a killed one leaves it
    assert CliRunner().invoke(app, ["dashboard", str(root), "--export", str(tmp_path / "empty")]).exit_code == 0


def test_a_port_that_is_taken_is_said(root):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = CliRunner().invoke(app, ["dashboard", str(root), "--port", str(port)])
    assert refused.exit_code == 2
    assert f"can't listen on 127.0.0.1:{port}" in refused.stderr


def test_a_drawing_has_an_arrow_for_each_step_and_boxes_that_do_not_overlap():
    drawing = graph.lay_out(DAG)
    assert {box.node for box in drawing.boxes} == set(DAG)
    at = {box.node: box for box in drawing.boxes}
    for node, parents in DAG.items():
        assert all(at[parent].y + graph.HEIGHT < at[node].y for parent in parents)
    for one in drawing.boxes:
        assert 0 <= one.x <= drawing.width - graph.WIDTH
        for other in drawing.boxes:
            if one is not other and one.y == other.y:
                assert abs(one.x - other.x) >= graph.WIDTH
    assert len(drawing.edges) == len(DAG) - 1  # of 23: ImportExampleGen is needed by six, and one arrow says so
    skipping = graph.lay_out({"a": [], "b": ["a"], "c": ["b"], "d": ["a"], "e": ["c", "d"]})
    assert len(skipping.edges) == 5
    assert graph.lay_out({}).boxes == []


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.5, 0.7, 0.71], ["0.50", "0.55", "0.60", "0.65", "0.70", "0.75"]),
        ([0.0], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([0.9981, 0.9983], ["0.99810", "0.99815", "0.99820", "0.99825", "0.99830"]),
        ([1e6, 3e6], ["1000000", "1500000", "2000000", "2500000", "3000000"]),
    ],
)
def test_an_axis_has_round_figures_around_all_values(values, ticks):
    history = [metric_history.RunValue(run_id(i), value, None, False) for i, value in enumerate(values)]
    drawn = metric_history.draw_metric_history("x", history, "")
    assert [label for _, label in drawn.y_ticks] == ticks
    heights = np.array([y for y, _ in drawn.y_ticks])
    assert all(heights.min() <= dot.y <= heights.max() for dot in drawn.lines[0].dots)


def test_its_clients_have_the_deadlines_of_the_models_server_and_may_use_its_name(tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(page_server, "TlsServer", lambda config: configs.append(config) or SimpleNamespace(run=list))
    server.serve_pages(tmp_path, "127.1", 0, print)
    assert [config.http for config in configs] == [Connection]
    asked = TestClient(configs[0].app)
    assert [asked.get("/", headers={"Host": name}).status_code for name in ("127.1:80", "127.2:80")] == [200, 400]
