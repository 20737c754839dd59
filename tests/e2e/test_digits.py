"""From a folder of images to predictions of the pushed model, by the commands that a user types.

One workdir and two trainings are shared by all tests here, and told in the order in which they happen.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from fastapi.testclient import TestClient
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from typer.testing import CliRunner

import tests
from imagepipe.base.code_closure import PACKAGES, SOURCES
from imagepipe.base.features import IMAGE, TARGET
from imagepipe.base.metrics import METRICS
from imagepipe.deploy.storage import is_same_model
from imagepipe.deploy.versions import list_version_folders
from imagepipe.serving.access import EVERYBODY
from pipeline.cli import app
from pipeline.demo import predict_test_split
from pipeline.runs.dashboard.server import make_app
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir
from tests import small_backbone
from tests.conftest import encode_image, list_summaries
from tests.pipeline.runs.nights import count_bytes, list_files, list_lies, repeat_run
from trainer.export import portable
from trainer.inputs import load_split, make_batches
from trainer.tasks import make_classification
from transform.examples import load_graph, make_parser, read_shards
from transform.images import decode_and_resize

QUICK = ["image.size=[32, 32]", f"trainer.backbone={small_backbone.BACKBONE}", "trainer.epochs=1"]
QUICK += ["evaluation.thresholds.accuracy=0", "evaluation.margin=1"]
QUICK += ["evaluation.intervals=none"]


class Project:
    """A user's folder, and the commands run in it."""

    def __init__(self, root: Path):
        self.root = root
        self.serving = root / "serving" / root.name

    def command(self, *arguments: str):
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    def run(self, *overrides: str) -> tuple[int, Summary]:
        sets = [argument for override in [*QUICK, *overrides] for argument in ("--set", override)]
        result = self.command("run", str(self.root / "pipeline.yaml"), *sets)
        self.messages = result.stderr
        return result.exit_code, list_summaries(self.root / "runs")[0]

    def versions(self) -> list[str]:
        return [folder.name for folder in list_version_folders(self.serving)]


@pytest.fixture(scope="module")
def project(digits_folder, tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("e2e") / "digits")
    source = tmp_path_factory.mktemp("source") / "images"
    shutil.copytree(digits_folder, source)
    (source / "3" / "broken.png").write_bytes(b"")
    ingested = project.command("ingest", str(source), "--out", str(project.root / "dataset"))
    assert ingested.exit_code == 0
    assert "401 records in = 400 written" in ingested.stdout
    assert project.command("init", str(project.root / "dataset")).exit_code == 0
    return project


