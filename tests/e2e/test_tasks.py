"""Several labels an image, and a number: from a manifest to predictions of the pushed model, as a user does it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from playwright.sync_api import expect
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.runs.summary import Summary
from tests.browser import find_violations
from tests.conftest import list_summaries, make_digit_images
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.slow

QUICK = [
    "evaluation.intervals=none",
    f"trainer.backbone={BACKBONE}",
    "image.size=[48, 48]",
    "trainer.weights=none",
    "trainer.epochs=1",
    "evaluation.margin=1",
]
IMAGES = 300

LABELS = {"even": {0, 2, 4, 6, 8}, "small": {0, 1, 2, 3}, "round": {0, 8}, "other": {5, 7, 9}}


def labels_of(digit: int) -> str:
    return "|".join(name for name, digits in LABELS.items() if digit in digits)


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def run(root: Path, *overrides: str) -> tuple[int, Summary, str]:
    sets = [argument for override in [*QUICK, *overrides] for argument in ("--set", override)]
    result = command("run", str(root / "pipeline.yaml"), *sets)
    return result.exit_code, list_summaries(root / "runs")[0], result.stderr


def project(root: Path, task: str, label) -> Path:
    """Ingests digits whose labels ``label`` makes, from a manifest, and writes the configuration."""
    root.mkdir()
    lines = ["path,label"]
    for number, (digit, png) in enumerate(make_digit_images(IMAGES)):
        (root / f"{number:04}.png").write_bytes(png)
        lines.append(f"{number:04}.png,{label(int(digit))}")
    (root / "all.csv").write_text("\n".join(lines) + "\n")
    ingested = command("ingest", str(root / "all.csv"), "--out", str(root / "dataset"), "--task", task)
    assert ingested.exit_code == 0, ingested.stderr
    assert command("init", str(root / "dataset")).exit_code == 0
    return root


def served(root: Path, summary: Summary, count: int) -> list[dict]:
    """Returns the answers of the pushed model's signature ``tf_examples`` for the first images."""
    model = tf.saved_model.load(str(Path(summary.serving_dir) / str(summary.pushed_version)))
    examples = []
    for number in range(count):
        example = tf.train.Example()
        example.features.feature["input"].bytes_list.value.append((root / f"{number:04}.png").read_bytes())
        examples.append(example.SerializeToString())
    answer = model.signatures["tf_examples"](examples=tf.constant(examples))
    return [{key: answer[key][i].numpy() for key in ("classes", "label", "score")} for i in range(count)]


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory) -> tuple[Path, Summary]:
    root = project(tmp_path_factory.mktemp("tasks") / "several", "multilabel", labels_of)
    status, summary, output = run(root, "trainer.label_thresholds={small: 0.05}")
    assert (status, summary.status) == (0, "done"), summary.error
    assert str(summary.unchecked) in output
    assert "macro_f1" in output
    return root, summary


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> tuple[Path, Summary]:
    root = project(tmp_path_factory.mktemp("tasks") / "number", "regression", lambda digit: digit / 2)
    status, summary, output = run(root, "trainer.loss=huber")
    assert (status, summary.status) == (0, "done"), summary.error
    assert str(summary.unchecked) in output
    assert "mean_absolute_error" in output
    return root, summary


def test_a_model_with_several_labels_is_measured_blessed_and_pushed(multilabel):
    root, summary = multilabel
    assert set(summary.metrics) == {"macro_f1", "micro_f1", "precision", "recall", "auc", "example_count"}
    assert summary.metrics_by_class["small"]["recall"] > 0  # at a threshold of 0.05
    counts = json.loads((root / "dataset" / "dataset.json").read_text())["splits"]["eval"]["labels"]
    assert {name: counts.get(name, 0) for name in summary.metrics_by_class} == {
        name: metrics["example_count"] for name, metrics in summary.metrics_by_class.items()
    }
    folder = root / "runs" / summary.run_id
    assert (folder / "curves.png").exists()
    assert not (folder / "confusion_matrix.png").exists()
    assets = Path(str(summary.model_dir)) / "assets"
    assert (assets / "labels").read_text().split() == ["even", "other", "round", "small"]


def test_the_reports_have_each_tasks_mistakes_and_axe_finds_nothing(multilabel, regression, browser):
    for (root, summary), heading in ((multilabel, "By label"), (regression, "The largest errors")):
        page = browser.new_page()
        page.goto((root / "runs" / summary.run_id / "report.html").as_uri())
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        if heading == "By label":
            by_label = page.get_by_role("region", name="Metrics by label")
            cells = by_label.get_by_role("row", name="small").get_by_role("cell")
            expect(cells.first).to_have_text("0.0500")
            expect(cells.nth(1)).to_have_text("trainer.label_thresholds")
        expect(page.locator("#verdict")).to_contain_text("Blessed")
        expect(page.locator("#verdict")).to_contain_text(str(summary.unchecked))
        for name in set(summary.metrics) - {"example_count"}:
            expect(page.locator(f"[data-metric={name}]")).to_have_text(f"{summary.metrics[name]:.4f}")
        assert find_violations(page) == []
        page.close()


