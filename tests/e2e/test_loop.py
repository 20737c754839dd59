"""After the push, by the commands that a user types: capture, monitor, label by keyboard, ingest, run, shadow, compare.

A classifier of four digits meets a fifth one. Every figure on a page is computed again, from the files alone.
"""

import base64
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image
from playwright.sync_api import Page, expect
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from imagepipe.base.decisions import read_decisions
from imagepipe.base.names import REFERENCE
from pipeline.cli import app
from tests.conftest import encode_image, list_summaries
from tests.e2e.monitor_by_hand import check_monitor, find_most_frequent
from tests.serving.test_serve import hurry_shadow, serving
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.slow

KNOWN, NEW = ("one", "three", "two", "zero"), "four"
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
TRAINED, ASKED = 80, 44  # images of each known digit
LABELLED = 40  # of the new one, by keyboard
SHADOW_WAITING = 16  # images
SPLITS = ("--splits", "60/30/10")
SETTINGS = ["image.size=[32, 32]", f"trainer.backbone={BACKBONE}", "trainer.weights=none", "trainer.batch_size=16"]
SETTINGS += ["trainer.epochs=30", "trainer.patience=30", "trainer.learning_rate=0.006"]
SETTINGS += ["evaluation.intervals=none", "data.validation.label_errors=0"]
SETS = [argument for setting in SETTINGS for argument in ("--set", setting)]


