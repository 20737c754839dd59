"""`imagepipe train`: one command from a folder to a served classifier, and the commands that it prints."""

import json
import shlex

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline.cli import app
from tests.conftest import make_digit_images

QUICK = ["image.size=[32, 32]", "trainer.backbone=mobilenet_v2", "trainer.weights=none", "trainer.epochs=1"]
QUICK += ["evaluation.thresholds.accuracy=0", "evaluation.margin=1", "evaluation.intervals=none"]


def imagepipe(*arguments) -> Result:
    """In this process, as another one would import TFX again."""
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.slow
def test_one_command_leads_to_answers_and_a_second_one_adds_to_it(tmp_path):
    source, out = tmp_path / "photos [2026] *?", tmp_path / "my flowers"
    for number, (label, png) in enumerate(make_digit_images(210)):
        path = source / f"class {int(label) % 2}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    later = source / "class 0" / "0000.png"
    later.rename(tmp_path / "later.png")
    sets = [argument for override in QUICK for argument in ("--set", override)]

    done = imagepipe("train", source, "--out", out, *sets)
    assert done.exit_code == 0, done.stderr
    assert "209 records in = 209 written" in done.stdout
    commands = {
        words: shlex.split(command) for words, _, command in (x.partition(": ") for x in done.stdout.splitlines())
    }
    assert commands["Serve it"] == ["imagepipe", "serve", str(out / "serving" / "my-flowers")]
    assert commands["Change the configuration, and run it again"] == ["imagepipe", "run", str(out / "pipeline.yaml")]
    assert f"Its report: {next(out.glob('runs/*/report.html'))}" in done.stdout
    answers = imagepipe(*commands["Ask it"][1:-1], tmp_path / "later.png", "--json")
    assert json.loads(answers.stdout)["label"].startswith("class ")

    (tmp_path / "later.png").rename(later)
    config = (out / "pipeline.yaml").read_text()
    again = imagepipe("train", source, "--out", out, *sets)
    assert again.exit_code == 0, again.stderr
    assert "210 records in = 210 written (1 new, 209 were there already)" in again.stdout
    assert "It was there, and is kept." in again.stderr
    assert (out / "pipeline.yaml").read_text() == config