def test_predict_says_the_labels_at_their_thresholds_as_the_model_does(multilabel):
    root, summary = multilabel
    images = [str(root / f"{number:04}.png") for number in range(8)]
    names = ["even", "other", "round", "small"]
    thresholds = np.array([0.5, 0.5, 0.5, 0.05])
    result = command("predict", summary.serving_dir, *images, "--json")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    for answer, expected in zip(answers, served(root, summary, 8), strict=True):
        labels = [name for name, yes in zip(names, expected["classes"] >= thresholds, strict=True) if yes]
        assert answer["label"] == expected["label"].decode() == "|".join(labels)
        assert answer["score"] == pytest.approx(float(expected["score"]))
        assert answer["classes"] == pytest.approx(
            {name: float(p) for name, p in zip(names, expected["classes"], strict=True) if name in labels}
        )
    plain = command("predict", summary.serving_dir, images[0], "--top", "4").stdout
    assert sorted(plain.split()[0:8:2]) == names
    assert plain.rstrip().endswith(images[0])


@pytest.mark.long
def test_a_champion_with_several_labels_is_measured_by_what_it_says_itself(multilabel):
    root, first = multilabel
    pushed = Path(first.serving_dir) / str(first.pushed_version)
    live = pushed.parent / "99999999999"
    pushed.rename(live)  # as a copy beside it, it would be a newer version, which the next push leaves alone
    (live / "fingerprint.pb").unlink()  # or it would be known as the candidate itself
    status, summary, output = run(root, "trainer.label_thresholds={small: 0.05}", "evaluation.margin=0")
    assert (status, summary.status) == (0, "done"), summary.error
    assert summary.champion_metrics == summary.metrics == first.metrics
    assert summary.unchecked is None
    assert f"champion's macro_f1 on it: {first.metrics['macro_f1']:.4f}" in output


def test_a_regression_is_measured_blessed_and_pushed_and_predict_says_the_value(regression):
    root, summary = regression
    assert set(summary.metrics) == {"mean_absolute_error", "mean_squared_error", "r_squared", "example_count"}
    assert summary.metrics_by_class == {}
    image = str(root / "0000.png")
    (expected,) = served(root, summary, 1)
    answer = json.loads(command("predict", summary.serving_dir, image, "--json").stdout)
    value = float(expected["score"])
    assert 0 <= answer.pop("novelty") <= 1
    assert answer == {"id": image, "label": expected["label"].decode(), "score": value, "classes": {"label": value}}
    assert float(answer["label"]) == pytest.approx(value, rel=1e-5)
    assert expected["classes"].tolist() == [expected["score"]]
    assert command("predict", summary.serving_dir, image).stdout == f"label {value:.4f}  {image}\n"


class Oracle(tf.Module):
    """A champion that is right to 0.001."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(self, examples):
        return {"target": tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.float32)})["label"]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def tf_examples(self, examples):
        values = self.transform_features(examples)["target"] + 0.001
        return {"classes": values[:, None], "label": tf.as_string(values)}


@pytest.mark.long
def test_a_worse_regression_than_the_champion_is_refused_in_words(regression):
    root, first = regression
    live = Path(first.serving_dir) / "99999999999"
    oracle = Oracle()
    signatures = {"tf_examples": oracle.tf_examples, "transform_features": oracle.transform_features}
    tf.saved_model.save(oracle, str(live), signatures=signatures)
    for name, text in {"task": "regression", "labels": "label"}.items():
        (live / "assets" / name).write_text(f"{text}\n")
    status, summary, output = run(root, "trainer.loss=huber", "evaluation.margin=0.25")
    assert status == 3
    error = first.metrics["mean_absolute_error"]
    assert summary.not_blessed_because == [
        f"mean_absolute_error is {error:.4f}, more than 25% above the champion's 0.0010"
    ]
    assert "champion's mean_absolute_error on it: 0.0010" in output


def test_what_does_not_fit_the_task_is_refused_before_anything_runs(multilabel, regression):
    for root, override, message in (
        (multilabel[0], "task=classification", "was ingested for multilabel"),
        (
            multilabel[0],
            "trainer.label_thresholds={smal: 0.1}",
            "smal: not among the labels of the split train, of which the nearest are small",
        ),
        (multilabel[0], "evaluation.thresholds.accuracy=0.5", "a multilabel has macro_f1"),
        (regression[0], f"data.path={multilabel[0]}/dataset/*/*.tfrecord", "of type float or int64 (task: regression)"),
        (regression[0], f"deploy.path={multilabel[1].serving_dir}", "which is live, does multilabel"),
    ):
        runs = len(list_summaries(root / "runs"))
        sets = [argument for one in [*QUICK, override] for argument in ("--set", one)]
        result = command("run", str(root / "pipeline.yaml"), *sets)
        assert result.exit_code == 2, override
        assert message in result.stderr.replace("\n", " ")
        assert len(list_summaries(root / "runs")) == runs