def imagepipe(*arguments, status: int = 0) -> Result:
    """Runs a command in this process, as another one would import TFX again."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def digits() -> dict[str, list[bytes]]:
    """Scans of the five digits as PNG, by name; shuffled, as scikit-learn has them by who wrote them."""
    loaded = load_digits()
    images = [Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((32, 32)) for pixels in loaded.images]
    order = np.random.default_rng(0).permutation(len(images))
    return {
        name: [encode_image(images[i], "PNG") for i in order[loaded.target[order] == number]]
        for name, number in NUMBERS.items()
    }


def count_shadowed(metrics: str) -> float:
    """Returns of how many images the version in shadow is done, whatever became of them."""
    return sum(map(float, re.findall(r"^imagepipe_shadow_images_total{.*} (.*)$", metrics, re.MULTILINE)))


class Loop:
    """A user's folder, and what is done with it.

    Attributes:
        root: the folder.
        truth: the digit by the caller's name for an image.
    """

    def __init__(self, root: Path):
        self.root = root
        self.serving = root / "serving" / root.name
        self.capture, self.labels = root / "traffic", root / "labels.jsonl"
        self.truth: dict[str, str] = {}

    def train(self) -> str:
        """Ingests and runs; returns the version that was pushed."""
        labels = ("--labels", self.labels) if self.labels.exists() else ()
        self.ingested = imagepipe("ingest", self.root / "photos", "--out", self.root / "dataset", *SPLITS, *labels)
        if not (self.root / "pipeline.yaml").exists():
            imagepipe("init", self.root / "dataset")
        imagepipe("run", self.root / "pipeline.yaml", *SETS, "--set", "deploy.traffic=0")
        return str(list_summaries(self.root / "runs")[0].pushed_version)

    def ask(self, images: Mapping[str, bytes], version: str, *options: str) -> datetime:
        """Serves with capture, and asks about images by their ids; returns when that began."""
        start = datetime.now(UTC)
        keep = ("--capture", str(self.capture), "--capture-rate", "1", "--capture-images", "original")
        with serving(self.serving, *keep, *options) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
            for number, (identity, image) in enumerate(images.items(), 1):
                body = {"instances": [{"input": {"b64": base64.b64encode(image).decode()}, "metadata": identity}]}
                answer = http.post(f"/v1/models/{self.serving.name}:predict", json=body)
                assert answer.status_code == 200, answer.text
                if "--shadow" in options and number == 1:
                    hurry_shadow(process.pid)
                # As fast as the version in shadow can follow, which drops what it can't.
                while "--shadow" in options and count_shadowed(http.get("/metrics").text) < number - SHADOW_WAITING:
                    time.sleep(0.1)
            model = http.get(f"/v1/models/{self.serving.name}").json()
            assert model["model_version_status"][0]["version"] == version
            while "--shadow" in options and count_shadowed(http.get("/metrics").text) < len(images):
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        return start

    def read_rows(self, since: datetime) -> pd.DataFrame:
        """Returns the captured rows since a time, in the order of their answers."""
        files = [pd.read_parquet(file, partitioning=None) for file in self.capture.rglob("*.parquet")]
        rows = pd.concat(files).sort_values("time", ignore_index=True)
        rows["metadata"] = rows["metadata"].str.decode("utf-8")
        return rows[rows["time"] >= since]

    def write_truth(self, identities) -> Path:
        """Writes the true labels of images, as they come from elsewhere."""
        file = self.root / "truth.csv"
        file.write_text("\n".join(["metadata,label", *(f"{one},{self.truth[one]}" for one in identities)]))
        return file

    def monitor(self, since: datetime, truth: Path, status: int) -> tuple[dict, str]:
        """Returns the figures and the page of `imagepipe monitor`."""
        page = self.root / "monitor.html"
        options = ("--against", self.serving, "--since", since.isoformat(), "--feedback", truth)
        told = imagepipe("monitor", self.capture, *options, "--out", page, "--json", status=status)
        return json.loads(told.stdout), page.read_text()


# --- by keyboard


@contextmanager
def labelling(loop: Loop) -> Iterator[str]:
    """Runs `imagepipe label`; yields the page's address."""
    command = [sys.executable, "-m", "imagepipe", "label", str(loop.capture), "--port", "0", "--by", "ann"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 (our own command)
        try:
            yield next(line.partition(",")[0] for line in process.stderr if "until Ctrl+C" in line)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def choose_queue(page: Page, title: str) -> None:
    """Goes on to a queue, by keyboard too."""
    button = page.get_by_role("button", name=title)
    while not button.evaluate("one => one === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-current", "true")


def label_by_keyboard(page: Page, truth: Mapping[str, str]) -> dict[str, str]:
    """Gives images their labels in the order in which they are shown, until enough of the new digit have theirs."""
    given: dict[str, str] = {}
    choose_queue(page, "Newest novel ones")
    while Counter(given.values())[NEW] < LABELLED:
        sha256 = page.evaluate("document.body.dataset.sha")
        if not sha256:
            choose_queue(page, "Most uncertain")
            continue
        name = given[sha256] = truth[sha256]
        classes = page.evaluate("work.classes")
        if page.get_by_role("button", name=f"as the model says: {name}").count():
            page.keyboard.press("Enter")
        elif name in classes:
            page.keyboard.press(str(classes.index(name) + 1))
        else:
            page.keyboard.press("/")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
    expect(page.locator("body")).to_have_attribute("data-pending", "0")
    return given


def test_a_new_digit_is_noticed_labelled_learned_compared_and_then_answered(digits, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    loop = Loop(tmp_path / "digits")
    for name in KNOWN:
        (loop.root / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(digits[name][:TRAINED]):
            (loop.root / "photos" / name / f"{number}.png").write_bytes(image)
    first = loop.train()

    def choose(usual: slice, new: slice) -> dict[str, bytes]:
        """Images of all digits in turn, by ids that say nothing."""
        pairs = [(name, image) for name in KNOWN for image in digits[name][usual]]
        pairs += [(NEW, image) for image in digits[NEW][new]]
        chosen = {}
        for place in np.random.default_rng(0).permutation(len(pairs)).tolist():
            name, image = pairs[place]
            identity = f"{usual.start}-{len(chosen)}"
            chosen[identity], loop.truth[identity] = image, name
        return chosen

    # A fifth digit comes.
    met, later = (choose(slice(TRAINED + n * ASKED, TRAINED + (n + 1) * ASKED), new) for n, new in enumerate(
        (slice(0, 75), slice(75, 95))
    ))  # fmt: skip
    start = loop.ask(met, first)
    rows = loop.read_rows(start)
    assert [*rows["metadata"]] == [*met]
    told, page = loop.monitor(start, loop.write_truth(met), status=3)
    check_monitor(told, page, browser, rows, loop.serving / first / REFERENCE, loop.truth)
    assert "novelty" in told["moved"]
    old = told["feedback"]["accuracies"][0]
    shown = page.partition("novelty</h3>")[2].partition("<h3>")[0]
    pictured = re.findall(r'alt="captured image ([^"]+)"', shown)
    evaluated = pd.read_parquet(loop.serving / first / REFERENCE).query("split == 'eval'")
    is_novel = find_most_frequent(rows["novelty"].to_numpy(float), evaluated["novelty"].to_numpy(float))
    assert len(pictured) == 8
    assert {*pictured} <= {*rows["metadata"][is_novel]}
    is_new = rows["metadata"].map(loop.truth) == NEW
    assert is_new[is_novel].mean() > is_new.mean()

    # Forty of it are labelled by keyboard, with what comes between them.
    by_hash = {sha256: loop.truth[one] for sha256, one in zip(rows["sha256"], rows["metadata"], strict=True)}
    with labelling(loop) as url:
        opened = browser.new_page(viewport={"width": 390, "height": 800})
        opened.goto(url)
        expect(opened.locator("#now")).not_to_be_empty()
        queues = opened.locator("#queues").inner_text()
        assert f"Most uncertain ({len(rows)})" in queues
        assert f"Newest novel ones ({(rows['novelty'] >= 0.95).sum()})" in queues
        sha256 = opened.evaluate("document.body.dataset.sha")
        (classes,) = rows[rows["sha256"] == sha256]["classes"]
        listed = opened.get_by_role("table", name="What the model says").locator("td + td").all_inner_texts()
        assert listed == [f"{score:.3f}" for score in sorted(map(float, classes), reverse=True)]
        given = label_by_keyboard(opened, by_hash)
        opened.close()
    decisions = read_decisions(str(loop.labels)).newest
    assert {one: decision.label for one, decision in decisions.items()} == given
    assert {decision.by for decision in decisions.values()} == {"ann"}

    # They are taken back, and learned.
    second = loop.train()
    assert second > first
    assert f"{len(given):,} add an image" in " ".join(loop.ingested.output.split())
    newest = list_summaries(loop.root / "runs")[0]
    assert newest.traffic == {first: 100, second: 0}
    assert (loop.serving / "shadow" / second / "assets" / "labels").read_text().split() == sorted(NUMBERS)
    assert newest.champion_metrics["accuracy"] < newest.metrics["accuracy"]

    # It answers behind the live one, is better, and goes live.
    shadowed = loop.ask(later, first, "--shadow", "newest")
    truth = loop.write_truth(later)
    since = ("--since", shadowed.isoformat())
    compared = json.loads(imagepipe("compare", loop.capture, "--feedback", truth, *since, "--json").stdout)
    assert compared["versions"] == [first, second]
    rows = loop.read_rows(shadowed)
    answers = {version: some.set_index("sha256")["label"] for version, some in rows.groupby("version")}
    both = sorted(answers[first].index.intersection(answers[second].index))
    by_hash = {sha256: loop.truth[one] for sha256, one in zip(rows["sha256"], rows["metadata"], strict=True)}
    right = np.array([[answers[version][one] == by_hash[one] for one in both] for version in (first, second)])
    gained, lost = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    p = min(1.0, 2 * sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost))
    assert compared["images"] == len(both) > 150
    assert compared["judgement"]["values"] == pytest.approx(right.mean(axis=1))
    assert compared["judgement"]["p"] == pytest.approx(p)
    assert p < 0.05
    assert gained > lost
    better = ("--if-better", loop.capture, "--feedback", truth, "--config", loop.root / "pipeline.yaml")
    imagepipe("promote", *better)
    start = loop.ask(later, second)
    rows = loop.read_rows(start)
    told, page = loop.monitor(start, truth, status=0)
    check_monitor(told, page, browser, rows, loop.serving / second / REFERENCE, loop.truth)
    assert told["moved"] == []
    new = told["feedback"]["accuracies"][0]
    assert new["interval"][0] > old["interval"][1]
