"""`imagepipe train`: one command from a folder to a served classifier, and the commands that it prints.

Both folders are called like patterns of names, which TFX would expand.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.workdir import Workdir
from tests.conftest import list_summaries, make_digit_images
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.long  # tests/e2e/test_containers.py has a shorter one

QUICK = ["image.size=[32, 32]", f"trainer.backbone={BACKBONE}", "trainer.weights=none", "trainer.epochs=1"]
QUICK += ["evaluation.thresholds.accuracy=0", "evaluation.margin=1", "evaluation.intervals=none"]
SETS = [argument for override in QUICK for argument in ("--set", override)]


def imagepipe(*arguments) -> Result:
    """In this process, as another one would import TFX again."""
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes, 209 digits; one more lies beside."""
    source = tmp_path_factory.mktemp("source") / "photos [2026] *?"
    for number, (label, png) in enumerate(make_digit_images(210)):
        path = source / f"class {int(label) % 2}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    (source / "class 0" / "0000.png").rename(source.parent / "later.png")
    return source


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Iterator[Path]:
    """The folder for all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield tmp_path_factory.mktemp("out") / "my [flowers] *?"


@pytest.fixture(scope="module")
def first(source, out) -> Result:
    done = imagepipe("train", source, "--out", out, *SETS)
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def second(first, source, out) -> Result:
    """The same command once more, when there is another image."""
    (source.parent / "later.png").rename(source / "class 0" / "0000.png")
    config = (out / "pipeline.yaml").read_text()
    done = imagepipe("train", source, "--out", out, *SETS)
    assert done.exit_code == 0, done.stderr
    assert (out / "pipeline.yaml").read_text() == config
    return done


def test_one_command_leads_to_answers(first, source, out):
    assert "209 records in = 209 written" in first.stdout
    commands = {
        words: shlex.split(command) for words, _, command in (x.partition(": ") for x in first.stdout.splitlines())
    }
    assert commands["Serve it"] == ["imagepipe", "serve", str(out / "serving" / "my-flowers")]
    assert commands["Change the configuration, and run it again"] == ["imagepipe", "run", str(out / "pipeline.yaml")]
    (report,) = out.glob("runs/*/report.html")
    assert f"Its report: {report}" in first.stdout
    answers = imagepipe(*commands["Ask it"][1:-1], source.parent / "later.png", "--json")
    assert json.loads(answers.stdout)["label"].startswith("class ")


def test_a_second_one_adds_to_it(second):
    assert "210 records in = 210 written (1 new, 209 were there already)" in second.stdout
    assert "It was there, and is kept." in second.stderr


def test_a_folder_that_is_called_like_a_pattern_is_one_for_every_command_and_named_as_it_is(second, source, out):
    assert imagepipe("run", out / "pipeline.yaml", *SETS, "--set", "evaluation.margin=0.99").exit_code == 0
    link = Workdir(out).plain_artifacts
    link.unlink()  # somebody has tidied up: it is made again
    again = imagepipe("run", out / "pipeline.yaml", *SETS)
    assert again.exit_code == 0, again.stderr
    newest, other, first, _ = list_summaries(out / "runs")
    assert [node.id for node in newest.nodes if not node.cached] == ["Pusher"]
    assert "Evaluator" in {node.id for node in other.nodes if not node.cached}
    assert newest.model_dir == first.model_dir
    assert Path(str(newest.model_dir)).is_relative_to(out / "artifacts")

    answer = imagepipe("predict", out / "runs" / newest.run_id, source / "class 0" / "0000.png", "--json")
    assert json.loads(answer.stdout)["label"].startswith("class ")
    traced = imagepipe("lineage", out / "serving" / "my-flowers", "--json")
    lineage = json.loads(traced.stdout)
    assert (lineage["trained_by"], lineage["verified"]) == (first.run_id, True)
    outputs = [artifact["uri"] for execution in lineage["executions"] for artifact in execution["outputs"]]
    assert all(Path(uri).is_relative_to(out / "artifacts") for uri in outputs)
    report = out / "runs" / newest.run_id / "report.html"
    report.unlink()
    remade = imagepipe("report", out / "runs" / newest.run_id)
    assert remade.exit_code == 0, remade.stderr

    cleaned = imagepipe("clean", out, "--keep", "1", "--json")
    assert cleaned.exit_code == 0, cleaned.stderr
    removed = [Path(removal["path"]) for removal in json.loads(cleaned.stdout)["removals"]]
    assert removed
    assert all(path.is_relative_to(out / "artifacts") for path in removed)
    assert not any(path.exists() for path in removed)
    assert Path(str(newest.model_dir)).exists()

    shown = [again.stdout, again.stderr, traced.stdout, remade.stdout, cleaned.stdout, report.read_text()]
    shown += [summary.model_dump_json() for summary in list_summaries(out / "runs")]
    assert not any(str(link) in text for text in shown)