@pytest.fixture(scope="module")
def first(project) -> Summary:
    """The first run, in a process of its own as a user starts it: nothing is live yet."""
    sets = [argument for override in [*QUICK, "trainer.weights=none"] for argument in ("--set", override)]
    command = [sys.executable, "-m", "imagepipe", "run", str(project.root / "pipeline.yaml"), *sets, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    assert done.returncode == 0, done.stderr
    summary = Summary.model_validate_json(done.stdout)  # nothing else is printed there
    assert [summary] == list_summaries(project.root / "runs")
    assert all(f"  {node.id}" in done.stderr for node in summary.nodes)
    return summary


@pytest.fixture(scope="module")
def refused(project, first) -> Summary:
    """The same model, against a threshold that it can't reach."""
    status, summary = project.run("trainer.weights=none", "evaluation.thresholds.log_loss=0")
    assert (status, summary.status) == (3, "done"), summary.error
    return summary


@pytest.fixture(scope="module")
def second(project, first, refused) -> Summary:
    """Another model, fine-tuned from the first one's weights, against the first one as champion."""
    status, summary = project.run(*fine_tune(first))
    assert (status, summary.status) == (0, "done"), summary.error
    return summary


def fine_tune(first: Summary) -> list[str]:
    weights = Path(str(first.model_dir)).parent / "training" / "base.weights.h5"
    return [f"trainer.weights={weights}", "trainer.head_epochs=1", "evaluation.margin=0.9"]


def test_a_first_run_without_champion_is_blessed_and_pushed(project, first):
    assert first.blessed
    assert first.champion_metrics is None
    assert not any(node.cached for node in first.nodes)
    ids = [node.id for node in first.nodes]
    # The compiler orders nodes that don't depend on each other, such as Predictions and Evaluator, as it likes.
    order = [ids.index(name) for name in ("Champion", "Evaluator", "ServingCheck", "Pusher", "ModelReport")]
    assert order == sorted(order)
    assert ids.index("Champion") < ids.index("Predictions") < ids.index("ModelReport")
    assert "Blessed: it may go live" in (project.root / "runs" / first.run_id / "report.html").read_text()
    pushed = Path(first.serving_dir) / str(first.pushed_version)
    assert (pushed / "saved_model.pb").exists()
    assert (pushed / "assets" / "labels").read_text().split() == [str(digit) for digit in range(10)]
    assert set(first.metrics) == {*METRICS["classification"], "example_count"}
    dataset = json.loads((project.root / "dataset" / "dataset.json").read_text())
    assert first.metrics["example_count"] == dataset["splits"]["eval"]["records"]
    assert set(first.metrics_by_class) == set(dataset["splits"]["eval"]["labels"])


def test_the_summary_says_what_tfma_says_to_the_last_digit_and_what_became_of_each_rule(project, first):
    (folder,) = (project.root / "artifacts" / "Evaluator" / "evaluation").iterdir()
    ((_, values),) = [part for part in tfma.load_eval_result(str(folder)).slicing_metrics if not part[0]]
    theirs = {name: value["doubleValue"] for name, value in values[""][""].items() if "doubleValue" in value}
    assert first.metrics == {name: theirs[name] for name in first.metrics}
    assert tfma.load_validation_result(str(folder)).validation_ok
    assert [(rule.metric, rule.kind, rule.value, rule.verdict) for rule in first.rules] == [
        ("accuracy", "min", theirs["accuracy"], "passed"),
        ("accuracy", "not_worse_than_champion", theirs["accuracy"], "skipped"),
    ]
    (listed,) = json.loads(project.command("runs", str(project.root), "--json").stdout)
    assert listed["metrics"] == first.metrics
    assert listed["rules"] == [asdict(rule) for rule in first.rules]


def test_what_the_models_say_is_kept_a_row_an_image(project, first):
    (folder,) = (project.root / "artifacts" / "Predictions" / "predictions").iterdir()
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(rows) == first.metrics["example_count"]
    right = [row["candidate_label"] == row["labels"][0] for row in rows]
    assert np.mean(right) == pytest.approx(first.metrics["accuracy"])
    assert all(row["id"].endswith(".png") and row["width"] == 80 and row["champion"] is None for row in rows)


@pytest.mark.slow
def test_the_notebook_shows_a_run_in_tfdvs_and_tfmas_own_views(project, first, monkeypatch):
    monkeypatch.setenv("IMAGEPIPE_WORKDIR", str(project.root))
    notebook = json.loads((Path(__file__).parents[2] / "docs" / "evaluation.ipynb").read_text())
    shell = InteractiveShell()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            shell.run_cell("".join(cell["source"]), silent=True).raise_error()
    accuracy = 1 - len(shell.user_ns["mistakes"]) / len(shell.user_ns["answers"])
    assert accuracy == pytest.approx(first.metrics["accuracy"])


def test_a_run_tells_of_its_data_and_leaves_with_the_model_what_later_data_is_compared_with(project, first):
    folder = Path(str(first.data_dir))
    statistics = json.loads((folder / "statistics.json").read_text())
    dataset = json.loads((project.root / "dataset" / "dataset.json").read_text())
    assert {name: (split["count"], split["labels"]) for name, split in statistics.items()} == {
        name: (split["records"], split["labels"]) for name, split in dataset["splits"].items()
    }
    assert statistics["train"]["columns"]["width"]["max"] == 80
    assert {"aspect", "bytes", "brightness", "contrast"} <= set(statistics["eval"]["columns"])
    findings = json.loads((folder / "findings.json").read_text())["findings"]
    assert not [finding for finding in findings if finding["severity"] == "error"]
    assert not [
        finding for finding in findings if finding["kind"] in ("drift", "skew", "anomaly")
    ]  # chance is no drift
    pushed = Path(first.serving_dir) / str(first.pushed_version)
    (stats,) = (project.root / "artifacts" / "StatisticsGen" / "statistics").glob("*/Split-train/FeatureStats.pb")
    assert (pushed / "assets.extra" / "train_statistics.pb").read_bytes() == stats.read_bytes()


@pytest.mark.slow
def test_the_schema_of_a_dataset_and_of_a_run_is_shown_and_frozen_for_a_person_to_curate(project, first, tmp_path):
    run = str(project.root / "runs" / first.run_id)
    for source in (str(project.root / "dataset"), run):
        shown = json.loads(project.command("schema", source, "--json").stdout)
        by_name = {column["name"]: column for column in shown}
        assert by_name["label"]["values"] == f"{', '.join('0123456789')}; min_images.train=10; min_images.eval=1"
        assert by_name["label"]["required"]
        assert by_name["width"]["values"] == "80 to 80"
        assert set(by_name) >= {"input", "brightness", "bytes"}
    curated = tmp_path / "curated.pbtxt"
    assert project.command("schema", run, "--freeze", str(curated)).exit_code == 0
    assert project.command("schema", run, "--freeze", str(curated)).exit_code == 2  # somebody may have curated it
    curated.write_text(curated.read_text().replace("min_images.eval=1", "min_images.eval=100"))
    status, summary = project.run(f"data.curated_schema={curated}")
    assert (status, summary.status) == (1, "failed")
    assert "'0' has" in str(summary.error)
    assert "in the split eval, and at least 100 are needed" in str(summary.error)
    assert "Transform" not in {node.id for node in summary.nodes}


def test_a_server_gives_the_answers_of_the_graph_that_was_evaluated(first):
    assert first.serving.problems == []
    assert first.serving.images == 32
    assert first.serving.p95_ms >= first.serving.median_ms > 0


def test_a_run_leaves_curves_a_confusion_matrix_and_the_whole_log(project, first):
    folder = project.root / "runs" / first.run_id
    for picture in ("curves.png", "confusion_matrix.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 300
    assert "images/s" in (folder / "log.txt").read_text()
    training = Path(str(first.model_dir)).parent / "training"
    (epoch,) = json.loads((training / "history.json").read_text())
    assert epoch["images_per_second"] > 0
    assert not list(training.glob("tmp*"))  # the pixels kept while training are gone


@pytest.mark.slow
def test_a_report_that_is_gone_is_made_again_from_what_the_run_left(project, first, tmp_path):
    run = project.root / "runs" / first.run_id
    kept = (run / "report.html").read_text()
    copied = project.command("report", str(run), "--out", str(tmp_path / "kept.html"))
    assert copied.exit_code == 0, copied.stderr
    assert (tmp_path / "kept.html").read_text() == kept
    (run / "report.html").unlink()
    remade = project.command("report", str(run))
    assert remade.exit_code == 0, remade.stderr
    assert str(run / "report.html") in remade.stdout.replace("\n", "")
    undated = [re.sub(r"page written at [-:\d ]+", "", text) for text in (kept, (run / "report.html").read_text())]
    assert undated[0] == undated[1]


def test_a_folder_that_is_no_run_or_got_nowhere_has_no_report(project, tmp_path):
    result = project.command("report", str(tmp_path))
    assert (result.exit_code, "is no run" in result.stderr.replace("\n", " ")) == (2, True)


def test_what_the_gate_refuses_is_not_pushed_and_the_reason_has_the_figures(project, first, refused):
    assert refused.blessed is False
    assert refused.not_blessed_because == [f"log_loss is {refused.metrics['log_loss']:.4f}, above the threshold of 0"]
    assert refused.pushed_version is None
    assert [node.id for node in refused.nodes if not node.cached] == ["Evaluator", "Pusher", "ModelReport"]


def test_a_second_run_without_changes_asks_the_target_alone_and_pushes_nothing(project, first, refused):
    versions = project.versions()
    status, again = project.run("trainer.weights=none")
    assert status == 0
    assert [node.id for node in again.nodes if not node.cached] == ["Pusher"]
    assert again.metrics == first.metrics
    assert again.pushed_version == first.pushed_version
    assert again.push.outcome == "already_deployed"
    assert project.versions() == versions
    assert f"not pushed again, as it is version {first.pushed_version} already" in project.messages
    assert project.messages.endswith(f"filesystem: version {first.pushed_version} is live\n")


@pytest.mark.slow
def test_a_corrected_metric_is_computed_again_and_corrected_words_train_nothing(project, first, refused, tmp_path):
    for name in PACKAGES:
        shutil.copytree(SOURCES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for file in (tests.__file__, small_backbone.__file__):  # the backbone's code is part of the key
        shutil.copy(file, tmp_path / "tests")
    metrics, network = tmp_path / "components/evaluator/tfma_metrics.py", tmp_path / "trainer/network.py"
    body = "    return float(np.mean("
    assert body in metrics.read_text()
    metrics.write_text(metrics.read_text().replace(body, f"    return 0.125\n{body}"))
    network.write_text(f'"""Other words."""\n# A comment.\n{network.read_text()}')
    sets = [argument for override in [*QUICK, "trainer.weights=none"] for argument in ("--set", override)]
    command = [sys.executable, "-m", "imagepipe", "run", str(project.root / "pipeline.yaml"), *sets, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603 (our own)
    assert done.returncode == 0, done.stderr
    summary = Summary.model_validate_json(done.stdout)
    assert summary.metrics == first.metrics | {"macro_f1": 0.125}
    # Pusher and ModelReport take the Evaluator's new blessing.
    assert {node.id for node in summary.nodes if not node.cached} == {"Evaluator", "Pusher", "ModelReport"}


def test_a_pushed_version_leads_to_what_made_it_and_running_that_again_brings_it_back(project, first, refused):
    told = project.command("lineage", str(project.serving / str(first.pushed_version)), "--json")
    assert told.exit_code == 0
    lineage = json.loads(told.stdout)
    assert (lineage["run_id"], lineage["trained_by"], lineage["verified"]) == (first.run_id, first.run_id, True)
    assert lineage["dataset"]["fingerprint"] == lineage["dataset_fingerprint_now"]
    assert lineage["dataset"]["records"]["eval"] == first.metrics["example_count"]
    assert lineage["config"]["trainer"]["epochs"] == 1  # as it was set for the run
    assert lineage["packages"]["tensorflow"] == tf.__version__
    assert {execution["node"] for execution in lineage["executions"]} >= {
        "ImportExampleGen",
        "Transform",
        "Trainer",
        "Pusher",
    }

    shutil.rmtree(project.serving)  # what was lost is pushed again, and that alone
    _, *arguments = shlex.split(lineage["again"])
    assert project.command(*arguments).exit_code == 0
    again = list_summaries(project.root / "runs")[0]
    assert [node.id for node in again.nodes if not node.cached] == ["Pusher"]
    assert (again.metrics, again.push.outcome) == (first.metrics, "pushed")
    assert project.versions() == [again.pushed_version]
    assert again.traffic == {again.pushed_version: 100}
    (project.serving / str(again.pushed_version)).rename(project.serving / str(first.pushed_version))


@pytest.mark.long
def test_running_a_stored_configuration_elsewhere_gives_the_same_accuracy(project, first, tmp_path):
    stored = project.root / "runs" / first.run_id / "config.yaml"
    assert project.command("run", str(stored), "--workdir", str(tmp_path)).exit_code == 0
    (again,) = list_summaries(tmp_path / "runs")
    assert not any(node.cached for node in again.nodes)  # it was trained anew
    assert again.metrics["accuracy"] == first.metrics["accuracy"]


def test_the_dashboard_shows_the_runs_that_were_made(project, first, refused):
    asked = TestClient(make_app(Workdir(project.root), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")
    listed = asked.get("/").text
    assert f"runs/{first.run_id}/report.html" in listed
    shown = asked.get(f"/runs/{refused.run_id}/index.html").text
    assert "log_loss is" in shown
    states = dict(re.findall(r'aria-label="(\w+), ([a-z ]+)"', shown))
    assert states == {node.id: "cached" if node.cached else "done" for node in refused.nodes}
    assert f'made by <a href="../../runs/{first.run_id}/index.html">' in shown
    for path in (
        f"runs/{first.run_id}/report.html",
        f"compare/{first.run_id}/{refused.run_id}/index.html",
        f"versions/{project.root.name}/{first.pushed_version}/index.html",
    ):
        assert asked.get(f"/{path}").status_code == 200


def test_predict_answers_for_a_model_a_serving_folder_and_a_run(project, first, digits_folder):
    images = sorted(str(path) for path in digits_folder.glob("5/*.png"))[:3]
    answers = {}
    for model in (project.serving, Path(str(first.model_dir)), project.root / "runs" / first.run_id):
        result = project.command("predict", str(model), *images, "--json", "--top", "2")
        assert result.exit_code == 0
        answers[model] = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers[project.serving] == answers[Path(str(first.model_dir))]
    assert [a["id"] for a in answers[project.serving]] == images
    assert all(len(a["classes"]) == 2 and a["score"] == max(a["classes"].values()) for a in answers[project.serving])
    plain = project.command("predict", str(project.serving), images[0])
    first_answer = answers[project.serving][0]
    assert plain.stdout == f"{first_answer['label']} {first_answer['score']:.4f}  {images[0]}\n"


def test_one_bad_image_has_its_own_error_and_the_others_are_answered(project, first, digits_folder, tmp_path):
    good = str(next(digits_folder.glob("2/*.png")))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    result = project.command("predict", str(project.serving), str(tmp_path / "bad.jpg"), good, "--json")
    bad, answered = (json.loads(line) for line in result.stdout.splitlines())
    assert result.exit_code == 1
    assert set(bad) == {"id", "error"}
    assert answered["id"] == good


def test_a_rotated_photo_is_predicted_like_its_upright_twin(project, first, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "upright.jpg").write_bytes(encode_image(photo, quality=100, subsampling=0))
    lying = photo.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "lying.jpg").write_bytes(encode_image(lying, quality=100, subsampling=0, exif=exif))
    result = project.command("predict", str(project.serving), str(tmp_path), "--json", "--top", "10")
    one, other = (json.loads(line)["classes"] for line in result.stdout.splitlines())
    assert one == pytest.approx(other, abs=0.02)


@pytest.mark.slow
def test_a_second_model_is_held_against_the_champion(project, first, second):
    assert second.champion_metrics == first.metrics
    assert second.metrics != first.metrics
    assert [node.id for node in second.nodes if node.cached] == [
        "ImportExampleGen",
        "StatisticsGen",
        "ImageSchemaGen",
        "ExampleValidator",
        "DataCheck",
        "DataGate",
        "Transform",
    ]
    assert project.versions() == [first.pushed_version, second.pushed_version]
    history = json.loads((Path(str(second.model_dir)).parent / "training" / "history.json").read_text())
    assert [row["phase"] for row in history] == ["head", "upper blocks"]


class Oracle(tf.Module):
    """A champion that is always right, but was made before there was a digit 9: it knows nine classes."""

    def __init__(self):
        super().__init__()
        digits = tf.constant([str(digit) for digit in range(9)])
        indices = tf.range(9, dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(digits, indices), -1)

    def target(self, examples: tf.Tensor) -> tf.Tensor:
        parsed = tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.string)})
        return self.table.lookup(parsed["label"])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(self, examples):
        return {TARGET: self.target(examples)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def tf_examples(self, examples):
        target = tf.maximum(self.target(examples), 0)
        return {"classes": tf.one_hot(target, 9), "label": tf.as_string(target)}


@pytest.mark.slow
def test_a_model_that_falls_behind_the_champion_is_refused_in_words(project, first):
    live = project.serving / "99999999999"
    oracle = Oracle()
    signatures = {"tf_examples": oracle.tf_examples, "transform_features": oracle.transform_features}
    tf.saved_model.save(oracle, str(live), signatures=signatures)
    (live / "assets" / "labels").write_text("\n".join(map(str, range(9))))
    status, summary = project.run("trainer.weights=none", "evaluation.margin=0.001")
    shutil.rmtree(live)

    nines = (first.metrics_by_class.get("9") or {}).get("example_count") or 0
    champion = 1 - nines / first.metrics["example_count"]
    assert nines > 0
    assert summary.champion_metrics["accuracy"] == pytest.approx(champion)
    assert summary.champion_metrics["log_loss"] > 0  # it doesn't know every label, and that is no error
    assert status == 3
    assert summary.not_blessed_because == [
        f"accuracy is {first.metrics['accuracy']:.4f}, more than 0.001 below the champion's {champion:.4f}"
    ]


def test_pixels_and_predictions_are_the_same_in_training_evaluation_and_serving(project, first, tmp_path):
    import tensorflow_transform as tft

    from imagepipe.base.features import Features

    model = tf.saved_model.load(first.model_dir)
    (transform_output,) = (project.root / "artifacts" / "Transform" / "transform_graph").iterdir()
    output = tft.TFTransformOutput(str(transform_output))
    _, transform = load_graph(output)
    parse = make_parser(output, Features(), with_label=True)
    pattern = str(next((project.root / "artifacts" / "ImportExampleGen" / "examples").iterdir()) / "Split-eval" / "*")
    task = make_classification(10)
    records = read_shards([pattern])
    split = load_split(records, lambda serialized: transform(parse(serialized)), task, tmp_path / "pixels")
    ((trained_on, targets),) = make_batches(split, 1000)
    serialized = list(read_shards([pattern]).as_numpy_iterator())

    transformed = model.signatures["transform_features"](examples=tf.constant(serialized))
    by_examples = model.signatures["tf_examples"](examples=tf.constant(serialized))
    features = [tf.train.Example.FromString(record).features.feature for record in serialized]
    by_default = model.signatures["serving_default"](
        input=tf.constant([f["input"].bytes_list.value[0] for f in features]),
        metadata=tf.constant([f["metadata"].bytes_list.value[0] for f in features]),
    )
    assert np.array_equal(trained_on[IMAGE], transformed[IMAGE])
    assert np.array_equal(targets, task.encode(task.compact(transformed[TARGET])))
    for key in ("classes", "label", "score", "novelty", "metadata"):
        assert np.array_equal(by_examples[key], by_default[key]), key
    labels = np.array([f["label"].bytes_list.value[0] for f in features])
    assert (by_default["label"].numpy() == labels).mean() == pytest.approx(first.metrics["accuracy"])


def test_the_demo_scores_a_pushed_model_on_images_of_the_test_split_and_their_folders(project, first, tmp_path):
    (tmp_path / "dataset").symlink_to(project.root / "dataset")
    (tmp_path / "runs" / first.run_id).mkdir(parents=True)
    picture, accuracy, shown = predict_test_split(tmp_path, first.model_copy())
    files = [str(file) for file in (tmp_path / "dataset" / "test").glob("*.tfrecord")]
    records = [tf.train.Example.FromString(r) for r in tf.data.TFRecordDataset(files).as_numpy_iterator()]
    labels = {
        record.features.feature["metadata"].bytes_list.value[0]: record.features.feature["label"].bytes_list.value[0]
        for record in records
    }
    assert shown
    assert {e.id.encode(): e.actual.encode() for e in shown}.items() <= labels.items()
    pushed = str(Path(first.serving_dir) / str(first.pushed_version))
    answers = [json.loads(line) for line in project.command("predict", pushed, *files, "--json").stdout.splitlines()]
    assert len(answers) == len(records)
    assert accuracy == np.mean([a["label"].encode() == labels[a["id"].encode()] for a in answers])
    assert list_summaries(tmp_path / "runs")[0].test_accuracy == accuracy
    assert Image.open(picture).width > 0


@pytest.mark.slow
def test_requests_written_in_each_format_are_answered_as_the_images_are(project, first, digits_folder, tmp_path):
    images = sorted(str(path) for path in digits_folder.glob("5/*.png"))[:3]
    shown = project.command("predict", str(project.serving), *images).stdout
    for kind, name in {"jsonl": "x.jsonl", "npy": "x.npz", "tfrecord": "x.tfrecord.gz"}.items():
        written = project.command("requests", *images, "--format", kind, "--out", str(tmp_path / name))
        assert written.stdout == f"Wrote 3 requests to {tmp_path / name}\n"
        assert project.command("predict", str(project.serving), str(tmp_path / name)).stdout == shown

    tool = [
        str(Path(sys.executable).parent / "saved_model_cli"),
        "run",
        "--dir",
        str(project.serving / project.versions()[-1]),
    ]
    tool += ["--tag_set", "serve", "--signature_def", "serving_default", "--outdir", str(tmp_path)]
    given = f"input={tmp_path}/x.npz[input];metadata={tmp_path}/x.npz[metadata]"
    subprocess.run([*tool, "--inputs", given], check=True, capture_output=True)  # noqa: S603 (our own command)
    labels = [line.split()[0] for line in shown.splitlines()]
    assert [label.decode() for label in np.load(tmp_path / "label.npy", allow_pickle=True)] == labels
    assert [name.decode() for name in np.load(tmp_path / "metadata.npy", allow_pickle=True)] == images


@pytest.mark.parametrize(
    ("kind", "precision", "suffix", "tolerance"),
    [
        pytest.param("tflite", "float16", ".tflite", 0.02, marks=pytest.mark.slow),
        pytest.param("onnx", "float32", ".onnx", 0.02, marks=pytest.mark.long),
        # This network's answers, which an epoch has left near a tenth each, move easily: int8 says nothing of them.
        pytest.param("onnx", "int8", ".onnx", 1.0, marks=pytest.mark.slow),
        pytest.param("openvino", "float16", ".xml", 0.02, marks=pytest.mark.slow),
    ],
)
def test_an_export_says_what_the_served_model_says(
    project, first, digits_folder, tmp_path, kind, precision, suffix, tolerance
):
    run, file = str(project.root / "runs" / first.run_id), tmp_path / f"digits{suffix}"
    options = ["--format", kind, "--precision", precision, "--out", str(file)]
    written = project.command("export", run, *options)
    assert written.exit_code == 0, written.output
    card = json.loads(Path(f"{file}.json").read_text())
    assert card["labels"] == [str(digit) for digit in range(10)]
    assert (card["run"], card["input"]["size"]) == (first.run_id, [32, 32])
    figures = card["compared_on_eval"]
    assert figures["images"] == first.metrics["example_count"]
    assert figures["accuracy_of_the_model"] == pytest.approx(first.metrics["accuracy"])
    assert figures["mean_difference"] < tolerance

    ask = {"tflite": portable.open_tflite, "onnx": portable.open_onnx, "openvino": portable.open_openvino}[kind](file)
    images = [str(path) for digit in range(10) for path in sorted(digits_folder.glob(f"{digit}/*.png"))[:2]]
    pixels = np.concatenate([decode_and_resize(tf.constant([Path(image).read_bytes()]), (32, 32)) for image in images])
    lines = project.command("predict", run, *images, "--top", "10", "--json").stdout.splitlines()
    served = [[json.loads(line)["classes"][str(digit)] for digit in range(10)] for line in lines]
    answers = ask(pixels)
    assert np.abs(answers["classes"] - served).mean() < tolerance
    assert [output["name"] for output in card["outputs"]] == ["classes", "novelty", "embedding"]
    assert set(answers) == {"classes", "novelty", "embedding"}
    assert figures["novelty"]["mean_difference"] < 5 * tolerance  # it rises steeply where an epoch has left it


@pytest.mark.slow
def test_an_exported_saved_model_is_the_runs(project, first, digits_folder, tmp_path):
    run, images = str(project.root / "runs" / first.run_id), [str(path) for path in digits_folder.glob("3/*.png")][:3]
    written = project.command("export", run, "--format", "saved_model", "--out", str(tmp_path / "digits"))
    assert written.exit_code == 0, written.output
    assert "It was not compared with the model: it is a copy of the run's model." in written.output
    answers = [project.command("predict", model, *images).stdout for model in (str(tmp_path / "digits"), run)]
    assert answers[0] == answers[1]


def test_requests_of_what_is_no_image_are_left_out_and_said(project, digits_folder, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    good = str(next(digits_folder.glob("2/*.png")))
    result = project.command("requests", str(tmp_path / "bad.jpg"), good, "--out", str(tmp_path / "x.jsonl"))
    assert result.exit_code == 1
    assert "Wrote 1 request to" in result.stdout
    assert "bad.jpg" in result.stderr


def fail_in_trainer(first: Summary) -> list[str]:
    """Settings whose fault is found only when the network is there."""
    weights = Path(str(first.model_dir)).parent / "training" / "base.weights.h5"
    return [f"trainer.weights={weights}", "trainer.unfreeze_after=block_99_add"]


@pytest.mark.slow
def test_a_failed_node_stops_the_run_and_the_next_one_goes_on_from_there(project, first, second, tmp_path):
    """The run that fails has a curated schema, which takes the place of the inferred one."""
    curated = tmp_path / "curated.pbtxt"
    (inferred,) = (project.root / "artifacts" / "ImageSchemaGen" / "schema").glob("*/schema.pbtxt")
    shutil.copy(inferred, curated)
    status, failed = project.run(*fail_in_trainer(first), f"data.curated_schema={curated}")
    assert status == 1
    assert failed.status == "failed"
    assert "Trainer failed: " in str(failed.error)
    assert "there is no layer 'block_99_add'" in str(failed.error)
    assert Path(failed.log).exists()
    nodes = [node.id for node in first.nodes]
    looked = ["Features", "FeatureCheck", "FeatureGate"]  # through the pretrained weights
    expected = {*nodes[: nodes.index("Trainer")], *looked, "ImportSchemaGen"} - {"ImageSchemaGen"}
    assert {node.id for node in failed.nodes} == expected
    status, again = project.run("trainer.weights=none")
    assert (status, again.push.outcome) == (3, "replaced")  # by the second model, which stays live
    assert [node.id for node in again.nodes if node.cached][:6] == [node.id for node in first.nodes][:6]


@pytest.mark.slow
def test_a_run_does_not_undo_a_rollback_and_the_command_that_it_shows_does(project, first, second):
    assert project.command("rollback", "--config", str(project.root / "pipeline.yaml")).exit_code == 0
    weights = Path(str(first.model_dir)).parent / "training" / "base.weights.h5"
    status, again = project.run(f"trainer.weights={weights}", "trainer.head_epochs=1", "evaluation.margin=0.9")
    assert [node.id for node in again.nodes if not node.cached] == ["Pusher"]
    assert (status, again.blessed, again.pushed_version) == (3, True, None)
    assert (again.push.outcome, again.push.version) == ("rolled_back", second.pushed_version)
    assert f"version {second.pushed_version}, which was rolled back" in project.messages
    assert project.messages.endswith(f"filesystem: version {first.pushed_version} is live\n")
    assert project.versions() == [first.pushed_version]
    shown = (
        TestClient(make_app(Workdir(project.root), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")
        .get(f"/runs/{again.run_id}/index.html")
        .text
    )
    assert "which was rolled back" in shown

    (command,) = [line for line in project.messages.splitlines() if line.startswith("imagepipe deploy")]
    assert project.command(*shlex.split(command)[1:]).exit_code == 0
    assert is_same_model(str(second.model_dir), str(project.serving / project.versions()[-1]))


def test_a_curated_schema_that_lacks_a_feature_is_refused(project, tmp_path):
    (tmp_path / "curated.pbtxt").write_text('feature { name: "label" type: BYTES }')
    sets = ["--set", "trainer.weights=none", "--set", f"data.curated_schema={tmp_path}/curated.pbtxt"]
    result = project.command("run", str(project.root / "pipeline.yaml"), *sets)
    assert result.exit_code == 2
    assert "curated.pbtxt lacks input" in result.stderr


def test_what_cannot_work_is_refused_before_anything_runs(project, first):
    runs = len(list_summaries(project.root / "runs"))
    sets = ["--set", "trainer.weights=none", "--set", "data.features.categorical=[colour]"]
    result = project.command("run", str(project.root / "pipeline.yaml"), *sets)
    assert result.exit_code == 2
    assert "data.features.categorical" in result.stderr
    assert "colour" in result.stderr
    assert len(list_summaries(project.root / "runs")) == runs


@pytest.mark.slow
def test_thirty_nights_are_cleaned_and_the_next_run_is_still_all_cached(project, first, refused, second):
    """The last one here, as it removes what the others look at."""
    workdir, versions = Workdir(project.root), project.versions()
    repeat_run(workdir, first, range(28))
    _, newest = project.run(*fine_tune(first))
    size, files = count_bytes(project.root), list_files(workdir)
    cleaned = project.command("clean", str(project.root), "--keep", "1", "--json")
    assert cleaned.exit_code == 0, cleaned.stderr
    assert json.loads(cleaned.stdout)["freed"] == size - count_bytes(project.root) > 28 * 10**6
    assert list_lies(workdir, files) == set()
    # The live version's run stays, and that of its champion, in which the weights are that the network started from.
    assert project.versions() == versions
    models = [path.parent for path in (project.root / "artifacts" / "Trainer" / "model").glob("*/Format-Serving")]
    assert set(models) == {Path(str(summary.model_dir)).parent for summary in (first, second)}

    _, again = project.run(*fine_tune(first), "run.keep=1")
    assert [node.id for node in again.nodes if node.cached] == [node.id for node in newest.nodes if node.cached]
    assert {node.id for node in again.nodes if not node.cached} <= {"Pusher"}
    assert again.metrics == second.metrics
    assert project.versions() == versions
    assert count_bytes(project.root) < size
