"""The report of real models on real digits, in a real browser."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from PIL import Image
from playwright.sync_api import Page, expect

from components.evaluator.evaluation import Evaluation, McNemarResult, MetricValue, Slice
from components.evaluator.evaluation_reader import read_evaluation
from components.model_report import grad_cam
from components.model_report.data_section import describe_data
from components.model_report.evaluation_sections import tabulate_confusion, tabulate_labels
from components.model_report.page import PageInputs, render_page
from components.model_report.picks import Picks, PredictionTable, pick_images, read_predictions, sample_values
from components.predictions.row_writer import write_predictions
from imagepipe.base.features import IMAGE, TARGET, Features
from imagepipe.serving.types import CheckReport
from pipeline.config import EvaluationConfig
from tests import evaluated
from tests.browser import find_violations
from tests.conftest import encode_image
from tests.evaluated import Linear, evaluate, split_digits, train_logistic

MARKUP = "</script><img src=x onerror=\"document.title='owned'\"><b>"


class Served(Linear):
    """The digits' model, with its names as an asset."""

    def __init__(self, weights, bias, assets: Path):
        super().__init__(weights, bias, "classification")
        assets.mkdir()
        (assets / "labels").write_text("\n".join(evaluated.NAMES) + "\n")
        self.labels = tf.saved_model.Asset(str(assets / "labels"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> PageInputs:
    """The inputs of a page; the first image's id is markup, as are the data's findings."""
    root = tmp_path_factory.mktemp("report")
    train, others = split_digits()
    folder = root / "model" / "Format-Serving"
    module = Served(*train_logistic(train, C=0.001), root / "assets")
    signatures = {"tf_examples": module.tf_examples, "transform_features": module.transform_features}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    examples = evaluated.write_examples(root / "examples", evaluated.Digits(others.pixels[:300], others.labels[:300]))
    _add_images(Path(examples.uri) / "Split-eval" / "data.gz")
    model = evaluated.make_artifact(evaluated.standard_artifacts.Model, root / "model")
    config = EvaluationConfig(thresholds={"accuracy": 1}, intervals="none")
    evaluation, _ = evaluate(root, examples, model, None, config)
    split = f"{examples.uri}/Split-eval"
    write_predictions(split, folder, None, Features(), root / "predictions")
    (root / "findings").mkdir()
    suspect = {"split": "eval", "id": MARKUP, "sha256": None, "label": MARKUP, "suggested": "1"}
    finding = {"severity": "warning", "kind": "anomaly", "split": "eval", "feature": MARKUP, "message": MARKUP}
    findings = {"findings": [finding], "near_duplicates": [], "label_errors": [suspect]}
    (root / "findings" / "findings.json").write_text(json.dumps(findings))
    column = {"present": 300, "missing": 0, "min": 1.0, "mean": 2.0, "max": 3.0, "histogram": [[1, 2, 5], [2, 3, 9]]}
    statistics = {"eval": {"count": 300, "labels": {"0": 30, MARKUP: 1}, "columns": {"width": column}}}
    (root / "findings" / "statistics.json").write_text(json.dumps(statistics))
    return PageInputs(
        evaluation=read_evaluation(evaluation),
        predictions=root / "predictions",
        splits={"eval": split},
        model=folder,
        findings=root / "findings",
        serving=CheckReport([], images=32, refusals=9, median_ms=5.0, p95_ms=8.0),
        features=Features(),
        name="digits",
        config={"name": MARKUP},
    )


def _add_images(file: Path) -> None:
    """Adds images of the pixels, and ids, to Examples."""
    records = list(tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file), tf.io.TFRecordOptions("GZIP")) as writer:
        for number, record in enumerate(records):
            example = tf.train.Example.FromString(record)
            feature = example.features.feature
            pixels = np.array(feature["pixels"].float_list.value).reshape(8, 8) * 255
            feature["input"].bytes_list.value.append(encode_image(Image.fromarray(pixels.astype(np.uint8)), "PNG"))
            feature["metadata"].bytes_list.value.append((f"id-{number}" if number else MARKUP).encode())
            writer.write(example.SerializeToString())


@pytest.fixture(scope="module")
def report(inputs, tmp_path_factory) -> Path:
    """The page as a file."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_page(inputs))
    return file


def test_the_page_says_what_tfma_says_to_the_last_printed_digit(inputs, report):
    slices = tfma.load_eval_result(str(inputs.predictions.parent / "evaluation")).slicing_metrics
    ((_, values),) = [(key, values) for key, values in slices if not key]
    shown = dict(re.findall(r'data-metric="(\w+)">([\d.]+)', report.read_text()))
    theirs = {name: value["doubleValue"] for name, value in values[""][""].items() if "doubleValue" in value}
    assert {"accuracy", "macro_f1", "log_loss"} <= set(shown)
    assert shown == {name: f"{theirs[name]:.4f}" for name in shown}


def test_figures_that_say_nothing_are_left_out(inputs):
    whole, part, *_ = inputs.evaluation.slices
    same = replace(whole, champion_metrics=whole.metrics, mcnemar=McNemarResult(0, 0, 1.0))
    undefined = replace(part, metrics={name: MetricValue(None) for name in part.metrics})
    rendered = render_page(replace(inputs, evaluation=replace(inputs.evaluation, slices=[same, undefined])))
    assert "right about the same images" in rendered
    assert "McNemar" not in rendered
    assert "not a number" not in rendered


@pytest.mark.parametrize(
    ("groups", "ungrouped", "counted"),
    [
        (0, 300, ""),
        (40, 0, " over 40 groups"),
        (40, 7, " over 40 groups and 7 images without a group"),
        (1, 1, " over 1 group and 1 image without a group"),
        (1001, 0, " over more than 1,000 groups"),
    ],
)
def test_intervals_and_tests_say_over_how_many_groups_they_are(inputs, groups, ungrouped, counted):
    whole = inputs.evaluation.whole
    metrics = {name: replace(metric, interval=(0.1, 0.2)) for name, metric in whole.metrics.items()}
    grouped = replace(whole, metrics=metrics, groups=groups, ungrouped=ungrouped, mcnemar=McNemarResult(3, 1, 0.6))
    rendered = render_page(replace(inputs, evaluation=replace(inputs.evaluation, slices=[grouped])))
    assert f"; 95 % confidence intervals{counted} in brackets" in rendered
    assert f"McNemar's test{counted}: p = 0.6" in rendered.replace("&#39;", "'")


def test_a_gate_that_checked_nothing_says_so_beside_the_verdict(inputs):
    skipped = [replace(rule, verdict="skipped", because="there is no champion") for rule in inputs.evaluation.rules]
    rendered = render_page(replace(inputs, evaluation=replace(inputs.evaluation, rules=skipped)))
    assert "Blessed: it may go live" in rendered
    assert "The gate checked nothing (there is no champion" in rendered


def test_that_novelty_is_fitted_to_few_images_is_said_among_the_limits(inputs):
    training = inputs.model.parent / "training"
    training.mkdir()
    settings = {"trainer": {"backbone": "mobilenet_v2"}, "image_size": [8, 8], "novelty_doubt": "Novelty is chance"}
    settings["chosen_on"] = {"split": "eval", "images": 5}
    (training / "config.json").write_text(json.dumps(settings))
    try:
        assert "Novelty is chance. The metrics" in render_page(inputs)
    finally:
        shutil.rmtree(training)


def test_mistakes_are_the_surest_wrong_answers_and_each_cell_has_images_of_its_own(inputs, monkeypatch):
    monkeypatch.setattr("components.model_report.picks._ROWS", 64)  # read, and compared, in several parts
    table = read_predictions(inputs.predictions)
    picks = pick_images(table)
    actual = [int(labels[0]) for labels in table.labels]
    wrong = [i for i in range(300) if actual[i] != table.scores[i].argmax()]
    assert [pick.row for pick in picks.mistakes] == sorted(wrong, key=lambda i: -table.scores[i].max())[:18]
    assert sum(picks.counts.values()) == 300
    for (a, p), behind in picks.behind.items():
        assert all((actual[i], table.scores[i].argmax()) == (a, p) for i in behind)
    margins = np.diff(np.sort(table.scores, axis=1)[:, -2:], axis=1)[:, 0]
    assert max(margins[pick.row] for pick in picks.uncertain) <= np.sort(margins)[17]


def test_several_labels_have_the_images_that_each_was_missed_in_and_wrongly_given_to():
    table = PredictionTable(
        task="multilabel",
        names=["a", "b"],
        indexes=np.arange(3),
        ids=["1", "2", "3"],
        labels=[["a"], ["a", "b"], []],
        targets=np.full(3, np.nan),
        scores=np.array([[0.9, 0.2], [0.1, 0.9], [0.2, 0.7]], np.float32),
        answers=["a", "b", "b"],
        novelty=np.array([0.97, 0.2, 0.99]),
    )
    picks = pick_images(table)
    assert picks.behind == {(0, 1): [1], (1, 0): [2]}
    assert [(pick.row, pick.output) for pick in picks.mistakes] == [(1, 0), (2, 1)]
    assert [(pick.row, pick.output) for pick in picks.novel] == [(2, 1), (0, 0)]

    evaluation = Evaluation([Slice({}, 3, {}, None, {}, None)], {}, {}, {}, {}, [])
    decided = {"a": {"threshold": 0.3, "why": "the highest F1"}, "b": {"threshold": 0.5, "why": "too few images"}}
    assert [row["decided"] for row in tabulate_labels(evaluation, table, picks, decided)["rows"]] == [*decided.values()]
    assert not tabulate_labels(evaluation, table, picks, {})["has_thresholds"]  # of a run of an earlier version


def test_a_regression_has_its_largest_errors_and_leaves_out_images_without_a_value():
    table = PredictionTable(
        task="regression",
        names=["label"],
        indexes=np.arange(3),
        ids=["1", "2", "3"],
        labels=[[], [], []],
        targets=np.array([1.0, np.nan, 5.0]),
        scores=np.array([[1.5], [2.0], [9.0]], np.float32),
        answers=["1.5", "2", "9"],
        novelty=np.full(3, np.nan),  # of a model of an earlier version
    )
    assert [pick.row for pick in pick_images(table).mistakes] == [2, 0]
    assert not pick_images(table).novel
    assert sample_values(table, 10) == [(1.0, 1.5), (5.0, 9.0)]


def test_of_many_classes_the_most_frequent_mistakes_are_listed_and_the_others_counted():
    names = [str(i) for i in range(30)]
    confusion = {(i, (i + step) % 30): 1 + (i == 7) for i in range(30) for step in range(4)}
    whole = Slice({}, 121, {}, None, {}, None)
    evaluation = Evaluation([whole], {}, confusion, {}, {}, [])
    listed = tabulate_confusion(evaluation, names, Picks({}, {}, [], [], []))
    assert listed["rows"] is None
    assert {(pair["actual"], pair["predicted"], pair["count"]) for pair in listed["pairs"][:3]} == {
        ("7", "8", 2),
        ("7", "9", 2),
        ("7", "10", 2),
    }
    assert (len(listed["pairs"]), listed["left"]) == (60, 30)


def test_a_heat_map_is_where_the_network_looks(tmp_path):
    """A network that only counts red: the heat is where the red is."""
    image = keras.Input((32, 32, 3), dtype="uint8", name=IMAGE)
    scaled = keras.layers.Rescaling(1 / 255)(image)
    red = keras.layers.Conv2D(2, 4, strides=4, use_bias=False, name="red")
    features = red(scaled)
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[:, :, 0, 0], kernel[:, :, 1, 0], kernel[:, :, 2, 1] = 1, -1, 1
    red.set_weights([kernel])
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    average = keras.Input((2,), name=IMAGE)
    last = keras.layers.Dense(2, name="logits")
    head = keras.Model({IMAGE: average}, keras.layers.Softmax()(last(average)), name="head")
    last.set_weights([np.eye(2, dtype=np.float32), np.zeros(2, np.float32)])
    keras.Model({IMAGE: image}, head({IMAGE: pooled})).save(tmp_path / "model.keras")

    class Decoder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def transform_features(self, examples):
            raw = tf.io.parse_example(examples, {"input": tf.io.FixedLenFeature([], tf.string)})["input"]
            decode = tf.map_fn(tf.io.decode_png, raw, fn_output_signature=tf.TensorSpec([32, 32, 3], tf.uint8))
            return {IMAGE: decode, TARGET: tf.zeros(tf.shape(raw))}

    decoder = Decoder()
    tf.saved_model.save(decoder, str(tmp_path / "m"), signatures={"transform_features": decoder.transform_features})
    pixels = np.full((32, 32, 3), 128, np.uint8)
    pixels[:8, 24:] = (255, 0, 0)
    example = tf.train.Example()
    example.features.feature["input"].bytes_list.value.append(encode_image(Image.fromarray(pixels), "PNG"))
    heat = grad_cam.compute_heat_maps(
        tmp_path / "model.keras", tmp_path / "m", {7: example.SerializeToString()}, {7: 0}
    )[7]
    assert heat.shape == (8, 8)
    assert heat[:2, 6:].min() == 1
    heat[:2, 6:] = 0
    assert heat.max() < 0.01
    over = np.asarray(grad_cam.overlay_heat_map(Image.fromarray(pixels), np.zeros((8, 8), np.float32)))
    assert (over == pixels).all()  # where nothing is hot, the image stays unchanged


def test_images_that_cannot_be_decoded_are_named_and_the_page_is_rendered(inputs, tmp_path):
    (tmp_path / "Split-eval").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "Split-eval" / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for _ in range(300):
            example = tf.train.Example()
            example.features.feature["input"].bytes_list.value.append(b"\xff\xd8\xffno image")
            writer.write(example.SerializeToString())
    rendered = render_page(replace(inputs, splits={"eval": str(tmp_path / "Split-eval")}))
    assert "This image can&#39;t be shown" in rendered or "This image can't be shown" in rendered
    assert "data:image" not in rendered


def open_page(browser, report: Path, width: int = 1000, **options) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(report.as_uri())
    assert {url for url in urls if not url.startswith("data:")} == {report.as_uri()}  # no other host
    return page


@pytest.mark.slow
def test_in_a_browser_the_verdict_shows_cells_open_their_images_and_columns_sort(browser, report):
    page = open_page(browser, report)
    expect(page.locator("#verdict")).to_contain_text("Not blessed")
    expect(page.locator("#verdict li")).to_contain_text("below the threshold of 1")
    cell = page.locator("button[data-cell]").first
    count = int(cell.inner_text())
    cell.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    shown = page.locator("#behind-images li")
    expect(shown).to_have_count(min(count, 3))
    assert shown.first.locator("img").evaluate("image => image.naturalWidth") == 64
    page.keyboard.press("Escape")
    expect(page.locator("#behind")).to_be_hidden()

    column = page.locator("#slices-table thead th").nth(2)
    for order in ("ascending", "descending"):
        column.get_by_role("button").click()
        expect(column).to_have_attribute("aria-sort", order)
        values = page.locator("#slices-table tbody td:nth-child(3)").evaluate_all(
            "all => all.map(c => +c.dataset.value)"
        )
        assert len(set(values)) > 3
        assert values == sorted(values, reverse=order == "descending")


@pytest.mark.slow
def test_in_a_browser_markup_of_strangers_is_text(browser, report):
    page = open_page(browser, report)
    assert page.title() == "digits: report"
    expect(page.locator("#data ~ ul").first).to_contain_text(MARKUP)
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    for cell in page.locator("button[data-cell]").all():
        cell.click()
        page.keyboard.press("Escape")
    assert page.title() == "digits: report"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_is_readable_on_a_phone_and_in_the_dark(browser, report, scheme):
    page = open_page(browser, report, 360, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert find_violations(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.slow
def test_in_a_browser_the_menu_leads_to_each_section(browser, report):
    page = open_page(browser, report)
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    targets = page.locator("nav a").evaluate_all("all => all.map(e => e.hash.slice(1))")
    assert len(targets) > 5
    assert set(targets) <= set(ids)


@pytest.mark.slow
def test_in_a_browser_axe_finds_nothing_in_the_images_behind_a_cell(browser, report):
    page = open_page(browser, report)
    page.locator("button[data-cell]").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert find_violations(page) == []


def test_labels_beyond_those_of_the_table_are_counted(inputs, tmp_path):
    statistics = {"train": {"count": 203, "labels": {f"label {n:03}": 1 for n in range(203)}, "columns": {}}}
    data = describe_data({}, statistics, {}, Features())
    assert (len(data["labels"]), data["labels"][-1], data["labels_left"]) == (200, ("label 199", [1]), 3)
    (tmp_path / "findings.json").write_text("{}")
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    page = render_page(replace(inputs, findings=tmp_path))
    assert "<caption>3 more labels are in DataCheck's statistics.json.</caption>" in page
