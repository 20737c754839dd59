"""Wrong labels that are corrected on the page of `imagepipe label`, and whether they are found again.

Of the photos of the first four classes 12 are put into the folder of another class, and ingested. What FeatureCheck
lists is worked through in Chromium by keyboard, by somebody who knows each photo's class; the decisions are ingested,
and FeatureCheck looks again.

    python -m benchmarks.label FOLDER WEIGHTS [--json]

FOLDER holds <split>/<class>/*.jpg; WEIGHTS is a file of MobileNetV2's weights. Chromium has to be installed.
"""

import hashlib
import json
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_check import CLASSES, FLIPPED, compute_features
from benchmarks.results import Claim, make_parser, report

MEASURES = ("components/data_check/decided.py", "components/feature_check", "imagepipe/ingest", "pipeline/labelling")
LISTED = 100  # data.validation.label_errors by default
DRAW = 0


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*/*/*.jpg"))
    if not files or not arguments.weights.exists():
        raise SystemExit(f"There are no photos in {arguments.folder}, or no file {arguments.weights}.")
    with tempfile.TemporaryDirectory() as place:
        figures = correct(files, str(arguments.weights), Path(place))
    listed, corrected, again = figures["found"], figures["corrected"], figures["again"]
    claims = [
        Claim(f"wrong labels of {FLIPPED}, listed", str(listed), "at least 11", listed >= 11),
        Claim("of those, corrected by the next ingest", str(corrected), "all", corrected == listed),
        Claim("of those, listed again", str(again), "none", again == 0),
    ]
    rows = [[name, str(value)] for name, value in figures.items()]
    report(arguments, "label", MEASURES, figures, ["", ""], rows, claims)


def correct(files: list[Path], weights: str, place: Path) -> dict[str, Any]:
    from imagepipe.base.decisions import read_decisions
    from imagepipe.ingest.command import ingest

    truth, flipped = put_photos(files, place / "photos")
    ingest(place / "photos", place / "data", workers=2)
    hashes, images, labels = read_dataset(place / "data")
    features = compute_features(images, weights)
    errors = list_errors(place / "data", hashes, features, labels)
    write_run(place, errors)
    start = time.perf_counter()
    label_by_keyboard(place, truth)
    seconds = time.perf_counter() - start
    decisions = read_decisions(str(place / "labels.jsonl")).newest
    result = ingest(place / "photos", place / "data", labels=place / "labels.jsonl", workers=2)
    hashes, images, labels = read_dataset(place / "data")
    now = dict(zip(hashes, labels, strict=True))
    again = list_errors(place / "data", hashes, compute_features(images, weights), labels)
    listed = flipped & {error["sha256"] for error in errors}
    return {
        "listed": len(errors),
        "found": len(listed),
        "decisions": len(decisions),
        "seconds by keyboard": round(seconds, 1),
        "relabelled": result.relabelled,
        "corrected": sum(now[sha256] == truth[sha256] for sha256 in listed),
        "listed then": len(again),
        "again": len(flipped & {error["sha256"] for error in again}),
    }


def put_photos(files: list[Path], folder: Path) -> tuple[dict[str, str], set[str]]:
    """Copies the photos into class folders, some into wrong ones; returns the class by hash, and the wrong ones."""
    names = sorted({file.parent.name for file in files})[:CLASSES]
    files = [file for file in files if file.parent.name in names]
    random = np.random.default_rng(DRAW)
    wrong = {int(i): int(by) for i, by in zip(
        random.choice(len(files), FLIPPED, replace=False), random.integers(1, CLASSES, FLIPPED), strict=True
    )}  # fmt: skip
    truth, flipped = {}, set()
    for number, file in enumerate(files):
        name = file.parent.name
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        truth[sha256] = name
        if number in wrong:
            flipped.add(sha256)
            name = names[(names.index(name) + wrong[number]) % CLASSES]
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name / f"{number}.jpg")
    return truth, flipped


def read_dataset(folder: Path) -> tuple[list[str], list[bytes], list[str]]:
    """Returns hash, image and label of each record."""
    from imagepipe.base import tfrecord
    from imagepipe.ingest import dataset, shards

    rows = []
    for split in dataset.load(str(folder)).splits.values():
        for shard in split.shards:
            for record in shards.read_records(f"{folder}/{shard.file}", None):
                read = (tfrecord.read_bytes_feature(record, name)[0] for name in ("sha256", "input", "label"))
                sha256, image, label = read
                rows.append((sha256.decode(), image, label.decode()))
    hashes, images, labels = zip(*sorted(rows), strict=True)
    return list(hashes), list(images), list(labels)


def list_errors(folder: Path, hashes: list[str], features: np.ndarray, labels: list[str]) -> list[dict[str, Any]]:
    """Returns the likely label errors as FeatureCheck writes them."""
    from components.data_check.decided import find_decided
    from components.data_check.label_errors import find_label_errors
    from components.data_check.split import Split
    from components.feature_check.check import predict_twice
    from imagepipe.base.decisions import read_given_labels

    ids, values = [sha256[:8] for sha256 in hashes], [[label] for label in labels]
    splits = {"train": Split(ids, hashes, values, descriptors=dict(enumerate(features)))}
    decided = find_decided(splits, read_given_labels(str(folder)))
    return find_label_errors(splits, [], LISTED, predict_twice, decided).listed


def write_run(place: Path, errors: list[dict[str, Any]]) -> None:
    """Writes the folder of a run as far as the page reads it."""
    from pipeline.runs import provenance, summary

    run = place / "runs" / "20260101-000000-000"
    run.mkdir(parents=True)
    (place / "checked").mkdir()
    (place / "checked" / "findings.json").write_text(
        json.dumps({"label_errors": errors, "near_duplicates": []}), encoding="utf-8"
    )
    summary.write_summary(
        summary.Summary(
            run_id=run.name,
            name="flowers",
            status="done",
            data_dir=str(place / "checked"),
            serving_dir=str(place / "serving"),
            log=str(run / "log.txt"),
        ),
        run,
    )
    data = provenance.DatasetOrigin(path=str(place / "data"), fingerprint="", of="content")
    origin = provenance.Origin(run_id=run.name, started="", config={}, commit=None, packages={}, dataset=data, dag={})
    (run / provenance.FILENAME).write_text(origin.model_dump_json(), encoding="utf-8")


def label_by_keyboard(place: Path, truth: dict[str, str]) -> None:
    """Works through the queue in Chromium: Enter where the label is right, else the key of the class."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from pipeline.labelling import server
    from pipeline.labelling.run_work import read_run_work
    from pipeline.workdir import Workdir

    (place / "pictures").mkdir()
    work = read_run_work(Workdir(place), place / "pictures")
    items = {item.sha256: item for item in work.queues[0].items}
    app = server.make_app(work, place / "labels.jsonl", "ann")
    with socket.create_server(("127.0.0.1", 0)) as listening, sync_playwright() as playwright:
        serving = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=serving.run, args=([listening],))
        thread.start()
        try:
            # As root, as in a container, Chromium doesn't start with its sandbox.
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            page.get_by_text("keep:").wait_for()
            while sha256 := page.evaluate("document.body.dataset.sha"):
                right = truth[sha256]
                is_right = items[sha256].label == right
                page.keyboard.press("Enter" if is_right else str(work.classes.index(right) + 1))
            page.wait_for_selector('body[data-pending="0"]')
            browser.close()
        finally:
            serving.should_exit = serving.force_exit = True
            thread.join()


if __name__ == "__main__":
    main()
